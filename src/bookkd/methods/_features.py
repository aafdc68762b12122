"""What methods on features share: which layers they look at, their weight, and what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from bookkd.core.check import at_least, finite, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import FEATURES, Feature
from bookkd.core.fields import TEACHER
from bookkd.core.schedules import During, Schedule
from bookkd.methods._parts import check_temperatures, with_labels
from bookkd.methods.base import BaseMethod
from bookkd.objectives import Connector, ConnectorModule, Objective, Shapes, Term, weighted
from bookkd.tasks import Task

__all__ = [
    "STAGES", "BeginningMethod", "FeatureMethod", "OfStages", "check_layers", "connected", "feature", "of_teacher", "part_name",
]  # fmt: skip

STAGES = ("stage1", "stage2", "stage3")
"""The stages of a network of three, as for small images; one of four has `stage4`, too."""


def feature(layer: str, reduction: str = "", size: int = 0) -> str:
    """Return the name of a field inside of a network.

    >>> feature("stage3", "pool", 2)
    'features/stage3/pool2'
    """
    return Feature(layer, reduction, size).name


def of_teacher(name: str) -> str:
    """Return how connectors name a teacher's field."""
    return f"{TEACHER}{name}"


def connected(name: str, part: str) -> str:
    """Return the field that a connector makes of another, such as `connected/stage3/fit`."""
    return f"connected/{name.removeprefix(FEATURES).replace('.', '_')}/{part}"


def part_name(part: str, field: str) -> str:
    """Return what a connector of a field is called.

    >>> part_name("fit", "features/layer3.0")
    'fit_layer3_0'
    """
    return f"{part}_{field.removeprefix(FEATURES).replace('/', '_').replace('.', '_').replace('-', '_')}"


def check_layers(method: BaseMethod) -> None:
    """Make `layers` a tuple, and refuse one that is empty or names a layer twice; None is left open."""
    given = getattr(method, "layers", None)
    if given is None:
        return
    listed = (given,) if isinstance(given, str) else tuple(given)
    object.__setattr__(method, "layers", listed)
    if not listed or len(set(listed)) < len(listed):
        raise ConfigError(expected("layers", "at least one layer, none twice", listed, where=f"method {method.name}"))
    for each in listed:
        Feature(each)


class OfStages:
    """What methods share that look at every stage of both networks, unless `layers` says at which."""

    usual: ClassVar[tuple[str, ...]] = STAGES
    """What is looked at where the networks are not known: the stages of a network of three, and what stands behind them."""
    fewest: ClassVar[int] = 1
    """Layers that the method wants at least."""
    layers: tuple[str, ...] | None

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The layers, first to deepest."""
        return self.usual if self.layers is None else self.layers

    def looking_at(self, named: Collection[str]) -> Self:
        """Return the method with `layers` chosen from these names of both networks: every stage; as it is where they were given.

        >>> from bookkd.methods import build_method
        >>> build_method("reviewkd").looking_at(["stage1", "stage2", "stage3", "stage4", "last", "pooled"]).layers
        ('stage1', 'stage2', 'stage3', 'stage4', 'pooled')
        >>> build_method("at", layers=("stage2",)).looking_at(["stage1", "stage2"]).layers
        ('stage2',)
        """
        kind = self.usual[0].rstrip("0123456789")
        stages = sorted(
            (name for name in named if re.fullmatch(rf"{kind}\d+", name)), key=lambda name: int(name[len(kind) :])
        )
        layers = (*stages, *(name for name in self.usual if not name.startswith(kind)))
        if self.layers is not None or not stages or len(layers) < self.fewest:
            return self
        return replace(self, layers=layers)  # type: ignore[type-var]


@dataclass(frozen=True)
class FeatureMethod(BaseMethod):
    """A method whose own terms look inside of both networks; beside them stand labels and, if wished, softened logits.

    Args:
        weight: Of the method's own terms together, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
    """

    weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 1.0
    kd_weight: float | Schedule = 0.0
    temperature: float | Schedule = 4.0

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        for name in ("ce_weight", "kd_weight"):
            value = getattr(self, name)
            if not callable(value) and finite(value, name, where=where) < 0:
                raise ConfigError(expected(name, "at least 0", value, where=where))
        if not callable(self.weight):
            positive(self.weight, "weight", where=where, do="Without it use method vanilla-kd or supervised.")
        check_temperatures(self, "temperature")
        check_layers(self)
        if hasattr(self, "layer"):
            Feature(self.layer)

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the method's own terms, of weight `weight`, and their connectors; every method says it."""
        raise TypeError(type(self).__name__)

    def objective(self, task: Task) -> Objective:
        """Return the method's own terms, the softened logits and the labels, those whose weight is not the number 0."""
        terms, connectors = self.own(task)
        if self.kd_weight != 0:
            soft = task.soft_term(
                weight=self.kd_weight,
                temperature=self.temperature,
                t_squared=True,
                class_reduction="sum",
                soft_loss="kl",
            )
            terms = (soft, *terms)
        return Objective(with_labels(task, terms, weight=self.ce_weight), connectors)

    def adapter(
        self,
        field: str,
        part: str,
        build: Callable[[tuple[int, ...], tuple[int, ...]], ConnectorModule],
        *more: str,
        axes: int = 3,
    ) -> Connector:
        """Return a connector on the student's `field`, built from its shape and the teacher's, that gives `connected(field, part)`.

        Args:
            field: Of both sides.
            part: What it is for.
            build: From the shapes of one record of student and teacher.
            more: Further parts that it gives.
            axes: That a record must have on both sides: 3 of maps, 1 of vectors.
        """
        return Connector(
            part_name(part, field),
            field,
            tuple(connected(field, each) for each in (part, *more)),
            _Built(build, field, axes, self.name),
            weight_decay=None,
        )


@dataclass(frozen=True)
class BeginningMethod(FeatureMethod):
    """A method whose own terms are a first part of the run, in which the student sees no label.

    Args:
        weight: Of the method's own terms together, above 0; a number or a schedule.
        ce_weight: Weight of the label term after the beginning, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits after the beginning, at least 0.
        temperature: T of that, above 0.
        begin_epochs: Epochs of the method's own terms alone, at least 1.
    """

    begin_epochs: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.begin_epochs, 1, "begin_epochs", where=f"method {self.name}")

    def begin(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the method's own terms and their connectors; every method says it."""
        raise TypeError(type(self).__name__)

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the method's own terms, which end when the beginning does."""
        terms, connectors = self.begin(task)
        return tuple(_until(self.begin_epochs, term) for term in terms), connectors

    def objective(self, task: Task) -> Objective:
        """Return the method's own terms, and behind the beginning those on logits and labels."""
        found = super().objective(task)
        own = {term.name for term in self.begin(task)[0]}
        terms = tuple(term if term.name in own else _from(self.begin_epochs, term) for term in found.terms)
        return replace(found, terms=terms)


def _until(epoch: int, term: Term) -> Term:
    return weighted(term, During(term.weight, 0, epoch))


def _from(epoch: int, term: Term) -> Term:
    return weighted(term, During(term.weight, epoch, None))


@dataclass(frozen=True)
class _Built:
    """Builds an adapter; a class, since a nested function could not be pickled."""

    build: Callable[[tuple[int, ...], tuple[int, ...]], ConnectorModule]
    field: str
    axes: int
    method: str

    def __call__(self, shapes: Shapes) -> ConnectorModule:
        from bookkd.objectives.adapters import shapes_in

        mine, theirs = shapes_in(
            shapes, self.field, of_teacher(self.field), axes=self.axes, where=f"method {self.method}"
        )
        return self.build(mine, theirs)
