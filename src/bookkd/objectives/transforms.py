"""Field transforms: what is done to logits on the way into a loss, on the teacher's side, the student's, or both.

They compose with losses on logits: `transformed(term, Standardise())`. Where they leave a class without probability, a loss that
is infinite there is refused. The teacher's side is worked out when the loss asks, at the temperature that it asks for (`Extract` and
`Temper` have one of their own), so that a book keeps logits at temperature 1 and every choice stays free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bookkd.core.check import at_least, between, finite, positive
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, PARTNER_LABEL
from bookkd.core.names import choose
from bookkd.losses import (
    ClassTarget,
    CombinedTarget,
    FullTarget,
    SampledTarget,
    SparseTarget,
    Target,
    TransformedTarget,
)
from bookkd.losses.targets import computing_dtype
from bookkd.objectives.terms import Term

__all__ = [
    "Combine",
    "Correct",
    "EntropyBand",
    "Extract",
    "FieldTransform",
    "Flatten",
    "Standardise",
    "Temper",
    "transformed",
]

Batch = Mapping[str, Any]


class FieldTransform:
    """Base of all field transforms: leaves both sides as they are.

    Subclasses are frozen dataclasses of plain values that override one side or both.
    """

    @property
    def leaves_zeros(self) -> bool:
        """Whether a class that the teacher thought possible may be left without any probability."""
        return False

    def student(self, logits: Tensor) -> Tensor:
        """Return the student's logits as the loss is to see them, shape [..., classes], with gradient."""
        return logits

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        """Return the teacher's target as the loss is to see it.

        Args:
            target: A distribution over every class.
            batch: The batch, for what a transform needs besides, such as labels.
        """
        return target

    def __call__(self, student: Tensor, target: Target, batch: Batch) -> tuple[Tensor, Target]:
        """Apply both sides.

        Raises:
            FidelityError: for a sparse target, whose classes left out no transform can see.
        """
        if isinstance(target, SampledTarget | ClassTarget):
            raise target.refuse(f"transform {type(self).__name__}")
        if isinstance(target, SparseTarget):
            got = f"the {target.k} largest of {target.n_classes}"
            do = "Make the book with the codec dense or int8."
            where = f"transform {type(self).__name__}"
            raise FidelityError(expected("teacher", "logits of every class", got, where=where, do=do))
        return self.student(student), self.teacher(target, batch)


def transformed(term: Term, *transforms: FieldTransform) -> Term:
    """Return `term` with `transforms` applied, in this order, behind those that it has.

    Raises:
        ConfigError: if the term asks no teacher, or its loss would be infinite under a transform.

    >>> from bookkd.losses import soft_target_kl
    >>> from bookkd.objectives import bind
    >>> term = bind(soft_target_kl, teacher="logits", temperature=2.0, t_squared=True, class_reduction="sum")
    >>> transformed(term, Standardise()).transforms
    (Standardise(ddof=1),)
    """
    return replace(term, transforms=(*term.transforms, *transforms))


