"""Uncertainty and diversity of confidences, against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import differential_entropy, entropy

from bookkd.core.errors import DataError
from bookkd.evaluation import diversity, vasicek_entropy


@pytest.mark.parametrize("n", [9, 50, 1000])
def test_vasicek_is_scipys(n):
    values = np.random.default_rng(n).beta(3, 1, size=n)
    assert vasicek_entropy(values) == pytest.approx(differential_entropy(values, method="vasicek"), abs=1e-12)


def test_uniform_numbers_have_entropy_zero():
    values = np.random.default_rng(0).random(20_000)
    assert vasicek_entropy(values) == pytest.approx(0, abs=0.03)
    assert vasicek_entropy(3 * values) == pytest.approx(math.log(3), abs=0.03)


def test_diversity_against_scipy():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(200, 5)) * 3, rng.integers(0, 5, 200)
    labels[:7] = -1
    found = diversity(torch.from_numpy(logits), torch.from_numpy(labels))
    p = softmax(logits[7:], axis=1)
    confidence = p[np.arange(193), labels[7:]]
    assert found.n == 193
    assert found.uncertainty == pytest.approx(entropy(p, axis=1).mean(), abs=1e-12)
    assert found.confidence_variance == pytest.approx(confidence.var(), abs=1e-12)
    assert found.confidence_diversity == pytest.approx(differential_entropy(confidence, method="vasicek"), abs=1e-12)


def test_equal_confidences_have_no_diversity():
    found = diversity(torch.zeros(10, 3), torch.zeros(10, dtype=torch.long))
    assert found.confidence_diversity == -math.inf
    assert found.confidence_variance == pytest.approx(0, abs=1e-15)
    assert found.to_json()["confidence_diversity"] is None
    assert found.uncertainty == pytest.approx(math.log(3))


def test_too_few_labels_are_refused():
    with pytest.raises(DataError, match=r"`labels` to be known for two samples at least, got 1 \(diversity\)"):
        diversity(torch.zeros(3, 3), torch.tensor([0, -1, -1]))
