"""A book larger than memory: reading by windows of blocks, against the disk read from end to end and against uniform rows.

python benchmarks/larger_than_memory.py                    # 2 GiB of rows of 1 KiB under a limit of 256 MiB
python benchmarks/larger_than_memory.py --keep             # writes benchmarks/performance/larger-than-memory.json too

A limit of memory for cached files takes a control group, which a sandbox seldom lets a process make. So the script holds the limit
itself: it follows which pieces of the files were touched, and has the system forget those that were used longest ago
(`posix_fadvise`, DONTNEED) as soon as more than the limit are in memory; the clock stands meanwhile. In a container that is
limited from outside (`docker run --memory 256m`) pass `--limit 0`.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from keeping import keep

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Plan, compact, prune
from bookkd.core.fields import LOGITS
from bookkd.core.rng import generator
from bookkd.learning.order import FINEST_READ
from bookkd.pipelines.bench import Goal, Ratio, machine
from bookkd.views import BlockWindow
from bookkd.views.order import BlockOrder, RowOrder

CLASSES = 512
ROW = 2 * CLASSES
BATCH = 256
MIB = 2**20
PIECE = 128 * 1024
"""Bytes that the system reads around a page that is missing: 32 pages, the default of Linux."""


class Limit:
    """Holds the pages of a book in memory below a number of bytes, used longest ago first; its own time is not counted.

    Args:
        book: What is read.
        limit: Bytes; 0 where the process is limited from outside.
    """

    def __init__(self, book: Book, limit: int) -> None:
        self.book, self.pieces, self.spent = book, limit // PIECE, 0.0
        self.files = sorted(Path(book.path).glob("view-*/*.safetensors"))
        self._touched: OrderedDict[int, None] = OrderedDict()
        self._rows = PIECE // ROW
        self._edges = np.append(0, np.cumsum([path.stat().st_size // ROW for path in self.files]))

    def touched(self, rows: np.ndarray) -> None:
        """Count what was read, and forget what is too much: a sixteenth of the limit at a time."""
        if not self.pieces:
            return
        started = time.perf_counter()
        for piece in np.unique(rows // self._rows).tolist():
            self._touched[piece] = None
            self._touched.move_to_end(piece)
        over = len(self._touched) - self.pieces
        if over > 0:
            self.book.close()  # a page that is mapped is not forgotten
            self._forget([self._touched.popitem(last=False)[0] for _ in range(over + self.pieces // 16)])
        self.spent += time.perf_counter() - started

    def _forget(self, pieces: list[int]) -> None:
        rows = np.array(sorted(pieces)) * self._rows
        files = np.searchsorted(self._edges, rows, side="right") - 1
        for number in np.unique(files).tolist():
            with self.files[number].open("rb") as file:
                for row in (rows[files == number] - self._edges[number]).tolist():
                    # The header shifts rows by less than a page or two: a piece more on either side does not matter.
                    os.posix_fadvise(file.fileno(), row * ROW, PIECE, os.POSIX_FADV_DONTNEED)

    def nothing(self) -> None:
        """Forget every file of the book."""
        self.book.close()
        self._touched.clear()
        for path in self.files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        left = sum(resident(path) for path in self.files)
        if left > self.pieces * PIECE // 20 + MIB:
            raise SystemExit(
                f"Expected the system to forget {self.book.path}, got {left / MIB:.0f} MiB that stay in memory. "
                "Pass --folder on a disk."
            )


def resident(path: Path) -> int:
    """Return the bytes of a file that are in memory."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        place = (ctypes.c_char * size).from_buffer(mapped)
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), pages)
        del place
    return int((np.frombuffer(pages, dtype=np.uint8) & 1).sum()) * mmap.PAGESIZE


def write_book(path: Path, n_samples: int) -> Book:
    """Return a book of random logits, its view in as few files as `compact` makes."""
    plan = Plan(
        n_samples=n_samples,
        n_views=1,
        fields={LOGITS: FieldPlan((CLASSES,), Dense())},
        class_names=tuple(map(str, range(CLASSES))),
        temperatures=(),
        unit_rows=2**16,
    )
    block = generator(0, "larger than memory").standard_normal((2**16, CLASSES), dtype=np.float32).astype(np.float16)
    with BookWriter(path, plan) as writer:
        for unit in writer.pending():
            block[:, 0] = unit.start // 2**16
            writer.write(unit, {LOGITS: block[: unit.stop - unit.start]})
        writer.finish()
    compact(path)
    prune(path)
    return Book(path)


def read_disk(limit: Limit) -> float:
    """Return bytes a second of the files from end to end, a MiB at a time, from the disk; the system is told that it is in order."""
    limit.nothing()
    buffer, count, started = memoryview(bytearray(MIB)), 0, time.perf_counter()
    for path in limit.files:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while got := file.readinto(buffer):
                count += got
    return count / (time.perf_counter() - started)


