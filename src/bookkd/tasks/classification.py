"""Single-label classification: one vector of class logits for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, LOGITS, PARTNER_LABEL, RATIO, FieldInfo
from bookkd.core.schedules import Schedule
from bookkd.losses import cross_entropy
from bookkd.objectives import Term, bind, labelled
from bookkd.tasks._outputs import logits_of
from bookkd.tasks.base import BaseTask

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification(BaseTask):
    """Logits of shape [batch, classes]; the class axis is the last; one position for each sample.

    Args:
        class_names: Names in the order of the class axis; their number is the number of classes, at least 2.

    >>> Classification(("cat", "dog")).n_classes
    2
    """

    class_names: tuple[str, ...]

    name: ClassVar[str] = "classification"
    primary_metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ConfigError(expected("class_names", "at least two names", list(self.class_names), where=self.name))

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """One field, `logits`, of shape (n_classes,)."""
        return {LOGITS: FieldInfo((self.n_classes,))}

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the logits out of a network's output.

        Args:
            output: A tensor [batch, classes], an object with `.logits`, a mapping with `"logits"`, or a tuple that
                begins with the logits, as torchvision, timm and Transformers return them.
            batch: The batch that went in; unused here.

        Raises:
            TeacherOutputError: if the logits have another shape.
        """
        return {LOGITS: logits_of(output, self.n_classes)}

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return cross-entropy on the labels that the student may see; mixed views use both labels."""
        return bind(
            cross_entropy,
            LOGITS,
            batch=(LABEL, PARTNER_LABEL, RATIO),
            weight=weight,
            name="cross_entropy",
            mask=labelled,
            label_smoothing=label_smoothing,
        )

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse a label that is no class.

        Args:
            labels: Integer array [samples].
            where: Name of the data set, for the error.

        Raises:
            DataError: naming the first such sample, or for labels that are vectors or numbers.
        """
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            do = "Use task multi-label or regression for vectors and numbers."
            got = f"{labels.dtype} of shape {list(labels.shape)}"
            raise DataError(expected("labels", "one class a sample", got, where=where, do=do))
        bad = ((labels < 0) & (labels != IGNORE_LABEL)) | (labels >= self.n_classes)
        if bad.any():
            sample = int(bad.nonzero()[0][0])
            do = "Check the class names and their order."
            place = f"sample {sample} of {where}"
            raise DataError(
                expected("label", f"between 0 and {self.n_classes - 1}", int(labels[sample]), where=place, do=do)
            )
