"""What teachers say of the samples that are reported on, as the fields that metrics take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from bookkd.core.errors import FidelityError, expected
from bookkd.core.fields import COUNTS, LOGITS, MEAN, SAMPLE, VARIANCE, VIEW, WEIGHT
from bookkd.evaluation import Measures
from bookkd.knowledge import StoredKnowledge
from bookkd.learning.measuring import gatherer_of, samples_of_pass
from bookkd.learning.step import to_device
from bookkd.losses import DenseTarget, FullTarget
from bookkd.tasks import Classification, Task
from bookkd.views import Pick, Replay, Views

__all__ = ["TeacherPredictions", "live_predictions", "mean_of", "measure_stored", "refuse_sparse", "stored_predictions"]

_MOST_SAMPLES = 256
"""Most sequences of a book that are measured together."""
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
    # Of some classes of a teacher's the fields of the network are its word on these already.
    heard = replace(task, whole=()) if isinstance(task, Classification) else task
    return {LOGITS: _outcomes(heard, DenseTarget(fields[LOGITS].double()), "live teacher")}


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


def measure_stored(
    task: Task, stored: StoredKnowledge, dataset: Any, *, device: str | torch.device = "cpu"
) -> Measures:
    """Measure the teacher of a book of sequences by what it keeps, with the metrics of the task and without intervals.

    Args:
        task: The student's.
        stored: A book of these samples as they are.
        dataset: The samples.
        device: Where metrics are worked out.

    Raises:
        FidelityError: if it keeps less than every value.
    """
    theirs = task.of_teacher()
    sums = gatherer_of(theirs)
    size = samples_of_pass(theirs, dataset, _MOST_SAMPLES)
    for start in range(0, len(dataset), size):
        batch = _batch(dataset, range(start, min(start + size, len(dataset))), device)
        said = _positions(theirs, stored, batch)
        sums.add(theirs.student(said), theirs.batch(batch), _counts(theirs, batch))
    return sums.measures(replicates=0)


def refuse_sparse(task: Task, stored: StoredKnowledge, dataset: Any) -> None:
    """Refuse a book of sequences that keeps less than every value, by its first record.

    Raises:
        FidelityError: if it does.
    """
    _positions(task.of_teacher(), stored, _batch(dataset, range(1), "cpu"))


def _batch(dataset: Any, rows: range, device: str | torch.device) -> dict[str, Any]:
    replay = Replay(dataset, Views(None, n_views=1), probe_share=0)
    return to_device(replay.batch([Pick(row, 0) for row in rows]), torch.device(device))


def _counts(task: Task, batch: Mapping[str, Any]) -> Tensor:
    return cast(Tensor, task.counts(batch))


def _positions(task: Task, stored: StoredKnowledge, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a book says at every position of a batch, as the teacher's own task has them."""
    asked = {**batch, COUNTS: _counts(task, batch).cpu()}
    said = task.targets(stored.targets(asked, tuple(task.field_infos)), batch)
    for name, target in said.items():
        if not isinstance(target, DenseTarget):
            do = "Make it with codec dense or int8."
            got, where = type(target).__name__, str(stored.book.path)
            raise FidelityError(expected(name, "every value of one teacher", got, where=where, do=do))
    return {name: target.logits.float() for name, target in said.items()}


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
