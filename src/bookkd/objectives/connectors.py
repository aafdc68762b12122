"""Connectors: small trained parts beside the student, such as BookKD's entropy scale, which inference does without.

A connector reads fields of the student, and of the teacher where it has to, and adds others, which terms then bind. It has an
optimizer group of its own, lies in checkpoints, and is no part of the student's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bookkd.core.check import between, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import TEACHER, check_field_name
from bookkd.core.names import choose

__all__ = ["Connector", "ConnectorModule", "Scale", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Field -> shape of one record."""


class ConnectorModule(nn.Module):
    """Base of what a connector builds: `forward(*fields) -> field, or a tuple of them`, with two hooks."""

    def after_step(self) -> None:
        """Be told that the optimizer has moved the parameters, for instance to keep them in a range."""

    def logged(self) -> dict[str, float]:
        """Return what the record of an epoch is to show, by name."""
        return {}


@dataclass(frozen=True)
class Connector:
    """A trained part, to be built beside a student.

    Args:
        name: Of its parameters in checkpoints.
        fields: The student's field or fields that it reads, in the order of its module's arguments; `teacher/NAME` is the teacher's
            field NAME, without gradient.
        outputs: The field or fields that it adds to the student's; of several the module gives a tuple.
        build: Returns the module, untrained, from the shapes of one record of the fields: of the student by name, of the teacher by
            `teacher/NAME`.
        lr: Peak learning rate of its own; None for the student's. The schedule moves both alike.
        weight_decay: Of its own; None for the student's.
        constants: Names of what it must know of the teacher once and for all, such as `margins/pre1`; where there are any, `build` is
            called with them, name -> tensor, behind the shapes.
    """

    name: str
    fields: str | tuple[str, ...]
    outputs: str | tuple[str, ...]
    build: Callable[..., ConnectorModule]
    lr: float | None = None
    weight_decay: float | None = 0.0
    constants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"connector {self.name}"
        for name in ("fields", "outputs"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for field in (*self.fields, *self.outputs):
            check_field_name(field)
        named = self.name.isidentifier() and self.fields and self.outputs
        if not named or set(self.fields) & set(self.outputs):
            raise ConfigError(
                expected("connector", "named, with fields and outputs of its own", self.name, where=where)
            )
        if self.lr is not None:
            positive(self.lr, "lr", where=where)
        if self.weight_decay is not None:
            between(self.weight_decay, 0, float("inf"), "weight_decay", where=where)

    @property
    def reads_teacher(self) -> bool:
        """Whether it reads a field of the teacher."""
        return any(name.startswith(TEACHER) for name in self.fields)

    def made(self, shapes: Shapes, constants: Mapping[str, Tensor]) -> ConnectorModule:
        """Return its module, untrained.

        Args:
            shapes: Of one record of each field.
            constants: All that are known.

        Raises:
            UnknownNameError: for a constant that is not known.
        """
        if not self.constants:
            return self.build(shapes)
        known = {
            name: constants[choose(name, constants, "constant", where=f"connector {self.name}")]
            for name in self.constants
        }
        return self.build(shapes, known)

    def added(
        self, module: ConnectorModule, student: Mapping[str, Tensor], teacher: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return what its module makes of the fields.

        Args:
            module: What `build` returned.
            student: Fields of the student, and of connectors before this one.
            teacher: Targets of the teacher, by field name.

        Raises:
            UnknownNameError: for a field that is not there.
        """
        found = module(*(self._read(name, student, teacher) for name in self.fields))
        values = (found,) if isinstance(found, Tensor) else tuple(found)
        if len(values) != len(self.outputs):
            got = f"{len(values)} values"
            raise ConfigError(expected("module", f"one value for each of {self.outputs}", got, where=self.name))
        return dict(zip(self.outputs, values, strict=True))

    def _read(self, name: str, student: Mapping[str, Tensor], teacher: Mapping[str, Any]) -> Tensor:
        if not name.startswith(TEACHER):
            return student[choose(name, student, "student field", where=f"connector {self.name}")]
        said = teacher[choose(name.removeprefix(TEACHER), teacher, "teacher field", where=f"connector {self.name}")]
        values: Tensor = getattr(said, "logits", said)
        return values.detach()


class Scale(ConnectorModule):
    """Multiply logits by one trained scalar a > 0: it moves the entropy of the distribution, never the order of classes.

    Args:
        low: Least value that a may take, above 0.
        high: Most.
        name: What logs call it.

    >>> Scale(0.05, 20.0, "entropy_scale")(torch.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """

    def __init__(self, low: float, high: float, name: str) -> None:
        super().__init__()
        self.low, self.high = between(positive(low, "low"), 0, 1, "low"), between(high, 1, float("inf"), "high")
        self.name = name
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Return a times the logits."""
        return logits * self.scale

    def after_step(self) -> None:
        """Bring a back into its range."""
        with torch.no_grad():
            self.scale.clamp_(self.low, self.high)

    def logged(self) -> dict[str, float]:
        """Return a."""
        return {self.name: float(self.scale.detach())}
