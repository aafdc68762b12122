"""Paired differences, interactions and the distillation score: scipy and the cards' worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bookkd.core.errors import ConfigError, DataError
from bookkd.evaluation import (
    contrast_of,
    crossing_alpha,
    difference_of,
    distillation_score,
    interaction_of,
    t_quantile,
)

# Card kd-orthogonality, the synthetic table.
BASE, KD, A, BOTH = (
    dict(enumerate(row)) for row in ((70.0, 70.4, 69.8), (71.9, 72.1, 71.6), (71.0, 71.2, 70.9), (72.7, 72.9, 72.4))
)


@pytest.mark.parametrize("dof", [1, 1.2, 1.9, 2, 3, 4, 4.5, 5, 8, 9, 30, 101, 333.3, 5000])
@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_scipys(dof, level):
    assert t_quantile(level, dof) == pytest.approx(stats.t.ppf((1 + level) / 2, dof), rel=1e-9, abs=1e-9)


def test_quantiles_out_of_range():
    with pytest.raises(ConfigError, match="`dof` to be a number of at least 1, got 0"):
        t_quantile(0.95, 0)
    with pytest.raises(ConfigError, match="`level` to be between 0 and"):
        t_quantile(1.0, 3)


def test_a_paired_difference_is_that_of_a_t_test():
    rng = np.random.default_rng(0)
    mine, theirs = rng.normal(0.7, 0.02, 6), rng.normal(0.68, 0.02, 6)
    found = difference_of(dict(enumerate(mine)), dict(enumerate(theirs)), "other")
    wanted = stats.ttest_rel(mine, theirs)
    interval = wanted.confidence_interval(0.95)
    assert found.mean == pytest.approx((mine - theirs).mean())
    assert found.sd == pytest.approx((mine - theirs).std(ddof=1))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.verdict == "more than the noise between seeds") == (wanted.pvalue < 0.05)


def test_only_common_seeds_count():
    found = difference_of({0: 1.0, 1: 2.0, 5: 9.0}, {0: 0.5, 1: 1.0, 7: 3.0}, "other")
    assert (found.n, found.mean) == (2, 0.75)
    assert found.verdict == "inside the noise between seeds"
    one = difference_of({3: 1.0}, {3: 0.5}, "other")
    assert (one.n, one.sd, one.low, one.verdict) == (1, None, None, "one seed: no statement about noise")
    assert difference_of({0: 1.0}, {}, "other") is None


def test_equal_differences_decide_nothing():
    found = difference_of({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25}, "other")
    assert (found.sd, found.verdict) == (0, "the same in every seed: no statement about noise")
    assert difference_of({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, "other").verdict == "inside the noise between seeds"


@given(st.integers(1, 449), st.integers(1, 449), st.integers(-40, 40))
def test_equal_but_for_rounding_is_equal(first, second, gain):
    """Accuracies on 450 samples, the same gain on both seeds: no sum of floats makes a statement of it."""
    mine = {0: (first + gain) / 450, 1: (second + gain) / 450}
    found = difference_of(mine, {0: first / 450, 1: second / 450}, "other")
    assert (found.sd, found.low, found.high) == (0, None, None)
    assert found.verdict == (
        "the same in every seed: no statement about noise" if gain else "inside the noise between seeds"
    )
    assert found.better is None


def apart(cell, by=10):
    """The same figures under other seeds."""
    return {seed + by: value for seed, value in cell.items()}


@pytest.mark.parametrize("sizes", [(2, 2), (2, 6), (5, 3)])
def test_an_unpaired_difference_is_that_of_welchs_test(sizes):
    rng = np.random.default_rng(sum(sizes))
    mine, theirs = rng.normal(0.7, 0.05, sizes[0]), rng.normal(0.5, 0.01, sizes[1])
    found = difference_of(dict(enumerate(mine)), apart(dict(enumerate(theirs))), "other")
    wanted = stats.ttest_ind(mine, theirs, equal_var=False)
    interval = wanted.confidence_interval(0.95)
    assert found.mean == pytest.approx(mine.mean() - theirs.mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.n, found.paired, found.sd) == (min(sizes), False, None)
    more = wanted.pvalue < 0.05
    assert found.verdict == f"{'more than' if more else 'inside'} the noise between seeds, seeds not paired"
    assert found.better is (True if more else None)


def test_seeds_pair_from_two_in_common_on():
    mine, theirs = {0: 0.7, 1: 0.8, 2: 0.9}, {0: 0.6, 1: 0.65, 2: 0.7}
    assert difference_of(mine, theirs, "x").paired
    assert difference_of(mine, apart(theirs, 1), "x").n == 2
    one_shared = difference_of(mine, apart(theirs, 2), "x")
    assert (one_shared.n, one_shared.paired) == (3, False)
    # Of one seed each nothing is known of the noise, common or not.
    assert difference_of({0: 0.7}, theirs, "x").verdict == "one seed: no statement about noise"
    lone = difference_of({5: 0.7}, theirs, "x")
    assert (lone.low, lone.verdict) == (None, "one seed: no statement about noise, seeds not paired")
    assert lone.mean == pytest.approx(0.7 - 0.65)
    same = difference_of({0: 0.5, 1: 0.5}, {2: 0.25, 3: 0.25}, "x")
    assert same.verdict == "the same in every seed: no statement about noise, seeds not paired"


def test_the_unpaired_error_of_the_card():
    cells = [BASE, apart(KD, 10), apart(A, 20), apart(BOTH, 30)]
    found = contrast_of(cells, (1, -1, -1, 1))
    assert found.se == pytest.approx(0.284800, abs=5e-7)
    assert found.mean == pytest.approx(-0.166667, abs=1e-6)
    paired = contrast_of([BASE, KD, A, BOTH], (1, -1, -1, 1))
    assert paired.se == pytest.approx(0.088192, abs=1e-6)
    # "Standard errors differ by 3.2".
    assert found.se / paired.se == pytest.approx(3.2, abs=0.05)
    # Welch and Satterthwaite's dof, from the variances by numpy.
    variances = [np.var(list(cell.values()), ddof=1) / 3 for cell in cells]
    dof = sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, dof) * found.se)


class TestInteraction:
    def test_cells_without_common_seeds_are_not_paired(self):
        found = interaction_of(BASE, apart(KD, 10), apart(A, 20), apart(BOTH, 30), tolerance=0.3)
        assert (found.n, found.paired) == (3, False)
        assert found.se == pytest.approx(0.284800, abs=5e-7)
        assert [found.distillation, found.joint] == pytest.approx([1.8, 2.6])
        assert found.verdict == "orthogonal (weak)"
        assert interaction_of(BASE, KD, A, BOTH, tolerance=0.3).paired

    def test_the_table_of_the_card(self):
        found = interaction_of(BASE, KD, A, BOTH, tolerance=0.3)
        assert found.distillation == pytest.approx(1.8)
        assert found.partner == pytest.approx(0.966667, abs=1e-6)
        assert found.joint == pytest.approx(2.6)
        assert found.interaction == pytest.approx(-0.166667, abs=1e-6)
        assert found.se == pytest.approx(0.088192, abs=1e-6)
        assert (found.low, found.high) == pytest.approx((-0.546125, 0.212792), abs=1e-6)
        assert found.retention == pytest.approx(0.907407, abs=1e-6)
        assert found.verdict == "orthogonal (weak)"

    def test_a_wide_tolerance_calls_it_additive(self):
        assert interaction_of(BASE, KD, A, BOTH, tolerance=0.8).verdict == "additive"

    def test_a_partner_that_does_nothing(self):
        found = interaction_of(BASE, KD, BASE, KD, tolerance=0.3)
        assert (found.partner, found.interaction, found.retention) == (0, 0, 1)

    def test_a_partner_that_is_distillation_itself(self):
        found = interaction_of(BASE, KD, KD, KD, tolerance=0.3)
        assert found.interaction == pytest.approx(-found.distillation)
        assert found.retention == 0

    def test_swapping_names_and_adding_a_constant_change_no_interaction(self):
        found = interaction_of(BASE, KD, A, BOTH, tolerance=0.3)
        assert interaction_of(BASE, A, KD, BOTH, tolerance=0.3).interaction == pytest.approx(found.interaction)
        moved = [{seed: value + 5 for seed, value in cell.items()} for cell in (BASE, KD, A, BOTH)]
        assert interaction_of(*moved, tolerance=0.3).interaction == pytest.approx(found.interaction)

    def test_cells_that_agree_in_all_seeds_decide_nothing(self):
        half = {0: 0.5, 1: 0.5}
        found = interaction_of(half, half, half, {0: 0.52, 1: 0.52}, tolerance=0.3)
        assert (found.verdict, found.retention) == ("undecided", None)
        assert interaction_of(half, half, half, half, tolerance=0.3).verdict == "undecided"

    def test_without_common_seeds_it_is_still_joint_less_the_sum(self):
        """Each two cells share two seeds, all four one: the means are over all seeds of each, for the gains too."""
        seeds = [(0, 1, 2), (1, 2, 3), (2, 3, 4), (0, 3, 4)]
        draws = np.random.default_rng(0).normal(70, 1, (4, 3))
        cells = [dict(zip(some, map(float, row), strict=True)) for some, row in zip(seeds, draws, strict=True)]
        found = interaction_of(*cells, tolerance=0.3)
        base, distilled, partner, both = draws.mean(axis=1)
        assert not found.paired
        assert found.joint == pytest.approx(both - base)
        assert found.interaction == pytest.approx(both - distilled - partner + base)
        assert found.interaction == pytest.approx(found.joint - found.distillation - found.partner)

    def test_a_conflict(self):
        worse = {seed: value - 3 for seed, value in KD.items()}
        assert interaction_of(BASE, KD, A, worse, tolerance=0.3).verdict == "conflicting"

    def test_a_gain_inside_the_noise_has_no_share_that_is_kept(self):
        noisy = {0: 70.1, 1: 70.2, 2: 69.8}
        assert interaction_of(BASE, noisy, A, BOTH, tolerance=0.3).retention is None

    def test_no_gain_keeps_nothing_and_one_seed_decides_nothing(self):
        assert interaction_of(BASE, BASE, A, A, tolerance=0.3).retention is None
        one = interaction_of({0: 1.0}, {0: 2.0}, {0: 3.0}, {0: 4.0}, tolerance=0.3)
        assert (one.verdict, one.se, one.low) == ("undecided", None, None)
        with pytest.raises(DataError, match="`cells` to be of at least one seed each"):
            interaction_of({0: 1.0}, {}, {0: 1.0}, {0: 1.0}, tolerance=0.3)


# Card distillation-metric: size in % of the teacher, accuracy, score at alpha 0.5 and 0.7; the teacher has 71.76 %.
ROWS = [
    (62.84, 69.12, 0.332595, 0.450917),
    (35.36, 67.04, 0.209687, 0.267252),
    (15.25, 62.87, 0.138193, 0.143916),
    (3.74, 43.11, 0.218324, 0.145954),
]


def score(size, accuracy, alpha, scale=1.0):
    return distillation_score(
        student_size=size * scale,
        teacher_size=100 * scale,
        student_accuracy=accuracy,
        teacher_accuracy=71.76,
        alpha=alpha,
    )


@pytest.mark.parametrize(("size", "accuracy", "half", "more"), ROWS)
def test_the_published_scores(size, accuracy, half, more):
    assert score(size, accuracy, 0.5) == pytest.approx(half, abs=1e-6)
    assert score(size, accuracy, 0.7, scale=1e6) == pytest.approx(more, abs=1e-6)
    assert score(size, accuracy, 1.0) == pytest.approx(size / 100)
    assert score(size, accuracy, 0.0) == pytest.approx(1 - accuracy / 71.76)


def test_an_equal_student_scores_alpha_and_a_better_one_less():
    assert score(100, 71.76, 0.5) == 0.5
    better = distillation_score(student_size=0.25, teacher_size=1, student_accuracy=77, teacher_accuracy=75, alpha=0.5)
    assert better == pytest.approx(0.111667, abs=1e-6)


def test_two_students_cross_where_their_scores_are_equal():
    third, fourth = ((size / 100, 1 - accuracy / 71.76) for size, accuracy, *_ in ROWS[2:])
    alpha = crossing_alpha(third, fourth)
    assert score(*ROWS[2][:2], alpha) == pytest.approx(score(*ROWS[3][:2], alpha))
    assert crossing_alpha((0.5, 0.1), (0.4, 0.05)) is None
    assert crossing_alpha((0.5, 0.1), (0.5, 0.1)) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"teacher_accuracy": 0.0}, "`teacher_accuracy` to be a number above 0"),
        ({"teacher_size": 0}, "`teacher_size` to be a number above 0"),
        ({"student_size": 0}, "`student_size` to be a number above 0"),
        ({"student_accuracy": -1.0}, "`student_accuracy` to be between 0 and inf"),
        ({"alpha": 1.1}, "`alpha` to be between 0 and 1"),
    ],
)
def test_out_of_range(change, match):
    good = {"student_size": 1, "teacher_size": 2, "student_accuracy": 0.5, "teacher_accuracy": 0.6, "alpha": 0.5}
    with pytest.raises(ConfigError, match=match):
        distillation_score(**{**good, **change})
