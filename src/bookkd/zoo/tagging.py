"""Sequences with one label a step: the data set, and a small recurrent network that tags them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.zoo.fitting import check_features, check_tokens_of
from bookkd.zoo.sequences import FlatSequences, piece

__all__ = ["GRUTagger", "SequenceDataset"]


@dataclass(frozen=True, eq=False)
class SequenceDataset(FlatSequences):
    """Sequences of tokens or of vectors of numbers, each of its own length, with one class at every step.

    Args:
        name: Name of the set.
        inputs: All sequences, one after another: whole numbers [steps], or numbers [steps, features].
        step_labels: The class of each step, int [steps]; `IGNORE_LABEL` where it is not known.
        ends: Where each sequence ends, rising, the last at the number of steps, int [sequences].
        class_names: Names of the classes.
        pad_value: What shorter sequences of a batch are filled up with; no network should look at it.

    Raises:
        DataError: for an empty sequence, labels of another length, a label that is no class, or numbers that are not finite.

    >>> data = SequenceDataset.of("mine", [[1, 2, 3], [4, 0]], [[0, 1, 1], [1, -1]], class_names=("a", "b"))
    >>> len(data), data[1], data.most_positions
    (2, (tensor([4, 0]), tensor([ 1, -1])), 3)
    """

    name: str
    inputs: npt.NDArray[Any]
    step_labels: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    pad_value: float = 0

    def __post_init__(self) -> None:
        inputs, labels, ends = (np.asarray(each) for each in (self.inputs, self.step_labels, self.ends))
        if len(self.class_names) < 2:
            raise DataError(expected("class_names", "at least two names", list(self.class_names), where=self.name))
        if not (inputs.ndim == 1 and inputs.dtype.kind in "iu") and not (inputs.ndim == 2 and inputs.dtype.kind == "f"):
            got = f"{inputs.dtype} of shape {inputs.shape}"
            raise DataError(
                expected("inputs", "whole numbers [steps] or numbers [steps, features]", got, where=self.name)
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(inputs):
            got = f"{labels.dtype} of shape {labels.shape}"
            raise DataError(expected("step_labels", f"{len(inputs)} whole numbers, one a step", got, where=self.name))
        counts = np.diff(ends.astype(np.int64), prepend=0)
        if ends.ndim != 1 or not len(ends) or ends[-1] != len(inputs) or (counts < 1).any():
            empty = np.flatnonzero(counts < 1)
            got = f"none in sequence {int(empty[0])}" if len(empty) else f"{len(ends)} ends"
            do = "Leave empty sequences out."
            raise DataError(expected("ends", "sequences of at least one step that end with the last", got, where=self.name, do=do))  # fmt: skip
        self._check_values(inputs, labels, ends)
        object.__setattr__(self, "ends", ends.astype(np.int64))
        object.__setattr__(self, "inputs", inputs.astype(np.float32 if inputs.dtype.kind == "f" else np.int64))
        object.__setattr__(self, "step_labels", labels.astype(np.int64))

    def _check_values(self, inputs: npt.NDArray[Any], labels: npt.NDArray[Any], ends: npt.NDArray[Any]) -> None:
        for values, wrong, name, wish in (
            (labels, (labels != IGNORE_LABEL) & ((labels < 0) | (labels >= len(self.class_names))), "label",
             f"from 0 to {len(self.class_names) - 1}, or {IGNORE_LABEL} where it is not known"),
            (inputs, ~np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1), "input", "finite"),
            (inputs, (inputs < 0) if inputs.dtype.kind == "i" else np.zeros(len(inputs), bool), "input", "a token, at least 0"),
        ):  # fmt: skip
            places = np.flatnonzero(wrong)
            if len(places):
                sequence = int(np.searchsorted(ends, places[0], side="right"))
                step = int(places[0] - (ends[sequence - 1] if sequence else 0))
                where = f"{self.name}, sequence {sequence}, step {step}"
                raise DataError(expected(name, wish, values[places[0]].tolist(), where=where))

    @classmethod
    def of(
        cls,
        name: str,
        inputs: Iterable[npt.ArrayLike],
        labels: Iterable[npt.ArrayLike],
        *,
        class_names: Sequence[str],
        pad_value: float = 0,
    ) -> SequenceDataset:
        """Return the data set of some sequences.

        Args:
            name: Name of the set.
            inputs: One array a sequence, [steps] or [steps, features].
            labels: One array a sequence, [steps].
            class_names: Names of the classes.
            pad_value: As of the class.

        Raises:
            DataError: as the class; naming the sequence whose labels are of another length.
        """
        arrays, theirs = [np.asarray(each) for each in inputs], [np.asarray(each) for each in labels]
        if not arrays or len(arrays) != len(theirs):
            got = f"{len(arrays)} sequences and {len(theirs)} of labels"
            raise DataError(expected("inputs and labels", "as many of both, at least one", got, where=name))
        for place, (array, label) in enumerate(zip(arrays, theirs, strict=True)):
            if not len(array) or array.shape[1:] != arrays[0].shape[1:]:
                wish = f"at least one step of shape {list(arrays[0].shape[1:])}"
                raise DataError(
                    expected("inputs", wish, f"shape {list(array.shape)}", where=f"{name}, sequence {place}")
                )
            if label.shape != array.shape[:1]:
                do = "Give each step one label; -1 where it is not known."
                got = f"shape {list(label.shape)}"
                raise DataError(expected("labels", f"{len(array)}, one a step", got, where=f"{name}, sequence {place}", do=do))  # fmt: skip
        ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        return cls(name, np.concatenate(arrays), np.concatenate(theirs), ends, tuple(class_names), pad_value)

    @property
    def n_features(self) -> int | None:
        """Numbers of a step; None of tokens."""
        return None if self.inputs.ndim == 1 else int(self.inputs.shape[1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the steps of a sequence, int64 [steps] or float32 [steps, features], and their labels, int64 [steps]."""
        steps, labels = (piece(each, self.ends, index).copy() for each in (self.inputs, self.step_labels))
        return torch.from_numpy(steps), torch.from_numpy(labels)


