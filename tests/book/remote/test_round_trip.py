"""A book on a server is the book that it is here: written, read, copied, verified, asked."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.book import books

from bookkd.book import Book, BookWriter, _manifest, copy_book, editions, is_finished, newest_plan, verify
from bookkd.core.errors import (
    BookLockedError,
    BookMismatchError,
    BookMissingError,
    ConfigError,
    StorageError,
)


def assert_same(one, other, rows=None):
    samples = np.arange(one.n_samples) if rows is None else rows
    for view in range(one.n_views):
        found, known = one.gather(samples, view), other.gather(samples, view)
        assert list(found) == list(known)
        for name, array in known.items():
            if isinstance(array, np.ndarray):
                np.testing.assert_array_equal(found[name], array)
            else:
                np.testing.assert_array_equal(found[name].values, array.values)
                np.testing.assert_array_equal(found[name].offsets, array.offsets)


def test_made_on_s3_and_read_from_there(shelf, tmp_path):
    here = books.make(tmp_path / "here")
    assert not is_finished(shelf)
    assert newest_plan(shelf) is None
    there = books.make(shelf)
    assert there.content_digest == here.content_digest
    assert str(there.path) == shelf
    assert is_finished(shelf)
    assert [each.content_digest for each in editions(shelf)] == [here.content_digest]
    assert_same(there, here)
    assert verify(shelf) == []


@pytest.mark.parametrize("cache", [None, "none"])
def test_rows_of_all_views_in_any_order(shelf, tmp_path, cache):
    here, _ = books.make(tmp_path / "here"), books.make(shelf)
    there = Book(shelf, cache=cache)
    samples, views = np.random.default_rng(0).integers(0, [books.N, books.V], size=(200, 2)).T
    for name, array in there.gather(samples, views).items():
        np.testing.assert_array_equal(array, here.gather(samples, views)[name])


def test_copies_there_and_back(shelf, tmp_path):
    keys = np.arange(books.N, dtype=np.uint64) * np.uint64(7)
    here = books.make(tmp_path / "here", keys=keys)
    there = copy_book(shelf, here)
    back = copy_book(tmp_path / "back", Book(shelf))
    assert here.content_digest == there.content_digest == back.content_digest
    np.testing.assert_array_equal(there.rows_of(keys[[5, 3]]), [5, 3])


def test_constants_there_and_back(shelf, tmp_path):
    given = {"classifier/weight": np.eye(books.C, 4, dtype=np.float32), "order": np.arange(5)}
    with BookWriter(tmp_path / "here", books.plan(), constants=given) as writer:
        for unit in writer.pending():
            writer.write(unit, books.arrays(*unit))
        here = writer.finish()
    there = copy_book(shelf, here)
    back = copy_book(tmp_path / "back", Book(shelf))
    for book in (there, back, pickle.loads(pickle.dumps(there))):
        assert book.content_digest == here.content_digest
        for name, array in given.items():
            np.testing.assert_array_equal(book.constants[name], array, strict=True)
    assert verify(shelf) == []


def test_constants_of_a_book_that_is_gone_on_with(shelf):
    given = {"order": np.arange(5)}
    with BookWriter(shelf, books.plan(), constants=given) as writer:
        writer.write(writer.pending()[0], books.arrays(*writer.pending()[0]))
    with pytest.raises(BookMismatchError, match=r"constants\.order\.xxh3_128"):
        BookWriter(shelf, books.plan(), constants={"order": np.arange(5) + 1})
    with BookWriter(shelf, books.plan(), constants=given) as writer:
        for unit in writer.pending():
            writer.write(unit, books.arrays(*unit))
        np.testing.assert_array_equal(writer.finish().constants["order"], np.arange(5))


def test_gone_on_with_from_what_the_store_has(shelf, tmp_path, monkeypatch):
    books.make(shelf, units=2, finish=False)
    with BookWriter(shelf, books.plan()) as writer:
        units = list(writer.plan.units())
        assert writer.pending() == units[2:]
    assert books.make(shelf).content_digest == books.make(tmp_path / "here").content_digest


def test_another_plan_is_refused(shelf):
    books.make(shelf, units=1, finish=False)
    with pytest.raises(BookMismatchError, match="n_samples"):
        BookWriter(shelf, books.plan(n_samples=149))


def test_a_second_edition_of_one_number_is_refused(shelf):
    books.make(shelf, finish=False)
    first, second = BookWriter(shelf, books.plan()), BookWriter(shelf, books.plan())
    first.finish({"seconds": 1})
    with pytest.raises(BookLockedError, match="another writer"):
        second.finish({"seconds": 2})
    assert Book(shelf).cost == {"seconds": 1}


def test_two_writers_of_other_bits_cannot_mix(shelf):
    first, second = BookWriter(shelf, books.plan()), BookWriter(shelf, books.plan())
    unit = first.pending()[0]
    said = books.arrays(*unit)
    first.write(unit, said)
    second.write(unit, said)  # the same bits: nothing is lost
    other = second.pending()[0]
    first.write(other, books.arrays(*other))
    changed = books.arrays(*other) | {"logits": books.arrays(*other)["logits"] + 1}
    with pytest.raises(BookLockedError, match=r"rows-.*safetensors to be absent.*another writer"):
        second.write(other, changed)


def test_a_race_has_one_winner(shelf):
    """Processes that begin and end at once: one edition, and the book is whole."""
    code = (
        "import sys; from tests.book import books; from bookkd.core.errors import BookLockedError\n"
        "import time\n"
        "try:\n"
        "    with __import__('bookkd.book').book.BookWriter(sys.argv[1], books.plan()) as writer:\n"
        "        for unit in writer.pending(): writer.write(unit, books.arrays(*unit))\n"
        "        writer.finish({'seconds': float(sys.argv[2])})\n"
        "    print('won')\n"
        "except BookLockedError: print('lost')\n"
    )
    run = [
        subprocess.Popen([sys.executable, "-c", code, shelf, str(number)], stdout=subprocess.PIPE, text=True)
        for number in (1, 2)
    ]
    said = sorted(each.communicate(timeout=60)[0].strip() for each in run)
    assert all(each.returncode == 0 for each in run)
    # One that begins when the other has ended finds a finished book, which is not refused.
    assert said in (["lost", "won"], ["won", "won"])
    assert len(editions(shelf)) == 1
    assert verify(shelf) == []


def test_a_plan_that_comes_while_one_looks_is_gone_on_with(shelf, monkeypatch):
    real = BookWriter._foreign

    def late(self):
        monkeypatch.setattr(BookWriter, "_foreign", real)
        books.make(shelf)
        return real(self)

    monkeypatch.setattr(BookWriter, "_foreign", late)
    with BookWriter(shelf, books.plan()) as writer:
        assert list(writer.pending()) == []
    assert len(editions(shelf)) == 1
    assert verify(shelf) == []


@pytest.mark.parametrize("verb", ["compact", "prune", "repair"])
def test_what_needs_files_says_so(shelf, verb):
    import bookkd.book

    with pytest.raises(ConfigError, match=rf"folder of this machine, to {verb} it.*bookkd copy {shelf} DIR"):
        getattr(bookkd.book, verb)(shelf)


def test_pickles_by_address(shelf):
    there = books.make(shelf)
    again = pickle.loads(pickle.dumps(there))
    assert (str(again.path), again.content_digest) == (shelf, there.content_digest)


def test_plain_http_reads_and_does_not_write(served):
    server, url, here = served
    assert_same(Book(url), here)
    assert verify(url) == []
    assert [each.number for each in editions(url)] == [1]
    with pytest.raises(StorageError, match="creates an object if it is absent"):
        BookWriter(f"{server.url}/new", books.plan())


def test_absent_books(served, shelf):
    server, _, _ = served
    for address in (f"{server.url}/nothing", shelf, "s3://no-such-bucket/book"):
        with pytest.raises(BookMissingError, match=r"to be a book .*, got nothing there\. Check the address"):
            Book(address)


def renumbered(server, numbers, **changes):
    """Give the served book editions of these numbers instead of its first."""
    folder = server.folder / "book"
    edition = _manifest.read_edition(folder, 1)
    (folder / "edition-000001.json").unlink()
    for number in numbers:
        text = replace(edition, number=number, **changes).to_bytes()
        (folder / f"edition-{number:06d}.json").write_bytes(text)


def test_many_editions_of_a_server_that_lists_nothing(served):
    server, url, _ = served
    renumbered(server, range(1, 80))
    assert Book(url).edition == 79
    assert Book(url, edition=70).edition == 70
    with pytest.raises(BookMissingError, match=r"to have edition 80, got editions 1, 2"):
        Book(url, edition=80)


def test_a_late_edition_alone_is_found_by_its_number(served):
    """As a book is that grew 65 times and was pruned."""
    server, url, _ = served
    (server.folder / "book" / "plan.json").rename(server.folder / "book" / "plan-000066.json")
    renumbered(server, [66], plan_file="plan-000066.json")
    with pytest.raises(BookMissingError, match=r"got nothing there.*editions above 64 are found by their number alone"):
        Book(url)
    assert Book(url, edition=66).edition == 66


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_forbids_what_is_absent(served, status):
    server, url, here = served
    server.fault = lambda request, name, data: data is None and (request.answer(status), True)[1]
    assert_same(Book(url), here)
    with pytest.raises(BookMissingError, match="to have edition 5, got editions 1"):
        Book(url, edition=5)
    with pytest.raises(StorageError, match=f"open to these credentials, got the answer {status}"):
        Book(f"{server.url}/nothing")


def test_a_server_that_knows_no_head(served):
    server, url, here = served
    server.fault = lambda request, name, data: request.command == "HEAD" and (request.answer(405), True)[1]
    assert_same(Book(url), here)


def test_a_bucket_that_may_not_be_listed(shelf, tmp_path, monkeypatch):
    here, _ = books.make(tmp_path / "here"), books.make(shelf)
    from bookkd.book.remote import by_obstore

    def forbidden(self, call):
        if "list_with_delimiter" in call.__code__.co_names:
            raise by_obstore._ForbiddenError("no")
        return real(self, call)

    real = by_obstore.ObstoreStore._ask
    monkeypatch.setattr(by_obstore.ObstoreStore, "_ask", forbidden)
    assert_same(Book(shelf), here)


def test_fsspec_reads_other_schemes(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    here = books.make(tmp_path / "here")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "here"), "/shelf/book", recursive=True)
    assert_same(Book("memory://shelf/book"), here)
    assert_same(Book("memory://shelf/book", cache="none"), here)
    with pytest.raises(StorageError, match="creates an object if it is absent"):
        BookWriter("memory://shelf/new", books.plan())


def test_ragged_parts_streamed(shelf, tmp_path):
    from bookkd.book import FieldPlan, Plan, Sampled

    plan = Plan(90, 1, {"logits": FieldPlan((50,), Sampled(draws=20))}, unit_rows=64, block_rows=16)
    logits = np.random.default_rng(1).normal(size=(90, 50)).astype(np.float32)
    opened = []
    for place in (tmp_path / "here", shelf):
        with BookWriter(place, plan) as writer:
            writer.write_rows(0, 0, {"logits": logits})
            opened.append(writer.finish())
    for cache in (None, "none"):
        assert_same(Book(shelf, cache=cache), opened[0])
        assert_same(Book(shelf, cache=cache), opened[0], rows=np.array([70, 3, 3, 89]))


def test_program(shelf, tmp_path, capsys):
    from bookkd.cli import main

    books.make(tmp_path / "here")
    assert main(["copy", str(tmp_path / "here"), shelf, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["same"]
    assert main(["inspect", shelf, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["path"] == shelf
    assert main(["verify", shelf]) == 0
    assert main(["copy", shelf, str(tmp_path / "back")]) == 0
    assert main(["compact", shelf]) == 2
