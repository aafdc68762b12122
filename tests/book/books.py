"""Small books for the tests."""

from __future__ import annotations

import numpy as np

from bookkd.book import BookWriter, Dense, FieldPlan, Int8, Plan, Raw, TeacherInfo, TopK

N, V, C = 150, 3, 6


def plan(**changes):
    options = {
        "n_samples": N,
        "n_views": V,
        "fields": {
            "logits": FieldPlan((C,), Dense()),
            "features/layer1": FieldPlan((2, 3), Int8()),
            "members/0/logits": FieldPlan((C,), TopK(3, (1.0, 4.0))),
            "probe/hash": FieldPlan((), Raw("uint64")),
        },
        "teachers": (TeacherInfo("resnet", "aa11", 10, 40, 0.9, "test"),),
        "data": {"name": "toy", "digest": "d0"},
        "views": {"seed": 7, "transform": {"crop": [4, 4]}},
        "class_names": tuple("abcdef"),
        "unit_rows": 64,
        "block_rows": 16,
        **changes,
    }
    return Plan(**options)


def arrays(view, start, stop):
    """What the teacher says: a function of (view, sample)."""
    rows = np.arange(start, stop)[:, None] + 1000 * view
    logits = (5 * np.sin(rows * 0.37 + np.arange(C) * 1.7)).astype(np.float32)
    return {
        "logits": logits,
        "features/layer1": np.cos(rows[:, :, None] * 0.11 + np.arange(6).reshape(2, 3)),
        "members/0/logits": logits[:, ::-1] * 2,
        "probe/hash": (rows[:, 0].astype(np.uint64) + np.uint64(2**63)) * np.uint64(3),
    }


def make(path, the_plan=None, *, keys=None, units=None, finish=True):
    """Write a book, or its first `units` units."""
    with BookWriter(path, the_plan or plan(), keys=keys) as writer:
        for unit in writer.pending()[:units]:
            found = arrays(*unit)
            writer.write(unit, {name: found[name] for name in writer.plan.fields})
        return writer.finish({"seconds": 1.5}) if finish else None
