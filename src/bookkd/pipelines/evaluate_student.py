"""From names to the full table of measures of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, FidelityError, WeightsError, expected
from bookkd.core.fields import LOGITS, SAMPLE, VARIANCE, VIEW, WEIGHT
from bookkd.evaluation import Evaluation, Measures, cost
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Learner, find_device, measure, measure_network, predictions_of
from bookkd.losses import DenseTarget, FullTarget
from bookkd.pipelines.learn_student import rows_in_whole, views_of_book
from bookkd.pipelines.options import DataOptions, NetworkOptions
from bookkd.pipelines.task import (
    beam_of,
    build_task,
    check_book,
    check_classes,
    check_dataset,
    says_variance,
    task_name,
    teacher_for,
    with_grid,
    with_masked,
    with_variance,
)
from bookkd.tasks import Task, predict
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import check_takes

__all__ = ["evaluate_student", "example_of", "unchanged_views"]


def evaluate_student(
    *,
    student: NetworkOptions,
    data: DataOptions,
    teacher: NetworkOptions | None = None,
    book: str | None = None,
    accelerator: str = "auto",
    batch_size: int = 256,
    replicates: int = 1000,
    seed: int = 0,
    latency: bool = True,
    task: str = "",
    task_args: Mapping[str, Any] | None = None,
    beam: int = 1,
) -> dict[str, Any]:
    """Measure a network on a split: quality with bootstrap intervals, agreement with a teacher, size and speed.

    Args:
        student: The network and its weights.
        data: The data set and split.
        teacher: A live teacher to compare with.
        book: A book of this split's samples without augmentation, to compare with instead of a live teacher.
        accelerator: Where to run.
        batch_size: Samples a pass.
        replicates: Bootstrap replicates; 0 gives no intervals.
        seed: Of the bootstrap.
        latency: Measure the time of a pass at batch 1 and 64.
        task: Name of the task; empty for that of the book, or classification.
        task_args: Options of the task.
        beam: Hypotheses that are followed where translations are written out for BLEU and chrF; 0 writes none.

    Returns:
        What `bookkd evaluate --json` prints.

    Raises:
        ConfigError: for a teacher and a book.
    """
    if book is not None and teacher is not None and teacher.name:
        do = "Compare with one of them at a time."
        raise ConfigError(expected("teacher", "none beside a book", teacher.name, where="evaluate", do=do))
    device = find_device(accelerator)
    dataset = data.open()
    stored = None if book is None else StoredKnowledge(book)
    plain = build_task(task_name(task, stored), dataset, task_args)
    check_dataset(plain, dataset, data.name)
    student.refuse_untrained("student")
    network, preprocess = _built(student.for_data(dataset), plain)
    own = says_variance(plain, network, dataset, preprocess=preprocess)
    chosen = with_variance(plain, teacher=None, student=own)
    learner = Learner(network, chosen, preprocess=preprocess).to(device)
    speaker = None
    if teacher is not None and teacher.name:
        speaker = teacher_for(teacher, dataset, plain, device)
    how: dict[str, Any] = {"batch_size": batch_size, "replicates": replicates, "seed": seed}
    timed_on, notes = device if latency else None, []
    if any(info.by_position for info in plain.field_infos.values()):
        if stored is not None:
            plain = with_grid(with_masked(plain, stored), stored)
            check_book(stored, dataset, unchanged_views(stored), plain)
        check_takes(network, dataset)
        beam, why = beam_of(plain, dataset, beam)
        notes = [why] if why else []
        # Whoever writes translations asks the network token by token.
        asked = learner.eval().student if beam else learner.eval().compute
        more: dict[str, Any] = {"teacher": speaker, "book": stored, "beam": beam, "device": device}
        result: Evaluation | Measures = measure_network(asked, dataset, plain, **more, **how)
    else:
        said = predictions_of(learner, dataset, batch_size=batch_size)
        against = _said_beside(plain, dataset, stored, speaker, batch_size, device)
        result = measure(chosen, said, teacher=against, replicates=replicates, seed=seed)
    found = _report(result, plain, data, dataset, network, preprocess, timed_on)
    return {**found, "notes": notes} if notes else found


def _said_beside(
    task: Task,
    dataset: Any,
    stored: StoredKnowledge | None,
    speaker: Teacher | None,
    batch_size: int,
    device: torch.device,
) -> dict[str, Tensor] | None:
    """Return what a book or a live teacher says of each sample; None where there is neither."""
    if stored is not None:
        found = rows_in_whole(dataset, stored.book.n_samples)
        rows = None if found is None else found.tolist()
        check_book(stored, dataset, unchanged_views(stored), task, rows=rows)
        said = _read(stored, range(len(dataset)) if rows is None else rows, tuple(task.field_infos))
        return _of_task(task, said)
    if speaker is None:
        return None
    theirs = with_variance(task, teacher=None, student=says_variance(task, speaker, dataset))
    return predict(speaker, dataset, theirs, batch_size=batch_size, device=device).fields


def _built(student: NetworkOptions, task: Task) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return a network of the task's classes; where its weights are of all that the data know, one of these, read for the task's."""
    check_classes(student, task, role="student")
    try:
        return student.build(task.n_outputs, role="student")
    except WeightsError:
        every = task.of_teacher().n_outputs
        if not task.every_class or every == task.n_outputs:
            raise
        return student.build(every, role="student")


