"""Several books as one: every teacher's records side by side, copied to the bit; or baked into one processed target."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.book import Book, BookWriter, Codec, Dense, FieldPlan, Plan, Unit
from bookkd.book.copying import pending_units
from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import LABEL, LOGITS, PROBE_HASH, PROBE_PROJECTIONS, SAMPLE, VIEW
from bookkd.core.jsonio import digest
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import Ensemble, StoredKnowledge, check_same, member_fields
from bookkd.losses import FullTarget
from bookkd.objectives import FieldTransform

__all__ = ["bake", "merge", "merged_plan"]

_PROBES = (PROBE_HASH, PROBE_PROJECTIONS)
_CHUNK = 4096

Progress = Callable[[int, int], None]


def merge(path: str | Path, books: Sequence[Book], *, progress: Progress | None = None) -> Book:
    """Write one book of all the books' teachers, each record copied as it is stored.

    The field of teacher i is `members/<i>/logits`, in the order of the books, its constants are `members/<i>/<name>`; what the
    codecs lost is taken over from them. Interrupted, it is gone on with. The books themselves stay as they are.

    Args:
        path: Folder of the new book.
        books: At least two, about the same data, views and classes; of those with more views, the first ones.
        progress: Called with (records done, records in all).

    Returns:
        The new book, open.

    Raises:
        BookMismatchError: naming what differs between two of the books; if the folder holds another book.
        ConfigError: if a book holds more than logits and probes, or is baked.
        StorageError: if the disk is full; running it again goes on.
    """
    if len(books) < 2:
        raise ConfigError(expected("books", "at least two", len(books), where="merge"))
    check_same([StoredKnowledge(book) for book in books])
    sources = sources_of([book.plan for book in books])
    started = time.perf_counter()
    plans = [book.plan for book in books]
    plan = replace(merged_plan(plans), sources=_digests(books))
    constants = {name: books[place].constants[old] for name, (place, old) in constants_of(plans).items()}
    with BookWriter(path, plan, keys=books[0].keys, constants=constants) as writer:
        for unit in pending_units(writer, progress):
            writer.copy(unit, _copied(unit, books, sources))
        fidelity = {
            name: books[place].fidelity[old] for name, (place, old) in sources.items() if old in books[place].fidelity
        }
        return writer.finish(_cost(books, started), fidelity=fidelity)


def _digests(books: Sequence[Book]) -> tuple[str, ...]:
    return tuple(book.content_digest for book in books)


def merged_plan(plans: Sequence[Plan]) -> Plan:
    """Return the plan of one book of all the plans' teachers.

    Raises:
        ConfigError: if a plan has more than logits and probes, or is of a baked book; for constants of several teachers together.
    """
    return replace(
        plans[0],
        n_views=min(plan.n_views for plan in plans),
        fields={name: plans[place].fields[old] for name, (place, old) in sources_of(plans).items()},
        teachers=tuple(teacher for plan in plans for teacher in plan.teachers),
        choice={},  # each part's own is in its fidelity
        constants={name: plans[place].constants[old] for name, (place, old) in constants_of(plans).items()},
    )


def sources_of(plans: Sequence[Plan]) -> dict[str, tuple[int, str]]:
    """Return field of the merged book -> (number of the plan, its field there); the probes are the first plan's."""
    found = [(place, name) for place, plan in enumerate(plans) for name in _logits_of(plan)]
    fields = {f"members/{member}/{LOGITS}": source for member, source in enumerate(found)}
    return fields | {name: (0, name) for name in _PROBES if name in plans[0].fields}


