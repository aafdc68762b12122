"""What is trained: the student with its preprocessing, and the connectors beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bookkd.core.called import check_called
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import INPUT
from bookkd.knowledge import Capture
from bookkd.learning.cohort import Cohort
from bookkd.objectives import Connector, ConnectorModule, Objective, Shapes
from bookkd.shaping import Shaped
from bookkd.tasks import Task

__all__ = ["Learner"]


class Learner(nn.Module):
    """The student as one module with its preprocessing: what DDP wraps and what the optimizer sees.

    Args:
        student: Returns what `task.fields` understands.
        task: Turns its output into fields.
        preprocess: The student's own deterministic preprocessing of a view; no parameters.
        connectors: Trained parts beside the student, see `bookkd.objectives.connectors`.
        passes: How often the student sees each batch while it trains, with dropout of its own each time.
        features: Fields to take inside of the student, see `bookkd.knowledge.Capture`.
        layers: Name -> module path of its layers, over those that it has by itself.
        shapes: What connectors are built from, see `bookkd.objectives.Connector`; of `learner_for`.
        shaping: What is done to the student while it learns; None for nothing.
        constants: What is known of the teacher once and for all, for connectors and reductions that ask for it.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        connectors: Sequence[Connector] = (),
        passes: int = 1,
        features: Sequence[str] = (),
        layers: Mapping[str, str] | None = None,
        shapes: Shapes | None = None,
        shaping: Shaped | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.shaping = Shaped(student) if shaping is None else shaping
        self.task = task
        self.preprocess = preprocess
        self.connectors = tuple(connectors)
        self.passes = passes
        self.features = tuple(features)
        taking: dict[str, Any] = {"layers": layers, "constants": constants, "role": "student"}
        self.capture = Capture(student, features, **taking) if features else None
        self.parts = nn.ModuleDict({each.name: each.made(shapes or {}, constants or {}) for each in connectors})

    def compute(self, views: Tensor, *more: Any) -> Any:
        """Preprocess the views and run the student on them, and on what the task gives its networks behind them."""
        inputs = (self._prepared(views), *more)
        check_called(self.student, inputs, self.task.name)
        return self.student(*inputs)

    def _prepared(self, views: Tensor) -> Tensor:
        """Preprocess, keeping channels_last where that is fast."""
        inputs = views if self.preprocess is None else self.preprocess(views)
        if inputs.ndim == 4 and inputs.device.type == "cpu":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def said(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the student says of a batch: the task's fields, and those that are taken inside of it."""

        def run() -> Any:
            return self.compute(*self.task.inputs(batch))

        output, inside = (run(), {}) if self.capture is None else self.capture(run, self.task.given(batch))
        return {**self.task.fields(output, batch), **inside}

    def forward(
        self,
        batch: Mapping[str, Any],
        targets: Mapping[str, Any] | None = None,
        connectors: Sequence[Connector] | None = None,
    ) -> dict[str, Tensor]:
        """Return the student's fields for a batch, those of peers (`peers/<i>/NAME`) or passes (`passes/<i>/NAME`), and of connectors.

        Args:
            batch: On the student's device.
            targets: What the teacher says of it, for connectors that read that; without them, those connectors are left out.
            connectors: Of the learner's, those that are wanted; None for all.
        """
        with self.shaping.prepared():
            fields = self._fields(batch)
        # What the student says of itself is the same for every sample, so that its mean over them is itself, however they are split.
        fields |= {name: value.expand(len(batch[INPUT])) for name, value in self.shaping.fields().items()}
        for connector in self.connectors if connectors is None else connectors:
            if targets is not None or not connector.reads_teacher:
                fields |= connector.added(self.part(connector), fields, targets or {})
        return fields

    def _fields(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the student says of a batch, and its passes or peers."""
        if self.passes > 1 and self.training:
            repeated = _repeated(batch, self.passes)
            # One run over the repeated batch, so that the masks of dropout differ.
            both = self.said(repeated)
            each = {name: value.chunk(self.passes) for name, value in both.items()}
            fields = {name: parts[0] for name, parts in each.items()}
            fields |= {f"passes/{i}/{name}": part for name, parts in each.items() for i, part in enumerate(parts)}
        elif isinstance(self.student, Cohort):
            views, *more = self.task.inputs(batch)
            said = self.student.every(self._prepared(views), *more)
            every = [self.task.fields(output, batch) for output in said]
            fields = dict(every[0])
            fields |= {f"peers/{i}/{name}": value for i, own in enumerate(every) for name, value in own.items()}
        else:
            fields = self.said(batch)
        return fields

    def check(self, objective: Objective) -> None:
        """Refuse an objective that looks inside of a student of which nothing is taken, or whose connectors were not built.

        Raises:
            ConfigError: naming the first that is missing.
        """
        lacking = [name for name in objective.features() if name not in self.features]
        lacking += [each.name for each in objective.connectors if each.name not in self.parts]
        if lacking:
            wish, do = (
                f"built for {lacking[0]}, which the objective looks at",
                "Build it with bookkd.learning.learner_for.",
            )
            raise ConfigError(expected("learner", wish, "one that was not", where="Step", do=do))

    def part(self, connector: Connector) -> ConnectorModule:
        """Return what a connector has built."""
        return cast(ConnectorModule, self.parts[connector.name])

    def after_step(self) -> None:
        """Tell the connectors that the optimizer has moved their parameters."""
        for connector in self.connectors:
            self.part(connector).after_step()

    def logged(self) -> dict[str, float]:
        """Return what the connectors and the shaping of the student want in the record of an epoch."""
        said = {name: value for each in self.connectors for name, value in self.part(each).logged().items()}
        return {**said, **self.shaping.logged()}

    def finish(self) -> dict[str, Any]:
        """Make the student the network that is kept, and return what is to be remembered of its shaping."""
        remembered = self.shaping.finish()
        self.student = self.shaping.student
        return remembered


def _repeated(batch: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return a batch behind itself so many times."""
    rows = len(batch[INPUT])
    return {
        name: torch.cat([value] * times) if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
        for name, value in batch.items()
    }
