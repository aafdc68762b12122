"""Runs of a sweep on the digits: what each leaves behind, resumption, failures, several at once, tuning."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.pipelines.compare_books import DATA, LIMIT, QUICK, books, document
from tests.pipelines.compare_parts import BREAK

from bookkd.core.errors import BookKDError, BookLockedError, ConfigError
from bookkd.core.lock import Lock
from bookkd.evaluation import difference_of
from bookkd.pipelines.compare.document import sweep_of
from bookkd.pipelines.compare.runner import run_sweep
from bookkd.pipelines.compare.spaces import spaces_of
from bookkd.pipelines.options import NetworkOptions
from bookkd.report import RunRecord, find_runs, numbers_of
from bookkd.zoo import create_network, load_weights, weights_digest

FRAGILE = "tests.pipelines.compare_parts:fragile"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return books(tmp_path_factory.mktemp("books"))


def compare(made, out, *, say=None, jobs=1, spaces="", trials=3, **changes):
    sweep = sweep_of(document(made, **changes))
    lines = [] if say is None else say
    return run_sweep(sweep, out, jobs=jobs, say=lines.append, spaces=spaces_of(spaces), trials=trials)


def live_teacher(made, name):
    return {"name": "digits-large", "weights": f"{made[name]}.safetensors"}


def records(out) -> dict[tuple[str, int], RunRecord]:
    return {(run.record.arm, run.record.seed): run.record for run in find_runs([out])}


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    lines = []
    teachers = {"live": live_teacher(made, "one")}
    result = compare(made, out, say=lines, teachers=teachers, latency=True)
    return out, result, lines


ARMS = ["supervised / digits-small", "vanilla-kd / digits-small / one", "vanilla-kd / digits-small / live"]


def test_every_run_leaves_a_whole_record(done):
    out, _, lines = done
    found = records(out)
    assert set(found) == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    assert sum(line.startswith("[") for line in lines) == 6
    for (_, seed), record in found.items():
        assert record.status == "done"
        assert {"accuracy", "nll", "ece"} <= set(record.metrics)
        assert record.metrics["accuracy"]["low"] <= record.metrics["accuracy"]["value"]
        assert record.student["parameters"] > 0
        assert record.student["latency_ms"]["1"]["p50"]["value"] > 0
        assert record.data["split"] == "test"
        assert (record.data["samples"], record.data["train_samples"]) == (500, LIMIT - 12)
        assert [epoch["epoch"] for epoch in record.curve] == [1, 2]
        assert np.sum(record.confusion["student"]) == 500
        assert record.environment["torch"]
        assert record.configuration["training"]["seed"] == seed
        assert record.learning["epochs"] == 2
        # More than torch and the samples need, less than the machine has; nothing of a GPU on a CPU.
        assert 50e6 < record.learning["peak_bytes"] < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert "gpu_peak_bytes" not in record.learning


def test_calibration_is_fitted_on_held_out_samples_alone(done):
    for record in records(done[0]).values():
        assert "held-out" in record.calibration["fitted_on"]
        assert record.calibration["temperature"] > 0
        assert sum(bin_["count"] for bin_ in record.calibration["before"]) == 500
        # No student learned from them: 108 samples, 2 epochs.
        assert record.data["train_samples"] == 108


def test_the_weights_are_those_of_the_record(done):
    folders = list(Path(done[0]).rglob("seed-*"))
    assert len(folders) == 2 * len(ARMS)
    for folder in folders:
        network = create_network("digits-small", n_classes=10)
        load_weights(network, folder / "student.safetensors")
        assert weights_digest(network) == RunRecord.load(folder).weights
        assert {"config.json", "environment.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}


def test_books_live_teachers_and_labels_alone_are_told_apart(done, made):
    found = records(done[0])
    alone, book, live = (found[arm, 0] for arm in ARMS)
    assert (alone.books, alone.teachers, alone.learning["teacher_forwards"]) == ((), (), 0)
    assert book.books[0]["label"] == "one"
    assert book.books[0]["records"] == 2 * LIMIT
    assert book.learning["teacher_forwards"] == 0
    assert live.books == ()
    assert live.learning["teacher_forwards"] >= 2 * 108
    assert live.teachers[0]["digest"] == book.teachers[0]["digest"]
    # The live teacher of the sweep is the book's: both say what it mistakes on the test split.
    assert book.confusion["teacher"] == live.confusion["teacher"]
    assert "teacher" not in alone.confusion
    assert "agreement" in book.metrics
    assert "agreement" not in alone.metrics
    # The same views, order and initial values; they differ by the half precision of the book alone.
    losses = [record.curve[0]["train/loss"] for record in (book, live)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_summary_is_paired_by_seed(done):
    out, result, _ = done
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(result))
    found = records(out)
    rows = {row["arm"]: row for row in result["arms"]}
    assert list(rows) == ARMS
    by_seed = {arm: {seed: found[arm, seed].metric("accuracy") for seed in (0, 1)} for arm in ARMS}
    for arm in ARMS[1:]:
        wanted = difference_of(by_seed[arm], by_seed[ARMS[0]], ARMS[0])
        assert rows[arm]["difference"]["mean"] == pytest.approx(wanted.mean)
        assert rows[arm]["difference"]["low"] == pytest.approx(wanted.low)
        assert rows[arm]["difference"]["verdict"] == wanted.verdict
        assert rows[arm]["difference"]["against"] == ARMS[0]
        assert rows[arm]["accuracy"]["mean"] == pytest.approx(np.mean(list(by_seed[arm].values())))
        assert rows[arm]["accuracy"]["sd"] == pytest.approx(np.std(list(by_seed[arm].values()), ddof=1))
    assert rows[ARMS[0]]["difference"] is None


def test_the_report_reads_it(done):
    numbers = numbers_of(find_runs([done[0]]), baseline=None, title="x")
    assert {row.arm for row in numbers.rows} == set(ARMS)


def test_a_second_call_does_nothing_again(done, made):
    out, result, _ = done
    before = {path: path.stat().st_mtime_ns for path in Path(out).rglob("record.json")}
    lines = []
    teachers = {"live": {"name": "digits-large", "weights": str(made["one"]) + ".safetensors"}}
    again = compare(made, out, say=lines, teachers=teachers, latency=True)
    assert again == result
    assert lines == ["6 of 6 runs are done already"]
    assert before == {path: path.stat().st_mtime_ns for path in Path(out).rglob("record.json")}


def test_another_configuration_in_the_folder_is_refused(made, tmp_path):
    compare(made, tmp_path, seeds=1, methods="supervised")
    with pytest.raises(ConfigError, match=r"same configuration, got other training\.lr \(0\.05, now 0\.01\)"):
        compare(made, tmp_path, seeds=1, methods="supervised", training={**QUICK, "lr": 0.01})
    # How fast a run goes is no other configuration; more seeds and arms are no other one either.
    quicker = {**QUICK, "workers": 1, "probe_share": 0.5}
    result = compare(made, tmp_path, seeds=2, methods="supervised,vanilla-kd", training=quicker)
    assert [len(row["seeds"]) for row in result["arms"]] == [2, 2]


@pytest.mark.parametrize(
    ("methods", "changes", "said"),
    [
        ("supervised,dist", {"batch_size": 1}, r"`batch_size` to be a whole number of at least 2, got 1"),
        ("supervised,mlkd", {"batch_size": 2}, r"`batch_size` to be a whole number of at least 4, got 2"),
        ("supervised,mlkd", {"batch_size": 15}, r"`batch_size` to be a multiple of views_per_sample = 2, got 15"),
        ("supervised,dist", {"batch_size": 128}, r"`batch_size` to be at most 108 for 108 samples, got 128"),
        ("supervised,dist", {"accumulate": 2}, r"`accumulate` to be 1, got 2"),
    ],
)
def test_batches_that_a_method_cannot_learn_from_are_refused_before_any_run(made, tmp_path, methods, changes, said):
    lines = []
    with pytest.raises(ConfigError, match=rf"{said} \(training of (dist|mlkd) / digits-small / one\)"):
        compare(made, tmp_path / "out", say=lines, methods=methods, training={**QUICK, **changes})
    assert not (tmp_path / "out").exists()
    assert lines == []


def test_teachers_are_not_weighed_by_what_they_score_on_the_reported_split(made, tmp_path):
    weighed = {"name": "bookkd", "options": {"weights": "accuracy"}}
    together = {"both": [str(made["one"]), str(made["two"])]}
    with pytest.raises(ConfigError, match="`accuracies` to be measured on another split than test, which is reported"):
        compare(made, tmp_path / "out", methods=[weighed], books=together)
    live = {"pair": [live_teacher(made, "one"), live_teacher(made, "two")]}
    with pytest.raises(ConfigError, match=r"`accuracies` to be measured .* got those of digits-large on test"):
        compare(made, tmp_path / "out", methods=[weighed], books=None, teachers=live)
    assert not (tmp_path / "out").exists()


def test_a_search_finds_no_weights_by_the_reported_split(made, tmp_path):
    pytest.importorskip("optuna")
    together, lines = {"both": [str(made["one"]), str(made["two"])]}, []
    changes = {"methods": "bookkd", "books": together, "seeds": 1, "trials": 2}
    result = compare(made, tmp_path, say=lines, spaces="method.weights=uniform,accuracy", **changes)
    tries = {trial["values"]["method.weights"]: trial for trial in result["tuned"][0]["trials"]}
    assert tries["accuracy"]["score"] is None
    assert "on another split than test" in tries["accuracy"]["error"]
    assert tries["uniform"]["score"] > 0


def test_a_folder_serves_one_sweep_at_a_time(made, tmp_path):
    lock = Lock(tmp_path / ".lock")
    try:
        with pytest.raises(BookLockedError):
            compare(made, tmp_path)
    finally:
        lock.release()


def test_a_failing_run_is_recorded_and_tried_again(made, tmp_path, monkeypatch):
    monkeypatch.setenv(BREAK, "raise")
    changes = {"students": ["digits-small", FRAGILE], "methods": "supervised", "seeds": 1}
    lines = []
    result = compare(made, tmp_path, say=lines, **changes)
    failed = records(tmp_path)[f"supervised / {FRAGILE}", 0]
    assert (failed.status, failed.error) == ("failed", "RuntimeError: the network broke")
    assert any("failed: RuntimeError: the network broke" in line for line in lines)
    assert result["failed"] == [{"arm": failed.arm, "seed": 0, "error": failed.error}]
    assert [(len(row["seeds"]), row["failed"]) for row in result["arms"]] == [(1, 0), (0, 1)]
    monkeypatch.delenv(BREAK)
    lines = []
    compare(made, tmp_path, say=lines, **changes)
    assert {record.status for record in records(tmp_path).values()} == {"done"}
    assert lines[0] == "1 of 2 runs are done already"


def test_several_at_once_give_the_same_and_one_that_is_killed_takes_no_other_along(made, tmp_path, monkeypatch):
    """Workers: one ends by itself, one is killed twice over and replaced; what they did is what one process does."""
    changes = {"students": ["digits-small", FRAGILE], "methods": "supervised"}
    monkeypatch.setenv(BREAK, "kill")
    compare(made, tmp_path / "two", jobs=2, **changes)
    monkeypatch.delenv(BREAK)
    compare(made, tmp_path / "one", **changes)
    two, one = records(tmp_path / "two"), records(tmp_path / "one")
    for key, record in two.items():
        if FRAGILE in key[0]:
            assert record.status == "failed"
            assert "got exit code -9: it was killed" in record.error
        else:
            assert record.weights == one[key].weights
            assert [epoch["train/loss"] for epoch in record.curve] == [epoch["train/loss"] for epoch in one[key].curve]


def test_a_killed_sweep_ends_where_an_uninterrupted_one_does(made, tmp_path):
    slow = {**QUICK, "epochs": 6, "batch_size": 8, "checkpoint_steps": 4}
    given = document(made, training=slow, seeds=1)
    text = json.dumps(given)
    script = (
        "import json, sys\n"
        "from bookkd.pipelines.compare.document import sweep_of\n"
        "from bookkd.pipelines.compare.runner import run_sweep\n"
        "run_sweep(sweep_of(json.loads(sys.argv[1])), sys.argv[2])\n"
    )
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, text, str(out)], env=environment)
    deadline = time.monotonic() + 90
    while not (list(out.rglob("record.json")) and len(list(out.rglob("last.ckpt"))) == 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.rglob("record.json"))) == 1
    lines = []
    run_sweep(sweep_of(given), out, say=lines.append)
    assert lines[0] == "1 of 2 runs are done already"
    run_sweep(sweep_of(given), tmp_path / "whole", say=lines.append)
    killed, whole = records(out), records(tmp_path / "whole")
    assert {key: record.weights for key, record in killed.items()} == {
        key: record.weights for key, record in whole.items()
    }
    curves = [
        [[epoch["train/loss"] for epoch in record.curve] for record in found.values()] for found in (killed, whole)
    ]
    assert curves[0] == curves[1]


def test_making_is_counted_once_for_each_book(made, tmp_path):
    both = [str(made["one"]), str(made["two"])]
    sources = {"one": str(made["one"]), "both": both}
    result = compare(made, tmp_path, methods="vanilla-kd,takd", books=sources, seeds=2)
    assert result["ledger"]["making_teacher_forwards"] == 2 * 2 * LIMIT
    assert result["ledger"]["learning_teacher_forwards"] == 0
    assert result["ledger"]["students"] == 8
    record = records(tmp_path)["vanilla-kd / digits-small / both", 0]
    assert [entry["label"] for entry in record.books] == ["one", "two"]
    assert len(record.teachers) == 2


def test_labels_that_are_hidden_stay_hidden_for_all_arms(made, tmp_path):
    overrides = [{"name": "tenth", "label_fraction": 0.1}, {"name": "all"}]
    compare(made, tmp_path, overrides=overrides, seeds=1)
    found = records(tmp_path)
    assert found["supervised / digits-small / tenth", 0].data["label_fraction"] == 0.1
    assert found["supervised / digits-small / all", 0].data["label_fraction"] == 1.0
    weights = [record.weights for record in found.values()]
    assert len(set(weights)) == 4


def test_tuning_takes_the_best_values_and_never_the_test_split(made, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    lines = []
    sweep = {"data": {"name": "tests.pipelines.compare_parts:guarded"}, "books": None, "methods": "supervised"}
    # All runs fail, since they look at the test split; the search before them does not.
    result = compare(made, tmp_path / "guarded", say=lines, spaces="training.lr=0.01:0.2:log", seeds=1, **sweep)
    assert result["tuned"][0]["best"]["score"] > 0
    assert any("the test split was looked at" in line for line in lines)
    live = {"large": live_teacher(made, "one")}
    asked = {**sweep, "methods": "vanilla-kd", "teachers": live}
    result = compare(made, tmp_path / "live", say=lines, spaces="training.lr=0.01:0.2:log", seeds=1, **asked)
    assert result["tuned"][0]["best"]["score"] > 0
    out = tmp_path / "tuned"
    lines.clear()
    result = compare(made, out, say=lines, spaces="method.temperature=1:20", seeds=2)
    best = result["tuned"][0]["best"]["values"]["method.temperature"]
    assert [row["arm"] for row in result["arms"]] == [
        "supervised / digits-small",
        f"vanilla-kd temperature={best:g} / digits-small / one",
    ]
    assert [len(row["seeds"]) for row in result["arms"]] == [2, 2]
    # The tries are no runs of the comparison.
    assert len(find_runs([out])) == 4
    again = []
    assert compare(made, out, say=again, spaces="method.temperature=1:20", seeds=2) == result
    assert again == ["4 of 4 runs are done already"]


def test_a_search_is_not_gone_on_with_on_other_samples(made, tmp_path):
    pytest.importorskip("optuna")
    words = {"methods": "supervised", "seeds": 1, "spaces": "training.lr=0.01:0.2:log", "trials": 1}
    compare(made, tmp_path, **words)
    with pytest.raises(ConfigError, match=r"other validation_fraction \(0\.1, now 0\.2\)"):
        compare(made, tmp_path, validation_fraction=0.2, **words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {**DATA, "limit": 60}}, "Expected book"),
        ({"books": {"one": "nowhere"}}, "nowhere"),
        ({"data": "digts"}, "Unknown data set 'digts'. Nearest: digits"),
        ({"validation": "tset"}, "This is the split of `validation`"),
        ({"test": "tset"}, "This is the split of `test`"),
        ({"views": {"transform": "crop-flip", "n_views": 2}}, "Expected book"),
        ({"views": {"transform": "digits", "n_views": 9}}, "9 views are asked for, the book has 2"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(made, tmp_path, changes, message):
    """Either the sweep does not start, or the run is recorded with the message."""
    try:
        compare(made, tmp_path, seeds=1, **changes)
    except BookKDError as error:
        said = [str(error)]
    else:
        said = [record.error for record in records(tmp_path).values() if record.status == "failed"]
    assert said
    assert any(re.search(re.escape(message), each) for each in said), said
    assert not any("\n" in each for each in said)


def test_a_student_that_is_kept_with_more_costs_more(made, tmp_path):
    """The student of simkd keeps the teacher's classifier and a projector to it."""
    out = tmp_path / "out"
    compare(made, out, methods="supervised,simkd", teachers={"large": live_teacher(made, "one")}, books=None, seeds=1)
    plain, kept = (
        records(out)[arm, 0].student for arm in ("supervised / digits-small", "simkd / digits-small / large")
    )
    network = NetworkOptions("digits-small", weights=str(next(out.glob("runs/simkd*/seed-0")) / "student.safetensors"))
    wanted = sum(parameter.numel() for parameter in network.build(10, role="student")[0].parameters())
    assert kept["parameters"] == wanted > plain["parameters"]
    assert kept["macs"] > plain["macs"]
