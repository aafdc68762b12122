"""Proof, before anything long starts, that a book is about this data set and these views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book.plan import TOLD
from bookkd.core.errors import BookMismatchError
from bookkd.core.rng import generator
from bookkd.knowledge.stored import StoredKnowledge
from bookkd.views import Pick, Replay, Views, differences
from bookkd.zoo import fingerprint, known_as

__all__ = ["check_alignment", "keys_of", "with_pool_of"]


def with_pool_of(knowledge: StoredKnowledge, views: Views) -> Views:
    """Return mixed views with the partners that the book froze; views that name a pool or mix nothing, as they are."""
    pool = (knowledge.book.plan.views.get("mix") or {}).get("pool")
    return views.with_pool(int(pool)) if pool and views.mix is not None and views.mix.pool is None else views


def keys_of(dataset: Any) -> npt.NDArray[Any] | None:
    """Return the data set's own id of each sample, its attribute `keys` if that holds whole numbers; None without."""
    keys = getattr(dataset, "keys", None)
    found = None if keys is None or callable(keys) else np.asarray(keys)
    return found if found is not None and found.ndim == 1 and found.dtype.kind in "iu" else None


def check_alignment(
    knowledge: StoredKnowledge,
    dataset: Any,
    views: Views,
    *,
    class_names: Sequence[str],
    rows: Sequence[int] | None = None,
    records: int = 64,
    task: str | None = None,
    masked: Sequence[int] | None = None,
    most: int | None = None,
    blank: int | None = None,
    rule: str = "",
) -> None:
    """Refuse a book that was made from other samples or views, or that orders the classes otherwise.

    Args:
        knowledge: The book.
        dataset: What the student will learn from.
        views: How it will see it; as many views as the book has, or fewer.
        class_names: The student's classes, in the order of its logits; compared where the book names its own.
        rows: Book row of each sample, where the data set is a part or another order of the book's; None where it is the same.
        records: Records whose probes are compared with replayed views.
        task: Name of the student's task; None compares none.
        masked: Classes that the student may not say; None compares none.
        most: Positions of the data set's longest sequence, as the teacher has them; None where it is none of sequences.
        blank: The student's class that stands for no symbol; compared where the book notes its own.
        rule: By what the task says how many of its input's frames the teacher keeps; empty where it keeps all.

    Raises:
        BookMismatchError: naming what differs.
        ViewMismatchError: if a replayed view is not the input that the teacher saw.
    """
    book, views = knowledge.book, with_pool_of(knowledge, views)
    found = _other_classes(book.plan.class_names, class_names)
    if task is not None and task != book.plan.task:
        found.append(f"task is {task!r}, the book's is {book.plan.task!r}")
    if masked is not None and tuple(masked) != tuple(book.plan.masked_classes):
        found.append(f"masked classes are {_few(masked)}, the book's are {_few(book.plan.masked_classes)}")
    noted = book.plan.data.get("blank")
    if None not in (blank, noted) and blank != noted:
        found.append(f"the blank is class {blank}, the book's is {noted}")
    if rows is None:
        # Of a text in two kinds of tokens a book is about the teacher's.
        mine = fingerprint(getattr(dataset, "of_book", dataset))
        longest = max((field.positions or 0 for field in book.plan.fields.values()), default=0)
        if most is not None and longest not in (0, most) and mine["samples"] != book.plan.data.get("samples"):
            found.append(
                f"the longest sequence has {most} positions, the book's {longest}, as if cut at another length"
            )
        elif rule and most is not None and longest not in (0, most) and "extracted" not in book.plan.data:
            found.append(
                f"a teacher of {rule} has {most} frames of the longest view, the book {longest}: "
                "give the task the `teacher_subsampling` of the book's"
            )
        found += [
            f"data {known_as(key)} is {mine.get(key)!r}, the book's is {stored!r}"
            for key, stored in book.plan.data.items()
            if key not in TOLD and mine.get(key) != stored  # the name is for people: one content has many
        ]
    if views.n_views > book.n_views:
        found.append(f"{views.n_views} views are asked for, the book has {book.n_views}")
    if not found:
        recipe = views.recipe(book.n_samples)
        found += differences(book.plan.views, recipe, ignore=("n_views",))
    if found:
        raise BookMismatchError(
            f"Expected book {book.path} to be about this data and these views, got: {'; '.join(found)}. "
            "Pass the data set, transform and seed that the book was made with, or make a new book."
        )
    ids = range(book.n_samples) if rows is None else rows
    draws = generator(0, "alignment")
    picks = [
        Pick(int(ids[int(draws.integers(len(ids)))]), int(draws.integers(views.n_views)))
        for _ in range(min(records, len(ids) * views.n_views))
    ]
    replay = Replay(dataset, views, rows=rows, probe_share=1.0)
    knowledge.check(replay.batch(picks))


def _few(classes: Sequence[int]) -> str:
    listed = ", ".join(str(each) for each in classes[:5])
    return f"{listed}, and {len(classes) - 5} more" if len(classes) > 5 else listed or "none"


def _other_classes(theirs: Sequence[str], mine: Sequence[str]) -> list[str]:
    if not theirs or tuple(theirs) == tuple(mine):
        return []
    if len(theirs) != len(mine):
        return [f"{len(mine)} classes, the book has {len(theirs)}"]
    place, name, stored = next((i, a, b) for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    return [f"class {place} is {name!r}, the book's is {stored!r}"]
