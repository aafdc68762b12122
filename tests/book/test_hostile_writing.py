"""Whoever writes into a folder that somebody else laid out: nothing outside of it changes, and nothing takes for ever."""

from __future__ import annotations

import json
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
from tests.book.books import arrays, make, plan
from tests.book.test_growing import files, grow, larger
from tests.book.test_ragged_upkeep import ragged
from tests.book.test_reader import find

from bookkd.book import Book, BookWriter, GrowthWriter, compact, copy_book, prune, repair, verify
from bookkd.core.errors import BookCorruptError, BookFormatError, BookKDError
from bookkd.core.files import write_atomic
from bookkd.core.lock import Lock

PRECIOUS = b"what nobody may change"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("hostile") / "b", plan(batch_size=10))


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original.path, tmp_path / "b")


@pytest.fixture
def outside(tmp_path):
    """A file and a folder that belong to somebody else."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_bytes(PRECIOUS)
    return tmp_path / "outside"


def unchanged(outside):
    return files(outside) == {"precious": PRECIOUS}


def opening(root):
    """As `make` does with a book that is finished."""
    BookWriter(root, plan(batch_size=10)).close()


def growing(root):
    grow(root, larger(Book(root), n_views=4))


def repairing(root):
    repair(root, lambda view, start, stop: arrays(view, start, stop))


WRITERS = {"opening": opening, "growing": growing, "repairing": repairing, "compacting": compact, "pruning": prune}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["link", "dangling", "second name", "pipe", "folder"])
def test_a_lock_that_is_something_else(root, outside, writer, kind):
    lock, target = root / ".lock", outside / "precious"
    if kind in ("link", "dangling"):
        lock.symlink_to(target if kind == "link" else outside / "new")
    elif kind == "second name":
        os.link(target, lock)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    before = files(root)
    with pytest.raises(
        BookFormatError, match=r"\.lock to be a regular file of one name, got (a link|one with 2|another)"
    ):
        WRITERS[writer](root)
    assert unchanged(outside)
    assert files(root) == before


def test_a_link_laid_between_the_look_and_the_opening_is_not_followed(root, outside, monkeypatch):
    lock, opened = root / ".lock", os.open

    def late(path, *args, **options):
        if Path(path).name == ".lock":
            lock.unlink(missing_ok=True)
            lock.symlink_to(outside / "precious")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(BookKDError):
        Lock(lock)
    assert unchanged(outside)


@pytest.mark.parametrize("where", ["outside", "inside"])
@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "opening"])
def test_a_view_folder_that_is_a_link(root, outside, writer, where):
    """Where it leads to is neither written to nor emptied; also not a folder of the book's own, which may be another view's."""
    folder = root / "view-0001"
    if where == "outside":
        shutil.copytree(folder, outside, dirs_exist_ok=True)
        shutil.rmtree(folder)
        folder.symlink_to(outside)
    else:
        folder.rename(root / "moved")
        folder.symlink_to("moved")
    before, beside = files(root), files(outside)
    with pytest.raises(BookFormatError, match=r"lie inside the book|Nothing is written through a link"):
        WRITERS[writer](root)
    assert (files(root), files(outside)) == (before, beside)


def test_a_folder_of_a_view_to_come_that_is_a_link(root, outside):
    (root / "view-0003").symlink_to(outside)
    before = files(root)
    with pytest.raises(BookFormatError, match=r"view-0003 to be a folder of its own, got a link to .*outside"):
        growing(root)
    assert unchanged(outside)
    assert files(root) == before


def test_a_view_folder_that_becomes_a_link_while_it_is_written(root, outside):
    with GrowthWriter(root, larger(Book(root), n_views=4)) as writer:
        unit = writer.pending()[0]
        (root / "view-0003").symlink_to(outside)
        with pytest.raises(BookFormatError, match="Nothing is written through a link"):
            writer.write_rows(unit.view, unit.start, arrays(*unit))
    assert unchanged(outside)


def test_an_unfinished_book_whose_view_is_a_link(tmp_path, outside):
    make(tmp_path / "b", plan(), units=1, finish=False)
    (tmp_path / "b" / "view-0001").symlink_to(outside)
    with pytest.raises(BookFormatError, match="Nothing is written through a link"):
        make(tmp_path / "b")
    assert unchanged(outside)


def test_the_root_itself_may_be_a_link(root, tmp_path, original):
    (tmp_path / "name").symlink_to(root)
    place = tmp_path / "name"
    find(root, "view-0001/rows", ".safetensors").unlink()
    for writer in (repairing, opening, compact, growing, prune):
        writer(place)
    assert verify(root) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "copy").symlink_to(tmp_path / "empty")
    assert copy_book(tmp_path / "copy", original).content_digest == original.content_digest


def test_statistics_in_a_folder_that_is_a_link(root, outside):
    pytest.importorskip("pyarrow")
    from bookkd.query import open_statistics, write_statistics

    (outside / "stats.json").write_bytes(PRECIOUS)
    (root / "stats").symlink_to(outside)
    for work in (write_statistics, open_statistics):
        with pytest.raises(BookFormatError, match="stats to be a folder of its own, got a link to"):
            work(Book(root))
    assert files(outside) == {"precious": PRECIOUS, "stats.json": PRECIOUS}
    (root / "stats").unlink()
    write_statistics(Book(root), out=outside)  # said on purpose
    (root / "stats").mkdir()
    for name in (
        f".view-0000.parquet.{os.getpid()}.tmp",
        f".stats.json.{os.getpid()}.tmp",
        "view-0001.parquet",
        "stats.json",
    ):
        (root / "stats" / name).symlink_to(outside / "precious")
    write_statistics(Book(root))
    assert open_statistics(Book(root)).teachers
    assert (outside / "precious").read_bytes() == PRECIOUS


def test_a_link_under_the_name_of_a_temporary_file(root, outside):
    for place in (".", "view-0001", "view-0003"):
        (root / place).mkdir(exist_ok=True)
        for name in ("plan-000002.json", "edition-000002.json", "rows-000000000-000000064-00000002.json"):
            (root / place / f".{name}.{os.getpid()}.tmp").symlink_to(outside / "precious")
    growing(root)
    assert unchanged(outside)
    assert not list(root.rglob("*.tmp"))
    (root / f".x.{os.getpid()}.tmp").symlink_to(outside / "precious")
    write_atomic(root / "x", b"mine")
    assert ((root / "x").read_bytes(), unchanged(outside)) == (b"mine", True)
    assert not (root / "x").is_symlink()


def within(seconds, work):
    started = time.process_time()
    result = work()
    assert time.process_time() - started < seconds
    return result


def test_many_sidecars_for_the_same_rows(tmp_path):
    """Each may be the one or the other: two to the power of 32 ways, and none of them leads to the end."""
    make(tmp_path / "b", plan(n_samples=64, n_views=1, unit_rows=2, block_rows=2))
    folder = tmp_path / "b" / "view-0000"
    for sidecar in sorted(folder.glob("rows-*.json")):
        shutil.copy(sidecar, sidecar.with_name(f"{sidecar.stem}-00000009.json"))
    find(folder, "view-").unlink()
    whole = files(tmp_path / "b")
    # Whole, the first names of all are not the right ones, and the right ones are one way among 2^32.
    with pytest.raises(BookCorruptError, match="no shards in its folder give the digest"):
        within(5, lambda: repair(tmp_path / "b"))
    for last in sorted(folder.glob("rows-000000062*.json")):
        last.unlink()
    with pytest.raises(BookCorruptError, match="no shards in its folder give the digest"):
        within(5, lambda: repair(tmp_path / "b"))
    assert set(files(tmp_path / "b").items()) < set(whole.items())


def test_a_damaged_sidecar_full_of_digests(tmp_path):
    root = make(tmp_path / "b", plan(batch_size=10)).path
    sidecar = find(root, "view-0001/rows-000000064", ".json")
    good = sidecar.read_bytes()
    noise = [f"{number:032x}" for number in range(28_000)]
    sidecar.write_text(json.dumps({"plan": noise, "fidelity": {"logits": {"x": noise}}}))
    assert sidecar.stat().st_size > 2**20
    assert within(5, lambda: repair(root)).renewed == (f"view-0001/{sidecar.name}",)
    assert verify(root) == []
    assert sidecar.read_bytes() != good
    sidecar.write_bytes(b'\n "fidelity": {' * 2**16)
    assert within(5, lambda: repair(root)).restored == ()
    assert verify(root) == []


def test_a_damaged_view_file_that_is_long(tmp_path):
    """Which sidecars it still names is looked up, not searched for in all of it once for each."""
    root = make(tmp_path / "b", plan(n_samples=100, n_views=1, unit_rows=1, block_rows=1)).path
    path = find(root, "view-0000/view-")
    good = path.read_bytes()
    path.write_bytes(b" " * (2**24 - len(good)) + good[:-50])
    assert within(5, lambda: repair(root)).restored == (f"view-0000/{path.name}",)
    assert path.read_bytes() == good


def test_a_damaged_edition_of_a_high_number_that_says_much(root):
    noise = {f"{number:032x}": [{}] for number in range(60_000)}
    (root / "edition-000001.json").rename(root / "edition-999999.json")
    (root / "edition-999999.json").write_text(json.dumps({"fidelity": noise, "cost": noise}))
    for number in range(2, 40):
        shutil.copy(root / "plan.json", root / f"plan-{number:06d}.json")
        shutil.copy(find(root, "view-0001/view-"), root / "view-0001" / f"view-{number:08x}.json")
    before = files(root)
    with pytest.raises(BookCorruptError, match="What is left does not prove what it named"):
        within(10, lambda: repair(root))
    assert files(root) == before


@pytest.mark.parametrize("kind", ["plain", "ragged"])
def test_a_lost_sidecar_does_not_bring_its_shard_into_memory(tmp_path, kind):
    rows = 200_000
    options = {"n_samples": rows, "n_views": 1, "unit_rows": rows, "block_rows": 4096}
    book = make(tmp_path / "b", plan(**options) if kind == "plain" else ragged(**options))
    root = book.path
    shard, sidecar = find(root, "view-0000/rows", ".safetensors"), find(root, "view-0000/rows", ".json")
    size = shard.stat().st_size
    assert size > 2**21
    sidecar.unlink()
    tracemalloc.start()
    repair(root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size // 2
    assert Book(root).content_digest == book.content_digest
