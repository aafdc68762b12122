"""The lineage of a student: who its teachers are, and what a file of weights says of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bookkd.book import TeacherInfo
from bookkd.core.errors import BookFormatError
from bookkd.core.jsonio import parse
from bookkd.core.protocols import Knowledge
from bookkd.knowledge.ensemble import books_of, teachers_of

__all__ = ["CLASSES", "NOTES", "classes_of_weights", "lineage_of_weights", "notes_of_weights", "teachers_behind"]

NOTES = "bookkd"
"""The one key of the metadata of a student's weights: JSON with `method`, `epoch`, `lineage` and `classes`.

One, since safetensors does not fix the order of several, and equal runs are to leave equal files.
"""
CLASSES = "classes"
"""Key of the names of the classes in what `learn` notes beside weights, in the order of the outputs."""
_LIMIT = 2**20


def teachers_behind(knowledge: Knowledge | None) -> tuple[TeacherInfo, ...]:
    """Return the teachers that a knowledge speaks for: those of its books, then the live ones."""
    stored = [teacher for book in books_of(knowledge) for teacher in book.teachers]
    return (*stored, *(live.teacher.info for live in teachers_of(knowledge)))


def notes_of_weights(path: str | Path) -> dict[str, Any]:
    """Return what `learn` noted in a safetensors file: plain values; none where there are none, or damaged ones."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(NOTES, "")
        return parse(text.encode(), str(path), limit=_LIMIT)
    except (SafetensorError, BookFormatError, OSError):
        return {}


def classes_of_weights(path: str | Path) -> tuple[str, ...]:
    """Return the classes that a safetensors file of `learn` says its outputs are of, in their order; none where it does not say."""
    found = notes_of_weights(path).get(CLASSES)
    whole = isinstance(found, list) and all(isinstance(each, str) for each in found)
    return tuple(found) if whole and found else ()


def lineage_of_weights(path: str | Path) -> dict[str, Any] | None:
    """Return the lineage that a safetensors file carries; None where it carries none, or a damaged one.

    Plain values for people: nothing is done with them but showing and passing on.
    """
    found = notes_of_weights(path).get("lineage")
    whole = isinstance(found, dict) and all(isinstance(found.get(key), list) for key in ("parents", "ancestors"))
    return found if whole else None
