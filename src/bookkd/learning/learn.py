"""Learning from a book, a live teacher or labels alone: checks first, then one of the training doors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, expected
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, check_alignment, check_needs, with_pool_of
from bookkd.learning.data import Groups, make_groups
from bookkd.learning.folder import RunFolder, is_main_process, plain
from bookkd.learning.learner import Learner
from bookkd.learning.loop import fit
from bookkd.learning.run import Run
from bookkd.learning.step import Step
from bookkd.learning.training import Training, find_device
from bookkd.learning.validation import Validation
from bookkd.methods import Method, Supervised
from bookkd.tasks import Task, plain_loader
from bookkd.views import CachedViews, Replay, Views
from bookkd.zoo import fingerprint, save_weights

__all__ = ["Learned", "learn"]


@dataclass(frozen=True, eq=False)
class Learned:
    """What learning gives.

    Args:
        student: The trained network, in evaluation mode, on the CPU.
        history: One flat record for each epoch.
        metrics: The last validation's point values, by metric; empty without a validation set.
        seconds_per_epoch: Median over epochs, validation not counted.
        teacher_forwards: Samples passed through a teacher while learning; 0 from a book.
        folder: Where everything was saved; None where nothing was.
    """

    student: nn.Module
    history: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, float]
    seconds_per_epoch: float
    teacher_forwards: int
    folder: Path | None = None


def learn(
    student: nn.Module,
    dataset: Any,
    views: Views,
    *,
    task: Task,
    knowledge: Knowledge | None = None,
    method: Method | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    training: Training | None = None,
    validation: Any | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    rows: Sequence[int] | None = None,
    out: str | Path | None = None,
    door: Literal["plain", "lightning"] = "plain",
    loggers: Sequence[Any] = (),
    progress: bool = False,
    overwrite: bool = False,
    cached: CachedViews | None = None,
) -> Learned:
    """Train a student.

    With `out`, a run that was interrupted goes on from its last checkpoint, also from inside an epoch, to the same
    weights as an uninterrupted one; a finished run is not repeated.

    Args:
        student: Network to train, in place.
        dataset: `dataset[i] -> (image, label)`, with `len`.
        views: Replayable augmentation; for a book the one that it was made with.
        task: Owns the shapes.
        knowledge: A book, a live teacher, or None for labels alone.
        method: What to minimise; labels alone where None.
        preprocess: The student's own preprocessing of a view.
        training: Epochs, optimizer, devices and so on.
        validation: Data set measured after each epoch, or a `Validation`.
        labels: int64 [rows] that replace the data set's; `IGNORE_LABEL` where the student may not see one.
        rows: Book row of each sample, where the data set is a part or another order of the book's.
        out: Folder for configuration, metrics, checkpoints and weights.
        door: "plain" is our loop, "lightning" adds devices, precision and loggers.
        loggers: Lightning loggers.
        progress: Show Lightning's progress bar.
        overwrite: Start again where `out` holds another run.
        cached: Views drawn before, shared by several students.

    Raises:
        ConfigError: if options contradict each other or the knowledge lacks what the method needs.
        BookMismatchError: if the book is about other data or views.
        ViewMismatchError: if a view is not the input that the teacher saw.
    """
    method, training = method or Supervised(), training or Training()
    if door == "plain" and (training.devices > 1 or loggers or training.precision != "32-true"):
        wish = "lightning for several devices, loggers or another precision than 32-true"
        raise ConfigError(expected("door", wish, door, do="Pass door='lightning'."))
    check_needs(method.needs(task), knowledge, method.name)
    if isinstance(knowledge, StoredKnowledge):
        views = with_pool_of(knowledge, views)
        check_alignment(knowledge, dataset, views, rows=rows)
    folder = (
        None
        if out is None
        else _open_folder(Path(out), student, dataset, views, knowledge, method, training, labels, overwrite)
    )
    done = None if folder is None else folder.result
    learner = Learner(student, task, preprocess=preprocess)
    if folder is not None and done is not None:
        _take_weights(learner, folder)
        return _learned(learner, folder.history(), done["teacher_forwards"], folder.path)
    share = training.probe_share if isinstance(knowledge, StoredKnowledge) else 0.0
    replay = cached or _replay(Replay(dataset, views, rows=rows, probe_share=share), training)
    history: list[dict[str, Any]] = []
    log = history.append if folder is None else folder.log
    checked = validation if validation is None or isinstance(validation, Validation) else Validation(validation)
    step = Step(method.objective(task), task, knowledge)
    samples = len(dataset) if rows is None else np.asarray(rows)

    def groups_of(rank: int, world_size: int) -> Groups:
        return make_groups(
            replay, training, samples=samples, n_views=views.n_views, rank=rank, world_size=world_size, labels=labels
        )

    def run_of(placed: Learner, groups: Groups) -> Run:
        if training.compile:
            placed.student.compile()
        return Run(placed, step, training, groups.sampler, steps_per_epoch=len(groups), handlers=method.handlers())

    checkpoints = None if folder is None else folder.checkpoints
    if door == "plain":
        learner.to(find_device(training.accelerator))
        _channels_last(learner)
        groups = groups_of(0, 1)
        fit(run_of(learner, groups), groups, validation=checked, folder=checkpoints, log=log)
    else:
        from bookkd.learning.lightning import fit_lightning, make_trainer

        trainer = make_trainer(training, folder=checkpoints, loggers=loggers, progress=progress)
        _channels_last(learner)
        loader = (
            None
            if checked is None
            else plain_loader(checked.dataset, transform=checked.transform, batch_size=checked.batch_size)
        )
        last = None if checkpoints is None else checkpoints / "last.ckpt"
        fit_lightning(learner, run_of, groups_of, trainer, validation_loader=loader, resume_from=last, log=log)
    learner.cpu()
    forwards = 0 if knowledge is None else knowledge.teacher_forwards
    if folder is not None and is_main_process():
        history = folder.history()
        save_weights(learner.student, folder.path / "student.safetensors", {"method": method.name})
        folder.finish({"teacher_forwards": forwards, "epochs": len(history), **_last_metrics(history)})
    return _learned(learner, history, forwards, None if folder is None else folder.path)


def _open_folder(
    out: Path,
    student: nn.Module,
    dataset: Any,
    views: Views,
    knowledge: Knowledge | None,
    method: Method,
    training: Training,
    labels: npt.NDArray[np.int64] | None,
    overwrite: bool,
) -> RunFolder:
    known: dict[str, Any] | None = None
    if isinstance(knowledge, StoredKnowledge):
        known = {"book": str(knowledge.book.path), "content_digest": knowledge.book.content_digest}
    elif isinstance(knowledge, LiveKnowledge):
        known = {"teacher": knowledge.teacher.name, "digest": knowledge.teacher.digest}
    config = {
        "method": {"name": method.name, **plain(method)},
        "training": plain(training),
        "knowledge": known,
        "data": fingerprint(dataset),
        "views": views.recipe(len(dataset)),
        "student": {"class": plain(type(student)), "parameters": sum(p.numel() for p in student.parameters())},
        "labels_seen": None if labels is None else int((labels >= 0).sum()),
    }
    return RunFolder(out, config, overwrite=overwrite)


def _replay(replay: Replay, training: Training) -> Replay | CachedViews:
    if not training.cache_views:
        return replay
    return CachedViews(replay, max_bytes=training.cache_bytes, workers=training.workers)


def _channels_last(learner: Learner) -> None:
    if next(learner.parameters()).device.type == "cpu":
        learner.to(memory_format=torch.channels_last)


def _take_weights(learner: Learner, folder: RunFolder) -> None:
    from bookkd.zoo import load_weights

    load_weights(learner.student, folder.path / "student.safetensors")


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    last = history[-1] if history else {}
    return {key.removeprefix("val/"): value for key, value in last.items() if key.startswith("val/")}


def _learned(learner: Learner, history: list[dict[str, Any]], forwards: int, folder: Path | None) -> Learned:
    seconds = statistics.median([record["seconds"] for record in history]) if history else 0.0
    return Learned(learner.student.eval(), history, _last_metrics(history), seconds, forwards, folder)
