"""Two plans compared: may a run go on with a book, and if not, what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bookkd.book.plan import VERSIONS, Plan

__all__ = ["difference"]


def difference(book: Plan, run: Plan, *, versions: bool = True) -> list[str]:
    """Compare the plan of a book with that of a run.

    Args:
        book: The book's plan.
        run: The run's plan.
        versions: If true, the library versions in `views` count too, the processor apart: the records of one book
            come from one set of libraries, since the book names one.

    Returns:
        One text per difference, such as "teachers[0].digest 'a1' (this run has 'b2')"; empty for the same book.
        `unit_rows` and `block_rows` count only where `run` states them.
    """
    mine, yours = book.identity(), run.identity()
    for entry in ("unit_rows", "block_rows"):
        if yours[entry] is None:
            del mine[entry], yours[entry]
    if versions:
        mine["views"] |= _libraries(book.views)
        yours["views"] |= _libraries(run.views)
    return list(_differences(mine, yours, ""))


def _libraries(views: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry `versions` of a recipe of views, if it has one, without the processor."""
    found = views.get(VERSIONS)
    if isinstance(found, Mapping):
        return {VERSIONS: {key: value for key, value in found.items() if key != "processor"}}
    return {} if found is None else {VERSIONS: found}


def _differences(mine: Any, yours: Any, path: str) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(yours, dict):
        for key in sorted({*mine, *yours}):
            inner = f"{path}.{key}" if path else str(key)
            if key not in mine:
                yield f"no {inner} (this run has {_short(yours[key])})"
            elif key not in yours:
                yield f"{inner} {_short(mine[key])} (this run has none)"
            else:
                yield from _differences(mine[key], yours[key], inner)
    elif isinstance(mine, list) and isinstance(yours, list) and len(mine) == len(yours) and len(mine) <= 64:
        for index, (left, right) in enumerate(zip(mine, yours, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif mine != yours or type(mine) is not type(yours):
        yield f"{path} {_short(mine)} (this run has {_short(yours)})"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
