"""Draws and classes alone: unbiased where a loss is linear, refused everywhere else; the tail bucket exact on the head."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.losses.cases import CASES, T, X

from bookkd.book import RowIds, Sampled
from bookkd.core.errors import ConfigError, FidelityError
from bookkd.losses import (
    LOSSES,
    ClassTarget,
    CombinedTarget,
    DenseTarget,
    SampledTarget,
    SparseTarget,
    claims_of,
    soft_cross_entropy,
    soft_target_kl,
    teacher_entropy,
    truncated_kl,
)
from bookkd.objectives import Standardise

KL = {"temperature": 1.0, "t_squared": True, "class_reduction": "sum"}
EXACT = {"temperature": 1.0, "t_squared": True}
STUDENT = torch.tensor(X, dtype=torch.float64)


def all_draws(number):
    """Every sequence of draws from T with its chance, as one target of as many positions."""
    draws = torch.tensor(list(itertools.product(range(6), repeat=number)))
    weights = torch.full(draws.shape, 1 / number, dtype=torch.float64)
    # A class that came twice stands twice: the weights add up, as they would in one entry.
    return SampledTarget(draws, weights, 1.0, 6), T[draws].prod(-1)


def gradients(loss, student, target, **hyper):
    leaf = student.clone().requires_grad_()
    values = loss(leaf, target, **hyper)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def test_on_average_over_all_draws_value_and_gradient_are_the_dense_ones():
    """The card's worked numbers for 3 draws: cross-entropy 1.473244, gradient p - t."""
    target, chance = all_draws(3)
    values, slopes = gradients(soft_cross_entropy, STUDENT.expand(216, 6), target, **EXACT)
    assert (chance * values).sum().item() == pytest.approx(1.473244, abs=1e-6)
    torch.testing.assert_close(chance @ slopes, STUDENT.softmax(-1) - T, rtol=0, atol=1e-15)
    _, slopes = gradients(soft_target_kl, STUDENT.expand(216, 6), target, **KL)
    torch.testing.assert_close(chance @ slopes, STUDENT.softmax(-1) - T, rtol=0, atol=1e-15)


def merged(target):
    """The same draws with each class once, as the codec has them."""
    dense = target.probabilities()
    weights, classes = dense.topk(3, dim=-1)
    return SampledTarget(classes, weights, target.temperature, target.n_classes)


def test_the_value_of_the_divergence_is_above_the_dense_one_by_entropies():
    """The card: the expectation of KL(draws || student) is 0.781323, not 0.090129."""
    target, chance = all_draws(3)
    values = soft_target_kl(STUDENT.expand(216, 6), merged(target), **KL)
    assert (chance * values).sum().item() == pytest.approx(0.781323, abs=1e-6)
    dense = target.probabilities()
    entropy = -(dense * dense.clamp_min(1e-300).log()).sum(-1)
    hidden = -(T * T.log()).sum() - (chance * entropy).sum()
    assert (chance * values).sum().item() - hidden.item() == pytest.approx(0.090129, abs=1e-6)
    assert (values >= 0).all()


def test_a_student_that_equals_the_teacher_has_no_gradient_on_average_only():
    target, chance = all_draws(2)
    _, slopes = gradients(soft_target_kl, T.log().expand(36, 6), target, **KL)
    assert slopes.abs().max() > 0.1
    assert (chance @ slopes).abs().max() < 1e-15


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_draws_of_the_codec_are_unbiased_within_three_standard_errors(temperature):
    """Over many seeds, against the gradient of the dense target."""
    rng, seeds = np.random.default_rng(4), 400
    logits = rng.normal(size=(5, 30))
    student = torch.from_numpy(rng.normal(size=(5, 30)))
    hyper = {"temperature": temperature, "t_squared": True, "class_reduction": "sum"}
    _, true = gradients(soft_target_kl, student, DenseTarget(torch.from_numpy(logits)), **hyper)
    found = []
    for seed in range(seeds):
        codec = Sampled(16, temperature, seed)
        drawn = codec.decode(codec.encode(logits, RowIds(np.arange(5), 0, "logits")), (30,))
        weights = torch.from_numpy(drawn.counts.to_padded(fill=0) / 16)
        target = SampledTarget(torch.from_numpy(drawn.classes.to_padded(fill=0)), weights, temperature, 30)
        found.append(gradients(soft_target_kl, student, target, **hyper)[1])
    slopes = torch.stack(found)
    # The variance of a share is p (1 - p) / draws, and the gradient is T times the share.
    p = (torch.from_numpy(logits) / temperature).softmax(-1)
    error = temperature * (p * (1 - p) / (16 * seeds)).sqrt()
    away = (slopes.mean(0) - true).abs()
    # 150 values: of so many, some lie beyond 3 standard errors, and one in 15,000 beyond 4.
    assert (away <= 3 * error).double().mean().item() > 0.98
    assert (away <= 4.5 * error).all()
    # Many positions together, as a student sees them: the mean over all has one standard error.
    assert abs((away**2).sum() / (error**2).sum() - 1) < 0.5


