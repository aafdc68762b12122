"""Multi-label classification: for each sample, every class is there or not, independently of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from bookkd.core.errors import ConfigError, DataError, FidelityError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, LOGITS, PARTNER_LABEL, WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import BakedTarget, CombinedTarget, DenseTarget, FullTarget, Target
from bookkd.objectives import Term
from bookkd.tasks.base import LogitsTask

__all__ = ["MultiLabel"]


@dataclass(frozen=True)
class MultiLabel(LogitsTask):
    """Logits of shape [batch, classes], one sigmoid for each class; a position is one class of one sample.

    Losses see a logit z as the two outcomes (0, z) of its class, absent and present, since softmax(0, z) is sigmoid(z):
    every loss on logits is then a loss for each class (`soft_target_kl` the binary divergence, `cross_entropy` the binary
    cross-entropy), and the loss of a batch is the mean over samples of the mean over classes. Networks, books and metrics
    keep [batch, classes].

    Labels are vectors of 0 and 1, whole or floating, with `IGNORE_LABEL` (or NaN) where it is not known whether a class is
    there; such positions take no part in the label term, whose mean is then over the known ones.

    Args:
        class_names: Names in the order of the class axis, at least one.

    >>> import torch
    >>> task = MultiLabel(("cat", "dog"))
    >>> task.student({"logits": torch.tensor([[2.0, -1.0]])})["logits"]
    tensor([[[ 0.,  2.],
             [ 0., -1.]]])
    """

    class_names: tuple[str, ...]

    name: ClassVar[str] = "multi-label"
    primary_metric: ClassVar[str] = "map"
    sparse: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.class_names:
            raise ConfigError(expected("class_names", "at least one name", [], where=self.name))

    def weights(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the weight of each sample for each of its classes, float [batch, classes]."""
        weights: Tensor = batch[WEIGHT]
        return weights.unsqueeze(-1).expand(-1, self.n_classes)

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with labels int64 [batch, classes]."""
        found = {key: self._labels(batch[key]) for key in (LABEL, PARTNER_LABEL) if key in batch}
        return {**batch, **found}

    def _labels(self, labels: Tensor) -> Tensor:
        if labels.ndim == 1 and bool((labels == IGNORE_LABEL).all()):
            # Images without labels, as `Replay` gives them.
            return labels.unsqueeze(-1).expand(-1, self.n_classes)
        if labels.ndim != 2 or labels.shape[1] != self.n_classes:
            do = "Return a vector of 0 and 1 for each sample."
            got = f"shape {list(labels.shape)}"
            raise DataError(expected("label", f"[batch, {self.n_classes}]", got, where=f"task {self.name}", do=do))
        if not labels.is_floating_point():
            return labels.long()
        whole = labels.nan_to_num(nan=float(IGNORE_LABEL))
        if bool((whole != whole.round()).any()):
            value = float(whole[whole != whole.round()][0])
            raise DataError(expected("label", "0, 1, or -1 where not known", value, where=f"task {self.name}"))
        return whole.long()

    def student(self, fields: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return logits [batch, classes] as the logits of two outcomes, [batch, classes, 2]."""
        return {name: _outcomes(value) if _is_logits(name) else value for name, value in fields.items()}

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return targets over classes as targets over the two outcomes of each class.

        Raises:
            FidelityError: for a sparse target: a class that it leaves out is not absent, its logit is unknown.
        """
        return {name: self._target(target) if _is_logits(name) else target for name, target in targets.items()}

    def _target(self, target: Target) -> FullTarget:
        if isinstance(target, DenseTarget):
            return DenseTarget(_outcomes(target.logits))
        if isinstance(target, CombinedTarget):
            return replace(target, members=tuple(self._target(member) for member in target.members))
        baked = isinstance(target, BakedTarget)
        do = "Learn from the books that it was baked from." if baked else "Make the book with the codec dense or int8."
        got = f"a {type(target).__name__}"
        raise FidelityError(expected(LOGITS, "the logit of every class", got, where=f"task {self.name}", do=do))

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return binary cross-entropy where the label is known; smoothing moves 0 and 1 towards a half.

        The target of a class is (1 - e) y + e / 2; mixed views use both labels.
        """
        term = super().label_term(weight=weight, label_smoothing=label_smoothing)
        return replace(term, name="binary_cross_entropy")

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels that are not vectors of 0, 1 and -1.

        Args:
            labels: Array [samples, classes]; NaN counts as -1.
            where: Name of the data set, for the error.

        Raises:
            DataError: naming the first such sample.
        """
        found = np.asarray(labels)
        if found.ndim != 2 or found.shape[1] != self.n_classes:
            raise DataError(
                expected("labels", f"[samples, {self.n_classes}]", f"shape {list(found.shape)}", where=where)
            )
        bad = ~(np.isin(found, (0, 1, IGNORE_LABEL)) | (found != found))
        if bad.any():
            sample, place = np.argwhere(bad)[0].tolist()
            value, at = found[sample, place].item(), f"sample {sample} of {where}, class {self.class_names[place]}"
            raise DataError(expected("label", "0, 1, or -1 where not known", value, where=at))


def _is_logits(name: str) -> bool:
    """Say whether a field holds logits over classes: the student's, a peer's, a member's, or scaled ones."""
    return LOGITS in name.split("/")


def _outcomes(logits: Tensor) -> Tensor:
    # Not by `stack`, which refuses the float16 of a book under autocast to bfloat16.
    return pad(logits.unsqueeze(-1), (1, 0))
