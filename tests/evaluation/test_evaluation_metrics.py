"""Metrics: against scikit-learn, torchmetrics, scipy and plain loops; intervals against replicates evaluated one by one."""

from __future__ import annotations

import json
import time
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError
from bookkd.evaluation import Evaluation, evaluate
from bookkd.evaluation.intervals import resample


def sample(n: int, n_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    logits = torch.randn(n, n_classes, generator=generator) * 2
    logits[torch.arange(n), labels] += 1.5
    teacher = logits + torch.randn(n, n_classes, generator=generator)
    return logits, labels, teacher


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    with warnings.catch_warnings():
        # scikit-learn warns of predictions of classes that do not occur, and leaves them out, as we do.
        warnings.simplefilter("ignore", UserWarning)
        return sk.balanced_accuracy_score(labels, predicted)


def expected_calibration_error(p: np.ndarray, labels: np.ndarray, bins: int) -> float:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def check_against_references(
    found: Evaluation, logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor
) -> None:
    value = {name: interval.value for name, interval in found.metrics.items()}
    p, q, y = softmax(logits.double().numpy(), axis=1), softmax(teacher.double().numpy(), axis=1), labels.numpy()
    classes = range(p.shape[1])
    predicted = p.argmax(axis=1)
    assert value["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert value["top5"] == pytest.approx(sk.top_k_accuracy_score(y, p, k=5, labels=classes))
    assert value["nll"] == pytest.approx(sk.log_loss(y, p, labels=classes))
    assert value["brier"] == pytest.approx(np.mean(np.sum((p - np.eye(len(classes))[y]) ** 2, axis=1)))
    assert value["ece"] == pytest.approx(expected_calibration_error(p, y, found.bins))
    assert value["balanced_accuracy"] == pytest.approx(balanced_accuracy(y, predicted))
    assert value["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert value["agreement"] == pytest.approx(np.mean(predicted == q.argmax(axis=1)))
    assert value["teacher_kl"] == pytest.approx(entropy(q, p, axis=1).mean())
    recall = sk.recall_score(y, predicted, average=None, labels=classes, zero_division=0)
    for each, wanted, occurs in zip(found.per_class_recall, recall, np.isin(classes, y), strict=True):
        assert (each is not None) == occurs
        assert each is None or each.value == pytest.approx(wanted)


@pytest.mark.parametrize(("n", "n_classes", "bins"), [(500, 10, 15), (300, 40, 7), (1000, 6, 1)])
def test_against_references(n: int, n_classes: int, bins: int):
    logits, labels, teacher = sample(n, n_classes)
    found = evaluate(logits, labels, teacher_logits=teacher, bins=bins, replicates=10)
    check_against_references(found, logits, labels, teacher)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(6, 9), st.integers(0, 10**6))
def test_against_references_where_classes_are_absent(n: int, n_classes: int, seed: int):
    logits, labels, teacher = sample(n, n_classes, seed)
    check_against_references(evaluate(logits, labels, teacher_logits=teacher, replicates=3), logits, labels, teacher)


def test_brier_and_calibration_against_the_libraries():
    logits, labels, _ = sample(2000, 8)
    p = softmax(logits.double().numpy(), axis=1)
    found = evaluate(logits, labels, replicates=0).metrics
    halved = sk.brier_score_loss(np.eye(8)[labels.numpy()].argmax(1), p, labels=range(8), scale_by_half=True)
    assert found["brier"].value == pytest.approx(2 * halved)
    theirs = multiclass_calibration_error(torch.from_numpy(p), labels, num_classes=8, n_bins=15)
    assert found["ece"].value == pytest.approx(float(theirs), abs=1e-6)


def test_intervals_are_the_quantiles_of_replicates_evaluated_one_by_one():
    logits, labels, teacher = sample(60, 7)
    found = evaluate(logits, labels, teacher_logits=teacher, replicates=40, seed=3, level=0.8)
    each = {name: [] for name in found.metrics}
    recall = []
    for counts in resample(lambda counts: counts, 60, replicates=40, seed=3).astype(int):
        rows = np.repeat(np.arange(60), counts)
        again = evaluate(logits[rows], labels[rows], teacher_logits=teacher[rows], replicates=0)
        check_against_references(again, logits[rows], labels[rows], teacher[rows])
        for name, interval in again.metrics.items():
            each[name].append(interval.value)
        if again.per_class_recall[2] is not None:
            recall.append(again.per_class_recall[2].value)
    each["ece"] = np.clip(np.array(each["ece"]) - np.mean(each["ece"]) + found.metrics["ece"].value, 0, 1)
    for name, interval in found.metrics.items():
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(each[name], (0.1, 0.9)))), name
    assert found.per_class_recall[2].low == pytest.approx(np.quantile(recall, 0.1))
    assert found.per_class_recall[2].high == pytest.approx(np.quantile(recall, 0.9))


def test_the_interval_of_the_calibration_error_holds_its_value():
    # Of a calibrated network every resample looks worse than the sample; without the shift the interval lies above the value.
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(400, 10, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    ece = evaluate(logits, labels).metrics["ece"]
    assert ece.low < ece.value < ece.high


def test_one_sample_and_one_class():
    one = evaluate(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]), replicates=20)
    assert {name: one.metrics[name].value for name in ("accuracy", "top5", "balanced_accuracy", "macro_f1")} == {
        "accuracy": 1.0,
        "top5": 1.0,
        "balanced_accuracy": 1.0,
        "macro_f1": 1.0,
    }
    assert all(interval.low == interval.high == pytest.approx(interval.value) for interval in one.metrics.values())
    assert [each is None for each in one.per_class_recall] == [True, False, True]
    single = evaluate(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), replicates=5).metrics
    assert (single["accuracy"].value, single["nll"].value, single["ece"].value) == (1, 0, 0)


