"""What the teacher says about a batch: a distribution over every class, or the few largest with the mass of all others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bookkd.core.check import at_least, positive, unique
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.losses.drawn import ClassTarget, SampledTarget

__all__ = ["DenseTarget", "FullTarget", "SparseTarget", "Target", "as_target", "computing_dtype", "likeliest"]


def computing_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype that a loss computes in: the widest of `dtypes`, at least float32.

    >>> computing_dtype(torch.float16, torch.bfloat16), computing_dtype(torch.float16, torch.float64)
    (torch.float32, torch.float64)
    """
    widest = torch.float32
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest


class FullTarget(ABC):
    """A distribution over every class at any temperature: stored logits, several teachers combined, or one transformed.

    Losses ask for `log_probabilities` alone, so that one loss serves them all. No gradient flows back through a target.
    """

    @property
    @abstractmethod
    def n_classes(self) -> int:
        """Number of classes."""

    @property
    @abstractmethod
    def positions(self) -> torch.Size:
        """The leading shape: one distribution for each position."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype that the teacher's logits are stored in."""

    @abstractmethod
    def log_probabilities(self, temperature: float) -> Tensor:
        """Return the log-probabilities at `temperature`, shape [..., classes], in float32 or wider, without gradient.

        The logarithm of a probability of 0 is -inf.
        """

    def silent(self) -> Tensor | None:
        """Return where the teacher has nothing to say, bool of shape `positions`; None where it speaks everywhere.

        `log_probabilities` are a distribution there too, so that every loss stays finite; terms of one value a position
        count nothing there.
        """
        return None

    @abstractmethod
    def to(self, device: torch.device | str) -> FullTarget:
        """Return the target on `device`; the copy does not wait for the device."""

    @abstractmethod
    def rows(self, index: Tensor | slice) -> FullTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""


