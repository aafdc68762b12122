"""The page of results: as its script prints it, and its intervals are those of the seeds that stand behind them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bookkd.evaluation import difference_of

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
SWEEPS = [path for path in KEPT if "arms" in json.loads(path.read_text())]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as of a script that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_the_page_is_what_the_script_writes(script):
    assert {path.stem for path in SWEEPS} <= {name.replace("/", "-") for name in script.SECTIONS}
    assert {path.name for path in KEPT if path not in SWEEPS} <= {script.CLASSES, script.GATES, script.CAMVID}
    assert (ROOT / "docs" / "results.md").read_text() == script.page()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_gains_and_intervals_are_those_of_the_seeds(script, path):
    found = json.loads(path.read_text())
    base = next(arm for arm in found["arms"] if "supervised" in arm["arm"])
    others = [arm for arm in found["arms"] if arm is not base]
    assert len(others) >= 3
    for arm in others:
        theirs, mine = base["accuracy"]["by_seed"], arm["accuracy"]["by_seed"]
        assert sorted(mine) == sorted(theirs)
        gains = 100 * np.array([mine[seed] - theirs[seed] for seed in mine])
        half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
        low, high = gains.mean() - half, gains.mean() + half
        difference = script.to_labels_only(found, arm)
        apart = high - low > 1e-6
        interval = f" ({low:+.2f} to {high:+.2f})" if apart else ""  # equal gains say nothing about noise
        assert script.points(difference) == f"{gains.mean():+.2f}{interval}"
        certain = low > 0 and apart
        assert (script.verdict(difference) == "more than the noise") == certain


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_costs_each_teacher_once(path):
    """Teacher passes are samples x views x teachers, whatever the number of students."""
    ledger = json.loads(path.read_text())["ledger"]
    assert ledger["students"] >= 4
    assert ledger["learning_teacher_forwards"] == 0
    assert sum(book["teacher_forwards"] for book in ledger["books"]) == sum(
        book["samples"] * book["views"] for book in ledger["books"]
    )


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [
        ([0.020, 0.022, 0.021], "more than the noise"),
        ([0.001, 0.040, -0.010], "inside the noise"),
        ([-0.001, -0.040, 0.010], "did not appear"),
        ([-0.020, -0.022, -0.021], "worse by more than the noise"),
        ([0.0419, 0.0419, 0.0419], "the same in every seed, which says nothing about noise"),
    ],
)
def test_verdicts(script, gains, wanted):
    assert script.verdict(difference_of(dict(enumerate(gains)), dict.fromkeys(range(3), 0.0), "other")) == wanted
