"""Sequence labelling: one class at every step of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, LABEL_LENGTH, LENGTH, SAMPLE, WEIGHT
from bookkd.tasks._positions import PositionTask

__all__ = ["Tagging"]


@dataclass(frozen=True)
class Tagging(PositionTask):
    """Logits [batch, length, classes] of a network that is called with the steps and their lengths, and one class a step.

    Steps are tokens [batch, length] or vectors of numbers [batch, length, features]. Losses see the steps of all sequences of a batch
    one after another, [steps, classes]; what a network says behind the length of a sequence is about padding and is never
    kept. A step whose label is hidden (`IGNORE_LABEL`) teaches nothing by its label, and is still taught by a teacher; so is a
    sequence without any labels.

    Args:
        class_names: Names of the classes, in the order of the class axis, at least two.

    >>> task = Tagging(("low", "high"))
    >>> batch = {
    ...     "input": torch.tensor([[5, 6, 7], [8, 0, 0]]), "length": torch.tensor([3, 1]),
    ...     "label": torch.tensor([[0, 1, 1], [0, -1, -1]]), "weight": torch.ones(2),
    ... }
    >>> task.batch(batch)["label"], task.fields(torch.zeros(2, 3, 2), batch)["logits"].shape
    (tensor([0, 1, 1, 0]), torch.Size([4, 2]))
    """

    class_names: tuple[str, ...]

    name: ClassVar[str] = "tagging"
    primary_metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.class_names) < 2:
            raise ConfigError(expected("class_names", "at least two names", list(self.class_names), where=self.name))

    @property
    def _n_outputs(self) -> int:
        return len(self.class_names)

    def check_data(self, dataset: Any) -> None:
        """Refuse pairs of sequences.

        Raises:
            ConfigError: for them.
        """
        if getattr(dataset, "label_is_input", False):
            wish, do = "sequences with one class a step", "Use task seq2seq."
            raise ConfigError(expected("data", wish, "pairs of sequences", where=f"task {self.name}", do=do))

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the steps of each sequence, int64 [batch]."""
        lengths: Tensor = batch[LENGTH]
        return lengths

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with one label and one weight for each step, [steps]; a hidden label keeps its weight for the teacher.

        Raises:
            DataError: if a sequence has another number of labels than of steps.
        """
        labels = self._labels(batch)
        kept = self._kept(batch, labels.shape[1], labels.device)
        return {**batch, LABEL: labels[kept], WEIGHT: self._spread(batch, kept)}

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of sequences as wholes.

        Raises:
            DataError: for any.
        """
        do = "Use task classification for one class a sequence, or a bookkd.zoo.SequenceDataset."
        raise DataError(expected("labels", "one a step", f"shape {list(labels.shape)}", where=where, do=do))

    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        given, steps = batch.get(LABEL), batch[INPUT]
        if given is None or (given.ndim == 1 and bool((given == IGNORE_LABEL).all())):
            return torch.full(steps.shape[:2], IGNORE_LABEL, device=steps.device)
        theirs = batch.get(LABEL_LENGTH)
        wrong = given.ndim != 2 or given.shape[1] != steps.shape[1]
        if not wrong and theirs is not None:
            wrong = bool((theirs != batch[LENGTH]).any())
        if wrong:
            raise DataError(_of_another_length(batch, given, theirs))
        labels: Tensor = given
        return labels


def _of_another_length(batch: Mapping[str, Any], labels: Tensor, theirs: Tensor | None) -> str:
    do = "Give each step one label; -1 where it is not known."
    if theirs is None:
        wish = f"[batch, {batch[INPUT].shape[1]}], one a step"
        return expected("label", wish, f"shape {list(labels.shape)}", where="task tagging", do=do)
    place = int((theirs != batch[LENGTH]).nonzero()[0]) if len(theirs) else 0
    where = f"sample {int(batch[SAMPLE][place])}" if SAMPLE in batch else f"row {place} of a batch"
    return expected("label", f"{int(batch[LENGTH][place])}, one a step", int(theirs[place]), where=where, do=do)
