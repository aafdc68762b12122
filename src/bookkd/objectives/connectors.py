"""Connectors: small trained parts beside the student, such as BookKD's entropy scale, which inference does without.

A connector reads one field of the student and adds another, which terms then bind. It has an optimizer group of its own,
lies in checkpoints, and is no part of the student's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bookkd.core.check import between, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import check_field_name

__all__ = ["Connector", "ConnectorModule", "Scale"]


class ConnectorModule(nn.Module):
    """Base of what a connector builds: `forward(field) -> field`, with two hooks."""

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
        field: The student's field that it reads.
        output: The field that it adds.
        build: Returns the module, untrained.
        lr: Peak learning rate of its own; None for the student's. The schedule moves both alike.
        weight_decay: Of its own.
    """

    name: str
    field: str
    output: str
    build: Callable[[], ConnectorModule]
    lr: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        where = f"connector {self.name}"
        check_field_name(self.field)
        check_field_name(self.output)
        if not self.name.isidentifier() or self.field == self.output:
            raise ConfigError(expected("connector", "named, with an output of its own", self.name, where=where))
        if self.lr is not None:
            positive(self.lr, "lr", where=where)
        between(self.weight_decay, 0, float("inf"), "weight_decay", where=where)


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
