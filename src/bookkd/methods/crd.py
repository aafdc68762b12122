"""Contrastive representation distillation (CRD): a sample's embedding is to be told from others by the teacher's of the same sample.

What it does: with trained linear embeddings u of the student's and v of the teacher's vector, of norm 1, and p = exp(u'v / tau) / Z,

    C(u, v) = -mean_i [log p_ii / (p_ii + K / n) + sum_k log (K / n) / (p_ik + K / n)],
    L = ce_weight CE + kd_weight T^2 KL + weight (C(u, v) + C(v, u)),

over the K negatives of a sample. Those of the student's side are the other samples of its batch and `negatives` more, drawn anew at each
step from what the book says of the samples that the student learns from, and shared within the batch; those of the teacher's side are the
other samples of the batch. Of one's own class there are none, as far as the student may see labels. There is no memory bank: the
published method keeps averages of the embeddings of all samples, 16,384 negatives a sample on CIFAR-100.
When to use: where the student's representation counts, for transfer or retrieval; the strongest of the benchmark's single terms.
Parameters: `layer` pooled, `weight` 0.8, `width` 128, `tau` 0.07 (the benchmark on CIFAR-100); `negatives` 1024 (ours: what a step reads
of a book in a millisecond); `other_classes` True, as published.
What it costs: two linear layers, one product of a batch with its negatives, and the read of `negatives` vectors; a book holds one vector,
2 d bytes a record as float16.
What it clashes with: accumulation and several devices, which split batches (refused); a live teacher, which would have to be asked about
every negative (refused unless `negatives` is 0). Where labels are hidden a negative may be of the sample's own class, and of a mixed view
that of its own sample alone counts; Z is of each batch, where the published method keeps the first one.
Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, and its released code; the loss is
certain, its negatives are ours, so that none of its numbers are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LABEL, OWN, SAMPLE_WEIGHT
from bookkd.core.protocols import Knowledge
from bookkd.core.schedules import Schedule
from bookkd.knowledge import Negatives, books_of
from bookkd.losses import crd
from bookkd.methods._features import FeatureMethod, connected, feature, of_teacher
from bookkd.methods.base import Card
from bookkd.objectives import Connector, ConnectorModule, Shapes, Term, bind
from bookkd.objectives.adapters import shapes_in
from bookkd.tasks import Classification, Task

__all__ = ["CRD"]

_NEGATIVES, _LABELS = f"{OWN}negatives", f"{OWN}labels"


class _Contrast(ConnectorModule):
    """Embeddings of a batch on both sides, and of the teacher's with those of negatives behind them."""

    def __init__(self, mine: int, theirs: int, width: int) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(mine, width), nn.Linear(theirs, width)

    def forward(
        self, student: Tensor, teacher: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        u, v = self.student(student), self.teacher(teacher)
        return u, v, v if negatives is None else torch.cat([v, self.teacher(negatives.to(v.dtype))])


@dataclass(frozen=True)
class CRD(FeatureMethod):
    """Tell samples apart by the teacher's embeddings.

    Args:
        weight: Of both sides together, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels to `other_classes` alone.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
        width: Of the embeddings, at least 1.
        tau: Temperature of the cosines, above 0.
        negatives: Drawn from the book at each step, at least 0; those of the batch come on top.
        other_classes: Whether samples of the same class are no negatives of one another, where the task is to tell classes apart;
            False leaves the labels unused.
    """

    weight: float | Schedule = 0.8
    layer: str = "pooled"
    width: int = 128
    tau: float = 0.07
    negatives: int = 1024
    other_classes: bool = True

    name: ClassVar[str] = "crd"
    card: ClassVar[Card] = Card(
        "Samples are told apart by the teacher's embeddings",
        "Tian et al., ICLR 2020, arXiv 1910.10699",
        "one vector a record, in whole batches; a book",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}, "in-batch": {"negatives": 0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.width, 1, "width", where=f"method {self.name}")
        at_least(self.negatives, 0, "negatives", where=f"method {self.name}")
        positive(self.tau, "tau", where=f"method {self.name}")

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return both sides of the contrast, and the embeddings."""
        name = feature(self.layer)
        mine, theirs, others = (connected(name, part) for part in ("embedded", "embedded_teacher", "embedded_others"))
        # Z is a mean times the population, which so plays no part.
        hyper: dict[str, Any] = {"temperature": self.tau, "population": 1, "normaliser": None}
        how: dict[str, Any] = {"weight": self.weight, "own": True, "gradient": True, "over": SAMPLE_WEIGHT, **hyper}
        classes = self.other_classes and task.name == Classification.name
        drawn = (_NEGATIVES, *((_LABELS,) if classes else ())) if self.negatives else ()
        read = (name, of_teacher(name), *map(of_teacher, drawn))
        labels = (LABEL,) if classes else ()
        both = Connector("embeddings", read, (mine, theirs, others), self._embeddings, weight_decay=None)
        beside = (_LABELS,) if _LABELS in drawn else labels
        student = bind(crd, mine, teacher=others, batch=beside, name="contrast", **how)
        return (student, bind(crd, theirs, teacher=mine, batch=labels, name="contrast/teacher", **how)), (both,)

    def own_knowledge(
        self, learner: nn.Module, task: Task, given: Knowledge | None, seed: int
    ) -> tuple[Knowledge, ...]:
        """Return what draws negatives from the book."""
        if not self.negatives:
            return ()
        books = books_of(given)
        if not books:
            do = "Learn from a book, or pass --method.negatives 0 for those of the batch alone."
            raise ConfigError(expected("knowledge", "a book to draw negatives from", "none", where="method crd", do=do))
        return (Negatives(books[0], feature(self.layer), self.negatives, seed=seed),)

    def _embeddings(self, shapes: Shapes) -> _Contrast:
        name = feature(self.layer)
        mine, theirs = shapes_in(shapes, name, of_teacher(name), axes=1, where=f"method {self.name}")
        return _Contrast(mine[0], theirs[0], self.width)
