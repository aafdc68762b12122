"""Squares of a few samples at a time: what the card's equations say written out, their gradients, and gradients of these."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.losses.feature_cases import ref_boundary, ref_overhaul
from torch.testing import assert_close

from bookkd.core.errors import ConfigError
from bookkd.losses import _apart, activation_boundary, overhaul

SHAPE = (7, 3, 4, 5)
boundary = partial(activation_boundary, margin=0.7)


def drawn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2)
MARGINS = {"of channels": -drawn(3, seed=3).abs(), "of samples and channels": -drawn(7, 3, seed=4).abs()}
CASES = {
    "ab": (boundary, lambda s, t: ref_boundary(s, t, margin=0.7)),
    "ofd": (overhaul, ref_overhaul),
    **{
        f"ofd, margins {name}": (
            partial(overhaul, teacher_margins=given),
            partial(ref_overhaul, margins=given.expand(7, 3).numpy()),
        )
        for name, given in MARGINS.items()
    },
}
every_case = pytest.mark.parametrize(("loss", "reference"), CASES.values(), ids=CASES)


@every_case
@pytest.mark.parametrize("samples", [1, 2, 3, 7])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_a_few_samples_at_a_time(monkeypatch, loss, reference, samples, last):
    monkeypatch.setattr(_apart, "_CACHED", samples * STUDENT[0].numel())
    leaf = STUDENT.contiguous(memory_format=torch.channels_last) if last else STUDENT
    leaf = leaf.clone().requires_grad_()
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    values = loss(leaf, TEACHER)
    assert_close(values.detach().numpy(), reference(STUDENT.numpy(), TEACHER.numpy()))
    (slope,) = torch.autograd.grad(values @ weights, leaf)
    for place in [(0, 0, 0, 0), (1, 2, 3, 4), (3, 1, 2, 0), (6, 2, 0, 1)]:
        step = torch.zeros_like(STUDENT)
        step[place] = 1e-6
        sides = [reference((STUDENT + sign * step).numpy(), TEACHER.numpy()) @ weights.numpy() for sign in (1, -1)]
        assert slope[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-5)


@every_case
def test_gradients_of_gradients(loss, reference):
    some = STUDENT[:7, :, :1, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: loss(s, TEACHER[:, :, :1, :2]), some)


def test_a_value_that_is_met_still_curves():
    """Where the student is at a positive value of the teacher the loss is a parabola's lowest point, and no plain."""
    met = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    found = torch.autograd.functional.hessian(lambda s: overhaul(s, met).sum(), met.clone())
    assert_close(found.reshape(2, 2), torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)))


@pytest.mark.parametrize("loss", [overhaul, boundary], ids=["ofd", "ab"])
def test_infinite_values_and_gradients_that_can_be_differentiated(loss):
    leaf = torch.tensor([[torch.inf, 1.0]], requires_grad=True)
    for again in (False, True):
        (slope,) = torch.autograd.grad(loss(leaf, torch.tensor([[-1.0, 2.0]])).sum(), leaf, create_graph=again)
        assert slope[0, 0] == torch.inf


@pytest.mark.parametrize("loss", [overhaul, boundary], ids=["ofd", "ab"])
def test_functional_gradients(loss):
    leaf = STUDENT.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, TEACHER).sum(), leaf)
    assert_close(torch.func.grad(lambda s: loss(s, TEACHER).sum())(STUDENT), wanted)


@pytest.mark.parametrize("loss", [overhaul, boundary], ids=["ofd", "ab"])
def test_sides_on_two_devices_are_refused(loss):
    with pytest.raises(ConfigError, match=r"`teacher` to be on the student's device cpu, got 'meta'.*Move one"):
        loss(STUDENT, TEACHER.to("meta"))


def test_a_larger_map_of_the_teacher_is_averaged_before_its_margins():
    larger, margins = drawn(7, 3, 8, 10, seed=5), MARGINS["of channels"]
    averaged = torch.nn.functional.avg_pool2d(larger, 2)
    assert_close(overhaul(STUDENT, larger, margins), overhaul(STUDENT, averaged, margins))
