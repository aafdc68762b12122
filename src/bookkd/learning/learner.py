"""What is trained: the student with its preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bookkd.core.fields import INPUT
from bookkd.tasks import Task

__all__ = ["Learner"]


class Learner(nn.Module):
    """The student as one module with its preprocessing: what DDP wraps and what the optimizer sees.

    Args:
        student: Returns what `task.fields` understands.
        task: Turns its output into fields.
        preprocess: The student's own deterministic preprocessing of a view; no parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.task = task
        self.preprocess = preprocess

    def compute(self, views: Tensor) -> Any:
        """Preprocess and run the student on views, keeping channels_last where that is fast."""
        inputs = views if self.preprocess is None else self.preprocess(views)
        if inputs.ndim == 4 and inputs.device.type == "cpu":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.student(inputs)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the student's fields for a batch."""
        return self.task.fields(self.compute(batch[INPUT]), batch)
