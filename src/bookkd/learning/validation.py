"""When a student is measured while it learns, and what counts as better."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose
from bookkd.evaluation import (
    direction_of,
)
from bookkd.learning.learner import Learner
from bookkd.learning.measuring import MEASURED, measure, measure_sequences, predictions_of
from bookkd.tasks import Task

__all__ = ["Validation"]

_MAY_BE_UNDEFINED = ("ece", "nll")
"""Metrics of sequences that there may be nothing to measure of."""


@dataclass(frozen=True, eq=False)
class Validation:
    """A data set to validate on.

    Args:
        dataset: `dataset[i] -> (view, label)`, or of sequences.
        transform: Deterministic transform to a tensor; None where the data set gives tensors of one size.
        batch_size: Samples a pass, at least 1.
        metric: What early stopping, the plateau schedule and methods that act on improvements look at; the task's `primary_metric` where
            None.
        also: Further metrics, such as BLEU of what the student writes: called with the student in evaluation mode.
        lower_is_better: Whether less of `metric` is better; None of one of ours, which say so themselves.

    Raises:
        ConfigError: for a metric of which nobody has said what is better, or a batch size below 1.
        UnknownNameError: for a metric that nothing measures.

    >>> from bookkd.tasks import Classification
    >>> Validation([0], metric="ece").score({"accuracy": 0.9, "ece": 0.02}, Classification(("a", "b")))
    -0.02
    """

    dataset: Sized
    transform: Callable[[Any], Tensor] | None = None
    batch_size: int = 256
    metric: str | None = None
    also: Callable[[nn.Module], Mapping[str, float]] | None = None
    lower_is_better: bool | None = None

    def __post_init__(self) -> None:
        at_least(self.batch_size, 1, "batch_size", where="validation")
        if self.metric is not None:
            direction_of(self.metric, self.lower_is_better, ours=self.also is None)
        elif self.lower_is_better is not None:
            do = "Name the metric too."
            raise ConfigError(
                expected("lower_is_better", "None without metric", self.lower_is_better, where="validation", do=do)
            )

    def check(self, task: Task) -> None:
        """Refuse what is no data set of samples and labels, and a metric that is not measured for a task.

        Raises:
            DataError: for items that are no pairs.
            UnknownNameError: for such a one; what `also` measures is only known once it has.
        """
        first: Any = cast(Any, self.dataset)[0] if len(self.dataset) else ()
        if not isinstance(first, tuple | list):
            do = "Pass a data set: dataset[i] gives the input and its label."
            raise DataError(expected("validation", "of pairs", f"a {type(first).__name__}", where="sample 0", do=do))
        if self.metric is not None and self.also is None and task.name in MEASURED:
            choose(self.metric, MEASURED[task.name], "metric", where=f"validation, task {task.name}")

    def score(self, metrics: Mapping[str, float], task: Task) -> float:
        """Return the metric that counts, turned so that more is better.

        Raises:
            UnknownNameError: if it is none of those that were measured.
            DataError: if it is no number.
        """
        primary = task.primary_metric
        if self.metric is not None and math.isnan(metrics.get(primary, 0.0)):
            return math.nan  # what the student says is not finite, and nothing else was measured
        name = primary if self.metric is None else choose(self.metric, metrics, "metric", where="validation")
        lower = direction_of(name, self.lower_is_better if name == self.metric else None, ours=False)
        value = float(metrics[name])
        if math.isnan(value) and name in _MAY_BE_UNDEFINED and name != primary:
            return -sys.float_info.max  # such as the calibration of a student that says no symbol yet
        if math.isnan(value) and name != primary:
            do = "Validate on samples that it is defined for, or return a number."
            raise DataError(expected(name, "a number", value, where="validation", do=do))
        return -value if lower else value

    def __call__(self, learner: Learner) -> dict[str, float]:
        """Return the point values of all metrics, without bootstrap."""
        found = self._measured(learner)
        if self.also is None or math.isnan(found[learner.task.primary_metric]):
            return found
        was_training = learner.training
        learner.eval()
        try:
            more: object = self.also(learner.student)
            if not isinstance(more, Mapping):
                do = "Return metric name -> value."
                raise ConfigError(expected("also", "a function that returns metrics", more, where="validation", do=do))
            return {**found, **more}
        finally:
            learner.train(was_training)

    def _measured(self, learner: Learner) -> dict[str, float]:
        if any(info.by_position for info in learner.task.field_infos.values()):
            return self._of_sequences(learner)
        said = predictions_of(learner, self.dataset, transform=self.transform, batch_size=self.batch_size)
        if not all(bool(torch.isfinite(values).all()) for values in said.fields.values()):
            return {learner.task.primary_metric: float("nan")}
        result = measure(learner.task, said, replicates=0)
        return {name: interval.value for name, interval in result.metrics.items()}

    def _of_sequences(self, learner: Learner) -> dict[str, float]:
        was_training, device = learner.training, next(learner.parameters()).device
        learner.eval()
        try:
            found = measure_sequences(
                learner.compute,
                self.dataset,
                learner.task,
                transform=self.transform,
                batch_size=self.batch_size,
                device=device,
                replicates=0,
            )
        except DataError as error:
            if "NaN or infinity" not in str(error):
                raise
            return {learner.task.primary_metric: float("nan")}
        finally:
            learner.train(was_training)
        return dict.fromkeys(_MAY_BE_UNDEFINED, math.nan) | {
            name: interval.value for name, interval in found.metrics.items()
        }
