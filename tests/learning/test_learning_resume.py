"""A run that is killed goes on to the same weights, bit for bit, from wherever its last checkpoint was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.learning.digits import (
    TASK,
    TEST,
    StopError,
    assert_equal,
    run,
    stopped_after,
    student,
    teacher,
    training,
    weights,
    without_seconds,
)

from bookkd.core.errors import CheckpointError, ConfigError
from bookkd.knowledge import LiveKnowledge
from bookkd.learning.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
# 60 samples in batches of 8 are 8 batches, 4 steps of 2 batches; checkpoints stand after step 3, 4 (the end), 6 and 8.
OPTIONS = {"accumulate": 2, "clip_norm": 1.0, "warmup_epochs": 0.5, "checkpoint_steps": 3}


@pytest.mark.parametrize("door", ["plain", "lightning"])
@pytest.mark.parametrize("steps", [0, 2, 3, 4, 5, 6, 7])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, stored, monkeypatch, door, steps):
    options = {"knowledge_of": stored, "training": training(**OPTIONS), "door": door, "validation": TEST}
    whole = run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stopped_after(patch, steps)
        with pytest.raises(StopError):
            run(tmp_path / "cut", **options)
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists() == (steps >= 3)
    # Another student and other generators: all must come from the checkpoint, or from the start where there is none.
    torch.manual_seed(99)
    gone_on = run(tmp_path / "cut", network=student(seed=8 if steps >= 3 else 1), **options)
    assert_equal(gone_on.student, whole.student)
    assert without_seconds(gone_on.history) == without_seconds(whole.history)
    assert all(0 < record["seconds"] < 60 for record in gone_on.history)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("door", ["plain", "lightning"])
@pytest.mark.parametrize("schedule", ["plateau", "step"])
def test_schedules_optimizers_and_batch_statistics_survive(tmp_path, stored, monkeypatch, door, schedule):
    given = {"milestones": (1,)} if schedule == "step" else {"plateau_patience": 0}
    options = {
        "knowledge_of": stored,
        "training": training(epochs=3, optimizer="adamw", lr=0.01, schedule=schedule, checkpoint_steps=3, **given),
        "door": door,
        "validation": TEST,
    }
    whole = run(tmp_path / "whole", network=student("digits-small"), **options)
    with monkeypatch.context() as patch:
        stopped_after(patch, 13)
        with pytest.raises(StopError):
            run(tmp_path / "cut", network=student("digits-small"), **options)
    gone_on = run(tmp_path / "cut", network=student("digits-small", seed=8), **options)
    assert_equal(gone_on.student, whole.student)
    assert without_seconds(gone_on.history) == without_seconds(whole.history)


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_teacher_passes_are_counted_over_an_interruption(tmp_path, monkeypatch, door):
    def options():
        return {"knowledge": LiveKnowledge(teacher(), TASK), "training": training(checkpoint_steps=3), "door": door}

    with monkeypatch.context() as patch:
        stopped_after(patch, 10)
        with pytest.raises(StopError):
            run(tmp_path / "cut", **options())
    # 8 batches of 8 an epoch; the pass after the last checkpoint, at step 9, is done again and not counted twice.
    assert run(tmp_path / "cut", **options()).teacher_forwards == 2 * 64
    assert run(tmp_path / "cut", **options()).teacher_forwards == 2 * 64


def test_killed_between_record_and_checkpoint(tmp_path, stored, monkeypatch):
    options = {"knowledge_of": stored, "training": training()}
    whole = run(tmp_path / "whole", **options)
    saved = []

    def failing(path, state):
        saved.append(path)
        if len(saved) == 2:
            raise StopError
        return real(path, state)

    from bookkd.learning import loop

    real = loop.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", failing)
        with pytest.raises(StopError):
            run(tmp_path / "cut", **options)
    gone_on = run(tmp_path / "cut", **options)
    assert without_seconds(gone_on.history) == without_seconds(whole.history)
    assert_equal(gone_on.student, whole.student)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from tests.learning.digits import run, student, training
from bookkd.learning.run import Run
door, book, out, steps = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
real = Run.optimizer_step
def killed(self, *args, **kwargs):
    if self.steps == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **kwargs)
Run.optimizer_step = killed
run(out, knowledge_of=book, training=training(checkpoint_steps=3), door=door)
"""


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_killed_with_sigkill_inside_an_epoch(tmp_path, stored, door):
    """Dropout, momentum and the order of samples go on from the middle of the second epoch."""
    command = [sys.executable, "-c", SCRIPT, door, str(stored), str(tmp_path / "cut"), "13"]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    kept = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert kept.get("bookkd", kept)["steps"] == 12
    options = {"knowledge_of": stored, "training": training(checkpoint_steps=3), "door": door}
    gone_on = run(tmp_path / "cut", network=student(seed=8), **options)
    assert_equal(gone_on.student, run(None, **options).student)


