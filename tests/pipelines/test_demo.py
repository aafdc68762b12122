"""The demo, cut short: the form of its result, and that the three arms are what they say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bookkd.book import verify
from bookkd.cli import main
from bookkd.pipelines import demo


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TEACHER_TRAINING", replace(demo.TEACHER_TRAINING, epochs=2))
        patch.setattr(demo, "STUDENT_TRAINING", replace(demo.STUDENT_TRAINING, epochs=3))
        return demo.run_demo(tmp_path_factory.mktemp("demo"), seeds=2, say=lambda line: None)


def test_the_form_of_the_result(result):
    assert set(result) == {"teacher", "book", "runs"}
    assert set(result["teacher"]) == {"accuracy", "parameters"}
    assert set(result["book"]) == {"path", "records", "bytes", "seconds"}
    keys = {
        "method",
        "label_fraction",
        "seed",
        "accuracy",
        "nll",
        "ece",
        "seconds_per_epoch",
        "teacher_forwards",
        "student_parameters",
    }
    assert all(set(run) == keys for run in result["runs"])
    seen = {(run["method"], run["label_fraction"], run["seed"]) for run in result["runs"]}
    assert seen == {(arm, share, seed) for arm in demo.ARMS for share in (0.1, 1.0) for seed in (0, 1)}
    json.dumps(result, allow_nan=False)


def test_only_the_online_arm_asks_the_teacher(result):
    # 1,297 digits in batches of 64: 21 batches an epoch, the last one padded; 3 epochs.
    forwards = {arm: {run["teacher_forwards"] for run in result["runs"] if run["method"] == arm} for arm in demo.ARMS}
    assert forwards == {"supervised": {0}, "online": {3 * 21 * 64}, "book": {0}}


def test_the_book_covers_every_view_and_is_whole(result):
    assert result["book"]["records"] == 16 * 1297
    assert verify(result["book"]["path"]) == []


def test_hidden_labels_change_the_labels_only_arm(result):
    by_share = {
        share: [
            run["nll"] for run in result["runs"] if run["method"] == "supervised" and run["label_fraction"] == share
        ]
        for share in (0.1, 1.0)
    }
    assert min(by_share[0.1]) > max(by_share[1.0])


def test_summary_and_verdict_follow_from_the_runs(result):
    rows = demo.summarise(result)
    assert [(row["label_fraction"], row["method"]) for row in rows] == [
        (s, arm) for s in (0.1, 1.0) for arm in demo.ARMS
    ]
    first = [
        run["accuracy"] for run in result["runs"] if run["method"] == "supervised" and run["label_fraction"] == 0.1
    ]
    assert rows[0]["accuracy"] == pytest.approx(sum(first) / 2)


@pytest.mark.parametrize(
    ("gains", "words"),
    [((0.10, 0.11, 0.12), "more than the noise"), ((0.10, -0.11, 0.02), "inside the noise"), ((0.1,), "one seed")],
)
def test_the_verdict_calls_noise_by_its_name(gains, words):
    runs = [
        {"method": method, "label_fraction": 1.0, "accuracy": 0.8 + (gain if method == "book" else 0.0)}
        for gain in gains
        for method in ("supervised", "book")
    ]
    assert words in demo.verdict({"runs": runs}, 1.0)


def test_the_verb_prints_the_table_and_the_next_commands(result, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_demo", lambda out, seeds, say: result)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "teacher passes" in out
    assert f"bookkd verify {result['book']['path']}" in out
    assert main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
