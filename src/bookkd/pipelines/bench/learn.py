"""`bookkd bench learn`: what a book costs while learning and while making, and whether it says what the teacher says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from bookkd.book import Book
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Learner, Step, Training, learn
from bookkd.making import make
from bookkd.methods import Supervised, VanillaKD
from bookkd.pipelines.bench.arm import BATCH, Arm, random_images
from bookkd.pipelines.bench.measure import Goal, paired
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Pick, Replay, Views, collate
from bookkd.zoo import ArrayDataset, open_dataset

__all__ = ["bench_learn", "untrained_teacher"]

_CLOCK = Clock()


def bench_learn(*, pairs: int, quick: bool) -> list[Goal]:
    """Measure learning and making with ResNet-8 and ResNet-20/56 on random 32x32 images.

    Args:
        pairs: Interleaved pairs of each ratio.
        quick: Smaller sets.

    Returns:
        The goals of learning and making; speed does not depend on what the images show.
    """
    n_samples = 512 if quick else 2560
    dataset = random_images(n_samples)
    task = Classification(dataset.class_names)
    views = ViewOptions("crop-flip", 4, args={"size": 32, "padding": 4}).build()
    with tempfile.TemporaryDirectory(prefix="bookkd-bench-") as folder:
        teacher = untrained_teacher("resnet20", task, dataset.images)
        book = make(Path(folder) / "book", teacher, dataset, views, task=task, batch_size=BATCH)
        return [
            *_epochs(book, teacher, dataset, views, task, pairs),
            _read_share(book, dataset, views, task, pairs),
            _same_loss(Path(folder)),
            _making(Path(folder), dataset, replace(views, n_views=2), task, pairs, quick),
        ]


def untrained_teacher(name: str, task: Classification, images: torch.Tensor) -> Teacher:
    """Return a network with initial weights whose batch statistics are those of the images, so that it says finite things."""
    network, preprocess = NetworkOptions(name).build(task.n_classes, role="teacher", seed=1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches seen
    with torch.no_grad():
        network.train()(preprocess(images[:BATCH]))
    return Teacher(network, preprocess, name=name)


def _epochs(
    book: Book, teacher: Teacher, dataset: ArrayDataset, views: Views, task: Classification, pairs: int
) -> list[Goal]:
    goals = []
    for words, make_replay, goal in (
        (
            "views in memory",
            lambda share: CachedViews(Replay(dataset, views, probe_share=share), max_bytes=2**30),
            1.05,
        ),
        ("views replayed, 2 % of probes checked", lambda share: Replay(dataset, views, probe_share=share), 1.05),
    ):
        labels = Arm(make_replay(0.0), Supervised(), None, task)
        stored = Arm(make_replay(Training().probe_share), VanillaKD(), StoredKnowledge(book), task)
        online = Arm(make_replay(0.0), VanillaKD(), LiveKnowledge(teacher, task), task)
        goals.append(
            Goal.of(f"epoch from the book / labels only ({words})", paired(stored.epoch, labels.epoch, pairs), goal)
        )
        goals.append(
            Goal.of(
                f"epoch online with ResNet-20 / labels only ({words})",
                paired(online.epoch, labels.epoch, min(pairs, 5)),
                None,
            )
        )
    return goals


def _read_share(book: Book, dataset: ArrayDataset, views: Views, task: Classification, pairs: int) -> Goal:
    share = Training().probe_share
    arm = Arm(CachedViews(Replay(dataset, views, probe_share=share), max_bytes=2**30), Supervised(), None, task)
    batches = [batch for group in arm.groups for batch in group][:8]
    knowledge = StoredKnowledge(book)

    def steps() -> None:
        for batch in batches:
            arm.run.optimizer_step([batch])
            arm.groups.sampler.set_epoch(arm.run.steps)

    def reads() -> None:
        for batch in batches:
            knowledge.targets(batch)

    return Goal.of("read of a batch of 128, 2 % of probes checked / ResNet-8 step", paired(reads, steps, pairs), 0.01)


def _same_loss(folder: Path) -> Goal:
    """Compare a batch's mean loss between stored and live knowledge of a trained teacher of digits."""
    dataset = open_dataset("digits", limit=640)
    task, views = Classification(dataset.class_names), ViewOptions("digits", 4).build()
    network, preprocess = NetworkOptions("digits-large").build(task.n_classes, role="teacher")
    short = Training(epochs=6, batch_size=64, accelerator="cpu", cache_views=True)
    learn(network, dataset, views, task=task, preprocess=preprocess, training=short)
    teacher = Teacher(network, preprocess, name="digits-large")
    book = make(folder / "digits", teacher, dataset, views, task=task, batch_size=BATCH)
    network, preprocess = NetworkOptions("digits-small").build(task.n_classes, role="student", seed=2)
    learner, objective = Learner(network, task, preprocess=preprocess).eval(), VanillaKD(ce_weight=0.0).objective(task)
    steps = [Step(objective, task, knowledge) for knowledge in (StoredKnowledge(book), LiveKnowledge(teacher, task))]
    replay, differences = Replay(dataset, views, probe_share=0.0), []
    with torch.no_grad():
        for view in range(views.n_views):
            for start in range(0, len(dataset), BATCH):
                batch = collate(replay.__getitems__([Pick(sample, view) for sample in range(start, start + BATCH)]))
                stored, live = (float(step.loss(learner, batch, _CLOCK).loss) for step in steps)
                differences.append(abs(stored - live) / abs(live))
    words = "soft loss of a batch from the book and live, trained teacher: largest relative difference"
    return Goal(words, max(differences), 1e-3, pairs=len(differences))


def _making(folder: Path, dataset: ArrayDataset, views: Views, task: Classification, pairs: int, quick: bool) -> Goal:
    teacher = untrained_teacher("resnet20" if quick else "resnet56", task, dataset.images)
    replay = Replay(dataset, views, probe_share=0.0)
    picks = [
        [Pick(sample, view) for sample in range(start, min(start + BATCH, len(dataset)))]
        for view in range(views.n_views)
        for start in range(0, len(dataset), BATCH)
    ]
    made = iter(range(10**6))

    def bare() -> None:
        loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            replay, batch_sampler=_Fixed(picks), collate_fn=collate
        )
        with torch.inference_mode():
            for batch in loader:
                task.fields(teacher(*task.inputs(batch)), batch)

    def with_book() -> None:
        make(folder / f"made-{next(made)}", teacher, dataset, views, task=task, batch_size=BATCH)

    return Goal.of(
        f"making a book of {views.n_views * len(dataset):,} records / bare pass of {teacher.name} over the same views",
        paired(with_book, bare, pairs),
        1.03,
    )


class _Fixed:
    """The same batches every time."""

    def __init__(self, batches: list[list[Pick]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Pick]]:
        return iter(self.batches)
