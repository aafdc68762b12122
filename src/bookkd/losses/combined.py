"""Targets that are worked out from others when a loss asks: several teachers in one distribution, or one changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bookkd.core.check import finite
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.core.names import choose
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.targets import FullTarget, SparseTarget, Target, computing_dtype

__all__ = ["BakedTarget", "CombinedTarget", "TransformedTarget"]

MODES = ("probability", "logit")


@dataclass(frozen=True, eq=False)
class CombinedTarget(FullTarget):
    """Several teachers' distributions as one, at whatever temperature a loss asks for.

    "probability": b = sum_m w_m softmax(t_m / T). "logit": b = softmax(sum_m w_m t_m / T). The two differ: the average of
    probabilities keeps what one teacher alone finds likely, the average of logits needs the consent of all.

    Args:
        members: One target a teacher, all of the same positions and classes.
        weights: One a teacher, not negative, with sum 1.
        mode: "probability" or "logit".
        accuracies: Held-out accuracy of each teacher, where known.

    Raises:
        ConfigError: if shapes or weights do not fit.
        FidelityError: if a member is sparse: two teachers keep different classes, and what each left out is unknown.

    >>> one, two = torch.tensor([[2.0, 3.5, -1.0]]), torch.tensor([[1.0, 2.5, 0.0]])
    >>> from bookkd.losses import DenseTarget
    >>> CombinedTarget.of([DenseTarget(one), DenseTarget(two)]).log_probabilities(4.0).exp()
    tensor([[0.3254, 0.4735, 0.2011]])
    """

    members: tuple[FullTarget, ...]
    weights: tuple[float, ...]
    mode: Literal["probability", "logit"] = "probability"
    accuracies: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        choose(self.mode, MODES, "mode", where="combined target")
        if not self.members or len(self.members) != len(self.weights):
            got = f"{len(self.members)} members and {len(self.weights)} weights"
            raise ConfigError(expected("members", "one for each weight, at least one", got, where="combined target"))
        for member in self.members:
            _refuse_sparse(member)
            if (member.n_classes, member.positions) != (self.n_classes, self.positions):
                got = f"{[*self.positions, self.n_classes]} and {[*member.positions, member.n_classes]}"
                raise ConfigError(expected("members", "of one shape", got, where="combined target"))
        total = sum(finite(weight, "weights", where="combined target") for weight in self.weights)
        if min(self.weights) < 0 or abs(total - 1) > 1e-6:
            raise ConfigError(
                expected("weights", "not negative, with sum 1", list(self.weights), where="combined target")
            )

    @classmethod
    def of(cls, members: Sequence[Target], accuracies: Sequence[float | None] = ()) -> CombinedTarget:
        """Return the members in equal parts, their probabilities averaged."""
        share = 1 / max(1, len(members))
        return cls(tuple(members), (share,) * len(members), "probability", tuple(accuracies))  # type: ignore[arg-type]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.members[0].n_classes

    @property
    def positions(self) -> torch.Size:
        """The leading shape: one distribution for each position."""
        return self.members[0].positions

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of the members."""
        found = self.members[0].dtype
        for member in self.members[1:]:
            found = torch.promote_types(found, member.dtype)
        return found

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return log b, shape [..., classes]."""
        # Without members of no weight: 0 times the -inf of a masked class is NaN.
        counted = [(m, w) for m, w in zip(self.members, self.weights, strict=True) if w > 0]
        if len(counted) == 1:
            return counted[0][0].log_probabilities(temperature)
        if self.mode == "logit":
            # log softmax(t) is t up to a constant of the position, which the softmax below takes away again.
            mean = torch.stack([w * m.log_probabilities(1.0) for m, w in counted]).sum(0)
            return (mean / temperature).log_softmax(-1)
        return torch.stack([m.log_probabilities(temperature) + math.log(w) for m, w in counted]).logsumexp(0)

    def silent(self) -> Tensor | None:
        """Return where no member of weight has anything to say."""
        found: Tensor | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            if weight == 0:
                continue
            one = member.silent()
            if one is None:
                return None
            found = one if found is None else found & one
        return found

    def to(self, device: torch.device | str) -> CombinedTarget:
        """Return the target on `device`; the copies do not wait for the device."""
        return self._map(lambda member: member.to(device))

    def rows(self, index: Tensor | slice) -> CombinedTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return self._map(lambda member: member.rows(index))

    def _map(self, change: Callable[[FullTarget], FullTarget]) -> CombinedTarget:
        return CombinedTarget(tuple(map(change, self.members)), self.weights, self.mode, self.accuracies)


def _refuse_sparse(member: Target) -> None:
    if isinstance(member, SampledTarget | ClassTarget):
        raise member.refuse("several teachers combined")
    if isinstance(member, SparseTarget):
        do = "Make the books with codec dense or int8."
        got = f"the {member.k} largest of {member.n_classes}"
        raise FidelityError(expected("members", "logits of every class", got, where="several teachers combined", do=do))


class _Wrapped(FullTarget):
    """A target around another, of the same positions, classes and dtype."""

    inner: FullTarget

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.inner.n_classes

    @property
    def positions(self) -> torch.Size:
        """The leading shape: one distribution for each position."""
        return self.inner.positions

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the target inside."""
        return self.inner.dtype

    def silent(self) -> Tensor | None:
        """Return where the target inside has nothing to say."""
        return self.inner.silent()


