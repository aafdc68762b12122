"""One run of a sweep: learn, measure, and write the record; a run that fails is recorded too."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bookkd.book import TeacherInfo
from bookkd.core.errors import BookFormatError, BookKDError, BookLockedError, DataError
from bookkd.core.fields import LOGITS
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import read
from bookkd.core.memory import forget_peak_memory, peak_memory
from bookkd.core.protocols import Knowledge
from bookkd.evaluation import calibration, confusion
from bookkd.knowledge import books_of, teachers_behind
from bookkd.learning import Learned, Learner, Validation, learn, measure, measure_network, predictions_of
from bookkd.pipelines.compare.arms import Arm, student_label
from bookkd.pipelines.compare.costs import cost_of
from bookkd.pipelines.compare.folders import Run, begin
from bookkd.pipelines.compare.shared import Shared
from bookkd.pipelines.pictures import pictures_of
from bookkd.report import RunRecord
from bookkd.zoo import count_parameters, weights_digest

__all__ = ["execute", "score_arm"]


def execute(shared: Shared, run: Run, cost: dict[str, Any]) -> RunRecord:
    """Do a run, or go on with it, and write its record.

    Args:
        shared: What the runs of this process share.
        run: What to do.
        cost: What the student costs, as `evaluation.Cost.to_json` gives it.

    Returns:
        The record; of status "failed", with the error in one line, where something went wrong. Ctrl-C and a full disk are
        no failures of the run: they end the sweep, which can be gone on with.
    """
    try:
        _forget_peak(shared)
        record = _done(shared, run, cost)
    except Exception as error:
        record = _failed(shared, run, error)
        if isinstance(error, BookLockedError):
            return record  # the folder is another process's
        if not isinstance(error, BookKDError):
            write_atomic(run.folder / "traceback.txt", traceback.format_exc().encode())
    record.save(run.folder)
    return record


def score_arm(shared: Shared, arm: Arm, seed: int, folder: Path) -> float:
    """Learn in a folder and return the primary metric on the validation samples; the test split is not looked at.

    Raises:
        DataError: if nothing is held out.
    """
    if shared.samples.validation is None:
        raise DataError(
            "Expected samples to validate on, got none. Pass --validation_fraction 0.1 or --validation SPLIT."
        )
    shared.check_arm(arm)  # a value that was searched may ask for more than the arm did
    learned, _, _ = _learned(shared, arm, seed, folder, other=False)
    return learned.metrics[shared.samples.task.primary_metric]


def _learned(
    shared: Shared, arm: Arm, seed: int, folder: Path, *, other: bool
) -> tuple[Learned, Learner, Knowledge | None]:
    samples, training, method = shared.samples, replace(arm.training, seed=seed), arm.method.build()
    views, rows = shared.views(arm)
    kept = None if samples.complete and bool((rows == range(len(rows))).all()) else rows[samples.kept]
    network, preprocess = arm.student.for_data(samples.whole).cohort(shared.width, method.cohort, seed=seed)
    task = shared.task_of(arm.source, network, preprocess, views)
    knowledge = shared.knowledge(arm.source, task)
    door = "lightning" if training.devices > 1 or training.precision != "32-true" else "plain"
    learned = learn(
        network,
        samples.train,
        views,
        task=task,
        knowledge=knowledge,
        method=method,
        preprocess=preprocess,
        training=training,
        validation=None if samples.validation is None else Validation(samples.validation),
        labels=None if arm.label_fraction == 1 else samples.labels(rows, arm.label_fraction, seed),
        rows=None if kept is None else kept.tolist(),
        out=folder,
        door=door,  # type: ignore[arg-type]
        overwrite=other,
        cached=shared.cached(views, kept, training.epochs),
        start=weights_digest(network),
        layers=arm.student.layers,
    )
    learner = Learner(learned.student, task, preprocess=preprocess).to(shared.device)
    return learned, learner, knowledge


def _done(shared: Shared, run: Run, cost: dict[str, Any]) -> RunRecord:
    shared.asked.measure(run.arm.source)  # before learning, so that the weights' lineage has it too
    learned, learner, knowledge = _learned(shared, run.arm, run.seed, run.folder, other=begin(run))
    seconds = sum(float(epoch["seconds"]) for epoch in learned.history)
    return RunRecord(
        status="done",
        **_named(shared, run),
        **_measured(shared, run, learner),
        student={"name": student_label(run.arm.student), **_cost_of_kept(shared, learner, cost)},
        teachers=tuple(_teacher(shared, info) for info in teachers_behind(knowledge)),
        books=_books(run, knowledge),
        learning={
            "epochs": len(learned.history),
            "epoch": learned.epoch,
            "seconds": seconds,
            "seconds_per_epoch": learned.seconds_per_epoch,
            "teacher_forwards": learned.teacher_forwards,
            **_peak(shared),
        },
        curve=tuple(learned.history),
        weights=weights_digest(learned.student),
        shaping=learned.shaping,
    )


def _cost_of_kept(shared: Shared, learner: Learner, cost: dict[str, Any]) -> dict[str, Any]:
    """Return the cost of the network that was kept: another than the student's where a method adds to it, as `simkd` does."""
    if count_parameters(learner.student) == cost["parameters"]:
        return cost
    return cost_of(shared, learner.student, learner.preprocess or nn.Identity())


