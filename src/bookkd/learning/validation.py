"""How a student does on samples it does not learn from, measured the same way by every training door."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.fields import LOGITS
from bookkd.evaluation import evaluate
from bookkd.learning.learner import Learner
from bookkd.tasks import Predictions, predict

__all__ = ["Validation", "predictions_of"]


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
        logits = said.fields[LOGITS]
        if not torch.isfinite(logits).all():
            return {learner.task.primary_metric: float("nan")}
        result = evaluate(logits, said.labels, class_names=learner.task.class_names, replicates=0)
        return {name: interval.value for name, interval in result.metrics.items()}
