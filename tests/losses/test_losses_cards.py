"""The worked numbers of the method cards that concern more than one loss at one point."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tests.losses.cases import TOP2, T, V, X, Z

from bookkd.losses import (
    SparseTarget,
    expected_unique,
    generalised_jsd,
    importance_weights,
    probability_cross_entropy,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_target_kl,
    softened_mse,
    truncated_kl,
)

EXACT = {"temperature": 1.0, "t_squared": True}
SUM = {**EXACT, "class_reduction": "sum"}


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def value_and_gradient(loss, student, *args, **hyper):
    leaf = student.clone().requires_grad_()
    value = loss(leaf, *args, **hyper)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def draws_of(n):
    """Every outcome of n draws with replacement: the draws, their estimate of t, and the probability of each."""
    draws = torch.tensor(list(itertools.product(range(6), repeat=n)))
    counts = torch.nn.functional.one_hot(draws, 6).double().mean(1)
    return draws, counts, T[draws].prod(-1)


def test_card_probabilities():
    assert vector(*X).softmax(-1).numpy() == pytest.approx(
        [0.359427, 0.218004, 0.132226, 0.080199, 0.161501, 0.048643], abs=1e-6
    )
    assert vector(*Z).softmax(-1).numpy() == pytest.approx([0.231224, 0.628532, 0.140244], abs=1e-6)
    assert V.softmax(-1).numpy() == pytest.approx([0.180784, 0.810216, 0.009001], abs=1e-6)


def test_divergences_agree_with_scipy():
    p, q = T.numpy(), vector(*X).softmax(-1).numpy()
    x, t = vector(*X), T.log()
    assert soft_target_kl(x, t, **SUM).item() == pytest.approx(entropy(p, q), abs=1e-12)
    assert reverse_kl(x, t, **EXACT).item() == pytest.approx(entropy(q, p), abs=1e-12)
    assert generalised_jsd(x, t, beta=0.5, **EXACT).item() == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)


def test_soft_target_kl_agrees_with_torch():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch_value = torch.nn.functional.kl_div(
        (student / 3).log_softmax(-1), (teacher / 3).log_softmax(-1), reduction="none", log_target=True
    )
    ours = soft_target_kl(student, teacher, temperature=3.0, t_squared=True, class_reduction="sum")
    torch.testing.assert_close(ours, 9 * torch_value.sum(-1), rtol=1e-12, atol=1e-12)


def test_soft_cross_entropy_is_divergence_plus_entropy():
    soft = soft_cross_entropy(vector(*Z), V, temperature=4.0, t_squared=False).item()
    divergence = soft_target_kl(vector(*Z), V, temperature=4.0, t_squared=False, class_reduction="sum").item()
    assert divergence == pytest.approx(0.039811, abs=1e-6)
    assert soft - divergence == pytest.approx(1.008735, abs=1e-6)
    assert entropy((V / 4).softmax(-1)) == pytest.approx(1.008735, abs=1e-6)


def test_gradient_is_temperature_times_the_difference_of_probabilities():
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    v = z.roll(1, 0)
    _, slope = value_and_gradient(soft_target_kl, z, v, temperature=5.0, t_squared=True, class_reduction="sum")
    torch.testing.assert_close(slope, 5 * ((z / 5).softmax(-1) - (v / 5).softmax(-1)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope.sum(-1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_low_temperature_limit():
    z, v = vector(3.0, 1.0, 2.5), vector(0.0, 2.0, 1.0)

    def at(temperature, teacher):
        return soft_target_kl(z, teacher, temperature=temperature, t_squared=False, class_reduction="sum").item()

    # T KL -> max z - z_a with a the teacher's class; 0 once the classes agree; T^2 KL fades.
    assert 1e-3 * at(1e-3, v) == pytest.approx(3.0 - 1.0, abs=1e-6)
    assert 1e-3 * at(1e-3, vector(5.0, 2.0, 1.0)) == pytest.approx(0, abs=1e-6)
    assert 1e-6 * at(1e-3, v) < 0.01


@pytest.mark.parametrize("renormalise", ["none", "teacher", "both"])
def test_with_every_class_kept_truncation_is_the_divergence(renormalise):
    x, everything = vector(*X), SparseTarget.from_logits(T.log(), 6, (1.0,))
    value, slope = value_and_gradient(truncated_kl, x, everything, renormalise=renormalise, **EXACT)
    assert value.item() == pytest.approx(0.090129, abs=1e-6)
    torch.testing.assert_close(slope, x.softmax(-1) - T, rtol=1e-12, atol=1e-14)


def test_truncation_teacher_is_truncation_none_divided_by_the_kept_mass():
    _, none = value_and_gradient(truncated_kl, vector(*X), TOP2, renormalise="none", **EXACT)
    _, teacher = value_and_gradient(truncated_kl, vector(*X), TOP2, renormalise="teacher", **EXACT)
    torch.testing.assert_close(none, 0.7 * teacher, rtol=1e-12, atol=1e-14)


def test_truncation_may_be_negative_where_the_tail_bucket_is_not():
    target = SparseTarget.from_logits(vector(0.1, 0.2, 0.7).log(), 1, (1.0,))
    student = vector(0.02, 0.03, 0.95).log()
    assert truncated_kl(student, target, renormalise="none", **EXACT).item() == pytest.approx(
        0.7 * math.log(0.7 / 0.95)
    )
    assert soft_target_kl(student, target, **SUM).item() > 0


def test_tail_bucket_never_falls_when_more_is_kept():
    x, steps = vector(*X), [SparseTarget.from_logits(T.log(), k, (1.0,)) for k in range(1, 7)]
    values = [soft_target_kl(x, target, **SUM).item() for target in steps]
    assert values == sorted(values)
    assert values[1] == pytest.approx(0.045038, abs=1e-6)
    assert values[-1] == pytest.approx(0.090129, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=3, max_size=12),
    st.sampled_from([0.5, 1.0, 4.0]),
)
@settings(max_examples=60, deadline=None)
def test_coarsening_lowers_every_divergence(pairs, temperature):
    student, teacher = torch.tensor(pairs, dtype=torch.float64).T
    hyper = {"temperature": temperature, "t_squared": True}
    targets = [SparseTarget.from_logits(teacher, k, (temperature,)) for k in range(1, len(teacher) + 1)]
    for loss, more in (
        (soft_target_kl, {"class_reduction": "sum"}),
        (reverse_kl, {}),
        (generalised_jsd, {"beta": 0.3}),
        (skew_kl, {"alpha": 0.1}),
        (skew_reverse_kl, {"alpha": 0.1}),
    ):
        values = [loss(student, target, **hyper, **more).item() for target in targets]
        assert values[0] > -1e-12
        assert all(low <= high + 1e-9 for low, high in itertools.pairwise(values))
        assert values[-1] == pytest.approx(loss(student, teacher, **hyper, **more).item(), abs=1e-9)


def test_order_of_the_stored_pairs_does_not_matter():
    turned = SparseTarget(TOP2.values.flip(-1), TOP2.indices.flip(-1), TOP2.log_tail_mass, (1.0,), 6)
    for target in (TOP2, turned):
        assert soft_target_kl(vector(*X), target, **SUM).item() == pytest.approx(0.045038, abs=1e-6)


def test_random_sampling_keeps_cross_entropy_and_its_gradient():
    _, counts, chance = draws_of(3)
    assert len(counts) == 216
    x = vector(*X)
    values, slopes = value_and_gradient(probability_cross_entropy, x.expand(216, 6), counts, **EXACT)
    assert (chance * values).sum().item() == pytest.approx(1.473244, abs=1e-6)
    torch.testing.assert_close(chance @ slopes, x.softmax(-1) - T, rtol=0, atol=1e-15)


def test_random_sampling_breaks_divergences():
    _, counts, chance = draws_of(3)
    x = vector(*X).expand(216, 6)
    # Classes that were not drawn are ruled out: their logit is -inf.
    divergence = (chance * soft_target_kl(x, counts.log(), **SUM)).sum().item()
    assert divergence == pytest.approx(0.781323, abs=1e-6)
    values, slopes = value_and_gradient(generalised_jsd, x, counts.log(), beta=0.5, **EXACT)
    assert (chance * values).sum().item() == pytest.approx(0.226434, abs=1e-6)
    _, true_slope = value_and_gradient(generalised_jsd, x[0], T.log(), beta=0.5, **EXACT)
    assert (chance @ slopes - true_slope).abs().max().item() == pytest.approx(0.0134, abs=5e-5)


def test_importance_weights_are_unbiased_and_self_normalised_ones_are_not():
    q = T.sqrt() / T.sqrt().sum()
    draws, _, _ = draws_of(2)
    chance = q[draws].prod(-1)
    weights = importance_weights(T.expand(36, 6), q.expand(36, 6), draws)

    def mean_of(given):
        return (chance @ torch.zeros(36, 6, dtype=torch.float64).scatter_add(-1, draws, given)).numpy()

    assert mean_of(weights) == pytest.approx(T.numpy(), abs=1e-15)
    normalised = weights / weights.sum(-1, keepdim=True)
    assert mean_of(normalised) == pytest.approx([0.403422, 0.211745, 0.171318, 0.106124, 0.073141, 0.034251], abs=1e-6)


def test_importance_weights_at_the_teacher_itself_are_equal():
    assert importance_weights(T, T, torch.tensor([5, 0, 0, 1])).tolist() == [0.25] * 4


@pytest.mark.parametrize("draws", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)])
def test_importance_weights_refuse_other_positions(draws):
    with pytest.raises(ValueError, match="with draws at the same positions"):
        importance_weights(T, T, draws)


def test_expected_unique_classes():
    assert expected_unique(T, 4).item() == pytest.approx(2.552626, abs=1e-6)
    assert expected_unique(T, 50).item() == pytest.approx(5.543109, abs=1e-6)
    assert expected_unique(vector(1.0, 0.0), 9).item() == 1.0
    with pytest.raises(ValueError, match="Expected `n` to be a whole number of at least 1, got 0"):
        expected_unique(T, 0)


@pytest.mark.parametrize(
    ("temperature", "log_sum", "mass"),
    [(1.0, 4.190766, 0.938157), (2.0, 2.592459, 0.756390), (4.0, 2.005503, 0.587766)],
)
def test_kept_mass_at_each_temperature(temperature, log_sum, mass):
    z = vector(4.0, 2.0, 1.0, 0.0, -1.0)
    assert (z / temperature).logsumexp(-1).item() == pytest.approx(log_sum, abs=1e-6)
    target = SparseTarget.from_logits(z, 2, (1.0, 2.0, 4.0))
    assert 1 - target.log_tail(temperature).exp().item() == pytest.approx(mass, abs=1e-6)
    assert target.kept_log_probabilities(temperature).exp().sum().item() == pytest.approx(mass, abs=1e-6)
    whole = np.exp(z.numpy() / temperature - log_sum)[:2]
    assert target.kept_log_probabilities(temperature).exp().numpy() == pytest.approx(whole, abs=1e-6)


def test_tempering_what_is_left_is_not_tempering_the_teacher():
    target = SparseTarget.from_logits(vector(4.0, 2.0, 1.0, 0.0, -1.0), 2, (1.0, 2.0))
    assert target.renormalised_log_probabilities(2.0).exp()[0].item() == pytest.approx(0.731059, abs=1e-6)
    assert target.kept_log_probabilities(2.0).exp()[0].item() == pytest.approx(0.552966, abs=1e-6)


def test_student_equal_to_the_teacher_on_the_top_16_of_1000():
    """Kept mass 0.20: forgetting the tail gives a large loss or gradient at the very teacher, the tail bucket none."""
    teacher = torch.cat([torch.full((16,), 0.2 / 16), torch.full((984,), 0.8 / 984)]).double().log()
    target = SparseTarget.from_logits(teacher, 16, (1.0,))
    found = {
        renormalise: value_and_gradient(truncated_kl, teacher, target, renormalise=renormalise, **EXACT)
        for renormalise in ("none", "teacher", "both")
    }
    size = {name: (value.item(), slope.abs().sum().item()) for name, (value, slope) in found.items()}
    # Closed form with M = 0.2: value -log M and gradient 2 (1 - M); 0 and 2 M (1 - M); 0 and 0.
    assert size["teacher"] == pytest.approx((1.609, 1.6), abs=1e-3)
    assert size["none"] == pytest.approx((0, 0.32), abs=1e-3)
    assert size["both"] == pytest.approx((0, 0), abs=1e-12)
    value, slope = value_and_gradient(soft_target_kl, teacher, target, **SUM)
    assert (value.item(), slope.abs().sum().item()) == pytest.approx((0, 0), abs=1e-12)


def test_both_renormalised_is_blind_to_the_tail():
    x = vector(*X)
    lifted = x.clone()
    lifted[2:] += 3
    for renormalise, blind in (("both", True), ("none", False)):
        before = truncated_kl(x, TOP2, renormalise=renormalise, **EXACT)
        after = truncated_kl(lifted, TOP2, renormalise=renormalise, **EXACT)
        assert math.isclose(before.item(), after.item(), abs_tol=1e-12) == blind


def test_ratios_between_the_conventions_of_other_code():
    student, teacher = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = soft_target_kl(student, teacher, temperature=4.0, t_squared=True, class_reduction="sum").mean()
    bare = soft_target_kl(student, teacher, temperature=4.0, t_squared=False, class_reduction="sum").mean()
    by_class = soft_target_kl(student, teacher, temperature=4.0, t_squared=True, class_reduction="mean").mean()
    assert (bare / one).item() == pytest.approx(0.0625, rel=1e-12)
    assert (by_class / one).item() == pytest.approx(0.01, rel=1e-12)
    assert (softened_mse(student, teacher, temperature=4.0, t_squared=True).mean() / one).item() < 1e-3
    assert (
        soft_cross_entropy(student, teacher, temperature=4.0, t_squared=True).mean() / one
    ).item() > 10  # the teacher's entropy drowns the divergence


def test_jsd_limits_after_division():
    x, t, small = vector(*X), T.log(), 1e-7
    near_forward = generalised_jsd(x, t, beta=small, **EXACT) / small
    near_reverse = generalised_jsd(x, t, beta=1 - small, **EXACT) / small
    assert near_forward.item() == pytest.approx(0.090129, abs=1e-6)
    assert near_reverse.item() == pytest.approx(0.116259, abs=1e-6)
