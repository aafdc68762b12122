"""Reading ahead: which bytes the system is asked for, and that it then has them."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest
from tests.book.books import N, make, plan

from bookkd.book import Book, BookWriter, FieldPlan, Plan, Raw, Sampled, _shard
from bookkd.core.errors import DataError, UnknownNameError

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no such advice")


@pytest.fixture
def asked(monkeypatch):
    """What the system is asked for: (advice, start, length), by the size of the file."""
    found = {}

    class Told(mmap.mmap):
        def madvise(self, option, start=0, length=None):
            found.setdefault(len(self), []).append((option, start, length))
            return super().madvise(option, start, length)

    monkeypatch.setattr(_shard.mmap, "mmap", Told)
    return found


def book_of(path, unit_rows, width=1024, n_samples=256):
    """Rows of `width` bytes that say their number, in 2 views."""
    fields = {"x": FieldPlan((width,), Raw("uint8")), "y": FieldPlan((), Raw("uint64"))}
    the_plan = Plan(n_samples=n_samples, n_views=2, fields=fields, unit_rows=unit_rows, block_rows=16)
    with BookWriter(path, the_plan) as writer:
        for unit in writer.pending():
            rows = np.arange(unit.start, unit.stop)
            values = np.repeat(rows[:, None] % 251, width, axis=1).astype(np.uint8)
            writer.write(unit, {"x": values, "y": rows.astype(np.uint64)})
        return writer.finish()


def test_whole_pages_over_the_bytes_of_the_rows_are_asked_for(tmp_path, asked):
    book = book_of(tmp_path / "b", 256)
    book.prefetch(64, 96, 1, ["x"])
    ((size, [(option, start, length)]),) = asked.items()
    assert option == mmap.MADV_WILLNEED
    (shard,) = (tmp_path / "b" / "view-0001").glob("*.safetensors")
    data = shard.read_bytes()
    assert size == len(data)
    first = data.index(bytes([64]) * 1024)
    assert start == first - first % mmap.PAGESIZE
    assert start + length == first + 32 * 1024
    book.prefetch(0, 1, 1)
    assert len(asked[size]) == 3  # both fields


def test_rows_over_several_shards_are_asked_of_each(tmp_path, asked, monkeypatch):
    book = book_of(tmp_path / "b", 64)
    told = []
    monkeypatch.setattr(_shard.Shard, "prefetch", lambda self, *args: told.append((self._view, self._start, *args)))
    book.prefetch(60, 200, 1, ["y"])
    parts = ["y/values"]
    assert told == [(1, 0, 60, 64, parts), (1, 64, 0, 64, parts), (1, 128, 0, 64, parts), (1, 192, 0, 8, parts)]
    told.clear()
    book.prefetch(192, 256, 0, ["y"])
    assert told == [(0, 192, 0, 64, parts)]


def test_of_ragged_parts_whole_blocks_of_items_are_asked_for(tmp_path, asked):
    fields = {"logits": FieldPlan((6,), Sampled(4))}
    make(tmp_path / "b", plan(fields=fields, unit_rows=N))
    book = Book(tmp_path / "b")
    book.prefetch(16, 48, 0)
    ((_, told),) = asked.items()
    assert len(told) == len(book.plan.fields["logits"].stored("logits"))
    before = book.read(np.arange(N), 0)["logits"].classes
    book.close()
    assert (Book(tmp_path / "b").read(np.arange(N), 0)["logits"].classes.values == before.values).all()


def resident(path):
    """Return the share of the pages of a file that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        place = (ctypes.c_char * size).from_buffer(mapped)
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), pages)
        del place
    if failed:
        pytest.skip("the system does not say which pages are in memory")
    return np.array([page & 1 for page in pages]).mean()


def test_what_is_asked_for_comes_into_memory(tmp_path):
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("the system cannot be told to forget a file")
    book = book_of(tmp_path / "b", 4096, width=4096, n_samples=4096)
    (shard,) = (tmp_path / "b" / "view-0000").glob("*.safetensors")
    with shard.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(shard) > 0.1:
        pytest.skip("the file system does not forget a file")
    book.prefetch(1024, 3072, 0, ["x"])
    for _ in range(200):
        if resident(shard) > 0.45:
            break
        os.sched_yield()
    assert 0.45 < resident(shard) < 0.7


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 300, 0), DataError, "`samples` to be from 0 to 255, got 299"),
        ((-1, 4, 0), DataError, "`samples` to be from 0 to 255, got -1"),
        ((4, 4, 0), DataError, "`stop` to be above start = 4, got 4"),
        ((0, 4, 2), DataError, "`views` to be from 0 to 1, got 2"),
        ((0, 4, 0, ["z"]), UnknownNameError, "Unknown field 'z'"),
    ],
)
def test_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        book_of(tmp_path / "b", 256).prefetch(*arguments)
