"""T. stddev and its company: the card's numbers, numpy and scipy, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from bookkd.core.errors import ConfigError, DataError
from bookkd.evaluation import compare_views, score_views, teacher_stddev

CARD = [[0.2, 0.5, 0.3], [0.25, 0.45, 0.3], [0.15, 0.5, 0.35]]


def logits_of(rows: int, classes: int = 5, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, classes)) * scale


def test_the_numbers_of_the_card():
    assert teacher_stddev(CARD, unbiased=True) == pytest.approx(0.035912, abs=5e-7)
    assert teacher_stddev(CARD, unbiased=False) == pytest.approx(0.029322, abs=5e-7)
    # Logits whose softmax is the card's: one group a row.
    assert score_views(np.log(CARD), group_rows=1).stddev.value == pytest.approx(0.035912, abs=5e-7)
    assert teacher_stddev(np.tile(CARD[0], (4, 1)), unbiased=True) == 0


def test_against_numpy_and_scipy():
    logits, labels = logits_of(330), np.random.default_rng(1).integers(0, 5, 330)
    labels[:40] = -1
    found = score_views(logits, group_rows=32, labels=labels)
    p = softmax(logits[:320], axis=1)
    assert (found.groups, found.group_rows) == (10, 32)
    assert found.stddev.value == pytest.approx(np.std([u.mean(0) for u in np.split(p, 10)], axis=0, ddof=1).mean())
    assert found.entropy.value == pytest.approx(entropy(p, axis=1).mean())
    assert found.sharpness.value == pytest.approx(p.max(1).mean())
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx((p.argmax(1) == labels[:320])[40:].mean())
    for each in (found.stddev, found.entropy, found.sharpness, found.agreement):
        assert each.low < each.value < each.high


def test_a_mixed_view_agrees_with_either_of_its_labels():
    logits = np.eye(4)[[0, 1, 2, 3]] * 9
    found = score_views(logits, group_rows=2, labels=[0, 0, 0, -1], partner_labels=[1, 1, 1, 3])
    assert found.agreement.value == 3 / 4
    assert score_views(logits, group_rows=2).agreement is None
    assert score_views(logits, group_rows=2, labels=[-1] * 4).agreement is None


def test_larger_groups_shrink_it_as_the_root_of_their_rows():
    logits = logits_of(200_000)
    small, large = (score_views(logits, group_rows=rows, replicates=0).stddev.value for rows in (20, 320))
    assert small / large == pytest.approx(4, rel=0.1)


def test_the_interval_holds_the_deviation_of_the_population():
    population = np.random.default_rng(0).dirichlet(np.full(5, 0.5), size=300_000)
    truth = (population.std(axis=0) / np.sqrt(16)).mean()  # of the mean of 16 independent rows
    held = 0
    for seed in range(200):
        draws = np.random.default_rng(seed).integers(0, len(population), 40 * 16)
        found = score_views(np.log(population[draws] + 1e-300), group_rows=16, replicates=200, seed=seed).stddev
        held += found.low <= truth <= found.high
    assert held > 170  # of a percentile interval of 40 groups, promised 190


def test_recipes_over_the_same_samples_are_compared_together():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2000, 5)) * 2
    sharp, flat = (score_views(shared * factor, group_rows=20) for factor in (1.5, 1.4))
    apart = compare_views(flat, sharp)
    assert apart.value == pytest.approx(flat.stddev.value - sharp.stddev.value)
    assert apart.high < 0
    # Each one's own interval would not have told.
    assert flat.stddev.high > sharp.stddev.low
    same = compare_views(flat, flat)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: teacher_stddev(CARD[:1], unbiased=True), DataError, r"`means` to be two groups at least"),
        (lambda: teacher_stddev([0.2, 0.8], unbiased=True), DataError, r"got shape \(2,\)"),
        (
            lambda: score_views(logits_of(30), group_rows=16),
            DataError,
            r"two groups of 16 rows at least, got .*\(30, 5\)",
        ),
        (lambda: score_views([[np.inf, 0], [0, 0]], group_rows=1), DataError, "to be finite, .* got infinite values"),
        (
            lambda: score_views(logits_of(30), group_rows=0),
            ConfigError,
            "`group_rows` to be a whole number of at least 1",
        ),
        (lambda: score_views(logits_of(8), group_rows=2, labels=[1, 2]), DataError, "one class for each of 8 rows"),
        (
            lambda: compare_views(score_views(logits_of(8), group_rows=2), score_views(logits_of(8), group_rows=4)),
            DataError,
            "`groups` to be of one number and size, got 4 of 2 and 2 of 4 rows",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
