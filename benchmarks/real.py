"""Real images: methods, BookKD with its parts left out, and what looks inside, on CIFAR-10; methods on 100 classes of Tiny-ImageNet.

Only commands that a user has: books are made, students compared, and the report is built, each by `bookkd`. An interrupted
run goes on where it was.

    python benchmarks/real.py cifar10 --data DATA --out runs/real --jobs 2
    python benchmarks/real.py cifar10-features --data DATA --out runs/real --jobs 2
    python benchmarks/real.py tinyimagenet100 --data DATA --out runs/real --jobs 2
    python benchmarks/results.py runs/real

DATA (or the environment variable BOOKKD_DATA) holds `cifar10.zip` (train/<class>/*.jpg, test/<class>/*.jpg),
`tinyimagenet100-32.zip` (train/<class>/*.jpg, val/<class>/*.jpg) and a folder `teachers` with their ResNets. `results.py`
writes the page `docs/results.md` from the summaries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VIEWS = ["--views", "crop-flip", "--views.n_views", "8", "--views.args", '{"size": 32, "padding": 4}']
TRAINING = ["--training.epochs", "12", "--training.lr", "0.1", "--training.accelerator", "cpu"]
IMAGES = "10000"
INSIDE = "[at,sp,crd,reviewkd,ccskd]"
"""Methods whose features the book of the inside holds: maps of all stages as int8, of 4 views."""
SUBSETS = {
    "animals": "bird,cat,deer,dog,frog,horse",
    "vehicles": "airplane,automobile,ship,truck",
    "alike": "cat,deer,dog",
}
"""Choices of classes, of which specialists are trained and everybody is measured."""
FOUR = ("chain/resnet56/book", "books/r20", "books/r32", "books/r44")


class Study:
    """One data set: its options, its folder, and commands run in it.

    Args:
        name: Of the data set; also of its folder in `out`.
        archive: File with the images.
        arguments: Of the command line.
    """

    def __init__(self, name: str, archive: str, arguments: argparse.Namespace) -> None:
        self.name, self.jobs, self.seeds = name, str(arguments.jobs), str(arguments.seeds)
        self.images = Path(arguments.data).resolve()
        self.out = Path(arguments.out).resolve() / name
        self.out.mkdir(parents=True, exist_ok=True)
        root = str(self.images / archive)
        self.data = ["--data", "folder", "--data.root", root, "--data.limit", IMAGES, "--data.args", '{"cache": true}']

    def bookkd(self, *arguments: str) -> None:
        """Run one command, in the folder of the study."""
        print("bookkd", *arguments, flush=True)
        subprocess.run([sys.executable, "-m", "bookkd", *arguments], cwd=self.out, check=True)

    def teacher(self, network: str, weights: Path | str) -> list[str]:
        """Return the options of a teacher."""
        return ["--teacher", network, "--teacher.weights", str(weights)]

    def make(self, out: str, teacher: list[str], *more: str, held_out: str = "test") -> None:
        """Make a book; one that is whole is left as it is."""
        how = ["--held_out", held_out, "--batch_size", "256", "--out", out]
        self.bookkd("make", *self.data, *teacher, *VIEWS, *how, *more)

    def compare(self, out: str, *arguments: str) -> None:
        """Run a sweep."""
        self.bookkd("compare", *arguments, *self.data, "--seeds", self.seeds, "--out", out, "--jobs", self.jobs)

    def measured(self, *arguments: str) -> dict[str, Any]:
        """Return what a network comes to, as `bookkd evaluate` has it."""
        command = [sys.executable, "-m", "bookkd", "evaluate", *arguments, "--latency", "false", "--json"]
        told = subprocess.run(command, cwd=self.out, check=True, capture_output=True, text=True).stdout
        found: dict[str, Any] = json.loads(told.splitlines()[-1])
        return found

    def report(self, title: str, *runs: str, name: str = "report") -> None:
        """Build the page of all runs, and the same numbers as JSON."""
        for form in ("html", "json"):
            self.bookkd("report", *runs, "-o", f"{name}.{form}", "--title", title)


def cifar10(arguments: argparse.Namespace) -> None:
    """Four teachers, an assistant, the student's own book; then the methods, and BookKD with its parts left out."""
    study = Study("cifar10", "cifar10.zip", arguments)
    weights = study.images / "teachers"
    for depth in ("20", "32", "44"):
        study.make(
            f"books/r{depth}", study.teacher(f"resnet{depth}", weights / f"cifar10_resnet{depth}_jpeg.safetensors")
        )
    first = ["--teacher.weights", str(weights / "cifar10_resnet56_jpeg.safetensors")]
    study.bookkd(
        "chain", "--path", "56,20,8", *first, "--method", "takd", *study.data, *VIEWS, *TRAINING, "--out", "chain"
    )
    labels_only = ["--method", "supervised", "--training.seed", "100", "--validate_on", ""]
    study.bookkd("learn", "--student", "resnet8", *labels_only, *study.data, *VIEWS, *TRAINING, "--out", "own")
    study.make("books/own", study.teacher("resnet8", "own/student.safetensors"))
    study.compare("methods", str(HERE / "cifar10-methods.yaml"))
    ablation = ["--preset", "ablation", "--books", ",".join(FOUR), "--students", "resnet8"]
    study.compare("ablation", *ablation, *TRAINING)
    study.report("CIFAR-10, ResNet-8: methods, and BookKD in parts", "methods", "ablation")


