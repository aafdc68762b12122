"""The worked numbers of the card, and each library's convention from its own formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.methods.test_methods_contract import LABELS, STUDENT, TEACHER, total

from bookkd.core.fields import LABEL, PARTNER_LABEL, RATIO
from bookkd.methods import Supervised, VanillaKD, build_method
from bookkd.tasks import Classification

rng = np.random.default_rng(0)
Z, V, Y = rng.normal(size=(5, 3)), 3 * rng.normal(size=(5, 3)), rng.integers(0, 3, 5)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def ce(z=Z, y=Y):
    return -np.log(softmax(z)[np.arange(len(y)), y]).mean()


def kl(t, z=Z, v=V):
    p, q = softmax(v / t), softmax(z / t)
    return (p * np.log(p / q)).sum(-1).mean()


def of(method):
    return float(total(method, torch.from_numpy(Z), torch.from_numpy(V), torch.from_numpy(Y)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.619714),
        ({"class_reduction": "mean"}, 0.237529),
        ({"ce_weight": 0.9, "kd_weight": 0.1}, 0.481629),
        ({"t_squared": False}, 0.082267),
        ({"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 1.0}, 0.136520),
        ({"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 2.0}, 0.403105),
        ({"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 4.0}, 0.636975),
        ({"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 20.0}, 0.824327),
        ({"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 1000.0}, 0.860438),
        ({"ce_weight": 0.0, "kd_weight": 1.0, "t_squared": False}, 0.039811),
    ],
)
def test_worked_totals(options, expected):
    assert float(total(VanillaKD(**options))) == pytest.approx(expected, abs=1e-6)
    # Rows that are alike have the mean of one.
    three = [part.expand(3, -1) for part in (STUDENT, TEACHER)]
    assert float(total(VanillaKD(**options), *three, LABELS.expand(3))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("preset", ["mdistiller", "repdistiller"])
def test_presets_that_reproduce_the_worked_total(preset):
    assert float(total(build_method("vanilla-kd", preset))) == pytest.approx(0.619714, abs=1e-6)


def test_worked_gradient():
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(VanillaKD(ce_weight=0.0, kd_weight=1.0), student), student)
    np.testing.assert_allclose(gradient.numpy(), [[-0.103204, -0.366128, 0.469333]], atol=1e-6)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)


def test_without_a_soft_term_it_is_cross_entropy():
    assert of(Supervised()) == pytest.approx(ce(), abs=1e-12)
    assert of(VanillaKD(ce_weight=1.0, kd_weight=1e-300)) == pytest.approx(ce(), abs=1e-12)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # mdistiller KD: ce_loss_weight * CE + kd_loss_weight * T^2 * kl_div(...).sum(1).mean()
        ("mdistiller", 0.1 * ce() + 0.9 * 16 * kl(4)),
        ("mdistiller-imagenet", 0.5 * ce() + 0.5 * kl(1)),
        # RepDistiller: gamma CE + alpha KL T^2 / batch
        ("repdistiller", 0.1 * ce() + 0.9 * 16 * kl(4)),
        # torchdistill KDLoss: alpha multiplies CE, beta = 1 - alpha the batchmean KL times T^2
        ("torchdistill", 0.5 * ce() + (1 - 0.5) * 1**2 * kl(1)),
        # Tf-KD: (1 - alpha) CE + alpha T^2 KL, elementwise mean: divided by B K
        ("tf-kd", (1 - 0.9) * ce() + 0.9 * 400 * kl(20) / 3),
        # DeiT soft: (1 - alpha) CE + alpha tau^2 KL / numel
        ("deit", (1 - 0.5) * ce() + 0.5 * kl(1) / 3),
        # KD_Lib VanillaKD: (1 - w) CE + w T^2 MSE of softened probabilities
        ("kd-lib", 0.5 * ce() + 0.5 * 400 * ((softmax(V / 20) - softmax(Z / 20)) ** 2).mean()),
        # Keras example: alpha CE + (1 - alpha) KL, mean over the batch, no T^2
        ("keras", 0.1 * ce() + 0.9 * kl(3)),
        # logit-standardization repository: CE 0.1, KD 9, T 2 (its z-scores are no part of the preset)
        ("logit-standardization", 0.1 * ce() + 9 * 4 * kl(2)),
        # big_vision distill_bit: t^2 KL alone, t = 1
        ("function-matching", kl(1)),
    ],
)
def test_presets_are_the_conventions_of_their_libraries(preset, expected):
    assert of(build_method("vanilla-kd", preset)) == pytest.approx(expected, rel=1e-9)


def test_every_preset_has_its_formula():
    mark = test_presets_are_the_conventions_of_their_libraries.pytestmark[0]
    assert {preset for preset, _ in mark.args[1]} == set(VanillaKD.presets)


def test_function_matching_asks_for_no_label():
    method = build_method("vanilla-kd", "function-matching", temperature=10.0)
    assert of(method) == pytest.approx(100 * kl(10), rel=1e-9)
    (term,) = method.objective(Classification(("a", "b", "c"))).terms
    assert not {LABEL, PARTNER_LABEL, RATIO} & set(term.batch)


def test_label_smoothing_is_that_of_torch():
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(Z), torch.from_numpy(Y), label_smoothing=0.1)
    assert of(Supervised(label_smoothing=0.1)) == pytest.approx(float(expected), abs=1e-12)
    assert of(build_method("supervised", "inception")) == pytest.approx(float(expected), abs=1e-12)
    assert of(VanillaKD(label_smoothing=0.1)) == pytest.approx(0.1 * float(expected) + 0.9 * 16 * kl(4), rel=1e-9)


def test_hidden_labels_count_nothing_and_the_soft_term_counts_all():
    labels = torch.from_numpy(Y).clone()
    labels[2:] = -1
    found = total(VanillaKD(), torch.from_numpy(Z), torch.from_numpy(V), labels)
    assert float(found) == pytest.approx(0.1 * ce(Z[:2], Y[:2]) + 0.9 * 16 * kl(4), rel=1e-9)
    labels[:] = -1
    assert float(total(Supervised(), torch.from_numpy(Z), torch.from_numpy(V), labels)) == 0