def constants_of(plans: Sequence[Plan]) -> dict[str, tuple[int, str]]:
    """Return constant of the merged book -> (number of the plan, its name there).

    Raises:
        ConfigError: for one of a plan of several teachers that does not say whose it is.
    """
    found = {}
    for member, (place, field) in enumerate(
        (place, name) for place, plan in enumerate(plans) for name in _logits_of(plan)
    ):
        own = field.removesuffix(LOGITS)  # members/<j>/, or nothing
        for name in plans[place].constants:
            if name.startswith(own):
                found[f"members/{member}/{name.removeprefix(own)}"] = (place, name)
    for place, plan in enumerate(plans):
        nobodys = sorted(set(plan.constants) - {name for other, name in found.values() if other == place})
        if nobodys:
            wish = "named members/<i>/..., in a book of several teachers to merge"
            raise ConfigError(expected("constants", wish, nobodys[0], do="Merge the books of each teacher alone."))
    return found


def _logits_of(plan: Plan) -> list[str]:
    """Return the fields that hold a teacher's logits, and refuse a plan that has more."""
    members = member_fields(plan) or [LOGITS]
    teachers = ", ".join(teacher.name for teacher in plan.teachers) or "a producer without a name"
    others = sorted(set(plan.fields) - set(members) - set(_PROBES))
    if others or any(name not in plan.fields for name in members):
        do = "Merging is for ensembles, whose members give logits; learn from what is inside of one teacher with its own book."
        got = ", ".join(others) or ", ".join(sorted(plan.fields))
        raise ConfigError(expected("books", "of logits and probes alone", got, where=f"book of {teachers}", do=do))
    if any(plan.fields[name].baked is not None for name in members):
        do = "Merge the books that it was baked from."
        raise ConfigError(expected("books", "of what teachers said", "a baked one", where=f"book of {teachers}", do=do))
    return members


def _copied(unit: Unit, books: Sequence[Book], sources: Mapping[str, tuple[int, str]]) -> dict[str, npt.NDArray[Any]]:
    rows = np.arange(unit.start, unit.stop)
    parts = {}
    for name, (place, old) in sources.items():
        for part, array in books[place].gather(rows, unit.view, [old]).items():
            parts[name + part.removeprefix(old)] = array
    return parts


def bake(
    path: str | Path,
    books: Sequence[Book],
    *,
    transforms: Sequence[FieldTransform],
    temperature: float,
    codec: Codec | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> Book:
    """Write the processed target of one or several books as a book of its own: smaller, and fixed.

    With b the combined, transformed distribution at T, a record holds T log b, so that softmax(logits / T) = b. At any other
    temperature it is refused. The plan says how it was made, the fidelity what the codec lost at T. Constants stay behind.

    Args:
        path: Folder of the new book.
        books: At least one, about the same data, views and classes.
        transforms: Applied in this order, such as `methods.BookKD().teacher_transforms()`.
        temperature: T, above 0.
        codec: How the result becomes bytes; float16 where None.
        labels: int64 [samples], where a transform looks at labels.
        progress: Called with (records done, records in all).

    Returns:
        The new book, open.

    Raises:
        BookMismatchError: naming what differs between two of the books; if the folder holds another book.
        ConfigError: if there is no book, or one of another task than classification, whose distribution is another; if a
            transform leaves classes without any probability, which no record can hold.
        FidelityError: if a book keeps only some classes.
        DataError: if there are not as many labels as samples.
    """
    _check_bake(books, transforms, temperature, codec, labels)
    first = books[0]
    # Also around one book: it refuses sparse ones.
    knowledge = Ensemble([StoredKnowledge(book) for book in books])
    plan = _baked_plan(books, knowledge, transforms, temperature, codec or Dense(), labels)
    probes = {name: (first, name) for name in _PROBES if name in first.fields}
    started = time.perf_counter()
    with BookWriter(path, plan, keys=first.keys) as writer:
        for unit in pending_units(writer, progress):
            for start in range(unit.start, unit.stop, _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, unit.stop))
                arrays: dict[str, npt.NDArray[Any]] = {
                    LOGITS: _baked(knowledge, rows, unit.view, transforms, temperature, labels)
                }
                for name in probes:
                    arrays[name] = np.asarray(first.read(rows, unit.view, [name])[name])
                writer.write_rows(unit.view, start, arrays)
        return writer.finish(_cost(books, started))


