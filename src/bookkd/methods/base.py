"""The contract of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bookkd.core.protocols import Needs
from bookkd.objectives import Objective
from bookkd.tasks import Task

__all__ = ["Card", "Handler", "Method"]


@dataclass(frozen=True)
class Card:
    """What a table of methods shows.

    Args:
        title: The method in a few words.
        source: Paper, venue, year, link.
        needs: What it must be told, in a few words.
        status: `certain` where the equations stand in the source, `reconstructed` where we had to fill gaps.
    """

    title: str
    source: str
    needs: str
    status: str


class Handler(Protocol):
    """Acts on events of a run (see `bookkd.core.protocols.EVENTS`); its state is part of the checkpoint."""

    def on(self, event: str, run: Any) -> None:
        """Be told of `event`; `run` gives learner, clock and optimizer."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        ...


class Method(Protocol):
    """One published recipe: a frozen dataclass of plain values."""

    name: ClassVar[str]
    card: ClassVar[Card]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Named sets of values, for instance the conventions of other libraries."""

    def __init__(self, **values: Any) -> None: ...

    def objective(self, task: Task) -> Objective:
        """Return what the student minimises."""
        ...

    def needs(self, task: Task) -> Needs:
        """Return what the knowledge must have."""
        ...

    def handlers(self) -> tuple[Handler, ...]:
        """Return fresh event handlers; empty for most methods."""
        ...
