"""Comparisons that are built from data, students and books alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bookkd.book import Book
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.knowledge import StoredKnowledge, member_fields
from bookkd.methods import BookKD, Method
from bookkd.pipelines.compare.parts import method_choice, sources_of
from bookkd.pipelines.compare.sweep import MethodChoice, Override, Source
from bookkd.pipelines.compare.values import listed
from bookkd.views import differences

__all__ = ["FULL", "PRESETS", "with_preset"]

PRESETS = ("ablation", "orthogonality")
FULL = "full"
"""Override of the ablation that leaves nothing out."""


def with_preset(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a sweep with what a preset adds to it.

    "ablation": BookKD with regularisation on all books together, then each of its four parts left out, then vanilla-kd from all
    teachers and from one, and labels alone. The one is the first book, or of a book of several teachers the largest, and the
    first of equally large ones. `methods` may name one BookKD with other options.

    "orthogonality": distillation x augmentation x architecture, labels alone and distilled. Two `students` are two
    architectures, two `books` two augmentations by one teacher; one of these pairs at least. `methods` may name another pair
    than supervised and vanilla-kd.

    Args:
        name: Name of the preset.
        document: Keys as `sweep_of` takes them.

    Raises:
        UnknownNameError: no such preset.
        ConfigError: if the document has not what the preset needs.
    """
    choose(name, PRESETS, "preset")
    if listed(document.get("overrides")):
        raise ConfigError(expected("overrides", "absent where a preset is given", "some", where=f"preset {name}"))
    build = {"ablation": _ablation, "orthogonality": _orthogonality}[name]
    return {**document, **build(document), "tables": name}


def _books(document: Mapping[str, Any], preset: str) -> list[Source]:
    found = sources_of(document)
    if not found:
        raise ConfigError(expected("books", "at least one", 0, where=f"preset {preset}", do="Pass --books FOLDER."))
    return found


def _ablation(document: Mapping[str, Any]) -> dict[str, Any]:
    books = _books(document, "ablation")
    given = [method_choice(each) for each in listed(document.get("methods"))]
    if len(given) > 1 or any(choice.name != "bookkd" for choice in given):
        got = ", ".join(choice.name for choice in given)
        raise ConfigError(expected("methods", "absent, or bookkd with options", got, where="preset ablation"))
    full = given[0] if given else MethodChoice("bookkd", "regularised")
    paths = tuple(dict.fromkeys(path for source in books for path in source.books))
    test = tuple(dict.fromkeys(path for source in books for path in source.test_books))
    members = tuple(member for source in books for member in source.members)
    together = Source("+".join(source.label for source in books), paths, test_books=test, members=members)
    one = _one_teacher(books[0], len(paths))
    overrides = [Override(FULL)]
    if one is not None:
        overrides.append(Override("minus ensemble", books=one))
    overrides += [Override(name, method=off) for name, off in _left_out(full.build()).items() if off]
    shared = {key: full.options[key] for key in ("temperature", "kd_weight", "ce_weight") if key in full.options}
    overrides.append(Override("vanilla-kd", method={"name": "vanilla-kd", **shared}))
    if one is not None:
        overrides.append(Override("vanilla-kd (one teacher)", method={"name": "vanilla-kd", **shared}, books=one))
    overrides.append(Override("supervised", method={"name": "supervised"}))
    return {"methods": [full], "books": [together], "overrides": overrides}


def _one_teacher(first: Source, n_books: int) -> Source | None:
    """Return one teacher of the ensemble; None where there is no more than one."""
    plan = Book(first.books[0]).plan
    # Books of the test split belong to the teachers one by one only where each source brought its own.
    alone = first.test_books if len(first.books) == 1 else ()
    if not member_fields(plan):
        return Source("first book", first.books[:1], test_books=alone) if n_books > 1 else None
    places = first.members if first.members else range(len(plan.teachers))
    if len(places) < 2 and n_books < 2:
        return None
    known = StoredKnowledge(first.books[0], tuple(places)).teachers
    # The largest, since the most accurate would often be chosen on the split that is reported. Not by name, which two may have.
    largest = max(range(len(known)), key=lambda place: known[place].parameters or 0)
    return Source("one teacher", first.books[:1], test_books=alone, members=(plan.teachers.index(known[largest]),))


def _left_out(full: Method) -> dict[str, dict[str, Any]]:
    """Return options that switch each part off; empty for a part that is off already."""
    parts: dict[str, dict[str, Any]] = {
        "minus regularisation": {"correct": False, "flatten": 0.0, "entropy_low": None, "entropy_high": None},
        # A frozen scalar takes no other options than their defaults.
        "minus entropy scale": {
            "learn_scale": False,
            **{name: getattr(BookKD, name) for name in BookKD(learn_scale=False).idle()},
        },
        "minus label smoothing": {"label_smoothing": 0.0},
    }
    return {
        name: {key: value for key, value in off.items() if getattr(full, key) != value} for name, off in parts.items()
    }


def _orthogonality(document: Mapping[str, Any]) -> dict[str, Any]:
    where = "preset orthogonality"
    books = _books(document, "orthogonality")
    methods = [method_choice(each) for each in listed(document.get("methods")) or ["supervised", "vanilla-kd"]]
    students = listed(document.get("students"))
    if len(methods) != 2:
        got = ", ".join(choice.name for choice in methods)
        raise ConfigError(expected("methods", "one without a teacher and one with", got, where=where))
    counts = (len(students), len(books))
    if max(counts) != 2:
        got = f"{counts[0]} students and {counts[1]} books"
        do = "Two students are two architectures, two books two augmentations."
        raise ConfigError(expected("students and books", "one or two each, two of either", got, where=where, do=do))
    if len(books) == 1:
        return {"methods": methods}
    _check_augmentations(books)
    overrides = [Override(source.label, books=source) for source in books]
    return {"methods": [replace(choice, sources=()) for choice in methods], "overrides": overrides}


def _check_augmentations(books: list[Source]) -> None:
    """Refuse books that do not differ in their views, or differ in their teachers: cells would differ by something else."""
    one, two = (Book(source.books[0]).plan for source in books)
    if not differences(one.views, two.views, ignore=("n_views", "seed")):
        do = "Make the second book with another --views."
        got = "one augmentation in both"
        raise ConfigError(expected("books", "of two augmentations", got, where="preset orthogonality", do=do))
    if [each.digest for each in one.teachers] != [each.digest for each in two.teachers]:
        got = "other teachers in the second"
        raise ConfigError(expected("books", "by the same teachers", got, where="preset orthogonality"))
