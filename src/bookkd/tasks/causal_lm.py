"""Causal language modelling: at every position of a sequence, the distribution of the token that comes next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bookkd.core.check import at_least, unique
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, expected
from bookkd.core.fields import INPUT, LABEL, LENGTH, LOGITS, TEACHER_LENGTH, TEACHER_SHIFT
from bookkd.core.schedules import Schedule
from bookkd.objectives import Term
from bookkd.tasks._positions import PositionTask

__all__ = ["CausalLM", "paired_positions"]

_FEW = 32
"""Positions of which nothing can be said."""


@dataclass(frozen=True)
class CausalLM(PositionTask):
    """Logits [batch, length - 1, vocabulary] of a network, of which those at position i describe token i + 1.

    Alignment: a sequence of n tokens has n - 1 positions, 0 to n - 2, in a book, in losses and in metrics alike. What a network says
    at the last token is about none that is there: it is not given the last column of a batch. What it says behind the length of a
    sequence is about padding, and is not kept. Losses see the positions of all sequences of a batch one after another, [positions, vocabulary].

    Labels are those of Transformers: one a token, the token itself, with `IGNORE_LABEL` where it is not to be learnt (a prompt);
    without any, every token but the first of a sequence is. A position whose label is hidden has weight 0 in every term.

    Args:
        vocabulary: Tokens that there are. A network whose output layer is padded to more is cut to it.
        masked: Tokens that nobody says, such as reserved ones: their logit is -inf on both sides, in a book too, and so has no
            part in any divergence. A teacher that says -inf of another is refused when a book is made.

    >>> import torch
    >>> task = CausalLM(4)
    >>> batch = {"input": torch.tensor([[2, 3, 1], [0, 1, 0]]), "length": torch.tensor([3, 2]), "weight": torch.ones(2)}
    >>> task.batch(batch)["label"], task.fields(torch.zeros(2, 2, 8), batch)["logits"].shape
    (tensor([3, 1, 1]), torch.Size([3, 4]))
    """

    vocabulary: int
    masked: tuple[int, ...] = ()

    name: ClassVar[str] = "causal-lm"
    primary_metric: ClassVar[str] = "perplexity"

    def __post_init__(self) -> None:
        at_least(self.vocabulary, 2, "vocabulary", where=self.name)
        object.__setattr__(self, "masked", tuple(sorted(self.masked)))
        unique(self.masked, "masked", where=self.name)
        for token in self.masked:
            if at_least(token, 0, "masked", where=self.name) >= self.vocabulary:
                raise ConfigError(expected("masked", f"below the {self.vocabulary} tokens", token, where=self.name))
        if len(self.masked) >= self.vocabulary:
            raise ConfigError(expected("masked", "some tokens, not all", "all", where=self.name))

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: the fingerprint of the data says which tokens there are."""
        return ()

    @classmethod
    def of(cls, dataset: Any) -> CausalLM:
        """Return the task of the data set's tokens.

        Raises:
            ConfigError: for a data set of something else.
        """
        other = len(getattr(dataset, "class_names", [])) or getattr(dataset, "label_is_input", False)
        if not isinstance(getattr(dataset, "vocabulary", None), int) or other:
            do = "Use a data set such as bookkd.zoo.TokenDataset; text with classes is of task classification, pairs are of seq2seq."
            raise ConfigError(expected("data", "sequences of tokens", type(dataset).__name__, where=cls.name, do=do))
        return cls(dataset.vocabulary)

    @property
    def _n_outputs(self) -> int:
        return self.vocabulary

    def check_data(self, dataset: Any) -> None:
        """Refuse data of another vocabulary.

        Raises:
            ConfigError: for one.
        """
        theirs = getattr(dataset, "vocabulary", None)
        if theirs not in (None, self.vocabulary):
            do = "Use CausalLM.of(dataset)."
            wish, where = f"{theirs}, as the data's", f"task {self.name}"
            raise ConfigError(expected("vocabulary", wish, self.vocabulary, where=where, do=do))

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the tokens alone, without the last column: what is said at a last token describes nothing.

        No mask either: what a causal network says at a token depends on no later one, padding least of all. Where all sequences are
        of one length, every position of the output counts, and no copy of the logits is made to leave some out.
        """
        return (self.given(batch)[INPUT],)

    def given(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch without the last token of each sequence."""
        tokens: Tensor = batch[INPUT]
        return {**batch, INPUT: tokens[:, : self._length(batch)].contiguous(), LENGTH: self.counts(batch)}

    def _length(self, batch: Mapping[str, Any]) -> int:
        return max(1, int(batch[INPUT].shape[1]) - 1)

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the positions of each sequence, int64 [batch]: one less than its tokens."""
        lengths: Tensor = batch[LENGTH]
        return lengths - 1

    def most_positions(self, dataset: Any) -> int:
        """Return the most positions that a sequence of a data set has."""
        return at_least(int(dataset.most_positions) - 1, 1, "tokens of the longest sequence, less one", where=self.name)

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return `logits` [positions, vocabulary], those of masked tokens -inf; see `PositionTask.fields`."""
        said = super().fields(output, batch)
        if self.masked:
            said[LOGITS] = said[LOGITS].index_fill(1, torch.tensor(self.masked, device=said[LOGITS].device), -torch.inf)
        return said

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with one label and one weight for each position, [positions].

        Raises:
            DataError: for a label that is masked: no network could ever say it.
        """
        seen = super().batch(batch)
        if self.masked:
            labels = seen[LABEL]
            wrong = labels[torch.isin(labels, torch.tensor(self.masked, device=labels.device))]
            if len(wrong):
                do = "Leave it out of the masked tokens, or hide its label."
                raise DataError(expected("label", "none of the masked tokens", int(wrong[0]), where=self.name, do=do))
        return seen

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return cross-entropy with the tokens that come next.

        Raises:
            ConfigError: for label smoothing beside masked tokens, which it would ask the student to say.
        """
        if self.masked and label_smoothing > 0:
            raise ConfigError(expected("label_smoothing", "0 with masked tokens", label_smoothing, where=self.name))
        return super().label_term(weight=weight, label_smoothing=label_smoothing)

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the teacher says; of a text in other tokens, what it says at the position that belongs to each of the student's.

        Where none does, it is that of the nearest; terms leave such positions out (`paired_positions`).

        Raises:
            BookMismatchError: if the teacher speaks of another number of its tokens.
        """
        if batch.get(TEACHER_LENGTH) is None:
            return targets
        place, _ = paired_positions(batch)
        wanted = int((batch[TEACHER_LENGTH] - 1).sum())
        for name, target in targets.items():
            if tuple(target.positions) != (wanted,):
                do = "Make the book of the teacher's side of the pairs."
                raise BookMismatchError(
                    expected(name, f"at {wanted} positions", tuple(target.positions), where=self.name, do=do)
                )
        return {name: target.rows(place) for name, target in targets.items()}

    def doubt(self, logits: Tensor, batch: Mapping[str, Any]) -> str:
        """Return why what a network says looks moved by one position, empty where it does not: it fits the token it has just read far better than the next.

        A network that has learnt anything is better about the next token than one that knows nothing, ln of the vocabulary.

        Args:
            logits: At all positions of a batch, one after another, [positions, vocabulary].
            batch: Needs `input` and `length`.
        """
        kept = self._kept(batch, batch[INPUT].shape[1], logits.device)
        read = batch[INPUT].to(logits.device)[kept]
        comes = batch[INPUT].to(logits.device).roll(-1, dims=1)[kept]
        log_q = logits.detach().float().log_softmax(-1)
        pair = torch.stack([-log_q.gather(1, each[:, None])[:, 0] for each in (comes, read)])
        pair = pair[:, (read != comes) & pair.isfinite().all(dim=0)]
        if pair.shape[1] < _FEW:
            return ""
        ahead, back = pair.mean(dim=1).tolist()
        if ahead <= math.log(self.vocabulary) or back >= ahead - 1:
            return ""
        do = "Shift no logits: those at position i are of token i + 1. Of an untrained network this says nothing."
        wish = f"likelier at the next token than at the one that was read (nll {back:.2f})"
        return expected("logits", wish, f"nll {ahead:.2f}", where=f"task {self.name}, the first batch", do=do)

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


def paired_positions(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return which of the teacher's positions belongs to each of the student's, of a text in two kinds of tokens.

    Position i belongs to i + `teacher_shift` of the same text, as far as the shorter of both goes.

    Args:
        batch: Needs `length`, and `teacher_length` and `teacher_shift` as `bookkd.zoo.PairedTokens` notes them.

    Returns:
        Its place among all positions of the teacher's side, int64 [positions], and whether there is one, bool [positions].

    >>> paired_positions({n: torch.tensor(v) for n, v in [("length", [4, 3]), ("teacher_length", [3, 5]), ("teacher_shift", [0, 1])]})
    (tensor([0, 1, 1, 3, 4]), tensor([ True,  True, False,  True,  True]))
    """
    counts, theirs, shifts = batch[LENGTH] - 1, batch[TEACHER_LENGTH] - 1, batch[TEACHER_SHIFT]
    record = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    within = torch.arange(len(record), device=counts.device) - (counts.cumsum(0) - counts)[record] + shifts[record]
    most = theirs[record]
    begins = (theirs.cumsum(0) - theirs)[record]
    return begins + within.clamp_min(0).minimum(most - 1), (within >= 0) & (within < most)
