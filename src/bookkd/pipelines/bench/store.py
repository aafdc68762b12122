"""`bookkd bench store`: how fast records come out of a book, against the same rows in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Plan, verify
from bookkd.core.fields import LOGITS
from bookkd.core.rng import generator
from bookkd.pipelines.bench.measure import Goal, paired

__all__ = ["bench_store"]

BATCH = 256


def bench_store(*, pairs: int, quick: bool) -> list[Goal]:
    """Measure gather and verify on synthetic books.

    Args:
        pairs: Interleaved pairs of each ratio.
        quick: Smaller books.

    Returns:
        The goals of reading.
    """
    rows = 20_000 if quick else 200_000
    with tempfile.TemporaryDirectory(prefix="bookkd-bench-") as folder:
        wide, wide_array = _book(Path(folder) / "wide", rows, 512, 1)
        narrow, narrow_array = _book(Path(folder) / "narrow", rows, 10, 1)
        spread, spread_array = _book(Path(folder) / "spread", rows // 8, 512, 8)
        return [
            _gather("1 KiB rows, one file, one view", wide, wide_array, pairs, 0.4),
            _gather("20-byte rows, one file, one view", narrow, narrow_array, pairs, None),
            _gather("1 KiB rows, 8 views in a batch", spread, spread_array, pairs, None),
            _verifying(wide, pairs),
        ]


def _book(path: Path, n_samples: int, n_classes: int, n_views: int) -> tuple[Book, np.ndarray]:
    """Return a book of random logits in one file a view, and the same rows in memory, [views * samples, classes]."""
    plan = Plan(
        n_samples=n_samples,
        n_views=n_views,
        fields={LOGITS: FieldPlan((n_classes,), Dense())},
        class_names=tuple(map(str, range(n_classes))),
        temperatures=(),
        unit_rows=n_samples,
    )
    draws = generator(0, "bench store")
    array = draws.standard_normal((n_views * n_samples, n_classes), dtype=np.float32).astype(np.float16)
    with BookWriter(path, plan) as writer:
        for unit in writer.pending():
            first = unit.view * n_samples
            writer.write(unit, {LOGITS: array[first + unit.start : first + unit.stop]})
        return writer.finish(), array


def _gather(words: str, book: Book, array: np.ndarray, pairs: int, goal: float | None) -> Goal:
    """Measure random batches; the ratio is the speed of the book over that of memory."""
    draws = generator(1, "bench store")
    batches = [
        (draws.integers(book.n_samples, size=BATCH), draws.integers(book.n_views, size=BATCH)) for _ in range(64)
    ]
    places = [views * book.n_samples + samples for samples, views in batches]

    def from_book() -> None:
        for samples, views in batches:
            book.gather(samples, views, [LOGITS])

    def from_memory() -> None:
        for place in places:
            array[place]

    book.gather(np.arange(book.n_samples), np.zeros(book.n_samples, dtype=np.int64), [LOGITS])
    sense: Literal[">="] = ">="
    return Goal.of(
        f"gather speed / in-memory indexing ({words}, batch {BATCH})",
        paired(from_memory, from_book, pairs),
        goal,
        sense,
    )


def _verifying(book: Book, pairs: int) -> Goal:
    files = [path for path in Path(book.path).rglob("*") if path.is_file()]

    def read_files() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(2**20):
                    pass

    goal = paired(read_files, lambda: verify(book.path), pairs)
    return Goal.of("speed of verify / reading the files", goal, 0.7, ">=")
