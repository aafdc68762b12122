"""Regression: numbers instead of classes, with their variance where a network gives one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, MEAN, NORMAL, PARTNER_LABEL, RATIO, VARIANCE, WEIGHT, FieldInfo
from bookkd.core.names import choose
from bookkd.core.schedules import Schedule
from bookkd.losses import DenseTarget, as_normal, gaussian_kl, gaussian_nll, mean_matching, squared_error
from bookkd.losses.targets import computing_dtype
from bookkd.objectives import Term, bind, labelled
from bookkd.tasks._outputs import normal_of
from bookkd.tasks.base import BaseTask, SoftOptions

__all__ = ["Regression"]

_GIVERS = ("nobody", "teacher", "both")


@dataclass(frozen=True)
class Regression(BaseTask):
    """Means of shape [batch, outputs], and variances where networks give them; a position is one output of one sample.

    The loss of a batch is the mean over samples of the mean over outputs. Labels are vectors of numbers, or single ones
    where there is one output; NaN is a hidden one and takes no part in the label term, whose mean is then over the known.

    Who gives a variance decides what is minimised, with means m, n and variances s, t of student and teacher, label y:

        variance    match the teacher                                              learn from labels
        nobody      mean_matching, (m - n)^2                                       squared_error, (m - y)^2
        teacher     gaussian_kl at the teacher's variance, (m - n)^2 / (2 t)       squared_error, (m - y)^2
        both        gaussian_kl, KL(N(n, t) || N(m, s))                            gaussian_nll, (log s + (m - y)^2 / s) / 2

    Bring the targets to a spread near 1 where errors are squared without a variance, or weigh the terms.

    Args:
        output_names: Names in the order of the outputs, at least one.
        variance: "nobody", "teacher" or "both" give a variance.

    >>> task = Regression(("angle",), variance="both")
    >>> said = task.fields((torch.tensor([[1.0]]), torch.tensor([[0.5]])), {})
    >>> said, task.student(said)["normal"]
    ({'mean': tensor([[1.]]), 'variance': tensor([[0.5000]])}, tensor([[[1.0000, 0.5000]]]))
    """

    output_names: tuple[str, ...]
    variance: Literal["nobody", "teacher", "both"] = "nobody"

    name: ClassVar[str] = "regression"
    primary_metric: ClassVar[str] = "r2"
    sparse: ClassVar[bool] = False
    softened: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.output_names:
            raise ConfigError(expected("output_names", "at least one name", [], where=self.name))
        choose(self.variance, _GIVERS, "variance", where=f"task {self.name}")

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return len(self.output_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the outputs: what a book compares in place of classes."""
        return self.output_names

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """`mean`, of shape (n_outputs,), and likewise `variance` with "both"."""
        shape = (self.n_outputs,)
        found = {MEAN: FieldInfo(shape)}
        # Small variances count as much as large ones, which half precision does not keep.
        return found if self.variance != "both" else {**found, VARIANCE: FieldInfo(shape, exact=True)}

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take mean and variance out of a network's output.

        Args:
            output: A tensor [batch, outputs], a tuple (mean, variance), an object with `.mean` and `.variance` such as a
                distribution of torch, or a mapping with `"mean"` and `"variance"`; [batch] will do for one output.
            batch: The batch that went in; unused here.

        Raises:
            TeacherOutputError: if a part is missing or has another shape, or a variance is not above 0.
        """
        return normal_of(output, self.n_outputs, with_variance=self.variance == "both")

    def weights(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the weight of each sample for each of its outputs, float [batch, outputs]."""
        weights: Tensor = batch[WEIGHT]
        return weights.unsqueeze(-1).expand(-1, self.n_outputs)

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with labels floating, [batch, outputs]."""
        found = {key: self._labels(batch[key]) for key in (LABEL, PARTNER_LABEL) if key in batch}
        return {**batch, **found}

    def _labels(self, labels: Tensor) -> Tensor:
        if not labels.is_floating_point():
            if labels.ndim == 1 and bool((labels == IGNORE_LABEL).all()):
                # Images without labels, as `Replay` gives them.
                return torch.full((len(labels), self.n_outputs), torch.nan, device=labels.device)
            # As a number -1 is a label, as a class it hides one: whole numbers do not say which.
            do = "Return targets as floats; NaN hides one."
            raise DataError(expected("label", "floating", str(labels.dtype), where=f"task {self.name}", do=do))
        found = labels.unsqueeze(-1) if labels.ndim == 1 and self.n_outputs == 1 else labels
        if found.ndim != 2 or found.shape[1] != self.n_outputs:
            do = "Return a vector of numbers for each sample."
            got = f"shape {list(labels.shape)}"
            raise DataError(expected("label", f"[batch, {self.n_outputs}]", got, where=f"task {self.name}", do=do))
        return found

    def student(self, fields: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the fields with `normal`, [batch, outputs, 1 or 2]: mean, and variance if it is there, side by side."""
        return {**fields, NORMAL: _normal(fields[MEAN], fields.get(VARIANCE))}

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the targets with `normal`, as `student`."""
        if MEAN not in targets:
            return targets  # a method without a teacher
        variance = targets.get(VARIANCE)
        joined = _normal(targets[MEAN].logits, None if variance is None else variance.logits)
        return {**targets, NORMAL: DenseTarget(joined)}

    def of_teacher(self) -> Regression:
        """Return the task with "both" in place of "teacher": what the teacher's own network says."""
        return replace(self, variance="both") if self.variance == "teacher" else self

    def sources(self, name: str) -> tuple[str, ...]:
        """Return `mean`, and `variance` where the teacher gives it, for `normal`."""
        if name != NORMAL:
            return (name,)
        return (MEAN,) if self.variance == "nobody" else (MEAN, VARIANCE)

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return the squared error, or the likelihood where the student gives a variance; mixed views mix the labels.

        Raises:
            ConfigError: for label smoothing, which has no classes to spread over.
        """
        if label_smoothing:
            wish = "0 for numbers"
            raise ConfigError(expected("label_smoothing", wish, label_smoothing, where=f"task {self.name}"))
        loss = gaussian_nll if self.variance == "both" else squared_error
        return bind(loss, NORMAL, batch=(LABEL, PARTNER_LABEL, RATIO), weight=weight, name=loss.__name__, mask=labelled)

    def soft_term(self, **options: Unpack[SoftOptions]) -> Term:
        """Return what the table above names; the options concern classes and change nothing here.

        Raises:
            ConfigError: for options that ask for another soft loss on classes.
        """
        if options["soft_loss"] != "kl":
            do = "Leave it out: who gives a variance decides."
            raise ConfigError(expected("soft_loss", "kl", options["soft_loss"], where=f"task {self.name}", do=do))
        loss = mean_matching if self.variance == "nobody" else gaussian_kl
        return bind(loss, NORMAL, teacher=NORMAL, weight=options["weight"], name="soft_target")

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of another form, and infinite ones.

        Args:
            labels: Floating array [samples, outputs], or [samples] for one output; NaN is hidden.
            where: Name of the data set, for the error.

        Raises:
            DataError: naming the first such sample.
        """
        found = np.asarray(labels)
        shapes = [(len(found), self.n_outputs)] + [(len(found),)] * (self.n_outputs == 1)
        if found.dtype.kind != "f" or found.shape not in shapes:
            got = f"{found.dtype} of shape {list(found.shape)}"
            raise DataError(expected("labels", f"floating [samples, {self.n_outputs}]", got, where=where))
        bad = np.isinf(found)
        if bad.any():
            sample = int(np.argwhere(bad)[0][0])
            value = float(found[bad][0])
            raise DataError(
                expected("label", "finite, or NaN where hidden", value, where=f"sample {sample} of {where}")
            )


def _normal(mean: Tensor, variance: Tensor | None) -> Tensor:
    if variance is None:
        return as_normal(mean)
    # A book may keep the mean in half precision and the variance in single, and autocast gives either: `stack` wants one.
    wide = computing_dtype(mean.dtype, variance.dtype)
    return as_normal(mean.to(wide), variance.to(wide))
