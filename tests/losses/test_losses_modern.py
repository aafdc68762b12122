"""Identities and invariances of the card of modern logit losses: decoupled, by correlation, by products of batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, zscore
from tests.losses.cases import V3, Z3, V, Z

from bookkd.core.errors import ConfigError, DataError, FidelityError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses import (
    CombinedTarget,
    DenseTarget,
    SparseTarget,
    TransformedTarget,
    batch_gram,
    class_gram,
    correlation_inter,
    correlation_intra,
    decoupled_kl,
    soft_target_kl,
)
from bookkd.losses.correlation import _correlation

AT_4 = {"temperature": 4.0, "t_squared": True}
TRUE, OTHERS = {"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}
LABEL = torch.tensor([1])


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def drawn(n, k, seed=0, size=2.0):
    return size * torch.randn(2, n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(loss, student, *args, **hyper):
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *args, **hyper).sum(), leaf)[0]


# Decoupled.


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.floats(0.5, 20), st.sampled_from([0.1, 2.0, 30.0]))
def test_the_divergence_is_the_first_term_and_what_is_left_times_the_second(seed, k, temperature, size):
    student, teacher = drawn(4, k, seed, size)
    labels = torch.arange(4) % k
    hyper = {"temperature": temperature, "t_squared": True}
    first = decoupled_kl(student, teacher, labels, **TRUE, **hyper)
    second = decoupled_kl(student, teacher, labels, **OTHERS, **hyper)
    left = 1 - (teacher / temperature).softmax(-1)[torch.arange(4), labels]
    whole = soft_target_kl(student, teacher, class_reduction="sum", **hyper)
    torch.testing.assert_close(first + left * second, whole, rtol=1e-9, atol=1e-9)


def test_with_two_classes_there_is_no_second_term():
    student, teacher = drawn(4, 2)
    labels = torch.tensor([0, 1, 1, 0])
    assert decoupled_kl(student, teacher, labels, **OTHERS, **AT_4).tolist() == [0.0] * 4
    assert slope(decoupled_kl, student, teacher, labels, **OTHERS, **AT_4).count_nonzero() == 0


def test_the_second_term_ignores_the_logit_of_the_true_class():
    student, teacher = drawn(1, 5)
    wanted = decoupled_kl(student, teacher, LABEL, **OTHERS, **AT_4)
    for changed in (-1e4, -3.0, 9.0, 1e4):
        other = teacher.clone(), student.clone()
        other[0][0, 1] = other[1][0, 1] = changed
        for z, v in ((student, other[0]), (other[1], teacher), (other[1], other[0])):
            found = decoupled_kl(z, v, LABEL, **OTHERS, **AT_4)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert slope(decoupled_kl, student, teacher, LABEL, **OTHERS, **AT_4)[0, 1].abs() < 1e-15


@pytest.mark.parametrize(("z_y", "v_y"), [(60.0, 40.0), (40.0, 60.0), (5000.0, 1.0), (5000.0, 5000.0)])
def test_it_is_exact_in_float32_where_one_side_is_sure(z_y, v_y):
    student, teacher = torch.tensor([[0.0, z_y, 1.0]]), torch.tensor([[-1.0, v_y, 0.5]])
    # In float64, with log (1 - p_y) = log sum exp of the others - log sum exp of all.
    (z, v), others = (np.float64([[0, z_y, 1], [-1, v_y, 0.5]])), [0, 2]
    in_two = [np.array([x[1], np.logaddexp.reduce(x[others])]) - np.logaddexp.reduce(x) for x in (v, z)]
    among = [x[others] - np.logaddexp.reduce(x[others]) for x in (v, z)]
    first, second = ((np.exp(p) * (p - q)).sum() for p, q in (in_two, among))
    hyper = {"temperature": 1.0, "t_squared": True}
    found = [decoupled_kl(student, teacher, LABEL, **part, **hyper).item() for part in (TRUE, OTHERS)]
    # At 5000 a float32 logit has steps of 5e-4.
    assert found == pytest.approx([first, second], rel=1e-5, abs=1e-3 if max(z_y, v_y) > 100 else 1e-6)
    assert slope(decoupled_kl, student, teacher, LABEL, alpha=1.0, beta=8.0, **hyper).isfinite().all()


def test_a_hidden_label_is_0_without_gradient():
    student, teacher = drawn(3, 5)
    labels = torch.tensor([2, IGNORE_LABEL, 0])
    found = decoupled_kl(student, teacher, labels, alpha=1.0, beta=8.0, **AT_4)
    assert found[1] == 0
    assert (found[[0, 2]] > 0).all()
    assert slope(decoupled_kl, student, teacher, labels, alpha=1.0, beta=8.0, **AT_4)[1].count_nonzero() == 0


@pytest.mark.parametrize(
    ("ruled_out", "first", "second"),
    [
        # KL((1, 0) || q) = -log q_y, KL((0, 1) || q) = -log (1 - q_y); a teacher that says nothing asks for nothing.
        ((0, 2), -16 * math.log(0.405500), 0.0),
        ((1,), -16 * math.log(1 - 0.405500), 0.723435),
        ((0, 1, 2), 0.0, 0.0),
    ],
    ids=["others", "true class", "all"],
)
def test_classes_that_the_teacher_rules_out(ruled_out, first, second):
    student, log_p = rows(Z), (V / 4).log_softmax(-1).unsqueeze(0)
    assert (student / 4).softmax(-1)[0, 1].item() == pytest.approx(0.405500, abs=1e-6)
    log_p[0, list(ruled_out)] = -math.inf
    if len(ruled_out) < 3:
        log_p = log_p.log_softmax(-1)
    says = TransformedTarget(DenseTarget(V.unsqueeze(0)), lambda inner, t, extra: log_p)
    for part, wanted in ((TRUE, first), (OTHERS, second)):
        assert decoupled_kl(student, says, LABEL, **part, **AT_4).item() == pytest.approx(wanted, abs=1e-4)
    assert slope(decoupled_kl, student, says, LABEL, alpha=1.0, beta=8.0, **AT_4).isfinite().all()


def test_decoupling_takes_an_ensemble():
    student, one = drawn(4, 5)
    other, labels = one.flip(0), torch.tensor([4, 0, 1, 2])
    both = CombinedTarget.of([DenseTarget(one), DenseTarget(other)])
    mean = ((one / 4).softmax(-1) + (other / 4).softmax(-1)) / 2
    hyper = {"alpha": 1.0, "beta": 8.0, **AT_4}
    wanted = decoupled_kl(student, 4 * mean.log(), labels, **hyper)
    torch.testing.assert_close(decoupled_kl(student, both, labels, **hyper), wanted)


def test_decoupling_refuses():
    student, teacher = drawn(2, 3)
    labels, hyper = torch.tensor([1, 2]), {"alpha": 1.0, "beta": 8.0, **AT_4}
    with pytest.raises(ConfigError, match=r"`views` to be not mixed.*decoupled_kl\)\. Make a book of views that"):
        decoupled_kl(student, teacher, labels, labels, **hyper)
    with pytest.raises(DataError, match=r"`label` to be 0 to 2, .* got 3 \(decoupled_kl, position \[1\]\)"):
        decoupled_kl(student, teacher, torch.tensor([0, 3]), **hyper)
    with pytest.raises(ConfigError, match=r"`labels` to be whole numbers of shape \[2\], got .* \[1\] \(decoupled_kl"):
        decoupled_kl(student, teacher, LABEL, **hyper)
    with pytest.raises(
        FidelityError, match=r"`teacher` to be dense logits, got the 2 largest of 3 \(decoupled_kl: how the"
    ):
        decoupled_kl(student, SparseTarget.from_logits(teacher, 2, (4.0,)), labels, **hyper)
    for name in ("alpha", "beta"):
        with pytest.raises(ConfigError, match=f"`{name}` to be a finite number, got nan"):
            decoupled_kl(student, teacher, labels, **{**hyper, name: math.nan})


# Correlations.


def moved(logits, scale, shift):
    """The teacher's probabilities times `scale` plus `shift`, which are probabilities no more."""
    return TransformedTarget(
        DenseTarget(logits), lambda inner, t, extra: (scale * inner.log_probabilities(t).exp() + shift).log()
    )


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.0, 5), st.sampled_from([(1.0, 1e-6), (4.0, 1e-5)]))
def test_a_positive_affine_change_is_free(scale, shift, at):
    temperature, tolerance = at
    student, hyper = rows(*Z3), {"temperature": temperature, "t_squared": False}
    by_row = (scale * rows([1.0], [2.0], [0.7]), shift * rows([0.1], [0.0], [1.0]))
    by_column = (scale * rows([1.0, 2.0, 0.7]), shift * rows([0.1, 0.0, 1.0]))
    for loss, change in ((correlation_inter, by_row), (correlation_intra, by_column)):
        wanted = loss(student, V3, **hyper)
        torch.testing.assert_close(loss(student, moved(V3, *change), **hyper), wanted, rtol=0, atol=tolerance)


