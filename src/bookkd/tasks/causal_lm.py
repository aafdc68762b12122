"""Causal language modelling: at every position of a sequence, the distribution of the token that comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, TeacherOutputError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, LENGTH, LOGITS, WEIGHT, FieldInfo
from bookkd.core.schedules import Schedule
from bookkd.objectives import Term
from bookkd.tasks._outputs import found_logits
from bookkd.tasks.base import BaseTask, label_term

__all__ = ["CausalLM"]


@dataclass(frozen=True)
class CausalLM(BaseTask):
    """Logits [batch, length, vocabulary] of a network, of which those at position i describe token i + 1.

    Alignment: a sequence of n tokens has n - 1 positions, 0 to n - 2, in a book, in losses and in metrics alike. What a network says
    at the last token is about none that is there, and what it says behind the length of a sequence is about padding: neither is
    kept. Losses see the positions of all sequences of a batch one after another, [positions, vocabulary].

    Labels are those of Transformers: one a token, the token itself, with `IGNORE_LABEL` where it is not to be learnt (a prompt);
    without any, every token but the first of a sequence is. A position whose label is hidden has weight 0 in every term.

    Args:
        vocabulary: Tokens that there are. A network whose output layer is padded to more is cut to it.

    >>> task = CausalLM(4)
    >>> batch = {"input": torch.tensor([[2, 3, 1], [0, 1, 0]]), "length": torch.tensor([3, 2]), "weight": torch.ones(2)}
    >>> task.batch(batch)["label"], task.fields(torch.zeros(2, 3, 8), batch)["logits"].shape
    (tensor([3, 1, 1]), torch.Size([3, 4]))
    """

    vocabulary: int

    name: ClassVar[str] = "causal-lm"
    primary_metric: ClassVar[str] = "perplexity"

    def __post_init__(self) -> None:
        at_least(self.vocabulary, 2, "vocabulary", where=self.name)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: the fingerprint of the data says which tokens there are."""
        return ()

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """One field, `logits`, of shape (vocabulary,) a position."""
        return {LOGITS: FieldInfo((self.vocabulary,), by_position=True)}

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the positions of each sequence, int64 [batch]: one less than its tokens."""
        lengths: Tensor = batch[LENGTH]
        return lengths - 1

    def most_positions(self, dataset: Any) -> int:
        """Return the most positions that a sequence of a data set has."""
        most: int = dataset.most_positions - 1
        return at_least(most, 1, "tokens of the longest sequence, less one", where=self.name)

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the logits out of a network's output, position by position.

        Args:
            output: A tensor [batch, length, at least the vocabulary], an object with `.logits`, a mapping with `"logits"`, or a
                tuple that begins with them, as Transformers returns them.
            batch: The batch that went in.

        Returns:
            `logits` [positions, vocabulary].

        Raises:
            TeacherOutputError: if the logits have another shape.
        """
        said = _logits(output, batch[INPUT].shape, self.vocabulary)
        return {LOGITS: said[:, :-1, : self.vocabulary][_described(batch, said.device)]}

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with one label and one weight for each position, [positions]."""
        tokens, described = batch[INPUT], _described(batch, batch[INPUT].device)
        given = batch.get(LABEL)
        # One label a sequence is none of a language model: `IGNORE_LABEL`, where the data set has none.
        labels = tokens if given is None or given.ndim == 1 else given
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(described)[described]
        flat = labels[:, 1:][described]
        weights = batch[WEIGHT][rows] * (flat != IGNORE_LABEL)
        return {**batch, LABEL: flat, WEIGHT: weights}

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return cross-entropy on the tokens that come next."""
        return label_term(weight=weight, label_smoothing=label_smoothing)

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of sequences as wholes.

        Raises:
            DataError: for any.
        """
        do = "Give labels by token, or none."
        raise DataError(expected("labels", "one a token", f"shape {list(labels.shape)}", where=where, do=do))


def _described(batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """Return which positions, but the last of the batch, describe a token that is there: bool [batch, length - 1]."""
    lengths = batch[LENGTH].to(device)
    found: Tensor = torch.arange(batch[INPUT].shape[1] - 1, device=device) < (lengths - 1)[:, None]
    return found


def _logits(output: Any, shape: torch.Size, vocabulary: int) -> Tensor:
    found = found_logits(output)
    if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[:2] != shape or found.shape[2] < vocabulary:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(output).__name__} without them"
        do = "Use a network of the data's tokenizer, which says something at every token."
        wish = f"[{shape[0]}, {shape[1]}, at least {vocabulary}]"
        raise TeacherOutputError(expected("logits", wish, got, where="output of a network", do=do))
    return found
