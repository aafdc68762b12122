"""The guide of views: its figures are those that are kept, and tables say what made-up runs would."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "benchmarks" / "results" / "views").glob("*.json"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("view_results", ROOT / "benchmarks" / "view_results.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(arm: str, seed: int, accuracy: float, views: int | None, recipe: str = "crop-flip") -> dict:
    kl = {"unseen": 0.5, **({} if views is None else {"seen": 0.5 - 0.1 / views})}
    metrics = {name: {"value": value} for name, value in (("accuracy", accuracy), ("teacher_kl", 1 - accuracy))}
    return {"arm": arm, "seed": seed, "views": views, "recipe": recipe, "metrics": metrics, "kl": kl}


@pytest.fixture(scope="module")
def kept():
    runs = [{"arm": "teacher", "seed": 0, "metrics": {"accuracy": {"value": 0.9}}}]
    score = {"value": 0.01, "low": 0.009, "high": 0.012}
    recipes = [("crop-flip, cutmix", 0.01), ("crop-flip", 0.02), ("none", 0.03)]
    runs.append(
        {
            "arm": "scores",
            "recipes": [
                {"name": name, "stddev": {**score, "value": value}, "entropy": score, "agreement": score}
                for name, value in recipes
            ],
        }
    )
    for seed in (0, 1):
        runs += [run(f"V={count}", seed, 0.7 + 0.01 * count + 0.001 * seed, count) for count in (1, 4, 8)]
        runs += [run("live", seed, 0.79 + 0.002 * seed, None), run("labels", seed, 0.6 + 0.01 * seed, None)]
        runs += [run("none", seed, 0.65, 1, "none"), run("crop-flip, cutmix", seed, 0.8, 8, "crop-flip, cutmix")]
    options = {"name": "x", "student": "resnet8", "teacher_network": "resnet20", "epochs": 8, "seeds": 2}
    return {"options": {**options, "recipe_views": 8, "passes": 4096, "group_rows": 64}, "runs": runs}


def test_the_page_is_what_the_script_writes(script):
    found = [script.section(json.loads(path.read_text(encoding="utf-8"))) for path in KEPT]
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.placed(page, found)
    assert all((ROOT / "docs" / "images" / f"views-{path.stem}.svg").exists() for path in KEPT)


def test_tables_of_made_up_runs(script, kept):
    text = script.section(kept)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:6]] == ["| V=1", "| V=4", "| V=8", "| live", "| labels"]
    assert lines[1].startswith("| V=1 | 71.05 (")
    assert "-8.05, " in lines[1]
    assert "| 0.4000 (0.4000 to 0.4000) | 0.5000" in lines[1]
    assert "| crop-flip, cutmix | 0.0100 (0.0090 to 0.0120) |" in lines[7]
    assert "over 3 recipes: -1.00" in text


def test_the_figure_shows_every_run(script, kept):
    spec = script.figure(kept["runs"]).to_dict()
    assert len(spec["hconcat"]) == 2
    rows = script.points(kept["runs"])
    assert sum(row["line"] == "book" for row in rows) == 6
    assert {row["value"] for row in rows if row["line"] == "views unseen"} == {0.5}
    assert {row["views"] for row in rows if row["line"] == "live teacher"} == {1, 8}
