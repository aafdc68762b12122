"""How a student does on samples it does not learn from, measured the same way by every training door."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS, MEAN, VARIANCE
from bookkd.evaluation import Evaluation, Measures, evaluate, evaluate_multi_label, evaluate_regression
from bookkd.learning.learner import Learner
from bookkd.tasks import Predictions, Task, predict

__all__ = ["Validation", "measure", "predictions_of"]


def measure(
    task: Task, said: Predictions, *, teacher: Mapping[str, Tensor] | None = None, **options: Any
) -> Evaluation | Measures:
    """Measure what a network says against the labels, with the metrics of its task.

    Args:
        task: Whose `primary_metric` is among the metrics.
        said: Of the network, see `predict`.
        teacher: A teacher's fields on the same samples, to be compared with.
        options: `replicates`, `seed`, `level`, and `bins` of tasks with classes, see `bookkd.evaluation`.

    Raises:
        ConfigError: for a task that has no metrics.
    """
    theirs, names = teacher or {}, task.class_names
    if task.name == "classification":
        given = theirs.get(LOGITS)
        return evaluate(said.fields[LOGITS], said.labels, teacher_logits=given, class_names=names, **options)
    if task.name == "multi-label":
        given = theirs.get(LOGITS)
        return evaluate_multi_label(
            said.fields[LOGITS], said.labels, teacher_logits=given, class_names=names, **options
        )
    if task.name == "regression":
        return evaluate_regression(
            said.fields[MEAN],
            said.labels,
            variance=said.fields.get(VARIANCE),
            teacher_mean=theirs.get(MEAN),
            teacher_variance=theirs.get(VARIANCE),
            output_names=names,
            **options,
        )
    raise ConfigError(expected("task", "one that has metrics", task.name, where="validation"))


def predictions_of(
    learner: Learner,
    dataset: Sized,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Predictions:
    """Run a learner over a data set in evaluation mode, and put it back into the mode it was in."""
    was_training = learner.training
    device = next(learner.parameters()).device
    learner.eval()
    try:
        return predict(
            learner.compute,
            dataset,
            learner.task,
            transform=transform,
            batch_size=batch_size,
            device=device,
            workers=workers,
        )
    finally:
        learner.train(was_training)


@dataclass(frozen=True, eq=False)
class Validation:
    """A data set to validate on.

    Args:
        dataset: `dataset[i] -> (image, label)`.
        transform: Deterministic transform to a tensor; None where the data set gives tensors of one size.
        batch_size: Samples a pass.
    """

    dataset: Sized
    transform: Callable[[Any], Tensor] | None = None
    batch_size: int = 256

    def __call__(self, learner: Learner) -> dict[str, float]:
        """Return the point values of all metrics, without bootstrap."""
        said = predictions_of(learner, self.dataset, transform=self.transform, batch_size=self.batch_size)
        if not all(bool(torch.isfinite(values).all()) for values in said.fields.values()):
            return {learner.task.primary_metric: float("nan")}
        result = measure(learner.task, said, replicates=0)
        return {name: interval.value for name, interval in result.metrics.items()}