def test_it_is_half_the_squared_distance_of_standard_scores():
    assert (1 - _correlation(rows(*Z), V, -1)).item() == pytest.approx(0.071429, abs=1e-6)
    student, teacher = drawn(6, 5)
    q, p = (x.softmax(-1).numpy() for x in (student, teacher))
    hyper = {"temperature": 1.0, "t_squared": True}
    inter = correlation_inter(student, teacher, **hyper)
    np.testing.assert_allclose(inter, 0.5 * np.square(zscore(q, axis=1) - zscore(p, axis=1)).mean(1), atol=1e-6)
    intra = correlation_intra(student, teacher, **hyper).item()
    assert intra == pytest.approx(0.5 * np.square(zscore(q, axis=0) - zscore(p, axis=0)).mean(), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(2, 6), st.sampled_from([0.1, 2.0, 100.0]))
def test_correlations_lie_between_0_and_2(seed, n, k, size):
    student, teacher = drawn(n, k, seed, size)
    hyper = {"temperature": 1.0, "t_squared": True}
    for found in (correlation_inter(student, teacher, **hyper), correlation_intra(student, teacher, **hyper)):
        assert bool((found >= -1e-12).all() & (found <= 2 + 1e-12).all())


@pytest.mark.parametrize("loss", [correlation_inter, correlation_intra])
def test_correlations_are_0_at_the_teacher_and_2_at_its_opposite(loss):
    student, hyper = rows(*Z3), {"temperature": 1.0, "t_squared": True}
    assert loss(student, student, **hyper).abs().max() < 1e-6
    torch.testing.assert_close(loss(student, moved(student, -1, 2), **hyper).mean(), rows(2.0)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [correlation_inter, correlation_intra])
