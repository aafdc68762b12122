"""Gated weights, worked out for all layers of a student at once, so that a step does not pay for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Ready", "gate_at_once", "of_pairs"]


class Ready:
    """The gated weight of one layer, from when it was worked out in front of a pass to the end of that pass."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, Tensor] | None = None
        self._gated: Tensor | None = None

    def put(self, weight: Tensor, logits: Tensor, gated: Tensor) -> None:
        """Hold what `weight` has become by the gates `logits`."""
        self._of, self._gated = (weight, logits), gated

    def take(self, weight: Tensor, logits: Tensor) -> Tensor | None:
        """Return what `weight` has become by `logits`; None where it is to be worked out.

        So it is in what runs again in the backward pass (checkpointed activations), which has to find the same steps then.
        """
        if self._of is None or torch.compiler.is_compiling() or not torch.is_grad_enabled() or _runs_again():
            return None
        return self._gated if self._of[0] is weight and self._of[1] is logits else None

    def clear(self) -> None:
        """Hold nothing."""
        self._of = self._gated = None


def _runs_again() -> bool:
    """Whether tensors that autograd keeps pass through hooks, as in `torch.utils.checkpoint`; true where that is not told."""
    top: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    try:
        return top is None or top(True) is not None
    except TypeError:
        return True


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
    pairs = pairs.expand(children, outputs // children, parents, inputs // parents)
    return pairs.reshape(outputs, inputs, *(1 for _ in rest))


def gate_at_once(
    weights: Sequence[Tensor], logits: Sequence[Tensor], *, temperature: float, scale: float
) -> tuple[Tensor, ...]:
    """Return W' = s alpha W of layers whose gates have one shape.

    Args:
        weights: W of each layer, [outputs, inputs, ...].
        logits: A of each layer, [children, parents].
        temperature: tau.
        scale: s.
    """
    found: tuple[Tensor, ...] = _Gating.apply(temperature, scale, *weights, *logits)
    return found


class _Gating(torch.autograd.Function):
    """All products in a row, and all gradients: between the maps of a network each would find the caches cold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(temperature: float, scale: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, logits = _halves(tensors)
        factors = _shares(logits, temperature) * scale
        return tuple(weight * of_pairs(each, weight) for weight, each in zip(weights, factors, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.temperature, ctx.scale, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)  # a layer that was not run has no gradient

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        weights, logits = _halves(ctx.saved_tensors)
        shares = _shares(logits, ctx.temperature)
        wanted, gated = _halves(ctx.needs_input_grad[2:])
        of_weights = [
            gradient * of_pairs(factors, gradient) if gradient is not None and wants else None
            for gradient, factors, wants in zip(gradients, shares * ctx.scale, wanted, strict=True)
        ]
        if not any(gated):
            return (None, None, *of_weights, *(None for _ in logits))
        blocks = [
            shares.new_zeros(shares.shape[1:]) if gradient is None else _of_blocks(gradient * weight, shares)
            for gradient, weight in zip(gradients, weights, strict=True)
        ]
        of_shares = torch.stack(blocks) * ctx.scale
        # The gradient of a softmax.
        of_logits = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) / ctx.temperature
        learn = zip(gradients, of_logits, gated, strict=True)
        return (
            *(None, None),
            *of_weights,
            *(found if gradient is not None and wants else None for gradient, found, wants in learn),
        )


def _halves(both: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    return both[: len(both) // 2], both[len(both) // 2 :]


def _shares(logits: Sequence[Tensor], temperature: float) -> Tensor:
    return (torch.stack(tuple(logits)) / temperature).softmax(-1)


def _of_blocks(products: Tensor, shares: Tensor) -> Tensor:
    """Return the sums of [outputs, inputs, ...] over each pair of blocks, [children, parents], of the shares' type."""
    (_, children, parents), (outputs, inputs, *rest) = shares.shape, products.shape
    of_channels = products.to(shares.dtype)
    of_channels = of_channels.sum(tuple(range(2, products.ndim))) if rest else of_channels
    return of_channels.reshape(children, outputs // children, parents, inputs // parents).sum((1, 3))
