"""Metrics of several labels: against scikit-learn and torchmetrics; intervals against replicates evaluated one by one."""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, rel_entr
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_auroc,
    multilabel_average_precision,
)

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError
from bookkd.evaluation import evaluate_multi_label
from bookkd.evaluation.intervals import resample

ABOVE_ALL = ("map", "auroc", "micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "nll", "brier", "ece")


def sample(n, n_classes, seed=0, *, hidden=0.0, ties=False):
    """Logits that know something, labels, and a teacher; some labels hidden, but never all of a sample."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, n_classes, generator=generator) < 0.3).long()
    labels[0, 0] = 1
    logits = torch.randn(n, n_classes, generator=generator) * 2 + 2 * labels - 1
    logits = logits.round() if ties else logits
    teacher = logits + torch.randn(n, n_classes, generator=generator)
    away = torch.rand(n, n_classes, generator=generator) < hidden
    away[:, 0] = False
    return logits, labels.masked_fill(away, -1), teacher


def values(found):
    return {name: interval.value for name, interval in found.metrics.items()}


def per_class_reference(z, y, known, score, needs_both):
    """One score a class over the known samples; NaN where the class lacks a present label, or one of both kinds."""
    found = []
    for c in range(y.shape[1]):
        truth, scores = y[known[:, c], c], z[known[:, c], c]
        enough = len(truth) and truth.max() == 1 and (not needs_both or truth.min() == 0)
        found.append(score(truth, scores) if enough else np.nan)
    return np.array(found)


def check_against_references(found, logits, labels, teacher):
    z, t, y = logits.double().numpy(), teacher.double().numpy(), labels.numpy()
    known, p = y >= 0, expit(logits.double().numpy())
    value, pairs = values(found), y[known]
    average = per_class_reference(z, y, known, sk.average_precision_score, False)
    auroc = per_class_reference(z, y, known, sk.roc_auc_score, True)
    assert value["map"] == pytest.approx(np.nanmean(average))
    if np.isfinite(auroc).any():
        assert value["auroc"] == pytest.approx(np.nanmean(auroc))
    else:
        assert "auroc" not in value
    f1 = per_class_reference(z, y, known, lambda a, b: sk.f1_score(a, b > 0, zero_division=np.nan), False)
    for name, wanted in (("average_precision", average), ("auroc", auroc)):
        for each, number in zip(found.per_class[name], wanted, strict=True):
            assert (each is None) == np.isnan(number)
            assert each is None or each.value == pytest.approx(number)
    for each, number in zip(found.per_class["f1"], f1, strict=True):
        assert np.isnan(number) or each.value == pytest.approx(number)
    predicted = z > 0
    assert value["micro_f1"] == pytest.approx(sk.f1_score(pairs, predicted[known]))
    assert value["hamming_loss"] == pytest.approx(sk.hamming_loss(pairs, predicted[known]))
    assert value["nll"] == pytest.approx(sk.log_loss(pairs, p[known], labels=[0, 1]))
    assert value["brier"] == pytest.approx(sk.brier_score_loss(pairs, p[known]))
    assert value["subset_accuracy"] == pytest.approx(np.mean(((predicted == y) | ~known).all(axis=1)))
    theirs = binary_calibration_error(torch.tensor(p[known]), torch.tensor(pairs), n_bins=15)
    assert value["ece"] == pytest.approx(float(theirs), abs=1e-6)
    assert value["agreement"] == pytest.approx(np.mean(predicted == (t > 0)))
    kl = rel_entr(expit(t), p) + rel_entr(expit(-t), expit(-z))
    assert value["teacher_kl"] == pytest.approx(kl.mean())


@pytest.mark.parametrize(("n", "n_classes"), [(400, 7), (300, 40), (200, 1)])
@pytest.mark.parametrize("more", [{}, {"hidden": 0.3}, {"ties": True}], ids=["known", "hidden", "ties"])
def test_against_references(n, n_classes, more):
    logits, labels, teacher = sample(n, n_classes, **more)
    found = evaluate_multi_label(logits, labels, teacher_logits=teacher, replicates=5)
    check_against_references(found, logits, labels, teacher)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_against_references_where_labels_are_few(n, n_classes, seed, ties):
    logits, labels, teacher = sample(n, n_classes, seed, hidden=0.4, ties=ties)
    found = evaluate_multi_label(logits, labels, teacher_logits=teacher, replicates=3)
    with warnings.catch_warnings():
        # scikit-learn warns of a single class in the sample, and then says what we say.
        warnings.simplefilter("ignore")
        check_against_references(found, logits, labels, teacher)


def test_whole_matrices_against_the_libraries():
    logits, labels, _ = sample(500, 6)
    found = evaluate_multi_label(logits, labels, replicates=0)
    y, predicted = labels.numpy(), logits.numpy() > 0
    assert values(found)["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert values(found)["micro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="micro"))
    assert values(found)["subset_accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert values(found)["hamming_loss"] == pytest.approx(sk.hamming_loss(y, predicted))
    assert values(found)["map"] == pytest.approx(sk.average_precision_score(y, logits.numpy(), average="macro"))
    p = torch.sigmoid(logits.double())
    assert values(found)["map"] == pytest.approx(float(multilabel_average_precision(p, labels, num_labels=6)))
    assert values(found)["auroc"] == pytest.approx(float(multilabel_auroc(p, labels, num_labels=6)))


def test_intervals_are_the_quantiles_of_replicates_evaluated_one_by_one():
    logits, labels, teacher = sample(40, 3, hidden=0.2)
    options = {"replicates": 40, "seed": 3, "level": 0.8}
    found = evaluate_multi_label(logits, labels, teacher_logits=teacher, **options)
    each = {name: [] for name in found.metrics}
    average = []
    for counts in resample(lambda counts: counts, 40, replicates=40, seed=3).astype(int):
        rows = np.repeat(np.arange(40), counts)
        again = evaluate_multi_label(logits[rows], labels[rows], teacher_logits=teacher[rows], replicates=0)
        for name, interval in again.metrics.items():
            each[name].append(interval.value)
        average.append(again.per_class["average_precision"][1].value)
    each["ece"] = np.clip(np.array(each["ece"]) - np.mean(each["ece"]) + found.metrics["ece"].value, 0, 1)
    for name, interval in found.metrics.items():
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(each[name], (0.1, 0.9)))), name
    second = found.per_class["average_precision"][1]
    assert (second.low, second.high) == pytest.approx(tuple(np.quantile(average, (0.1, 0.9))))


def test_a_class_that_most_replicates_miss_has_an_interval_of_the_others():
    logits, labels = torch.zeros(20, 2), torch.zeros(20, 2, dtype=torch.int64)
    logits[:, 0] = torch.linspace(-1, 1, 20)
    labels[10:, 0], labels[3, 1] = 1, 1
    found = evaluate_multi_label(logits, labels, replicates=50)
    assert found.per_class["average_precision"][1].value == pytest.approx(1 / 20)
    # A replicate without the one sample does not count; one that has it twice says 2 / 20.
    assert found.per_class["average_precision"][1].low == pytest.approx(1 / 20)
    assert all(np.isfinite(interval.low) for interval in found.metrics.values())


def test_what_no_class_defines_is_left_out_and_nothing_predicted_is_0():
    present = torch.ones(3, 2, dtype=torch.int64)
    found = evaluate_multi_label(torch.full((3, 2), -1.0), present, replicates=5)
    assert "auroc" not in found.metrics
    assert found.per_class["auroc"] == (None, None)
    assert (values(found)["micro_f1"], values(found)["macro_f1"], values(found)["map"]) == (0, 0, 1)
    assert {*ABOVE_ALL} - {*found.metrics} == {"auroc"}


def test_hidden_labels_do_not_count_and_nan_hides_too():
    logits, labels, _ = sample(50, 4)
    hidden = labels.clone()
    hidden[::2, 1:] = -1
    floating = hidden.float().masked_fill(hidden == -1, float("nan"))
    first, second = (evaluate_multi_label(logits, each, replicates=10) for each in (hidden, floating))
    assert first == second
    moved = torch.where(hidden == -1, 9.0, logits)
    assert values(evaluate_multi_label(moved, hidden, replicates=0)) == values(
        evaluate_multi_label(logits, hidden, replicates=0)
    )


def test_the_teacher_itself_agrees_without_divergence_and_extremes_are_finite():
    logits, labels, _ = sample(50, 4)
    found = evaluate_multi_label(logits, labels, teacher_logits=logits.clone(), replicates=10).metrics
    assert found["agreement"].low == 1
    assert found["teacher_kl"].high == pytest.approx(0, abs=1e-12)
    wild = torch.tensor([[3e4, -3e4]], dtype=torch.float16)
    found = values(evaluate_multi_label(wild, torch.tensor([[0, 1]]), teacher_logits=-wild, replicates=0))
    assert found["nll"] == pytest.approx(float(wild[0, 0].double()))
    assert np.isfinite(found["teacher_kl"])


def test_seed_level_and_json():
    logits, labels, teacher = sample(200, 5)
    first, again, other = (evaluate_multi_label(logits, labels, replicates=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.metrics["map"] != other.metrics["map"]
    narrow = evaluate_multi_label(logits, labels, replicates=100, seed=1, level=0.5).metrics["map"]
    assert first.metrics["map"].low < narrow.low < narrow.value < narrow.high < first.metrics["map"].high
    labels[:, 4] = 0
    found = evaluate_multi_label(logits, labels, teacher_logits=teacher, class_names="abcde", replicates=10)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["per_class"]["average_precision"][4] is None
    assert plain["class_names"] == ["a", "b", "c", "d", "e"]
    assert plain["metrics"]["map"]["value"] == found.metrics["map"].value
    assert (plain["n"], plain["replicates"], plain["level"]) == (200, 10, 0.95)


LOGITS = torch.zeros(3, 2)
LABELS = torch.tensor([[0, 1], [1, 0], [0, 0]])
NAN = torch.tensor([[0.0, 0.0], [0.0, float("nan")], [float("inf"), 0.0]])


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (LOGITS, LABELS + 1),
            {},
            DataError,
            r"`label` to be 0, 1, or -1 .*, got 2\.0 \(evaluation, sample 0, class 1\)",
        ),
        ((LOGITS, LABELS / 2), {}, DataError, r"`label` to be 0, 1, or -1 where not known, got 0\.5"),
        ((LOGITS, LABELS[:2]), {}, DataError, r"`labels` to be \(3, 2\), one a logit, got shape \(2, 2\)"),
        ((LOGITS, LABELS[:, 0]), {}, DataError, r"`labels` to be \(3, 2\), one a logit, got shape \(3,\)"),
        (
            (LOGITS, torch.tensor([[0, 1], [-1, -1], [0, 0]])),
            {},
            DataError,
            r"known for one class of a sample at least, got 'none' \(evaluation, sample 1\)\. Evaluate on samples",
        ),
        ((LOGITS, LABELS * 0), {}, DataError, r"`labels` to be present for one class and sample at least"),
        ((NAN, LABELS), {}, DataError, r"`logits` to be finite, got nan \(evaluation, sample 1; 2 of 3 rows\)"),
        ((LOGITS, LABELS), {"teacher_logits": NAN}, TeacherOutputError, r"`teacher_logits` to be finite, got nan"),
        (
            (LOGITS, LABELS),
            {"teacher_logits": torch.zeros(3, 5)},
            TeacherOutputError,
            r"`teacher_logits` to be floating point \(3, 2\), got torch.float32 \(3, 5\)",
        ),
        (
            (LOGITS[:0], LABELS[:0]),
            {},
            DataError,
            r"floating point \[n, m\] with n at least 1, got torch.float32 \(0, 2\)",
        ),
        ((LOGITS.long(), LABELS), {}, DataError, r"floating point \[n, m\]"),
        ((LOGITS, LABELS), {"class_names": ("a",)}, ConfigError, r"`class_names` to be 2 names or none, got 1"),
        ((LOGITS, LABELS), {"bins": 0}, ConfigError, r"`bins` to be a whole number of at least 1"),
        ((LOGITS, LABELS), {"replicates": -1}, ConfigError, r"`replicates` to be a whole number of at least 0"),
        ((LOGITS, LABELS), {"level": 95}, ConfigError, r"`level` to be above 0 and below 1, got 95"),
    ],
)
def test_refusals(args, options, error, message):
    with pytest.raises(error, match=message):
        evaluate_multi_label(*args, **options)


def test_two_thousand_samples_and_ten_classes_take_about_a_second():
    logits, labels, teacher = sample(2_000, 10)
    start = time.process_time()
    evaluate_multi_label(logits, labels, teacher_logits=teacher)
    assert time.process_time() - start < 15  # the margin is for busy machines
