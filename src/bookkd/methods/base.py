"""The contract of a method, and the parts that most methods share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import nn

from bookkd.core.fields import OWN
from bookkd.core.protocols import Knowledge, Needs
from bookkd.objectives import Objective
from bookkd.shaping import Known, Shaped
from bookkd.tasks import Task

__all__ = ["BaseMethod", "Card", "Handler", "Method"]


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

    def logged(self) -> dict[str, float]:
        """Return what the record of an epoch should say of what was done since this was asked; nothing, of one that derives from this."""
        return {}


class Method(Protocol):
    """One published recipe: a frozen dataclass of plain values; derive it from `BaseMethod`."""

    name: ClassVar[str]
    card: ClassVar[Card]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Named sets of values, for instance the conventions of other libraries."""
    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks that it serves."""

    def __init__(self, **values: Any) -> None: ...

    @property
    def cohort(self) -> int:
        """How many students learn together; 1 for most methods."""
        ...

    @property
    def passes(self) -> int:
        """How often the student sees each batch, with dropout of its own each time; 1 for most methods."""
        ...

    def objective(self, task: Task) -> Objective:
        """Return what the student minimises."""
        ...

    def needs(self, task: Task) -> Needs:
        """Return what the knowledge must have."""
        ...

    def looking_at(self, named: Collection[str]) -> Self:
        """Return the method for networks that both name these layers: with those that its options leave open.

        Args:
            named: Such as `stage1`, see `bookkd.knowledge.layers_of`.
        """
        ...

    def handlers(self) -> tuple[Handler, ...]:
        """Return fresh event handlers; empty for most methods."""
        ...

    def shape(self, student: nn.Module, task: Task, known: Known) -> Shaped:
        """Return the student as it is to learn, with gates, masks or rounding; asked once, before its optimizer is built.

        Args:
            student: The network; may be changed in place.
            task: Owns the shapes.
            known: Shapes, layers and constants of both sides.

        Raises:
            ConfigError: for a student that the method cannot shape.
        """
        ...

    def own_knowledge(
        self, learner: nn.Module, task: Task, given: Knowledge | None, seed: int
    ) -> tuple[Knowledge, ...]:
        """Return knowledge of the method's own, whose fields begin with `own/`; one that is a `Handler` too is told of events.

        Args:
            learner: The student on its device, before its first step.
            task: Owns the shapes.
            given: The book or teacher; None where there is none.
            seed: Of draws.
        """
        ...


class BaseMethod:
    """What most methods have: needs as their objective's, no event handlers, one student, as it is, no knowledge of their own."""

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label")

    @property
    def cohort(self) -> int:
        """One student."""
        return 1

    @property
    def passes(self) -> int:
        """One pass."""
        return 1

    def idle(self) -> Mapping[str, str]:
        """Return the options that play no part beside the others -> beside what; other than their defaults they are refused."""
        return {}

    def objective(self, task: Task) -> Objective:
        """Return what the student minimises; every method says it."""
        raise TypeError(type(self).__name__)

    def needs(self, task: Task) -> Needs:
        """Return the teacher's fields, as the objective asks for them."""
        objective = self.objective(task)
        asked = {name: at for name, at in objective.needs().items() if not name.startswith(OWN)}
        fields = {source: at for name, at in asked.items() for source in task.sources(name)}
        whole = not task.sparse or task.every_class
        dense = [name for name in (asked if whole else objective.dense_only()) if name in asked]
        bent = [name for name in objective.nonlinear() if name in asked and name not in dense]

        def sources(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(source for name in names for source in task.sources(name))

        hard = [name for name in objective.hard() if name in asked and name not in dense]
        return Needs(
            fields=fields,
            dense=sources(dense),
            nonlinear=sources(bent),
            hard=sources(hard),
            constants=objective.constants(),
        )

    def looking_at(self, named: Collection[str]) -> Self:
        """Return the method as it is: it leaves no layers open."""
        return self

    def handlers(self) -> tuple[Handler, ...]:
        """Return none."""
        return ()

    def shape(self, student: nn.Module, task: Task, known: Known) -> Shaped:
        """Return the student as it is."""
        return Shaped(student)

    def own_knowledge(
        self, learner: nn.Module, task: Task, given: Knowledge | None, seed: int
    ) -> tuple[Knowledge, ...]:
        """Return none."""
        return ()
