"""Segmentation from books: road scenes by labels alone, by a teacher's pixels, and by what else is in the table of arms.

    python benchmarks/camvid.py --data camvid-half.zip --out runs/camvid            # a teacher, and every arm twice
    python benchmarks/camvid.py --data camvid-half.zip --out runs/camvid --quick    # a few minutes, nothing to be believed

DATA is CamVid as the SegNet tutorial lays it out (`train/` beside `trainannot/`, `val`, `test`; ids 0 to 10, 11 is void), a folder or a
zip. The teacher learns from the training split; students of about a fifteenth of its size see the same views, for as many epochs each, and
are measured on the test split with intervals over images. A run that is done is not done again. `panel.png` shows image, truth, teacher and
students. `--keep` writes `benchmarks/results/camvid.json`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_runs import Runs
from PIL import Image

from bookkd.book import Book, Int8
from bookkd.evaluation import difference_of
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.making import make
from bookkd.methods import CWD, SKD, Method, Supervised, VanillaKD, build_method
from bookkd.pipelines.pictures import pictures_of
from bookkd.tasks import Segmentation
from bookkd.views import Views
from bookkd.zoo import create_network, create_preprocess, create_transform, load_weights, open_dataset, save_weights

RESULTS = Path(__file__).parent / "results"
OPTIONS = ("epochs", "teacher_epochs", "stride", "views")
TEACHER, STUDENT = "unet-large", "unet-small"
AUGMENTED = {"degrees": 5.0, "shift": 0.1, "scale": 0.25, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
ARMS: dict[str, Method] = {
    "supervised": Supervised(),
    "pixel-kd": VanillaKD(temperature=2.0, kd_weight=1.0, ce_weight=1.0),
    "csc": build_method("csc-ace", preset="csc"),
    "csc-ace": build_method("csc-ace"),
    "cwd": CWD(),
    "skd": SKD(),
}
"""Name -> the method. What is added here is run, tabled and pictured."""
SERVED = ("csc-ace", "skd")
"""Methods that look inside of the teacher: what they read is kept in the book from which every arm learns."""
AGAINST = {name: "supervised" for name in ARMS if name != "supervised"}
"""Arm -> what it is held against."""
SHOWN = ("miou", "accuracy", "balanced_accuracy", "boundary_f1", "nll", "ece", "agreement", "teacher_kl")


def sets(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return the training and the test split, decoded once."""
    limits = (24, 12) if arguments.quick else (None, None)
    return tuple(
        open_dataset("camvid", root=arguments.data, split=split, limit=limit, args={"cache": True})
        for split, limit in zip(("train", "test"), limits, strict=True)
    )  # type: ignore[return-value]


def network(name: str, seed: int) -> torch.nn.Module:
    """Return a network with initial values of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_network(name, n_classes=11)


def training(epochs: int, seed: int) -> Training:
    """Return how every network is trained."""
    return Training(
        epochs=epochs, batch_size=8, optimizer="adamw", lr=2e-3, weight_decay=0.01, warmup_epochs=1.0, clip_norm=5.0, seed=seed,
        accelerator="cpu",
    )  # fmt: skip


def views_of(arguments: argparse.Namespace) -> Views:
    return Views(create_transform("mask-affine", AUGMENTED), arguments.views, name="mask-affine", args=AUGMENTED)


def taught(out: Path, data: Any, views: Views, task: Segmentation, epochs: int) -> tuple[Teacher, float]:
    """Return the teacher, trained if it is not there, and the seconds of the processor that it took."""
    path, module, started = out / "teacher.safetensors", network(TEACHER, 0), time.process_time()
    preprocess = create_preprocess(TEACHER)
    if path.exists():
        load_weights(module, path)
    else:
        how = training(epochs, 0)
        learned = learn(module, data, views, task=task, method=Supervised(), training=how, preprocess=preprocess)
        say(f"teacher: {learned.seconds_per_epoch:.1f} s an epoch")
        save_weights(module, path)
    return Teacher(module, preprocess, name=TEACHER), time.process_time() - started


def book_of(out: Path, teacher: Teacher, data: Any, views: Views, task: Segmentation) -> Book:
    """Return the book that every arm learns from; made once."""
    return make(out / "book", teacher, data, views, task=task, codec=Int8(), serve=SERVED, batch_size=16)


def run(
    out: Path,
    arm: str,
    seed: int,
    train: Any,
    test: Any,
    teacher: Teacher,
    views: Views,
    task: Segmentation,
    epochs: int,
) -> dict[str, Any]:
    """Return what one student came to."""
    method = ARMS[arm]
    book = book_of(out, teacher, train, views, task) if method.needs(task).fields else None
    student, preprocess, started = network(STUDENT, seed), create_preprocess(STUDENT), time.process_time()
    learned = learn(
        student, train, views, task=task, method=method, knowledge=None if book is None else StoredKnowledge(book),
        training=training(epochs, seed), preprocess=preprocess,
    )  # fmt: skip
    seconds = time.process_time() - started
    said = Teacher(learned.student, preprocess, name=arm)
    measured = measure_sequences(said, test, task, teacher=teacher, batch_size=16).to_json()
    return {
        "seconds": round(seconds, 1), "seconds_per_epoch": learned.seconds_per_epoch, "teacher_forwards": learned.teacher_forwards,
        "metrics": measured["metrics"], "per_class": measured["per_class"], "book_bytes": None if book is None else book.nbytes,
        "pictures": pictures_of(said, test, task, teacher=teacher, count=5) if seed == 0 else {},
    }  # fmt: skip


def all_runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what the teacher and every student came to, the seeds in turn."""
    options = {key: getattr(arguments, key) for key in OPTIONS}
    runs = Runs(Path(arguments.out), options, quick=arguments.quick)
    train, test = sets(arguments)
    task, views = Segmentation(train.class_names, stride=arguments.stride), views_of(arguments)
    teacher, seconds = taught(runs.folder, train, views, task, 2 if arguments.quick else arguments.teacher_epochs)
    measured = measure_sequences(teacher, test, task, batch_size=16).to_json()
    teacher.accuracy, teacher.split = measured["metrics"]["miou"]["value"], "test"
    sizes = {name: sum(each.numel() for each in network(name, 0).parameters()) for name in (TEACHER, STUDENT)}
    say(
        f"{len(train)} and {len(test)} images; parameters {sizes}; teacher: mIoU {teacher.accuracy:.4f}, {seconds:.0f} s"
    )
    yield {
        "arm": "teacher",
        "seed": 0,
        "seconds": round(seconds, 1),
        "parameters": sizes,
        "teacher_forwards": 0,
        **measured,
    }
    for seed in range(1 if arguments.quick else arguments.seeds):
        for arm in ARMS:
            epochs = 1 if arguments.quick else arguments.epochs
            found = runs.done(
                arm, seed, partial(run, runs.folder, arm, seed, train, test, teacher, views, task, epochs)
            )
            shown = {name: round(found["metrics"][name]["value"], 4) for name in SHOWN}
            say(f"{arm} {seed}: {shown}, {found['seconds']} s, {found['seconds_per_epoch']:.1f} s an epoch")
            yield found


