"""`bookkd compare` on the command line: a sweep from YAML and flags, its output, exit codes, Ctrl-C, errors in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import yaml
from tests.cli.conftest import DATA

from bookkd.cli import main
from bookkd.cli.compare import _told
from bookkd.core.errors import ConfigError
from bookkd.evaluation import difference_of
from bookkd.report import find_runs

QUICK = ["--training.epochs", "1", "--training.batch_size", "16", "--training.accelerator", "cpu"]
SMALL = ["--students", "digits-small", *DATA, *QUICK, "--replicates", "10", "--latency", "false"]
FAILS = "tests.pipelines.compare_parts:fragile"


@pytest.fixture
def sweep(made, tmp_path):
    path = tmp_path / "sweep.yaml"
    document = {
        "data": {"name": "digits", "limit": 96},
        "students": ["digits-small"],
        "methods": ["supervised", {"name": "vanilla-kd", "options": {"temperature": 2}}],
        "books": {"large": str(made)},
        "training": {"epochs": 1, "batch_size": 16, "accelerator": "cpu"},
        "seeds": [0, 1],
        "replicates": 10,
        "latency": False,
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_options_of_a_task_and_the_beam(monkeypatch, tmp_path):
    """By flags, by the file, and by a flag over the file."""
    seen = []

    def noted(sweep, *given, **options):
        seen.append((sweep.task, dict(sweep.task_args), sweep.beam))
        raise ConfigError("Enough.")

    monkeypatch.setattr("bookkd.cli.compare.run_sweep", noted)
    path, args = tmp_path / "sweep.yaml", {"subsampling": 4}
    path.write_text(yaml.safe_dump({"task": "ctc", "beam": 4, "students": ["a"], "methods": ["supervised"]}))
    more = ["--students", "a", "--methods", "supervised"]
    for words in (["--task", "ctc", *more], [str(path)], [str(path), "--task.args", json.dumps(args), "--beam=0"]):
        assert main(["compare", *words]) not in (0, None)
    assert seen == [("ctc", {}, 1), ("ctc", {}, 4), ("ctc", args, 0)]


def test_a_sweep_from_yaml_and_again(sweep, tmp_path, last_json, capsys):
    out = tmp_path / "runs"
    assert main(["compare", str(sweep), "--out", str(out), "--json"]) == 0
    found = last_json()
    assert [row["arm"] for row in found["arms"]] == [
        "supervised / digits-small",
        "vanilla-kd temperature=2 / digits-small / large",
    ]
    assert found == json.loads((out / "summary.json").read_text())
    assert len(find_runs([out])) == 4
    # For a person, all done already: the table on stdout, progress on stderr.
    assert main(["compare", "--config", str(sweep), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "4 of 4 runs are done already" in printed.err
    assert "4 of 4" not in printed.out
    assert "vanilla-kd temperature=2" in printed.out
    assert "supervised / digits-small" in printed.out
    assert "Books made once: 192 teacher passes" in printed.out


def test_flags_win_over_the_file(sweep, tmp_path, last_json):
    flags = [
        "--seeds",
        "1",
        "--methods",
        "supervised",
        "--training.lr",
        "0.01",
        "--out",
        str(tmp_path / "runs"),
        "--json",
    ]
    assert main(["compare", str(sweep), *flags]) == 0
    found = last_json()
    assert [row["seeds"] for row in found["arms"]] == [[0]]
    (run,) = find_runs([tmp_path / "runs"])
    assert run.record.configuration["training"]["lr"] == 0.01
    assert run.record.configuration["training"]["epochs"] == 1
    assert run.record.configuration["data"]["limit"] == 96


def test_flags_alone_and_the_preset(made, tmp_path, last_json, capsys):
    out = ["--out", str(tmp_path / "runs")]
    assert main(["compare", "--preset", "ablation", "--books", str(made), "--seeds", "1", *SMALL, *out, "--json"]) == 0
    assert {row["without"] for row in last_json()["ablation"]} >= {"regularisation", "entropy scale", "label smoothing"}
    assert main(["compare", "--preset", "ablation", "--books", str(made), "--seeds", "1", *SMALL, *out]) == 0
    assert "What each part gives" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--data", "digits-pairs"], ["--data=digits-pairs"]])
def test_a_name_beside_keys_of_the_same_part(tmp_path, refused, words):
    """Both arrive: the data set is that of the name, and the split that of the key."""
    given = [*words, "--data.split", "nowhere", "--students", "digits-small", "--methods", "supervised"]
    said = refused(main(["compare", *given, "--out", str(tmp_path / "runs")]))
    assert "digits-pairs" in said
    assert "nowhere" in said


def test_a_run_that_fails_is_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BOOKKD_TEST_BREAK", "raise")
    words = ["compare", "--methods", "supervised", "--seeds", "1", *SMALL, "--students", f"digits-small,{FAILS}"]
    assert main([*words, "--out", str(tmp_path)]) == 1
    assert f"Failed: supervised / {FAILS}, seed 0: RuntimeError: the network broke" in capsys.readouterr().out


def test_ctrl_c_leaves_a_sweep_that_goes_on(sweep, tmp_path, capsys):
    out = tmp_path / "runs"
    slow = ["--training.epochs", "16", "--training.checkpoint_steps", "2", "--seeds", "1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bookkd", "compare", str(sweep), *slow],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while not list(out.rglob("last.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted; run the same command again to go on" in error
    assert "Traceback" not in error
    # What was interrupted is no failure.
    assert not list(out.rglob("record.json"))
    assert main(["compare", str(sweep), *slow]) == 0
    assert "[2/2]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mine", "theirs", "lower", "words"),
    [
        ((0.9, 0.91, 0.92), {0: 0.5, 1: 0.52, 2: 0.51}, False, "better"),
        ((0.9, 0.91, 0.92), {0: 0.5, 1: 0.52, 2: 0.51}, True, "worse"),
        ((0.9, 0.91, 0.92), {7: 0.5, 8: 0.52, 9: 0.51}, False, "better, seeds not paired"),
        ((0.5, 0.9, 0.1), {7: 0.5, 8: 0.52, 9: 0.51}, False, "noise, seeds not paired"),
        ((0.5,), {0: 0.4}, False, "one seed"),
    ],
)
def test_a_verdict_in_a_word(mine, theirs, lower, words):
    assert _told(asdict(difference_of(dict(enumerate(mine)), theirs, "x", lower_is_better=lower))) == words


def test_tuning_on_the_command_line(sweep, tmp_path, last_json, capsys):
    pytest.importorskip("optuna")
    words = ["compare", str(sweep), "--out", str(tmp_path / "runs"), "--seeds", "1", "--trials", "3"]
    assert main([*words, "--tune", "method.temperature=1:20", "--json"]) == 0
    found = last_json()["tuned"]
    assert [len(each["trials"]) for each in found] == [3]
    assert main([*words, "--tune", "method.temperature=1:20"]) == 0
    assert "Tuned vanilla-kd temperature=2 / digits-small / large" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Expected `students` to be at least one"),
        (["nowhere.yaml"], "Expected the sweep to be a readable YAML file, got 'nowhere.yaml'"),
        (["--config", "nowhere.yaml"], "Expected the sweep to be a readable YAML file, got 'nowhere.yaml'"),
        (["--studens", "resnet8"], "Unknown option --studens of bookkd compare. Nearest: --students"),
        ([*SMALL, "--methods", "vanila-kd"], "Unknown method 'vanila-kd'. Nearest: vanilla-kd"),
        ([*SMALL, "--methods", "vanilla-kd"], "Expected `books` to be one for method vanilla-kd to learn from"),
        ([*SMALL, "--methods", "supervised", "--jobs", "0"], "Expected `jobs` to be a whole number of at least 1"),
        (
            [*SMALL, "--methods", "supervised", "--training.epoch", "3"],
            "Unknown key 'epoch' of training. Nearest: epochs",
        ),
        ([*SMALL, "--methods", "supervised", "--preset", "abl"], "Unknown preset 'abl'. Nearest: ablation"),
        ([*SMALL, "--methods", "supervised", "--validation", "test"], "The test split is for the report alone"),
        ([*SMALL, "--methods", "supervised", "--baseline", "x"], "Unknown arm 'x'"),
        ([*SMALL, "--methods", "supervised", "--tune", "training.lr"], "Expected `tune` to be OPTION=LOW:HIGH"),
        ([*SMALL, "--methods", "supervised", "--tune", "method.temperature=1:9"], "method.temperature"),
        (
            [*SMALL, "--methods", "supervised", "--tune", "training.lr=0.1:1", "--validation_fraction", "0"],
            "Expected `validation_fraction` to be above 0 where options are tuned",
        ),
        (
            [*SMALL, "--methods", "supervised", "--tune", "training.lr=0.1:1", "--trials", "0"],
            "Expected `trials` to be a whole number of at least 1",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, refused, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert re.search(re.escape(message), refused(main(["compare", *words])))
