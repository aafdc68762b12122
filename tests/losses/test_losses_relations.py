"""Losses that relate the rows of a batch: what they do not see, large batches, twins, contrast, and classes."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses.feature_cases import CRD_V, F4, Y4, S, T, number
from torch.testing import assert_close

from bookkd.core.errors import ConfigError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses import (
    _angles,
    cc_kernel,
    cc_neighbours,
    crd,
    feature_mse,
    intra_class_variance,
    orthogonal_projection,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10**6)
RELATIONS = (rkd_distance, rkd_angle, similarity_preserving, pkt)


def pair(seed, n=5, d=3):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(features, seed):
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return features @ torch.linalg.qr(noise)[0]


@given(seeds, st.floats(1e-2, 1e2))
@few
def test_what_they_do_not_see(seed, scale):
    student, teacher = pair(seed)
    moved = scale * rotated(student, seed) + number([1.0, -2.0, 3.0])
    for loss in (rkd_distance, rkd_angle):
        assert_close(loss(moved, teacher), loss(student, teacher), rtol=1e-6, atol=1e-8)
    assert_close(similarity_preserving(scale * student, teacher), similarity_preserving(student, teacher))
    factors = 0.1 + torch.rand(5, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_close(pkt(factors * student, teacher), pkt(student, teacher), rtol=1e-6, atol=1e-9)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    for loss in RELATIONS:
        assert_close(loss(student[order], teacher[order]), loss(student, teacher))


def test_the_cards_sums():
    student, teacher = number(S), number(T)
    for rows in (student, 3 * student + 7):
        distance, angle = rkd_distance(rows, teacher).item(), rkd_angle(rows, teacher).item()
        assert 25 * distance + 50 * angle == pytest.approx(8.890591, abs=1e-5)
        assert distance + 2 * angle == pytest.approx(0.355624, abs=1e-6)
    assert feature_mse(student, teacher).mean().item() == pytest.approx(1.0)
    assert feature_mse(3 * student + 7, teacher).mean().item() > 2


def test_the_kernels_diagonal():
    # Rows of one direction: all entries are that of the diagonal; against rows of right angles, exp(-2g).
    same, apart = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    wanted = ((0.952577 - 0.449329) ** 2) / 2
    assert cc_kernel(same, apart, gamma=0.4, order=2).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("loss", RELATIONS)
def test_twins_and_dead_rows_have_finite_gradients(loss):
    student, teacher = pair(1)
    student[1], student[2] = student[0], 0
    for rows in (student, torch.zeros_like(student), student[:1]):
        leaf = rows.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, teacher[: len(rows)]), leaf)
        assert bool(slope.isfinite().all())
        assert slope.abs().max() < 100


def written_out(student, teacher):
    """Return the loss of all angles with every triple on its own, from the equation."""
    n, parts = len(student), []
    for i, j, k in product(range(n), repeat=3):
        cosines = []
        for rows in (student, teacher):
            one, other = rows[j] - rows[i], rows[k] - rows[i]
            cosines.append(one @ other / (one.norm() * other.norm()) if i not in (j, k) else 0 * one.sum())
        apart = (cosines[0] - cosines[1]).abs()
        parts.append(torch.where(apart < 1, apart**2 / 2, apart - 0.5))
    return torch.stack(parts).sum() / n**3


@pytest.mark.parametrize("rows", [1, 2, 3, 7], ids="{} samples at a time".format)
def test_angles_a_few_samples_at_a_time(monkeypatch, rows):
    student, teacher = pair(2, n=7)
    leaf = student.clone().requires_grad_()
    whole = written_out(leaf, teacher)
    (slope,) = torch.autograd.grad(whole, leaf)
    monkeypatch.setattr(_angles, "_CACHED", rows * 7 * 7)
    parts = rkd_angle(leaf, teacher)
    assert_close(parts, whole)
    assert_close(torch.autograd.grad(3 * parts, leaf)[0], 3 * slope)


def test_angles_that_differ_by_more_than_one_pull_no_harder():
    student = number([[0.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-0.5, 0.3]]).requires_grad_()
    teacher = number([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1], [0.5, 0.4]])
    loss, whole = rkd_angle(student, teacher), written_out(student, teacher)
    assert_close(loss, whole)
    assert_close(torch.autograd.grad(loss, student)[0], torch.autograd.grad(whole, student)[0])


def test_angles_can_be_differentiated_twice():
    student, teacher = pair(4, n=4)
    assert torch.autograd.gradgradcheck(lambda rows: rkd_angle(rows, teacher), student.requires_grad_())


def test_neighbours_depend_on_the_order():
    student, teacher = pair(3)
    assert cc_neighbours(student[[0, 2, 1, 3, 4]], teacher[[0, 2, 1, 3, 4]]) != cc_neighbours(student, teacher)


CRD = {"temperature": 0.5, "population": 4, "normaliser": 10.0}
U = number([[1.0, 1.0]])


def test_contrast_on_the_card():
    # p = (0.666831, 0.411325, 0.032976), K Pn = 0.5.
    noise = 0.5
    for rows, p in (([0, 1], 0.411325), ([0, 2], 0.032976)):
        value = crd(U, CRD_V[rows], temperature=0.5, population=2, normaliser=10.0)
        wanted = -torch.tensor([0.666831 / (0.666831 + noise), noise / (p + noise)]).log().sum()
        assert value.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_contrast_forgets_lengths_and_the_order_of_negatives():
    assert_close(crd(3 * U, CRD_V * number([[2], [5], [0.1]]), **CRD), crd(U, CRD_V, **CRD))
    assert_close(crd(U, CRD_V[[0, 2, 1]], **CRD), crd(U, CRD_V, **CRD))


def test_rows_of_the_same_class_are_no_negatives():
    student, teacher = pair(4)
    hyper = {"temperature": 0.5, "population": 50, "normaliser": 60.0}
    labels = torch.tensor([0, 1, 0, 2, 1])
    alone = [crd(student[[i]], torch.cat([teacher[[i]], teacher[labels != labels[i]]]), **hyper) for i in range(5)]
    assert_close(crd(student, teacher, labels, **hyper), torch.stack(alone).mean())
    hidden = torch.full((5,), IGNORE_LABEL)
    assert_close(crd(student, teacher, hidden, **hyper), crd(student, teacher, **hyper))
    # With no negatives what is left is log p / (p + 1e-7), close to 0.
    assert crd(student, teacher, torch.zeros(5, dtype=torch.int64), **hyper).abs() < 1e-3


def test_contrast_with_others_behind_the_batch():
    student, teacher = pair(5)
    every = crd(student, teacher, **CRD)
    two = crd(student[:2], teacher, **CRD)
    assert not torch.isclose(every, two)
    leaves = student[:2].clone().requires_grad_(), teacher.clone().requires_grad_()
    for slope in torch.autograd.grad(crd(*leaves, **CRD), leaves):
        assert (slope.abs().sum(1) > 0).all()  # the embedding of the teacher learns too, of negatives as well


@pytest.mark.parametrize("normaliser", [None, 1e30])
def test_contrast_at_a_small_temperature(normaliser):
    leaf = pair(6)[0].float().requires_grad_()
    value = crd(leaf, pair(6)[1].float(), temperature=1e-3, population=1000, normaliser=normaliser)
    assert bool(value.isfinite() and torch.autograd.grad(value, leaf)[0].isfinite().all())


def test_variance_within_classes():
    features = number(F4)
    same = features[[0, 0, 2, 2]]
    assert intra_class_variance(same, Y4, form="class") == 0
    assert intra_class_variance(torch.ones(4, 3), Y4, form="code") == 0
    leaf = same.clone().requires_grad_()
    (slope,) = torch.autograd.grad(intra_class_variance(leaf, Y4, form="class"), leaf)
    assert slope.abs().max() == 0  # the root of nothing
    # One sample alone has no variance; one of no known class counts nowhere.
    labels = torch.tensor([0, 0, 1, IGNORE_LABEL])
    assert_close(
        intra_class_variance(features, labels, form="class"),
        intra_class_variance(features[:2], labels[:2], form="class"),
    )
    assert_close(
        intra_class_variance(features, labels, form="code"), intra_class_variance(features[:3], labels[:3], form="code")
    )


def test_variance_of_the_code_sees_a_rotation_which_the_trace_of_the_other_does_not():
    features = number(F4)
    turned = rotated(features, 1)
    assert not torch.isclose(
        intra_class_variance(turned, Y4, form="code"), intra_class_variance(features, Y4, form="code")
    )
    traces = [rows.reshape(2, 2, 3).var(1).sum(1) for rows in (features, turned)]
    assert_close(*traces)


def test_projection_at_its_ends():
    axes = torch.eye(2, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    assert orthogonal_projection(axes[[0, 0, 1, 1]], labels).item() == pytest.approx(0, abs=2e-6)
    assert orthogonal_projection(-axes[[0, 0, 0, 0]], labels).item() == pytest.approx(0.5, abs=2e-6)
    assert orthogonal_projection(axes, torch.tensor([IGNORE_LABEL] * 2)).item() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rkd_angle(torch.zeros(3, 2), torch.zeros(4, 2)), r"as many rows as the teacher's \[4, 2\], got shape \[3, 2\]"),
        (lambda: crd(torch.zeros(3, 2), torch.zeros(2, 2), **CRD), r"no more rows than the teacher's \[2, 2\].*batch first"),
        (lambda: crd(torch.zeros(3, 2), torch.zeros(3, 4), **CRD), r"got shapes \[3, 2\] and \[3, 4\] .*connectors of one width"),
        (lambda: crd(U, CRD_V, torch.zeros(1), **CRD), r"`labels` to be whole numbers of shape \[3\], one a row"),
        (lambda: crd(U, CRD_V, **{**CRD, "population": 0}), r"`population` to be .*at least 1, got 0"),
        (lambda: crd(U, CRD_V, **{**CRD, "normaliser": 0.0}), r"`normaliser` to be a number above 0"),
        (lambda: cc_neighbours(U, U), r"at least 2 rows, got shape \[1, 2\]"),
        (lambda: cc_kernel(U, U, gamma=0.4, order=0), r"`order` to be .*at least 1, got 0"),
        (lambda: intra_class_variance(U[:, :1], torch.zeros(1).long(), form="code"), r"at least 2 features, got shape \[1, 1\]"),
        (lambda: intra_class_variance(U, torch.zeros(2).long(), form="code"), r"whole numbers of shape \[1\], got .*\[2\]"),
        (lambda: orthogonal_projection(torch.zeros(2, 2, 2), torch.zeros(2).long()), r"floating features \[N, d\]"),
    ],
)  # fmt: skip
def test_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("loss", [partial(intra_class_variance, form="class"), orthogonal_projection])
def test_a_mixed_view_is_of_no_one_class(loss):
    with pytest.raises(ConfigError, match=r"`views` to be not mixed: each has one true class, got mixed views"):
        loss(torch.ones(4, 3), Y4, Y4)
