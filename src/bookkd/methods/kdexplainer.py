"""KDExplainer: a tree of blocks whose gates show what a teacher, or label smoothing, does to the paths of classes.

What it does: the student is a tree (`bookkd.shaping.GateTree`) of layers of 2, 4 and 8 blocks and a head for each class; each child reads

    x_j = sum over i of alpha_ji h_i,  alpha_j = softmax over i of 2 a_ji / t,  t = gate_temperature / epoch,
    L = ce_weight CE(z, y) + kd_weight T^2 KL(softmax(v / T) || softmax(z / T)).

Gates begin to move after `gate_start` epochs. H_j = -sum_i alpha_ji log alpha_ji is the conflict: low where a child needs one parent
alone. The tables of the gates are kept in the run (`shaping.json`), each layer's and what each class reads of it, and its spread
(mean H / log parents, 0 to 1) in every epoch's record; `bookkd report` sets those of arms side by side.
When to use: to see, not to deploy: learn once with labels (preset `labels`), once with label smoothing (`label-smoothing`) and once
with a teacher, and compare the gates. The paper finds that a teacher's word sharpens them and that label smoothing does not.
Second stage: `tree.hardened()` gives a tree in which each child reads its likeliest parent, with fresh weights; it learns by this
method or any other. Its accuracy and that of the soft tree are not comparable.
Parameters: temperature 4, kd_weight 0.9, ce_weight 0.1, gate_temperature 10, gate_lr 0.01, gate_start 2 (the released
configuration, 300 epochs of Adam at 0.05 with weight decay 5e-4 and batches of 128; it halves the rate in epoch 2 and quarters it in epoch
1: `training.warmup_epochs`). With t = 10 / epoch gates are nearly hard by epoch 100; a run of few epochs wants a lower gate_temperature.
The second stage is SGD at 0.05, halved every 30 epochs.
What it costs: a tree of 14 blocks costs several small networks; one read of the book a record.
What it clashes with: any other student than a tree (refused), and comparisons of accuracy with ordinary networks.
Source: reconstructed. Xue, Song, Wang, Chen, Wang, Song, "KDExplainer: A Task-oriented Attention Model for Explaining Knowledge
Distillation", IJCAI 2021, arXiv 2105.04181. Tree, gates, temperature and weights are those of the released code, and certain; the
measure of conflict is the standard entropy, since the paper's formula could not be read. No number of the paper is claimed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bookkd.core.check import at_least, positive
from bookkd.methods._gated import WithOrWithoutTeacher
from bookkd.methods.base import Card, Handler
from bookkd.objectives import Objective
from bookkd.shaping import GateTree, Known, Shaped, ShapedTree
from bookkd.tasks import Task

__all__ = ["KDExplainer"]


@dataclass(frozen=True)
class KDExplainer(WithOrWithoutTeacher):
    """Learn a tree whose gates show which classes read the same blocks.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the soft term, at least 0; 0 learns from labels alone.
        ce_weight: Weight of the label term, at least 0; not both 0.
        label_smoothing: Of the label term, 0 to 1.
        gate_temperature: t of the first epoch, above 0; epoch e has this / e.
        gate_lr: Peak learning rate of the gates, above 0; None for the student's.
        gate_start: Epochs before the gates move, at least 0.
    """

    gate_temperature: float = 10.0
    gate_lr: float | None = 0.01
    gate_start: int = 2

    name: ClassVar[str] = "kdexplainer"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    card: ClassVar[Card] = Card(
        "A tree whose gates show what classes share",
        "Xue et al., IJCAI 2021, arXiv 2105.04181",
        "logits of one view, or labels; a tree as student",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "labels": {"kd_weight": 0.0, "ce_weight": 1.0},
        "label-smoothing": {"kd_weight": 0.0, "ce_weight": 1.0, "label_smoothing": 0.1},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"method {self.name}"
        positive(self.gate_temperature, "gate_temperature", where=where)
        if self.gate_lr is not None:
            positive(self.gate_lr, "gate_lr", where=where)
        at_least(self.gate_start, 0, "gate_start", where=where)

    def objective(self, task: Task) -> Objective:
        """Return the terms of teacher and labels, without one of weight 0."""
        return Objective(self.said(task))

    def shape(self, student: nn.Module, task: Task, known: Known) -> Shaped:
        """Return the tree, with a pace of their own for its gates."""
        return ShapedTree(student, lr=self.gate_lr, class_names=task.class_names)

    def handlers(self) -> tuple[Handler, ...]:
        """Return what cools the gates from epoch to epoch."""
        return (_Cooling(self.gate_temperature, self.gate_start),)


@dataclass(frozen=True)
class _Cooling(Handler):
    """Sets temperature and movement of a tree's gates at the start of an epoch; both are buffers of the tree, and so in checkpoints."""

    temperature: float
    start: int

    def on(self, event: str, run: Any) -> None:
        tree = run.learner.student
        if event == "epoch_start" and isinstance(tree, GateTree):
            tree.set_epoch(run.epoch, self.temperature, self.start)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None
