"""How many views make a book as good as a live teacher, and whether T. stddev tells which views are good ones.

    python benchmarks/views.py --data cifar10 --teacher resnet20.safetensors --out runs/views            # see the docs for the time
    python benchmarks/views.py --data cifar10 --teacher resnet20.safetensors --out runs/views --quick    # two minutes, nothing to be believed
    python benchmarks/views.py --data digits --out runs/views-digits                                     # no files, some minutes
    python benchmarks/view_results.py                                                                    # figure and tables from what was kept

DATA is a folder or zip with `train/<class>/*` and `test/<class>/*`, such as CIFAR-10 as images; "digits" needs none, and its teacher is
trained here. Every student sees as many epochs, learns what the teacher says and no label (`vanilla-kd`, preset function-matching, at
temperature 4), and is measured on the test split, on views that it has seen, and on views of the same samples that it has not. Books of
fewer views are the first views of one book. The live teacher's student sees a new view at every epoch. A run that is done is not done
again. `--keep` writes `benchmarks/results/views/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_runs import Runs

from bookkd.book import Book
from bookkd.core.rng import generator
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Training, learn, measure_network
from bookkd.making import make
from bookkd.methods import Supervised, build_method
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.rank_views import rank_views
from bookkd.tasks import Classification
from bookkd.views import Pick, Replay
from bookkd.zoo import save_weights

RESULTS = Path(__file__).parent / "results" / "views"
OPTIONS = (
    "name",
    "student",
    "teacher_network",
    "images",
    "epochs",
    "recipe_views",
    "passes",
    "group_rows",
    "temperature",
)
COUNTS = (1, 2, 4, 8, 16, 32)
FRESH = 10**6
"""Views of a live teacher: so many that none comes twice. A book's views are the first of them."""
SAMPLES = 2000
"""Training samples of which seen and unseen views are measured."""
DIGITS = {"degrees": 25.0, "shift": 0.2, "scale": 0.25}
RECIPES: Mapping[str, Mapping[str, ViewOptions]] = {
    "images": {
        "crop-flip": ViewOptions("crop-flip"),
        "none": ViewOptions("none"),
        "crop-flip-jitter-erase": ViewOptions("crop-flip-jitter-erase"),
        "trivial-augment": ViewOptions("trivial-augment"),
        "jda": ViewOptions("jda"),
        "crop-flip, mixup": ViewOptions("crop-flip", mix="mixup"),
        "crop-flip, cutmix": ViewOptions("crop-flip", mix="cutmix"),
    },
    "digits": {
        "digits": ViewOptions("digits"),
        "none": ViewOptions("none"),
        "digits, stronger": ViewOptions("digits", args=DIGITS),
        "digits, mixup": ViewOptions("digits", mix="mixup"),
        "digits, cutmix": ViewOptions("digits", mix="cutmix"),
        "digits, stronger, mixup": ViewOptions("digits", args=DIGITS, mix="mixup"),
    },
}
"""Set -> recipes; the first is that of the number of views."""


