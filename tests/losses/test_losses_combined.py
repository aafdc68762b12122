"""Several teachers as one: against scipy, the card's worked numbers, and one member alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from bookkd.core.errors import ConfigError, FidelityError, UnknownNameError
from bookkd.losses import (
    CombinedTarget,
    DenseTarget,
    SparseTarget,
    TransformedTarget,
    beta_targets,
    soft_target_kl,
    teacher_entropy,
)

ONE = torch.tensor([[2.0, 3.5, -1.0]], dtype=torch.float64)
TWO = torch.tensor([[1.0, 2.5, 0.0]], dtype=torch.float64)
Z = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
KL = {"temperature": 4.0, "t_squared": True, "class_reduction": "sum"}


def both(mode="probability", weights=(0.5, 0.5)):
    return CombinedTarget((DenseTarget(ONE), DenseTarget(TWO)), weights, mode)


# Card bookkd, "Tests that pin it": ensemble of t1 and t2 in equal parts at T = 4.
@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("probability", [0.325420, 0.473483, 0.201097]), ("logit", [0.326635, 0.475251, 0.198114])],
)
def test_the_cards_ensembles(mode, wanted):
    found = both(mode).log_probabilities(4.0).exp()
    torch.testing.assert_close(found, torch.tensor([wanted], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_loss_under_the_cards_ensemble():
    assert float(soft_target_kl(Z, both(), **KL)) == pytest.approx(0.280375, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_any_weights_against_scipy(temperature):
    draws = np.random.default_rng(0).normal(size=(3, 5, 7)) * 3
    weights = (0.2, 0.5, 0.3)
    members = tuple(DenseTarget(torch.from_numpy(logits)) for logits in draws)
    mean = sum(w * softmax(logits / temperature, axis=-1) for w, logits in zip(weights, draws, strict=True))
    found = CombinedTarget(members, weights).log_probabilities(temperature).exp().numpy()
    np.testing.assert_allclose(found, mean, atol=1e-12)
    by_logit = softmax(np.tensordot(weights, draws, 1) / temperature, axis=-1)
    found = CombinedTarget(members, weights, "logit").log_probabilities(temperature).exp().numpy()
    np.testing.assert_allclose(found, by_logit, atol=1e-12)


@pytest.mark.parametrize("mode", ["probability", "logit"])
def test_one_teacher_of_all_the_weight_is_that_teacher_to_the_bit(mode):
    wanted = DenseTarget(TWO).log_probabilities(3.0)
    assert torch.equal(CombinedTarget((DenseTarget(TWO),), (1.0,), mode).log_probabilities(3.0), wanted)
    assert torch.equal(both(mode, (0.0, 1.0)).log_probabilities(3.0), wanted)


@pytest.mark.parametrize("mode", ["probability", "logit"])
def test_a_class_that_all_rule_out_stays_ruled_out(mode):
    logits = torch.tensor([[0.5, -torch.inf, 1.0]])
    target = CombinedTarget.of([DenseTarget(logits), DenseTarget(logits + 1)])
    found = CombinedTarget(target.members, target.weights, mode).log_probabilities(2.0)
    assert found[0, 1] == -torch.inf
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_rows_and_positions():
    target = CombinedTarget.of([DenseTarget(torch.randn(4, 3)), DenseTarget(torch.randn(4, 3).half())])
    assert (target.n_classes, target.positions, target.dtype) == (3, torch.Size([4]), torch.float32)
    rows = torch.tensor([2, 0])
    assert torch.equal(target.rows(rows).log_probabilities(2.0), target.log_probabilities(2.0)[rows])
    changed = TransformedTarget(
        target, lambda inner, t, extra: inner.log_probabilities(t) * extra, torch.arange(4.0)[:, None]
    )
    assert torch.equal(changed.rows(rows).log_probabilities(2.0), changed.log_probabilities(2.0)[rows])
    assert (changed.n_classes, changed.positions, changed.dtype) == (3, torch.Size([4]), torch.float32)
    assert torch.equal(changed.to("cpu").log_probabilities(1.0), changed.log_probabilities(1.0))


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(FidelityError, match=r"`members` to be logits of every class, got the 2 largest of 3"):
        CombinedTarget.of([DenseTarget(ONE), SparseTarget.from_logits(TWO, 2, (1.0,))])
    with pytest.raises(ConfigError, match=r"`members` to be of one shape, got \[1, 3\] and \[1, 4\]"):
        CombinedTarget.of([DenseTarget(ONE), DenseTarget(torch.zeros(1, 4))])
    with pytest.raises(ConfigError, match="at least one, got 0 members"):
        CombinedTarget.of([])
    with pytest.raises(ConfigError, match=r"`weights` to be not negative, with sum 1, got \[0\.5, 0\.6\]"):
        both(weights=(0.5, 0.6))
    with pytest.raises(ConfigError, match=r"not negative"):
        both(weights=(1.5, -0.5))
    with pytest.raises(UnknownNameError, match=r"Unknown mode 'mean'"):
        both("mean")


# Card bookkd: entropy of the book at T = 4.
def test_the_entropy_of_the_cards_teacher():
    assert float(teacher_entropy(Z, ONE, temperature=4.0)) == pytest.approx(1.008735, abs=1e-6)
    kept = SparseTarget.from_logits(ONE, 3, (4.0,))
    assert float(teacher_entropy(Z, kept, temperature=4.0)) == pytest.approx(1.008735, abs=1e-6)


# Card instance-label-smoothing, "Tests that pin it".
def test_beta_targets_of_the_card():
    confidences = torch.tensor([0.9, 0.2, 0.6], dtype=torch.float64)
    p = torch.cat([confidences[:, None], ((1 - confidences) / 4)[:, None].expand(-1, 4)], 1)
    found = beta_targets(p.log(), torch.tensor([0, 0, 0]), torch.tensor([0.97, 0.55, 0.80], dtype=torch.float64))
    wanted = torch.tensor([[0.97, 0.0075], [0.55, 0.1125], [0.80, 0.05]], dtype=torch.float64)
    torch.testing.assert_close(found[:, :2], wanted)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, dtype=torch.float64))


def test_beta_targets_follow_a_permutation_of_the_batch():
    generator = torch.Generator().manual_seed(3)
    log_p = torch.randn(16, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    labels, draws = (
        torch.randint(5, (16,), generator=generator),
        torch.rand(16, generator=generator, dtype=torch.float64),
    )
    order = torch.randperm(16, generator=generator)
    found = beta_targets(log_p, labels, draws)
    torch.testing.assert_close(beta_targets(log_p[order], labels[order], draws), found[order])
    chosen = found.gather(1, labels[:, None])[:, 0]
    confidence = log_p.gather(1, labels[:, None])[:, 0]
    assert torch.equal(chosen.argsort(), confidence.argsort())
    with pytest.raises(ConfigError, match=r"`shapes` to be \[n, K\], \[n\] and \[n\]"):
        beta_targets(log_p, labels, draws[:3])
