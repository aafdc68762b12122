"""Token sequences as a data set: the tokens of all of them in one array, and where each ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from bookkd.book import TeacherInfo
from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL

__all__ = ["FlatSequences", "TokenDataset", "as_tokens", "check_tokens"]

_CHUNK = 2**20
"""Tokens that are digested at once: they may be a file that memory does not hold."""


class FlatSequences:
    """What data sets have whose sequences stand one after another in arrays: where each ends."""

    ends: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Positions of each sequence."""
        return np.diff(self.ends, prepend=0)

    @property
    def most_positions(self) -> int:
        """Positions of the longest sequence."""
        return int(self.lengths.max())

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True, eq=False)
class TokenDataset(FlatSequences):
    """Sequences of tokens, each of its own length.

    Args:
        name: Name of the set.
        tokens: All sequences, one after another, int [tokens].
        ends: Where each ends, rising, the last at the number of tokens, int [sequences].
        vocabulary: Tokens that there are.
        tokenizer: Digest of what made tokens of text (`bookkd.zoo.tokenizer_digest`); it belongs to the fingerprint, so that a book is
            not read for text that was cut otherwise. Empty where the tokens are what there is.
        learnt: Whether each token is to be learnt, bool [tokens]; None for all. False for those of a prompt.
        pad_value: Token that shorter sequences of a batch are filled up with.
        control: Tokens that steer a conversation and stand for no text (end of turn, begin of a call), such as
            `bookkd.zoo.special_tokens` finds. They belong to the fingerprint, so that a book says which they are; a codec
            `TopK(k, always=control)` keeps what the teacher says of them at every position.
        written_by: Who wrote what is learnt here, where a network did (`bookkd.making.write_texts`); a student that learns it
            has it as a teacher in its lineage.
        separator: Token that begins each document, where several stand in one sequence (`bookkd.zoo.pack`); a `LanguageModel` that
            keeps documents apart at another one is refused. It is no part of the fingerprint.

    Raises:
        DataError: for ends that divide nothing, sequences of fewer than two tokens, or tokens outside of the vocabulary.

    >>> data = TokenDataset.of("mine", [[1, 2, 3], [4, 0]], vocabulary=5)
    >>> len(data), data[0][0], data.most_positions
    (2, tensor([1, 2, 3]), 3)
    """

    name: str
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    vocabulary: int
    tokenizer: str = ""
    learnt: npt.NDArray[np.bool_] | None = None
    pad_value: int = 0
    control: tuple[int, ...] = ()
    written_by: TeacherInfo | None = None
    separator: int | None = None

    def __post_init__(self) -> None:
        ends = check_tokens(self.tokens, self.ends, 2, self.vocabulary, self.name)
        for token in self.control:
            if not 0 <= token < self.vocabulary:
                wish = f"from 0 to {self.vocabulary - 1}"
                raise DataError(expected("control", wish, token, where=self.name, do="Check the tokenizer."))
        if self.learnt is not None and np.shape(self.learnt) != np.shape(self.tokens):
            wish = f"one for each of {len(self.tokens)} tokens"
            raise DataError(expected("learnt", wish, f"shape {np.shape(self.learnt)}", where=self.name))
        if self.learnt is not None:
            object.__setattr__(self, "learnt", np.asarray(self.learnt, dtype=np.bool_))
        object.__setattr__(self, "ends", ends)

    @classmethod
    def of(cls, name: str, sequences: Iterable[npt.ArrayLike], **options: Any) -> TokenDataset:
        """Return the data set of some lists of tokens; `options` are those of the class, `learnt` one list a sequence too."""
        arrays = [as_tokens(each, f"{name}, sequence {place}") for place, each in enumerate(sequences)]
        options["learnt"] = _flat(options.get("learnt"), [len(array) for array in arrays], name)
        ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        return cls(name, np.concatenate(arrays) if arrays else np.empty(0, np.int64), ends, **options)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: tokens have no names here."""
        return ()

    @property
    def content(self) -> str:
        """Digest of all tokens, of where sequences end and of what is learnt: a fingerprint looks at some of the sequences alone."""
        hasher = xxhash.xxh3_128()
        learnt = np.ones(1, dtype=np.bool_) if self.learnt is None else self.learnt
        hasher.update(b"all" if learnt.all() else b"some")
        for values, kind in ((self.ends, "<i8"), (self.tokens, "<i8"), *([] if learnt.all() else [(learnt, "u1")])):
            for start in range(0, len(values), _CHUNK):
                hasher.update(np.ascontiguousarray(values[start : start + _CHUNK], dtype=kind).tobytes())
        return hasher.hexdigest()

    def first_learnt(self, index: int) -> int:
        """Return the place of the first token of a sequence, but its very first, that is to be learnt; its length where none is."""
        labels = self[index][1]
        found = [] if labels is None else (labels[1:] != IGNORE_LABEL).nonzero().flatten().tolist()
        return 1 if labels is None else 1 + found[0] if found else len(labels)

    def prompt(self, index: int) -> Tensor:
        """Return the tokens of a sequence before the first that is to be learnt, at least one."""
        return self[index][0][: self.first_learnt(index)]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of a sequence, int64 [tokens], and its labels, or None where all are learnt."""
        tokens = torch.from_numpy(piece(self.tokens, self.ends, index).astype(np.int64))
        if self.learnt is None:
            return tokens, None
        learnt = torch.from_numpy(np.asarray(piece(self.learnt, self.ends, index)))
        return tokens, torch.where(learnt, tokens, IGNORE_LABEL)