def test_the_tail_bucket_is_exact_on_the_head_and_truncation_is_not():
    target = SparseTarget.from_logits(T.log(), 2, (1.0,))
    _, true = gradients(soft_target_kl, STUDENT, DenseTarget(T.log()), **KL)
    _, bucket = gradients(soft_target_kl, STUDENT, target, **KL)
    torch.testing.assert_close(bucket[:2], true[:2], rtol=0, atol=1e-12)
    assert (bucket[2:].sum() - true[2:].sum()).abs() < 1e-12
    for renormalise in ("none", "teacher", "both"):
        _, biased = gradients(truncated_kl, STUDENT, target, renormalise=renormalise, **EXACT)
        assert (biased[:2] - true[:2]).abs().max() > 0.01


def test_every_loss_that_is_not_linear_refuses_draws_and_classes():
    drawn = SampledTarget(torch.tensor([[1, 0]] * 2), torch.full((2, 2), 0.5), 1.0, 5, noise=0.27)
    classes = ClassTarget(torch.tensor([1, 0]), 5)
    student = torch.zeros(2, 5)
    told = 0
    for case in CASES:
        if case.from_logits is None or not isinstance(case.inputs()[1], DenseTarget | SparseTarget):
            continue
        rest = [given[:2] if isinstance(given, torch.Tensor) else given for given in case.inputs()[2:]]
        if not claims_of(case.loss).hard:
            with pytest.raises(FidelityError, match=r"likeliest class|a mean for each"):
                case(student, classes, *rest)
        if not claims_of(case.loss).linear:
            told += 1
            with pytest.raises(FidelityError, match=r"noise was measured as 0\.27"):
                case(student, drawn, *rest)
    assert told >= 8
    linear = {name for name, loss in LOSSES.items() if claims_of(loss).linear}
    assert linear == {"adaptive_smoothing", "soft_target_kl", "soft_cross_entropy"}


def test_what_else_refuses_them():
    drawn = SampledTarget(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.5]]), 1.0, 5)
    student, dense = torch.zeros(1, 5), DenseTarget(torch.zeros(1, 5))
    for target in (drawn, ClassTarget(torch.tensor([1]), 5)):
        for use in (
            lambda target=target: teacher_entropy(student, target, temperature=1.0),
            lambda target=target: CombinedTarget.of([dense, target]),
            lambda target=target: Standardise()(student, target, {}),
        ):
            with pytest.raises(FidelityError, match=r"[Mm]ake the book"):
                use()


def test_another_temperature_than_that_of_the_draws():
    drawn = SampledTarget(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.5]]), 2.0, 5)
    for loss, hyper in ((soft_target_kl, {"class_reduction": "sum"}), (soft_cross_entropy, {})):
        with pytest.raises(FidelityError, match=r"`temperature` to be 2, at which .* drawn, got 1\.0 \(soft_"):
            loss(torch.zeros(1, 5), drawn, temperature=1.0, t_squared=True, **hyper)
        with pytest.raises(ConfigError, match="`student`"):
            loss(torch.zeros(1, 4), drawn, temperature=2.0, t_squared=True, **hyper)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampledTarget(torch.tensor([[1]]), torch.tensor([[1]]), 1.0, 5), "`weights` to be a floating tensor"),
        (lambda: SampledTarget(torch.tensor([1]), torch.tensor([[1.0]]), 1.0, 5), "`classes` to be int64 of shape"),
        (
            lambda: SampledTarget(torch.tensor([[1]]), torch.tensor([[1.0]]), 0.0, 5),
            "`temperature` to be a number above 0",
        ),
        (lambda: ClassTarget(torch.tensor([1.0]), 5), "`classes` to be int64"),
    ],
)
def test_targets_that_are_none(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_rows_and_devices():
    drawn = SampledTarget(torch.tensor([[1, 0], [2, 2]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]]), 1.0, 5, 0.1)
    taken = drawn.rows(torch.tensor([1])).to("cpu")
    assert taken.probabilities().tolist() == [[0, 0, 1, 0, 0]]
    assert (taken.noise, taken.positions, taken.dtype) == (0.1, torch.Size([1]), torch.float32)
    classes = ClassTarget(torch.tensor([3, 1]), 5).to("cpu")
    assert classes.rows(torch.tensor([True, False])).classes.tolist() == [3]
    assert classes.positions == torch.Size([2])


def test_a_kept_mass_that_was_measured_is_told():
    target = SparseTarget(torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.zeros(1, 1), (1.0,), 5, {4.0: 0.59})
    for same in (target, target.rows(torch.tensor([0])), target.promising(1.0), target.to("cpu")):
        with pytest.raises(FidelityError, match=r"got 4, where the kept classes have 0\.59 of the mass"):
            same.log_tail(4.0)
