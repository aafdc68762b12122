"""A part of a book as a book of its own: some classes, samples, views or teachers, copied as they are stored."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book._carried import Carried
from bookkd.book.codecs.base import Array
from bookkd.book.copying import check_apart, pending_units
from bookkd.book.plan import FieldPlan, Plan, Unit, is_logits
from bookkd.book.reader import Book
from bookkd.book.teacher_info import TeacherInfo
from bookkd.book.writer import BookWriter
from bookkd.core import jsonio
from bookkd.core.check import unique
from bookkd.core.errors import ConfigError, DataError, FidelityError, TeacherOutputError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.names import choose

__all__ = ["extract"]

Progress = Callable[[int, int], None]
Ids = npt.NDArray[np.int64]


def extract(
    path: str | Path,
    book: Book,
    *,
    classes: Sequence[str | int] | None = None,
    samples: npt.ArrayLike | slice | None = None,
    views: npt.ArrayLike | slice | None = None,
    teachers: Sequence[str | int] | None = None,
    data: Mapping[str, Any] | None = None,
    constants: Mapping[str, npt.ArrayLike] | None = None,
    progress: Progress | None = None,
) -> Book:
    """Write some classes, samples, views or teachers of a book as a book of its own; no record is encoded anew.

    Of logits z over all classes, the chosen ones alone are what the teacher says *given* that it is one of them: softmax over
    them is p(c | chosen) = p(c) / sum of p over the chosen classes, at every temperature its own. How sure the teacher was
    that it is one of them at all is not kept. What was class `classes[j]` is class j from now on; the plan notes it in `data`, under
    `extracted`.

    Samples and views are numbered anew. Only where they are the first ones can their views be drawn again, since a draw is a
    function of the numbers; others are for reading, each sample under its old number as its key, where it had no key.

    Args:
        path: Folder of the new book.
        book: The source.
        classes: Names or numbers, in the order of the new book; None for all.
        samples: Numbers in the order of the new book, or a slice; None for all.
        views: Numbers in the order of the new book, or a slice; None for all.
        teachers: Names or places, of a book with each one's logits; one alone is a book of its `logits`. None for all.
        data: Fingerprint of the data set that has these samples and classes alone (`bookkd.zoo.fingerprint`), to learn from the
            new book with; where None, the plan says of which data set it is a part.
        constants: Those of the part; None for the book's, of the teachers that are kept, under the names that they have there.
        progress: Called with (records done, records in all).

    Returns:
        The new book, open.

    Raises:
        DataError: for a sample or view that the book has not.
        UnknownNameError: for a class or teacher that it has not.
        FidelityError: for some classes of logits that keep only the largest ones.
        ConfigError: for fewer than two classes, for repeats, for teachers of a book that keeps them together; if nothing is chosen;
            for some classes of a book with a constant that may have a number for each class, where `constants` is None.
        TeacherOutputError: if a record gives none of the chosen classes any probability.
        BookMismatchError: if the folder holds another book, or one begun from other records.
        StorageError: if the disk is full; running it again goes on.

    >>> import tempfile
    >>> from bookkd.book import Dense
    >>> plan = Plan(4, 2, {"logits": FieldPlan((3,), Dense())}, class_names=("cat", "dog", "owl"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BookWriter(folder + "/a", plan) as writer:
    ...         for view in range(2):
    ...             writer.write_rows(view, 0, {"logits": np.eye(4, 3)})
    ...         book = writer.finish()
    ...     part = extract(folder + "/b", book, classes=["owl", "cat"], samples=slice(0, 3), views=[0])
    ...     part.plan.class_names, part.read([0, 2], [0])["logits"].tolist()
    (('owl', 'cat'), [[0.0, 1.0], [1.0, 0.0]])
    """
    check_apart(path, book)
    if classes is samples is views is teachers is None:
        raise ConfigError(expected("extract", "given classes, samples, views or teachers", "none of them"))
    chosen = None if classes is None else _classes(book, classes)
    rows, taken = _numbers(samples, book.n_samples, "samples"), _numbers(views, book.n_views, "views")
    fields, places = _fields(book, teachers)
    plan = _part(book, fields, places, chosen, rows, taken, data)
    if constants is None:
        constants = _constants(book, None if teachers is None else places, chosen)
    whole = chosen is None and len(rows) == book.n_samples and _first(rows)
    carried = Carried(book, fields, taken.tolist() if whole else None)
    keys = book.keys[rows] if book.keys is not None else None if _first(rows) else rows.astype(np.uint64)
    started = time.perf_counter()
    with BookWriter(path, plan, keys=keys, constants=constants) as writer:
        for unit in pending_units(writer, progress):
            here, view = rows[unit.start : unit.stop], int(taken[unit.view])
            parts = _copied(book, fields, chosen, here, view)
            if chosen is not None and book.plan.masked_classes:
                _check_said(plan, parts, unit)
            writer.copy(unit, parts, fidelity=carried.of(view, unit.start, unit.stop) if whole else None)
        cost = {
            **book.cost,
            "extracted_from": book.content_digest,
            "extract_seconds": round(time.perf_counter() - started, 3),
        }
        fidelity = {fields[name]: figures for name, figures in book.fidelity.items() if name in fields} if whole else {}
        return writer.finish(cost, fidelity=fidelity)


def _classes(book: Book, wanted: Sequence[str | int]) -> Ids:
    """Return the numbers of classes, and refuse what cannot be cut."""
    where = str(book.path)
    names = book.plan.class_names
    widths = {entry.shape[0] for name, entry in book.fields.items() if is_logits(name) and entry.shape}
    if len(widths) != 1:
        raise ConfigError(
            expected("classes", "of a book with logits over the same classes", sorted(book.fields), where=where)
        )
    width = widths.pop()
    found = []
    for each in wanted:
        if isinstance(each, str):
            found.append(names.index(choose(each, names, "class", where=where)))
        elif isinstance(each, bool) or not 0 <= each < width:
            raise DataError(expected("classes", f"from 0 to {width - 1}", each, where=where))
        else:
            found.append(int(each))
    unique(found, "classes", where=where)
    if len(found) < 2:
        raise ConfigError(expected("classes", "at least two", len(found), where=where))
    for name, entry in book.fields.items():
        if is_logits(name) and entry.positions is not None:
            do = "Extract samples, views or teachers."
            raise FidelityError(
                expected(f"records of {name}", "of one array each, to take some classes", "sequences", do=do)
            )
        if is_logits(name) and entry.codec.name not in _PARTS:
            wish = f"{' or '.join(_PARTS)}, to take some classes"
            do = "Make the book with a codec that keeps every class on its own."
            raise FidelityError(expected(f"codec of {name}", wish, entry.codec.name, where=where, do=do))
    return np.array(found, dtype=np.int64)


_PARTS = {"dense": "values", "int8": "codes"}
"""Codec -> its part that has one number a class; its other parts are about the whole record."""


def _numbers(wanted: npt.ArrayLike | slice | None, count: int, what: str) -> Ids:
    if wanted is None:
        return np.arange(count)
    if isinstance(wanted, slice):
        begin, stop = wanted.start or 0, count if wanted.stop is None else wanted.stop
        if not 0 <= begin < stop <= count or wanted.step not in (None, 1):
            raise DataError(expected(what, f"a range within 0:{count}", f"{wanted.start}:{wanted.stop}"))
        return np.arange(begin, stop)
    found = np.atleast_1d(np.asarray(wanted))
    if found.ndim != 1 or found.dtype.kind not in "ui" or not len(found):
        raise DataError(expected(what, "whole numbers in one row", f"{found.dtype} of shape {found.shape}"))
    wrong = found[(found < 0) | (found >= count)]
    if len(wrong):
        raise DataError(expected(what, f"from 0 to {count - 1}", int(wrong[0])))
    values, times = np.unique(found, return_counts=True)
    if len(values) != len(found):
        raise ConfigError(expected(what, "without repeats", f"{int(values[times > 1][0])} twice"))
    return found.astype(np.int64)


def _first(numbers: Ids) -> bool:
    return bool((numbers == np.arange(len(numbers))).all())


def _fields(book: Book, teachers: Sequence[str | int] | None) -> tuple[dict[str, str], list[int]]:
    """Return field of the source -> name in the new book, and the places of the teachers that are kept."""
    known = book.plan.teachers
    if teachers is None:
        return {name: name for name in book.fields}, list(range(len(known)))
    where, names = str(book.path), [teacher.name for teacher in known]
    members = [f"members/{place}/{LOGITS}" for place in range(len(known))]
    others = sorted(set(book.fields) - set(members) - {name for name in book.fields if name.startswith("probe/")})
    if not members or others or any(name not in book.fields for name in members):
        wish = "of a book that keeps each one's logits, and no more of them"
        raise ConfigError(expected("teachers", wish, sorted(book.fields), where=where))
    places = []
    for each in teachers:
        if isinstance(each, str):
            choose(each, names, "teacher", where=where)
            if names.count(each) > 1:
                same = [place for place, name in enumerate(names) if name == each]
                raise ConfigError(
                    expected("teachers", f"places where a name is there twice, {same}", each, where=where)
                )
            places.append(names.index(each))
        elif not isinstance(each, bool) and 0 <= each < len(known):
            places.append(each)
        else:
            raise ConfigError(expected("teachers", f"places from 0 to {len(known) - 1}", each, where=where))
    unique(places, "teachers", where=where)
    if not places:
        raise ConfigError(expected("teachers", "at least one", 0, where=where))
    kept = {members[place]: f"members/{new}/{LOGITS}" for new, place in enumerate(places)}
    if len(places) == 1:
        kept = {members[places[0]]: LOGITS}
    return kept | {name: name for name in book.fields if name.startswith("probe/")}, places


def _constants(book: Book, places: Sequence[int] | None, classes: Ids | None) -> dict[str, Array]:
    """Return the constants of a part: those that are of one teacher (`members/<place>/...`) go with it."""
    found: dict[str, str] = {}
    for name, entry in book.plan.constants.items():
        new: str | None = name
        if places is not None and (member := _MEMBER.match(name)):
            new = None if int(member[1]) not in places else name[member.end() :]
            if new is not None and len(places) > 1:
                new = f"members/{places.index(int(member[1]))}/{new}"
        if new is None:
            continue
        # Which axis is that of the classes, nothing says.
        widths = {each.shape[0] for field, each in book.fields.items() if is_logits(field) and each.shape}
        if classes is not None and widths.intersection(entry.shape):
            wish, got = (
                "said anew, for some classes",
                f"{name} of shape {list(entry.shape)}, which may have one a class",
            )
            do = "From Python, give those of the part: extract(..., constants={name: array})."
            raise ConfigError(expected("constants", wish, got, where=str(book.path), do=do))
        if new in found:
            wish = "of other names in a book of one teacher"
            raise ConfigError(expected("constants", wish, f"{found[new]} and {name}", where=str(book.path)))
        found[new] = name
    return {new: book.constants[name] for new, name in found.items()}


_MEMBER = re.compile("members/([0-9]{1,9})/")


def _of_part(teacher: TeacherInfo, classes: Ids | None) -> TeacherInfo:
    """Return what is known of a teacher; over fewer classes its accuracy is another one."""
    return teacher if classes is None else replace(teacher, accuracy=None, split=None)


def _part(
    book: Book,
    fields: Mapping[str, str],
    places: Sequence[int],
    classes: Ids | None,
    rows: Ids,
    views: Ids,
    data: Mapping[str, Any] | None,
) -> Plan:
    old = book.plan
    recipe = dict(old.views)
    if "n_views" in recipe:
        recipe["n_views"] = len(views)
    # Such a recipe draws other views than the records are about: whoever compares recipes is told.
    if not _first(rows):
        recipe["renumbered_samples"] = jsonio.digest(rows.tolist())
    if not _first(views):
        recipe["renumbered_views"] = views.tolist()
    changed = classes is not None or len(rows) != book.n_samples or not _first(rows)
    return replace(
        old,
        n_samples=len(rows),
        n_views=len(views),
        fields={new: _narrow(new, book.fields[name], classes) for name, new in fields.items()},
        teachers=tuple(_of_part(old.teachers[place], classes) for place in places),
        data=_data(book, classes, rows, data) if changed else old.data,
        views=recipe,
        class_names=old.class_names
        if classes is None
        else tuple(old.class_names[index] for index in classes if old.class_names),
        masked_classes=old.masked_classes
        if classes is None
        else tuple(new for new, index in enumerate(classes.tolist()) if index in old.masked_classes),
        unit_rows=min(old.unit_rows or book.n_samples, len(rows)),
        sources=(book.content_digest,),
        choice=old.choice if classes is None else {},  # of logits over fewer classes nothing was measured
        keys_digest=None,
        constants={},
    )


def _narrow(name: str, entry: FieldPlan, classes: Ids | None) -> FieldPlan:
    return replace(entry, shape=(len(classes), *entry.shape[1:])) if classes is not None and is_logits(name) else entry


def _data(book: Book, classes: Ids | None, rows: Ids, data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the plan says of the data: a fingerprint that was given, or whose part they are; and how they were chosen."""
    old = dict(book.plan.data)
    extracted: dict[str, Any] = {"from": book.content_digest, "n_samples": len(rows)}
    if _first(rows) or (np.diff(rows) == 1).all():
        extracted["samples"] = f"{int(rows[0])}:{int(rows[-1]) + 1}"
    if classes is not None:
        extracted["classes"] = classes.tolist()
    if data is not None:
        return {**data, "extracted": extracted}
    name = {"name": old.pop("name")} if "name" in old else {}
    old.pop("extracted", None)
    return {**name, "part_of": old, "samples_digest": jsonio.digest(rows.tolist()), "extracted": extracted}


def _copied(book: Book, fields: Mapping[str, str], classes: Ids | None, rows: Ids, view: int) -> dict[str, Array]:
    found = {}
    for name, new in fields.items():
        for part, array in book.gather(rows, view, [name]).items():
            if classes is not None and is_logits(name) and part == f"{name}/{_PARTS[book.fields[name].codec.name]}":
                array = np.ascontiguousarray(array[:, classes])
            found[new + part.removeprefix(name)] = array
    return found


def _check_said(plan: Plan, parts: Mapping[str, Array], unit: Unit) -> None:
    """Refuse records whose chosen classes are all masked: they have no softmax."""
    for name, entry in plan.fields.items():
        if is_logits(name):
            said = {part: parts[f"{name}/{part}"] for part in entry.parts}
            decoded = np.asarray(entry.decode(said))
            silent = np.isneginf(decoded).all(axis=1).reshape(len(decoded), -1).any(axis=1)
            if silent.any():
                place = unit.start + int(np.flatnonzero(silent)[0])
                wish, where = (
                    "finite for one of the chosen classes at least",
                    f"sample {place} of the part, view {unit.view}",
                )
                raise TeacherOutputError(expected(name, wish, "-inf for all", where=where, do="Choose other classes."))
