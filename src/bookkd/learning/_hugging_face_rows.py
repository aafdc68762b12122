"""Rows of Transformers as books know them: as a data set that a book is made of, numbered, and in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, LENGTH, SAMPLE, VIEW, WEIGHT
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import TokenDataset, special_tokens, tokenizer_digest

__all__ = ["NUMBER", "Collator", "Numbered", "Rows", "batch_of", "proof_of", "tokens_of"]

_IGNORED = -100
"""What Transformers calls a label that is not to be learnt."""

NUMBER = "bookkd_row"
"""Key of a row's number in the book, and of the `Rows` of a batch; no column of a user's is called so."""

_MASKS = ("completion_mask", "assistant_masks")
"""Columns in which TRL says which tokens are to be learnt."""


def tokens_of(dataset: Any, *, vocabulary: int, tokenizer: Any = None, name: str = "tokens") -> TokenDataset:
    """Return a data set of Transformers as one that a book is made of: the same rows under the same numbers.

    Args:
        dataset: `dataset[i]` is a mapping with `input_ids` and, if not every token is to be learnt, `labels`. A row that is padded
            already has an `attention_mask`, and is cut by it.
        vocabulary: Tokens that there are.
        tokenizer: What made them, for the fingerprint, which names its special tokens too; None where nobody knows.
        name: Name of the set.

    Raises:
        DataError: for rows without tokens, labels of another length, padding in front of a row, or masks of TRL without labels.

    >>> rows = [{"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100], "attention_mask": [1, 1, 1, 0]}, {"input_ids": [8, 9]}]
    >>> tokens_of(rows, vocabulary=10)[0]
    (tensor([5, 6, 7]), tensor([-1,  6,  7]))
    """
    read = [_tokens(dataset[number], f"{name}, sample {number}") for number in range(len(dataset))]
    digest = "" if tokenizer is None else tokenizer_digest(tokenizer)
    flat = np.concatenate([learnt for _, learnt in read]) if read else np.empty(0, bool)
    given = None if flat.all() else flat
    control = () if tokenizer is None else tuple(each for each in special_tokens(tokenizer) if each < vocabulary)
    return TokenDataset.of(
        name, [ids for ids, _ in read], vocabulary=vocabulary, tokenizer=digest, learnt=given, control=control
    )


def _tokens(row: Mapping[str, Any], where: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the tokens of a row that are no padding, and which of them are to be learnt."""
    if "input_ids" not in row:
        do = "Make tokens of the texts first: dataset.map(lambda row: tokenizer(row['text']))."
        raise DataError(expected("input_ids", "in each row", f"columns {', '.join(map(str, row))}", where=where, do=do))
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    masks = [mask for mask in _MASKS if mask in row]
    if masks and "labels" not in row:
        do = "Give labels with -100 where a token is not to be learnt."
        raise DataError(
            expected("labels", f"given beside {masks[0]}, which models do not read", None, where=where, do=do)
        )
    labels = np.asarray(row.get("labels", ids), dtype=np.int64)
    there = np.asarray(row.get("attention_mask", np.ones_like(ids))) != 0
    for what, values in (("labels", labels), ("attention_mask", there)):
        if values.shape != ids.shape:
            raise DataError(expected(what, f"one for each of {len(ids)} tokens", values.shape, where=where))
    if (there[1:] > there[:-1]).any():
        do = 'Set the tokenizer\'s padding_side to "right".'
        raise DataError(expected("padding", "at the end of each row", "in front of tokens", where=where, do=do))
    return ids[there], labels[there] != _IGNORED


def proof_of(dataset: Any, rows: npt.NDArray[np.int64], count: int) -> dict[str, Any]:
    """Return the probes of some rows at even distances, with their numbers in the book.

    Args:
        dataset: Of Transformers.
        rows: Row of the book of each row.
        count: How many, at the most.
    """
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    ids = [
        _tokens({"input_ids": dataset[int(place)]["input_ids"]} | _mask(dataset[int(place)]), "")[0] for place in places
    ]
    data = TokenDataset.of("rows", ids, vocabulary=int(max(max(row) for row in ids)) + 2)
    replay = Replay(data, Views(None, n_views=1), rows=rows[places])
    return replay.batch([Pick(int(row), 0) for row in rows[places]])


def _mask(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"attention_mask": row["attention_mask"]} if "attention_mask" in row else {}


class Numbered(Dataset[dict[str, Any]]):
    """A data set whose rows say their number in the book, by which it is read in whatever order they come.

    Args:
        dataset: Of Transformers.
        rows: Row of the book of each of its rows.
    """

    def __init__(self, dataset: Any, rows: npt.NDArray[np.int64]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], NUMBER: int(self.rows[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of a batch, read at once where the data set can."""
        read = getattr(self.dataset, "__getitems__", None)
        found = [self.dataset[index] for index in indices] if read is None else read(indices)
        return [{**row, NUMBER: int(self.rows[index])} for row, index in zip(found, indices, strict=True)]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of a book a batch is of; not of tensors alone, so that it stays on the processor.

    Args:
        numbers: Rows of the book, int64 [batch].
        tokens: Tokens of each that are no padding, as a tuple of arrays.
        labels: Labels, int64 [batch, length], `IGNORE_LABEL` where not to be learnt; without those of padding.
    """

    numbers: Tensor
    tokens: tuple[Tensor, ...]
    labels: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int64 [batch]."""
        return torch.tensor([len(each) for each in self.tokens])


class Collator:
    """The collator of the script, and beside what it makes the numbers of the rows and what they are.

    Args:
        inner: The script's.
    """

    def __init__(self, inner: Callable[[list[Any]], Any]) -> None:
        self.inner = inner

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        numbers = [row.get(NUMBER) for row in rows]
        batch = dict(self.inner([{key: row[key] for key in row if key != NUMBER} for row in rows]))
        if all(number is not None for number in numbers):
            batch[NUMBER] = _rows(batch, torch.tensor(numbers))
        return batch


def _rows(batch: Mapping[str, Any], numbers: Tensor) -> Rows:
    tokens = batch["input_ids"]
    if len(tokens) != len(numbers):
        do = "Leave padding_free, or a collator that lays rows end to end, out."
        raise ConfigError(
            expected("batch", f"one row for each of {len(numbers)}", len(tokens), where="collator", do=do)
        )
    mask = batch.get("attention_mask")
    lengths = [tokens.shape[1]] * len(tokens)
    if mask is not None and mask.ndim == 2:
        lengths = mask.sum(dim=1).tolist()
        if bool((mask.bool() != (torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None])).any()):
            do = 'Set the tokenizer\'s padding_side to "right".'
            raise ConfigError(expected("padding", "at the end of each row", "elsewhere", where="BookTrainer", do=do))
    labels = batch.get("labels", tokens)
    other = (labels != _IGNORED) & (labels != tokens) if labels.shape == tokens.shape else torch.ones_like(tokens) > 0
    if bool(other.any()):
        row, place = other.nonzero()[0].tolist()
        do = "Let the collator leave labels unshifted: models and losses shift them."
        got = f"{int(labels[row, place])} at token {place}" if labels.shape == tokens.shape else list(labels.shape)
        where = f"BookTrainer, row {int(numbers[row])}"
        raise ConfigError(expected("labels", f"the tokens themselves, or {_IGNORED}", got, where=where, do=do))
    cut = tuple(row[:length].clone() for row, length in zip(tokens, lengths, strict=True))
    return Rows(numbers, cut, labels.masked_fill(labels == _IGNORED, IGNORE_LABEL))


def batch_of(tokens: Tensor, rows: Rows) -> dict[str, Any]:
    """Return a batch under the names of this package; what the book is asked by stays on the processor."""
    device = tokens.device
    return {
        INPUT: tokens,
        LENGTH: rows.lengths.to(device),
        LABEL: rows.labels.to(device),
        WEIGHT: torch.ones(len(tokens), device=device),
        SAMPLE: rows.numbers,
        VIEW: torch.zeros(len(tokens), dtype=torch.int64),
    }
