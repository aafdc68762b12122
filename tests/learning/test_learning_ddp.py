"""Two processes learn what one process with the doubled batch learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.learning.digits import book

from bookkd.cli import main

MINE = '''
import json, os
from dataclasses import dataclass
from torch import nn
from bookkd.methods import VanillaKD
from bookkd.objectives import Objective, masked


def plain_student(*, n_classes):
    """A student of a user's own, without BatchNorm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_classes))


def convolutions(*, n_classes):
    """Likewise, with a layer that can have gates."""
    layers = [nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, n_classes)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Logging(VanillaKD):
    """A method of a user's own: writes down what it learns from.

    Args:
        log: File that gets one line for each batch.
    """

    log: str = ""

    def objective(self, task):
        terms = super().objective(task).terms
        return Objective((*terms[:-1], masked(terms[-1], Written(self.log))))


@dataclass(frozen=True)
class Written:
    path: str

    def __call__(self, batch):
        rows = zip(batch["sample"].tolist(), batch["view"].tolist(), batch["weight"].tolist())
        with open(f"{self.path}.{os.environ.get('LOCAL_RANK', '0')}", "a") as file:
            file.write(json.dumps([row for row in rows if row[2] > 0]) + "\\n")
        return batch["weight"] > 0
'''


def steps_of(path):
    """Return the batches that a rank learnt from, in order; each is written twice, once for the totals of its step."""
    lines = [tuple(map(tuple, json.loads(line))) for line in path.read_text().splitlines()]
    return list(dict.fromkeys(lines))


def in_two_processes(folder, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bookkd", *arguments, "--training.devices", "2"],
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_are_one_with_the_doubled_batch(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    stored = book(tmp_path / "book").path
    common = ["learn", str(stored), "--student", "mine:plain_student", "--method", "mine:Logging", "--data", "digits"]
    common += ["--data.limit", "60", "--training.epochs", "2", "--training.lr", "0.05", "--training.accelerator", "cpu"]
    common += [
        "--training.accumulate",
        "2",
        "--training.clip_norm",
        "0.5",
        "--training.checkpoint_steps",
        "1",
        "--json",
    ]
    two = ["--out", str(tmp_path / "two"), "--method.log", str(tmp_path / "log2"), "--training.batch_size", "8"]
    done = in_two_processes(tmp_path, [*common, *two])
    (line,) = done.stdout.splitlines()
    one = ["--out", str(tmp_path / "one"), "--method.log", str(tmp_path / "log1"), "--training.batch_size", "16"]
    assert main([*common, *one]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])

    ranks = [steps_of(tmp_path / f"log2.{rank}") for rank in (0, 1)]
    whole = steps_of(tmp_path / "log1.0")
    assert len(whole) == len(ranks[0]) == len(ranks[1]) == 8
    for mine, theirs, both in zip(*ranks, whole, strict=True):
        assert not set(mine) & set(theirs)
        assert {*mine, *theirs} == set(both)
    assert len({pair for batch in whole for pair in batch}) == 120

    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-6)
    records = [
        [json.loads(text) for text in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for here, there in zip(*records, strict=True):
        assert {**here, "seconds": 0} == pytest.approx({**there, "seconds": 0}, rel=1e-5)
    result = json.loads(line)
    assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    assert result["epochs"] == 2
    assert result["teacher_forwards"] == 0


def test_gates_are_those_of_one_process_and_what_is_idle_keeps_none_waiting(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    stored = str(book(tmp_path / "book", serve=["ab"]).path)
    common = ["learn", stored, "--data", "digits", "--data.limit", "60", "--training.epochs", "2", "--json"]
    common += ["--training.lr", "0.05", "--training.accelerator", "cpu"]
    vam = ["--student", "mine:convolutions", "--method", "vam", "--method.gate_lr", "50"]
    one, two = (
        ["--out", str(tmp_path / name), "--training.batch_size", str(size)] for name, size in (("1", 16), ("2", 8))
    )
    assert main([*common, *vam, *one]) == 0
    in_two_processes(tmp_path, [*common, *vam, *two])
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("1", "2")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    tables = [json.loads((tmp_path / name / "shaping.json").read_text())["gates"]["tables"] for name in ("1", "2")]
    assert tables[0][0]["entropy"] == pytest.approx(tables[1][0]["entropy"], abs=1e-5)
    assert tables[0][0]["spread"] < 0.9999, "they have not moved"

    ab = ["--student", "digits-small", "--method", "ab", "--method.begin_epochs", "1", "--out", str(tmp_path / "ab")]
    in_two_processes(tmp_path, [*common, *ab, "--training.batch_size", "8"])
    first, second = map(json.loads, (tmp_path / "ab" / "metrics.jsonl").read_text().splitlines())
    assert any(key.startswith("train/boundary/") for key in first)
    assert {key for key in second if key.startswith("train/")} == {"train/cross_entropy", "train/loss"}
