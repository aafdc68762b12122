"""Whether students suffer where samples are shuffled by windows of blocks: digits, against all rows in one permutation.

python benchmarks/shuffle_accuracy.py [--seeds 6] [--keep]     # writes benchmarks/performance/shuffle.json

A book larger than memory is of millions of samples; here blocks are as small in proportion: 16 samples, six blocks a window, so that a
window sees a fourteenth of the data. Once in the order in which the data set comes, and once sorted by class, the worst case: there
a block is of one class, and a window of six sees a few. There the same memory is divided more finely too, as `learn` does by itself for
sorted samples, until a window has as many blocks as a batch has samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import keep

from bookkd.book import Book
from bookkd.evaluation import difference_of
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.making import make
from bookkd.methods import Supervised, VanillaKD
from bookkd.pipelines.bench import Goal, machine
from bookkd.tasks import Classification
from bookkd.views import BlockWindow, Views
from bookkd.zoo import ImageDataset, SubsetDataset, create_network, create_transform, open_dataset

BLOCK = 16
NARROW, WIDE = BlockWindow(6, BLOCK), BlockWindow(24, BLOCK)
FINE, FINEST = BlockWindow(24, BLOCK // 4), BlockWindow(96, 1)
"""Of as many samples a window as `NARROW`."""


def to_float(view: torch.Tensor) -> torch.Tensor:
    return view.float() / 255 - 0.3


def views(n_views: int) -> Views:
    return Views(create_transform("digits", {}), n_views, 0, name="digits")


def network(name: str, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_network(name, n_classes=10)


def training(**changes: Any) -> Training:
    return Training(**{"batch_size": 64, "lr": 0.1, "accelerator": "cpu", "cache_views": True, **changes})


def make_book(folder: Path, data: ImageDataset, epochs: int) -> Book:
    """Return the book of a teacher that was trained on `data`, with blocks of 16 samples."""
    task = Classification(data.class_names)
    taught = network("digits-large", 0)
    learn(taught, data, views(8), task=task, method=Supervised(), preprocess=to_float, training=training(epochs=epochs))
    teacher = Teacher(taught, to_float, name="teacher")
    return make(folder, teacher, data, views(8), task=task, batch_size=BLOCK, unit_rows=BLOCK)


def accuracy(
    book: Book, data: ImageDataset, test: ImageDataset, *, seed: int, epochs: int, window: BlockWindow | None
) -> float:
    """Return the accuracy of a student that learned by these windows; None for uniform rows."""
    how: dict[str, Any] = {"shuffle": "rows"}
    if window is not None:
        how = {"shuffle": "blocks", "shuffle_window": window.blocks, "shuffle_block_rows": window.rows}
    learned = learn(
        network("digits-small", seed),
        data,
        views(8),
        task=Classification(data.class_names),
        knowledge=StoredKnowledge(book),
        method=VanillaKD(),
        preprocess=to_float,
        training=training(epochs=epochs, seed=seed, **how),
        validation=test,
    )
    return learned.metrics["accuracy"]


def arms() -> list[tuple[str, ImageDataset, tuple[BlockWindow, ...]]]:
    """Return the orders of the training split, each with the windows that are tried."""
    data = open_dataset("digits")
    by_class = np.argsort(np.asarray(data.labels), kind="stable")
    return [
        ("as the data set comes", data, (NARROW,)),
        ("sorted by class", SubsetDataset(data, by_class), (NARROW, WIDE, FINE, FINEST)),
    ]


def measure(folder: Path, seeds: int, epochs: int) -> list[Goal]:
    """Return the differences in accuracy, paired over seeds."""
    test, found = open_dataset("digits", split="test"), []
    for number, (words, data, windows) in enumerate(arms()):
        book = make_book(folder / str(number), data, epochs=16)
        scores: dict[BlockWindow | None, dict[int, float]] = {window: {} for window in (None, *windows)}
        for seed in range(seeds):
            for window, by_seed in scores.items():
                by_seed[seed] = accuracy(book, data, test, seed=seed, epochs=epochs, window=window)
            print(words, seed, *(f"{by_seed[seed]:.4f}" for by_seed in scores.values()), file=sys.stderr)
        for window in windows:
            difference = difference_of(scores[window], scores[None], "uniform rows")
            uniform, here = (100 * float(np.mean(list(scores[each].values()))) for each in (None, window))
            low, high = (None if end is None else 100 * end for end in (difference.low, difference.high))
            size = "" if window.rows == BLOCK else f" of {window.rows}" if window.rows > 1 else " of one sample"
            width = f"{window.blocks} of {-(-len(data) // window.rows)} blocks{size}"
            name = f"points of accuracy by windows of {width}, less those by uniform rows (digits {words})"
            note = f"{here:.2f} % and {uniform:.2f} %, {epochs} epochs"
            found.append(Goal(name, 100 * difference.mean, None, ">=", low, high, seeds, note))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    options = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.seeds, options.epochs)
    for goal in found:
        print(f"{goal.name}: {goal.value:+.2f} ({goal.low:+.2f} to {goal.high:+.2f}); {goal.note}")
    if options.keep:
        keep("shuffle", found, before)


if __name__ == "__main__":
    main()
