"""The program makes a book on S3 and learns from it as from a folder."""

from __future__ import annotations

import json
from pathlib import Path

from bookkd.cli import main
from bookkd.zoo import create_network, save_weights

DATA = ["--data", "digits", "--data.limit", "90"]
TRAIN = ["--training.epochs", "1", "--training.batch_size", "32", "--training.accelerator", "cpu", "--loggers", "[]"]


def run(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_made_there_and_learnt_from(shelf, tmp_path, capsys, monkeypatch):
    save_weights(create_network("digits-small", n_classes=10), tmp_path / "teacher.safetensors")
    teacher = ["--teacher", "digits-small", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
    views = ["--views", "digits", "--views.n_views", "2", "--batch_size", "40", "--unit_rows", "40"]
    books = {
        place: run(capsys, "make", *DATA, *teacher, *views, "--out", place) for place in (shelf, str(tmp_path / "here"))
    }
    assert list(books) == [made["path"] for made in books.values()]
    assert len({made["content_digest"] for made in books.values()}) == 1

    def learnt(name, book):
        out = ["--validate_on", "", "--out", str(tmp_path / name)]
        return Path(
            run(capsys, "learn", book, *DATA, "--student", "digits-small", *TRAIN, *out)["weights"]
        ).read_bytes()

    here = learnt("run-here", str(tmp_path / "here"))
    assert learnt("run-cached", shelf) == here
    monkeypatch.setenv("BOOKKD_CACHE", "none")
    assert learnt("run-streamed", shelf) == here