def test_a_rare_class_that_most_replicates_miss():
    found = evaluate(torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]]), torch.tensor([0] * 9 + [1]), replicates=1, seed=1)
    assert found.per_class_recall[1].value == 1
    assert found.metrics["balanced_accuracy"].high == 1


def test_of_equal_logits_the_lowest_class_is_predicted():
    found = evaluate(torch.zeros(8, 8), torch.arange(8), replicates=0).metrics
    assert found["accuracy"].value == 1 / 8
    assert found["top5"].value == 5 / 8
    assert found["ece"].value == pytest.approx(0)


def test_the_teacher_itself_agrees_without_divergence():
    logits, labels, _ = sample(50, 4)
    found = evaluate(logits, labels, teacher_logits=logits.clone(), replicates=10).metrics
    assert found["agreement"].low == 1
    assert found["teacher_kl"].high == pytest.approx(0, abs=1e-12)
    assert "agreement" not in evaluate(logits, labels, replicates=0).metrics


def test_seed_level_and_replicates():
    logits, labels, _ = sample(200, 5)
    first, again, other = (evaluate(logits, labels, replicates=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.metrics["nll"] != other.metrics["nll"]
    narrow = evaluate(logits, labels, replicates=200, seed=1, level=0.5).metrics["nll"]
    assert first.metrics["nll"].low < narrow.low < narrow.value < narrow.high < first.metrics["nll"].high
    none = evaluate(logits, labels, replicates=0).metrics["nll"]
    assert none.low == none.value == none.high == first.metrics["nll"].value


def test_half_precision_and_large_logits():
    logits = torch.tensor([[3e4, -3e4], [-3e4, 3e4]], dtype=torch.float16)
    found = evaluate(logits, torch.tensor([0, 0]), replicates=0).metrics
    assert found["nll"].value == pytest.approx(float(logits[0, 0].double()), rel=1e-9)
    assert found["brier"].value == pytest.approx(1.0)


def test_json():
    logits, labels, teacher = sample(20, 3)
    labels[labels == 2] = 0
    found = evaluate(logits, labels, teacher_logits=teacher, class_names=("a", "b", "c"), replicates=10)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["per_class_recall"][2] is None
    assert plain["class_names"] == ["a", "b", "c"]
    assert plain["metrics"]["accuracy"]["value"] == found.metrics["accuracy"].value
    assert (plain["n"], plain["bins"], plain["replicates"], plain["level"]) == (20, 15, 10, 0.95)


LOGITS = torch.zeros(3, 4)
LABELS = torch.tensor([0, 1, 2])
NAN = torch.tensor([[0.0] * 4, [0.0, float("nan"), 0.0, 0.0], [float("inf")] * 4])


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (LOGITS, torch.tensor([0, 4, 9])),
            {},
            DataError,
            r"`label` to be between 0 and 3, got 4 \(evaluation, sample 1\)",
        ),
        (
            (LOGITS, torch.tensor([0, 1, -1])),
            {},
            DataError,
            r"`label` to be between 0 and 3, got -1 \(evaluation, sample 2\)\. Evaluate on samples whose class is known",
        ),
        ((NAN, LABELS), {}, DataError, r"`logits` to be finite, got nan \(evaluation, sample 1; 2 of 3 rows\)"),
        ((LOGITS, LABELS), {"teacher_logits": NAN}, TeacherOutputError, r"`teacher_logits` to be finite, got nan"),
        (
            (LOGITS, LABELS),
            {"teacher_logits": torch.zeros(3, 5)},
            TeacherOutputError,
            r"\(3, 4\), got torch.float32 \(3, 5\)",
        ),
        (
            (LOGITS, LABELS[:2]),
            {},
            DataError,
            r"`labels` to be 3 whole numbers, one a row of logits, got torch.int64 \(2,\)",
        ),
        ((LOGITS, LABELS.float()), {}, DataError, r"3 whole numbers, one a row of logits, got torch.float32"),
        (
            (LOGITS[0], LABELS),
            {},
            DataError,
            r"floating point \[n, classes\] with n at least 1, got torch.float32 \(4,\)",
        ),
        ((LOGITS[:0], LABELS[:0]), {}, DataError, r"with n at least 1, got torch.float32 \(0, 4\)"),
        ((LOGITS.long(), LABELS), {}, DataError, r"floating point \[n, classes\]"),
        ((LOGITS, LABELS), {"class_names": ("a",)}, ConfigError, r"`class_names` to be 4 names or none, got 1"),
        ((LOGITS, LABELS), {"bins": 0}, ConfigError, r"`bins` to be a whole number of at least 1"),
        ((LOGITS, LABELS), {"replicates": -1}, ConfigError, r"`replicates` to be a whole number of at least 0"),
        ((LOGITS, LABELS), {"level": 95}, ConfigError, r"`level` to be above 0 and below 1, got 95 .* Pass 0.95"),
    ],
)
def test_refusals(args: tuple, options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        evaluate(*args, **options)


def test_ten_thousand_samples_and_a_thousand_replicates_take_about_a_second():
    logits, labels, teacher = sample(10_000, 10)
    start = time.process_time()
    evaluate(logits, labels, teacher_logits=teacher)
    assert time.process_time() - start < 8  # about 0.3 s on one idle core; the margin is for busy machines
