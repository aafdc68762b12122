"""What a growth may change in the plan of a book, and what it has to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import _layout
from bookkd.book._comparison import difference, mismatch
from bookkd.book.plan import Plan
from bookkd.book.reader import Book
from bookkd.core.errors import BookMismatchError, ConfigError, expected

__all__ = ["check_growth", "grown_plan"]

_DO = "Grow it with what it was made of and more, or make a new book."


def check_growth(book: Book, plan: Plan, names: Mapping[str, str], keys: npt.NDArray[np.uint64] | None = None) -> None:
    """Refuse a plan that is not the book's with more views, more samples, more constants or fields of further teachers.

    Args:
        book: The newest edition.
        plan: The larger plan; what its samples and views are, `data` and `views`, is for the caller to prove.
        names: Field of the book -> its name in `plan`.
        keys: Keys of the larger book.

    Raises:
        BookMismatchError: naming what differs.
        ConfigError: for further teachers together with more views or samples.
    """
    old = book.plan
    where = str(book.path)
    missing = [name for name in names.values() if name not in plan.fields]
    if missing:
        raise BookMismatchError(
            expected("fields", f"with {', '.join(missing[:4])}", sorted(plan.fields), where=where, do=_DO)
        )
    fewer = [
        f"{entry} {getattr(old, entry)} (this run has {getattr(plan, entry)})"
        for entry in ("n_samples", "n_views")
        if getattr(plan, entry) < getattr(old, entry)
    ]
    fresh = len(plan.fields) > len(set(names.values()))
    if fresh and not fewer and (plan.n_samples, plan.n_views) != (old.n_samples, old.n_views):
        wish = f"the book's {old.n_samples} samples and {old.n_views} views for a further teacher"
        got = f"{plan.n_samples} samples and {plan.n_views} views"
        raise ConfigError(
            expected("growth", wish, got, where=where, do="Grow views or samples first, with the book's own teachers.")
        )
    _check_constants(book, plan, fresh=fresh)
    same = replace(
        plan,
        n_samples=old.n_samples,
        n_views=old.n_views,
        data=old.data if plan.n_samples != old.n_samples else plan.data,
        views=_as_many(plan.views, old.views),
        teachers=plan.teachers[: len(old.teachers)],
        fields={name: plan.fields[new] for name, new in names.items()},
        unit_rows=None,
        keys_digest=old.keys_digest,
        constants=old.constants,
    )
    found = fewer + difference(old, same, versions=False)
    if found:
        raise mismatch(found, f"{book.path} to grow to a book of this run, but it was made with", _DO)
    _check_keys(book, plan, keys)


def _check_constants(book: Book, plan: Plan, *, fresh: bool) -> None:
    """Refuse a plan without a constant of the book; with further teachers those of the book may have other names."""
    for name, entry in book.plan.constants.items():
        other = plan.constants.get(name)
        if other != entry and not (fresh and entry in plan.constants.values()):
            got, wish = (
                "none" if each is None else f"{each.dtype} {list(each.shape)} {each.digest}" for each in (other, entry)
            )
            raise BookMismatchError(
                f"Expected `constants[{name}]` to be the book's, {wish}, got {got} ({book.path}). {_DO}"
            )


def _as_many(views: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with the number of views of another one."""
    return {**views, "n_views": old["n_views"]} if "n_views" in views and "n_views" in old else dict(views)


def _check_keys(book: Book, plan: Plan, keys: npt.NDArray[np.uint64] | None) -> None:
    own = book.keys
    if (own is None) != (keys is None):
        wish = "absent, as in the book" if own is None else "given, as in the book"
        raise BookMismatchError(expected("keys", wish, "keys" if own is None else None, where=str(book.path), do=_DO))
    if own is None or keys is None:
        return
    first = np.asarray(keys)[: len(own)].astype(np.uint64)
    if not np.array_equal(first, own):
        place = int(np.flatnonzero(first != own)[0])
        wish = f"the book's for its {len(own)} samples"
        raise BookMismatchError(
            expected(
                "keys",
                wish,
                f"{int(first[place])} for sample {place}, the book's is {int(own[place])}",
                where=str(book.path),
                do=_DO,
            )
        )


def grown_plan(old: Plan, plan: Plan) -> Plan:
    """Return the larger plan with rows of units and blocks that the book's shards go with.

    Blocks stay. Units stay, too, but where one unit was all samples: it becomes the one that a book of so many samples would
    have, a multiple of the blocks that covers the old one.

    >>> from bookkd.book import Dense, FieldPlan
    >>> small = Plan(60, 1, {"logits": FieldPlan((10,), Dense())}).resolved()
    >>> (small.unit_rows, small.block_rows), grown_plan(small, replace(small, n_samples=96, unit_rows=None)).unit_rows
    ((60, 32), 96)
    """
    unit, block = old.unit_rows or old.n_samples, old.block_rows or 1
    if plan.n_samples > old.n_samples and unit >= old.n_samples:
        inputs = sum(entry.input_bytes for entry in plan.fields.values())
        chosen = _layout.unit_rows_for(plan.record_bytes, inputs, plan.n_samples)
        if plan.unit_rows is not None and plan.unit_rows % block == 0:
            chosen = plan.unit_rows
        chosen = min(chosen, block * (_layout.MAX_HASHES // max(1, len(plan.stored))))
        unit = min(plan.n_samples, max(chosen - chosen % block, -(-old.n_samples // block) * block))
    return replace(plan, unit_rows=unit, block_rows=block)
