"""CIFAR-10 on real images: one book of a ResNet-56 or ResNet-20 teacher, and what students learn from it.

For each teacher: make a book over fixed views of a fixed subset; train ResNet-8 on labels only, with the teacher online,
and from the book (same views, same starting weights, same seeds); then train a ResNet-14 from the same book. Every part
is resumable: run the same command again after an interruption.

    python examples/cifar10/run.py --data cifar10.zip --teachers teachers/ --out runs/cifar10

`--data` is a folder or zip with train/<class>/*.jpg and test/<class>/*.jpg; `--teachers` holds
`cifar10_resnet56_jpeg.safetensors` and so on (published CIFAR ResNets with option-A shortcuts, fine-tuned on the JPEG files).
The table that `--report` prints is the one in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bookkd.core.fields import LOGITS
from bookkd.evaluation import evaluate, t_quantile
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Learned, Learner, Training, learn, predictions_of
from bookkd.making import make
from bookkd.methods import Supervised, VanillaKD
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.make_book import measure_teacher
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Replay


class Example:
    """Data, views and settings that all parts share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out = Path(arguments.out)
        options = {"cache": True}
        self.data = DataOptions("folder", root=str(arguments.data), limit=arguments.limit, args=options)
        self.train = self.data.open()
        self.test = replace(self.data.other("test"), limit=arguments.test_limit).open()
        self.task = Classification(self.train.class_names)
        self.views = ViewOptions("crop-flip", arguments.views, args={"size": 32, "padding": 4}).build()
        self.training = Training(epochs=arguments.epochs, batch_size=128, lr=0.1, weight_decay=5e-4, accelerator="cpu")
        self._cached: CachedViews | None = None

    @property
    def cached(self) -> CachedViews:
        """All views in memory, drawn once for all arms alike."""
        if self._cached is None:
            self._cached = CachedViews(Replay(self.train, self.views, probe_share=1.0), max_bytes=2**31)
        return self._cached

    def teacher(self, name: str) -> Teacher:
        weights = Path(self.arguments.teachers) / f"cifar10_{name}_jpeg.safetensors"
        return NetworkOptions(name, weights=str(weights)).teacher(self.task.n_classes, "cpu")

    def learn(self, arm: str, teacher: str, student: str, seed: int) -> dict[str, Any]:
        """Train one student, or take up a run that is finished already."""
        folder = self.out / "runs" / f"{student}-{arm}{'' if arm == 'supervised' else '-' + teacher}-{seed}"
        learned, preprocess = self.fit(arm, teacher, student, replace(self.training, seed=seed), folder)
        return self.record(arm, teacher, student, seed, learned, preprocess)

    def fit(
        self, arm: str, teacher: str, student: str, training: Training, folder: Path | None = None
    ) -> tuple[Learned, Any]:
        """Train one student: `arm` says from whom."""
        network, preprocess = NetworkOptions(student).build(self.task.n_classes, role="student", seed=training.seed)
        knowledge = None
        if arm == "online":
            knowledge = LiveKnowledge(self.teacher(teacher), self.task)
        elif arm == "book":
            knowledge = StoredKnowledge(self.out / "books" / teacher)
        learned = learn(
            network,
            self.train,
            self.views,
            task=self.task,
            knowledge=knowledge,
            method=Supervised() if arm == "supervised" else VanillaKD(temperature=4.0),
            preprocess=preprocess,
            training=training,
            out=folder,
            cached=self.cached,
        )
        return learned, preprocess

    def record(
        self, arm: str, teacher: str, student: str, seed: int, learned: Learned, preprocess: Any
    ) -> dict[str, Any]:
        said = predictions_of(Learner(learned.student, self.task, preprocess=preprocess), self.test)
        metrics = evaluate(said.fields[LOGITS], said.labels, replicates=0).metrics
        return {
            "arm": arm,
            "teacher": None if arm == "supervised" else teacher,
            "student": student,
            "seed": seed,
            **{name: metrics[name].value for name in ("accuracy", "nll", "ece")},
            "seconds_per_epoch": learned.seconds_per_epoch,
            "teacher_forwards": learned.teacher_forwards,
            "parameters": sum(parameter.numel() for parameter in learned.student.parameters()),
        }


