"""Distillation between language models of different tokenizers: likeliest token with likeliest, second with second.

What it does: with p and q the distributions of teacher and student at positions that belong together, both at temperature T and
sorted from the largest on, the shorter filled up with zeros,

    L = ce_weight CE(y, q) + kd_weight sum_i |p_(i) - q_(i)|

The first learnt position of the student belongs to the first of the teacher, and so on to the end of the shorter. Cross-entropy is a
mean over the student's positions, the distance one over those that belong to one of the teacher's.
When to use: where the teacher has another tokenizer, so that no token of the one is a token of the other. The book is made of the
teacher's tokens of the text, and read with `bookkd.zoo.PairedTokens`, which holds both.
Parameters: `temperature` 1, `kd_weight` 1, `ce_weight` 1.
What it costs: one pass of the student, one read of the book, and sorting the student's distribution, of which a top-k book wants the k
largest alone.
What it ignores: which token it is. The student learns how sure to be and how many others to think of, and from the labels alone of
what. Positions are counted and not aligned on the text, so that they drift apart where one tokenizer cuts more finely; it has been
reported below sequence-level distillation, which needs no pairing at all, on code.
What it clashes with: draws, which say nothing about sorted probabilities; sparse books at temperatures that they do not promise (both
refused). A book of the k largest moves the distance by at most twice the mass of the tail.
Source: Boizard et al. 2024 (arXiv 2402.12030). The distance is theirs; weights are the defaults of the released code as others carried it
over, and the mean over a batch is ours, so that none of the paper's numbers is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bookkd.core.fields import LOGITS, TEACHER_LENGTH, WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import uld
from bookkd.methods._parts import check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind
from bookkd.tasks import Task, paired_positions

__all__ = ["ULD"]


@dataclass(frozen=True)
class ULD(BaseMethod):
    """Match the sorted distribution of a teacher that has other tokens.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the distance, above 0.
        ce_weight: Weight of cross-entropy with the text, at least 0; 0 leaves it out.
    """

    temperature: float | Schedule = 1.0
    kd_weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 1.0

    name: ClassVar[str] = "uld"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm", "classification")
    card: ClassVar[Card] = Card(
        "Sorted distributions of two tokenizers",
        "Boizard et al., arXiv 2402.12030 (2024)",
        "logits of one view, and the text in both kinds of tokens",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"distance-only": {"ce_weight": 0.0}}

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight")

    def objective(self, task: Task) -> Objective:
        """Return the distance where positions belong together, and cross-entropy with the text unless its weight is the number 0."""
        soft = bind(
            uld,
            LOGITS,
            teacher=LOGITS,
            weight=self.kd_weight,
            name="sorted_distance",
            mask=_paired,
            temperature=self.temperature,
        )
        return Objective(with_labels(task, (soft,), weight=self.ce_weight))


def _paired(batch: Mapping[str, Any]) -> Tensor:
    """Return where one of the teacher's positions belongs to the student's: everywhere, unless the text is in two kinds of tokens."""
    if batch.get(TEACHER_LENGTH) is None:
        return torch.ones_like(batch[WEIGHT], dtype=torch.bool)
    return paired_positions(batch)[1]
