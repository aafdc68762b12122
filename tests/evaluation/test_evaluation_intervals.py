"""The bootstrap: closed forms, coverage on a known distribution, and independence of how replicates are cut into chunks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bookkd.core.errors import ConfigError
from bookkd.evaluation import bootstrap
from bookkd.evaluation.intervals import interval_of, resample


def mean_of(values: np.ndarray):
    return lambda counts: counts @ values[:, None] / len(values)


def test_counts_are_a_draw_with_replacement():
    counts = resample(lambda counts: counts, 7, replicates=4000, seed=5)
    assert counts.shape == (4000, 7)
    assert (counts.sum(axis=1) == 7).all()
    # Each count is binomial(7, 1/7).
    observed = np.bincount(counts[:, 3].astype(int), minlength=8)[:5]
    wanted = stats.binom.pmf(range(5), 7, 1 / 7) * 4000
    assert (np.abs(observed - wanted) < 5 * np.sqrt(wanted)).all()


def test_against_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    (found,) = bootstrap(mean_of(values), 300, replicates=4000, seed=0, level=0.9)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", confidence_level=0.9, n_resamples=4000, rng=1)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(theirs.confidence_interval, abs=0.01)


def test_coverage_on_a_known_distribution():
    draws = np.random.default_rng(1)
    held = 0
    for repeat in range(300):
        values = draws.normal(2.0, 1.0, size=100)
        (found,) = bootstrap(mean_of(values), 100, replicates=300, seed=repeat, level=0.9)
        held += found.low <= 2.0 <= found.high
    # 0.9 expected; five standard deviations of a binomial share are 0.087.
    assert 0.81 < held / 300 < 0.98


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch):
    whole = resample(lambda counts: counts, 11, replicates=50, seed=2)
    monkeypatch.setattr("bookkd.evaluation.intervals._CHUNK", 70)
    np.testing.assert_array_equal(resample(lambda counts: counts, 11, replicates=50, seed=2), whole)


def test_several_statistics_share_the_replicates():
    values = np.arange(5.0)
    first, second = bootstrap(
        lambda counts: counts @ np.stack([values, 2 * values], axis=1) / 5, 5, replicates=99, seed=0, level=0.5
    )
    assert (second.value, second.low, second.high) == pytest.approx((2 * first.value, 2 * first.low, 2 * first.high))


def test_edges():
    (found,) = bootstrap(mean_of(np.array([3.0])), 1, replicates=10, seed=0, level=0.95)
    assert (found.value, found.low, found.high) == (3, 3, 3)
    (found,) = bootstrap(mean_of(np.array([1.0, 2.0])), 2, replicates=0, seed=0, level=0.95)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_refusals():
    with pytest.raises(ConfigError, match="`n` to be a whole number of at least 1, got 0"):
        resample(lambda counts: counts, 0, replicates=1, seed=0)
    with pytest.raises(ConfigError, match="`level` to be above 0 and below 1, got 1"):
        interval_of(0.0, np.array([1.0]), level=1)