def test_a_finished_run_is_not_repeated(tmp_path, stored):
    options = {"knowledge_of": stored, "training": training(), "validation": TEST}
    first = run(tmp_path / "run", **options)
    began = time.monotonic()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = run(tmp_path / "run", network=student(seed=8), **options)
    assert_equal(first.student, again.student)
    assert again.history == first.history
    assert again.metrics == first.metrics != {}
    assert not again.student.training
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert time.monotonic() - began < 30


def test_another_configuration_is_refused_by_name(tmp_path, stored):
    run(tmp_path / "run", knowledge_of=stored, training=training(epochs=1))
    advice = r"Choose another --out, or start again: delete that folder, or let `learn` do it with --overwrite\."
    for options, name in (
        ({"training": training(epochs=1, lr=0.2)}, r"training\.lr \(0\.05, now 0\.2\)"),
        ({"training": training(epochs=1), "door": "lightning"}, r"door \('plain', now 'lightning'\)"),
        (
            {"training": training(epochs=1), "labels": np.zeros(60, dtype=np.int64)},
            r"labels \(None, now '[0-9a-f]{32}'\)",
        ),
        ({"training": training(epochs=1), "network": student("digits-small")}, r"student\.class"),
        ({"training": training(epochs=1), "knowledge_of": None}, r"knowledge"),
    ):
        with pytest.raises(ConfigError, match=name + ".*" + advice):
            run(tmp_path / "run", **{"knowledge_of": stored, **options})


def test_overwrite_starts_again(tmp_path, stored):
    run(tmp_path / "run", knowledge_of=stored, training=training(epochs=1))
    other = run(tmp_path / "run", knowledge_of=stored, training=training(epochs=1, seed=4), overwrite=True)
    assert_equal(other.student, run(None, knowledge_of=stored, training=training(epochs=1, seed=4)).student)


def test_a_moved_book_is_the_same_book(tmp_path, stored):
    moved = tmp_path / "moved"
    moved.symlink_to(stored)
    first = run(tmp_path / "run", knowledge_of=stored, training=training(epochs=1))
    assert_equal(first.student, run(tmp_path / "run", knowledge_of=moved, training=training(epochs=1)).student)


def test_starting_weights_are_where_the_student_starts():
    network = student(dropout=0.0)
    start = weights(network)
    learned = run(None, network=network, training=training(epochs=1, lr=1e-9))
    for name, value in learned.student.state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-6)


def test_a_checkpoint_of_another_run_is_refused(tmp_path, stored, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(patch, 5)
        with pytest.raises(StopError):
            run(tmp_path / "one", knowledge_of=stored, training=training(checkpoint_steps=4))
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "two" / "checkpoints")
    with pytest.raises(CheckpointError, match=r"Expected a checkpoint of 4 steps an epoch .*, got 8"):
        run(tmp_path / "two", knowledge_of=stored, training=training(batch_size=16))


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_ctrl_c_leaves_a_run_that_can_go_on_and_the_signal_as_it_was(tmp_path, stored, monkeypatch, door):
    from bookkd.learning.run import Run

    real = Run.optimizer_step

    def interrupted(self, *args, **kwargs):
        if self.steps == 9:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGINT)
    options = {"knowledge_of": stored, "training": training(checkpoint_steps=3), "door": door}
    with monkeypatch.context() as patch:
        patch.setattr(Run, "optimizer_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", **options)
    assert signal.getsignal(signal.SIGINT) is before
    assert_equal(run(tmp_path / "cut", **options).student, run(None, **options).student)


def test_another_start_is_refused_where_it_is_named(tmp_path, stored):
    options = {"knowledge_of": stored, "training": training(epochs=1)}
    run(tmp_path / "run", **options, start="a1")
    run(tmp_path / "run", **options, start="a1")
    with pytest.raises(ConfigError, match=r"student\.start \('a1', now 'b2'\)"):
        run(tmp_path / "run", **options, start="b2")
