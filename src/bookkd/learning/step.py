"""The one place where the student's fields, the teacher's and the objective meet; every training door calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bookkd.core.features import is_feature
from bookkd.core.fields import (
    COUNTS,
    LABEL_LENGTH,
    LENGTH,
    PROBE_HASH,
    PROBE_PROJECTIONS,
    PROBE_TAKEN,
    SAMPLE,
    SAMPLE_WEIGHT,
    TEACHER_LENGTH,
    VIEW,
    WEIGHT,
)
from bookkd.core.protocols import Knowledge
from bookkd.core.schedules import Clock
from bookkd.learning.learner import Learner
from bookkd.objectives import Objective
from bookkd.tasks import Task

__all__ = ["Batch", "Losses", "Step", "asked_of_book", "to_device"]

Batch = Mapping[str, Any]

_STAYS_ON_CPU = frozenset({SAMPLE, VIEW, PROBE_HASH, PROBE_PROJECTIONS, PROBE_TAKEN})
# Addresses and probes are used by the book's reader, in numpy: sending them to a GPU and back would stall every step.
_LENGTHS = (LENGTH, LABEL_LENGTH, TEACHER_LENGTH)
_HERE = "lengths/here"


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Move a batch to `device`, all but the addresses and probes, which the book's reader wants on the CPU."""
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) and key not in _STAYS_ON_CPU else value
        for key, value in batch.items()
    }
    if batch.get(LENGTH) is not None and device.type != "cpu" and batch[LENGTH].device.type == "cpu":
        # The reader of a book compares them with its own, without waiting for the device.
        moved[_HERE] = {key: batch[key] for key in _LENGTHS if batch.get(key) is not None}
    return moved


def asked_of_book(task: Task, batch: Batch) -> Batch:
    """Return a batch with the positions that a book should have of each sequence, where comparing them costs no waiting.

    They are the teacher's, which may keep another share of the frames, or have other tokens, than the student.
    """
    here: Batch = batch.get(_HERE, batch)
    lengths = here.get(LENGTH)
    if lengths is None or lengths.device.type != "cpu":
        return batch
    if here.get(TEACHER_LENGTH) is not None:
        return {**batch, COUNTS: here[TEACHER_LENGTH] - 1}  # of the text in the teacher's tokens
    counts = task.of_teacher().counts(here)
    return batch if counts is None else {**batch, COUNTS: counts}


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


@dataclass(frozen=True, eq=False)
class Losses:
    """What one step gives.

    Args:
        loss: Scalar with gradient; micro-batches of a step add up to the loss of the whole.
        terms: Term name -> its mean over the batch, unweighted, without gradient; of those that weigh something.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Step:
    """Objective, task and knowledge, bound together.

    Args:
        objective: What the student minimises.
        task: Owns the shapes.
        knowledge: Who answers for the teacher; None where the objective asks nothing of it.
    """

    def __init__(self, objective: Objective, task: Task, knowledge: Knowledge | None = None) -> None:
        self.objective = objective
        self.task = task
        self.knowledge = knowledge
        self.fields = self._read(objective)
        self._checked: Learner | None = None

    def totals(self, group: Sequence[Batch]) -> Tensor:
        """Return the weight that each term's mean is divided by: over micro-batches and over ranks, [n_terms]."""
        self.objective.refuse_split(len(group) * (dist.get_world_size() if _distributed() else 1))
        seen = [self._seen(batch) for batch in group]
        total = torch.stack([self.objective.totals(batch, self.task.divisors(batch)) for batch in seen]).sum(0)
        if _distributed():
            dist.all_reduce(total)
        return total

    def _seen(self, batch: Batch) -> Batch:
        """Return the batch as losses see it, beside the weight of each position that of each sample."""
        return {**self.task.batch(batch), SAMPLE_WEIGHT: batch[WEIGHT]}

    def _targets(self, said: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
        """Return what the teacher says as losses see it; what was taken inside of it is no matter of the task's."""
        inside = {name: target for name, target in said.items() if is_feature(name)}
        others = {name: target for name, target in said.items() if name not in inside}
        return {**self.task.targets(others, batch), **inside}

    def _read(self, objective: Objective) -> tuple[str, ...]:
        """Return what an objective reads of the teacher, as knowledge has it."""
        return tuple(dict.fromkeys(source for name in objective.needs() for source in self.task.sources(name)))

    def loss(self, learner: Learner, batch: Batch, clock: Clock, totals: Tensor | None = None) -> Losses:
        """Return the loss of a batch.

        Terms that weigh nothing at this clock are neither read nor worked out; what only they would train has a gradient of 0.

        Args:
            learner: The student.
            batch: On the student's device, see `to_device`.
            clock: Resolves schedules.
            totals: From `totals` of the whole group that the batch is part of; None where the batch stands alone.
        """
        if learner is not self._checked:
            learner.check(self.objective)
            self._checked = learner
        active = self.objective.at(clock)
        fields = self.fields if active is self.objective else self._read(active)
        said: Mapping[str, Any] = {}
        if self.knowledge is not None and fields:
            said = self.knowledge.targets(asked_of_book(self.task, batch), fields)
        totals = self.totals([batch]) if totals is None else totals
        if active is not self.objective:
            kept, each = {term.name for term in active.terms}, zip(self.objective.terms, totals.unbind(), strict=True)
            totals = torch.stack([total for term, total in each if term.name in kept])
        # From here on everything is as losses see it, which may be another shape than networks and books have.
        student, targets, seen = (
            self.task.student(learner(batch, said, active.connectors)),
            self._targets(said, batch),
            self._seen(batch),
        )
        sums = active.sums(student, targets, seen, self.task.weights(seen), clock)
        means = sums.detach() / totals.clamp_min(torch.finfo(totals.dtype).tiny)
        names = [term.name for term in active.terms]
        loss = active.loss(sums, totals, clock)
        if active is not self.objective and loss.requires_grad:
            loss = loss + _nothing(learner, loss)
        return Losses(loss, dict(zip(names, means.unbind(), strict=True)))


def _nothing(learner: Learner, like: Tensor) -> Tensor:
    """Return 0, in dtype and on the device of `like`, with a gradient of 0 for every trained parameter.

    So that what is idle has a gradient as what weighs nothing has: an optimizer treats both alike, and processes that add theirs up
    wait for none.
    """
    trained = [parameter.sum().to(like) for parameter in learner.parameters() if parameter.requires_grad]
    return torch.stack(trained).sum() * 0
