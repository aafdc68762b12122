"""Several knowledges asked together: teachers as one, or what different sources say side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bookkd.core.errors import BookMismatchError, ConfigError, FidelityError, expected
from bookkd.core.fields import LOGITS, FieldInfo
from bookkd.core.names import choose
from bookkd.core.protocols import Knowledge
from bookkd.knowledge.live import LiveKnowledge
from bookkd.knowledge.stored import StoredKnowledge
from bookkd.losses import CombinedTarget, Target

__all__ = ["Ensemble", "SideBySide", "books_of", "check_same", "constants_of", "teachers_of"]


class Ensemble:
    """Several teachers as one: `logits` is a `CombinedTarget`, equal parts of all members.

    How they are combined is a choice of the method (`objectives.Combine`); books keep every teacher's own logits. A book of
    several teachers is an ensemble by itself, and as a member gives all of its teachers: the same result, however teachers
    are spread over books.

    Args:
        members: Books or live teachers, at least one.

    Raises:
        BookMismatchError: if books are about different data, views, classes or another order of them.
        FidelityError: if a member keeps only some classes.
        ConfigError: if a member says no logits, or logits of another shape.
    """

    def __init__(self, members: Sequence[Knowledge]) -> None:
        if not members:
            raise ConfigError(expected("members", "at least one book or teacher", 0, where="ensemble"))
        self.members = tuple(members)
        infos = [self._info(member) for member in members]
        if len({info.shape for info in infos}) > 1:
            got = ", ".join(str(list(info.shape)) for info in infos)
            raise ConfigError(expected("logits", "of one shape in all members", got, where="ensemble"))
        check_same([book for member in members for book in books_of(member)])
        self._fields = {
            LOGITS: FieldInfo(infos[0].shape, temperatures=_promised(infos), by_position=infos[0].by_position)
        }

    @staticmethod
    def _info(member: Knowledge) -> FieldInfo:
        info = member.fields.get(LOGITS)
        if info is None:
            got = ", ".join(sorted(member.fields)) or "nothing"
            raise ConfigError(expected("members", f"knowledge of `{LOGITS}`", got, where=f"ensemble, {_name(member)}"))
        if info.sparse:
            do = "Make the books with codec dense or int8: two teachers keep different classes."
            raise FidelityError(
                expected("logits", "of every class in an ensemble", "a sparse codec", where=_name(member), do=do)
            )
        return info

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """One field, `logits`."""
        return self._fields

    @property
    def teacher_forwards(self) -> int:
        """Samples passed through the live members."""
        return sum(member.teacher_forwards for member in self.members)

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Ask every member about the batch.

        Raises:
            UnknownNameError: for any field but `logits`.
        """
        for name in fields or ():
            choose(name, self._fields, "field", where="ensemble")
        if fields is not None and not fields:
            return {}
        said: list[Target] = []
        accuracies: list[float | None] = []
        for member in self.members:
            target = member.targets(batch, [LOGITS])[LOGITS]
            if isinstance(target, CombinedTarget):
                said += target.members
                accuracies += target.accuracies
            else:
                said.append(target)
                accuracies.append(_accuracy(member))
        return {LOGITS: CombinedTarget.of(said, accuracies)}