class GRUTagger(nn.Module):
    """A recurrent network with logits at every step; sequences are packed, so that padding changes nothing.

    Args:
        n_classes: Classes, at least 2.
        tokens: Tokens that there are, for whole numbers [batch, length]; or
        features: numbers a step, for [batch, length, features]. Give one of the two.
        width: Of the embedding and of each direction's state.
        layers: Layers of the GRU.
        bidirectional: Whether a step sees those behind it too.
        dropout: Before the last layer, 0 to below 1.

    >>> network = GRUTagger(3, features=4, width=8)
    >>> network(torch.zeros(2, 5, 4), torch.tensor([5, 2])).shape
    torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        n_classes: int,
        *,
        tokens: int | None = None,
        features: int | None = None,
        width: int = 32,
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if (tokens is None) == (features is None):
            got = f"{tokens} and {features}"
            raise ConfigError(expected("tokens and features", "one of the two", got, where="GRUTagger"))
        at_least(n_classes, 2, "n_classes", where="GRUTagger")
        self.tokens, self.features = tokens, features
        self.enter: nn.Module = nn.Linear(features, width) if tokens is None else nn.Embedding(tokens, width)  # type: ignore[arg-type]
        self.cells = nn.GRU(width, width, layers, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * (2 if bidirectional else 1), n_classes)

    def check_data(self, dataset: Any) -> None:
        """Refuse sequences of more tokens, or of other features a step.

        Raises:
            ConfigError: naming which.
        """
        where = str(getattr(dataset, "name", "data"))
        check_tokens_of(dataset, self.tokens, where)
        check_features(dataset, self.features, where)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits [batch, length, classes]; those behind the length of a sequence are of no meaning.

        Args:
            inputs: Tokens [batch, length], or numbers [batch, length, features].
            lengths: Steps of each sequence that are no padding, int64 [batch]; None where all are.
        """
        entered = self.enter(inputs)
        if lengths is None:
            states, _ = self.cells(entered)
        else:
            packed = pack_padded_sequence(entered, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=inputs.shape[1])
        logits: Tensor = self.head(self.dropout(states))
        return logits
