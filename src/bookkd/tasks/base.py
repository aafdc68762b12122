"""The contract of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from bookkd.core.fields import FieldInfo
from bookkd.core.schedules import Schedule
from bookkd.objectives import Term

__all__ = ["Task"]


class Task(Protocol):
    """Owns the shapes of one kind of problem; stateless, compared by value."""

    name: ClassVar[str]
    primary_metric: ClassVar[str]
    """Metric that early stopping and tables look at; larger is better."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the class axis."""
        ...

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """What a network of this task says, by field name."""
        ...

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Turn a network's output into fields, checking the shapes."""
        ...

    def weights(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the weight of every position, float [batch, ...]; 0 where a position only pads."""
        ...

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return the term that learns from labels."""
        ...
