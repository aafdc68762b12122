"""From a sweep to its arms: what is compared, each under a name that depends on nothing but itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from bookkd.core.check import unique
from bookkd.core.errors import ConfigError, expected
from bookkd.core.jsonio import digest
from bookkd.core.names import choose
from bookkd.learning import Training
from bookkd.learning.configuration import check_task
from bookkd.pipelines.compare.parts import method_choice
from bookkd.pipelines.compare.sweep import MethodChoice, Override, Source, Sweep
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.tasks import Task

__all__ = ["Arm", "asks", "baselines", "expand", "student_label"]

_SLUG = re.compile(r"[^A-Za-z0-9._=+-]+")


@dataclass(frozen=True)
class Arm:
    """What is compared: the same for all of its seeds.

    Args:
        method: How students learn.
        student: The network.
        source: Whom the method asks; None where it asks nobody.
        seen_as: Whose books say which views students see; `source`, or for methods that ask nobody a book beside them.
        views: The views, where they are given and no book says them.
        training: How students are trained; the seed is each run's own.
        label_fraction: Share of the labels that they see.
        override: Name of what was overridden; empty for nothing.
    """

    method: MethodChoice
    student: NetworkOptions
    source: Source | None
    seen_as: Source | None
    views: ViewOptions | None
    training: Training
    label_fraction: float
    override: str = ""

    @property
    def name(self) -> str:
        """Method, student, source and override, as tables show them."""
        source = "" if self.source is None or self.source.label == self.override else self.source.label
        override = "" if self.override == self.method.label else self.override
        return " / ".join(part for part in (self.method.label, student_label(self.student), source, override) if part)

    @property
    def slug(self) -> str:
        """Its name as the name of a folder, with a digest that tells apart what file systems do not."""
        return f"{_SLUG.sub('-', self.name).strip('-')[:80]}-{digest(self.name)[:8]}"


def student_label(student: NetworkOptions) -> str:
    """Return the name of a network with its arguments.

    >>> student_label(NetworkOptions("resnet20", args={"width": 32}))
    'resnet20 width=32'
    """
    return " ".join([student.name, *(f"{key}={value}" for key, value in sorted(student.args.items()))])


def asks(method: MethodChoice, task: Task) -> bool:
    """Say whether a method asks a book or a teacher anything."""
    needs = method.build().needs(task)
    return bool(needs.fields) or needs.live_teacher


def expand(sweep: Sweep, task: Task) -> tuple[Arm, ...]:
    """Return the arms of a sweep, in its order.

    An override is applied to the methods that have the options which it sets; a method that none fits stays as it is.

    Raises:
        ConfigError: if two arms are the same, an override fits no method, a method does not serve the task, or has nobody to ask.
        UnknownNameError: if the baseline is no arm.
    """
    for override in sweep.overrides:
        if not any(override.fits(method) for method in sweep.methods):
            got = ", ".join(sorted(override.method))
            wish = f"options of {' or '.join(method.name for method in sweep.methods)}"
            raise ConfigError(expected("overrides.method", wish, got, where=f"override {override.name}"))
    arms = tuple(
        arm
        for student in sweep.students
        for method in sweep.methods
        for override in _fitting(sweep, method)
        for arm in _arms(sweep, task, method, student, override)
    )
    unique([arm.name for arm in arms], "arms", where="sweep", do="Leave one out, or give overrides other names.")
    if sweep.baseline:
        choose(sweep.baseline, [arm.name for arm in arms], "arm", where="baseline of the sweep")
    return arms


def _fitting(sweep: Sweep, method: MethodChoice) -> list[Override | None]:
    return [override for override in sweep.overrides if override.fits(method)] or [None]


def _arms(
    sweep: Sweep, task: Task, method: MethodChoice, student: NetworkOptions, override: Override | None
) -> list[Arm]:
    views, training, fraction, sources = sweep.views, sweep.training, sweep.label_fraction, sweep.sources
    if override is not None:
        method = _changed(method, override.method)
        student, training = replace(student, **override.student), replace(training, **override.training)
        views = replace(views or ViewOptions(), **override.views) if override.views else views
        fraction = sweep.label_fraction if override.label_fraction is None else override.label_fraction
        sources = sources if override.books is None else (override.books,)
    if method.sources and (override is None or override.books is None):
        sources = tuple(source for source in sources if source.label in method.sources)
    books = [source for source in sources if source.books]
    beside = books[0] if books else None
    shared: dict[str, Any] = {"method": method, "student": student, "views": views, "training": training}
    check_task(method.build(), task, where="sweep")
    shared |= {"label_fraction": fraction, "override": "" if override is None else override.name}
    if not asks(method, task):
        return [Arm(source=None, seen_as=beside, **shared)]
    if not sources:
        do = "Pass --books FOLDER, or teachers in the sweep."
        raise ConfigError(expected("books", f"one for method {method.name} to learn from", 0, where="sweep", do=do))
    return [Arm(source=source, seen_as=source if source.books else beside, **shared) for source in sources]


def _changed(method: MethodChoice, options: Any) -> MethodChoice:
    """Return a method with other options; a `name` among them makes it another method."""
    kept = (
        {}
        if "name" in options
        else {"name": method.name, "preset": method.preset, **method.options, "books": method.sources}
    )
    return method_choice({**kept, **options}) if options else method


def baselines(sweep: Sweep, arms: tuple[Arm, ...]) -> dict[int, int]:
    """Return which arm each is held against, by place; one that is held against nothing is not in it.

    The baseline of the sweep where it names one. Else in an ablation the full method with the same student, in a study of
    orthogonality the first arm, otherwise labels alone with the same student, best under the same override, or the first arm.
    """
    if sweep.baseline:
        base = [arm.name for arm in arms].index(sweep.baseline)
        return {place: base for place in range(len(arms)) if place != base}
    found = {}
    for place, arm in enumerate(arms):
        same = [n for n, other in enumerate(arms) if student_label(other.student) == student_label(arm.student)]
        alone = [n for n in same if arms[n].method.name == "supervised"]
        best = [n for n in alone if arms[n].override == arm.override]
        base = {"ablation": same[0], "orthogonality": 0}.get(sweep.tables, next(iter([*best, *alone, 0])))
        if base != place:
            found[place] = base
    return found