@dataclass(frozen=True)
class Combine(FieldTransform):
    """Say how several teachers become one; a single teacher stays as it is.

    Args:
        mode: "probability" averages the tempered probabilities, "logit" the logits.
        weights: "uniform", "accuracy" (in proportion to the held-out accuracies that the books give), or one number a
            teacher, not negative, brought to sum 1.

    >>> from bookkd.losses import CombinedTarget, DenseTarget
    >>> one, two = torch.tensor([[2.0, 3.5, -1.0]]), torch.tensor([[1.0, 2.5, 0.0]])
    >>> both = CombinedTarget.of([DenseTarget(one), DenseTarget(two)])
    >>> Combine("logit").teacher(both, {}).log_probabilities(4.0).exp()
    tensor([[0.3266, 0.4753, 0.1981]])
    """

    mode: Literal["probability", "logit"] = "probability"
    weights: str | tuple[float, ...] = "uniform"

    def __post_init__(self) -> None:
        choose(self.mode, ("probability", "logit"), "mode", where="combining teachers")
        if isinstance(self.weights, str):
            choose(self.weights, ("uniform", "accuracy"), "weights", where="combining teachers")
            return
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        for weight in self.weights:
            finite(weight, "weights", where="combining teachers")
        if not self.weights or min(self.weights) < 0 or sum(self.weights) <= 0:
            wish = "uniform, accuracy or numbers that are not negative, one at least above 0"
            raise ConfigError(expected("weights", wish, list(self.weights), where="combining teachers"))

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        if not isinstance(target, CombinedTarget):
            if not isinstance(self.weights, str) and len(self.weights) != 1:
                raise ConfigError(
                    expected("weights", "one, for one teacher", list(self.weights), where="combining teachers")
                )
            return target
        return replace(target, mode=self.mode, weights=self._shares(target))

    def _shares(self, target: CombinedTarget) -> tuple[float, ...]:
        count = len(target.members)
        if self.weights == "uniform":
            return (1 / count,) * count
        if self.weights == "accuracy":
            known = [accuracy for accuracy in target.accuracies if accuracy is not None]
            if len(known) != count or sum(known) <= 0:
                do = "Make the books with --held_out SPLIT, or give the weights."
                got = f"{len(known)} for {count} teachers"
                raise ConfigError(expected("accuracies", "known for every teacher", got, where="weights", do=do))
            return tuple(accuracy / sum(known) for accuracy in known)
        given = [float(weight) for weight in self.weights]
        if len(given) != count:
            got = f"{len(given)} weights"
            raise ConfigError(expected("weights", f"one for each of {count} teachers", got, where="combining teachers"))
        return tuple(weight / sum(given) for weight in given)


@dataclass(frozen=True)
class Correct(FieldTransform):
    """Where the teacher is wrong, mix in the least label that makes the true class tie for first.

    b <- (1 - e) b + e onehot(y), e = d / (1 + d), d = max(b) - b_y. A hidden label corrects nothing.

    >>> from bookkd.losses import DenseTarget
    >>> wrong = DenseTarget(torch.tensor([[3.0, 2.0, -1.0]]))
    >>> Correct().teacher(wrong, {"label": torch.tensor([1])}).log_probabilities(1.0).exp()
    tensor([[0.4955, 0.4955, 0.0091]])
    """

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        if batch.get(PARTNER_LABEL) is not None:
            do = "Turn the correction off, or make a book of views that are not mixed."
            raise ConfigError(expected("views", "not mixed, to correct teachers by their labels", "mixed views", do=do))
        if LABEL not in batch:
            raise ConfigError(expected("batch", f"one with `{LABEL}`", f"the keys {', '.join(sorted(batch))}"))
        return TransformedTarget(target, _corrected, batch[LABEL])


def _corrected(inner: FullTarget, temperature: float, labels: Tensor | None) -> Tensor:
    log_b = inner.log_probabilities(temperature)
    if labels is None:
        return log_b
    known = (labels != IGNORE_LABEL).unsqueeze(-1)
    places = labels.clamp_min(0).unsqueeze(-1)
    b = log_b.exp()
    gap = (b.amax(-1, keepdim=True) - b.gather(-1, places)).masked_fill(~known, 0)
    share = gap / (1 + gap)
    mixed = ((1 - share) * b).scatter_add(-1, places, share)
    # Where nothing changes, the exact logarithm stays.
    return torch.where(gap > 0, mixed.log(), log_b)


@dataclass(frozen=True)
class Flatten(FieldTransform):
    """Mix in the uniform distribution: b <- (1 - r) b + r / K, over the K classes that are possible (not -inf).

    Args:
        share: r, above 0 to 1.
    """

    share: float

    def __post_init__(self) -> None:
        positive(between(self.share, 0, 1, "share", where="flatten"), "share", where="flatten")

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        share = self.share

        def flattened(inner: FullTarget, temperature: float, extra: Tensor | None) -> Tensor:
            log_b = inner.log_probabilities(temperature)
            return ((1 - share) * log_b.exp() + share * _uniform(log_b)).log()

        return TransformedTarget(target, flattened)