def _of_task(task: Task, said: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a book says as the task's student says it: of some classes, those."""
    targets = task.targets({name: DenseTarget(values) for name, values in said.items()}, {}) if task.every_class else {}
    return {**said, **{name: target.logits for name, target in targets.items()}}


def _report(
    result: Evaluation | Measures,
    task: Task,
    data: DataOptions,
    dataset: Any,
    network: nn.Module,
    preprocess: Callable[[Tensor], Tensor],
    device: torch.device | None,
) -> dict[str, Any]:
    """Return what `bookkd evaluate --json` prints; the cost of the network on `device`, where one is given."""
    report: dict[str, Any] = {"samples": len(dataset), "split": data.split, "task": task.name, **result.to_json()}
    if device is not None:
        report["cost"] = cost(network, preprocess, example_of(dataset, task), repeats=50, device=device).to_json()
    return report


def example_of(dataset: Any, task: Task) -> Sequence[int] | tuple[Tensor, ...]:
    """Return what the cost of a network is measured on: the shape of a view, or what it is given of a sequence of middle length."""
    if getattr(dataset, "pad_value", None) is None:
        return tuple(dataset[0][0].shape)
    lengths = np.asarray(getattr(dataset, "lengths", [0]))
    middle = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    return tuple(task.inputs(Replay(dataset, Views(None, n_views=1), probe_share=0).batch([Pick(middle, 0)])))


def unchanged_views(stored: StoredKnowledge) -> Views:
    """Return views of the samples as they are, in the words of the book where it was made with `--views none`."""
    found = views_of_book(stored.book)
    same = found is not None and (found.transform, found.mix) == ("none", "none")
    return replace(found, n_views=1).build() if found is not None and same else Views(None, 1)


def _read(stored: StoredKnowledge, samples: Sequence[int], wanted: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return what a book says about view 0 of some samples: fields of the task, and the variance where it has one."""
    rows = torch.as_tensor(samples)
    batch = {SAMPLE: rows, VIEW: torch.zeros_like(rows), WEIGHT: torch.ones(len(rows))}
    names = [*wanted, *([VARIANCE] if VARIANCE in stored.fields else [])]
    found = {}
    for name, target in stored.targets(batch, names).items():
        if isinstance(target, DenseTarget):
            found[name] = target.logits.float()
        elif isinstance(target, FullTarget) and name == LOGITS and stored.book.plan.task == "classification":
            found[name] = target.log_probabilities(1.0)
        else:
            do = "Compare with a book of codec dense or int8, by one teacher."
            raise FidelityError(
                expected(name, "every value of one teacher", type(target).__name__, where="book", do=do)
            )
    return found