def cifar10_features(arguments: argparse.Namespace) -> None:
    """Methods that look inside, from one book; specialists for some classes beside the teacher and a generalist on these; gates."""
    study = Study("cifar10-features", "cifar10.zip", arguments)
    weights = study.images / "teachers" / "cifar10_resnet56_jpeg.safetensors"
    teacher = study.teacher("resnet56", weights)
    study.make("book", teacher, "--views.n_views", "4", "--serve", INSIDE, "--feature_codec", "int8")
    study.compare("methods", str(HERE / "cifar10-features.yaml"))
    # Who learnt all classes by labels alone, and from the book.
    runs = sorted((study.out / "methods" / "runs").glob("*/seed-*"))
    generalists = [run for run in runs if run.parent.name.startswith(("supervised", "vanilla-kd"))]
    for name, classes in SUBSETS.items():
        study.compare(f"classes/{name}", str(HERE / "cifar10-classes.yaml"), "--data.classes", classes)
        path = study.out / "classes" / name / "others.json"
        if not path.exists():
            test = [*study.data[:4], "--data.split", "test", "--data.classes", classes]
            found = {"teacher": study.measured(*test, "--student", "resnet56", "--student.weights", str(weights))}
            for run in generalists:
                student = ["--student", "resnet8", "--student.weights", str(run / "student.safetensors")]
                found[str(run.relative_to(study.out))] = study.measured(*test, *student)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    study.compare("gates", str(HERE / "cifar10-gates.yaml"))
    study.report("CIFAR-10, ResNet-8: methods that look inside", "methods")
    study.report("CIFAR-10: the gates of a tree", "gates", name="gates")


def tinyimagenet100(arguments: argparse.Namespace) -> None:
    """One teacher of 45.7 %, 100 classes."""
    study = Study("tinyimagenet100", "tinyimagenet100-32.zip", arguments)
    weights = study.images / "teachers" / "tinyimagenet100_resnet14x2.safetensors"
    teacher = [*study.teacher("resnet14", weights), "--teacher.args", '{"width": 32}']
    study.make("books/r14x2", teacher, held_out="val")
    study.compare("methods", str(HERE / "tinyimagenet100.yaml"))
    study.report("100 classes of Tiny-ImageNet, ResNet-8", "methods")


STUDIES = {"cifar10": cifar10, "cifar10-features": cifar10_features, "tinyimagenet100": tinyimagenet100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(STUDIES))
    parser.add_argument("--data", default=os.environ.get("BOOKKD_DATA", ""), help="folder of the images and teachers")
    parser.add_argument("--out", default="runs/real")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    arguments = parser.parse_args()
    STUDIES[arguments.what](arguments)


if __name__ == "__main__":
    main()
