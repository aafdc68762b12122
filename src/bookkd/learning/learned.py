"""What learning gives, and how it is kept in a folder and found there again."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from bookkd.core.jsonio import canonical
from bookkd.knowledge import NOTES
from bookkd.learning.cohort import Cohort
from bookkd.learning.folder import RunFolder
from bookkd.learning.learner import Learner
from bookkd.learning.order import ReadingOrder
from bookkd.learning.run import Run
from bookkd.shaping import REUSED, ReusedClassifier
from bookkd.zoo import load_weights, save_weights

__all__ = ["Learned", "LearningWarning", "finished", "keep", "learned_of"]


class LearningWarning(UserWarning):
    """What a run is warned of as it begins; `Learned.notes` says it too, for whoever shows these."""


@dataclass(frozen=True, eq=False)
class Learned:
    """What learning gives.

    Args:
        student: The trained network, in evaluation mode, on the CPU: of the best epoch with `Training.patience`, else of
            the last. Of a cohort it is the first peer.
        history: One flat record for each epoch.
        epoch: The epoch of the student, from 1.
        metrics: The student's validation, point values by metric; empty without a validation set.
        seconds_per_epoch: Median over epochs, validation not counted.
        teacher_forwards: Samples passed through a teacher while learning; 0 from a book.
        folder: Where everything was saved; None where nothing was.
        peers: The other students of a cohort, in order; empty for one student.
        order: How the samples were shuffled, and why.
        shaping: What is remembered of what was done to the student while it learnt, such as tables of gates; JSON values.
        notes: What is to be read beside the figures.
    """

    student: nn.Module
    history: list[dict[str, Any]] = field(repr=False)
    epoch: int
    metrics: dict[str, float]
    seconds_per_epoch: float
    teacher_forwards: int
    folder: Path | None = None
    peers: tuple[nn.Module, ...] = ()
    order: ReadingOrder | None = None
    shaping: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()


def keep(learner: Learner, folder: RunFolder, run: Run, notes: dict[str, Any]) -> Learned:
    """Write weights and result, and what is to be remembered of the student's shaping."""
    learned = learned_of(learner, folder.history(), run.chosen_epoch, run.teacher_forwards, folder.path)
    for name, network in _weights(learner).items():
        more = {REUSED: network.configuration} if isinstance(network, ReusedClassifier) else {}
        text = canonical({**notes, **more, "epoch": learned.epoch}).decode()
        save_weights(network, folder.path / name, {NOTES: text})
    if learned.shaping:
        folder.note_shaping(learned.shaping)
    counts = {"teacher_forwards": run.teacher_forwards, "epochs": len(learned.history), "epoch": learned.epoch}
    folder.finish({**counts, **learned.metrics})
    return learned


def finished(learner: Learner, folder: RunFolder, result: dict[str, Any]) -> Learned:
    """Return what a finished run left in its folder, with the weights in the learner."""
    learner.finish()
    for name, network in _weights(learner).items():
        load_weights(network, folder.path / name)
    learned = _learned(learner, folder.history(), result["epoch"], result["teacher_forwards"], folder.path)
    return replace(learned, shaping=folder.shaping())


def _weights(learner: Learner) -> dict[str, nn.Module]:
    """Return file name -> network: the student, and the other peers of a cohort."""
    networks = list(learner.student.peers) if isinstance(learner.student, Cohort) else [learner.student]
    return {f"student{f'-{place}' if place else ''}.safetensors": network for place, network in enumerate(networks)}


def learned_of(
    learner: Learner, history: list[dict[str, Any]], epoch: int, forwards: int, folder: Path | None
) -> Learned:
    """Return what the networks of a learner came to, as they are kept, with the metrics of the epoch that was chosen."""
    shaping = learner.finish()
    return replace(_learned(learner, history, epoch, forwards, folder), shaping=shaping)


def _learned(
    learner: Learner, history: list[dict[str, Any]], epoch: int, forwards: int, folder: Path | None
) -> Learned:
    seconds = statistics.median([record["seconds"] for record in history]) if history else 0.0
    chosen = next((record for record in history if record["epoch"] == epoch), {})
    metrics = {key.removeprefix("val/"): value for key, value in chosen.items() if key.startswith("val/")}
    student, *peers = (network.eval() for network in _weights(learner).values())
    return Learned(student, history, epoch, metrics, seconds, forwards, folder, tuple(peers))
