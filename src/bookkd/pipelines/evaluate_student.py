"""From names to the full table of measures of one network."""

from __future__ import annotations

from typing import Any

import torch

from bookkd.core.fields import LOGITS, SAMPLE, VIEW, WEIGHT
from bookkd.evaluation import cost, evaluate
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, check_alignment
from bookkd.learning import Learner, find_device, predictions_of
from bookkd.pipelines.options import DataOptions, NetworkOptions
from bookkd.tasks import Classification, predict
from bookkd.views import Views

__all__ = ["evaluate_student"]


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

    Returns:
        What `bookkd evaluate --json` prints.
    """
    device = find_device(accelerator)
    dataset = data.open()
    task = Classification(dataset.class_names)
    student.refuse_untrained("student")
    network, preprocess = student.build(task.n_classes, role="student")
    learner = Learner(network, task, preprocess=preprocess).to(device)
    said = predictions_of(learner, dataset, batch_size=batch_size)
    against: torch.Tensor | None = None
    if book is not None:
        stored = StoredKnowledge(book)
        plain = Views(None, 1)
        check_alignment(stored, dataset, plain, class_names=task.class_names)
        rows = torch.arange(len(dataset))
        batch = {SAMPLE: rows, VIEW: torch.zeros_like(rows), WEIGHT: torch.ones(len(dataset))}
        against = stored.targets(batch, [LOGITS])[LOGITS].logits.float()
    elif teacher is not None and teacher.name:
        speaker = LiveKnowledge(teacher.teacher(task.n_classes, device), task)
        against = predict(speaker.teacher, dataset, task, batch_size=batch_size, device=device).fields[LOGITS]
    result = evaluate(
        said.fields[LOGITS],
        said.labels,
        teacher_logits=against,
        class_names=task.class_names,
        replicates=replicates,
        seed=seed,
    )
    report: dict[str, Any] = {"samples": len(dataset), "split": data.split, **result.to_json()}
    if latency:
        shape = tuple(dataset[0][0].shape)
        report["cost"] = cost(network, preprocess, shape, repeats=50, device=device).to_json()
    return report
