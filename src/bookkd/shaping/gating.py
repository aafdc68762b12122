"""Gated weights, worked out for all layers of a student at once, so that a step does not pay for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Ready", "gate_at_once", "of_pairs"]


class Ready:
    """The gated weight of one layer from when it was worked out in front of a pass to when its gradient is known.

    It is no part of the network: copies and files of one that is in the middle of a step begin without.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._gated: Tensor | None = None

    def put(self, weight: Tensor, gated: Tensor) -> None:
        """Hold what `weight` has become."""
        self._weight, self._gated = weight, gated

    def take(self, weight: Tensor) -> Tensor | None:
        """Return what `weight` has become; None where that is to be worked out, as for passes without gradient."""
        if torch.compiler.is_compiling() or weight is not self._weight or not torch.is_grad_enabled():
            return None
        return self._gated

    def clear(self) -> None:
        """Hold nothing."""
        self._weight = self._gated = None

    def __reduce__(self) -> tuple[Callable[[], Ready], tuple[()]]:
        """Copy as empty."""
        return Ready, ()


def of_pairs(factors: Tensor, weight: Tensor) -> Tensor:
    """Return the factors of blocks as those of channels, to multiply a weight with.

    A product over four and more axes of blocks would cost three times as much.

    Args:
        factors: [children, parents].
        weight: [outputs, inputs, ...].

    Returns:
        [outputs, inputs, 1, ...], of the weight's type.

    >>> of_pairs(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(4, 2))
    tensor([[1., 2.],
            [1., 2.],
            [3., 4.],
            [3., 4.]])
    """
    (children, parents), (outputs, inputs, *rest) = factors.shape, weight.shape
    pairs = factors.to(weight.dtype)[:, None, :, None]
    return pairs.expand(children, outputs // children, parents, inputs // parents).reshape(
        outputs, inputs, *(1 for _ in rest)
    )


def gate_at_once(
    weights: Sequence[Tensor], logits: Sequence[Tensor], held: Sequence[Ready], *, temperature: float, scale: float
) -> None:
    """Work W' = s alpha W out for layers whose gates have one shape, and hold each until the gradient has passed.

    Args:
        weights: W of each layer, [outputs, inputs, ...].
        logits: A of each layer, [children, parents].
        held: Where each W' goes.
        temperature: tau.
        scale: s.
    """
    gated = _Gating.apply(temperature, scale, held, *weights, *logits)
    for each, weight, result in zip(held, weights, gated, strict=True):
        each.put(weight, result)


class _Gating(torch.autograd.Function):
    """All products in a row, and all gradients: between the maps of a network each would find the caches cold."""

    @staticmethod
    def forward(ctx: Any, temperature: float, scale: float, held: Sequence[Ready], *tensors: Tensor) -> Any:
        weights, logits = tensors[: len(held)], tensors[len(held) :]
        shares = (torch.stack(logits) / temperature).softmax(-1)
        ctx.save_for_backward(shares, *weights)
        ctx.set_materialize_grads(False)  # a layer that was not run has no gradient
        ctx.temperature, ctx.scale, ctx.held = temperature, scale, held
        return tuple(
            weight * of_pairs(factors, weight) for weight, factors in zip(weights, shares * scale, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        for each in ctx.held:
            each.clear()
        shares, *weights = ctx.saved_tensors
        of_weights = [
            None if gradient is None else gradient * of_pairs(factors, gradient)
            for gradient, factors in zip(gradients, shares * ctx.scale, strict=True)
        ]
        blocks = [
            None if gradient is None else _of_blocks(gradient * weight, shares.shape[1:])
            for gradient, weight in zip(gradients, weights, strict=True)
        ]
        run = [block.to(shares.dtype) if block is not None else shares.new_zeros(shares.shape[1:]) for block in blocks]
        of_shares = torch.stack(run) * ctx.scale
        # The gradient of a softmax.
        of_logits = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) / ctx.temperature
        return (
            *(None, None, None),
            *of_weights,
            *(None if block is None else found for block, found in zip(blocks, of_logits, strict=True)),
        )


def _of_blocks(products: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sums of [outputs, inputs, ...] over each pair of blocks, [children, parents]."""
    (children, parents), (outputs, inputs, *rest) = shape, products.shape
    of_channels = products.sum(tuple(range(2, products.ndim))) if rest else products
    return of_channels.view(children, outputs // children, parents, inputs // parents).sum((1, 3))
