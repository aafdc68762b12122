"""The contract of what is done to a student: what it adds to learning, and how it is undone or made final afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bookkd.core.check import between, positive
from bookkd.losses import claims

__all__ = ["Known", "ParameterGroup", "Shaped", "penalty"]


@claims(zero_at_teacher=False, why_not="it looks at no teacher")
def penalty(student: Tensor) -> Tensor:
    """Return what a shaped student says of itself, as it is: the loss of a term whose weight is its price.

    Args:
        student: One of the `Shaped.fields`, the same for each sample of a batch.

    >>> import torch
    >>> penalty(torch.tensor([0.25, 0.25]))
    tensor([0.2500, 0.2500])
    """
    return student


@dataclass(frozen=True, eq=False)
class Known:
    """What is known when a student is shaped.

    Args:
        shapes: Field -> shape of one record: of the student by name, those taken inside of it that the method reads, and of the teacher
            by `teacher/NAME`.
        constants: What is known of the teacher once and for all, by name.
        layers: Name -> module path of the student's layers.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters of a shaped student that learn at a pace of their own.

    Args:
        parameters: Of the student.
        lr: Peak learning rate; None for the student's. The schedule moves both alike.
        weight_decay: Of these parameters.
    """

    parameters: tuple[nn.Parameter, ...]
    lr: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr is not None:
            positive(self.lr, "lr", where="group of parameters")
        between(self.weight_decay, 0, float("inf"), "weight_decay", where="group of parameters")


class Shaped:
    """A student as a method wants it while it learns; this base changes nothing.

    A method returns one from `shape`. Whatever it adds to a student (gates, masks, rounding, another head) is part of that module:
    its parameters and buffers are in checkpoints. Where module paths do not stay what they were, `layers` says where layers are.

    Args:
        student: The network that is trained.

    >>> network = nn.Linear(2, 2)
    >>> shaped = Shaped(network)
    >>> shaped.finish(), shaped.student is network
    ({}, True)
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student

    def layers(self, named: Mapping[str, str]) -> Mapping[str, str]:
        """Return name -> module path of the layers of `student`, from those of the network that was given."""
        return named

    def prepared(self) -> AbstractContextManager[None]:
        """Do at once, around a pass of the student that learns, what its layers would do one by one."""
        return nullcontext()

    def fields(self) -> dict[str, Tensor]:
        """Return what the student says of itself at a step, by field name: scalars with gradient, such as the entropy of gates."""
        return {}

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the parameters that have a learning rate or a weight decay of their own; each in one group."""
        return ()

    def logged(self) -> dict[str, float]:
        """Return what the record of an epoch is to show, by name."""
        return {}

    def finish(self) -> dict[str, Any]:
        """Make `student` the network that is kept, in place where that can be, and return what is to be remembered as JSON values.

        Called once, when learning has ended, and before the weights of a finished run are loaded.
        """
        return {}
