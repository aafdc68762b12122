"""The program on masks: a teacher from labels to a book, students of it, their measures, a comparison and its pictures."""

from __future__ import annotations

import json

import pytest
from tests.cli.test_speech import run

from bookkd.book import Book
from bookkd.report import RunRecord

HERE = [
    "--training.accelerator",
    "cpu",
    "--training.batch_size",
    "8",
    "--training.optimizer",
    "adamw",
    "--training.lr",
    "0.02",
]
SHAPES = {"n": 16, "height": 16, "width": 24}
DATA = ["--data", "shapes", "--data.args", json.dumps(SHAPES), "--task", "segmentation"]
VIEWS = ["--views", "mask-affine", "--views.n_views", 2]


def network(role, name, width):
    return [f"--{role}", name, f"--{role}.args", json.dumps({"width": width, "stages": 2})]


def test_segmentation_by_commands(tmp_path, capsys):
    big, small = network("teacher", "unet-large", 6), network("student", "unet-small", 4)
    taught = run(
        capsys, "learn", "--method", "supervised", *network("student", "unet-large", 6), *DATA, *VIEWS, "--out", tmp_path / "t",
        "--training.epochs", 4, *HERE,
    )  # fmt: skip
    big += ["--teacher.weights", taught["weights"]]
    losses = [json.loads(line)["val/nll"] for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    grid = ["--task.args", '{"stride": 4, "grid": "pick"}']
    run(
        capsys, "make", *big, *DATA, *grid, *VIEWS, "--codec", "int8", "--held_out", "test", "--out", tmp_path / "book",
        "--accelerator", "cpu",
    )  # fmt: skip
    book = Book(tmp_path / "book")
    assert book.plan.teachers[0].accuracy == pytest.approx(taught["metrics"]["miou"])
    assert (book.plan.task, book.plan.class_names[0], book.fields["logits"].positions) == (
        "segmentation",
        "background",
        24,
    )
    shard = next((tmp_path / "book").glob("view-0001/*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20] + bytes([whole[-20] ^ 4]) + whole[-19:])
    run(capsys, "repair", tmp_path / "book", *DATA[:4], *big, "--accelerator", "cpu")
    assert shard.read_bytes() == whole
    # The book says the grid.
    learned = run(
        capsys, "learn", tmp_path / "book", *small, *DATA, "--out", tmp_path / "s", "--training.epochs", 1, *HERE
    )
    assert learned["teacher_forwards"] == 0
    measured = run(
        capsys, "evaluate", *small, "--student.weights", learned["weights"], *DATA, "--data.split", "test", *big, *grid,
        "--accelerator", "cpu", "--latency", "false",
    )  # fmt: skip
    assert measured["metrics"]["miou"]["value"] == pytest.approx(learned["metrics"]["miou"], rel=1e-6)
    assert measured["metrics"]["miou"]["low"] <= measured["metrics"]["miou"]["value"]
    assert {"agreement", "teacher_kl", "boundary_f1", "ece"} <= set(measured["metrics"])
    assert len(measured["per_class"]["iou"]) == 4
    sweep = {
        "data": {"name": "shapes", "args": SHAPES},
        "task": "segmentation",
        "students": [{"name": "unet-small", "args": {"width": 4, "stages": 2}}],
        "books": [str(tmp_path / "book")],
        "teachers": [{"name": "unet-large", "args": {"width": 6, "stages": 2}, "weights": taught["weights"]}],
        "methods": ["supervised", "vanilla-kd"],
        "training": {"epochs": 1, "batch_size": 8, "accelerator": "cpu"},
        "replicates": 20,
        "latency": False,
    }
    (tmp_path / "sweep.json").write_text(json.dumps(sweep), encoding="utf-8")
    run(capsys, "compare", tmp_path / "sweep.json", "--out", tmp_path / "c", "--seeds", 1)
    records = [RunRecord.load(path.parent) for path in sorted((tmp_path / "c").rglob("record.json"))]
    assert [record.error for record in records] == [""] * len(records)
    assert {len(record.pictures["samples"]) for record in records} == {4}
    page = tmp_path / "report.html"
    run(capsys, "report", tmp_path / "c", "--out", page)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 4 * (2 + 1 + len({record.arm for record in records}))