def test_a_side_without_spread_correlates_with_nothing(loss):
    student, flat = drawn(4, 4)[0], torch.zeros(4, 4, dtype=torch.float64)
    hyper = {"temperature": 1.0, "t_squared": True}
    assert loss(student, flat, **hyper).mean().item() == pytest.approx(1, abs=1e-12)
    assert slope(loss, student, flat, **hyper).abs().max() < 1e-6
    assert loss(flat, student, **hyper).mean().item() == pytest.approx(1, abs=1e-12)
    assert slope(loss, flat, student, **hyper).isfinite().all()


def test_a_batch_of_two_has_correlations_of_1_and_no_gradient():
    student, teacher = drawn(2, 5)
    hyper = {"temperature": 1.0, "t_squared": True}
    q, p = student.softmax(-1), teacher.softmax(-1)
    against = ((q[0] - q[1]) * (p[0] - p[1]) < 0).double().mean().item()
    assert correlation_intra(student, teacher, **hyper).item() == pytest.approx(2 * against, abs=1e-5)
    assert slope(correlation_intra, student, teacher, **hyper).abs().max() < 1e-4
    assert pearsonr(q[:, 0], p[:, 0])[0] ** 2 == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (3,), (2, 2, 3)])
def test_relations_over_a_batch_want_rows(shape):
    student = torch.zeros(shape)
    with pytest.raises(
        ConfigError, match=r"`student` to be \[rows, classes\] of at least two rows, .* One row has nothing"
    ):
        correlation_intra(student, student, temperature=1.0, t_squared=True)


# Products of batches.


@pytest.mark.parametrize("loss", [class_gram, batch_gram, correlation_intra])
def test_permuting_samples_or_classes_changes_nothing(loss):
    student, teacher = drawn(6, 5)
    hyper = {"temperature": 4.0, **({"t_squared": True} if loss is correlation_intra else {"views": 1})}
    wanted = loss(student, teacher, **hyper)
    order, classes = torch.randperm(6), torch.randperm(5)
    torch.testing.assert_close(loss(student[order], teacher[order], **hyper), wanted)
    torch.testing.assert_close(loss(student[:, classes], teacher[:, classes], **hyper), wanted)
    # The products of classes say nothing of which sample was which, those of samples nothing of which class.
    blind = [torch.allclose(loss(student, teacher.roll(1, axis), **hyper), wanted) for axis in (0, 1)]
    assert blind == [loss is class_gram, loss is batch_gram]


@pytest.mark.parametrize("loss", [class_gram, batch_gram])
def test_each_view_is_a_batch_of_its_own(loss):
    student, teacher = drawn(6, 5)
    parts = [loss(student[view::2], teacher[view::2], temperature=2.0, views=1) for view in range(2)]
    torch.testing.assert_close(loss(student, teacher, temperature=2.0, views=2), torch.stack(parts).mean())
    # The other view of a row plays no part in the products of the first.
    changed = teacher.clone()
    changed[1::2] = student[1::2]
    torch.testing.assert_close(loss(student, changed, temperature=2.0, views=2), parts[0] / 2)


@pytest.mark.parametrize("loss", [class_gram, batch_gram])
def test_products_refuse(loss):
    student = torch.zeros(3, 4)
    with pytest.raises(ConfigError, match=r"\[rows, classes\], the rows a multiple of 2 views, got shape \[3, 4\]"):
        loss(student, student, temperature=1.0, views=2)
    with pytest.raises(ConfigError, match=r"multiple of 1 views, got shape \[0, 4\]"):
        loss(student[:0], student[:0], temperature=1.0, views=1)
    with pytest.raises(ConfigError, match="`views` to be a whole number of at least 1, got 0"):
        loss(student, student, temperature=1.0, views=0)
    with pytest.raises(FidelityError, match="the probabilities of the classes left out are unknown"):
        loss(student, SparseTarget.from_logits(student, 2, (1.0,)), temperature=1.0, views=1)
