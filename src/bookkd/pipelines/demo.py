"""The demo: a teacher of digits, one book, and three ways to train a student, in under two minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bookkd.core.check import at_least
from bookkd.core.fields import LOGITS
from bookkd.evaluation import evaluate, interval_of_mean
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Learned, Learner, Training, learn, predictions_of, visible_labels
from bookkd.making import make
from bookkd.methods import Method, Supervised, VanillaKD
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Replay, Views
from bookkd.zoo import ImageDataset, count_parameters, load_weights, save_weights

__all__ = ["ARMS", "run_demo"]

ARMS = ("supervised", "online", "book")
N_VIEWS = 16
TEACHER_TRAINING = Training(epochs=16, batch_size=64, lr=0.1, accelerator="cpu")
STUDENT_TRAINING = Training(epochs=24, batch_size=64, lr=0.1, accelerator="cpu")

Say = Callable[[str], None]


def run_demo(
    out: str | Path, *, seeds: int = 3, fractions: tuple[float, ...] = (0.1, 1.0), say: Say = print
) -> dict[str, Any]:
    """Train a teacher on digits, make a book of 16 views, and train students on labels, online and from the book.

    All arms take the same number of optimizer steps on the same views with the same starting weights; labels that a
    student may not see count nothing in its loss.

    Args:
        out: Folder for teacher, book and runs.
        seeds: Students of each arm.
        fractions: Shares of the labels that students see.
        say: Called with a line of progress.

    Returns:
        What `bookkd demo --json` prints.
    """
    at_least(seeds, 1, "seeds", where="demo")
    threads = torch.get_num_threads()
    # Networks this small are fastest on one thread, and on a busy machine many times so.
    torch.set_num_threads(1)
    try:
        return _run(Path(out), seeds, fractions, say)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, seeds: int, fractions: tuple[float, ...], say: Say) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    data = DataOptions("digits")
    train, test = data.open(), data.other("test").open()
    task = Classification(train.class_names)
    views = ViewOptions("digits", N_VIEWS).build()
    say(f"Teacher: training digits-large on {len(train)} digits")
    teacher = _teacher(out, train, test, views, task)
    say(f"Teacher: accuracy {teacher.accuracy:.3f} on {len(test)} held-out digits, {teacher.parameters:,} parameters")
    book = make(out / "book", teacher, train, views, task=task, batch_size=256)
    say(f"Book: {book.n_samples * book.n_views:,} records of {book.bytes_per_record:.0f} bytes at {book.path}")
    cached = CachedViews(Replay(train, views, probe_share=0.0), max_bytes=2**30)
    runs = []
    for fraction in fractions:
        for seed in range(seeds):
            labels = visible_labels(np.asarray(train.labels), fraction, seed)
            for arm in ARMS:
                learned, preprocess = _student(arm, teacher, out / "book", train, views, task, labels, seed, cached)
                runs.append(_record(arm, fraction, seed, learned, preprocess, test, task))
            scores = ", ".join(f"{run['method']} {run['accuracy']:.3f}" for run in runs[-len(ARMS) :])
            say(f"Students: {fraction:.0%} of the labels, seed {seed}: {scores}")
    return {
        "teacher": {"accuracy": teacher.accuracy, "parameters": teacher.parameters},
        "book": {
            "path": str(book.path),
            "records": book.n_samples * book.n_views,
            "bytes": book.nbytes,
            "seconds": book.cost["seconds"],
        },
        "runs": runs,
    }


def summarise(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each label fraction and arm: means over seeds, and the spread of the accuracy."""
    rows = []
    for fraction in sorted({run["label_fraction"] for run in result["runs"]}):
        for arm in ARMS:
            runs = [run for run in result["runs"] if run["label_fraction"] == fraction and run["method"] == arm]
            accuracies = [run["accuracy"] for run in runs]
            rows.append(
                {
                    "label_fraction": fraction,
                    "method": arm,
                    "accuracy": statistics.fmean(accuracies),
                    "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
                    "nll": statistics.fmean(run["nll"] for run in runs),
                    "ece": statistics.fmean(run["ece"] for run in runs),
                    "seconds_per_epoch": statistics.median(run["seconds_per_epoch"] for run in runs),
                    "teacher_forwards": runs[0]["teacher_forwards"],
                }
            )
    return rows


def verdict(result: dict[str, Any], fraction: float) -> str:
    """Say in one sentence what the book gained over labels alone, and whether that is more than noise.

    The interval is Student's t over the paired differences of the seeds.
    """
    pairs = {
        arm: [run["accuracy"] for run in result["runs"] if run["label_fraction"] == fraction and run["method"] == arm]
        for arm in ("supervised", "book")
    }
    gains = [book - alone for book, alone in zip(pairs["book"], pairs["supervised"], strict=True)]
    mean = statistics.fmean(gains)
    seen = f"With {fraction:.0%} of the labels the book changes accuracy by {mean:+.3f}"
    if len(gains) < 2:
        return f"{seen} (one seed: no statement about noise)."
    low, high = interval_of_mean(gains)
    inside = "inside the noise between seeds" if low <= 0 <= high else "more than the noise between seeds"
    return f"{seen} (95 % interval {low:+.3f} to {high:+.3f}, {len(gains)} seeds): {inside}."


def _teacher(out: Path, train: ImageDataset, test: ImageDataset, views: Views, task: Classification) -> Teacher:
    network, preprocess = NetworkOptions("digits-large").build(task.n_classes, role="teacher", seed=0)
    weights = out / "teacher.safetensors"
    if weights.exists():
        load_weights(network, weights)
    else:
        learn(network, train, views, task=task, preprocess=preprocess, training=TEACHER_TRAINING)
        save_weights(network, weights, {"arch": "digits-large"})
    said = predictions_of(Learner(network, task, preprocess=preprocess), test)
    accuracy = evaluate(said.fields[LOGITS], said.labels, replicates=0).metrics["accuracy"].value
    return Teacher(network, preprocess, name="digits-large", accuracy=accuracy, split="test")


def _student(
    arm: str,
    teacher: Teacher,
    book: Path,
    train: ImageDataset,
    views: Views,
    task: Classification,
    labels: np.ndarray[Any, np.dtype[np.int64]],
    seed: int,
    cached: CachedViews,
) -> tuple[Learned, Any]:
    from dataclasses import replace

    network, preprocess = NetworkOptions("digits-small").build(task.n_classes, role="student", seed=seed)
    knowledge = {"supervised": None, "online": LiveKnowledge(teacher, task), "book": StoredKnowledge(book)}[arm]
    method: Method = Supervised() if arm == "supervised" else VanillaKD(temperature=4.0)
    learned = learn(
        network,
        train,
        views,
        task=task,
        knowledge=knowledge,
        method=method,
        preprocess=preprocess,
        training=replace(STUDENT_TRAINING, seed=seed),
        labels=labels,
        cached=cached,
    )
    return learned, preprocess


def _record(
    arm: str, fraction: float, seed: int, learned: Learned, preprocess: Any, test: ImageDataset, task: Classification
) -> dict[str, Any]:
    said = predictions_of(Learner(learned.student, task, preprocess=preprocess), test)
    metrics = evaluate(said.fields[LOGITS], said.labels, replicates=0).metrics
    return {
        "method": arm,
        "label_fraction": fraction,
        "seed": seed,
        "accuracy": metrics["accuracy"].value,
        "nll": metrics["nll"].value,
        "ece": metrics["ece"].value,
        "seconds_per_epoch": learned.seconds_per_epoch,
        "teacher_forwards": learned.teacher_forwards,
        "student_parameters": count_parameters(learned.student),
    }
