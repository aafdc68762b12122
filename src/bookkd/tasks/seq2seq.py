"""Sequence to sequence: of a source, and of a target so far, the distribution of the target token that comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import INPUT, LABEL, LABEL_LENGTH, LENGTH
from bookkd.tasks._positions import PositionTask

__all__ = ["Seq2Seq"]


@dataclass(frozen=True)
class Seq2Seq(PositionTask):
    """Logits [batch, target length, vocabulary] of a network that is fed source, source lengths and prefix (teacher forcing).

    Alignment: a target of n tokens, its end among them, has n positions in a book, in losses and in metrics; position u describes target
    token u, given the source and the gold tokens before u. The prefix is `begin` and the target shifted by one; what fills
    it up behind is seen by no causal decoder from a position that counts. Losses see the positions of all targets of a batch one after
    another, [positions, vocabulary].

    Args:
        vocabulary: Target tokens that there are. A network whose output layer is padded to more is cut to it.
        begin: Token that every prefix begins with, the data set's own (`Seq2Seq.of` takes it from there): a book says which it was.

    >>> task = Seq2Seq(6, begin=1)
    >>> batch = {"input": torch.tensor([[3, 4]]), "length": torch.tensor([2]), "weight": torch.ones(1)}
    >>> batch |= {"label": torch.tensor([[5, 4, 2]]), "label_length": torch.tensor([3])}
    >>> task.inputs(batch)[2], task.fields(torch.zeros(1, 3, 8), batch)["logits"].shape
    (tensor([[1, 5, 4]]), torch.Size([3, 6]))
    """

    vocabulary: int
    begin: int

    name: ClassVar[str] = "seq2seq"
    # What every validation can measure without decoding, smooth where BLEU of a few hundred sentences is noise, and no package needed.
    primary_metric: ClassVar[str] = "perplexity"

    def __post_init__(self) -> None:
        at_least(self.vocabulary, 2, "vocabulary", where=self.name)
        between(at_least(self.begin, 0, "begin", where=self.name), 0, self.vocabulary - 1, "begin", where=self.name)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: the fingerprint of the data says which tokens there are."""
        return ()

    @classmethod
    def of(cls, dataset: Any) -> Seq2Seq:
        """Return the task of the data set's target tokens.

        Raises:
            ConfigError: for a data set of something else.
        """
        if not getattr(dataset, "label_is_input", False) or not isinstance(getattr(dataset, "vocabulary", None), int):
            do = "Use a data set such as bookkd.zoo.PairDataset."
            raise ConfigError(expected("data", "pairs of sequences", type(dataset).__name__, where=cls.name, do=do))
        return cls(dataset.vocabulary, dataset.begin)

    @property
    def _n_outputs(self) -> int:
        return self.vocabulary

    def check_data(self, dataset: Any) -> None:
        """Refuse data of other sequences than pairs, or whose prefixes begin otherwise, or of another vocabulary.

        Raises:
            ConfigError: naming what differs.
        """
        if len(getattr(dataset, "class_names", ())):
            do = "Use task tagging, or pairs such as bookkd.zoo.PairDataset."
            got = f"sequences with classes, {type(dataset).__name__}"
            raise ConfigError(expected("data", "pairs of sequences", got, where=f"task {self.name}", do=do))
        for name in ("begin", "vocabulary"):
            mine, theirs = getattr(self, name), getattr(dataset, name, None)
            if theirs not in (None, mine):
                do = "Use Seq2Seq.of(dataset)."
                raise ConfigError(expected(name, f"{theirs}, as the data's", mine, where=f"task {self.name}", do=do))

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return sources, their lengths and prefixes.

        Raises:
            DataError: if a target has a hole: what comes behind a token that is hidden cannot be asked for.
        """
        labels, lengths = self._targets(batch), batch[LABEL_LENGTH]
        there = torch.arange(labels.shape[1], device=labels.device) < lengths.to(labels.device)[:, None]
        holes = there & ((labels < 0) | (labels >= self.vocabulary))
        if bool(holes.any()):
            row, place = holes.nonzero()[0].tolist()
            wish, do = (
                f"a token from 0 to {self.vocabulary - 1} at every position",
                "Check the tokenizer of the targets.",
            )
            where = f"{self.name}, row {row} of a batch, position {place}"
            raise DataError(expected("target", wish, int(labels[row, place]), where=where, do=do))
        first = labels.new_full((len(labels), 1), self.begin)
        prefix = torch.cat([first, labels[:, :-1].masked_fill(~there[:, :-1], self.begin)], dim=1)
        return batch[INPUT], batch[LENGTH], prefix

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the positions of each target, int64 [batch]: its tokens, with its end."""
        lengths: Tensor = batch[LABEL_LENGTH]
        return lengths

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of sequences as wholes.

        Raises:
            DataError: for any.
        """
        do = "Give a sequence of tokens as label of each sample, as PairDataset does."
        raise DataError(expected("labels", "targets of tokens", f"shape {list(labels.shape)}", where=where, do=do))

    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        return self._targets(batch)

    def _length(self, batch: Mapping[str, Any]) -> int:
        return int(self._targets(batch).shape[1])

    def _targets(self, batch: Mapping[str, Any]) -> Tensor:
        labels = batch.get(LABEL)
        if (
            not isinstance(labels, Tensor)
            or labels.ndim != 2
            or labels.is_floating_point()
            or LABEL_LENGTH not in batch
        ):
            got = (
                f"{labels.dtype} of shape {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            )
            do = "Use a data set of pairs of sequences, such as bookkd.zoo.PairDataset."
            raise DataError(expected("label", "target tokens [batch, length]", got, where=self.name, do=do))
        return labels
