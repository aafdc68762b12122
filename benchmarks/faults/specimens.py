"""Small books of every codec, in one edition or two, whose records are a function of (view, sample)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bookkd.book import (
    Argmax,
    Book,
    BookWriter,
    Dense,
    FieldPlan,
    GrowthWriter,
    Int8,
    Plan,
    Pooled,
    Raw,
    Sampled,
    TeacherInfo,
    TopK,
)

C = 6
CODECS = {
    "dense": Dense(),
    "int8": Int8(),
    "top_k": TopK(3, (1.0, 4.0)),
    "sampled": Sampled(9, 2.0),
    "argmax": Argmax(),
}
"""Codecs of logits, each that of one teacher."""

CONSTANTS = {"classifier/weight": np.arange(24, dtype=np.float32).reshape(6, 4), "pca": np.eye(3, dtype=np.float16)}


def plan(n_samples: int = 100, n_views: int = 2, codecs: Mapping[str, Any] = CODECS, **changes: Any) -> Plan:
    """Return the plan of a book with one teacher a codec."""
    fields = {f"members/{place}/logits": FieldPlan((C,), codec) for place, codec in enumerate(codecs.values())}
    fields |= {"features/map": FieldPlan((2, 2, 2), Pooled((1, 2))), "probe/hash": FieldPlan((), Raw("uint64"))}
    options: dict[str, Any] = {
        "fields": fields,
        "teachers": tuple(TeacherInfo(name, f"{place:032x}", 10, 40, 0.5, "test") for place, name in enumerate(codecs)),
        "data": {"name": "said", "digest": "d0"},
        "views": {"recipe": "said", "seed": 7},
        "class_names": tuple("abcdef"),
        "unit_rows": 32,
        "block_rows": 8,
        "batch_size": 8,
        **changes,
    }
    return Plan(n_samples, n_views, **options)


def keys(n_samples: int) -> np.ndarray:
    """Return a key of each sample."""
    return np.arange(n_samples, dtype=np.uint64) * 7 + 11


def said(the_plan: Plan, view: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Return every field of rows `start` to `stop`."""
    rows = np.arange(start, stop)[:, None] + 1000 * view
    logits = 5 * np.sin(rows * 0.37 + np.arange(C) * 1.7)
    found = {}
    for name, entry in the_plan.fields.items():
        if name == "probe/hash":
            found[name] = (rows[:, 0].astype(np.uint64) + np.uint64(2**63)) * np.uint64(3)
        elif name == "features/map":
            found[name] = np.cos(rows * 0.11 + np.arange(8)).reshape(-1, *entry.shape)
        else:
            place = int(name.split("/")[1]) if name.startswith("members/") else 0
            found[name] = (logits * (1 + place / 2)).astype(np.float32)
    return found


def make(
    path: Path, the_plan: Plan | None = None, *, keyed: bool = True, constants: Mapping[str, Any] | None = None
) -> Book:
    """Write a book."""
    the_plan = the_plan or plan()
    with BookWriter(path, the_plan, keys=keys(the_plan.n_samples) if keyed else None, constants=constants) as writer:
        for unit in writer.pending():
            writer.write(unit, said(writer.plan, *unit))
        return writer.finish({"seconds": 1.5})


def grow(path: Path, n_samples: int, n_views: int) -> Book:
    """Add samples and views to a book, or go on with it."""
    book = Book(path, edition=1)
    larger = replace(book.plan, n_samples=n_samples, n_views=n_views, unit_rows=None, keys_digest=None)
    with GrowthWriter(path, larger, keys=keys(n_samples) if book.keys is not None else None) as writer:
        for view, start, stop in writer.pending():
            writer.write_rows(view, start, said(writer.plan, view, start, stop))
        return writer.finish({"seconds": 2.5})


def everything(book: Book) -> dict[str, Any]:
    """Read and decode all that a book holds; arrays by name, to be compared."""
    found: dict[str, Any] = {"keys": book.keys, "fidelity": book.fidelity, "cost": book.cost}
    found |= {f"constants/{name}": array for name, array in book.constants.items()}
    rows = np.arange(book.n_samples)
    for view in range(book.n_views):
        for part, array in book.gather(rows, view).items():
            ragged = hasattr(array, "offsets")
            found[f"{view}/{part}"] = (array.values.tobytes(), array.offsets.tobytes()) if ragged else array.tobytes()
        book.read(rows, view)
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in found.items()}
