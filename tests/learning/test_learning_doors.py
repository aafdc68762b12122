"""The plain loop and the Lightning door are one: same weights, same records, same events, same files."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.learning.digits import (
    TASK,
    TEST,
    Fired,
    assert_equal,
    run,
    student,
    teacher,
    training,
    weights,
    without_seconds,
)

from bookkd.core.errors import ConfigError, DataError, DeviceError, UnknownNameError
from bookkd.knowledge import LiveKnowledge
from bookkd.methods import VanillaKD

HARD = {"accumulate": 2, "clip_norm": 0.5, "schedule": "cosine", "warmup_epochs": 0.5, "checkpoint_steps": 3}


@pytest.mark.parametrize("name", ["dropping", "digits-small"])
@pytest.mark.parametrize("options", [HARD, {"optimizer": "adamw", "lr": 1e-3}], ids=["sgd", "adamw"])
def test_doors_reach_the_same_weights(tmp_path, stored, name, options):
    learned = {
        door: run(
            tmp_path / door,
            network=student(name),
            knowledge_of=stored,
            training=training(**options),
            door=door,
            validation=TEST,
        )
        for door in ("plain", "lightning")
    }
    assert_equal(learned["plain"].student, learned["lightning"].student, 1e-6)
    records = [without_seconds(learned[door].history) for door in ("plain", "lightning")]
    assert [record.keys() for record in records[0]] == [record.keys() for record in records[1]]
    for mine, theirs in zip(*records, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert learned["plain"].metrics == pytest.approx(learned["lightning"].metrics, abs=1e-6)
    assert {"train/loss", "train/soft_target", "train/cross_entropy", "val/accuracy"} <= records[0][0].keys()
    for door in ("plain", "lightning"):
        kept = {path.name.split(".")[0] for path in (tmp_path / door / "checkpoints").glob("*.ckpt")}
        assert kept == {"last"}
    assert learned["plain"].teacher_forwards == learned["lightning"].teacher_forwards == 0


def test_training_moves_the_weights_and_lowers_the_loss(tmp_path, stored):
    before = weights(student("digits-small"))
    learned = run(
        tmp_path / "run", network=student("digits-small"), knowledge_of=stored, training=training(epochs=8, lr=0.1)
    )
    losses = [record["train/soft_target"] for record in learned.history]
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(before["conv1.weight"], learned.student.state_dict()["conv1.weight"])
    assert not learned.student.training
    assert [record["step"] for record in learned.history] == [8 * (epoch + 1) for epoch in range(8)]


@dataclasses.dataclass(frozen=True)
class Told(VanillaKD):
    """A method that watches its run."""

    heard: list = dataclasses.field(default_factory=list, compare=False)

    def handlers(self):
        return (Fired(self.heard),)


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_events_are_fired_in_order(stored, door):
    method = Told()
    run(None, method=method, knowledge_of=stored, training=training(batch_size=30), door=door, validation=TEST)
    heard = method.heard
    assert heard[:5] == ["run_start", "epoch_start", "step_end", "step_end", "epoch_end"]
    assert heard[-1] == "run_end"
    assert [heard.count(event) for event in ("run_start", "epoch_start", "step_end", "epoch_end", "run_end")] == [
        1,
        2,
        4,
        2,
        1,
    ]


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_teacher_forwards_are_those_of_the_run(door):
    knowledge = LiveKnowledge(teacher(), TASK)
    knowledge.targets({"input": torch.zeros(5, 1, 8, 8)})
    learned = run(None, knowledge=knowledge, training=training(batch_size=32), door=door)
    # 60 samples fill two batches of 32, the last of them with four rows that only pad.
    assert learned.teacher_forwards == 2 * 64


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_the_callers_generators_stay_where_they_are(stored, door):
    torch.manual_seed(11)
    np.random.seed(11)
    expected = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(None, knowledge_of=stored, training=training(epochs=1), door=door, validation=TEST)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (np.random.get_state()[1] == expected[1]).all()


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_the_callers_generators_do_not_matter(stored, door):
    learned = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        learned.append(run(None, knowledge_of=stored, training=training(epochs=1), door=door))
    assert_equal(learned[0].student, learned[1].student)


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_nothing_is_printed(stored, door, capfd):
    run(None, knowledge_of=stored, training=training(epochs=1), door=door)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("door", ["plain", "lightning"])
@pytest.mark.parametrize("validated", [True, False])
def test_divergence_is_an_error(stored, door, validated):
    with pytest.raises(DataError, match=r"to be (finite|a number), got nan .*lower --training\.lr"):
        run(
            None,
            network=student(dropout=0.0),
            knowledge_of=stored,
            training=training(lr=1e30),
            door=door,
            validation=TEST if validated else None,
        )


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_patience_stops_early(tmp_path, door):
    # A rate of almost 0 never improves after the first validation.
    options = training(epochs=9, lr=1e-12, patience=2, batch_size=30)
    learned = run(tmp_path / "run", training=options, door=door, validation=TEST)
    assert len(learned.history) == 3
    again = run(tmp_path / "run", training=options, door=door, validation=TEST)
    assert len(again.history) == 3
    # Killed between the last checkpoint and the result, it does not start again either.
    (tmp_path / "run" / "result.json").unlink()
    third = run(tmp_path / "run", network=student(seed=5), training=options, door=door, validation=TEST)
    assert len(third.history) == 3
    assert_equal(third.student, learned.student)


@pytest.mark.parametrize("door", ["plain", "lightning"])
@pytest.mark.parametrize("kept", [True, False], ids=["folder", "memory"])
def test_patience_gives_the_student_of_the_best_epoch(tmp_path, monkeypatch, door, kept):
    """The metric is made to peak at the second epoch; its student is that of a run of two epochs at a constant rate."""
    from bookkd.learning.validation import Validation

    measured = iter([0.2, 0.6, 0.5, 0.4, 0.9])
    real = Validation.__call__
    monkeypatch.setattr(
        Validation, "__call__", lambda self, learner: real(self, learner) | {"accuracy": next(measured)}
    )
    options = {"schedule": "constant", "batch_size": 30}
    out = tmp_path / "run" if kept else None
    learned = run(out, training=training(epochs=9, patience=2, **options), door=door, validation=TEST)
    assert (learned.epoch, len(learned.history), learned.metrics["accuracy"]) == (2, 4, 0.6)
    assert_equal(learned.student, run(None, training=training(epochs=2, **options), door=door).student)
    if kept:
        result = json.loads((out / "result.json").read_text())
        assert (result["epoch"], result["epochs"], result["accuracy"]) == (2, 4, 0.6)
        saved = load_file(out / "student.safetensors")
        torch.testing.assert_close(saved, dict(learned.student.state_dict()), rtol=0, atol=0)
        again = run(out, training=training(epochs=9, patience=2, **options), door=door, validation=TEST)
        assert (again.epoch, again.metrics) == (learned.epoch, learned.metrics)
        # Killed before the result: the best epoch's weights come back from the checkpoint.
        (out / "result.json").unlink()
        third = run(
            out, network=student(seed=5), training=training(epochs=9, patience=2, **options), door=door, validation=TEST
        )
        assert (third.epoch, third.metrics) == (learned.epoch, learned.metrics)
        assert_equal(third.student, learned.student)


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_a_run_done_but_for_its_result_ends_with_the_best_epoch(tmp_path, monkeypatch, door):
    from bookkd.learning.validation import Validation

    measured = iter([0.6, 0.5])
    real = Validation.__call__
    monkeypatch.setattr(
        Validation, "__call__", lambda self, learner: real(self, learner) | {"accuracy": next(measured)}
    )
    options = {"training": training(epochs=2, patience=2), "door": door, "validation": TEST}
    learned = run(tmp_path / "run", **options)
    (tmp_path / "run" / "result.json").unlink()
    again = run(tmp_path / "run", network=student(seed=5), **options)
    assert again.epoch == learned.epoch == 1
    assert_equal(again.student, learned.student)


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_the_logged_rate_is_that_of_the_last_step_of_the_epoch(door):
    learned = run(None, training=training(epochs=2, batch_size=30, lr=0.1), door=door)
    # Cosine over 4 steps, seen at steps 1 and 3.
    wanted = [0.1 * (1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 3)]
    assert [record["lr"] for record in learned.history] == pytest.approx(wanted)


def test_options_that_contradict_each_other(stored):
    with pytest.raises(ConfigError, match=r"Expected `door` to be lightning for several devices.*got 'plain'"):
        run(None, training=training(devices=2))
    with pytest.raises(ConfigError, match="Expected `validation` to be given for early stopping"):
        run(None, training=training(patience=2))
    with pytest.raises(ConfigError, match="Expected `validation` to be given"):
        run(None, training=training(schedule="plateau"))
    with pytest.raises(UnknownNameError, match=r"Unknown door 'lightening'\. Nearest: lightning"):
        run(None, door="lightening")
    with pytest.raises(ConfigError, match="Expected `clip_norm` to be None with precision 16-mixed"):
        run(None, training=training(precision="16-mixed", clip_norm=1.0), door="lightning")
    with pytest.raises(ConfigError, match=r"Expected knowledge of logits for method vanilla-kd, got none"):
        run(None, method=VanillaKD())


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_what_cannot_learn_is_refused_before_the_folder_is_made(tmp_path, door):
    hidden = np.full(60, -1, dtype=np.int64)
    for options, match in (
        ({"network": student().requires_grad_(False)}, "`student` to be a network with a parameter to train, got"),
        ({"network": torch.nn.Flatten()}, "`student` to be a network with a parameter to train, got"),
        ({"validation": []}, r"`validation` to be at least one sample, got 0 \(learn\)\. Pass None"),
        (
            {"labels": hidden},
            r"`labels` to be known for one sample at least, got none of them \(learn\)\. Show the student",
        ),
    ):
        with pytest.raises(ConfigError, match=match) as raised:
            run(tmp_path / "run", door=door, **options)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()


def test_hidden_labels_leave_the_teacher_to_learn_from(stored):
    hidden = np.full(60, -1, dtype=np.int64)
    assert len(run(None, knowledge_of=stored, training=training(epochs=1), labels=hidden).history) == 1
    seen = hidden.copy()
    seen[7] = 3
    plain = run(None, training=training(epochs=1), labels=seen).history
    assert len(plain) == 1
    rows = list(range(60))
    listed = run(None, training=training(epochs=1), labels=seen.tolist(), rows=rows).history
    assert listed[0]["train/loss"] == plain[0]["train/loss"]
    with pytest.raises(
        ConfigError, match=r"`labels` to be numbers.*at least 60\), got int64 of shape \(50,\) \(learn\)"
    ):
        run(None, labels=seen[:50].tolist(), rows=rows)


def test_callbacks_are_lightnings():
    from pytorch_lightning.callbacks import LambdaCallback

    ended = []
    callback = LambdaCallback(on_train_epoch_end=lambda trainer, module: ended.append(module.active.epoch))
    run(None, training=training(batch_size=30), door="lightning", callbacks=[callback])
    assert len(ended) == 2
    with pytest.raises(ConfigError, match=r"`door` to be lightning for several devices, loggers, callbacks or"):
        run(None, training=training(), callbacks=[callback])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_a_gpu_that_is_not_there(door):
    with pytest.raises(
        DeviceError, match=r"one of those present here: cpu, got 'gpu'\. Pass --training\.accelerator auto\."
    ) as raised:
        run(None, training=training(accelerator="gpu"), door=door)
    assert "\n" not in str(raised.value)


def test_bfloat16_learns(stored):
    learned = run(None, knowledge_of=stored, training=training(precision="bf16-mixed"), door="lightning")
    assert {value.dtype for value in learned.student.state_dict().values()} == {torch.float32}
    assert np.isfinite(learned.history[-1]["train/loss"])
