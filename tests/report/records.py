"""Records of runs that were never trained: every shape that a comparison writes, with figures drawn from a seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bookkd.report import RunRecord
from bookkd.report.runs import FoundRun

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"resnet8": (78_042, 320_512, 12_500_000, 1.9), "resnet14": (175_258, 716_288, 26_800_000, 3.4)}
TEACHER = {
    "name": "resnet56",
    "digest": "5f3a" * 8,
    "parameters": 855_770,
    "bytes": 3_459_000,
    "accuracy": 0.8953,
    "split": "test",
    "lineage": None,
}
SECOND = {
    "name": "resnet20",
    "digest": "77aa" * 8,
    "parameters": 272_474,
    "bytes": 1_110_000,
    "accuracy": 0.8741,
    "split": "test",
    "lineage": {
        "method": {"name": "vanilla-kd", "temperature": 4.0},
        "parents": [TEACHER["digest"]],
        "ancestors": [
            {"name": "resnet56", "digest": TEACHER["digest"], "accuracy": 0.8953, "split": "test", "parents": []}
        ],
    },
}
BOOK = {
    "label": "resnet56",
    "content_digest": "b00c" * 8,
    "samples": 5120,
    "views": 16,
    "records": 81_920,
    "bytes": 1_835_008,
    "cost": {"seconds": 61.44, "cpu_seconds": 60.0, "teacher_forwards": 81_920, "records": 81_920},
}
SECOND_BOOK = {**BOOK, "label": "resnet20", "content_digest": "b11c" * 8, "cost": {**BOOK["cost"], "seconds": 30.72}}


# What a name could try: to end an element, run, load, fill in a template, break a table, be a formula.
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{ 7*7 }}`|\n=1+1"


def interval(value, half=0.008):
    return {"value": value, "low": value - half, "high": value + half}


def record(
    arm="supervised / resnet8",
    seed=0,
    *,
    method="supervised",
    accuracy=0.74,
    student="resnet8",
    teachers=(),
    books=(),
    seconds=80.0,
    epochs=20,
    classes=CLASSES,
    **other,
) -> RunRecord:
    """One run that is done, with everything that a record can hold."""
    rng = np.random.default_rng([seed, *arm.encode()])
    accuracy = accuracy + rng.normal(0, 0.003)
    parameters, size, macs, milliseconds = SIZES[student]
    counts = confusion(rng, accuracy, len(classes))
    recalls = [row[place] / sum(row) for place, row in enumerate(counts)]
    values = {
        "arm": arm,
        "seed": seed,
        "status": "done",
        "method": {"name": method},
        "student": {
            "name": student,
            "parameters": parameters,
            "bytes": size,
            "macs": macs,
            "device": "cpu",
            "threads": 1,
            "latency_ms": {
                batch: {"p50": interval(scale * milliseconds, 0.1), "p95": interval(1.3 * scale * milliseconds, 0.2)}
                for batch, scale in (("1", 1.0), ("64", 30.0))
            },
        },
        "data": {"name": "cifar10", "split": "test", "samples": 10_000, "train_samples": 5120, "label_fraction": 1.0},
        "metrics": {
            "accuracy": interval(accuracy),
            "nll": interval(1.62 - accuracy + rng.normal(0, 0.01), 0.02),
            "ece": interval(0.06 + rng.normal(0, 0.004), 0.01),
            **({"agreement": interval(accuracy + 0.05)} if teachers else {}),
        },
        "per_class_recall": tuple(interval(recall, 0.02) for recall in recalls),
        "class_names": classes,
        "calibration": calibration(rng, accuracy),
        "confusion": {"student": counts, **({"teacher": confusion(rng, 0.8953, len(classes))} if teachers else {})},
        "teachers": tuple(teachers),
        "books": tuple(books),
        "learning": {
            "epochs": epochs,
            "epoch": epochs,
            "seconds": seconds + rng.normal(0, 1.5),
            "seconds_per_epoch": seconds / epochs,
            "teacher_forwards": 0 if books or not teachers else 5120 * epochs,
        },
        "environment": {"python": "3.11.7", "torch": "2.14.1", "bookkd": "0.1.0", "threads": 1, "cpus": 2},
        "configuration": {"method": {"name": method, "temperature": 4.0}, "training": {"epochs": epochs, "seed": seed}},
        "curve": curve(rng, accuracy, epochs, method),
        "weights": f"{rng.integers(2**62):016x}" * 2,
    }
    return RunRecord(**{**values, **other})


def confusion(rng, accuracy, n, per_class=1000):
    likes = 0.15 * rng.random((n, n)) ** 4 + np.where(np.eye(n) > 0, 0.0, 0.01)
    np.fill_diagonal(likes, 0)
    rates = likes / likes.sum(1, keepdims=True) * (1 - accuracy) * rng.uniform(0.5, 1.5, (n, 1))
    np.fill_diagonal(rates, 1 - rates.sum(1))
    return np.rint(rates * per_class).astype(int).tolist()


def calibration(rng, accuracy):
    def bins(gap):
        edges = np.linspace(0, 1, 16)
        middle = (edges[:-1] + edges[1:]) / 2
        counts = np.rint(10_000 * middle**3 / (middle**3).sum()).astype(int)
        counts[0] = 0
        return [
            {
                "low": float(low),
                "high": float(high),
                "count": int(count),
                "confidence": float(at) if count else None,
                "accuracy": float(np.clip(at - gap * at, 0, 1)) if count else None,
            }
            for low, high, at, count in zip(edges[:-1], edges[1:], middle, counts, strict=True)
        ]

    return {
        "temperature": 1.4 + rng.normal(0, 0.02),
        "fitted_on": "train, held out",
        "before": bins(0.12),
        "after": bins(0.01),
        "nll_after": 1.55 - accuracy,
        "ece_after": 0.012 + abs(rng.normal(0, 0.001)),
    }


def curve(rng, accuracy, epochs, method):
    lines = []
    for epoch in range(1, epochs + 1):
        done = 1 - np.exp(-4 * epoch / epochs)
        line = {
            "epoch": epoch,
            "step": epoch * 40,
            "seconds": 4.0,
            "lr": 0.1 * (1 - epoch / (epochs + 1)),
            "train/loss": 2.3 - 1.9 * done + rng.normal(0, 0.02),
            "val/accuracy": 0.1 + (accuracy - 0.1) * done + rng.normal(0, 0.004),
            "val/nll": 2.3 - 1.5 * done + rng.normal(0, 0.02),
        }
        if method == "bookkd":
            line |= {
                "train/entropy_scale": 1 + 0.5 * done + rng.normal(0, 0.01),
                "train/book_entropy": 1.1 + rng.normal(0, 0.01),
                "train/student_entropy": 2.2 - 0.9 * done + rng.normal(0, 0.01),
            }
        lines.append(line)
    return tuple(lines)


def failed(arm="crd / resnet8", seed=0, error="DataError: Expected `loss` to be finite, got nan (epoch 3)."):
    return RunRecord(arm=arm, seed=seed, status="failed", method={"name": "crd"}, error=error)


def example(seeds=(0, 1, 2)) -> list[RunRecord]:
    """A comparison with all kinds of arms."""
    found = []
    one, two = {"teachers": [TEACHER]}, {"teachers": [TEACHER, SECOND]}
    for seed in seeds:
        found += [
            record(seed=seed),
            record("vanilla-kd T=4 / resnet8", seed, method="vanilla-kd", accuracy=0.775, books=[BOOK], **one),
            record("vanilla-kd online / resnet8", seed, method="vanilla-kd", accuracy=0.776, seconds=150.0, **one),
            record("dkd / resnet8", seed, method="dkd", accuracy=0.742, books=[BOOK], **one),
            record("bookkd / resnet8", seed, method="bookkd", accuracy=0.781, books=[BOOK, SECOND_BOOK], **two),
            record("supervised / resnet14", seed, student="resnet14", accuracy=0.801, seconds=120.0),
            record(
                "vanilla-kd T=4 / resnet14",
                seed,
                method="vanilla-kd",
                student="resnet14",
                accuracy=0.829,
                seconds=125.0,
                books=[BOOK],
                **one,
            ),
        ]
    return [*found, failed()]


def hostile():
    """A comparison in which every name tries something."""
    found = [
        replace(
            each,
            arm=f"{HOSTILE}{each.arm}",
            class_names=tuple(f"{HOSTILE}{name}" for name in each.class_names),
            teachers=tuple({**teacher, "name": HOSTILE, "lineage": HOSTILE} for teacher in each.teachers),
            books=tuple({**book, "label": HOSTILE} for book in each.books),
            configuration={HOSTILE: HOSTILE},
            environment={HOSTILE: HOSTILE},
            weights=HOSTILE,
            student={**each.student, "name": HOSTILE} if each.student else {},
            data={**each.data, "name": HOSTILE} if each.data else {},
        )
        for each in example(seeds=(0, 1))
    ]
    return [*found, replace(failed(), error=HOSTILE)]


def sweep(runs=100) -> list[RunRecord]:
    """Many arms of three seeds, as a sweep over temperatures and weights leaves them."""
    found = [record(seed=seed) for seed in range(3)]
    point = 0
    while len(found) < runs:
        student = ("resnet8", "resnet14")[point % 2]
        method = ("vanilla-kd", "bookkd", "dkd")[point % 3]
        arm = f"{method} T={1 + point // 4} kd_weight=0.{1 + point % 9} #{point} / {student}"
        accuracy = 0.75 + 0.002 * (point % 13) + 0.05 * (point % 2)
        found += [
            record(
                arm,
                seed,
                method=method,
                student=student,
                accuracy=accuracy,
                teachers=[TEACHER],
                books=[BOOK],
                epochs=200,
            )
            for seed in range(3)
        ]
        point += 1
    return found[:runs]


def as_found(records) -> tuple[FoundRun, ...]:
    return tuple(FoundRun(f"runs/{place:03}", each) for place, each in enumerate(records))


def save(records, folder: Path) -> Path:
    for place, each in enumerate(records):
        each.save(folder / f"run-{place}")
    return folder
