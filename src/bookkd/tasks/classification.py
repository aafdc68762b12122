"""Single-label classification: one vector of class logits for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from bookkd.core.check import unique
from bookkd.core.errors import ConfigError, DataError, FidelityError, expected
from bookkd.core.fields import IGNORE_LABEL, LOGITS
from bookkd.core.names import choose
from bookkd.losses import BakedTarget, CombinedTarget, DenseTarget
from bookkd.tasks._outputs import found_logits
from bookkd.tasks.base import LogitsTask

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification(LogitsTask):
    """Logits of shape [batch, classes]; the class axis is the last; one position for each sample.

    Of a student that is to tell some classes apart, of all that its teacher knows, `class_names` are the former and `whole` the latter.
    What the teacher says is then its word on these classes alone: softmax of its logits of them, which is its distribution renormalised.

    Args:
        class_names: Names in the order of the class axis; their number is the number of classes, at least 2.
        whole: All classes of the teacher, of which `class_names` are some, in the teacher's order; empty where they are the same.

    >>> Classification(("cat", "dog")).n_classes
    2
    >>> import torch
    >>> task = Classification(("owl", "cat"), whole=("cat", "dog", "owl"))
    >>> task.targets({"logits": DenseTarget(torch.tensor([[1.0, 2.0, 3.0]]))}, {})["logits"].logits
    tensor([[3., 1.]])
    """

    class_names: tuple[str, ...]
    whole: tuple[str, ...] = ()

    name: ClassVar[str] = "classification"
    primary_metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ConfigError(expected("class_names", "at least two names", list(self.class_names), where=self.name))
        if self.whole:
            unique(self.class_names, "class_names", where=self.name)
            unique(self.whole, "whole", where=self.name)
            for each in self.class_names:
                choose(each, self.whole, "class", where=self.name)

    @classmethod
    def of(cls, dataset: Any) -> Self:
        """Return the task of the data set's classes; of a subset of classes, beside them those of the whole."""
        return cls(tuple(dataset.class_names), tuple(getattr(dataset, "all_class_names", ())))

    @property
    def places(self) -> list[int]:
        """Where the classes stand among those of the teacher."""
        return [self.whole.index(each) for each in self.class_names] if self.whole else list(range(self.n_classes))

    @property
    def every_class(self) -> bool:
        """Of a teacher's classes some: what a sparse target left out may be one of these."""
        return bool(self.whole)

    def of_teacher(self) -> Self:
        """Return the task of all classes."""
        return replace(self, class_names=self.whole, whole=()) if self.whole else self

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the logits out of a network's output; of one that knows the whole, those of the classes.

        Args:
            output: A tensor [batch, classes], an object with `.logits`, a mapping with `"logits"`, or a tuple that begins with the
                logits, as torchvision, timm and Transformers return them.
            batch: The batch that went in; unused here.

        Raises:
            TeacherOutputError: if the logits have another shape.
        """
        found = found_logits(output)
        if self.whole and isinstance(found, Tensor) and found.ndim == 2 and found.shape[1] == len(self.whole):
            return {LOGITS: found[:, self.places]}
        return super().fields(output, batch)

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the teacher says of the classes.

        Raises:
            FidelityError: for a target that keeps some classes of a position alone: what it left out may be one of these.
        """
        if not self.whole:
            return targets
        return {name: self._of_classes(each) if _is_logits(name) else each for name, each in targets.items()}

    def _of_classes(self, target: Any) -> Any:
        if isinstance(target, DenseTarget):
            return DenseTarget(target.logits[..., self.places])
        if isinstance(target, CombinedTarget):
            return replace(target, members=tuple(self._of_classes(member) for member in target.members))
        if isinstance(target, BakedTarget):
            return replace(target, inner=self._of_classes(target.inner))
        do = "Make the book with bookkd make ... --codec dense, or --codec int8."
        wish = f"of every class, to renormalise over {self.n_classes} of {len(self.whole)}"
        got = f"a {type(target).__name__}, which may have left some of them out"
        raise FidelityError(expected("logits", wish, got, where=f"task {self.name}", do=do))

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


def _is_logits(name: str) -> bool:
    return name.rpartition("/")[2] == LOGITS
