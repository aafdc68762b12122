"""Which task a name stands for, and whether networks of numbers give a variance: found out, so that nobody has to say it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, MissingExtraError, expected
from bookkd.core.fields import INPUT, MEAN, VARIANCE
from bookkd.core.names import choose, require
from bookkd.knowledge import StoredKnowledge, Teacher, check_alignment, classes_of_weights
from bookkd.knowledge.writing import Viewed
from bookkd.learning import Cohort
from bookkd.pipelines.options import NetworkOptions
from bookkd.tasks import TASKS, CausalLM, Regression, Segmentation, Seq2Seq, Task, task_class
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import MaskDataset, MaskFolders, SubsetDataset
from bookkd.zoo.user_data import UserMasks

__all__ = [
    "beam_of",
    "build_task",
    "check_book",
    "check_classes",
    "check_dataset",
    "says_variance",
    "task_name",
    "teacher_for",
    "usual_method",
    "with_grid",
    "with_masked",
    "with_variance",
]


def usual_method(task: str) -> str:
    """Return the name of the method that the program takes for a task where none is named.

    >>> usual_method("causal-lm"), usual_method("classification")
    ('llm-kd', 'vanilla-kd')
    """
    return {"causal-lm": "llm-kd", "ctc": "ctc-kd", "seq2seq": "llm-kd"}.get(task, "vanilla-kd")


def task_name(given: str, stored: StoredKnowledge | None) -> str:
    """Return the name of the task that is given, or that of a book, or classification.

    Raises:
        ConfigError: for a book of a task that is none of ours, which only Python can name.
    """
    if given or stored is None:
        return given or "classification"
    found = stored.book.plan.task
    if found not in TASKS:
        do = "Learn from it in Python, with the task that it was made with."
        raise ConfigError(expected("task", f"one of {', '.join(TASKS)}", found, where=str(stored.book.path), do=do))
    return found


def build_task(name: str, dataset: Any, args: Mapping[str, Any] | None = None) -> Task:
    """Return the task of a name, over the classes, outputs or tokens of a data set; numbers without variance.

    Args:
        name: Of the task.
        dataset: Its samples.
        args: Options of the task that its data do not tell.

    Raises:
        ConfigError: for data that are none of the task's, or values that it does not take.
        UnknownNameError: for an option that it has not.

    >>> from bookkd.zoo import open_dataset
    >>> build_task("multi-label", open_dataset("digits-pairs")).n_outputs
    10
    """
    found: Any = _task_of(name, dataset)
    if not args:
        return cast(Task, found)
    options = [
        each.name for each in fields(found) if each.name != "class_names"
    ]  # which classes there are, the data say
    for option in args:
        choose(option, options, "option", where=f"task {name}")
    return cast(Task, replace(found, **args))


def _task_of(name: str, dataset: Any) -> Task:
    """Return the task of a name, or say which ones data without classes are of."""
    try:
        return task_class(name).of(dataset)
    except ConfigError as error:
        fitting = (
            [] if len(getattr(dataset, "class_names", [name])) else [each for each in TASKS if _fits(each, dataset)]
        )
        if not fitting:
            raise
        where, do = getattr(dataset, "name", "data"), f"Pass --task {' or '.join(fitting)}."
        raise ConfigError(expected("task", "one of data without classes", name, where=where, do=do)) from error


def _fits(name: str, dataset: Any) -> bool:
    try:
        task_class(name).of(dataset)
    except ConfigError:
        return False
    return True


def check_dataset(task: Task, dataset: Any, name: str) -> None:
    """Refuse a data set, called `name`, whose labels are none of the task's; sequences check their own.

    Raises:
        ConfigError: for data with a class at every pixel, and a task of one class an image.
        DataError: naming the first such sample.
    """
    whole = dataset
    while isinstance(whole, SubsetDataset):
        whole = whole.whole
    if isinstance(whole, MaskFolders | MaskDataset | UserMasks) and not isinstance(task, Segmentation):
        wish, do = "segmentation, of data with a class at every pixel", "Pass --task segmentation."
        raise ConfigError(expected("task", wish, task.name, where=name, do=do))
    labels = getattr(dataset, "labels", None)
    if labels is not None:
        task.check_labels(np.asarray(labels), name)


def check_classes(network: NetworkOptions, task: Task, *, role: Literal["student", "teacher"]) -> None:
    """Refuse weights that say that they are of other classes of these data than the task's, or of the same in another order.

    Args:
        network: With its weights, where it has some.
        task: Of the data, or of a teacher of theirs; weights of all classes of which the task has some are as right.
        role: What the network is, for the error.

    Raises:
        ConfigError: with both sides' classes, and the option that names those of the weights.
    """
    theirs, whole = (
        () if network.weights is None else classes_of_weights(network.weights),
        task.of_teacher().class_names,
    )
    if not theirs or theirs in (task.class_names, whole) or not {*theirs} <= {*whole}:
        return  # names of other data say nothing about these
    simple = all(re.fullmatch(r"[\w.-]+", name) for name in theirs)
    named = theirs if simple else tuple(str(whole.index(name)) for name in theirs)
    do = "A teacher knows all classes of the data, in their order."
    if role == "student":
        some = task.name == "classification"
        do = (
            f"Pass --classes {','.join(named)}."
            if some
            else "Name the data with these classes in this order, or other weights."
        )
    wish = f"of the classes {_listed(task.class_names)}"
    raise ConfigError(expected(f"{role}.weights", wish, _listed(theirs), where=str(network.weights), do=do))


def teacher_for(network: NetworkOptions, dataset: Any, task: Task, device: torch.device) -> Teacher:
    """Return the teacher of a task, after the check that its weights are of the classes that the data know.

    Args:
        network: With its weights.
        dataset: The samples.
        task: Of the data, or the student's.
        device: Where it speaks.

    Raises:
        ConfigError: for weights of other classes, see `check_classes`, and for none.
    """
    check_classes(network, task.of_teacher(), role="teacher")
    return network.for_data(dataset).teacher(task.of_teacher().n_outputs, device)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} and {len(names) - 10} more"


def check_book(
    stored: StoredKnowledge, dataset: Any, views: Views, task: Task, *, rows: Sequence[int] | None = None
) -> None:
    """Refuse a book of other data, views, classes, masked tokens, blank or frames than a task's, see `check_alignment`.

    Args:
        stored: The book.
        dataset: The samples.
        views: How they are seen.
        task: The student's.
        rows: Book row of each sample, where the data set is a part or another order of the book's.
    """
    theirs, read = task.of_teacher(), getattr(dataset, "of_book", dataset)
    most = theirs.most_positions(Viewed(read, views)) if hasattr(read, "most_positions") else None
    check_alignment(
        stored,
        dataset,
        views,
        class_names=theirs.class_names,
        rows=rows,
        task=task.name,
        masked=task.masked,
        most=most,
        blank=getattr(task, "blank", None),
        rule=getattr(theirs, "rule", ""),
    )


def beam_of(task: Task, dataset: Any, beam: int) -> tuple[int, str]:
    """Return the beam by which translations of a data set are written out, 0 for not at all, and why BLEU and chrF are not measured.

    >>> from bookkd.tasks import Classification
    >>> beam_of(Classification(("a", "b")), [], 4)
    (0, '')
    """
    if not beam or not isinstance(task, Seq2Seq):
        return 0, ""
    missing = [name for name in ("end", "pad_value", "most_positions") if not hasattr(dataset, name)]
    if missing:
        return 0, f"BLEU and chrF are not measured: the data set does not say its {' and '.join(missing)}."
    try:
        require("sacrebleu", "translation")
    except MissingExtraError as error:
        return 0, f"BLEU and chrF are not measured. {error}"
    return beam, ""


def with_masked(task: Task, stored: StoredKnowledge | None) -> Task:
    """Return a language model's task with the tokens that a book says nobody may say, where it masks none of its own; any other as it is."""
    masked = () if stored is None else tuple(stored.book.plan.masked_classes)
    return replace(task, masked=masked) if isinstance(task, CausalLM) and not task.masked else task


