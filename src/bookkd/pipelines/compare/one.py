"""One run of a sweep: train, measure, and write its record."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bookkd.core.errors import BookKDError, DataError
from bookkd.core.fields import LOGITS
from bookkd.core.jsonio import parse, pretty
from bookkd.core.protocols import Knowledge
from bookkd.evaluation import calibration, confusion, cost, evaluate
from bookkd.knowledge import books_of, teachers_behind
from bookkd.learning import Learned, Learner, find_device, learn, predictions_of
from bookkd.pipelines.compare.runs import RunSpec
from bookkd.pipelines.compare.workshop import Workshop
from bookkd.report import RunRecord
from bookkd.zoo import weights_digest

__all__ = ["do_run", "finished"]


def finished(folder: Path, run: RunSpec) -> RunRecord | None:
    """Return the record of a run that is done under the same configuration; None where it is still to be done."""
    try:
        record = RunRecord.load(folder)
    except DataError:
        return None
    same = record.configuration.get("run") == parse(pretty(run.configuration()), "run")
    return record if record.status == "done" and same else None


def do_run(shop: Workshop, run: RunSpec, folder: Path, *, replicates: int = 1000) -> RunRecord:
    """Do one run and write its record; one that fails is recorded as failed, with its error in one line.

    Args:
        shop: What runs share.
        run: The run.
        folder: Of the run; gone on with where it was begun.
        replicates: Bootstrap replicates of the metrics.
    """
    try:
        record = _done(shop, run, folder, replicates)
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        text = said if isinstance(error, BookKDError) else f"{type(error).__name__}: {said}"
        record = RunRecord(
            arm=run.arm,
            seed=run.seed,
            status="failed",
            method=run.configuration()["method"],
            error=text,
            student={"name": run.student.name},
            configuration={"run": run.configuration()},
        )
    record.save(folder)
    return record


def _done(shop: Workshop, run: RunSpec, folder: Path, replicates: int) -> RunRecord:
    network, preprocess = run.student.cohort(shop.task.n_classes, run.method.cohort, seed=run.seed)
    knowledge = shop.knowledge(run)
    started = time.perf_counter()
    learned = learn(
        network,
        shop.train,
        shop.built_views(run),
        task=shop.task,
        knowledge=knowledge,
        method=run.method,
        preprocess=preprocess,
        training=run.training,
        labels=shop.labels(run.seed),
        rows=shop.rows.tolist(),
        out=folder,
        cached=shop.cached(run),
    )
    seconds = time.perf_counter() - started
    learner = Learner(learned.student, shop.task, preprocess=preprocess).to(find_device(run.training.accelerator))
    measured = _measured(shop, run, learner, replicates)
    device = next(learner.parameters()).device
    size = cost(learner.student, preprocess, tuple(shop.test[0][0].shape), repeats=30, device=device).to_json()
    return RunRecord(
        arm=run.arm,
        seed=run.seed,
        status="done",
        student={"name": run.student.name, **size},
        data=_data(shop),
        teachers=tuple(_teacher(info) for info in teachers_behind(knowledge)),
        books=_books(run, knowledge),
        learning=_learning(learned, seconds),
        environment=_environment(),
        configuration={"run": run.configuration(), "sweep": {"baseline": shop.sweep.baseline}},
        curve=tuple(learned.history),
        weights=weights_digest(learned.student),
        method=run.configuration()["method"],
        **measured,
    )


def _measured(shop: Workshop, run: RunSpec, learner: Learner, replicates: int) -> dict[str, Any]:
    said = predictions_of(learner, shop.test)
    logits, source = said.fields[LOGITS], run.teacher or run.book
    theirs = None if source is None else shop.teacher_on_test(source)
    result = evaluate(
        logits, said.labels, teacher_logits=theirs, class_names=shop.task.class_names, replicates=replicates
    ).to_json()
    scaled: dict[str, Any] = {}
    if shop.validation is not None:
        held = predictions_of(learner, shop.validation)
        scaled = calibration(logits, said.labels, held_out=(held.fields[LOGITS], held.labels), fitted_on="validation")
        accuracy = evaluate(held.fields[LOGITS], held.labels, replicates=0).metrics[shop.task.primary_metric].value
        scaled["validation_accuracy"] = accuracy
    tables = {"student": confusion(logits, said.labels)}
    if theirs is not None:
        tables["teacher"] = confusion(theirs, said.labels)
    return {
        "metrics": result["metrics"],
        "per_class_recall": tuple(result["per_class_recall"]),
        "class_names": tuple(shop.task.class_names),
        "calibration": scaled,
        "confusion": tables,
    }


def _data(shop: Workshop) -> dict[str, Any]:
    sweep = shop.sweep
    return {
        "name": sweep.data.name,
        "split": sweep.test,
        "samples": len(shop.test),
        "train_samples": len(shop.rows),
        "label_fraction": sweep.label_fraction,
    }


def _teacher(info: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(info).items() if key != "mode"}


def _books(run: RunSpec, knowledge: Knowledge | None) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "label": run.book,
            "path": str(stored.book.path),
            "content_digest": stored.book.content_digest,
            "samples": stored.book.n_samples,
            "views": stored.book.n_views,
            "records": stored.book.n_samples * stored.book.n_views,
            "bytes": stored.book.nbytes,
            "cost": stored.book.cost,
        }
        for stored in books_of(knowledge)
    )


def _learning(learned: Learned, seconds: float) -> dict[str, Any]:
    trained = sum(float(record["seconds"]) for record in learned.history)
    return {
        "epochs": len(learned.history),
        "epoch": learned.epoch,
        "seconds": trained or seconds,
        "seconds_per_epoch": learned.seconds_per_epoch,
        "teacher_forwards": learned.teacher_forwards,
    }


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
