"""Statistics of records against torch and scipy; sparse records against what their codec says."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from bookkd.book import Argmax, Dense, Int8, RowIds, Sampled, TopK
from bookkd.core.errors import ConfigError, FidelityError
from bookkd.query import record_statistics

LOGITS = np.random.default_rng(0).normal(0, 3, (200, 12))
LABELS = np.random.default_rng(1).integers(0, 12, 200)


def softmax(temperature=1.0):
    return torch.softmax(torch.from_numpy(LOGITS) / temperature, dim=1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dense_records(temperature):
    found = record_statistics(LOGITS, LABELS, temperature=temperature)
    p = softmax(temperature)
    values, classes = p.topk(2, dim=1)
    np.testing.assert_array_equal(found["top1"], classes[:, 0])
    np.testing.assert_allclose(found["confidence"], values[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found["margin"], values[:, 0] - values[:, 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["entropy"], scipy.stats.entropy(p.numpy(), axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["label_probability"], p[torch.arange(200), LABELS], rtol=1e-6)
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "top1": "int32", "confidence": "float32", "margin": "float32", "entropy": "float32", "label_probability": "float32",
    }  # fmt: skip


@pytest.mark.parametrize("codec", [Dense(), Int8()])
def test_dense_codecs(codec):
    found = record_statistics(codec.decode(codec.encode(LOGITS), (12,)))
    np.testing.assert_allclose(found["entropy"], scipy.stats.entropy(softmax().numpy(), axis=1), atol=0.05)
    assert "label_probability" not in found


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kept_classes_and_one_bucket(temperature):
    codec = TopK(4, (1.0, 4.0))
    found = record_statistics(codec.decode(codec.encode(LOGITS), (12,)), LABELS, temperature=temperature)
    p = softmax(temperature).numpy()
    ordered = np.sort(p, axis=1)[:, ::-1]
    buckets = np.concatenate([ordered[:, :4], ordered[:, 4:].sum(axis=1, keepdims=True)], axis=1)
    np.testing.assert_array_equal(found["top1"], p.argmax(axis=1))
    np.testing.assert_allclose(found["confidence"], ordered[:, 0], rtol=2e-3)
    np.testing.assert_allclose(found["margin"], ordered[:, 0] - ordered[:, 1], rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(found["entropy"], scipy.stats.entropy(buckets, axis=1), rtol=5e-3, atol=1e-4)
    assert (found["entropy"] <= scipy.stats.entropy(p, axis=1) + 1e-3).all()
    kept = (np.argsort(-p, axis=1)[:, :4] == LABELS[:, None]).any(axis=1)
    assert 0 < kept.sum() < 200
    assert np.isnan(found["label_probability"][~kept]).all()
    np.testing.assert_allclose(found["label_probability"][kept], p[kept, LABELS[kept]], rtol=5e-3)


def test_one_kept_class_tells_no_margin():
    codec = TopK(1)
    assert np.isnan(record_statistics(codec.decode(codec.encode(LOGITS), (12,)))["margin"]).all()


def test_every_class_kept_leaves_nothing_unknown():
    codec = TopK(12)
    found = record_statistics(codec.decode(codec.encode(LOGITS), (12,)), LABELS)
    np.testing.assert_allclose(found["label_probability"], softmax()[torch.arange(200), LABELS], rtol=1e-2, atol=1e-6)


def test_masked_classes_ties_and_unknown_labels():
    found = record_statistics(np.array([[-np.inf, 2.0, 2.0], [0.0, -np.inf, -np.inf]]), [0, -1])
    assert found["top1"].tolist() == [1, 0]
    np.testing.assert_allclose(found["entropy"], [np.log(2), 0], atol=1e-7)
    np.testing.assert_allclose(found["margin"], [0, 1])
    assert found["label_probability"][0] == 0
    assert np.isnan(found["label_probability"][1])


def test_what_is_no_record():
    with pytest.raises(ConfigError, match=r"logits \[rows, classes\] or a SparseArray, got shape \(3,\)"):
        record_statistics(np.zeros(3))
    codec = TopK(2, (2.0,))
    with pytest.raises(FidelityError, match=r"promises \(2\), got 1"):
        record_statistics(codec.decode(codec.encode(LOGITS), (12,)))


def test_a_class_alone_is_told_and_nothing_else():
    found = record_statistics(Argmax().decode(Argmax().encode(LOGITS), (12,)), LABELS)
    np.testing.assert_array_equal(found["top1"], LOGITS.argmax(axis=1))
    assert {name: str(array.dtype) for name, array in found.items()} == {
        name: str(array.dtype) for name, array in record_statistics(LOGITS, LABELS).items()
    }
    assert all(np.isnan(found[name]).all() for name in ("confidence", "margin", "entropy", "label_probability"))


def test_draws_are_refused():
    codec = Sampled(9)
    drawn = codec.decode(codec.encode(LOGITS, RowIds(np.arange(200), 0, "logits")), (12,))
    with pytest.raises(FidelityError, match=r"draws \(codec sampled\), which are right on average alone.*codec dense"):
        record_statistics(drawn)
