"""The search for values: its spaces in words, that it finds an optimum, that a killed one goes on to the same end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bookkd.core.errors import BookKDError, ConfigError, DataError
from bookkd.learning import Training
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.document import method_choice
from bookkd.pipelines.compare.spaces import fitting, spaces_of
from bookkd.pipelines.compare.tuning import tune
from bookkd.pipelines.options import NetworkOptions

pytest.importorskip("optuna")


def arm(method="vanilla-kd", **training):
    return Arm(method_choice(method), NetworkOptions("digits-small"), None, None, None, Training(**training), 1.0)


def peak(best=9.0):
    """A score that is highest at one temperature, and how often it was asked."""
    asked = []

    def score(given, folder):
        asked.append(given.method.build().temperature)
        return 1 - abs(asked[-1] - best) / 100

    return score, asked


def search(folder, score, spaces="method.temperature=1:20", given=None, **options):
    options = {"trials": 12, "seed": 0, "say": lambda line: None, **options}
    given = given or arm()
    return tune(given, fitting(given, spaces_of(spaces)) or spaces_of(spaces), score, folder, **options)


def test_the_first_try_is_the_arm_as_it_is_and_later_ones_near_the_optimum(tmp_path):
    score, asked = peak()
    found = search(tmp_path, score, trials=25)
    assert asked[0] == 4.0
    assert abs(found.best.values["method.temperature"] - 9) < 1
    assert found.best.score == max(trial.score for trial in found.trials)
    assert found.arm.method.build().temperature == found.best.values["method.temperature"]
    assert found.arm.name == f"vanilla-kd temperature={found.best.values['method.temperature']:g} / digits-small"
    assert all(value == float(f"{value:.4g}") for value in asked)
    assert json.loads(json.dumps(found.to_json()))["best"]["score"] == found.best.score


class Killed(BaseException):
    """As Ctrl-C, which no try may swallow."""


@pytest.mark.parametrize("after", [0, 1, 4, 11])
def test_a_killed_search_ends_where_an_uninterrupted_one_does(tmp_path, after):
    whole = search(tmp_path / "whole", peak()[0])
    score, asked = peak()

    def dies(given, folder):
        if len(asked) == after:
            raise Killed
        return score(given, folder)

    with pytest.raises(Killed):
        search(tmp_path / "killed", dies)
    score, asked = peak()
    assert search(tmp_path / "killed", score) == whole
    assert len(asked) == 12 - after
    assert search(tmp_path / "killed", dies) == whole


def test_more_tries_go_on_and_fewer_look_at_the_first_ones(tmp_path):
    score, asked = peak()
    search(tmp_path, score, trials=3)
    more = search(tmp_path, score, trials=5)
    assert len(asked) == 5
    assert search(tmp_path, score, trials=3).trials == more.trials[:3]


def test_a_value_is_not_tried_twice(tmp_path):
    score, asked = peak()
    found = search(tmp_path, score, "method.temperature=4,8,16")
    assert len(found.trials) == 12
    assert sorted(set(asked)) == sorted(asked)
    assert found.best.values == {"method.temperature": 8.0}


def test_a_try_that_fails_is_kept_and_the_search_goes_on(tmp_path):
    lines = []

    def fails_above(given, folder):
        temperature = given.method.build().temperature
        if temperature > 10:
            raise DataError("Expected a loss, got infinity.\nIt diverged.")
        return temperature / 20 if temperature > 5 else float("nan")

    found = search(tmp_path, fails_above, say=lines.append)
    errors = [trial.error for trial in found.trials if trial.score is None]
    assert "Expected a loss, got infinity. It diverged." in errors
    assert any("`score` to be a finite number, got nan" in error for error in errors)
    assert 5 < found.best.values["method.temperature"] <= 10
    assert len(lines) == 12
    assert any("failed: Expected a loss" in line for line in lines)


def test_where_all_fail_the_arm_stays_as_it_is(tmp_path):
    def fails(given, folder):
        raise RuntimeError

    found = search(tmp_path, fails, trials=2)
    assert found.best is None
    assert found.arm == arm()
    assert found.trials[0].error == "RuntimeError: no message"


def test_whole_numbers_words_and_training(tmp_path):
    seen = []

    def score(given, folder):
        seen.append((given.training.batch_size, given.training.optimizer, given.training.lr, folder.name))
        return given.training.lr

    spaces = "training.batch_size=8:64 training.optimizer=sgd,adamw training.lr=0.001:0.5:log"
    found = search(tmp_path, score, spaces, trials=6)
    assert all(isinstance(size, int) and 8 <= size <= 64 for size, *_ in seen)
    assert {optimizer for _, optimizer, *_ in seen} == {"sgd", "adamw"}
    assert all(0.001 <= lr <= 0.5 for _, _, lr, _ in seen)
    assert seen[0][3] == "trial-000"
    assert found.arm.training.lr == max(lr for _, _, lr, _ in seen)
    best = found.arm.training
    wanted = f"batch_size={best.batch_size} optimizer={best.optimizer} lr={best.lr}"
    assert found.arm.name == f"vanilla-kd / digits-small / {wanted}"


def test_an_arm_is_tuned_in_what_it_has():
    spaces = spaces_of("method.temperature=1:20 training.lr=0.01:1:log")
    assert fitting(arm(), spaces) == spaces
    assert [space.option for space in fitting(arm("supervised"), spaces)] == ["training.lr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature=1:20", "Expected `tune` to be OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=A,B,C"),
        ("method.temperature", "Expected `tune` to be OPTION=LOW:HIGH"),
        ("student.width=1:3", "Name method.OPTION or training.FIELD"),
        ("method.temperature=20:1", "a range from a lower to a higher number, got 'method.temperature=20:1'"),
        ("method.temperature=0:1:log", "to a higher number, above 0 for log"),
        ("method.temperature=1:2:linear", "Expected `tune` to be OPTION=LOW:HIGH"),
        ("method.temperature=a:b", "Expected `tune` to be OPTION=LOW:HIGH"),
        ("method.temperature=4", "at least two different values"),
        ("method.temperature=4,4", "at least two different values"),
        ("training.seed=0:9", "anything but the seed"),
        ("method.temperature=1:2 method.temperature=3:4", "method.temperature twice"),
        (
            "method.temprature=1:2",
            "Unknown option method.temprature to tune for vanilla-kd / digits-small. Nearest: temperature",
        ),
        ("method.temperature=0:20", "Expected `temperature` to be"),
        ("method.t_squared=0:1", "values with commas between, since it is no number"),
        ("training.batch_size=1.5:9", "to be whole numbers, got '1.5:9'"),
        ("training.batch_size=0:9", "Expected `batch_size` to be a whole number of at least 1"),
        ("method.soft_loss=kl,mae", "Expected `method.soft_loss` to be"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(BookKDError, match=re.escape(message)) as caught:
        search(tmp_path, peak()[0], text)
    assert "\n" not in str(caught.value)


def test_another_search_in_the_folder_is_refused(tmp_path):
    search(tmp_path, peak()[0], trials=1)
    with pytest.raises(ConfigError, match=r"got other spaces\.high \(20\.0, now 10\.0\)"):
        search(tmp_path, peak()[0], "method.temperature=1:10", trials=1)
    with pytest.raises(ConfigError, match=r"other training\.epochs \(30, now 3\)"):
        search(tmp_path, peak()[0], given=arm(epochs=3), trials=1)
    # How fast a run goes is no other search.
    assert search(tmp_path, peak()[0], given=arm(workers=2), trials=1).trials
    search(tmp_path / "about", peak()[0], about={"data": {"limit": 3}}, trials=1)
    with pytest.raises(ConfigError, match=r"other data\.limit \(3, now 4\)"):
        search(tmp_path / "about", peak()[0], about={"data": {"limit": 4}}, trials=1)
    with pytest.raises(ConfigError, match="`trials` to be a whole number of at least 1"):
        search(tmp_path, peak()[0], trials=0)


def test_a_damaged_line_is_named(tmp_path):
    search(tmp_path, peak()[0], trials=2)
    path = Path(tmp_path / "trials.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"line 2 of {re.escape(str(path))}, damaged.*Delete"):
        search(tmp_path, peak()[0])