class SideBySide:
    """Different sources answer for different fields, such as a book for `logits` and the student's average for `own/logits`.

    Args:
        sources: Knowledges whose fields differ.

    Raises:
        ConfigError: if two of them give a field of one name.
    """

    def __init__(self, sources: Sequence[Knowledge]) -> None:
        self.sources = tuple(sources)
        self._source: dict[str, Knowledge] = {}
        for source in sources:
            for name in source.fields:
                if name in self._source:
                    raise ConfigError(expected("sources", "with fields of different names", f"{name} twice"))
                self._source[name] = source

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """The fields of all sources."""
        return {name: source.fields[name] for name, source in self._source.items()}

    @property
    def teacher_forwards(self) -> int:
        """Samples passed through teachers, in all sources."""
        return sum(source.teacher_forwards for source in self.sources)

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Ask each source for its own fields."""
        wanted = list(self._source) if fields is None else [choose(name, self._source, "field") for name in fields]
        found: dict[str, Any] = {}
        for source in self.sources:
            mine = [name for name in wanted if self._source[name] is source]
            if mine:
                found |= source.targets(batch, mine)
        return found


def books_of(knowledge: Knowledge | None) -> tuple[StoredKnowledge, ...]:
    """Return the books that a knowledge reads, in its order; empty for live teachers and labels alone."""
    if isinstance(knowledge, StoredKnowledge):
        return (knowledge,)
    if isinstance(knowledge, Ensemble):
        return tuple(book for member in knowledge.members for book in books_of(member))
    if isinstance(knowledge, SideBySide):
        return tuple(book for source in knowledge.sources for book in books_of(source))
    return ()


def teachers_of(knowledge: Knowledge | None) -> tuple[LiveKnowledge, ...]:
    """Return the live teachers that a knowledge asks, in its order."""
    if isinstance(knowledge, LiveKnowledge):
        return (knowledge,)
    if isinstance(knowledge, Ensemble):
        return tuple(teacher for member in knowledge.members for teacher in teachers_of(member))
    if isinstance(knowledge, SideBySide):
        return tuple(teacher for source in knowledge.sources for teacher in teachers_of(source))
    return ()


def constants_of(knowledge: Knowledge | None) -> dict[str, Tensor]:
    """Return what is known of a teacher once and for all; of several that know one name, the first."""
    found: dict[str, Tensor] = {}
    known: list[Mapping[str, Tensor]] = [book.constants for book in books_of(knowledge)]
    for each in (*known, *(live.constants for live in teachers_of(knowledge))):
        found = {**each, **found}
    return found


def _promised(infos: Sequence[FieldInfo]) -> tuple[float, ...]:
    """Return the temperatures that all members honour; empty where none of them restricts it.

    Raises:
        FidelityError: if no temperature is honoured by all.
    """
    bound = [info.temperatures for info in infos if info.temperatures]
    common = tuple(t for t in bound[0] if all(t in each for each in bound)) if bound else ()
    if bound and not common:
        got = " and ".join(", ".join(f"{t:g}" for t in each) for each in bound)
        do = "Bake them at one temperature, or take the books that they were baked from."
        raise FidelityError(expected("members", "baked at one temperature", got, where="ensemble", do=do))
    return common


def _name(member: Knowledge) -> str:
    return str(member.book.path) if isinstance(member, StoredKnowledge) else type(member).__name__


def _accuracy(member: Knowledge) -> float | None:
    if isinstance(member, StoredKnowledge):
        teachers = member.teachers
        return teachers[0].accuracy if len(teachers) == 1 else None
    return member.teacher.accuracy if isinstance(member, LiveKnowledge) else None


def check_same(books: Sequence[StoredKnowledge]) -> None:
    """Refuse books that are not about the same samples, views and classes, naming what differs."""
    for other in books[1:]:
        mine, theirs = books[0].book, other.book
        one, two = mine.plan.identity(), theirs.plan.identity()
        parts = ("task", "n_samples", "data", "class_names", "masked_classes", "keys_digest")
        found = [_first_difference(part, one[part], two[part]) for part in parts if one[part] != two[part]]
        views, more = dict(one["views"]), dict(two["views"])
        for recipe in (views, more):
            recipe.pop("n_views", None)  # the fewest count
        if views != more:
            found.append(_first_difference("views", views, more))
        if found:
            raise BookMismatchError(
                f"Expected the books of an ensemble to be about the same data, views and classes, got {mine.path} and "
                f"{theirs.path} with other {'; '.join(found)}. Make both from one data set with one recipe of views."
            )


def _first_difference(part: str, one: Any, two: Any) -> str:
    if isinstance(one, dict) and isinstance(two, dict):
        key = next(key for key in sorted({*one, *two}) if one.get(key) != two.get(key))
        return _first_difference(f"{part} {key}", one.get(key), two.get(key))
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        place = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
        return f"{part}[{place}] ({one[place]!r} and {two[place]!r})"
    shown = [f"{len(value)} entries" if isinstance(value, list | dict) else repr(value) for value in (one, two)]
    return f"{part} ({shown[0]} and {shown[1]})"