@dataclass(frozen=True, eq=False)
class TransformedTarget(_Wrapped):
    """A target whose distribution is changed when a loss asks for it.

    Args:
        inner: The target before the change.
        change: From `inner` and the temperature that the loss asks for to log-probabilities, shape [..., classes]; row by
            row, so that rows of the result are results of the rows.
        extra: What `change` needs of each position, such as its label; indexed along with the target.
        silence: Where the target then has nothing to say, bool of shape `positions`; as the target inside where None.

    >>> from bookkd.losses import DenseTarget
    >>> target = TransformedTarget(DenseTarget(torch.tensor([[0.0, 2.0]])), lambda inner, t, extra: inner.log_probabilities(2 * t))
    >>> target.log_probabilities(1.0).exp()
    tensor([[0.2689, 0.7311]])
    """

    inner: FullTarget
    change: Callable[[FullTarget, float, Tensor | None], Tensor]
    extra: Tensor | None = None
    silence: Tensor | None = None

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return what `change` makes of the inner target."""
        return self.change(self.inner, temperature, self.extra).detach().to(computing_dtype(self.dtype))

    def silent(self) -> Tensor | None:
        """Return where there is nothing to say after the change."""
        return self.inner.silent() if self.silence is None else self.silence

    def to(self, device: torch.device | str) -> TransformedTarget:
        """Return the target on `device`; the copy does not wait for the device."""
        return self._map(self.inner.to(device), lambda part: part.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> TransformedTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return self._map(self.inner.rows(index), lambda part: part[index])

    def _map(self, inner: FullTarget, change: Callable[[Tensor], Tensor]) -> TransformedTarget:
        extra, silence = (None if part is None else change(part) for part in (self.extra, self.silence))
        return TransformedTarget(inner, self.change, extra, silence)


@dataclass(frozen=True, eq=False)
class BakedTarget(_Wrapped):
    """A distribution that was worked out at one temperature and says nothing at another.

    Args:
        inner: Logits whose softmax at `temperature` is the distribution.
        temperature: The only one that is honoured.

    >>> from bookkd.losses import DenseTarget
    >>> target = BakedTarget(DenseTarget(torch.tensor([[0.0, 4.0]])), 4.0)
    >>> target.log_probabilities(4.0).exp()
    tensor([[0.2689, 0.7311]])
    """

    inner: FullTarget
    temperature: float

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return the log-probabilities, shape [..., classes].

        Raises:
            FidelityError: at any other temperature.
        """
        if temperature != self.temperature:
            do = "Ask at this temperature, or learn from the books that it was baked from."
            raise FidelityError(expected("temperature", f"{self.temperature:g} of a baked book", temperature, do=do))
        return self.inner.log_probabilities(temperature)

    def to(self, device: torch.device | str) -> BakedTarget:
        """Return the target on `device`; the copy does not wait for the device."""
        return BakedTarget(self.inner.to(device), self.temperature)

    def rows(self, index: Tensor | slice) -> BakedTarget:
        """Return the positions of the first axis that `index` (integer, boolean or a slice) names."""
        return BakedTarget(self.inner.rows(index), self.temperature)