def _forget_peak(shared: Shared) -> None:
    forget_peak_memory()
    if shared.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(shared.device)


def _peak(shared: Shared) -> dict[str, int]:
    """Return the most memory since the run began, with what the runs of the process share, as far as it is known."""
    peak = peak_memory()
    found = {} if peak is None else {"peak_bytes": peak}
    if shared.device.type == "cuda":
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated(shared.device)
    return found


def _failed(shared: Shared, run: Run, error: Exception) -> RunRecord:
    said = " ".join(str(error).split()) or "no message"
    text = said if isinstance(error, BookKDError) else f"{type(error).__name__}: {said}"
    student = {"name": student_label(run.arm.student)}
    return RunRecord(status="failed", error=text, student=student, **_named(shared, run))


def _named(shared: Shared, run: Run) -> dict[str, Any]:
    samples, sweep = shared.samples, shared.sweep
    environment: dict[str, Any] = {}
    with contextlib.suppress(OSError, BookFormatError):
        environment = read(run.folder / "environment.json")
    return {
        "arm": run.arm.name,
        "task": samples.task.name,
        "seed": run.seed,
        "method": run.configuration["method"],
        "data": {
            "name": sweep.data.name,
            "split": sweep.test,
            "samples": len(samples.test),
            "train_samples": len(samples.kept),
            "label_fraction": run.arm.label_fraction,
        },
        "class_names": tuple(samples.task.class_names),
        "environment": environment,
        "configuration": run.noted,
    }


def _measured(shared: Shared, run: Run, learner: Learner) -> dict[str, Any]:
    samples = shared.samples
    if shared.of_sequences:
        network = learner.eval()
        measured = measure_network(
            # Whoever writes translations asks the network token by token.
            network.student if shared.beam else network.compute,
            samples.test,
            learner.task,
            **shared.asked.beside(run.arm.source),
            beam=shared.beam,
            device=shared.device,
            replicates=shared.sweep.replicates,
        ).to_json()
        found = {name: measured.get(name, {}) for name in ("metrics", "per_class", "signatures")}
        if samples.task.name == "segmentation":
            live = shared.asked.beside(run.arm.source).get("teacher")
            found["pictures"] = pictures_of(
                learner.compute, samples.test, learner.task, teacher=live, device=shared.device
            )
        return found
    said = predictions_of(learner, samples.test)
    theirs = shared.asked.said(run.arm.source)
    found = measure(learner.task, said, teacher=theirs, replicates=shared.sweep.replicates).to_json()
    if samples.task.name != "classification":
        return {"metrics": found["metrics"], "per_class": found["per_class"]}
    logits = said.fields[LOGITS]
    scaled: dict[str, Any] = {}
    if samples.validation is not None:
        held = predictions_of(learner, samples.validation)
        pair = (held.fields[LOGITS], held.labels)
        scaled = calibration(logits, said.labels, held_out=pair, fitted_on=samples.validation_name)
    tables = {"student": confusion(logits, said.labels)}
    if theirs is not None:
        tables["teacher"] = confusion(theirs[LOGITS], said.labels)
    return {
        "metrics": found["metrics"],
        "per_class_recall": tuple(found["per_class_recall"]),
        "calibration": scaled,
        "confusion": tables,
    }


def _teacher(shared: Shared, info: TeacherInfo) -> dict[str, Any]:
    noted = {key: value for key, value in info.to_json().items() if key != "mode"}
    return noted | shared.asked.quality(info)


def _books(run: Run, knowledge: Knowledge | None) -> tuple[dict[str, Any], ...]:
    stored = [each.book for each in books_of(knowledge)]
    label = "" if run.arm.source is None else run.arm.source.label
    return tuple(
        {
            "label": label if len(stored) == 1 else book.path.name,
            "content_digest": book.content_digest,
            "samples": book.n_samples,
            "views": book.n_views,
            "records": book.n_samples * book.n_views,
            "bytes": book.nbytes,
            "cost": book.cost,
        }
        for book in stored
    )
