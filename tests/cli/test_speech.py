"""The program on speech: a recogniser of spoken digits from labels to a book, a student and its measures."""

from __future__ import annotations

import json

import pytest
from tests.zoo.tones import write_recordings

from bookkd.book import Book
from bookkd.cli import main

SHAPE = {"n_features": 40, "subsampling": 3, "layers": 1}
TRAINING = [
    "--training.accelerator",
    "cpu",
    "--training.optimizer",
    "adamw",
    "--training.lr",
    "0.02",
    "--training.batch_size",
    "8",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("digits"))


def run(capsys, *arguments):
    status = main([*map(str, arguments), "--json"])
    out = capsys.readouterr()
    assert status in (0, None), out.err
    return json.loads(out.out)


def network(role, width):
    return [f"--{role}", "bookkd.zoo:AcousticModel", f"--{role}.args", json.dumps({**SHAPE, "width": width})]


def test_a_recogniser_by_commands(tmp_path, root, capsys):
    how = {"symbols": "words", "n_strings": 24, "held_out": ["cy"], "subsampling": 3, "longest": 3}
    data = ["--data", "spoken-digits", "--data.root", root, "--data.args", json.dumps(how)]
    views = [
        "--views",
        "spec-augment",
        "--views.args",
        json.dumps({"time_masks": 1, "band_masks": 1}),
        "--views.n_views",
        2,
    ]
    taught = run(
        capsys, "learn", "--method", "supervised", *network("student", 32), *data, *views, "--task", "ctc", "--out", tmp_path / "t",
        "--training.epochs", 4, *TRAINING,
    )  # fmt: skip
    epochs = [json.loads(line)["val/nll"] for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert taught["metrics"]["nll"] == epochs[-1] < 0.95 * epochs[0]
    run(
        capsys, "make", *network("teacher", 32), "--teacher.weights", taught["weights"], *data, *views, "--task", "ctc",
        "--codec", "argmax", "--out", tmp_path / "book", "--held_out", "test", "--accelerator", "cpu",
    )  # fmt: skip
    plan = Book(tmp_path / "book").plan
    assert plan.teachers[0].accuracy == pytest.approx(taught["metrics"]["accuracy"])
    assert (plan.task, plan.class_names[:2]) == ("ctc", ("<blank>", "zero"))
    learned = run(
        capsys, "learn", tmp_path / "book", *network("student", 12), *data, "--method", "ctc-kd", "--method.form", "guided",
        "--out", tmp_path / "s", "--training.epochs", 2, *TRAINING,
    )  # fmt: skip
    assert learned["teacher_forwards"] == 0
    measured = run(
        capsys, "evaluate", *network("student", 12), "--student.weights", learned["weights"], *data, "--task", "ctc",
        *network("teacher", 32), "--teacher.weights", taught["weights"], "--accelerator", "cpu", "--latency", "false",
    )  # fmt: skip
    assert measured["metrics"]["wer"]["value"] == pytest.approx(learned["metrics"]["wer"], rel=1e-6)
    assert 0 <= measured["metrics"]["agreement"]["value"] <= 1
    # A student of half the frames, by options of the task.
    half = [word.replace('"subsampling": 3', '"subsampling": 6') for word in network("student", 12)]
    frames = ["--task", "ctc", "--task.args", json.dumps({"subsampling": 6, "teacher_subsampling": 3})]
    options = [*half, *data, *frames, "--method", "ctc-kd", "--method.form", "guided", *TRAINING]
    coarse = run(capsys, "learn", tmp_path / "book", *options, "--out", tmp_path / "h", "--training.epochs", 1)
    assert json.loads((tmp_path / "h" / "options.json").read_text())["task_args"]["teacher_subsampling"] == 3
    measured = run(
        capsys, "evaluate", *half, "--student.weights", coarse["weights"], *data, *frames, *network("teacher", 32),
        "--teacher.weights", taught["weights"], "--accelerator", "cpu", "--latency", "false", "--replicates", 0,
    )  # fmt: skip
    assert measured["metrics"]["teacher_kl"]["value"] > 0
    run(
        capsys, "make", *network("teacher", 32), "--teacher.weights", taught["weights"], *data, "--data.split", "test", "--task", "ctc",
        "--codec", "dense", "--codec.dtype", "float32", "--out", tmp_path / "beside", "--accelerator", "cpu",
    )  # fmt: skip
    stored = run(
        capsys, "evaluate", *half, "--student.weights", coarse["weights"], *data, *frames, "--book", tmp_path / "beside",
        "--accelerator", "cpu", "--latency", "false", "--replicates", 0,
    )  # fmt: skip
    for name in ("agreement", "teacher_kl"):
        assert stored["metrics"][name]["value"] == pytest.approx(measured["metrics"][name]["value"], rel=1e-3)
    wrong = [*options[: -len(TRAINING)], "--task.args", json.dumps({"teacher_subsamplin": 2}), "--out", tmp_path / "x"]
    assert main(["learn", str(tmp_path / "book"), *map(str, wrong)]) not in (0, None)
    assert "Unknown option 'teacher_subsamplin' (task ctc). Nearest: teacher_subsampling" in capsys.readouterr().err


def test_data_of_another_task_are_refused(tmp_path, root, capsys):
    status = main(
        ["make", "--data", "digits", "--task", "ctc", "--teacher", "digits-small", "--out", str(tmp_path / "b")]
    )
    assert status not in (0, None)
    assert "Expected `data` to be speech with transcripts" in capsys.readouterr().err