def with_grid(task: Task, stored: StoredKnowledge | None) -> Task:
    """Return a segmentation on the grid that a book notes; any other task as it is.

    Raises:
        ConfigError: where the task was given another grid.
    """
    if stored is None or not isinstance(task, Segmentation):
        return task
    return task.as_noted(stored.book.plan.data, str(stored.book.path))


def with_variance(task: Task, *, teacher: bool | None, student: bool) -> Task:
    """Return the task as its networks are: numbers with or without a variance, any other as it is.

    Args:
        task: From `build_task`.
        teacher: Whether the teacher gives a variance; None where there is no teacher.
        student: Whether the student gives one.
    """
    if not isinstance(task, Regression):
        return task
    if teacher is None:
        return replace(task, variance="both" if student else "nobody")
    return replace(task, variance=("both" if student else "teacher") if teacher else "nobody")


def says_variance(
    task: Task,
    network: nn.Module | Teacher,
    dataset: Any,
    *,
    views: Views | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> bool:
    """Find out whether a network of numbers gives a variance, by showing it one view; other tasks have none.

    Args:
        task: Any task.
        network: Evaluated for the one pass, and put back into the mode it was in.
        dataset: Gives the sample.
        views: How the network will see it; as it is where None.
        preprocess: The network's own; a teacher has its own already.
    """
    if not isinstance(task, Regression):
        return False
    view: Tensor = Replay(dataset, views or Views(None, 1), probe_share=0.0)[Pick(0, 0)][INPUT].unsqueeze(0)
    with torch.no_grad():
        if isinstance(network, Teacher):
            return _has_variance(network(view))
        one = network.peers[0] if isinstance(network, Cohort) else network
        was_training = one.training
        try:
            return _has_variance(one.eval()(view if preprocess is None else preprocess(view)))
        finally:
            one.train(was_training)


def _has_variance(output: Any) -> bool:
    if isinstance(output, Tensor):
        return False
    if isinstance(output, Mapping):
        return VARIANCE in output
    # Before tuples, since a named tuple is both.
    if hasattr(output, MEAN):
        return getattr(output, VARIANCE, None) is not None
    return isinstance(output, tuple | list) and len(output) > 1
