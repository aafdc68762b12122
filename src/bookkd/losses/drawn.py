"""What is left of a teacher where it was asked for draws or for its likeliest class: less than any divergence needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, FidelityError, expected

__all__ = ["ClassTarget", "SampledTarget"]


@dataclass(frozen=True, eq=False)
class SampledTarget:
    """Classes that were drawn from the teacher at one temperature, weighted by how often each came.

    The weights estimate the teacher's distribution without bias, so that a loss which is linear in it, as cross-entropy
    is, has the right value and gradient on average over the draws. Every other loss is refused.

    Args:
        classes: int64, shape [..., k]; filled up with any class where fewer came.
        weights: counts / draws, 0 where filled up, shape [..., k].
        temperature: The only one that is honoured.
        n_classes: Number of classes.
        noise: Size of the noise in the gradient, as a share of it, where it was measured: for refusals.

    >>> target = SampledTarget(torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]]), 1.0, 4)
    >>> target.probabilities()
    tensor([[0.2500, 0.0000, 0.7500, 0.0000]])
    """

    classes: Tensor
    weights: Tensor
    temperature: float
    n_classes: int
    noise: float | None = None

    def __post_init__(self) -> None:
        where = "sampled target"
        positive(self.temperature, "temperature", where=where)
        at_least(self.n_classes, 1, "n_classes", where=where)
        if not self.weights.is_floating_point() or self.weights.ndim == 0:
            got = f"{self.weights.dtype} of shape {list(self.weights.shape)}"
            raise ConfigError(expected("weights", "a floating tensor [..., k]", got, where=where))
        if self.classes.dtype != torch.int64 or self.classes.shape != self.weights.shape:
            got = f"{self.classes.dtype} of shape {list(self.classes.shape)}"
            raise ConfigError(expected("classes", f"int64 of shape {list(self.weights.shape)}", got, where=where))

    @property
    def positions(self) -> torch.Size:
        """The leading shape: one distribution for each position."""
        return self.weights.shape[:-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.weights.dtype

    def probabilities(self) -> Tensor:
        """Return the weight of every class, shape [..., classes]."""
        zeros = self.weights.new_zeros((*self.positions, self.n_classes))
        return zeros.scatter_add(-1, self.classes, self.weights.detach())

    def check_temperature(self, temperature: float, loss: str) -> None:
        """Refuse another temperature than that of the draws.

        Raises:
            FidelityError: draws say nothing about it.
        """
        if temperature != self.temperature:
            do = "Use it, or make the book again with draws at this temperature or with codec dense or int8."
            wish = f"{self.temperature:g}, at which the teacher's classes were drawn"
            raise FidelityError(expected("temperature", wish, temperature, where=loss, do=do))

    def refuse(self, loss: str) -> FidelityError:
        """Return the error of a loss that is not linear in the teacher's distribution."""
        noise = "" if self.noise is None else f", whose noise was measured as {self.noise:.2g} of the gradient"
        do = "Use soft_cross_entropy or soft_target_kl, or make the book with the codec dense, int8 or top_k."
        reason = f"{loss}: not linear in the teacher, so that draws would bias it"
        return FidelityError(expected("teacher", "a distribution", f"draws from one{noise}", where=reason, do=do))

    def to(self, device: torch.device | str) -> SampledTarget:
        """Return the target on `device`; the copies do not wait for the device."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> SampledTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return self._map(lambda part: part[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> SampledTarget:
        return replace(self, classes=change(self.classes), weights=change(self.weights))


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """The teacher's likeliest class: a hard label, for losses on labels; every loss on distributions refuses it.

    Args:
        classes: int64, shape [...].
        n_classes: Number of classes.

    >>> ClassTarget(torch.tensor([3, 1]), 10).rows(torch.tensor([1])).classes
    tensor([1])
    """

    classes: Tensor
    n_classes: int

    def __post_init__(self) -> None:
        if self.classes.dtype != torch.int64:
            raise ConfigError(expected("classes", "int64", str(self.classes.dtype), where="class target"))

    @property
    def positions(self) -> torch.Size:
        """The shape: one class for each position."""
        return self.classes.shape

    def refuse(self, loss: str) -> FidelityError:
        """Return the error of a loss on distributions."""
        do = "Give its `classes` to cross_entropy as labels, or make the book with the codec dense, int8 or top_k."
        return FidelityError(expected("teacher", "a distribution", "its likeliest class alone", where=loss, do=do))

    def to(self, device: torch.device | str) -> ClassTarget:
        """Return the target on `device`; the copy does not wait for the device."""
        return replace(self, classes=self.classes.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> ClassTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return replace(self, classes=self.classes[index])