def _check_bake(
    books: Sequence[Book],
    transforms: Sequence[FieldTransform],
    temperature: float,
    codec: Codec | None,
    labels: npt.NDArray[np.int64] | None,
) -> None:
    """Refuse what cannot be baked; arguments as `bake`."""
    positive(temperature, "temperature", where="bake")
    zeros = [type(each).__name__ for each in transforms if each.leaves_zeros]
    if zeros:
        do = "Learn from the books themselves, or take a share below 1 with rank 1."
        wish, got = "ones that leave every class some probability", f"{zeros[0]}, which does not"
        raise ConfigError(expected("transforms", wish, got, where="bake", do=do))
    if not books:
        raise ConfigError(expected("books", "at least one", 0, where="bake"))
    for book in books:
        _logits_of(book.plan)  # refuses a baked one
    if codec is not None:
        codec.check_temperature(temperature)
    first = books[0]
    if first.plan.task != "classification":
        do = "Learn from the books themselves: they are combined at read time."
        raise ConfigError(expected("books", "of classification, to bake", first.plan.task, where="bake", do=do))
    if labels is not None and len(labels) != first.n_samples:
        raise DataError(expected("labels", f"one for each of {first.n_samples} samples", len(labels), where="bake"))


def _baked_plan(
    books: Sequence[Book],
    knowledge: Knowledge,
    transforms: Sequence[FieldTransform],
    temperature: float,
    codec: Codec,
    labels: npt.NDArray[np.int64] | None,
) -> Plan:
    first = books[0]
    how = [{"name": type(change).__name__, **vars(change)} for change in transforms]
    # An infinite bound is no JSON number.
    how = [{key: None if value == float("inf") else value for key, value in entry.items()} for entry in how]
    baked: dict[str, Any] = {"temperature": float(temperature), "transforms": how}
    baked["books"] = list(_digests(books))
    if labels is not None:
        # Other labels correct other records: they make another book.
        baked["labels"] = digest(np.asarray(labels).tolist())
    fields = {LOGITS: FieldPlan(knowledge.fields[LOGITS].shape, codec, baked)}
    fields |= {name: first.plan.fields[name] for name in _PROBES if name in first.fields}
    return replace(
        first.plan,
        n_views=min(book.n_views for book in books),
        fields=fields,
        teachers=tuple(teacher for book in books for teacher in book.plan.teachers),
        temperatures=(float(temperature),),
        choice={},
        constants={},  # of the teachers, whose word this is no more
        sources=_digests(books),
    )


def _baked(
    knowledge: Knowledge,
    rows: npt.NDArray[np.int64],
    view: int,
    transforms: Sequence[FieldTransform],
    temperature: float,
    labels: npt.NDArray[np.int64] | None,
) -> npt.NDArray[Any]:
    samples = torch.from_numpy(rows)
    batch = {SAMPLE: samples, VIEW: torch.full_like(samples, view)}
    if labels is not None:
        batch[LABEL] = torch.from_numpy(np.asarray(labels, dtype=np.int64)[rows])
    target: FullTarget = knowledge.targets(batch, [LOGITS])[LOGITS]
    for change in transforms:
        target = change.teacher(target, batch)
    log_b = target.log_probabilities(temperature)
    # Centred on the largest, where float16 is finest.
    logits = temperature * (log_b - log_b.amax(-1, keepdim=True))
    return logits.numpy()


def _cost(books: Sequence[Book], started: float) -> dict[str, Any]:
    """Return what the books cost in all, and the merging."""
    own = round(time.perf_counter() - started, 3)
    made = sum(float(book.cost.get("seconds", 0.0)) for book in books)
    return {
        "seconds": round(made + own, 3),
        "merge_seconds": own,
        "teacher_forwards": sum(int(book.cost.get("teacher_forwards", 0)) for book in books),
        "books": [book.content_digest for book in books],
    }