class Study:
    """Data, teacher and students of one set of options.

    Args:
        arguments: Of the command line.
        folder: Where books and weights are kept.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = arguments, folder
        of_digits = arguments.name == "digits"
        self.recipes = dict(RECIPES["digits" if of_digits else "images"])
        self.base = next(iter(self.recipes))
        self.data = (
            DataOptions("digits") if of_digits else DataOptions("folder", root=arguments.data, limit=arguments.images)
        )
        if not of_digits:
            self.data = replace(self.data, args={"cache": True})
        elif arguments.quick:
            self.data = replace(self.data, limit=arguments.images)
        test = replace(self.data.other("test"), limit=500 if arguments.quick else None)
        self.train, self.test = self.data.open(), test.open()
        self.task = Classification(self.train.class_names)
        self.speaker = NetworkOptions(arguments.teacher_network, weights=str(self._weights()))
        self.teacher: Teacher = self.speaker.teacher(self.task.n_outputs, "cpu")
        self._said: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _weights(self) -> Path:
        if self.options.teacher:
            return Path(self.options.teacher)
        path = self.folder / "teacher.safetensors"
        if not path.exists():
            network, preprocess = NetworkOptions(self.options.teacher_network).build(
                self.task.n_outputs, role="teacher"
            )
            views = ViewOptions(self.base, n_views=8).build()
            learn(network, self.train, views, task=self.task, preprocess=preprocess, training=self.training(0))
            save_weights(network, path)
        return path

    def training(self, seed: int, *, n_views: int = FRESH) -> Training:
        """Return how a student is trained; few views are drawn once."""
        return Training(epochs=self.options.epochs, seed=seed, accelerator="cpu", cache_views=n_views <= 8)

    def book(self, recipe: str, n_views: int) -> Book:
        """Return the book of a recipe; made once."""
        path = self.folder / f"book-{recipe.replace(', ', '-')}"
        views = replace(self.recipes[recipe], n_views=n_views).without_repeats().build()
        return make(path, self.teacher, self.train, views, task=self.task)

    def run(self, arm: str, recipe: str, n_views: int, seed: int) -> dict[str, Any]:
        """Return what a student came to: of a book of `n_views`, of a live teacher, or of labels alone."""
        options, started = self.recipes[recipe], time.process_time()
        method: Any = build_method("vanilla-kd", "function-matching", temperature=self.options.temperature)
        knowledge: Any = LiveKnowledge(self.teacher, self.task)
        if arm == "labels":
            method, knowledge = Supervised(), None
        elif arm != "live":
            most = max(self.counts) if recipe == self.base else n_views
            knowledge = StoredKnowledge(self.book(recipe, most))
        making, started = time.process_time() - started, time.process_time()
        views = replace(options, n_views=n_views).without_repeats().build()
        network, preprocess = NetworkOptions(self.options.student).build(self.task.n_outputs, role="student", seed=seed)
        training = self.training(seed, n_views=views.n_views)
        learned = learn(
            network, self.train, views, task=self.task, knowledge=knowledge, method=method, preprocess=preprocess, training=training
        )  # fmt: skip
        seconds = time.process_time() - started

        def student(batch: torch.Tensor) -> torch.Tensor:
            return network(preprocess(batch))

        network.eval()
        measured = measure_network(student, self.test, self.task, teacher=self.teacher)
        kl = {"unseen": self.apart(student, options, range(FRESH, FRESH + 2))}
        if n_views < FRESH:
            kl["seen"] = self.apart(student, options, range(min(2, views.n_views)))
        return {
            "views": None if n_views == FRESH else views.n_views, "recipe": recipe, "seconds": round(seconds, 1),
            "making_seconds": round(making, 1), "teacher_forwards": learned.teacher_forwards,
            "metrics": {name: measured.metrics[name].to_json() for name in ("accuracy", "agreement", "teacher_kl", "nll")},
            "kl": kl,
        }  # fmt: skip

    def apart(self, student: Any, options: ViewOptions, numbers: range) -> float:
        """Return the mean of KL(teacher || student) at temperature 1 on views of these numbers, of some training samples."""
        key = f"{options} {numbers}"
        if key not in self._said:
            rows = generator(0, "seen").permutation(len(self.train))[:SAMPLES]
            replay = Replay(self.train, replace(options, n_views=FRESH + 2).build(), probe_share=0.0)
            # Mixed with any sample, as in the book.
            views = torch.cat([replay.batch([Pick(int(row), number) for row in rows])["input"] for number in numbers])
            self._said[key] = views, self._log_p(self.teacher, views)
        views, theirs = self._said[key]
        return float((theirs.exp() * (theirs - self._log_p(student, views))).sum(-1).mean())

    @staticmethod
    def _log_p(network: Any, views: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([network(part).double().log_softmax(-1) for part in views.split(500)])

    @property
    def counts(self) -> tuple[int, ...]:
        return (1, 2) if self.options.quick else COUNTS

    def arms(self) -> list[tuple[str, str, int]]:
        """Return name, recipe and number of views of each arm: of the numbers of views, then of the other recipes."""
        books = [(f"V={count}", self.base, count) for count in self.counts]
        asked = [("live", self.base, FRESH), ("labels", self.base, FRESH)]
        others = [(recipe, recipe, self.options.recipe_views) for recipe in self.recipes if recipe != self.base]
        return books + asked + ([] if self.options.without_recipes else others)

    def scores(self) -> dict[str, Any]:
        """Return what the teacher says of the recipes, before any book."""
        views = {name: replace(each, n_views=self.options.recipe_views) for name, each in self.recipes.items()}
        options = {"passes": self.options.passes, "group_rows": self.options.group_rows, "accelerator": "cpu"}
        return rank_views(views, data=self.data, teacher=self.speaker, **options).to_json()


def all_runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the scores of the recipes, and what every student came to; numbers of views first, of all seeds."""
    runs = Runs(Path(arguments.out), {key: getattr(arguments, key) for key in OPTIONS}, quick=arguments.quick)
    study = Study(arguments, runs.folder)
    measured = measure_network(study.teacher, study.test, study.task)
    say(f"{len(study.train)} and {len(study.test)} samples; teacher {measured.metrics['accuracy'].value:.4f}")
    yield {"arm": "teacher", "seed": 0, "metrics": {"accuracy": measured.metrics["accuracy"].to_json()}}
    yield runs.done("scores", 0, study.scores)
    every = product(range(1 if arguments.quick else arguments.seeds), study.arms())
    # What the figure needs comes first.
    for seed, (arm, recipe, count) in sorted(every, key=lambda each: each[1][1] != study.base):
        found = runs.done(arm.replace("=", "-"), seed, partial(study.run, arm, recipe, count, seed))
        kl = {name: round(value, 4) for name, value in found["kl"].items()}
        say(f"{arm} {seed}: {found['metrics']['accuracy']['value']:.4f}, KL {kl}, {found['seconds']} s")
        yield {**found, "arm": arm}


