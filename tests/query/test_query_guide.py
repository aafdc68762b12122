"""The recipes of the guide, run as they stand there, give what numpy finds in the same book; planted label errors are found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "query.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names of the guide's Python blocks after they ran."""
    space = {"__name__": "guide"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        for block in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            exec(compile(block, str(GUIDE), "exec"), space)
        space["said"] = decoded(space["book"])
    return space


def decoded(book):
    """Probabilities of the book, float64 [teachers, views, samples, classes]."""
    samples = np.arange(book.n_samples)
    names = sorted(book.fields)
    read = [[book.read(samples, view, [name])[name] for view in range(book.n_views)] for name in names]
    return torch.softmax(torch.from_numpy(np.array(read)).double(), dim=-1).numpy()


def test_label_errors(page, record_property):
    p, labels = page["said"], page["labels"]
    top1, sure = p.argmax(axis=-1), p.max(axis=-1)
    against = (top1 != labels).all(axis=(0, 1)) & (top1 == top1[0, 0]).all(axis=(0, 1))
    doubt = (sure - np.take_along_axis(p, labels[None, None, :, None].repeat(2, 0).repeat(4, 1), -1)[..., 0]).mean(
        axis=(0, 1)
    )
    ranked = np.flatnonzero(against)[np.argsort(-doubt[against], kind="stable")][:20]
    assert [row[0] for row in page["suspects"].rows] == ranked.tolist()
    assert [row[2] for row in page["suspects"].rows] == top1[0, 0, ranked].tolist()
    np.testing.assert_allclose([row[3] for row in page["suspects"].rows], doubt[ranked], rtol=1e-5)
    hits = len(set(ranked.tolist()) & set(page["wrong"].tolist()))
    record_property("planted", 20)
    record_property("named", len(ranked))
    record_property("precision", hits / len(ranked))
    assert hits / len(ranked) == page["precision"] > 0.7
    assert hits >= 14


def test_disagreement(page):
    p = page["said"]
    top1, sure = p.argmax(axis=-1), p.max(axis=-1)
    views, samples = np.nonzero(top1[0] != top1[1])
    both = np.minimum(sure[0], sure[1])[views, samples]
    best = np.sort(both)[::-1][:10]
    rows = page["disputes"].rows
    np.testing.assert_allclose([row[4] for row in rows], best, rtol=1e-5)
    for sample, view, first, second, _ in rows:
        assert (top1[0, view, sample], top1[1, view, sample]) == (first, second)


def test_hardest_classes(page):
    p, labels = page["said"], page["labels"]
    right = p.argmax(axis=-1) == labels
    accuracy = {str(c): right[..., labels == c].mean() for c in range(10)}
    entropy = -(p * np.log(p)).sum(axis=-1)
    rows = page["hardest"].rows
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    for name, found, spread, _ in rows:
        assert found == pytest.approx(accuracy[name], abs=1e-12)
        assert spread == pytest.approx(entropy[..., labels == int(name)].mean(), rel=1e-5)


def test_sensitive_samples(page):
    p = page["said"][0]
    classes = np.array([len(set(p[:, i].argmax(axis=-1))) for i in range(p.shape[1])])
    spread = p.max(axis=-1).astype(np.float32).std(axis=0, dtype=np.float64)
    order = np.lexsort((np.arange(p.shape[1]), -spread, -classes))[:10]
    assert [row[1] for row in page["sensitive"].rows] == classes[order].tolist()
    np.testing.assert_allclose([row[2] for row in page["sensitive"].rows], spread[order], rtol=1e-4)
