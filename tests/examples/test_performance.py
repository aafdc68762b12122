"""The page of performance is what its script writes, and the scripts behind it do what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from bookkd.book import Book
from bookkd.pipelines.bench import Goal
from bookkd.views import BlockWindow
from bookkd.views.order import BlockOrder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
KEPT = sorted((FOLDER / "performance").glob("*.json"))


@pytest.fixture
def script(monkeypatch):
    """Import a script of `benchmarks` by name."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_page_is_what_the_script_writes(script):
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == script("performance").page()


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_names_machine_and_day_and_no_path(path):
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["machine"]["cpu"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", found["date"])
    assert not re.search(r"(?<![\w ])/(tmp|work|home|root|usr)\b", text)
    for goal in found["goals"]:
        met = goal["goal"] is None or (
            goal["value"] <= goal["goal"] if goal["sense"] == "<=" else goal["value"] >= goal["goal"]
        )
        assert goal["holds"] is met


def test_a_miss_is_shown_as_a_miss(script, monkeypatch, tmp_path):
    module, keeping = script("performance"), sys.modules["keeping"]
    monkeypatch.setattr(keeping, "KEPT", tmp_path)
    monkeypatch.setattr(module, "KEPT", tmp_path)
    here = {"cpu": "one", "cpus": 2, "threads": 1, "load": 0.5, "python": "3", "torch": "2", "numpy": "2", "more": "no"}
    missed, met = Goal("slow", 0.5, 0.7, ">=", 0.4, 0.6, 9, "note"), Goal("fast", 0.9, 0.7, ">=")
    keeping.keep("store", [missed, met, Goal("shown", 12345.6, None)], here)
    text = module.page()
    assert "| slow | 0.5 | 0.4 to 0.6 | ≥ 0.7 | **no** | 9 | note |" in text
    assert "| fast | 0.9 |  | ≥ 0.7 | yes | 1 |  |" in text
    assert "| shown | 12346 |  |  |  | 1 |  |" in text
    assert "one, 2 processors, 1 thread, load 0.5; Python 3" in text
    assert "Not measured yet: learn, methods, sequences, remote, larger-than-memory, shuffle, peers." in text


def test_the_limit_forgets_what_was_used_longest_ago(script, tmp_path):
    module = script("larger_than_memory")
    book = module.write_book(tmp_path / "book", 2**14)
    assert book.n_samples == 2**14
    limit = module.Limit(book, 2 * module.MIB)  # 16 pieces of 128 rows
    for start in range(0, 2**12, 128):
        rows = np.arange(start, start + 128)
        book.gather(rows, 0)
        limit.touched(rows)
        assert len(limit._touched) <= 16
    assert 2**12 // 128 - 1 in limit._touched
    assert 0 not in limit._touched
    assert limit.spent > 0
    assert module.Limit(book, 0).pieces == 0


def test_reading_by_windows_is_measured_over_all_rows(script, tmp_path, monkeypatch):
    module = script("larger_than_memory")
    book = module.write_book(tmp_path / "book", 2**14)
    seen, ahead = [], []
    gather = Book.gather
    monkeypatch.setattr(Book, "gather", lambda self, rows, *args: (seen.extend(rows), gather(self, rows, *args))[1])
    monkeypatch.setattr(Book, "prefetch", lambda self, *block: ahead.append(block))
    order = BlockOrder(np.arange(2**14), BlockWindow(2), 0, 0)
    assert module.read_rows(module.Limit(book, 0), order, 64, ahead=True) > 0
    assert sorted(seen) == list(range(2**14))
    assert sorted(ahead) == [(start, start + 4096, 0) for start in range(0, 2**14, 4096)]


@pytest.mark.parametrize("name", ["book", "npy", "safetensors", "arrow"])
def test_peers_keep_what_they_were_given_and_a_flipped_bit_is_told(script, tmp_path, name):
    module = script("peers")
    kind = module.PEERS[name]
    if not module.installed(kind):
        pytest.skip(f"{kind.package} is not installed")
    found = module.compare(kind, module.records(512), tmp_path, rounds=2)
    assert found["bytes_per_record"] >= 1024
    assert found["gather_ratio"] > 0
    told = "error: BookCorruptError, place named" if name == "book" else "not noticed: wrong numbers"
    assert found["flipped_bit"] == told
