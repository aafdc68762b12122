"""Single-label classification: one vector of class logits for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.tasks.base import LogitsTask

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification(LogitsTask):
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
