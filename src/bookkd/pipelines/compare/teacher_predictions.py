"""What teachers say of the samples that are reported on, as the fields that metrics take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bookkd.core.errors import FidelityError, expected
from bookkd.core.fields import LOGITS, MEAN, SAMPLE, VARIANCE, VIEW, WEIGHT
from bookkd.knowledge import StoredKnowledge
from bookkd.losses import DenseTarget, FullTarget
from bookkd.tasks import Task

__all__ = ["TeacherPredictions", "live_predictions", "mean_of", "stored_predictions"]

TeacherPredictions = Mapping[str, Tensor]
"""Field name -> CPU tensor [samples, ...]; under `logits` the log-probabilities of the outcomes of every position."""


def live_predictions(task: Task, fields: Mapping[str, Tensor]) -> TeacherPredictions:
    """Return what a network said, see `predict`.

    Args:
        task: Of the sweep.
        fields: The network's.
    """
    if LOGITS not in fields:
        return fields
    return {LOGITS: _outcomes(task, DenseTarget(fields[LOGITS].double()), "live teacher")}


def stored_predictions(task: Task, stored: StoredKnowledge, count: int) -> TeacherPredictions:
    """Return what a book says of view 0 of its first `count` samples.

    Raises:
        FidelityError: if it keeps only some classes.
    """
    rows = torch.arange(count)
    batch = {SAMPLE: rows, VIEW: torch.zeros_like(rows), WEIGHT: torch.ones(count)}
    where = str(stored.book.path)
    if MEAN not in task.field_infos:
        return {LOGITS: _outcomes(task, stored.targets(batch, [LOGITS])[LOGITS], where)}
    names = [MEAN, *([VARIANCE] if VARIANCE in stored.fields else [])]
    return {name: target.logits.float() for name, target in stored.targets(batch, names).items()}


def _outcomes(task: Task, target: Any, where: str) -> Tensor:
    """Return log-probabilities [samples, classes], or [samples, classes, 2] where each class is there or not."""
    if not isinstance(target, FullTarget):
        do = "Make it with codec dense or int8."
        raise FidelityError(expected("test", "a book of every class", "a sparse codec", where=where, do=do))
    shown: FullTarget = task.targets({LOGITS: target}, {})[LOGITS]
    return shown.log_probabilities(1.0).double()


def mean_of(said: Sequence[TeacherPredictions]) -> dict[str, Tensor]:
    """Return what several teachers say as one: logits of the mean probability. One alone says what it says.

    Args:
        said: One a teacher; of numbers only one.

    >>> first, second = ({LOGITS: torch.tensor([[p, 1 - p]]).log()} for p in (0.5, 0.9))
    >>> mean_of([first, second])[LOGITS].exp()
    tensor([[0.7000, 0.3000]])
    """
    if LOGITS not in said[0]:
        return dict(said[0])
    mean = torch.stack([each[LOGITS] for each in said]).logsumexp(0) - torch.tensor(float(len(said))).log()
    return {LOGITS: mean if mean.ndim == 2 else mean[..., 1] - mean[..., 0]}
