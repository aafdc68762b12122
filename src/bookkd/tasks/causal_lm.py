"""Causal language modelling: at every position of a sequence, the distribution of the token that comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import INPUT, LABEL, LENGTH
from bookkd.tasks._positions import PositionTask

__all__ = ["CausalLM"]


@dataclass(frozen=True)
class CausalLM(PositionTask):
    """Logits [batch, length, vocabulary] of a network, of which those at position i describe token i + 1.

    Alignment: a sequence of n tokens has n - 1 positions, 0 to n - 2, in a book, in losses and in metrics alike. What a network says
    at the last token is about none that is there, and what it says behind the length of a sequence is about padding: neither is
    kept. Losses see the positions of all sequences of a batch one after another, [positions, vocabulary].

    Labels are those of Transformers: one a token, the token itself, with `IGNORE_LABEL` where it is not to be learnt (a prompt);
    without any, every token but the first of a sequence is. A position whose label is hidden has weight 0 in every term.

    Args:
        vocabulary: Tokens that there are. A network whose output layer is padded to more is cut to it.

    >>> import torch
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
    def _n_outputs(self) -> int:
        return self.vocabulary

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the tokens alone: what a causal network says at one of them depends on no later one, padding least of all."""
        return (batch[INPUT],)

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the positions of each sequence, int64 [batch]: one less than its tokens."""
        lengths: Tensor = batch[LENGTH]
        return lengths - 1

    def most_positions(self, dataset: Any) -> int:
        """Return the most positions that a sequence of a data set has."""
        return at_least(int(dataset.most_positions) - 1, 1, "tokens of the longest sequence, less one", where=self.name)

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of sequences as wholes.

        Raises:
            DataError: for any.
        """
        do = "Give labels by token, or none."
        raise DataError(expected("labels", "one a token", f"shape {list(labels.shape)}", where=where, do=do))

    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        given = batch.get(LABEL)
        # One label a sequence is none of a language model: `IGNORE_LABEL`, where the data set has none.
        labels: Tensor = batch[INPUT] if given is None or given.ndim == 1 else given
        return labels.roll(-1, dims=1)  # the first comes to stand behind the last, which describes nothing
