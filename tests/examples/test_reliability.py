"""The page of reliability is what its script writes, and every experiment runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults import page, run

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_script_writes():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_every_experiment_was_kept_whole_and_found_nothing_wrong():
    kept = page.kept()
    assert set(kept) == set(run.EXPERIMENTS)
    for name, result in kept.items():
        assert result["share"] == 1, name
        assert run._wrong(result) == [], name
    kills = kept["kills"]["found"]
    assert sum(work["random"]["killed"] for name, work in kills.items() if name.startswith("making")) == 200
    assert all(work["random"]["killed"] == 50 for name, work in kills.items() if not name.startswith("making"))
    assert kept["damage"]["found"]["faults"] == 10_000
    assert kept["fuzzing"]["found"]["seconds"] >= 1800


def test_a_finding_is_shown_and_ends_in_an_error():
    assert "**1 found:**" in page.findings(["view-0000: lost"], "nothing")
    assert "2 more" in page.findings([str(line) for line in range(12)], "nothing")
    assert run._wrong({"a": {"wrong": ["x"], "b": {"wrong": ["y"]}}, "wrong": []}) == ["x", "y"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize(("name", "share"), [("kills", "0.01"), ("damage", "0.01")])
def test_an_experiment_runs(tmp_path, name, share):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / "faults" / "run.py",
            name,
            "--share",
            share,
            "--out",
            tmp_path / "found.json",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "found.json").read_text())[name]["found"]
