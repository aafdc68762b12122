"""The virtual attention module: gates inside the student's convolutions, with or without a teacher, and none left afterwards.

What it does: each chosen convolution W is split into n blocks of outputs and m blocks of inputs, and the student computes with

    W'[block j, block i] = m alpha_ji W[block j, block i],  alpha = softmax over i of A / tau,
    L = ce_weight CE(z, y) + kd_weight T^2 KL(softmax(v / T) || softmax(z / T)) + entropy_weight sum over layers of mean_j H(alpha_j),

with trained gates A [n, m] of each layer, 0 at the start, where W' = W. Once training is over W' takes the place of W: the student
that `learn` returns, and its file, are the plain network with the same outputs and the same speed.
When to use: to make a convolutional student's filters specialise at no cost afterwards, on labels alone (preset `labels`) or beside a
teacher; and to see what distillation does to gates: their tables are kept in the run (`shaping.json`) and shown by `bookkd report`.
Parameters: temperature 4, kd_weight 0.9, ce_weight 0.1 as in the repository's other students. `blocks` 4, `gate_temperature` 1,
`entropy_weight` 0.01 and the gates' learning rate (the student's) are our choice: the source tunes block size and penalty for each
model and names no values that we could read. `entropy_weight` may be a schedule, such as `linear:0:0.02`. `layers` names
convolutions or stages by module path; `keep_scale` is the factor m; `classifier` gates the last linear layer too, with a row for each
class (ours), so that the report shows which classes read the same channels.
What it costs: a product of the size of each gated weight and one of its gradient, all layers at once, whatever the batch.
What it clashes with: students without convolutions whose channels divide into blocks; grouped, depthwise and transposed convolutions,
and weights that are computed from others or shared, into which gates would not fold exactly (each refused by name, or passed
over where no layer is named). Gates that saturate learn no more: a large `entropy_weight` at the start freezes them.
Source: reconstructed. Xue, Song, Wang, Chen, Wang, Song, "KDExplainer: A Task-oriented Attention Model for Explaining Knowledge
Distillation", IJCAI 2021, arXiv 2105.04181, whose formulas of the module could not be read, and whose released code has none; none of
the paper's results are claimed for it. With entropy_weight 0 and equal, frozen gates it is `vanilla-kd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bookkd.core.check import at_least, finite, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.schedules import Schedule
from bookkd.methods._gated import WithOrWithoutTeacher
from bookkd.methods.base import Card
from bookkd.objectives import Objective, bind
from bookkd.shaping import GATE_ENTROPY, GatedStudent, Known, Shaped, find_classifier, insert_gates, penalty
from bookkd.tasks import Task

__all__ = ["VAM"]


@dataclass(frozen=True)
class VAM(WithOrWithoutTeacher):
    """Learn with gates between blocks of channels, which fold into the weights.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the soft term, at least 0; 0 learns from labels alone.
        ce_weight: Weight of the label term, at least 0; not both 0.
        label_smoothing: Of the label term, 0 to 1.
        entropy_weight: Price of the gates' entropy: above 0 it sharpens them, 0 leaves it out; a number or a schedule.
        blocks: Blocks of inputs and of outputs of each convolution, at least 2.
        layers: Module paths of convolutions or of parts of the student, such as '["layer2","layer3"]'; empty for all that can.
        gate_temperature: tau, above 0: below 1 gates are sharper.
        gate_lr: Peak learning rate of the gates, above 0; None for the student's.
        keep_scale: Multiply by the number of blocks, so that equal gates change nothing.
        classifier: Gate the last linear layer too, one row a class.
    """

    entropy_weight: float | Schedule = 0.01
    blocks: int = 4
    layers: tuple[str, ...] = ()
    gate_temperature: float = 1.0
    gate_lr: float | None = None
    keep_scale: bool = True
    classifier: bool = False

    name: ClassVar[str] = "vam"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    card: ClassVar[Card] = Card(
        "Gates between blocks of channels, folded into the weights",
        "Xue et al., IJCAI 2021, arXiv 2105.04181",
        "logits of one view, or labels; a convolutional student",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "labels": {"kd_weight": 0.0, "ce_weight": 1.0},
        "label-smoothing": {"kd_weight": 0.0, "ce_weight": 1.0, "label_smoothing": 0.1},
        "classes": {"classifier": True},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"method {self.name}"
        if not callable(self.entropy_weight) and finite(self.entropy_weight, "entropy_weight", where=where) < 0:
            raise ConfigError(expected("entropy_weight", "at least 0", self.entropy_weight, where=where))
        at_least(self.blocks, 2, "blocks", where=where)
        positive(self.gate_temperature, "gate_temperature", where=where)
        if self.gate_lr is not None:
            positive(self.gate_lr, "gate_lr", where=where)
        given: Any = self.layers
        object.__setattr__(self, "layers", (given,) if isinstance(given, str) else tuple(given))

    def objective(self, task: Task) -> Objective:
        """Return the terms of teacher and labels, and that of the gates' entropy, without those of weight 0."""
        terms = self.said(task)
        if self.entropy_weight != 0:
            terms += (bind(penalty, GATE_ENTROPY, weight=self.entropy_weight, name="gate_entropy"),)
        return Objective(terms)

    def shape(self, student: nn.Module, task: Task, known: Known) -> Shaped:
        """Return the student with gates, which are folded in the end."""
        insert_gates(
            student,
            self.layers,
            blocks=self.blocks,
            classifier=find_classifier(student, task.n_outputs) if self.classifier else None,
            temperature=self.gate_temperature,
            keep_scale=self.keep_scale,
        )
        return GatedStudent(student, lr=self.gate_lr, class_names=task.class_names)
