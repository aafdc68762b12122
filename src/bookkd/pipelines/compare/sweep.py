"""What a comparison compares: methods x students x books or teachers x overrides x seeds, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bookkd.core.check import at_least, between, positive, unique
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.learning import Training
from bookkd.methods import Method, build_method, method_class
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.samples import HELD_OUT
from bookkd.tasks import TASKS

__all__ = ["MethodChoice", "Override", "Source", "Sweep"]


@dataclass(frozen=True)
class MethodChoice:
    """A method and what is set of it.

    Args:
        name: Name in `METHODS`, or `package.module:Name`.
        preset: A named set of its values.
        options: Fields of its dataclass.
        sources: Labels of the books or teachers that it learns from, where it is not to learn from all of the sweep.

    >>> MethodChoice("vanilla-kd", options={"temperature": 8.0}).label
    'vanilla-kd temperature=8'
    """

    name: str
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What tells it from others, in a few words."""
        shown = [f"{key}={_shown(value)}" for key, value in sorted(self.options.items())]
        return " ".join([self.name, *([self.preset] if self.preset else []), *shown])

    def build(self) -> Method:
        """Return the method.

        Raises:
            UnknownNameError: for an unknown method or preset.
            ConfigError: for an option that it has not, or out of its range.
        """
        return build_method(self.name, self.preset, **self.options)

    def takes(self, options: Mapping[str, Any]) -> bool:
        """Say whether the method has all of these options."""
        known = {entry.name for entry in fields(method_class(self.name))}  # type: ignore[arg-type]
        return set(options) <= known


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Source:
    """Whom students learn from: books read together, or live teachers asked together.

    Args:
        label: Its name in tables.
        books: Folders of books.
        teachers: Networks with weights; either these or books.
        members: Names or places of the teachers that are read of the one book, where it holds several; empty for all.
        test_books: Books of the test split by the same teachers, without augmentation, for agreement and the teachers'
            mistakes where no teacher is in memory.
    """

    label: str
    books: tuple[str, ...] = ()
    teachers: tuple[NetworkOptions, ...] = ()
    test_books: tuple[str, ...] = ()
    members: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.books) == bool(self.teachers):
            got = f"{len(self.books)} books and {len(self.teachers)} teachers"
            raise ConfigError(expected("source", "of books or of teachers", got, where=f"sweep, {self.label}"))
        if self.members and len(self.books) != 1:
            do = "Name the teachers of each book by itself."
            got = f"{len(self.books)} books"
            raise ConfigError(expected("teachers", "of one book", got, where=f"sweep, {self.label}", do=do))
        for teacher in self.teachers:
            teacher.refuse_untrained("teacher")


@dataclass(frozen=True)
class Override:
    """Settings that differ from those of the sweep, under a name.

    Args:
        name: Shown in tables.
        method: Options of the method; with `name` another method in its place.
        training: Fields of `Training`.
        views: Fields of `ViewOptions`.
        student: Fields of `NetworkOptions`.
        books: Another source; methods that ask nobody take its views.
        label_fraction: Share of the labels that students may see.
    """

    name: str
    method: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    books: Source | None = None
    label_fraction: float | None = None

    def fits(self, method: MethodChoice) -> bool:
        """Say whether it can be applied to a method: whether that has the options that it sets."""
        rest = {key: value for key, value in self.method.items() if key != "preset"}
        return "name" in rest or method.takes(rest)