def table(runs: list[dict[str, Any]]) -> str:
    """Return the figures as markdown: means over seeds, mIoU of each seed with its interval over images, differences over seeds."""
    head = ["arm", *SHOWN, "mIoU by seed [95 % over images]", "mIoU difference [95 % over seeds]", "CPU s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    names = ("teacher", *ARMS)
    miou = {
        arm: {each["seed"]: each["metrics"]["miou"]["value"] for each in runs if each["arm"] == arm} for arm in names
    }
    for arm in names:
        mine = [each for each in runs if each["arm"] == arm]
        means = []
        for name in SHOWN:
            values = [each["metrics"][name]["value"] for each in mine if name in each["metrics"]]
            means.append(f"{statistics.fmean(values):.4f}" if values else "")
        each_seed = ", ".join("{value:.4f} [{low:.4f}, {high:.4f}]".format(**each["metrics"]["miou"]) for each in mine)
        gap = ""
        if arm in AGAINST:
            found = difference_of(miou[arm], miou[AGAINST[arm]], AGAINST[arm])
            ends = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
            gap = f"{found.mean:+.4f}{ends} to {found.against}"
        seconds = statistics.fmean(each["seconds"] for each in mine)
        lines.append(f"| {' | '.join([arm, *means, each_seed, gap, f'{seconds:.0f}'])} |")
    return "\n".join(lines)


def panel(runs: list[dict[str, Any]], path: Path) -> None:
    """Write image, truth, teacher and the student of each arm side by side, one sample a row."""
    shown = [each for each in runs if each.get("pictures")]
    columns = [(shown[0], "image"), (shown[0], "truth"), (shown[0], "teacher"), *((each, "student") for each in shown)]
    rows = [
        [_opened(run["pictures"]["samples"][place][name]) for run, name in columns]
        for place in range(len(shown[0]["pictures"]["samples"]))
    ]
    width, height = rows[0][0].size
    whole = Image.new("RGB", (len(columns) * (width + 4), len(rows) * (height + 4)), "white")
    for place, row in enumerate(rows):
        for column, picture in enumerate(row):
            whole.paste(picture, (column * (width + 4), place * (height + 4)))
    whole.save(path)


def _opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="camvid-half.zip, or the folder")
    parser.add_argument("--out", default="runs/camvid")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--teacher_epochs", type=int, default=60)
    parser.add_argument("--stride", type=int, default=4, help="pixels to a cell of the book")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the figures that a page is made from")
    arguments = parser.parse_args()
    runs = list(all_runs(arguments))
    panel(runs, Path(arguments.out) / "panel.png")
    kept = {key: getattr(arguments, key) for key in (*OPTIONS, "seeds", "quick")}
    figures = [{key: value for key, value in each.items() if key != "pictures"} for each in runs]
    document = json.dumps({"options": kept, "runs": figures}, indent=1, sort_keys=True) + "\n"
    (Path(arguments.out) / "camvid.json").write_text(document, encoding="utf-8")
    if arguments.keep and not arguments.quick:
        (RESULTS / "camvid.json").write_text(document, encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
