"""A teacher and a book that the tests of the command line share; tests that damage a book copy it first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from bookkd.cli import main
from bookkd.zoo import create_network, save_weights

DATA = ["--data", "digits", "--data.limit", "96"]
TEACHER = ["--teacher", "digits-large"]
VIEWS = ["--views", "digits", "--views.n_views", "2"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    torch.default_generator.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(create_network("digits-large", n_classes=10), path)
    return path


@pytest.fixture(scope="session")
def made(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("books") / "book"
    assert make(weights, path) == 0
    return path


@pytest.fixture
def book(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "book"))


def make(weights: Path, out: Path, *more: str) -> int:
    return main(
        [
            "make",
            *DATA,
            *TEACHER,
            "--teacher.weights",
            str(weights),
            *VIEWS,
            "--batch_size",
            "32",
            "--out",
            str(out),
            *more,
        ]
    )


def learn(book: Path, out: Path, *more: str) -> int:
    quick = [
        "--training.epochs",
        "1",
        "--training.batch_size",
        "32",
        "--training.accelerator",
        "cpu",
        "--loggers",
        "[]",
    ]
    return main(
        ["learn", str(book), *DATA, "--student", "digits-small", *quick, "--validate_on", "", "--out", str(out), *more]
    )


@pytest.fixture
def refused(capsys):
    """Check that a call failed with exit code 2 and one line on stderr; return that line."""

    def check(code: int) -> str:
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("bookkd: error:")]
        assert code == 2, captured
        assert len(lines) == 1, captured.err
        assert "Traceback" not in captured.err
        return lines[0]

    return check


@pytest.fixture
def last_json(capsys):
    def parse() -> dict:
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return parse
