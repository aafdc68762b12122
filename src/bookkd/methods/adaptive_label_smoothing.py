"""Adaptive label smoothing with self-knowledge: each token smoothed as strongly as the student is sure of it, by its own past.

What it does: with student logits z, p = softmax(z) over K classes, label y, and phi what the student's best earlier checkpoint says,

    L = (1 - a) CE(y, p) + a CE(phi, p),   a = 1 - H(p) / log K, taken as constant;

K counts all classes, masked ones too; the mean is over the tokens that count. The checkpoint is replaced whenever validation
improves; before the first, L is plain cross-entropy.
When to use: in place of label smoothing 0.1, for translation and other generation, or for classification, where calibration
matters and there is no teacher.
Parameters: none of the method's own to tune. `mode` says where phi comes from: "live", a copy in memory; "chapter", a book that is
written anew by one pass over the training set after each improvement and read until the next is complete, which is the same method
without the copy; "final", a book that is given, by an earlier run that is finished, which is a variant: self-distillation with the
adaptive weight. `prior` "uniform" smooths adaptively without self-knowledge, `alpha` a number is self-knowledge without adaptation
(both: label smoothing). `largest_alpha` 1 sets no bound; 0.9 keeps some label where the student is sure and wrong. `first` says what
there is before the first checkpoint. `codec` and `k` are those of chapters. What counts as improvement is the validation's
`metric`. The mean a of each epoch stands in the record as `train/alpha`.
What it costs: live, one more pass without gradient a step and a second copy of the weights; chapter, one more pass over all views an
improvement, and a book; final, one read of the book.
What it clashes with: validating on the test set, by which it chooses; large vocabularies early on, where most tokens are sure soon
and a is large.
Source: Lee, Cheung, Zhang, "Adaptive Label Smoothing with Self-Knowledge in Natural Language Generation", EMNLP 2022, arXiv
2210.13459. Reconstructed: that the strength comes from the entropy of the current prediction and phi from the checkpoint that
generalises best is in the abstract; the formula of a, the metric of the choice and what precedes the first checkpoint are ours. No
results of the paper are claimed. Other methods of this name (matching of batch entropies, stepwise growth) are not this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from bookkd.book import Codec, Dense, Int8, TopK
from bookkd.core.check import at_least, between, positive
from bookkd.core.fields import LABEL, LOGITS, OWN, PARTNER_LABEL, RATIO
from bookkd.core.names import choose
from bookkd.core.protocols import Knowledge, Needs
from bookkd.knowledge import PastSelf, PriorKnowledge, SelfChapters
from bookkd.losses import adaptive_smoothing, smoothing_strength
from bookkd.methods._parts import check_idle
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind, labelled
from bookkd.tasks import Task

__all__ = ["AdaptiveLabelSmoothing"]


@dataclass(frozen=True)
class AdaptiveLabelSmoothing(BaseMethod):
    """Give each label's certainty away to the student's own past, the more the surer the student is.

    Args:
        mode: Where the past is: "live", "chapter", or "final" for a book that is given.
        prior: Whose distribution smooths: that of one's "self", or the "uniform" one.
        alpha: Constant share that is given away, above 0 to 1; None for one of each position's own.
        largest_alpha: Most that is given away, above 0 to 1.
        first: What there is before the first checkpoint: "labels" alone, or the "uniform" distribution.
        codec: Of the books of mode chapter: "float16", "float32", "int8" or "top_k".
        k: Classes that codec top_k keeps of each position.
    """

    mode: Literal["live", "chapter", "final"] = "live"
    prior: Literal["self", "uniform"] = "self"
    alpha: float | None = None
    largest_alpha: float = 1.0
    first: Literal["labels", "uniform"] = "labels"
    codec: Literal["float16", "float32", "int8", "top_k"] = "float16"
    k: int = 64

    name: ClassVar[str] = "adaptive-label-smoothing"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm", "classification", "seq2seq")
    card: ClassVar[Card] = Card(
        "Labels smoothed by one's own past, as strongly as one is sure",
        "Lee, Cheung, Zhang, EMNLP 2022, arXiv 2210.13459",
        "labels and a validation set",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adaptive-alone": {"prior": "uniform"},
        "self-alone": {"alpha": 0.1},
        "clamped": {"largest_alpha": 0.9},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        choose(self.mode, ("live", "chapter", "final"), "mode", where=where)
        choose(self.prior, ("self", "uniform"), "prior", where=where)
        choose(self.first, ("labels", "uniform"), "first", where=where)
        choose(self.codec, ("float16", "float32", "int8", "top_k"), "codec", where=where)
        at_least(self.k, 1, "k", where=where)
        if self.alpha is not None:
            do = "Without smoothing it is method supervised."
            positive(between(self.alpha, 0, 1, "alpha", where=where), "alpha", where=where, do=do)
        positive(between(self.largest_alpha, 0, 1, "largest_alpha", where=where), "largest_alpha", where=where)
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """Return the options that play no part beside others."""
        found = {} if self.mode == "chapter" else dict.fromkeys(("codec", "k"), f"mode {self.mode}")
        if self.codec != "top_k":
            found.setdefault("k", f"codec {self.codec}")
        if self.mode == "final":
            found["first"] = "mode final"
        if self.prior == "uniform":
            found |= dict.fromkeys(("mode", "first", "codec", "k"), "prior uniform")
        if self.alpha is not None:
            found["largest_alpha"] = f"alpha {self.alpha}"
        return found

    @property
    def _by_book(self) -> bool:
        return self.mode == "final"

    def objective(self, task: Task) -> Objective:
        """Return the smoothed term, and the strength for the record."""
        how: dict[str, Any] = {"alpha": self.alpha, "largest": self.largest_alpha}
        teacher = LOGITS if self._by_book else OWN + LOGITS
        keys = (LABEL, PARTNER_LABEL, RATIO)
        term = bind(adaptive_smoothing, LOGITS, teacher=teacher, batch=keys, mask=labelled, **how)
        return Objective((term, bind(smoothing_strength, LOGITS, weight=0.0, name="alpha", mask=labelled, **how)))

    def needs(self, task: Task) -> Needs:
        """Return a validation set, or the book that is given; it is read at temperature 1."""
        found = super().needs(task)
        if self._by_book:
            return replace(found, fields=dict.fromkeys(found.fields, (1.0,)))
        return replace(found, validation=self.prior == "self")

    def own_knowledge(
        self, learner: nn.Module, task: Task, given: Knowledge | None, seed: int
    ) -> tuple[Knowledge, ...]:
        """Return the student's past."""
        if self._by_book:
            return ()
        if self.prior == "uniform":
            return (PriorKnowledge(task, before="uniform"),)
        if self.mode == "live":
            return (PastSelf(learner, task, before=self.first),)
        return (SelfChapters(task, before=self.first, codec=self._codec),)

    @property
    def _codec(self) -> Codec:
        if self.codec == "top_k":
            return TopK(self.k, (1.0,))
        return Int8() if self.codec == "int8" else Dense(self.codec)
