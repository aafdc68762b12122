"""The benchmark of chorales: beats as a network sees them, the split by melody, and the guide's tables of what was kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("music_benchmark", ROOT / "benchmarks" / "music.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as a script that is run finds what lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def chorale(script, sharps=1, shift=0):
    """Two measures in G with an upbeat: g a h(eighth) c(eighth) d, over g, a rest, and d."""
    note, up = script.Note, 7 * (sharps - 1) + shift
    soprano = (
        note(0, 1, 67 + up),
        note(1, 1, 69 + up),
        note(2, 0.5, 71 + up),
        note(2.5, 0.5, 72 + up),
        note(3, 1, 74 + up, True),
    )
    bass = (note(0, 2, 55 + up), note(3, 1, 50 + up))
    return script.Chorale("x", soprano, bass, sharps, ((0.0, 3.0), (1.0, 0.0)))


def test_beats_as_a_network_sees_them(script):
    inputs, labels = script.steps_of(chorale(script))
    assert inputs.shape == (4, 31)
    # Transposed to no sharps: g is the tonic, C; over a rest there is no label.
    assert [script.NAMES[label] if label >= 0 else None for label in labels] == ["C", "C", None, "G"]
    assert [script.NAMES[row[:12].argmax()] for row in inputs] == ["C", "D", "E", "G"]
    assert [script.NAMES[row[12:24].argmax()] for row in inputs] == ["C", "D", "F", "G"]
    assert inputs[:, 25].tolist() == [1, 1, 1, 1]
    assert inputs[:, 26].tolist() == [0, 0, 0, 1]
    # The upbeat is the last beat of its measure.
    assert inputs[:, 27:].argmax(1).tolist() == [3, 0, 1, 2]
    other, theirs = script.steps_of(chorale(script, sharps=3))
    assert np.array_equal(other[:, :24], inputs[:, :24])
    assert np.array_equal(theirs, labels)


def test_settings_of_one_melody_stay_together(script):
    many = [chorale(script, shift=shift) for shift in range(12) for _ in range(3)]
    sets = script.split(many)
    assert sum(map(len, sets.values())) == len(many)
    melodies = {name: {tuple(each[row][0][:, :12].argmax(1).tolist()) for row in range(len(each))} for name, each in sets.items()}  # fmt: skip
    assert all(len(each) % 3 == 0 for each in sets.values())
    assert not melodies["train"] & melodies["test"]
    assert not melodies["train"] & melodies["validation"]
    assert not melodies["validation"] & melodies["test"]


def test_the_guide_shows_what_was_kept(script):
    found = json.loads(script.KEPT.read_text())
    assert {each["arm"] for each in found["runs"]} >= set(script.ARMS) - {"live"}
    text = (ROOT / "docs" / "guides" / "interactive.md").read_text()
    shown = text.partition("<!-- music -->\n")[2].partition("<!-- /music -->")[0]
    assert script.table(found) in shown
    assert script.ensembles(found) in shown
    for each in found["runs"]:
        interval = each["metrics"]["accuracy"]
        assert interval["low"] < interval["value"] < interval["high"]
        if "rounds" in each:
            scores = [one["student_validation"] for one in each["rounds"][1:]]
            assert each["chosen"] == 1 + scores.index(max(scores))
