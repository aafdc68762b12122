"""Metrics of numbers: against scikit-learn, scipy and torch; intervals against replicates evaluated one by one."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, pearsonr
from sklearn import metrics as sk
from torch.distributions import Normal, kl_divergence

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError
from bookkd.evaluation import evaluate_regression
from bookkd.evaluation.intervals import resample

NAN = float("nan")


def sample(n, outputs, seed=0, *, hidden=0.0, offset=0.0):
    """Means, variances, labels, and a teacher's; some labels hidden, but never all of a sample or output."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(n, outputs, generator=generator, dtype=torch.float64)

    labels = offset + draw()
    mean = labels + draw() / 2
    variance, teacher_variance = 0.1 + draw().square(), 0.1 + draw().square()
    away = torch.rand(n, outputs, generator=generator) < hidden
    away[torch.arange(n), torch.arange(n) % outputs] = False
    return {
        "mean": mean,
        "labels": labels.masked_fill(away, NAN),
        "variance": variance,
        "teacher_mean": mean + draw(),
        "teacher_variance": teacher_variance,
    }


def values(found):
    return {name: interval.value for name, interval in found.metrics.items()}


def per_output(given, score):
    y, m = given["labels"].numpy(), given["mean"].numpy()
    known = ~np.isnan(y)
    return [score(y[known[:, j], j], m[known[:, j], j]) for j in range(y.shape[1])]


def correlation(y, m):
    return pearsonr(y, m)[0] if len(y) > 1 and np.ptp(y) > 0 and np.ptp(m) > 0 else 0.0


def r2(y, m):
    return sk.r2_score(y, m) if len(y) > 1 else float(y[0] == m[0])


def check_against_references(found, given):
    value = values(found)
    wanted = {
        "rmse": per_output(given, sk.root_mean_squared_error),
        "mae": per_output(given, sk.mean_absolute_error),
        "r2": per_output(given, r2),
        "correlation": per_output(given, correlation),
    }
    for name, each in wanted.items():
        assert value[name] == pytest.approx(np.mean(each), rel=1e-9, abs=1e-9), name
        assert [interval.value for interval in found.per_class[name]] == pytest.approx(each, rel=1e-9, abs=1e-9)
    y, m, s = (given[name].numpy() for name in ("labels", "mean", "variance"))
    assert value["nll"] == pytest.approx(np.nanmean(-norm.logpdf(y, m, np.sqrt(s)), axis=0).mean())
    t, v = given["teacher_mean"], given["teacher_variance"]
    assert value["teacher_rmse"] == pytest.approx(sk.root_mean_squared_error(t, m))
    kl = kl_divergence(Normal(t, v.sqrt()), Normal(given["mean"], given["variance"].sqrt()))
    assert value["teacher_kl"] == pytest.approx(float(kl.mean()))


@pytest.mark.parametrize(("n", "outputs"), [(200, 1), (300, 5)])
@pytest.mark.parametrize("more", [{}, {"hidden": 0.3}, {"offset": 1e4}], ids=["known", "hidden", "far from 0"])
def test_against_references(n, outputs, more):
    given = sample(n, outputs, **more)
    check_against_references(evaluate_regression(**given, replicates=5), given)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 10**6))
def test_against_references_of_few_samples(n, outputs, seed):
    given = sample(max(n, outputs), outputs, seed, hidden=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_against_references(evaluate_regression(**given, replicates=3), given)


def test_intervals_are_the_quantiles_of_replicates_evaluated_one_by_one():
    given = sample(50, 2)
    found = evaluate_regression(**given, replicates=40, seed=3, level=0.8)
    each = {name: [] for name in found.metrics}
    second = []
    for counts in resample(lambda counts: counts, 50, replicates=40, seed=3).astype(int):
        rows = np.repeat(np.arange(50), counts)
        again = evaluate_regression(**{name: value[rows] for name, value in given.items()}, replicates=0)
        for name, interval in again.metrics.items():
            each[name].append(interval.value)
        second.append(again.per_class["r2"][1].value)
    for name, interval in found.metrics.items():
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(each[name], (0.1, 0.9)))), name
    r2 = found.per_class["r2"][1]
    assert (r2.low, r2.high) == pytest.approx(tuple(np.quantile(second, (0.1, 0.9))))


def test_one_output_may_be_flat_and_what_is_not_given_is_not_measured():
    given = sample(30, 1)
    flat = evaluate_regression(given["mean"], given["labels"][:, 0], replicates=10)
    assert flat == evaluate_regression(given["mean"], given["labels"], replicates=10)
    assert set(flat.metrics) == {"rmse", "mae", "r2", "correlation"}
    against = evaluate_regression(given["mean"], given["labels"], teacher_mean=given["mean"], replicates=5).metrics
    assert against["teacher_rmse"].high == 0
    assert "teacher_kl" not in against