def as_tokens(sequence: Any, where: str) -> npt.NDArray[np.int64]:
    """Return a sequence of tokens as numbers.

    Raises:
        DataError: for texts, rows of Transformers, and whatever else is no row of whole numbers.

    >>> as_tokens([3, 1], "mine")
    array([3, 1])
    """
    do = ""
    if isinstance(sequence, str):
        do = "Make tokens of texts first: load_tokenizer(folder).encode(text).ids."
    elif isinstance(sequence, Mapping):
        do = "Read rows of Transformers by bookkd.learning.hugging_face.tokens_of."
    else:
        try:
            found = np.asarray(sequence)
        except ValueError:  # rows of several lengths
            found = np.empty((0, 0))
        if found.ndim == 1 and (found.dtype.kind in "ui" or not len(found)):
            return found.astype(np.int64)
    got = f"a {type(sequence).__name__}" if do else sequence
    raise DataError(expected("sequence", "a row of whole numbers, its tokens", got, where=where, do=do))


def _flat(learnt: Any, lengths: list[int], where: str) -> Any:
    """Return what is learnt as one row, of one list a sequence as well."""
    if learnt is None or isinstance(learnt, np.ndarray) or not len(learnt) or np.ndim(learnt[0]) == 0:
        return learnt
    given = [len(each) for each in learnt]
    if given != lengths:
        row = next((at for at, pair in enumerate(zip(given, lengths, strict=False)) if pair[0] != pair[1]), None)
        wish = f"one list for each of {len(lengths)} sequences" if row is None else f"{lengths[row]} for sequence {row}"
        raise DataError(expected("learnt", wish, len(given) if row is None else given[row], where=where))
    return np.concatenate([np.asarray(each, dtype=np.bool_) for each in learnt])


def piece(values: npt.NDArray[Any], ends: npt.NDArray[np.int64], index: int) -> npt.NDArray[Any]:
    """Return one of the sequences that stand one after another in an array, of which each ends at one of `ends`.

    >>> piece(np.arange(5), np.array([2, 5]), 1)
    array([2, 3, 4])
    """
    return values[int(ends[index - 1]) if index else 0 : int(ends[index])]


def check_tokens(
    tokens: npt.NDArray[Any], ends: npt.NDArray[Any], least: int, vocabulary: int, where: str
) -> npt.NDArray[np.int64]:
    """Refuse what is no set of token sequences, and return the ends as int64.

    Args:
        tokens: All sequences, one after another, int [tokens].
        ends: Where each ends, int [sequences].
        least: Tokens that each must have.
        vocabulary: Tokens that there are.
        where: Whose they are, for the error.

    Raises:
        ConfigError: for a vocabulary of fewer than two tokens.
        DataError: naming the first sequence that is wrong.
    """
    at_least(vocabulary, 2, "vocabulary", where=where)
    tokens, ends = np.asarray(tokens), np.asarray(ends)
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui" or ends.ndim != 1 or ends.dtype.kind not in "ui":
        got = f"{tokens.dtype} of shape {tokens.shape}, {ends.dtype} of shape {ends.shape}"
        raise DataError(expected("tokens and ends", "whole numbers in one row", got, where=where))
    counts = np.diff(ends.astype(np.int64), prepend=0)
    if not len(ends) or ends[-1] != len(tokens) or (counts < least).any():
        short = np.flatnonzero(counts < least)
        got = f"{int(counts[short[0]])} tokens in sequence {int(short[0])}" if len(short) else f"{len(ends)} ends"
        wish = f"sequences of at least {'two tokens' if least == 2 else 'one token'} that end with the last"
        do = "Leave out sequences that are too short to describe anything."
        raise DataError(expected("ends", wish, got, where=where, do=do))
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary))
    if len(wrong):
        sequence = int(np.searchsorted(ends, wrong[0], side="right"))
        wish = f"from 0 to {vocabulary - 1}"
        found, named = int(tokens[wrong[0]]), f"{where}, sequence {sequence}"
        raise DataError(expected("token", wish, found, where=named, do="Check the tokenizer."))
    return ends.astype(np.int64)
