"""Whatever is done to a book in whatever order, and whenever it is killed, it stays the book of one go."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.book.books import N, V, arrays, make, plan
from tests.book.test_growing import files, grow, larger, said_by_both, two_teachers

from bookkd.book import (
    Book,
    BookWriter,
    GrowthWriter,
    compact,
    copy_book,
    editions,
    extract,
    growth_begun,
    prune,
    repair,
    verify,
)
from bookkd.core.errors import BookLockedError, StorageError

ROOT = Path(__file__).parents[2]


def in_one_go(path, like, n_samples, n_views, said=arrays):
    the_plan = replace(like, n_samples=n_samples, n_views=n_views, keys_digest=None)
    with BookWriter(path, the_plan) as writer:
        for unit in writer.pending():
            found = said(*unit)
            writer.write(unit, {name: found[name] for name in writer.plan.fields})
        return writer.finish()


UNSYNCED = patch("os.fsync", lambda descriptor: None)
"""Nobody cuts the power here, and the disk may take its time."""

STEPS = st.one_of(
    st.tuples(st.just("grow"), st.integers(0, 40), st.integers(0, 2)),
    st.tuples(st.just("stop"), st.integers(0, 40), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("compact"), st.sampled_from([2000, 6000, 2**32])),
    st.tuples(st.just("prune")),
    st.tuples(st.just("extract"), st.integers(1, 100), st.integers(1, 4)),
    st.tuples(st.just("copy")),
)


@UNSYNCED
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(1, 60), views=st.integers(1, 2), steps=st.lists(STEPS, min_size=1, max_size=6))
def test_any_sequence_ends_in_the_book_of_one_go(tmp_path_factory, first, views, steps):
    root = tmp_path_factory.mktemp("sequence")
    path, known = root / "0", {}
    book = make(
        path,
        plan(n_samples=first, n_views=views, unit_rows=None if first < 32 else 32, block_rows=None if first < 8 else 8),
    )
    for place, (step, *options) in enumerate(steps, 1):
        if step in ("grow", "stop"):
            request = larger(book, n_samples=book.n_samples + options[0], n_views=book.n_views + options[1])
            if step == "stop":
                # Begun, killed, and then gone on with by the same request.
                grow(path, request, pieces=options[2], finish=False)
                assert Book(path).content_digest == book.content_digest
            known = known | {book.edition: book.content_digest}
            book = grow(path, request)
        elif step == "compact":
            known = known | {book.edition: book.content_digest}
            book = compact(path, shard_bytes=options[0])
        elif step == "prune":
            prune(path)
            book, known = Book(path), {}
        else:
            path = root / str(place)
            if step == "copy":
                book = copy_book(path, book)
            else:
                count, kept = min(options[0], book.n_samples), min(options[1], book.n_views)
                book = extract(path, book, samples=slice(0, count), views=slice(0, kept), data=book.plan.data)
            known = {}
        known = known | {book.edition: book.content_digest}
        assert {each.number: each.content_digest for each in editions(path)} == known
    whole = in_one_go(root / "whole", book.plan, book.n_samples, book.n_views)
    assert verify(path) == []
    assert book.content_digest == whole.content_digest
    rows = np.arange(book.n_samples)
    for view in range(book.n_views):
        np.testing.assert_array_equal(
            book.gather(rows, view)["logits/values"], whole.gather(rows, view)["logits/values"]
        )
    assert growth_begun(path) is None


@UNSYNCED
def start(root, work):
    """A book to be worked on, and what is to come of it."""
    first, second = two_teachers()
    if work == "teacher":
        make(root / "b", first)
        return in_one_go(root / "whole", second, N, V, said_by_both).content_digest
    book = make(root / "b", plan(n_samples=100 if work == "grow" else N))
    if work == "grow":
        return make(root / "whole", plan(n_views=4)).content_digest
    if work == "copy":
        return copy_book(root / "whole", book, codec=None).content_digest
    if work == "extract":
        return extract(root / "whole", book, views=[2, 0]).content_digest
    if work == "repair":
        for name in ("view-0000/rows-000000000-000000064", "view-0002/rows-000000064-000000128"):
            shard = root / "b" / f"{name}.safetensors"
            shard.write_bytes(shard.read_bytes()[:-900])
        (root / "b" / "view-0001" / book._edition.views[1].file).unlink()
    return book.content_digest


def run(root, work):
    """The work, from wherever it was left; returns the folder of its result."""
    path = root / "b"
    if work == "grow":
        grow(path, larger(Book(path, edition=1), n_samples=N, n_views=4))
    elif work == "teacher":
        if Book(path).edition == 1:
            with GrowthWriter(path, two_teachers()[1], names={"logits": "members/0/logits"}) as writer:
                for view, begin, stop in writer.pending():
                    said = said_by_both(view, begin, stop)
                    writer.write_rows(view, begin, {"members/1/logits": said["members/1/logits"]})
                writer.finish()
    elif work == "compact":
        compact(path)
    elif work == "prune":
        compact(path)
        prune(path)
    elif work == "repair":
        repair(path, arrays)
    elif work == "copy":
        copy_book(root / "copy", Book(path))
        return root / "copy"
    else:
        extract(root / "part", Book(path), views=[2, 0])
        return root / "part"
    return path


def killed_at(root, work, system_call):
    """Do the work in a forked child that dies before its n-th rename, link, unlink or sync; False if it came to its end."""
    child = os.fork()
    if child == 0:
        count = [0]

        def counting(real):
            def call(*args, **options):
                count[0] += 1
                if count[0] > system_call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        os.fsync, os.link = counting(os.fsync), counting(os.link)
        Path.replace, Path.unlink = counting(Path.replace), counting(Path.unlink)
        try:
            run(root, work)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize("work", ["grow", "teacher", "compact", "prune", "repair", "copy", "extract"])
def test_killed_at_some_moments(tmp_path, work):
    wanted = start(tmp_path / "0", work)
    draws = random.Random(work)
    # Few calls in the beginning, many later: the first moments are all tried.
    moments = [0, 1, 2, 3, 5, 8, *sorted(draws.sample(range(9, 60), 6))]
    kills = 0
    for place, moment in enumerate(moments):
        root = tmp_path / str(place)
        if place:
            start(root, work)
        before = Book(root / "b").content_digest if work != "repair" else None
        if not killed_at(root, work, moment):
            break
        kills += 1
        if before is not None:  # the book is there at every moment: as it was, or as it will be
            assert Book(root / "b").content_digest in (before, wanted)
            assert Book(root / "b").read([0, 99], [1])["probe/hash"].shape == (2,)
        with UNSYNCED:
            found = run(root, work)
        assert verify(found) == []
        assert Book(found).content_digest == wanted
        assert not list((root / "b").rglob("*.tmp"))
    assert kills >= 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize("work", ["grow", "compact", "prune"])
def test_killed_again_and_again_while_it_goes_on(tmp_path, work):
    wanted = start(tmp_path, work)
    kills = 0
    while killed_at(tmp_path, work, 3 + 2 * kills):
        kills += 1
        Book(tmp_path / "b").read([5], [0])
        assert kills < 60
    assert kills > 2
    assert Book(tmp_path / "b").content_digest == wanted
    assert verify(tmp_path / "b") == []


HOLD = """
import sys
from tests.book.test_editions import Book, GrowthWriter, larger
book = Book(sys.argv[1])
with GrowthWriter(sys.argv[1], larger(book, n_views=5)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_and_readers_are_not(tmp_path):
    book = make(tmp_path / "b")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "b")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        before = files(tmp_path / "b")
        for work in (
            lambda: grow(tmp_path / "b", larger(book, n_views=5)),
            lambda: compact(tmp_path / "b"),
            lambda: prune(tmp_path / "b"),
            lambda: repair(tmp_path / "b"),
        ):
            with pytest.raises(BookLockedError, match=f"no other writer, got process {holder.pid} on host"):
                work()
        assert files(tmp_path / "b") == before
        assert Book(tmp_path / "b").read([0], [0])["logits"].shape == (1, 6)
        assert copy_book(tmp_path / "c", book, codec=None).content_digest == book.content_digest
        assert make(tmp_path / "b").edition == 1
    finally:
        holder.kill()
        holder.communicate()
    # The lock of a dead process is taken over.
    assert grow(tmp_path / "b", larger(book, n_views=5)).n_views == 5


