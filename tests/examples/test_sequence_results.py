"""The page of results on sequences: as its script writes it, intervals as scipy has them, and runs of other options never among them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bookkd.evaluation import lower_is_better

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "benchmarks" / "results" / "sequences").glob("*.json"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load("sequence_results")


def test_the_page_is_what_the_script_writes(script):
    assert {path.stem for path in KEPT} <= set(script.SECTIONS)
    assert (ROOT / "docs" / "results-sequences.md").read_text() == script.page()


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_differences_are_those_of_the_seeds(script, path):
    section, found = script.SECTIONS[path.stem], json.loads(path.read_text())
    arms, column = script.arms_of(found["runs"]), section.columns[0]
    table = script.table(found, section)
    for arm in arms:
        if arm in ("teacher", section.base):
            continue
        mine, theirs = (script.figures(arms[each], column.name) for each in (arm, section.base))
        gains = column.factor * np.array([mine[seed] - theirs[seed] for seed in sorted(mine)])
        line = next(line for line in table.splitlines() if line.startswith(f"| {arm} |"))
        assert f"{gains.mean():+.{column.digits}f}" in line
        if len(gains) > 1:
            half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
            low, high = gains.mean() - half, gains.mean() + half
            assert f"({low:+.{column.digits}f} to {high:+.{column.digits}f})" in line
            assert ("**" in line) == (low > 0 or high < 0)
    assert lower_is_better(column.name) or column.name in ("accuracy", "bleu")


def test_figures_in_words_are_those_of_the_runs(script):
    """What the text on the language model names follows what was kept: other runs, other words."""
    found = json.loads((ROOT / "benchmarks" / "results" / "sequences" / "language.json").read_text())
    text, section = script.written(found, script.SECTIONS["language"]), script.SECTIONS["language"]

    def mean(arm, entry=lambda run: run["metrics"]["perplexity"]["value"]):
        return np.mean([entry(run) for run in found["runs"] if run["arm"] == arm])

    near = 100 * (mean("sampled 13") - mean("full")) / mean("full")
    fewer = mean("full", lambda run: run["bytes_per_token"]) / mean("sampled 13", lambda run: run["bytes_per_token"])
    for told in (
        f"is {near:.1f} % above",
        f"1/{fewer:.0f} of its bytes",
        "of 0.19 of\nthe teacher's parameters",
        "them holds 0",
    ):
        assert told in text
    for run in found["runs"]:
        if run["arm"] == "sampled 13":
            run["metrics"]["perplexity"]["value"] *= 2
            run["bytes_per_token"] /= 2
        if run["arm"] == "labels":
            run["metrics"]["perplexity"]["value"] = 500.0 + run["seed"]
    found["parameters"]["student"] *= 2
    text = script.written(found, section)
    for told in (
        f"is {100 + 2 * near:.1f} % above",
        f"1/{2 * fewer:.0f} of",
        "of 0.37 of",
        "(+90, +91, +93 to",
        "them does not hold 0.",
    ):
        assert told in text


def test_runs_of_other_options_are_refused(tmp_path):
    """A quick run, or one of fewer epochs, is never read as what was asked for now."""
    runs, calls = load("kept_runs").Runs, []

    def run():
        calls.append(1)
        return {"metrics": {"accuracy": len(calls)}}

    first = runs(tmp_path, {"epochs": 3}, quick=False)
    assert first.done("one, two", 0, run) == {"arm": "one, two", "seed": 0, "metrics": {"accuracy": 1}}
    assert runs(tmp_path, {"epochs": 3}, quick=False).done("one, two", 0, run)["metrics"] == {"accuracy": 1}
    assert runs(tmp_path, {"epochs": 3}, quick=True).done("one, two", 0, run)["metrics"] == {"accuracy": 2}
    with pytest.raises(SystemExit, match=r"to be of these options, got others in options\.json\. Give another --out"):
        runs(tmp_path, {"epochs": 4}, quick=False)
