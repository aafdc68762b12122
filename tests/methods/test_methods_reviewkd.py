"""The fusion of ReviewKD: what is worked out in front of a lift equals the steps in their order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.testing import assert_close

from bookkd.methods.reviewkd import Review


def in_order(review, *features):
    """The card's walk, step by step: x = BN(conv(F)), z = sigmoid(conv([x, up(y)])), x <- x z_0 + up(y) z_1, BN(conv(x))."""
    running, found = None, []
    for place in reversed(range(len(features))):
        maps = features[place]
        x = review.enter[place](maps if maps.ndim == 4 else maps[..., None, None])
        if running is not None:
            above = interpolate(running, x.shape[-2:], mode="nearest")
            z = review.gates[place](torch.cat([x, above], 1)).sigmoid()
            x = x * z[:, :1] + above * z[:, 1:]
        running = x
        out = review.leave[place](x)
        found.append(out if maps.ndim == 4 else out.flatten(1))
    return found[::-1]


NARROW, WIDE = (3, 8, 6), (5, 8, 6)
SHAPES = {
    "a narrow first layer": ((NARROW, (6, 4, 3), (12,)), 12),
    "grids that do not nest": ((NARROW, (6, 5, 4), (12, 2, 2)), 16),
    "a wide first layer": ((WIDE, (6, 4, 3), (12,)), 12),
    "two layers": ((NARROW, (12,)), 12),
}


@pytest.mark.parametrize(("mine", "width"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_running_moments_are_those_of_the_steps_in_order(mine, width, training):
    torch.manual_seed(0)
    review = Review(mine, (7, 5, 4)[: len(mine)], width).double().train(training)
    for module in review.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    other = copy.deepcopy(review)
    features = [(3 + torch.randn(6, *shape, dtype=torch.float64)).requires_grad_() for shape in mine]
    ours, theirs = review(*features), in_order(other, *features)
    weights = [torch.randn_like(out) for out in ours]
    slopes = []
    for network, outputs in ((review, ours), (other, theirs)):
        leaves = [*features, *network.parameters()]
        slopes.append(torch.autograd.grad([(o * w).sum() for o, w in zip(outputs, weights, strict=True)], leaves))
    assert_close(list(ours), list(theirs))
    assert_close(slopes[0], slopes[1])
    assert_close(review.state_dict(), other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_sees_moments_in_full(dtype):
    torch.manual_seed(0)
    review = Review((NARROW, (12,)), (7, 5), 12)
    maps = (100 + 8 * torch.randn(6, *NARROW)).to(dtype)  # sums of which bfloat16 would round by whole units
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, _ = review(maps, torch.randn(6, 12))
    assert first.isfinite().all()
    means = maps.double().mean((0, 2, 3)) @ review.enter[0].weight.double().flatten(1).T
    assert_close(review.enter[0].norm.running_mean.double(), 0.1 * means, rtol=1e-4, atol=1e-4)


def test_where_the_first_layer_is_not_composed():
    maps = torch.randn(6, *NARROW)
    review = Review((NARROW, (12,)), (7, 5), 12)
    assert review._narrow(maps)
    assert not review._narrow(maps[:0])  # moments of nothing
    assert not copy.deepcopy(review).eval()._narrow(maps)
    assert not nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(review))._narrow(maps)
    assert not copy.deepcopy(review).bfloat16()._narrow(maps)
    first, _ = review(maps, torch.randn(6, 12))
    assert first.is_contiguous()