def test_editions_say_what_each_is(tmp_path):
    book = make(tmp_path / "b")
    grow(tmp_path / "b", larger(book, n_views=4))
    compact(tmp_path / "b")
    found = editions(tmp_path / "b")
    assert [
        (each.number, each.n_samples, each.n_views, each.n_teachers, each.shards, each.fault) for each in found
    ] == [
        (1, N, 3, 1, 9, ""),
        (2, N, 4, 1, 12, ""),
        (3, N, 4, 1, 4, ""),
    ]
    assert found[0].content_digest == book.content_digest
    assert found[1].content_digest == found[2].content_digest != found[0].content_digest
    (tmp_path / "b" / "edition-000002.json").write_text("{}")
    assert "format_version" in editions(tmp_path / "b")[1].fault
    grow(tmp_path / "b", larger(Book(tmp_path / "b"), n_views=5), pieces=1, finish=False)
    assert growth_begun(tmp_path / "b") == 4


def test_a_reader_in_another_process_reopens_its_edition(tmp_path):
    """A book that was pickled to a worker is the edition it was, whatever has come since."""
    import pickle

    book = make(tmp_path / "b")
    packed = pickle.dumps(book)
    grown = grow(tmp_path / "b", larger(book, n_views=4))
    assert pickle.loads(packed).content_digest == book.content_digest
    assert pickle.loads(pickle.dumps(grown)).n_views == 4


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("work", ["grow", "compact", "copy", "extract", "repair"])
def test_a_full_disk_leaves_the_book_and_the_work_goes_on(tmp_path, work, calls):
    wanted = start(tmp_path, work)
    count = [0]

    def full(descriptor):
        count[0] += 1
        if count[0] > calls:
            raise OSError(errno.ENOSPC, "No space left on device")

    with patch("os.fsync", full), pytest.raises(StorageError, match=r"make room .* then run again"):
        run(tmp_path, work)
    assert not (tmp_path / "b" / ".lock").exists()
    assert not list((tmp_path / "b").rglob("*.tmp"))
    if work != "repair":
        assert Book(tmp_path / "b").edition == 1
        assert verify(tmp_path / "b") == []
    with UNSYNCED:
        assert Book(run(tmp_path, work)).content_digest == wanted
