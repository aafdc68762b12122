"""Writes the golden books, once: `python tests/book/golden/make_golden.py`. The input is literal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
    RaggedArray,
    Raw,
    Sampled,
    TeacherInfo,
    TopK,
    compact,
)

HERE = Path(__file__).parent

LOGITS = np.array(
    [
        [
            [0.0, 1.5, -2.0, 4.25],
            [7.0, -7.0, 0.125, 0.25],
            [1.0, 2.0, 3.0, -1.0],
            [-0.5, 0.5, 0.0, 2.5],
            [9.0, 1.0, 2.0, 3.0],
        ],
        [
            [0.5, 1.0, -2.5, 4.0],
            [6.0, -6.5, 0.25, 0.5],
            [1.5, 2.5, 2.0, -1.5],
            [-1.0, 1.0, 0.0, 3.0],
            [8.0, 0.0, 1.0, 4.0],
        ],
    ],
    dtype=np.float32,
)  # [views, samples, classes]
HASHES = np.array([[1, 2, 3, 4, 2**64 - 1], [5, 6, 7, 8, 2**63]], dtype=np.uint64)
LENGTHS = (2, 0, 3, 1, 2)
"""Positions of each sample of the golden sequences."""
KEYS = np.array([100, 7, 2**63, 3, 55], dtype=np.uint64)
CODECS = {
    "v1-dense": Dense(),
    "v1-int8": Int8(),
    "v1-top-k": TopK(2, (1.0, 4.0)),
    "v1-sampled": Sampled(9, 2.0, 5),
    "v1-argmax": Argmax(),
    "v1-pooled": Pooled((1, 2)),
}
FIELDS = {"v1-pooled": "features/map"}
"""Field of the numbers above, where they are no logits but maps [1, 1, 4]."""


def plan(name: str) -> Plan:
    """Return the plan of one golden book: two views of five samples, two shards a view, blocks of two rows."""
    shape = (1, 1, 4) if name == "v1-pooled" else (4,)
    return Plan(
        n_samples=5,
        n_views=2,
        fields={FIELDS.get(name, "logits"): FieldPlan(shape, CODECS[name]), "probe/hash": FieldPlan((), Raw("uint64"))},
        teachers=(TeacherInfo("golden", "00112233", 10, 40, 0.5, "test"),),
        data={"name": "literal", "n": 5},
        views={"recipe": "literal", "seed": 7},
        class_names=("a", "b", "c", "d"),
        unit_rows=4,
        block_rows=2,
        batch_size=2,
    )


def write(name: str, path: Path) -> Book:
    """Write one golden book."""
    with BookWriter(path, plan(name), keys=KEYS) as writer:
        for unit in writer.pending():
            rows = (unit.view, slice(unit.start, unit.stop))
            field = FIELDS.get(name, "logits")
            numbers = LOGITS[rows].reshape(-1, *writer.plan.fields[field].shape)
            writer.write(unit, {field: numbers, "probe/hash": HASHES[rows]})
        return writer.finish({"seconds": 0.25})


def write_grown(path: Path) -> Book:
    """Write one view of three samples, grow it to two views of five, and put each view into one file: three editions."""
    whole = plan("v1-sampled")
    fields = {
        "members/0/logits": FieldPlan((4,), Sampled(9, 2.0, 5)),
        "members/1/logits": FieldPlan((4,), TopK(2, (1.0, 4.0))),
    }
    small = replace(
        whole, n_samples=3, n_views=1, fields=fields | {"probe/hash": FieldPlan((), Raw("uint64"))}, unit_rows=2
    )
    with BookWriter(path, small, keys=KEYS[:3]) as writer:
        for unit in writer.pending():
            writer.write(unit, _said(*unit))
        writer.finish({"seconds": 0.25})
    with GrowthWriter(path, replace(small, n_samples=5, n_views=2, unit_rows=None), keys=KEYS) as writer:
        for unit in writer.pending():
            writer.write_rows(unit.view, unit.start, _said(*unit))
        writer.finish({"seconds": 0.5})
    return compact(path)


def write_positions(path: Path) -> Book:
    """Write two views of five sequences of 2, 0, 3, 1 and 2 positions: draws, the largest two, and tokens."""
    codecs = {"members/0/logits": Sampled(9, 2.0, 5), "members/1/logits": TopK(2, (1.0, 4.0))}
    fields = {name: FieldPlan((4,), codec, positions=3) for name, codec in codecs.items()}
    fields["input/tokens"] = FieldPlan((), Raw("int32"), positions=3)
    with BookWriter(path, replace(plan("v1-dense"), fields=fields), keys=KEYS) as writer:
        for unit in writer.pending():
            writer.write(unit, positions(*unit))
        return writer.finish({"seconds": 0.25})


CONSTANTS = {
    "classes/mean": np.array([[0.5, -1.0], [2.0, 0.25], [0.0, 8.0], [-4.0, 1.5]], dtype=np.float32),
    "members/0/classifier/weight": np.array([[1.0, -2.0, 0.5], [3.0, 4.0, -0.25]], dtype=np.float16),
    "order": np.array([3, 0, 2**63, 1], dtype=np.uint64),
}


def write_constants(path: Path) -> Book:
    """Write the book of `v1-dense` with three constants beside its records."""
    with BookWriter(path, plan("v1-dense"), keys=KEYS, constants=CONSTANTS) as writer:
        for unit in writer.pending():
            rows = (unit.view, slice(unit.start, unit.stop))
            writer.write(unit, {"logits": LOGITS[rows], "probe/hash": HASHES[rows]})
        return writer.finish({"seconds": 0.25})


def positions(view: int, start: int, stop: int) -> dict[str, RaggedArray]:
    """Return the sequences of some samples: position p of sample s has the numbers of sample (s + p) mod 5."""
    samples = range(start, stop)
    said = [LOGITS[view, [(sample + p) % 5 for p in range(LENGTHS[sample])]].reshape(-1, 4) for sample in samples]
    tokens = [10 * sample + p for sample in samples for p in range(LENGTHS[sample])]
    logits = RaggedArray.from_rows(said)
    return {
        "members/0/logits": logits,
        "members/1/logits": RaggedArray(-logits.values, logits.offsets),
        "input/tokens": RaggedArray(np.array(tokens, dtype=np.int32), logits.offsets),
    }


def _said(view: int, start: int, stop: int) -> dict[str, np.ndarray]:
    said = LOGITS[view, start:stop]
    return {"members/0/logits": said, "members/1/logits": -said, "probe/hash": HASHES[view, start:stop]}


if __name__ == "__main__":
    for name in CODECS:
        if not (HERE / name).exists():  # golden books are never written again
            write(name, HERE / name)
    if not (HERE / "v1-grown").exists():
        write_grown(HERE / "v1-grown")
    if not (HERE / "v1-positions").exists():
        write_positions(HERE / "v1-positions")
    if not (HERE / "v1-constants").exists():
        write_constants(HERE / "v1-constants")