@dataclass(frozen=True)
class EntropyBand(FieldTransform):
    """Bring the entropy of each record into a band: b <- b^s / sum b^s with the s nearest to 1 that does it.

    As far as a power can: classes that tie for first stay equal, so that n of them leave an entropy of log n at least.

    Args:
        low: Least entropy in nats, 0 or more.
        high: Most entropy in nats, at least `low`; infinity for no bound.

    >>> from bookkd.losses import DenseTarget
    >>> sure = DenseTarget(torch.tensor([[8.0, 0.0, 0.0]]))
    >>> log_b = EntropyBand(0.5, math.inf).teacher(sure, {}).log_probabilities(1.0)
    >>> round(-(log_b.exp() * log_b).sum().item(), 4)
    0.5
    """

    low: float
    high: float = math.inf

    def __post_init__(self) -> None:
        where = "entropy band"
        if not (isinstance(self.low, int | float) and self.low >= 0 and self.high > 0 and self.low <= self.high):
            wish = "0 <= low <= high with high above 0"
            raise ConfigError(expected("entropy", wish, (self.low, self.high), where=where))

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        low, high = self.low, self.high
        if low > math.log(target.n_classes):
            wish = f"at most log {target.n_classes} = {math.log(target.n_classes):.4g} nats"
            raise ConfigError(expected("entropy_low", wish, low, where="entropy band"))

        def banded(inner: FullTarget, temperature: float, extra: Tensor | None) -> Tensor:
            log_b = inner.log_probabilities(temperature)
            entropy = _entropy(log_b)
            # No power of b leaves fewer classes than tie for first, or more than are possible at all.
            ties = (log_b >= log_b.amax(-1, keepdim=True) - 1e-6).sum(-1)
            least, most = ties.to(log_b.dtype).log(), (log_b > -math.inf).sum(-1).to(log_b.dtype).log()
            wanted = torch.minimum(torch.maximum(entropy.clamp(low, high), least), most)
            moves = (wanted - entropy).abs() > 1e-6
            return torch.where(moves.unsqueeze(-1), _to_entropy(log_b, wanted), log_b)

        return TransformedTarget(target, banded)


def _entropy(log_b: Tensor) -> Tensor:
    return -(log_b.exp() * log_b.masked_fill(log_b == -math.inf, 0)).sum(-1)