def read_rows(limit: Limit, order: RowOrder | BlockOrder, batches: int, *, ahead: bool) -> float:
    """Return bytes of records a second, in batches of the order."""
    limit.nothing()
    book, rows = limit.book, order.window_rows if isinstance(order, BlockOrder) else 0
    limit.spent, started = 0.0, time.perf_counter()
    for batch in range(batches):
        first, stop = batch * BATCH, (batch + 1) * BATCH
        for block in order.coming(first, stop) if ahead else ():
            book.prefetch(block * rows, min((block + 1) * rows, book.n_samples), 0)
        samples = order.at(np.arange(first, stop))
        book.gather(samples, 0, [LOGITS])
        limit.touched(samples)
    return batches * BATCH * ROW / (time.perf_counter() - started - limit.spent)


def measure(folder: Path, size: int, bound: int, rounds: int) -> list[Goal]:
    """Return the goals of reading.

    Args:
        folder: Where the book is written.
        size: Its bytes.
        bound: Bytes of memory; 0 where the process is limited from outside.
        rounds: Interleaved rounds.
    """
    samples = size // ROW // BATCH * BATCH
    checked = write_book(folder / "book", samples)
    rows = np.arange(samples)
    for start in range(0, samples, 4096):
        checked.gather(rows[start : start + 4096 : 256], 0)  # every block is hashed once
    whole, some = samples // BATCH, min(samples // BATCH, 120)
    window = BlockWindow(max(1, (bound or size // 8) // 4 // (4096 * ROW)))
    finest = FINEST_READ // ROW
    fine = BlockWindow(window.blocks * 4096 // finest, finest)

    def blocks(book: Book, epoch: int, how: BlockWindow = window, *, ahead: bool = True) -> float:
        return read_rows(Limit(book, bound), BlockOrder(rows, how, 0, epoch), whole, ahead=ahead)

    ways: dict[str, Callable[[int], float]] = {
        "disk": lambda _: read_disk(Limit(checked, bound)),
        "first epoch": lambda number: blocks(Book(folder / "book"), number),
        "later epochs": lambda number: blocks(checked, number),
        "finest blocks, first epoch": lambda number: blocks(Book(folder / "book"), number, fine),
        "finest blocks, later epochs": lambda number: blocks(checked, number, fine),
        "without reading ahead": lambda number: blocks(checked, number, ahead=False),
        "uniform rows": lambda number: read_rows(
            Limit(checked, bound), RowOrder(rows, 0, number, shuffle=True), some, ahead=False
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        turn = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in turn:
            checked.close()  # what one book has mapped, no other one can have forgotten
            found[name].append(ways[name](number))
            print(f"round {number + 1}, {name}: {found[name][-1] / MIB:.0f} MiB/s", file=sys.stderr)
    return goals(found, f"{size / 2**30:.3g} GiB, windows of {window.blocks} blocks", bound)


def goals(found: dict[str, list[float]], words: str, bound: int) -> list[Goal]:
    """Return the ratios of what was found to the disk."""
    limited = f"a limit of {bound / MIB:.0f} MiB held by forgetting pages" if bound else "limited from outside"
    kept = []
    for name, over, goal in (
        ("first epoch", "disk", None),
        ("later epochs", "disk", 0.7),
        ("finest blocks, first epoch", "disk", None),
        ("finest blocks, later epochs", "disk", None),
        ("without reading ahead", "disk", None),
        ("uniform rows", "disk", None),
        ("later epochs", "uniform rows", None),
        ("later epochs", "without reading ahead", None),
    ):
        ratio = Ratio(tuple(a / b for a, b in zip(found[name], found[over], strict=True)), (0.0, 0.0))
        low, high = ratio.interval()
        speeds = " over ".join(f"{statistics.median(found[each]) / MIB:.0f} MiB/s" for each in (name, over))
        how = "uniform rows" if name == "uniform rows" else f"block window, {name}"
        against = {"disk": "reading the files in order"}.get(over, f"block window, {over}" if "ahead" in over else over)
        note = f"{speeds}; {words}; {limited}"
        kept.append(Goal(f"speed of {how} / {against}", ratio.median, goal, ">=", low, high, len(found[name]), note))
    return kept


@contextmanager
def place(folder: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bookkd-large-", dir=folder) as made:
        yield Path(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the book is written: a real disk, not a tmpfs")
    parser.add_argument("--size", type=int, default=2048, help="MiB of the book")
    parser.add_argument(
        "--limit", type=int, default=256, help="MiB of memory; 0 where the process is limited from outside"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    options = parser.parse_args()
    before = machine()
    with place(options.folder) as folder:
        found = measure(folder, options.size * MIB, options.limit * MIB, options.rounds)
    for goal in found:
        print(f"{goal.name}: {goal.value:.3g} ({goal.low:.3g} to {goal.high:.3g}); {goal.note}")
    if options.keep:
        keep("larger-than-memory", found, before)


if __name__ == "__main__":
    main()
