"""The contract of a task, and what most tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, TypedDict, Unpack, cast

from torch import Tensor

from bookkd.core.fields import INPUT, LABEL, LENGTH, LOGITS, PARTNER_LABEL, RATIO, WEIGHT, FieldInfo
from bookkd.core.schedules import Schedule
from bookkd.losses import Loss, cross_entropy, soft_target_kl, softened_mse
from bookkd.objectives import Term, bind, labelled
from bookkd.tasks._outputs import logits_of

__all__ = ["BaseTask", "LogitsTask", "SoftOptions", "Task", "label_term"]


class SoftOptions(TypedDict):
    """What a method asks of the term that matches the teacher; a task heeds what means something to it."""

    weight: float | Schedule
    """Of the term."""
    temperature: float | Schedule
    """T, above 0, the same on both sides."""
    t_squared: bool
    """Whether to multiply by T^2."""
    class_reduction: Literal["sum", "mean"]
    """Over classes."""
    soft_loss: Literal["kl", "mse"]
    """The divergence, or the squared error of softened probabilities."""


class Task(Protocol):
    """Owns the shapes of one kind of problem; stateless, compared by value.

    A network's fields, and a book's, have the shape that people expect of them. What losses see may differ: `batch`,
    `student` and `targets` turn the three sides into it, in the one step that every training door calls.
    """

    name: ClassVar[str]
    primary_metric: ClassVar[str]
    """Metric that early stopping, tuning and tables look at; `evaluation.lower_is_better` says which way it is better."""
    sparse: ClassVar[bool]
    """Whether a teacher's field may be kept by a sparse codec."""
    softened: ClassVar[bool]
    """Whether a teacher says distributions, which a temperature softens; numbers have none."""

    @property
    def every_class(self) -> bool:
        """Whether it has to be told of every class of a record, whatever the losses can do with."""
        ...

    @property
    def masked(self) -> tuple[int, ...]:
        """Classes that no network may say: their logit is -inf, in a book too."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the class axis."""
        ...

    @classmethod
    def of(cls, dataset: Any) -> Task:
        """Return the task of a data set: its classes or outputs, or its tokens.

        Raises:
            ConfigError: for a data set that does not say what the task has to know.
        """
        ...

    @property
    def n_outputs(self) -> int:
        """What a network says of a sample, or of a position: so many numbers."""
        ...

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """What a network of this task says, by field name."""
        ...

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Turn a network's output into fields, checking the shapes."""
        ...

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what a network is called with; preprocessing is of the first alone."""
        ...

    def given(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch as networks are given it: `input` and `length` are those that are met inside of them."""
        ...

    def counts(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the positions of each record of a batch as networks and books have it, int64 [batch]; None where a record is one."""
        ...

    def most_positions(self, dataset: Any) -> int | None:
        """Return the most positions that a record of a data set has; None where a record is one."""
        ...

    def check_data(self, dataset: Any) -> None:
        """Refuse a data set that the task would misread; asked before a book is made of it, learnt from it or measured on it.

        Raises:
            ConfigError: naming what differs.
        """
        ...

    def weights(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the weight of every position, float [batch, ...]; 0 where a position only pads."""
        ...

    def divisors(self, batch: Mapping[str, Any]) -> Tensor:
        """Return what the denominators of means add up at every position, of the shape of `weights`; mostly the weights themselves."""
        ...

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch as masks and losses see it, for instance with labels of another dtype."""
        ...

    def student(self, fields: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the student's fields as losses see them: the shape of the positions, then one axis."""
        ...

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the teacher says as losses see it.

        Args:
            targets: Of a knowledge, by field name.
            batch: The batch that it was asked about.

        Raises:
            FidelityError: for a target that the task cannot present, such as a sparse one.
        """
        ...

    def of_teacher(self) -> Task:
        """Return the task of the teacher, whose network may say more than the student's."""
        ...

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the fields of a knowledge that stand behind the field `name` of a term's teacher."""
        ...

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return the term that learns from labels."""
        ...

    def soft_term(self, **options: Unpack[SoftOptions]) -> Term:
        """Return the term that matches the teacher; all options are given, by name."""
        ...

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse the labels of a data set, called `where`, that are none of the task's.

        Raises:
            DataError: naming the first such sample.
        """
        ...


class BaseTask:
    """What most tasks have: losses see the fields as they are, and the teacher is matched by its softened logits."""

    sparse: ClassVar[bool] = True
    softened: ClassVar[bool] = True
    masked: tuple[int, ...] = ()

    @property
    def every_class(self) -> bool:
        """No."""
        return False

    @classmethod
    def of(cls, dataset: Any) -> Self:
        """Return the task of the data set's classes or outputs."""
        make: Callable[..., Self] = cls
        return make(tuple(dataset.class_names))

    @property
    def n_outputs(self) -> int:
        """One for each class or output."""
        names: tuple[str, ...] = cast(Any, self).class_names
        return len(names)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the views; of sequences, with their lengths."""
        return (batch[INPUT],) if batch.get(LENGTH) is None else (batch[INPUT], batch[LENGTH])

    def given(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch itself."""
        return batch

    def counts(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return None: a record is one array."""
        return None

    def most_positions(self, dataset: Any) -> int | None:
        """Return None: a record is one array."""
        return None

    def check_data(self, dataset: Any) -> None:
        """Refuse nothing."""

    def weights(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the batch's own weights, float [batch]."""
        weights: Tensor = batch[WEIGHT]
        return weights

    def divisors(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the weights."""
        return self.weights(batch)

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch as it is."""
        return batch

    def student(self, fields: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the fields as they are."""
        return fields

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the targets as they are."""
        return targets

    def of_teacher(self) -> Self:
        """Return the task itself."""
        return self

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the field itself."""
        return (name,)

    def soft_term(self, **options: Unpack[SoftOptions]) -> Term:
        """Return the divergence from the teacher's softened logits, or their squared error with `soft_loss="mse"`."""
        hyper: dict[str, Any] = {"temperature": options["temperature"], "t_squared": options["t_squared"]}
        loss: Loss = softened_mse
        if options["soft_loss"] == "kl":
            loss, hyper["class_reduction"] = soft_target_kl, options["class_reduction"]
        return bind(loss, LOGITS, teacher=LOGITS, weight=options["weight"], name="soft_target", **hyper)


def label_term(*, weight: float | Schedule, label_smoothing: float) -> Term:
    """Return cross-entropy of logits, where labels are known; of mixed views with both labels."""
    return bind(
        cross_entropy,
        LOGITS,
        batch=(LABEL, PARTNER_LABEL, RATIO),
        weight=weight,
        name="cross_entropy",
        mask=labelled,
        label_smoothing=label_smoothing,
    )


class LogitsTask(BaseTask):
    """What tasks have whose networks say one logit a class: the field, and cross-entropy on labels."""

    class_names: tuple[str, ...]

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
        return label_term(weight=weight, label_smoothing=label_smoothing)
