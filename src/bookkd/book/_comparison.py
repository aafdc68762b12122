"""Two plans compared: may a run go on with a book, and if not, what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bookkd.book.plan import VERSIONS, Plan
from bookkd.core.errors import BookMismatchError

__all__ = ["difference", "grows", "mismatch"]


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
    mine, yours = ({"constants": {}, **plan.identity()} for plan in (book, run))
    for entry in ("unit_rows", "block_rows"):
        if yours[entry] is None:
            del mine[entry], yours[entry]
    if versions:
        mine["views"] |= _libraries(book.views)
        yours["views"] |= _libraries(run.views)
    return list(_differences(mine, yours, ""))


def grows(book: Plan, run: Plan) -> bool:
    """Say whether a run asks for what a book has and more of it: more views, more samples, or a further teacher.

    What the further samples are is not looked at: whoever grows the book does.
    """
    mine = [(teacher.digest, teacher.mode) for teacher in book.teachers]
    theirs = [(teacher.digest, teacher.mode) for teacher in run.teachers]
    if set(theirs) != set(mine):
        more = not set(theirs) & set(mine) or theirs[: len(mine)] == mine
        return more and (book.n_samples, book.n_views) == (run.n_samples, run.n_views)
    larger = replace(
        run, n_samples=book.n_samples, n_views=book.n_views, data=book.data, unit_rows=None, keys_digest=None
    )
    smaller = replace(book, keys_digest=None)
    asked = [entry for entry in difference(smaller, larger, versions=False) if not entry.startswith(_GROWING)]
    return not asked and run.n_samples >= book.n_samples and run.n_views >= book.n_views


_GROWING = ("views.n_views ", "views.mix.pool ")


def mismatch(differences: list[str], wish: str, do: str) -> BookMismatchError:
    """Return the error that names at most four differences and counts the others."""
    more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
    return BookMismatchError(f"Expected {wish} {'; '.join(differences[:4])}{more}. {do}")


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