def _to_entropy(log_b: Tensor, wanted: Tensor) -> Tensor:
    """Return log b^s / sum b^s with entropy `wanted`, by bisection over log s: entropy falls as s grows."""
    low, high = torch.full_like(wanted, -12.0), torch.full_like(wanted, 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        flat = _entropy((log_b * middle.exp().unsqueeze(-1)).log_softmax(-1)) > wanted
        low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
    return (log_b * ((low + high) / 2).exp().unsqueeze(-1)).log_softmax(-1)


@dataclass(frozen=True)
class Extract(FieldTransform):
    """Take the uniform share out of the teacher's distribution, and keep the likeness of classes.

    p = softmax(v / tau_t) splits as (1 - u) r + u / K with u = K min p, the largest uniform share that can be taken out;
    g = (p - rho m) / (1 - rho K m), m = min p, and g = r where rho = 1. With `rank` above 1, m is the rank-th smallest
    probability and what falls below 0 is cut off. Only the K classes that are possible (not -inf) count.

    Where nothing is left (a uniform teacher) g is uniform, its limit as rho grows to 1, and the target is silent: a term of
    one value a position counts nothing there.

    The teacher's temperature is `temperature`, whatever the loss asks for: that of the loss is the student's alone.

    Args:
        temperature: tau_t, above 0.
        share: rho, 0 (plain tempering) to 1.
        rank: Which smallest probability is taken for the uniform share; 1 is the least.

    >>> from bookkd.losses import DenseTarget
    >>> Extract(4.0).teacher(DenseTarget(torch.tensor([[2.0, 3.5, -1.0]])), {}).log_probabilities(1.0).exp()
    tensor([[0.3494, 0.6506, 0.0000]])

    Source: reconstructed after Kobayashi, "Extractive Knowledge Distillation", WACV 2022, whose formula we have not read.
    """

    temperature: float
    share: float = 1.0
    rank: int = 1

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature", where="extraction")
        between(self.share, 0, 1, "share", where="extraction")
        at_least(self.rank, 1, "rank", where="extraction")

    @property
    def leaves_zeros(self) -> bool:
        return self.share == 1 or (self.share > 0 and self.rank > 1)

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        if self.rank > target.n_classes - 1:
            wish = f"below the {target.n_classes} classes"
            raise ConfigError(expected("rank", wish, self.rank, where="extraction"))
        if self.share == 0:
            return Temper(self.temperature).teacher(target, batch)
        # The loss's temperature plays no part, so that all is known now.
        log_p = target.log_probabilities(self.temperature)
        p, possible = log_p.exp(), log_p > -math.inf
        least = p.masked_fill(~possible, math.inf)
        floor = least.amin(-1, keepdim=True) if self.rank == 1 else least.kthvalue(self.rank, -1, keepdim=True).values
        rest = (p - self.share * floor).clamp_min(0)
        total = rest.sum(-1, keepdim=True)
        # Below the rounding of the probabilities there is no likeness left, only noise.
        empty = total <= 4 * target.n_classes * torch.finfo(p.dtype).eps
        log_g = torch.where(empty, _uniform(log_p), rest / total.masked_fill(empty, 1)).log()
        before, silent = target.silent(), empty.squeeze(-1)
        return TransformedTarget(target, _given, log_g, silent if before is None else before | silent)


def _uniform(log_p: Tensor) -> Tensor:
    """Return equal probabilities for the classes that are possible, 0 for the others."""
    possible = (log_p > -math.inf).to(log_p.dtype)
    return possible / possible.sum(-1, keepdim=True)


def _given(inner: FullTarget, temperature: float, log_b: Tensor | None) -> Tensor:
    return inner.log_probabilities(temperature) if log_b is None else log_b


@dataclass(frozen=True)
class Temper(FieldTransform):
    """Give the teacher a temperature of its own; that of the loss is the student's alone.

    Args:
        temperature: tau_t, above 0.

    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, with the
    student's at 1.
    """

    temperature: float

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature", where="teacher's temperature")

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        own = self.temperature
        return TransformedTarget(target, lambda inner, temperature, extra: inner.log_probabilities(own))


@dataclass(frozen=True)
class Standardise(FieldTransform):
    """Bring the logits of each position, on both sides, to mean 0 and deviation 1 before they are tempered.

    Z(x) = (x - mean x) / (1e-7 + std x): a positive affine change of either side's logits changes nothing.

    Args:
        ddof: 1 divides the squares by K - 1, as the released code does; 0 by K.

    >>> Standardise().student(torch.tensor([[1.0, 2.0, 0.5]]))
    tensor([[-0.2182,  1.0911, -0.8729]])

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024 (arXiv 2403.01427), and its code.
    """

    ddof: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise ConfigError(expected("ddof", "0 or 1", self.ddof, where="standardisation"))

    def student(self, logits: Tensor) -> Tensor:
        return self._standard(logits.to(computing_dtype(logits.dtype)))

    def teacher(self, target: FullTarget, batch: Batch) -> FullTarget:
        def standardised(inner: FullTarget, temperature: float, extra: Tensor | None) -> Tensor:
            # log softmax(v) is v up to a constant of the position, which the mean takes away.
            return (self._standard(inner.log_probabilities(1.0)) / temperature).log_softmax(-1)

        return TransformedTarget(target, standardised)

    def _standard(self, logits: Tensor) -> Tensor:
        centred = logits - logits.mean(-1, keepdim=True)
        if bool(centred.isnan().any()):
            do = "Take out masked classes, and standardise before other transforms."
            raise ConfigError(expected("logits", "finite", "-inf or NaN", where="standardisation", do=do))
        return centred / (1e-7 + logits.std(-1, correction=self.ddof, keepdim=True))
