"""Benchmarks: the arithmetic of interleaved pairs, and the form of the result. No test judges a time."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from scipy.stats import bootstrap

from bookkd.book import Book, verify
from bookkd.cli import main
from bookkd.pipelines import bench
from bookkd.pipelines.bench import BENCHES, Goal, Ratio, paired, sequences
from bookkd.pipelines.bench.large import write_large_book


def test_paired_runs_in_turn_with_a_warm_up():
    order = []
    ratio = paired(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert len(ratio.values) == 3
    assert all(value > 0 for value in ratio.values)


def test_the_interval_of_the_median_agrees_with_scipy():
    values = np.random.default_rng(0).lognormal(size=25)
    low, high = Ratio(tuple(values), (1.0, 1.0)).interval()
    theirs = bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), rel=0.12)


@pytest.mark.parametrize(
    ("value", "goal", "sense", "holds"),
    [(1.0, 1.05, "<=", True), (1.1, 1.05, "<=", False), (0.5, 0.4, ">=", True), (0.3, 0.4, ">=", False)],
)
def test_a_goal_holds_or_not(value, goal, sense, holds):
    assert Goal("x", value, goal, sense).to_json()["holds"] is holds


def test_a_figure_without_a_goal_always_holds():
    assert Goal("x", 99.0, None).holds


@pytest.mark.parametrize(
    ("memory", "names"),
    [
        ({"cross-entropy": 100, "draws": 110, "draws and labels": None, "top-k": 90}, ["draws", "top-k"]),
        ({"cross-entropy": None}, []),
        ({"cross-entropy": 0}, []),
    ],
)
def test_memory_that_nobody_measured_meets_no_goal(monkeypatch, memory, names):
    class Pool(contextlib.nullcontext):
        def apply(self, _, given):
            return memory.get(given[0], 1)

    class Context:
        def Pool(self, _):  # noqa: N802
            pool = Pool()
            pool.enter_result = pool
            return pool

    monkeypatch.setattr(sequences.multiprocessing, "get_context", lambda _: Context())
    goals = sequences._memory(True)
    # Of sequences of one length, and of two.
    assert [goal.name.split(" from ")[1].split(" / ")[0] for goal in goals] == [*names, *names]
    assert [goal.value for goal in goals] == [memory[name] / 100 for name in [*names, *names]]


def test_memory_of_a_loss_is_none_where_nobody_says_it(monkeypatch):
    monkeypatch.setattr(sequences, "forget_peak_memory", lambda: True)
    monkeypatch.setattr(sequences, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(sequences, "peak_memory", lambda: None)
    assert sequences.loss_memory("cross-entropy", 8, 16, True) is None


@pytest.mark.parametrize("name", BENCHES)
def test_quick_runs_give_the_promised_form(name, capsys):
    assert main(["bench", name, "--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == name
    assert {"cpu", "cpus", "threads", "torch"} <= set(result["machine"])
    assert result["goals"]
    for goal in result["goals"]:
        assert {"name", "value", "goal", "sense", "holds"} <= set(goal)
        assert goal["sense"] in ("<=", ">=")
        assert isinstance(goal["holds"], bool)
    losses = [goal for goal in result["goals"] if "loss" in goal["name"]]
    assert all(goal["holds"] for goal in losses), "what a book says is no matter of speed"


def test_a_goal_that_fails_gives_exit_code_1_unless_quick(monkeypatch, capsys):
    monkeypatch.setattr(bench, "BENCHES", {"store": f"{__name__}:failing"})
    monkeypatch.setattr(bench, "look_up", lambda *_: lambda pairs, quick: [Goal("x", 2.0, 1.0)])
    assert main(["bench", "store"]) == 1
    assert "NO" in capsys.readouterr().out
    assert main(["bench", "store", "--quick"]) == 0
    assert "not judged" in capsys.readouterr().out


def test_the_large_book_is_whole_and_every_digest_right(tmp_path):
    records = write_large_book(tmp_path / "b", n_views=3, shards=4, shard_rows=8192)
    assert records == 3 * 4 * 8192
    assert verify(tmp_path / "b") == []
    book = Book(tmp_path / "b", verify="all")
    assert (book.n_samples, book.n_views) == (32768, 3)
    assert (book.read([0, 32767, 8192], [0, 2, 1])["logits"] == np.zeros((3, 10))).all()
    (shard,) = (tmp_path / "b" / "view-0002").glob("rows-000024576-*.safetensors")
    shard.unlink()
    assert [(fault.view, fault.start, fault.stop) for fault in verify(tmp_path / "b")] == [(2, 24576, 32768)]
