"""Tasks whose networks say one distribution at every position of a sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import TeacherOutputError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, LOGITS, WEIGHT, FieldInfo
from bookkd.core.schedules import Schedule
from bookkd.objectives import Term
from bookkd.tasks._outputs import found_logits
from bookkd.tasks.base import BaseTask, label_term

__all__ = ["PositionTask"]


class PositionTask(BaseTask):
    """Logits [batch, length, outputs] of a network, padded; losses, metrics and books see [positions, classes], one sequence behind another.

    A subclass says how many positions count of each sequence (`counts`: the first so many), which label each has (`_labels`), and how
    many classes there are (`_n_outputs`).
    """

    name: ClassVar[str]
    _hint: ClassVar[str] = (
        "Use a network of the data's tokens and classes, which says something at every position that it is given."
    )

    @property
    @abstractmethod
    def _n_outputs(self) -> int:
        """Classes of a position; a network that says more tokens is cut to them, one that says more named classes is refused."""

    @property
    def n_outputs(self) -> int:
        """Classes of a position."""
        return self._n_outputs

    @abstractmethod
    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the positions of each sequence that count, int64 [batch]."""

    @abstractmethod
    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the label of each position, int64 [batch, at least the largest count]."""

    def _length(self, batch: Mapping[str, Any]) -> int:
        """Return how many positions a network's padded output has."""
        return int(batch[INPUT].shape[1])

    @property
    def rule(self) -> str:
        """How many positions a network says, in words for an error; empty where that is what it is given."""
        return ""

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """One field, `logits`, of as many classes a position."""
        return {LOGITS: FieldInfo((self._n_outputs,), by_position=True)}

    def most_positions(self, dataset: Any) -> int:
        """Return the most positions that a sequence of a data set has."""
        return at_least(int(dataset.most_positions), 1, "positions of the longest sequence", where=self.name)

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the logits out of a network's output, position by position.

        Args:
            output: A tensor [batch, length, at least the classes], an object with `.logits`, a mapping with `"logits"`, or a tuple that
                begins with them, as Transformers returns them.
            batch: The batch that went in.

        Returns:
            `logits` [positions, classes].

        Raises:
            TeacherOutputError: if the logits have another shape.
        """
        return {LOGITS: self._flat(found_logits(output), batch, type(output).__name__)}

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with one label and one weight for each position, [positions]."""
        labels = self._labels(batch)
        kept = self._kept(batch, labels.shape[1], labels.device)
        flat = labels[kept]
        return {**batch, LABEL: flat, WEIGHT: self._spread(batch, kept) * (flat != IGNORE_LABEL)}

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return cross-entropy on the label of each position."""
        return label_term(weight=weight, label_smoothing=label_smoothing)

    def _kept(self, batch: Mapping[str, Any], length: int, device: torch.device) -> Tensor:
        """Return which of `length` padded positions count: bool [batch, length]."""
        kept: Tensor = torch.arange(length, device=device) < self.counts(batch).to(device)[:, None]
        return kept

    def _spread(self, batch: Mapping[str, Any], kept: Tensor) -> Tensor:
        """Return the weight of each position's sequence, float [positions]."""
        weights: Tensor = batch[WEIGHT].to(kept.device)[:, None].expand(kept.shape)[kept]
        return weights

    def _flat(self, found: Any, batch: Mapping[str, Any], kind: str) -> Tensor:
        rows, length, classes = len(batch[INPUT]), self._length(batch), self._n_outputs
        exact = len(cast(Any, self).class_names) > 0  # tokens have no names, and an output layer may be padded
        if (
            not isinstance(found, Tensor)
            or found.ndim != 3
            or len(found) != rows
            or found.shape[1] != length
            or (found.shape[2] != classes if exact else found.shape[2] < classes)
        ):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {kind} without them"
            wish = f"[{rows}, {length}, {'' if exact else 'at least '}{classes}]"
            rule = f", by {self.rule}" if self.rule else ""
            raise TeacherOutputError(expected("logits", wish + rule, got, where="output of a network", do=self._hint))
        places = self._kept(batch, found.shape[1], found.device).flatten().nonzero().squeeze(1)
        flat = found.flatten(0, 1)
        if len(places) == len(flat):
            return flat[:, :classes]
        taken: Tensor = _Taken.apply(flat, places, classes)
        return taken


class _Taken(torch.autograd.Function):
    """Some rows of logits, cut to some classes: one copy there and one back, where a mask and a slice make two each and take twice as long."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: Tensor, classes: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = logits.shape
        return logits[:, :classes].index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.shape)
        whole[:, : gradient.shape[1]].index_copy_(0, places, gradient)
        return whole, None, None