@dataclass(frozen=True, eq=False)
class DenseTarget(FullTarget):
    """The logits of every class.

    Args:
        logits: At temperature 1, of any floating dtype, shape [..., classes]; -inf for a class that is ruled out.

    >>> DenseTarget(torch.tensor([[2.0, 3.5, -1.0]])).log_probabilities(1.0).exp()
    tensor([[0.1808, 0.8102, 0.0090]])
    """

    logits: Tensor

    def __post_init__(self) -> None:
        if not self.logits.is_floating_point() or self.logits.ndim == 0:
            got = f"{self.logits.dtype} of shape {list(self.logits.shape)}"
            raise ConfigError(expected("logits", "a floating tensor [..., classes]", got, where="dense target"))

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[-1]

    @property
    def positions(self) -> torch.Size:
        """The leading shape: one distribution for each position."""
        return self.logits.shape[:-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the logits are stored in."""
        return self.logits.dtype

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return log softmax(logits / T), shape [..., classes], computed in float32 or wider."""
        scaled = self.logits.detach().to(computing_dtype(self.dtype)) / temperature
        return scaled.log_softmax(-1)

    def to(self, device: torch.device | str) -> DenseTarget:
        """Return the target on `device`; the copy does not wait for the device."""
        return DenseTarget(self.logits.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> DenseTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return DenseTarget(self.logits[index])


@dataclass(frozen=True, eq=False)
class SparseTarget:
    """The k largest logits of each position, and the probability mass of the rest at the promised temperatures.

    At a promised temperature T, with tail = exp(log_tail_mass) at T, the kept probabilities are

        t_i = (1 - tail) softmax(values / T)_i

    which with the tail always make a distribution, whatever the rounding of `values`.

    Args:
        values: Kept logits, centred on the largest, in any order, shape [..., k].
        indices: Their classes, without repeats within a position, int64, shape [..., k].
        log_tail_mass: log of the mass of all other classes, one for each temperature, shape [..., temperatures];
            -inf where nothing was left out.
        temperatures: The temperatures that can be honoured.
        n_classes: Number of classes.
        kept_mass: Mean mass of the kept classes at other temperatures, where it was measured: for refusals.

    >>> target = SparseTarget.from_logits(torch.tensor([[4.0, 2.0, 1.0, 0.0, -1.0]]), 2, (1.0, 2.0))
    >>> target.indices, target.kept_log_probabilities(2.0).exp()
    (tensor([[0, 1]]), tensor([[0.5530, 0.2034]]))
    """

    values: Tensor
    indices: Tensor
    log_tail_mass: Tensor
    temperatures: tuple[float, ...]
    n_classes: int
    kept_mass: Mapping[float, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = "sparse target"
        unique(self.temperatures, "temperatures", where=where)
        for temperature in self.temperatures:
            positive(temperature, "temperatures", where=where)
        if not self.values.is_floating_point() or self.values.ndim == 0:
            got = f"{self.values.dtype} of shape {list(self.values.shape)}"
            raise ConfigError(expected("values", "a floating tensor [..., k]", got, where=where))
        if self.indices.dtype != torch.int64 or self.indices.shape != self.values.shape:
            got = f"{self.indices.dtype} of shape {list(self.indices.shape)}"
            raise ConfigError(expected("indices", f"int64 of shape {list(self.values.shape)}", got, where=where))
        wanted = [*self.positions, len(self.temperatures)]
        if list(self.log_tail_mass.shape) != wanted:
            got = f"shape {list(self.log_tail_mass.shape)}"
            raise ConfigError(expected("log_tail_mass", f"of shape {wanted}", got, where=where))
        if not 1 <= self.k <= self.n_classes:
            raise ConfigError(expected("k", f"between 1 and the {self.n_classes} classes", self.k, where=where))

    @property
    def k(self) -> int:
        """Number of classes kept for each position."""
        return self.values.shape[-1]

    @property
    def positions(self) -> torch.Size:
        """The leading shape: one distribution for each position."""
        return self.values.shape[:-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the kept logits are stored in."""
        return self.values.dtype

    def log_tail(self, temperature: float) -> Tensor:
        """Return the log mass of the classes left out at `temperature`, shape [...].

        Raises:
            FidelityError: if the temperature was not promised: the missing mass at another one cannot be recovered.
        """
        for place, promised in enumerate(self.temperatures):
            if promised == temperature:
                mass = self.log_tail_mass[..., place].detach()
                # A float32 mass may round to just above 1.
                return mass.to(computing_dtype(self.dtype, mass.dtype)).clamp_max(0)
        known = ", ".join(f"{promised:g}" for promised in self.temperatures) or "none"
        kept = self.kept_mass.get(temperature)
        got = temperature if kept is None else f"{temperature:g}, where the kept classes have {kept:.3g} of the mass"
        raise FidelityError(
            expected(
                "temperature",
                f"one that the sparse target promises ({known})",
                got,
                do="Use one of these, or make the book again with this temperature or with dense logits.",
            )
        )

    def kept_log_probabilities(self, temperature: float) -> Tensor:
        """Return log t_i of the kept classes at a promised `temperature`, shape [..., k]."""
        tail = self.log_tail(temperature)
        return self.renormalised_log_probabilities(temperature).to(tail.dtype) + _log_one_minus_exp(tail).unsqueeze(-1)

    def renormalised_log_probabilities(self, temperature: float) -> Tensor:
        """Return log softmax(values / T), shape [..., k]: what is left of the teacher when the tail is forgotten.

        It needs no promise, and it is not what the teacher said: see `losses.truncated_kl`.
        """
        return (self.values.detach().to(computing_dtype(self.dtype)) / temperature).log_softmax(-1)

    def promising(self, temperature: float) -> SparseTarget:
        """Return the target with one of its temperatures alone.

        Raises:
            FidelityError: if it was not promised.
        """
        mass = self.log_tail(temperature).unsqueeze(-1)
        return replace(self, log_tail_mass=mass, temperatures=(temperature,))

    def to(self, device: torch.device | str) -> SparseTarget:
        """Return the target on `device`; the copies do not wait for the device."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> SparseTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return self._map(lambda part: part[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> SparseTarget:
        values, indices, log_tail_mass = change(self.values), change(self.indices), change(self.log_tail_mass)
        return replace(self, values=values, indices=indices, log_tail_mass=log_tail_mass)

    @classmethod
    def from_logits(cls, logits: Tensor, k: int, temperatures: tuple[float, ...]) -> SparseTarget:
        """Keep the `k` largest logits of each position, as the `top_k` codec does.

        Args:
            logits: At temperature 1, shape [..., classes].
            k: Classes kept, 1 to the number of classes.
            temperatures: Temperatures to promise, above 0.
        """
        n_classes = logits.shape[-1]
        if at_least(k, 1, "k", where="sparse target") > n_classes:
            raise ConfigError(expected("k", f"at most the {n_classes} classes", k, where="sparse target"))
        exact = logits.detach().to(computing_dtype(logits.dtype))
        values, indices = exact.topk(k, dim=-1)
        others = exact.scatter(-1, indices, -math.inf)
        masses = [
            (others / positive(temperature, "temperatures")).logsumexp(-1) - (exact / temperature).logsumexp(-1)
            for temperature in temperatures
        ]
        log_tail_mass = torch.stack(masses, -1) if masses else exact.new_empty((*exact.shape[:-1], 0))
        return cls(values - values[..., :1], indices, log_tail_mass, tuple(temperatures), n_classes)


Target = FullTarget | SparseTarget | SampledTarget | ClassTarget
"""What a loss takes as `teacher`; a bare tensor of logits is taken as a `DenseTarget`."""


def as_target(teacher: Target | Tensor) -> Target:
    """Return `teacher`, with a bare tensor of logits wrapped.

    >>> type(as_target(torch.zeros(2, 3))).__name__
    'DenseTarget'
    """
    return DenseTarget(teacher) if isinstance(teacher, Tensor) else teacher


def likeliest(target: Target) -> Tensor:
    """Return the teacher's likeliest class at each position, int64 [...]; of equal ones the lowest, where all are known.

    Raises:
        FidelityError: for draws, whose most frequent class need not be the likeliest.

    >>> likeliest(SparseTarget.from_logits(torch.tensor([[0.0, 2.0, 1.0]]), 2, (1.0,)))
    tensor([1])
    """
    if isinstance(target, SampledTarget):
        raise target.refuse("likeliest class")
    if isinstance(target, ClassTarget):
        return target.classes
    if isinstance(target, SparseTarget):
        return target.indices.gather(-1, target.values.argmax(-1, keepdim=True)).squeeze(-1)
    if isinstance(target, DenseTarget):
        return target.logits.argmax(-1)
    only = getattr(target, "temperature", None)  # of what was worked out at one temperature, and says nothing at others
    return target.log_probabilities(1.0 if only is None else only).argmax(-1)


def _log_one_minus_exp(log_mass: Tensor) -> Tensor:
    """Return log(1 - exp(log_mass)) for log_mass <= 0; each branch is exact where the other cancels."""
    return torch.where(log_mass > -math.log(2), torch.log(-torch.expm1(log_mass)), torch.log1p(-torch.exp(log_mass)))
