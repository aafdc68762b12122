"""Compacting changes files and nothing else; pruning leaves what the newest edition needs; readers go on."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from tests.book.books import C, N, V, arrays, make, plan
from tests.book.test_growing import assert_same, files, grow, in_one_go, larger

from bookkd.book import Book, Dense, FieldPlan, compact, prune, verify
from bookkd.book import compacting as module
from bookkd.core.errors import (
    BookCorruptError,
    BookLockedError,
    BookMissingError,
    BookUnfinishedError,
    ConfigError,
    StorageError,
)
from bookkd.core.lock import Lock


def shards(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*.safetensors"))


@pytest.fixture
def book(tmp_path):
    return make(tmp_path / "b", keys=np.arange(N, dtype=np.uint64) * 2)


def test_one_file_a_view_and_the_same_content(book):
    before = files(book.path)
    seen = []
    found = compact(book.path, progress=lambda *at: seen.append(at))
    assert verify(book.path) == []
    assert (found.edition, found.content_digest, found.fidelity, found.cost) == (
        2,
        book.content_digest,
        book.fidelity,
        book.cost,
    )
    assert [len(file.stems) for file in found._files] == [1] * V
    assert_same(found, book)
    after = files(book.path)
    assert {name: after[name] for name in before} == before
    assert "plan-000002.json" not in after
    assert seen[-1] == (seen[-1][1],) * 2
    assert compact(book.path).edition == 2  # nothing is left to do


def test_the_file_is_the_one_that_the_library_writes(tmp_path):
    """So a reader that knows safetensors alone reads it, and damage can be found by place."""
    the_plan = plan(unit_rows=None, n_samples=96)
    one = make(tmp_path / "one", the_plan)
    assert one.plan.unit_rows == 96
    several = make(tmp_path / "several", plan(n_samples=96, unit_rows=32))
    compact(several.path)
    for view in range(V):
        (mine,) = (several.path / f"view-{view:04d}").glob("*-00000002.safetensors")
        (theirs,) = (one.path / f"view-{view:04d}").glob("*.safetensors")
        assert mine.read_bytes() == theirs.read_bytes()


def test_files_have_a_largest_size(book):
    size = next(book.path.rglob("rows-000000000-000000064.safetensors")).stat().st_size
    found = compact(book.path, shard_bytes=2 * size)
    assert [file.starts.tolist() for file in found._files] == [[0, 128]] * V
    assert_same(found, book)
    assert compact(book.path, shard_bytes=2 * size).edition == 2
    with pytest.raises(ConfigError, match="`shard_bytes`"):
        compact(book.path, shard_bytes=0)


def test_pruned_are_old_editions_and_what_they_alone_name(book):
    (book.path / "notes.txt").write_text("mine")
    (book.path / "view-0000" / "picture.png").write_text("mine")
    before = files(book.path)
    compact(book.path)
    done = prune(book.path)
    left = files(book.path)
    # An edition, and for each of three views its file and three shards with sidecars.
    assert (done.editions, done.files) == ((1,), 1 + V * (1 + 3 * 2))
    assert done.bytes == sum(len(before[name]) for name in set(before) - set(left))
    assert verify(book.path) == []
    kept = {"notes.txt", "view-0000/picture.png", "plan.json", "keys.safetensors", "edition-000002.json"}
    assert {name for name in left if "rows-" not in name and "/view-" not in name} == kept
    assert len(left) == len(kept) + 3 * V
    np.testing.assert_array_equal(Book(book.path).keys, np.arange(N) * 2)
    assert prune(book.path) == module.Pruned()


def test_a_grown_book_keeps_its_own_plan_and_keys_only(tmp_path):
    keys = np.arange(N, dtype=np.uint64) + 5
    book = make(tmp_path / "b", plan(n_samples=100), keys=keys[:100])
    grown = grow(tmp_path / "b", larger(book, n_samples=N), keys=keys)
    prune(tmp_path / "b")
    names = {path.name for path in (tmp_path / "b").iterdir() if path.is_file()}
    assert names == {"plan-000002.json", "keys-000002.safetensors", "edition-000002.json"}
    assert_same(Book(tmp_path / "b"), in_one_go(tmp_path / "whole", grown, keys))
    # The folder is still the book of that plan, for who makes it again, compacts it or grows it.
    assert make(tmp_path / "b", grown.plan, keys=keys).edition == 2
    assert compact(tmp_path / "b").edition == 3
    more = grow(tmp_path / "b", larger(grown, n_views=4), keys=keys)
    assert more.edition == 4
    assert_same(more, in_one_go(tmp_path / "whole4", more, keys))


@pytest.mark.parametrize("last", [161, 192, 300])
@pytest.mark.parametrize("first", [150, 160])
def test_a_compacted_book_grows(tmp_path, first, last):
    book = make(tmp_path / "b", plan(n_samples=first))
    compact(tmp_path / "b")
    grown = grow(tmp_path / "b", larger(book, n_samples=last, n_views=4))
    assert_same(grown, in_one_go(tmp_path / "whole", grown))
    assert grown.fidelity["logits"]["n"] == 4 * last
    again = compact(tmp_path / "b")
    assert (again.edition, again.content_digest) == (4, grown.content_digest)
    assert again.fidelity == grown.fidelity


def test_an_unfinished_growth_is_finished_or_dropped_first(tmp_path):
    book = make(tmp_path / "b")
    grow(tmp_path / "b", larger(book, n_views=5), pieces=2, finish=False)
    with pytest.raises(BookUnfinishedError, match=r"plan-000002.json without its edition.*bookkd compact .* --prune"):
        compact(tmp_path / "b")
    found = compact(tmp_path / "b", drop_growth=True)
    assert (found.edition, found.n_views) == (2, V)
    prune(tmp_path / "b")
    assert sorted(folder.name for folder in (tmp_path / "b").glob("view-*")) == [
        f"view-{view:04d}" for view in range(V)
    ]
    assert_same(Book(tmp_path / "b"), make(tmp_path / "whole"))


def test_readers_go_on_while_a_book_is_compacted_and_pruned(book):
    rows = np.arange(N)
    wanted = {view: arrays(view, 0, N)["logits"].astype(np.float16) for view in range(V)}
    mapped, fresh = Book(book.path), Book(book.path)
    mapped.read(rows, 0)
    mapped.read(rows[:10], 1)
    compact(book.path)
    np.testing.assert_array_equal(mapped.read(rows, 2, ["logits"])["logits"], wanted[2])
    prune(book.path)
    for view in (0, 2):  # the files are gone, the mappings are not
        np.testing.assert_array_equal(mapped.read(rows, view, ["logits"])["logits"], wanted[view])
    np.testing.assert_array_equal(mapped.read(rows[:64], 1, ["logits"])["logits"], wanted[1][:64])
    for reader in (fresh, mapped):
        with pytest.raises(
            BookMissingError, match=r"was pruned, the newest is 2\. Open the book again to read edition 2"
        ):
            reader.read(rows, 1)
    never = Book(book.path, verify="never")
    np.testing.assert_array_equal(never.read(rows, 1, ["logits"])["logits"], wanted[1])
    shutil.rmtree(book.path / "view-0001")
    never.close()
    with pytest.raises(BookMissingError, match=r"got nothing there\. Restore or repair it"):
        never.read(rows, 1)


def test_opening_meets_a_prune(book, monkeypatch):
    """The edition that was the newest is gone when it is read: the newer one is."""
    from bookkd.book import reader

    real = reader.find_edition

    def late(root, edition):
        number = real(root, edition)
        if number == 1:
            monkeypatch.undo()
            compact(root)
            prune(root)
        return number

    monkeypatch.setattr(reader, "find_edition", late)
    assert Book(book.path).edition == 2
    with pytest.raises(BookMissingError, match="edition 1, got editions 2"):
        Book(book.path, edition=1)


def test_damage_is_not_written_into_a_new_file(book):
    shard = book.path / "view-0001" / "rows-000000064-000000128.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 8
    shard.write_bytes(data)
    before = files(book.path)
    with pytest.raises(BookCorruptError, match=r"rows-000000064-000000128.*`bookkd repair`"):
        compact(book.path)
    assert Book(book.path).edition == 1
    assert not list(book.path.rglob("*.tmp"))
    assert {name: content for name, content in files(book.path).items() if name in before} == before


def test_damage_to_what_an_interrupted_run_left_is_not_taken_over(book, monkeypatch):
    """The shard of a compaction that was cut short is compared with its digest before it takes the place of the old ones."""
    monkeypatch.setattr(module, "write_edition", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compact(book.path)
    monkeypatch.undo()
    (left, *_) = sorted(path for path in book.path.rglob("*-00000002.safetensors"))
    data = bytearray(left.read_bytes())
    data[-1] ^= 1
    left.write_bytes(data)
    assert compact(book.path).edition == 2
    assert verify(book.path) == []


def test_nothing_is_deleted_while_the_newest_edition_has_a_fault(book):
    compact(book.path)
    (new, *_) = sorted(book.path.rglob("*-00000002.safetensors"))
    data = bytearray(new.read_bytes())
    data[-1] ^= 1
    new.write_bytes(data)
    before = files(book.path)
    with pytest.raises(BookCorruptError, match="to be whole before older files are deleted, got 1 faults"):
        prune(book.path)
    assert files(book.path) == before
    assert verify(book.path, edition=1) == []


def test_one_writer(book):
    lock = Lock(book.path / ".lock")
    for work in (compact, prune):
        with pytest.raises(BookLockedError):
            work(book.path)
    lock.release()
    assert compact(book.path).edition == 2


@pytest.mark.parametrize("work", [compact, prune])
def test_what_is_no_book_is_left_alone(tmp_path, work):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.txt").write_text("mine")
    for path in (tmp_path / "none", tmp_path / "other"):
        with pytest.raises(BookMissingError):
            work(path)
    make(tmp_path / "begun", units=1, finish=False)
    before = files(tmp_path / "begun")
    with pytest.raises(BookUnfinishedError):
        work(tmp_path / "begun")
    assert files(tmp_path / "begun") == before


def test_nothing_is_deleted_where_the_newest_edition_cannot_be_read(book):
    compact(book.path)
    (book.path / "edition-000002.json").write_text("{}")
    before = files(book.path)
    with pytest.raises(Exception, match="format_version"):
        prune(book.path)
    assert files(book.path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(book):
    book.path.chmod(0o500)
    with pytest.raises(StorageError):
        compact(book.path)
    book.path.chmod(0o700)


def test_several_dtypes(tmp_path):
    fields = {"logits": FieldPlan((C,), Dense("float32")), **{n: f for n, f in plan().fields.items() if n != "logits"}}
    book = make(tmp_path / "b", plan(fields=fields))
    assert_same(compact(tmp_path / "b"), book)
    edition = json.loads((tmp_path / "b" / "edition-000002.json").read_text())
    assert "file" not in edition["plan"]
