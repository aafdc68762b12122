"""Who taught whom, back to the first teacher: plain values in a book's teachers, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bookkd.book.teacher_info import TeacherInfo

__all__ = ["lineage_of", "lineage_tree"]

_NOTED = ("name", "digest", "parameters", "accuracy", "split")
_DEEPEST = 64


def lineage_of(method: Mapping[str, Any], teachers: Sequence[TeacherInfo]) -> dict[str, Any]:
    """Return the lineage of a network that `teachers` taught.

    Args:
        method: `{"name": NAME, **options}`, JSON values.
        teachers: Whom it learnt from; none for labels alone.

    Returns:
        `method`; `parents`, digests of its teachers; `ancestors`, all teachers back to the first, each once, nearest first,
        with name, digest, parameters, accuracy, split, method and parents.

    >>> first = TeacherInfo("resnet56", "aa")
    >>> second = TeacherInfo("resnet20", "bb", lineage=lineage_of({"name": "vanilla-kd"}, [first]))
    >>> [entry["name"] for entry in lineage_of({"name": "vanilla-kd"}, [second])["ancestors"]]
    ['resnet20', 'resnet56']
    """
    ancestors: dict[str, dict[str, Any]] = {}
    for teacher in teachers:
        ancestors.setdefault(teacher.digest, _entry(teacher))
    for teacher in teachers:
        for older in _ancestors(teacher):
            ancestors.setdefault(str(older.get("digest")), dict(older))
    parents = [teacher.digest for teacher in teachers]
    return {"method": dict(method), "parents": parents, "ancestors": list(ancestors.values())}


def lineage_tree(teacher: TeacherInfo) -> Iterator[tuple[int, str]]:
    """Yield (depth, line of text) for a teacher and those that taught it; one that stands twice is followed once.

    >>> first = TeacherInfo("resnet56", "aa", accuracy=0.895, split="test")
    >>> second = TeacherInfo("resnet20", "bb", lineage=lineage_of({"name": "vanilla-kd"}, [first]))
    >>> list(lineage_tree(second))
    [(0, 'resnet20 bb, taught by vanilla-kd'), (1, 'resnet56 aa, 0.8950 on test')]
    """
    known = {str(entry.get("digest")): entry for entry in _ancestors(teacher)}
    seen: set[str] = set()
    waiting: list[tuple[int, Mapping[str, Any]]] = [(0, _entry(teacher))]
    while waiting:
        depth, entry = waiting.pop()
        digest = str(entry.get("digest"))
        again, deep = digest in seen, depth >= _DEEPEST
        seen.add(digest)
        yield depth, _line(entry) + (", as above" if again else ", and further back" if deep else "")
        parents = entry.get("parents")
        if again or deep or not isinstance(parents, list):
            continue
        waiting += [(depth + 1, known.get(str(parent), {"digest": parent})) for parent in reversed(parents)]


def _entry(teacher: TeacherInfo) -> dict[str, Any]:
    known = teacher.lineage or {}
    noted = {name: getattr(teacher, name) for name in _NOTED}
    return {**noted, "method": known.get("method"), "parents": known.get("parents", [])}


def _ancestors(teacher: TeacherInfo) -> list[Mapping[str, Any]]:
    found = (teacher.lineage or {}).get("ancestors", [])
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _line(entry: Mapping[str, Any]) -> str:
    method, accuracy = entry.get("method"), entry.get("accuracy")
    by = f", taught by {method['name']}" if isinstance(method, Mapping) and "name" in method else ""
    known = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
    measured = f", {accuracy:.4f} on {entry.get('split')}" if known else ""
    return f"{entry.get('name') or 'a teacher'} {str(entry.get('digest'))[:16]}{measured}{by}"
