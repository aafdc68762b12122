"""Ctrl-C while making and learning: the same command goes on, and ends in what an uninterrupted one gives.

Kill -9 at the same places stands in tests/making and tests/learning.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import DATA, TEACHER

from bookkd.book import Book, verify

TRAIN = [
    "--training.epochs",
    "6",
    "--training.batch_size",
    "16",
    "--training.checkpoint_steps",
    "4",
    "--training.accelerator",
    "cpu",
]


def start(argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bookkd", *argv],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A runner in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(argv: list[str]) -> None:
    process = start(argv)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err


def stop_when(argv: list[str], seen) -> tuple[int, str]:
    """Start, wait until `seen()`, press Ctrl-C, and return the exit code and stderr."""
    process = start(argv)
    deadline = time.monotonic() + 90
    while not seen():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    return process.returncode, err


def make_argv(weights: Path, out: Path) -> list[str]:
    views = ["--views", "digits", "--views.n_views", "60"]
    units = ["--unit_rows", "32", "--batch_size", "32", "--accelerator", "cpu"]
    return ["make", *DATA, *TEACHER, "--teacher.weights", str(weights), *views, *units, "--out", str(out)]


def learn_argv(book: Path, out: Path) -> list[str]:
    return ["learn", str(book), *DATA, "--student", "digits-small", *TRAIN, "--validate_on", "", "--out", str(out)]


@pytest.fixture(scope="module")
def whole_book(weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "book"
    finish(make_argv(weights, out))
    return out


@pytest.fixture(scope="module")
def whole_run(made, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(learn_argv(made, out))
    return out


def test_making_goes_on(weights, whole_book, tmp_path):
    out = tmp_path / "book"
    code, err = stop_when(make_argv(weights, out), lambda: len(list(out.glob("view-*/*.json"))) >= 20)
    assert not list(out.glob("edition-*.json"))
    assert code == 130
    assert "run the same command again to go on" in err
    kept = {path: path.stat().st_mtime_ns for path in out.glob("view-*/*.json")}
    finish(make_argv(weights, out))
    assert verify(out) == []
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items()), "finished units were written again"
    assert Book(out).content_digest == Book(whole_book).content_digest


def test_learning_goes_on(made, whole_run, tmp_path):
    out = tmp_path / "run"
    stop_when(learn_argv(made, out), lambda: (out / "checkpoints" / "last.ckpt").exists())
    assert not (out / "result.json").exists()
    finish(learn_argv(made, out))
    assert (out / "student.safetensors").read_bytes() == (whole_run / "student.safetensors").read_bytes()
