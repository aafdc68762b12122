"""`bookkd learn`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from bookkd.book import newest_plan
from bookkd.cli._show import console
from bookkd.cli._verb import Choice, Verb, asked
from bookkd.core.errors import BookKDError, StorageError
from bookkd.learning import Training
from bookkd.methods import Method, build_method, method_class
from bookkd.pipelines.learn_student import learn_student
from bookkd.pipelines.options import DataOptions, NetworkOptions, TaskOptions, ViewOptions
from bookkd.pipelines.task import usual_method


def learn(
    book: str | None,
    student: NetworkOptions,
    method: Method,
    out: str = "runs/latest",
    teacher: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    data: DataOptions = DataOptions(name=""),  # noqa: B008 - frozen
    views: ViewOptions = ViewOptions(transform=""),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008 - frozen
    label_fraction: float = 1.0,
    validate_on: str = "test",
    task: TaskOptions = TaskOptions(),  # noqa: B008 - frozen
    loggers: tuple[str, ...] | str = ("csv", "tensorboard"),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a student from a book, a live teacher or labels alone; an interrupted run is gone on with.

    Args:
        book: Folder of the book, or its address (s3://..., https://...), or several with commas between, which are read
            together as one ensemble; left out for a live teacher or labels alone.
        student: The network to train; student.weights (also student.init) starts it from a file.
        method: What the student minimises; vanilla-kd, or llm-kd of tokens and ctc-kd of speech, if none is given.
        out: Folder for configuration, metrics, checkpoints and weights.
        teacher: A live teacher, asked again for every batch.
        data: The samples; taken from the book where that names a set that needs no files.
        views: The augmentation; taken from the book where that names one of ours.
        training: Epochs, optimizer, devices and so on.
        label_fraction: Share of the labels that the student may see.
        validate_on: Split measured after each epoch; empty for none. Early stopping and the plateau schedule look at it.
        task: What the data are.
        loggers: csv, tensorboard (one, or a list), or package.module:Class of any Lightning logger.
        overwrite: Start again where the folder holds another run.
    """
    return learn_student(
        out,
        student=student,
        method=method,
        book=book,
        teacher=teacher,
        data=data,
        views=views,
        training=training,
        label_fraction=label_fraction,
        validate_on=validate_on,
        task=task.name,
        task_args=task.args,
        loggers=loggers,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )


def show(result: dict[str, Any]) -> None:
    """Print how it went and where everything is."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    console().print(
        f"Student of {result['student_parameters']:,} parameters by {result['method']}: {metrics or 'not validated'}.\n"
        f"{result['epochs']} epochs of {result['seconds_per_epoch']:.2f} s, {result['teacher_forwards']:,} teacher passes. "
        f"Weights: {result['weights']}",
        soft_wrap=True,
    )
    for line in result["notes"]:
        console().print(f"Note: {line}", soft_wrap=True)


def _usual(arguments: Sequence[str]) -> str:
    """Return the method of the task that is named, or of the book that is, on this machine or at an address.

    Raises:
        StorageError: for an address that cannot be read, since whoever opens it would wait for it once more.
    """
    task = asked("--task.name", arguments, "")
    told = task or asked("--method.name", arguments, "") or {"-h", "--help"} & set(arguments)
    for before, word in [] if told else zip(("", *arguments), arguments, strict=False):
        first = word.split(",")[0].strip()
        there = "://" in first
        try:
            # No server is asked for the value of an option.
            plan = None if word.startswith("-") or (there and before.startswith("--")) else newest_plan(first)
        except (BookKDError, OSError, ValueError) as error:
            if there and isinstance(error, StorageError):
                raise
            continue  # whoever opens it says what is wrong
        if plan is not None:
            return usual_method(plan.task)
    return usual_method(task)


VERB = Verb(
    "learn",
    learn,
    show,
    "  bookkd learn books/resnet56 --student resnet8 --method vanilla-kd --method.temperature 4 \\\n"
    "    --data cifar10 --data.root data --out runs/resnet8",
    positional={"book": True},
    short={
        "--classes": "--data.classes",
        "--data": "--data.name",
        "--download": "--data.download",
        "--student": "--student.name",
        "--student.init": "--student.weights",
        "--task": "--task.name",
        "--teacher": "--teacher.name",
        "--views": "--views.transform",
    },
    choices={"method": Choice(_usual, method_class, build_method, lambda found: found.presets)},
)