def run(example: Example) -> dict[str, Any]:
    """Run every part that is not done yet; write results.json after each."""
    arguments, found = example.arguments, {"books": {}, "runs": []}
    path = example.out / "results.json"

    def keep(record: dict[str, Any]) -> None:
        found["runs"].append(record)
        print(json.dumps(record), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")

    for name in arguments.names:
        teacher = example.teacher(name)
        measure_teacher(teacher, replace(example.data, args={"cache": True}), example.task, "test")
        book = make(
            example.out / "books" / name, teacher, example.train, example.views, task=example.task, batch_size=128
        )
        found["books"][name] = {
            "accuracy": teacher.accuracy,
            "parameters": teacher.parameters,
            "records": book.n_samples * book.n_views,
            "bytes": book.nbytes,
            "bytes_per_record": book.bytes_per_record,
            **book.cost,
        }
        print(json.dumps({name: found["books"][name]}), flush=True)
    for seed in range(arguments.seeds):
        keep(example.learn("supervised", "", "resnet8", seed))
        for name in arguments.names:
            keep(example.learn("book", name, "resnet8", seed))
    keep(example.learn("supervised", "", "resnet14", 0))
    keep(example.learn("book", arguments.names[0], "resnet14", 0))
    for name in arguments.names:
        for seed in range(arguments.seeds):
            keep(example.learn("online", name, "resnet8", seed))
    return found


def time_epochs(example: Example, epochs: int) -> dict[str, list[float]]:
    """Time epochs of the arms in turn, so that what else the machine does falls on all alike."""
    seconds: dict[str, list[float]] = {}
    one = replace(example.training, epochs=1)
    arms = [("supervised", "")] + [(arm, name) for name in example.arguments.names for arm in ("book", "online")]
    for _ in range(epochs):
        for arm, name in arms:
            learned, _ = example.fit(arm, name, "resnet8", one)
            seconds.setdefault(f"{arm} {name}".strip(), []).append(learned.seconds_per_epoch)
    return seconds


def report(found: dict[str, Any]) -> str:
    """Return the results as Markdown: means over seeds with 95 % intervals."""
    lines = [
        "| student | learns from | accuracy % | gain over labels only | NLL | ECE | s/epoch | teacher passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    timed = found.get("seconds_per_epoch", {})
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in found["runs"]:
        groups.setdefault((record["student"], record["arm"], record["teacher"] or ""), []).append(record)
    for (student, arm, teacher), records in groups.items():
        words = {"supervised": "labels only", "online": f"{teacher} online", "book": f"book of {teacher}"}[arm]
        baseline = {r["seed"]: r["accuracy"] for r in groups.get((student, "supervised", ""), [])}
        accuracies = [100 * r["accuracy"] for r in records]
        gains = [100 * (r["accuracy"] - baseline[r["seed"]]) for r in records if r["seed"] in baseline]
        seconds = timed.get(f"{arm} {teacher}".strip()) if student == "resnet8" else None
        shown = f"{statistics.median(seconds):.1f}" if seconds else "not timed"
        mean = {key: statistics.fmean(r[key] for r in records) for key in ("nll", "ece")}
        gain = "-" if arm == "supervised" else interval(gains)
        passes = f"{records[0]['teacher_forwards']:,}"
        lines.append(
            f"| {student} | {words} | {interval(accuracies, sign=False)} | {gain} | {mean['nll']:.3f} | {mean['ece']:.3f} | {shown} | {passes} |"
        )
    lines.append("")
    for name in found["books"]:
        book, online = (
            {r["seed"]: 100 * r["accuracy"] for r in groups.get(("resnet8", arm, name), [])}
            for arm in ("book", "online")
        )
        differences = [book[seed] - online[seed] for seed in book if seed in online]
        if differences:
            lines.append(f"ResNet-8 from the book of {name} minus online, points of accuracy: {interval(differences)}.")
    lines += [
        "",
        "| book of | teacher accuracy % | records | bytes | bytes/record | teacher passes | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, book in found["books"].items():
        lines.append(
            f"| {name} | {100 * book['accuracy']:.2f} | {book['records']:,} | {book['bytes']:,} | {book['bytes_per_record']:.1f} "
            f"| {book['teacher_forwards']:,} | {book['seconds']:.0f} |"
        )
    return "\n".join(lines)


def interval(values: list[float], *, sign: bool = True) -> str:
    """Return mean and 95 % interval half-width (Student's t) as text; one value stands alone."""
    text = f"{statistics.fmean(values):{'+' if sign else ''}.2f}"
    if len(values) < 2:
        return f"{text} (1 seed)"
    half = t_quantile(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{text} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("BOOKKD_DATA", ""), help="folder or zip of CIFAR-10 images")
    parser.add_argument("--teachers", default="", help="folder of teacher weights")
    parser.add_argument("--out", default="runs/cifar10")
    parser.add_argument("--names", nargs="+", default=["resnet56", "resnet20"], help="teachers")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--test-limit", type=int, default=None, help="test images; all where not given")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--time", type=int, default=0, help="only time so many epochs of each arm, in turn, and add them to the results"
    )
    parser.add_argument("--report", action="store_true", help="only print the table of results.json")
    arguments = parser.parse_args()
    path = Path(arguments.out) / "results.json"
    started = time.time()
    if not arguments.report:
        path.parent.mkdir(parents=True, exist_ok=True)
        example = Example(arguments)
        if arguments.time:
            found = json.loads(path.read_text())
            found["seconds_per_epoch"] = time_epochs(example, arguments.time)
        else:
            old = json.loads(path.read_text()) if path.exists() else {}
            found = run(example) | {key: old[key] for key in ("seconds_per_epoch",) if key in old}
        found["torch"], found["threads"] = torch.__version__, torch.get_num_threads()
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.time() - started:.0f} seconds")
    print(report(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
