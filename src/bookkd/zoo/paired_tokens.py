"""One text in the tokens of two tokenizers: the student's to learn, and the teacher's that a book speaks of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import TEACHER_LENGTH, TEACHER_SHIFT
from bookkd.zoo.sequences import TokenDataset
from bookkd.zoo.transformers_files import plain_tokenizer, tokenizer_digest

__all__ = ["PairedTokens"]


@dataclass(frozen=True, eq=False)
class PairedTokens:
    """The same texts twice; a student of another tokenizer learns from the book of `teacher` by method `uld`.

    Samples are the student's. What a book is compared with is the teacher's side: its fingerprint, and at every probe the exact
    hash of the teacher's tokens. That both sides are one text is known where `of_texts` cut them, and taken on trust where two
    data sets are handed over.

    The first learnt position of the student belongs to the teacher's first, the second to the second, and so on: positions are
    counted and not searched for, so that they drift apart along a text that one tokenizer cuts more finely.

    Args:
        student: The student's tokens.
        teacher: The teacher's tokens of the same texts, in the same order: what the book is made of.

    Raises:
        DataError: for another number of texts.

    >>> pairs = PairedTokens(
    ...     TokenDataset.of("fine", [[1, 2, 3, 4]], vocabulary=5), TokenDataset.of("coarse", [[7, 9]], vocabulary=10)
    ... )
    >>> pairs[0][0].tolist(), pairs.taught(0).tolist(), pairs.beside(0)
    ([1, 2, 3, 4], [7, 9], {'teacher_length': 2, 'teacher_shift': 0})
    """

    student: TokenDataset
    teacher: TokenDataset

    def __post_init__(self) -> None:
        if len(self.student) != len(self.teacher):
            do = "Cut the same texts by both tokenizers, in one order."
            got = f"{len(self.student)} and {len(self.teacher)}"
            raise DataError(expected("texts", "as many on both sides", got, where=self.student.name, do=do))

    @classmethod
    def of_texts(
        cls, name: str, texts: Iterable[str | tuple[str, str]], *, student: Any, teacher: Any, pad_value: int = 0
    ) -> PairedTokens:
        """Cut texts by two tokenizers.

        Args:
            name: Name of the set.
            texts: Each a text, or a prompt and what is to be learnt behind it.
            student: The student's tokenizer: of the package tokenizers, or a fast one of Transformers.
            teacher: The teacher's.
            pad_value: Token that shorter sequences of the student's are filled up with.

        Raises:
            DataError: for a text of fewer than two tokens.
        """
        given = [each if isinstance(each, tuple) else ("", each) for each in texts]
        sides = [
            _cut(f"{name} ({side})", given, tokenizer, pad_value)
            for side, tokenizer in (("student", student), ("teacher", teacher))
        ]
        return cls(*sides)

    @property
    def of_book(self) -> TokenDataset:
        """What books are about that are read for these samples."""
        return self.teacher

    @property
    def name(self) -> str:
        """That of the student's side."""
        return self.student.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: tokens have no names here."""
        return ()

    @property
    def vocabulary(self) -> int:
        """Of the student."""
        return self.student.vocabulary

    @property
    def tokenizer(self) -> str:
        """Digest of the student's."""
        return self.student.tokenizer

    @property
    def pad_value(self) -> int:
        """Of the student's sequences."""
        return self.student.pad_value

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each of the student's sequences."""
        return self.student.lengths

    @property
    def most_positions(self) -> int:
        """Tokens of the student's longest sequence."""
        return self.student.most_positions

    def __len__(self) -> int:
        return len(self.student)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Return the student's tokens and labels."""
        return self.student[index]

    def taught(self, index: int) -> Tensor:
        """Return the tokens that the teacher saw of a sample: what its probe is of."""
        return self.teacher[index][0]

    def beside(self, index: int) -> dict[str, int]:
        """Return what a record notes of the teacher's side: its tokens, and how far its first learnt one is behind the student's."""
        shift = self.teacher.first_learnt(index) - self.student.first_learnt(index)
        return {TEACHER_LENGTH: int(self.teacher.lengths[index]), TEACHER_SHIFT: shift}


def _cut(name: str, texts: list[tuple[str, str]], tokenizer: Any, pad_value: int) -> TokenDataset:
    inner, prompted = plain_tokenizer(tokenizer), any(prompt for prompt, _ in texts)
    tokens, learnt = [], []
    for prompt, text in texts:
        before, behind = (inner.encode(part, add_special_tokens=False).ids if part else [] for part in (prompt, text))
        tokens.append([*before, *behind])
        learnt.append(np.arange(len(tokens[-1])) >= len(before))
    flat = np.concatenate(learnt) if learnt and prompted else None
    size = inner.get_vocab_size()
    digest = tokenizer_digest(tokenizer)
    return TokenDataset.of(name, tokens, vocabulary=size, tokenizer=digest, learnt=flat, pad_value=pad_value)
