"""From names to the full table of measures of one network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bookkd.core.errors import FidelityError, expected
from bookkd.core.fields import LOGITS, SAMPLE, VARIANCE, VIEW, WEIGHT
from bookkd.evaluation import cost
from bookkd.knowledge import StoredKnowledge, check_alignment
from bookkd.learning import Learner, find_device, measure, predictions_of
from bookkd.losses import DenseTarget, FullTarget
from bookkd.pipelines.learn_student import views_of_book
from bookkd.pipelines.options import DataOptions, NetworkOptions
from bookkd.pipelines.task import build_task, says_variance, task_name, with_variance
from bookkd.tasks import predict
from bookkd.views import Views

__all__ = ["evaluate_student", "unchanged_views"]


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

    Returns:
        What `bookkd evaluate --json` prints.
    """
    device = find_device(accelerator)
    dataset = data.open()
    stored = None if book is None else StoredKnowledge(book)
    plain = build_task(task_name(task, stored), dataset.class_names)
    student.refuse_untrained("student")
    network, preprocess = student.build(len(dataset.class_names), role="student")
    own = says_variance(plain, network, dataset, preprocess=preprocess)
    chosen = with_variance(plain, teacher=None, student=own)
    learner = Learner(network, chosen, preprocess=preprocess).to(device)
    said = predictions_of(learner, dataset, batch_size=batch_size)
    against: dict[str, torch.Tensor] | None = None
    if stored is not None:
        check_alignment(stored, dataset, unchanged_views(stored), class_names=dataset.class_names, task=plain.name)
        against = _read(stored, len(dataset), tuple(plain.field_infos))
    elif teacher is not None and teacher.name:
        speaker = teacher.teacher(len(dataset.class_names), device)
        theirs = with_variance(plain, teacher=None, student=says_variance(plain, speaker, dataset))
        against = predict(speaker, dataset, theirs, batch_size=batch_size, device=device).fields
    result = measure(chosen, said, teacher=against, replicates=replicates, seed=seed)
    report: dict[str, Any] = {"samples": len(dataset), "split": data.split, "task": plain.name, **result.to_json()}
    if latency:
        shape = tuple(dataset[0][0].shape)
        report["cost"] = cost(network, preprocess, shape, repeats=50, device=device).to_json()
    return report


def unchanged_views(stored: StoredKnowledge) -> Views:
    """Return views of the samples as they are, in the words of the book where it was made with `--views none`."""
    found = views_of_book(stored.book)
    same = found is not None and (found.transform, found.mix) == ("none", "none")
    return replace(found, n_views=1).build() if found is not None and same else Views(None, 1)


def _read(stored: StoredKnowledge, n_samples: int, wanted: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return what a book says about view 0 of every sample: fields of the task, and the variance where it has one."""
    rows = torch.arange(n_samples)
    batch = {SAMPLE: rows, VIEW: torch.zeros_like(rows), WEIGHT: torch.ones(n_samples)}
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
