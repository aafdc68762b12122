"""SimKD: the student learns the maps that the teacher's classifier is given, and keeps that classifier for its own.

What it does: with F_S and F_T the last maps, and r a trained projector (1 x 1 convolution to c_T / f channels, 3 x 3, 1 x 1 to c_T, each with
batch normalisation and ReLU),

    L = weight mean (r(F_S) - F_T)^2 + ce_weight CE + kd_weight T^2 KL,  logits = W mean over positions of r(F_S) + b,

with the teacher's frozen W and b. The student that is kept has r and this classifier in place of its own (`Learned.student`, a
`bookkd.shaping.ReusedClassifier`); it is what validation measures.
When to use: where a somewhat larger student may be kept: its accuracy is often nearest to the teacher's.
Parameters: `reduction` f 2, `weight` 1, `ce_weight` 0 and `kd_weight` 0: there are no labels (the paper).
What it costs: the projector, in inference too; a book holds the last maps, 2 c h w bytes a record as float16, and the classifier once.
What it clashes with: teachers whose classifier is not one linear layer on the mean of their last map (refused while making); several
students; a part of the teacher's classes (refused). The file of the student's weights says what it is, so that it loads
under the plain network's name.
Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001, as in SimKD's released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.protocols import Needs
from bookkd.core.schedules import Schedule
from bookkd.losses import feature_mse
from bookkd.methods._features import FeatureMethod, feature, of_teacher
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.objectives.adapters import shapes_in
from bookkd.shaping import Known, ReusedClassifier, ReusingStudent, Shaped
from bookkd.shaping.reuse import check_classifier
from bookkd.tasks import Task

__all__ = ["SimKD"]

_LAST = feature("last")
_CLASSIFIER = ("classifier/weight", "classifier/bias")


@dataclass(frozen=True)
class SimKD(FeatureMethod):
    """Match the last maps, and reuse the teacher's classifier.

    Args:
        weight: Of the maps, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        reduction: f, the teacher's channels over those in the middle of the projector, at least 1.
    """

    weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 0.0
    reduction: int = 2

    name: ClassVar[str] = "simkd"
    card: ClassVar[Card] = Card(
        "The teacher's classifier on the student's projected maps",
        "Chen et al., CVPR 2022, arXiv 2203.14001",
        "last maps, and the teacher's classifier",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-labels": {"ce_weight": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.reduction, 1, "reduction", where=f"method {self.name}")

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the squared error of what the projector, the shaped student's last layer of maps, gives."""
        return (bind(feature_mse, _LAST, teacher=_LAST, weight=self.weight, name="reused", over=SAMPLE_WEIGHT),), ()

    def needs(self, task: Task) -> Needs:
        """Return the last maps and the classifier."""
        needs = super().needs(task)
        return Needs(fields=needs.fields, dense=needs.dense, nonlinear=needs.nonlinear, constants=_CLASSIFIER)

    def shape(self, student: nn.Module, task: Task, known: Known) -> Shaped:
        """Return the student with projector and classifier.

        Raises:
            ConfigError: for a student that has a teacher's classifier already, and what does not fit.
        """
        if isinstance(student, ReusedClassifier):
            do = "Begin with the network that it was, without its weights."
            got = "one that has a teacher's classifier already"
            raise ConfigError(expected("student", "a plain network", got, where="method simkd", do=do))
        weight, bias = (known.constants[name] for name in _CLASSIFIER)
        mine, theirs = shapes_in(known.shapes, _LAST, of_teacher(_LAST), axes=3, where="method simkd")
        check_classifier(weight, theirs, task.n_outputs, "method simkd")
        return ReusingStudent(
            ReusedClassifier(
                student,
                known.layers.get("last", "last"),
                mine[0],
                theirs[1:],
                weight,
                bias,
                width=max(1, len(weight[0]) // self.reduction),
                pooled=known.layers.get("pooled", ""),
            )
        )