def estimate(
    runs: list[dict[str, Any]], arguments: argparse.Namespace, full_images: int, full_epochs: int, seeds: int
) -> str:
    """Return what all runs of a full study would take, from those of a quick one, in minutes of this processor."""
    arms = [run for run in runs if "seconds" in run and "kl" in run]
    scale = full_images * full_epochs / (arguments.images * arguments.epochs)
    each = {run["arm"]: run["seconds"] * scale for run in arms}
    booked = float(np.median([value for arm, value in each.items() if arm not in ("live", "labels")]))
    students = seeds * (sum(value for arm, value in each.items() if not arm.startswith("V=")) + booked * len(COUNTS))
    (score,) = [run for run in runs if run["arm"] == "scores"]
    of_book = {each["name"]: each["seconds"] / each["records"] * full_images for each in score["recipes"]}
    base = next(run["recipe"] for run in arms)
    books = sum(
        value * (max(COUNTS) if name == base else 8 if name != "none" else 1) for name, value in of_book.items()
    )
    return f"A full study: students {students / 60:.0f} min, books {books / 60:.0f} min of one core."


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or zip of images, or digits")
    parser.add_argument("--name", default="", help="of the set; that of the data where none is given")
    parser.add_argument("--teacher", default="", help="weights; digits train their own")
    parser.add_argument("--teacher_network", default="", help="resnet20; digits-large of digits")
    parser.add_argument("--student", default="", help="resnet8; digits-small of digits")
    parser.add_argument("--out", default="runs/views")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--without_recipes", action="store_true", help="leave the books of other recipes out")
    parser.add_argument("--recipe_views", type=int, default=8, help="views of the books of other recipes")
    parser.add_argument("--passes", type=int, default=4096, help="of the teacher for the score of a recipe")
    parser.add_argument("--group_rows", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the figures that figure and tables are made from")
    arguments = parser.parse_args()
    digits = arguments.data == "digits"
    arguments.name = arguments.name or ("digits" if digits else Path(arguments.data).stem)
    arguments.teacher_network = arguments.teacher_network or ("digits-large" if digits else "resnet20")
    arguments.student = arguments.student or ("digits-small" if digits else "resnet8")
    if not digits and not arguments.teacher:
        raise SystemExit("Expected --teacher to be a safetensors file, got none.")
    full = 1297 if digits else arguments.images, arguments.epochs, arguments.seeds
    if arguments.quick:
        arguments.images, arguments.epochs, arguments.recipe_views, arguments.passes = 600, 2, 2, 512
    runs = list(all_runs(arguments))
    if arguments.quick:
        say(estimate(runs, arguments, *full))
    elif arguments.keep:
        kept = {**{key: getattr(arguments, key) for key in OPTIONS}, "seeds": arguments.seeds}
        RESULTS.mkdir(parents=True, exist_ok=True)
        document = json.dumps({"options": kept, "runs": runs}, indent=1, sort_keys=True) + "\n"
        (RESULTS / f"{arguments.name}.json").write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
