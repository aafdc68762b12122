"""`bookkd bench store`: how fast records come out of a book, against the same rows in memory."""

from __future__ import annotations

import statistics
import tempfile
import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Plan, RaggedArray, Sampled, TopK, verify
from bookkd.core.fields import LOGITS, SAMPLE, VIEW
from bookkd.core.memory import forget_peak_memory, peak_memory
from bookkd.core.rng import generator
from bookkd.knowledge import StoredKnowledge
from bookkd.losses import soft_cross_entropy
from bookkd.pipelines.bench.large import write_large_book
from bookkd.pipelines.bench.measure import Goal, Ratio, paired, timed

__all__ = ["bench_store"]

BATCH = 256
LANGUAGE = 2**17
"""Classes of a language model: ids of 17 bits."""


def bench_store(*, pairs: int, quick: bool) -> list[Goal]:
    """Measure gather, decoding of draws, opening and verify on synthetic books.

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
            _ragged_gather("about 100 bytes a row", _drawn(Path(folder) / "drawn", rows // 10, 2000, 50), pairs, None),
            _ragged_gather("about 2 KiB a row", _drawn(Path(folder) / "long", rows // 40, 2000, 1000), pairs, 0.8),
            _ragged_gather(
                "positions of 32 to 96 tokens, 12 of 512 likeliest each",
                _positions(Path(folder) / "positions", rows // 100),
                pairs,
                None,
            ),
            _sampled_decode(_drawn(Path(folder) / "language", 512, LANGUAGE, 50), pairs),
            _verifying(wide, pairs),
            *_opening(Path(folder), 10 if quick else 100, pairs),
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


def _drawn(path: Path, n_samples: int, n_classes: int, count: int) -> Book:
    """Return a book of draws in one file, from logits as spread as those of a language model."""
    fields = {LOGITS: FieldPlan((n_classes,), Sampled(count))}
    plan = Plan(n_samples=n_samples, n_views=1, fields=fields, temperatures=(), unit_rows=n_samples)
    draws, chunk = generator(2, "bench store"), max(1, 2**22 // n_classes)
    with BookWriter(path, plan) as writer:
        for start in range(0, n_samples, chunk):
            rows = min(chunk, n_samples - start)
            writer.write_rows(0, start, {LOGITS: 2 * draws.standard_normal((rows, n_classes), dtype=np.float32)})
        return writer.finish()


def _positions(path: Path, n_samples: int) -> Book:
    """Return a book of sequences of 32 to 96 positions in one file, of each position its likeliest classes."""
    n_classes, longest, chunk = 512, 96, 64
    fields = {LOGITS: FieldPlan((n_classes,), TopK(12, (1.0,)), positions=longest)}
    plan = Plan(n_samples=n_samples, n_views=1, fields=fields, temperatures=(), unit_rows=n_samples)
    draws = generator(5, "bench store")
    lengths = draws.integers(32, longest + 1, size=n_samples)
    with BookWriter(path, plan) as writer:
        for start in range(0, n_samples, chunk):
            counts = lengths[start : start + chunk]
            said = 2 * draws.standard_normal((int(counts.sum()), n_classes), dtype=np.float32)
            writer.write_rows(0, start, {LOGITS: RaggedArray(said, np.concatenate([[0], np.cumsum(counts)]))})
        return writer.finish()


def _ragged_gather(words: str, book: Book, pairs: int, goal: float | None) -> Goal:
    """Measure random batches of rows that differ in length, against the same rows and offsets of every part in memory."""
    draws = generator(3, "bench store")
    batches = [draws.integers(book.n_samples, size=BATCH) for _ in range(64)]
    parts = book.gather(np.arange(book.n_samples), 0, [LOGITS])
    whole: list[RaggedArray] = [each for each in parts.values() if isinstance(each, RaggedArray)]

    def from_book() -> None:
        for samples in batches:
            book.gather(samples, 0, [LOGITS])

    def from_memory() -> None:
        for samples in batches:
            for each in whole:
                each.take(samples)

    name = f"ragged gather speed / the same in memory ({words}, batch {BATCH})"
    return Goal.of(name, paired(from_memory, from_book, pairs), goal, ">=")


def _sampled_decode(book: Book, pairs: int) -> Goal:
    """Measure reading draws of a language model's size as targets, against the least step that has as many classes.

    That step is a head of 64 features, its loss, both gradients and an update; a real student does more.
    """
    knowledge, draws = StoredKnowledge(book), generator(4, "bench store")
    batch = {name: torch.zeros(BATCH, dtype=torch.int64) for name in (SAMPLE, VIEW)}
    batch[SAMPLE] = torch.from_numpy(draws.integers(book.n_samples, size=BATCH))
    features = torch.from_numpy(draws.standard_normal((BATCH, 64), dtype=np.float32))
    head = torch.zeros(64, LANGUAGE, requires_grad=True)
    target = knowledge.targets(batch)[LOGITS]

    def step() -> None:
        loss = soft_cross_entropy(features @ head, target, temperature=1.0, t_squared=True).mean()
        (slope,) = torch.autograd.grad(loss, head)
        with torch.no_grad():
            head.sub_(slope, alpha=0.1)

    name = f"sampled decode / step (50 draws of {LANGUAGE:,} classes, batch {BATCH}, head of 64)"
    return Goal.of(name, paired(lambda: knowledge.targets(batch), step, pairs), 0.05)


def _verifying(book: Book, pairs: int) -> Goal:
    files = [path for path in Path(book.path).rglob("*") if path.is_file()]

    def read_files() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(2**20):
                    pass

    goal = paired(read_files, lambda: verify(book.path), pairs)
    return Goal.of("speed of verify / reading the files", goal, 0.7, ">=")


def _opening(folder: Path, each: int, pairs: int) -> list[Goal]:
    """Measure opening a book of `each` views of as many shards, and its memory against a book of 25 times fewer records."""
    large, small = folder / "large", folder / "small"
    records = write_large_book(large, n_views=each, shards=each, shard_rows=25 * 4096)
    fewer = write_large_book(small, n_views=each, shards=each, shard_rows=4096)
    Book(large)
    seconds = [timed(lambda: Book(large)) for _ in range(pairs)]
    low, high = Ratio(tuple(1e3 * each for each in seconds), (0.0, 0.0)).interval()
    began = forget_peak_memory()
    before = peak_memory()
    book = Book(large)
    grown = (
        f"; peak memory of the process grew by {((peak_memory() or 0) - (before or 0)) / 2**20:.1f} MiB"
        if began
        else ""
    )
    name = f"milliseconds to open {book.n_samples * book.n_views:.3g} records in {each * each:,} shards"
    opened = Goal(name, 1e3 * statistics.median(seconds), 100.0, "<=", low, high, pairs, f"{_manifests(large)}{grown}")
    ratio = _memory_of_opening(large) / _memory_of_opening(small)
    name = f"memory of opening {records:.3g} records / {fewer:.3g} in as many shards"
    return [opened, Goal(name, ratio, 1.1, note=f"{_memory_of_opening(large) / 2**20:.1f} MiB kept")]


def _manifests(path: Path) -> str:
    """Return how many bytes of manifests opening reads."""
    read = [path / "plan.json", *path.glob("edition-*.json"), *path.glob("view-*/view-*.json")]
    return f"{sum(file.stat().st_size for file in read) / 2**20:.1f} MiB of manifests"


def _memory_of_opening(path: Path) -> int:
    """Return the bytes that an open book keeps."""
    tracemalloc.start()
    try:
        book = Book(path)
        kept, _ = tracemalloc.get_traced_memory()
        del book
    finally:
        tracemalloc.stop()
    return kept
