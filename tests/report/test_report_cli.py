"""`bookkd report`, and verbs that take several places."""

from __future__ import annotations

import csv
import json

import pytest
from tests.report.records import example, failed, save

from bookkd.cli import main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Called like the argument itself, which once made it disappear.
    return save(example(seeds=(0, 1)), tmp_path / "runs").relative_to(tmp_path)


def arms(path):
    return [line["arm"] for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines())]


def test_a_page_and_what_it_says(runs, tmp_path, capsys):
    assert main(["report", str(runs), "-o", "report.html", "--title", "Ours"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>Ours</title>" in text
    out = capsys.readouterr().out
    assert "14 runs in 8 arms on cifar10 (test, 10,000 samples); 1 run failed." in out
    assert "Failed runs are in no mean" in out
    assert "Wrote report.html, " in out


def test_the_result_as_json(runs, tmp_path, capsys):
    assert main(["report", str(runs), "--format", "json", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary, cautions = found.pop("summary"), found.pop("cautions")
    size = (tmp_path / "report.json").stat().st_size
    assert found == {"out": "report.json", "format": "json", "bytes": size, "runs": 15, "failed": 1, "arms": 8}
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (written["summary"], written["cautions"]) == (summary, cautions)


def test_several_places(runs, tmp_path):
    assert main(["report", str(runs / "run-0"), str(runs / "run-1"), "--out", "two.csv"]) == 0
    assert len(arms(tmp_path / "two.csv")) == 2


@pytest.mark.parametrize("given", ["[runs/run-0, runs/run-1]", "runs"])
def test_places_from_a_file(runs, tmp_path, given):
    (tmp_path / "report.yaml").write_text(f"runs: {given}\nout: arms.csv\n")
    assert main(["report", "--config", "report.yaml"]) == 0
    assert len(arms(tmp_path / "arms.csv")) == (2 if "[" in given else 8)


def test_places_on_the_line_win(runs, tmp_path):
    (tmp_path / "report.yaml").write_text("runs: [runs/run-0, runs/run-1]\nout: arms.csv\n")
    assert main(["report", "--config", "report.yaml", str(runs / "run-2")]) == 0
    assert arms(tmp_path / "arms.csv") == ["vanilla-kd online / resnet8"]


def test_a_baseline(runs, tmp_path):
    assert main(["report", str(runs), "--baseline", "dkd / resnet8", "-o", "arms.csv"]) == 0
    lines = csv.DictReader((tmp_path / "arms.csv").read_text(encoding="utf-8").splitlines())
    assert {line["baseline"] for line in lines} == {"", "dkd / resnet8"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: runs"),
        (["runs", "--baseline", "dkd"], "Unknown arm 'dkd' (--baseline). Nearest: dkd / resnet8"),
        (["nowhere"], "Expected `run` to be a folder with record.json, got 'none' (nowhere)"),
        (["runs", "--format", "pdf"], "pdf"),
        (["runs", "-o", "runs"], "Expected runs to be writable, got: Is a directory."),
    ],
)
def test_errors_are_one_line(runs, words, said, capsys):
    assert main(["report", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_runs_that_were_killed_are_refused(runs, tmp_path, capsys):
    (tmp_path / "runs" / "run-3" / "record.json").rename(tmp_path / "runs" / "run-3" / "config.json")
    assert main(["report", str(runs)]) == 2
    assert "got 1 of 15 without a readable record. The first: " in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_only_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    failed().save(tmp_path / "run")
    assert main(["report", "run", "--format", "md"]) == 0
    assert "No run has an accuracy." in capsys.readouterr().out
