"""What is trained: the student with its preprocessing, and the connectors beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bookkd.core.fields import INPUT
from bookkd.learning.cohort import Cohort
from bookkd.objectives import Connector, ConnectorModule
from bookkd.tasks import Task

__all__ = ["Learner"]


class Learner(nn.Module):
    """The student as one module with its preprocessing: what DDP wraps and what the optimizer sees.

    Args:
        student: Returns what `task.fields` understands.
        task: Turns its output into fields.
        preprocess: The student's own deterministic preprocessing of a view; no parameters.
        connectors: Trained parts beside the student, see `bookkd.objectives.connectors`.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        connectors: Sequence[Connector] = (),
    ) -> None:
        super().__init__()
        self.student = student
        self.task = task
        self.preprocess = preprocess
        self.connectors = tuple(connectors)
        self.parts = nn.ModuleDict({connector.name: connector.build() for connector in connectors})

    def compute(self, views: Tensor) -> Any:
        """Preprocess and run the student on views."""
        return self.student(self._prepared(views))

    def _prepared(self, views: Tensor) -> Tensor:
        """Preprocess, keeping channels_last where that is fast."""
        inputs = views if self.preprocess is None else self.preprocess(views)
        if inputs.ndim == 4 and inputs.device.type == "cpu":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the student's fields for a batch, those of its peers (`peers/<i>/NAME`), and what the connectors add."""
        if isinstance(self.student, Cohort):
            said = self.student.every(self._prepared(batch[INPUT]))
            each = [self.task.fields(output, batch) for output in said]
            fields = {
                **each[0],
                **{f"peers/{i}/{name}": value for i, own in enumerate(each) for name, value in own.items()},
            }
        else:
            fields = self.task.fields(self.compute(batch[INPUT]), batch)
        for connector in self.connectors:
            fields[connector.output] = self.part(connector)(fields[connector.field])
        return fields

    def part(self, connector: Connector) -> ConnectorModule:
        """Return what a connector has built."""
        return cast(ConnectorModule, self.parts[connector.name])

    def after_step(self) -> None:
        """Tell the connectors that the optimizer has moved their parameters."""
        for connector in self.connectors:
            self.part(connector).after_step()

    def logged(self) -> dict[str, float]:
        """Return what the connectors want in the record of an epoch."""
        return {name: value for each in self.connectors for name, value in self.part(each).logged().items()}