@dataclass(frozen=True)
class Sweep:
    """Everything that a comparison needs; equal for equal comparisons.

    Args:
        students: Networks to train.
        methods: How they learn; one that asks nobody (labels alone, a teacher made of labels, peers) is not repeated for
            every source.
        data: The training samples.
        books: Books, each by itself or several read together.
        teachers: Live teachers, for arms that ask them at every step.
        seeds: Of initial values, the order of samples, and which labels are seen.
        training: How students are trained; its seed is each of `seeds`. Views drawn once are shared by the runs of a process
            where they fit into `cache_bytes`.
        views: The augmentation; those of the books where None.
        overrides: Each arm is trained once with each of these; as it is where there are none.
        baseline: Name of the arm that others are held against; where empty, labels alone with the same student.
        label_fraction: Share of the labels that students may see.
        test: Split that is reported; nothing is chosen or fitted on it.
        validation: Split for curves, early stopping, calibration and tuning.
        validation_fraction: In place of such a split, share of the training samples that no student learns from, the same
            ones for all runs; a tenth where neither is given, 0 for none.
        replicates: Bootstrap replicates of each run's intervals.
        latency: Measure the time of a pass of each student.
        task: What the labels are, a name in `TASKS`; where empty that of the books, or classification where there is none.
        task_args: Options of the task that its data do not tell; of every arm alike, since figures of two tasks do not compare.
        beam: Hypotheses that are followed where translations are written out for BLEU and chrF; 0 writes none.
        tables: Which tables the summary gets beside its own, as `with_preset` sets it: "ablation", "orthogonality" or none.
    """

    students: tuple[NetworkOptions, ...]
    methods: tuple[MethodChoice, ...]
    data: DataOptions = DataOptions()  # noqa: RUF009 - frozen
    books: tuple[Source, ...] = ()
    teachers: tuple[Source, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    training: Training = Training()  # noqa: RUF009 - frozen
    views: ViewOptions | None = None
    overrides: tuple[Override, ...] = ()
    baseline: str = ""
    label_fraction: float = 1.0
    test: str = "test"
    validation: str = ""
    validation_fraction: float | None = None
    replicates: int = 1000
    latency: bool = True
    task: str = ""
    task_args: Mapping[str, Any] = field(default_factory=dict)
    beam: int = 1
    tables: str = ""

    def __post_init__(self) -> None:
        for what in ("students", "methods", "seeds"):
            if not getattr(self, what):
                raise ConfigError(expected(what, "at least one", 0, where="sweep", do=f"Pass --{what}."))
            unique([str(value) for value in getattr(self, what)], what, where="sweep")
        for seed in self.seeds:
            at_least(seed, 0, "seeds", where="sweep")
        for fraction in (self.label_fraction, *(each.label_fraction for each in self.overrides)):
            if fraction is not None:
                positive(between(fraction, 0, 1, "label_fraction", where="sweep"), "label_fraction", where="sweep")
        at_least(self.replicates, 0, "replicates", where="sweep")
        at_least(self.beam, 0, "beam", where="sweep")
        if self.task:
            choose(self.task, TASKS, "task", where="sweep")
        if self.training.seed:
            raise ConfigError(
                expected("training.seed", "absent", self.training.seed, where="sweep", do="Pass --seeds.")
            )
        unique([source.label for source in self.sources], "labels of sources", where="sweep", do=_NAME_THEM)
        unique([override.name for override in self.overrides], "names of overrides", where="sweep")
        for method in self.methods:
            for label in method.sources:
                choose(label, [source.label for source in self.sources], "book", where=f"sweep, method {method.name}")
        self._check_validation()

    def _check_validation(self) -> None:
        if self.validation and self.validation in (self.test, "test"):
            do = (
                "The test split is for the report alone: hold some training samples out with --validation_fraction 0.1."
            )
            raise ConfigError(expected("validation", "another split than test", self.validation, where="sweep", do=do))
        for what in ("test", "validation"):
            if self.data.split == getattr(self, what):
                raise ConfigError(expected(what, "another split than the data's", self.data.split, where="sweep"))
        if self.validation_fraction is not None:
            between(self.validation_fraction, 0, 0.5, "validation_fraction", where="sweep")
            if self.validation:
                got = f"{self.validation_fraction} beside the split {self.validation!r}"
                raise ConfigError(expected("validation_fraction", "absent where a split is given", got, where="sweep"))

    @property
    def held_out(self) -> float:
        """Share of the training samples that is held out."""
        if self.validation_fraction is None:
            return 0.0 if self.validation else HELD_OUT
        return float(self.validation_fraction)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Books, then live teachers."""
        return (*self.books, *self.teachers)

    @property
    def every_source(self) -> tuple[Source, ...]:
        """Books and live teachers, then those that overrides name."""
        return (*self.sources, *(each.books for each in self.overrides if each.books is not None))


_NAME_THEM = "Give them names: {name: ..., paths: ...}."
