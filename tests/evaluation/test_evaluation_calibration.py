"""Temperature scaling, reliability and confusion against scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from bookkd.core.errors import DataError
from bookkd.evaluation import calibration, confusion, evaluate, fit_temperature, reliability

RNG = np.random.default_rng(4)
LABELS = RNG.integers(0, 5, 400)
LOGITS = RNG.normal(size=(400, 5)) * 3 + 4 * np.eye(5)[LABELS]
OTHER_LABELS = RNG.integers(0, 5, 300)
OTHER = 2.5 * (RNG.normal(size=(300, 5)) + 1.5 * np.eye(5)[OTHER_LABELS])


def tensors(logits, labels):
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_temperature_is_scipys_optimum(scale):
    def nll(t):
        return -log_softmax(scale * OTHER / t, axis=1)[np.arange(300), OTHER_LABELS].mean()

    wanted = minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8})
    assert fit_temperature(*tensors(scale * OTHER, OTHER_LABELS)) == pytest.approx(wanted.x, rel=1e-4)


def test_bins_are_those_of_scikit_learn():
    found = reliability(*tensors(LOGITS, LABELS), bins=15)
    p = softmax(LOGITS, axis=1)
    right = p.argmax(1) == LABELS
    accuracy, confidence = calibration_curve(right, p.max(1), n_bins=15)
    filled = [entry for entry in found if entry["count"]]
    np.testing.assert_allclose([entry["accuracy"] for entry in filled], accuracy)
    np.testing.assert_allclose([entry["confidence"] for entry in filled], confidence)
    assert sum(entry["count"] for entry in found) == 400
    assert {entry["accuracy"] for entry in found if not entry["count"]} == {None}


def test_scaling_is_fitted_elsewhere_and_measured_here():
    logits, labels = tensors(LOGITS, LABELS)
    other = tensors(OTHER, OTHER_LABELS)
    found = calibration(logits, labels, held_out=other, fitted_on="validation")
    assert found["temperature"] == fit_temperature(*other)
    assert found["fitted_on"] == "validation"
    scaled = evaluate(logits / found["temperature"], labels, replicates=0).metrics
    assert found["nll_after"] == pytest.approx(scaled["nll"].value)
    assert found["ece_after"] == pytest.approx(scaled["ece"].value, abs=1e-9)
    assert found["before"] == reliability(logits, labels)
    with pytest.raises(DataError, match="`logits` to be finite, of one sample at least"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_confusion_is_that_of_scikit_learn():
    logits, labels = tensors(LOGITS, LABELS)
    assert confusion(logits, labels) == confusion_matrix(LABELS, LOGITS.argmax(1), labels=range(5)).tolist()