def test_equal_labels_and_equal_predictions_explain_nothing():
    labels = torch.full((6, 1), 0.3)
    missed = values(evaluate_regression(torch.linspace(0, 1, 6)[:, None], labels, replicates=20))
    assert (missed["r2"], missed["correlation"]) == (0, 0)
    met = evaluate_regression(labels, labels, replicates=20).metrics["r2"]
    assert (met.low, met.value, met.high) == (1, 1, 1)
    constant = evaluate_regression(torch.full((6, 1), 0.1), torch.linspace(0, 1, 6)[:, None], replicates=200)
    # Replicates of one sample six times have no variance left, and rounding is no variance.
    assert constant.metrics["correlation"].low == constant.metrics["correlation"].high == 0
    assert constant.metrics["r2"].low > -1e3


def test_a_replicate_without_a_known_label_of_an_output_is_left_out_of_it():
    labels = torch.full((8, 2), NAN)
    labels[:, 0], labels[5, 1] = torch.arange(8.0), 2.0
    found = evaluate_regression(torch.zeros(8, 2), labels, replicates=60)
    rmse = found.per_class["rmse"][1]
    assert (rmse.low, rmse.value, rmse.high) == (2, 2, 2)
    assert np.isfinite(found.metrics["rmse"].low)


def test_seed_level_and_json():
    given = sample(100, 2)
    first, again, other = (evaluate_regression(**given, replicates=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.metrics["r2"] != other.metrics["r2"]
    narrow = evaluate_regression(**given, replicates=100, seed=1, level=0.5).metrics["r2"]
    assert first.metrics["r2"].low < narrow.low < narrow.value < narrow.high < first.metrics["r2"].high
    found = evaluate_regression(**given, output_names=("x", "y"), replicates=10)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["class_names"] == ["x", "y"]
    assert plain["per_class"]["mae"][1]["value"] == found.per_class["mae"][1].value
    assert (plain["n"], plain["replicates"], plain["level"]) == (100, 10, 0.95)


MEAN, LABELS = torch.zeros(3, 2), torch.arange(6.0).reshape(3, 2)
HALF = torch.tensor([[0.0, 1.0], [NAN, NAN], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((MEAN, LABELS.long()), {}, DataError, r"`labels` to be floating point \(3, 2\), got torch.int64 \(3, 2\)"),
        ((MEAN, LABELS[:, 0]), {}, DataError, r"`labels` to be floating point \(3, 2\), got torch.float32 \(3,\)"),
        ((MEAN, HALF), {}, DataError, r"known somewhere in each sample, got 'none' \(evaluation, sample 1\)"),
        (
            (MEAN, torch.tensor([[0.0, NAN]] * 3)),
            {},
            DataError,
            r"known somewhere in each output, got 'none' \(evaluation, output 1\)\. Evaluate on outputs",
        ),
        (
            (MEAN, LABELS / 0),
            {},
            DataError,
            r"`label` to be finite, or NaN .*, got 'infinity' \(evaluation, sample 0\)",
        ),
        ((HALF, LABELS), {}, DataError, r"`mean` to be finite, got nan \(evaluation, sample 1; 1 of 3 rows\)"),
        ((MEAN[:0], LABELS[:0]), {}, DataError, r"floating point \[n, m\] with n at least 1"),
        (
            (MEAN, LABELS),
            {"variance": MEAN},
            DataError,
            r"`variance` to be above 0, got 0\.0 \(evaluation, sample 0, output 0\)",
        ),
        ((MEAN, LABELS), {"variance": MEAN[:1] + 1}, DataError, r"`variance` to be floating point \(3, 2\), got"),
        ((MEAN, LABELS), {"teacher_mean": HALF}, TeacherOutputError, r"`teacher_mean` to be finite, got nan"),
        ((MEAN, LABELS), {"teacher_mean": MEAN[:, :1]}, TeacherOutputError, r"`teacher_mean` to be floating point"),
        ((MEAN, LABELS), {"teacher_variance": -LABELS}, TeacherOutputError, r"`teacher_variance` to be above 0"),
        ((MEAN, LABELS), {"output_names": ("a",)}, ConfigError, r"`output_names` to be 2 names or none, got 1"),
        ((MEAN, LABELS), {"replicates": -1}, ConfigError, r"`replicates` to be a whole number of at least 0"),
    ],
)
def test_refusals(args, options, error, message):
    with pytest.raises(error, match=message):
        evaluate_regression(*args, **options)
