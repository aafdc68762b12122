"""The CIFAR-10 example: its tables stand in the pages as its script prints them, and its arithmetic is right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "cifar10"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cifar10_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found():
    return json.loads((FOLDER / "results.json").read_text())


def test_the_page_shows_what_the_script_prints(script, found):
    page = (FOLDER / "README.md").read_text()
    shown = page.partition("<!-- report -->")[2].partition("<!-- /report -->")[0]
    assert shown.strip() == script.report(found)


def test_the_rows_in_the_readme_are_rows_of_the_report(script, found):
    table = (ROOT / "README.md").read_text().partition("<!-- cifar10 -->")[2].partition("<!-- /cifar10 -->")[0].strip()
    assert table
    assert set(table.splitlines()) <= set(script.report(found).splitlines())


def test_a_book_asks_no_teacher_and_is_asked_for_every_view_once(found):
    for run in found["runs"]:
        assert (run["teacher_forwards"] == 0) == (run["arm"] != "online")
    for book in found["books"].values():
        assert book["teacher_forwards"] == book["records"] == 80_000


def test_the_interval_is_students_t(script):
    values = [70.1, 69.2, 71.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert script.interval(values, sign=False) == f"{np.mean(values):.2f} ± {(high - low) / 2:.2f}"
