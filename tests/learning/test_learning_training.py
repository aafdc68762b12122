"""Options, optimizers and learning rates, against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau

from bookkd.core.errors import ConfigError, UnknownNameError
from bookkd.learning import LearningRate, Training, find_device
from bookkd.learning.training import make_optimizer

STEPS = 4


def optimizer(training):
    return make_optimizer(nn.Linear(2, 2), training)


def rates(training, epochs, metrics=None, resume_at=None):
    """The rate at every step of a run of `STEPS` steps an epoch; taken apart and put together again at `resume_at`."""
    made = optimizer(training)
    rate = LearningRate(made, training, STEPS)
    seen = []
    for step in range(epochs * STEPS):
        if step == resume_at:
            kept = made.state_dict(), rate.state_dict()
            made = optimizer(training)
            rate = LearningRate(made, training, STEPS)
            rate.load_state_dict(kept[1])
            made.load_state_dict(kept[0])
        seen.append(made.param_groups[0]["lr"])
        made.step()
        rate.after_step()
        if metrics is not None and (step + 1) % STEPS == 0:
            rate.after_validation(metrics[step // STEPS])
    return seen


def reference(scheduler, epochs, every=1, metrics=None):
    made = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = scheduler(made)
    seen = []
    for step in range(epochs * STEPS):
        seen.append(made.param_groups[0]["lr"])
        made.step()
        if (step + 1) % every == 0:
            schedule.step(*([] if metrics is None else [metrics[step // STEPS]]))
    return seen


METRICS = [0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("resume_at", [None, 5, 8])
def test_schedules_are_torchs(resume_at):
    cosine = Training(epochs=10, lr=0.1, schedule="cosine")
    expected = reference(lambda made: CosineAnnealingLR(made, T_max=10 * STEPS), 10)
    assert rates(cosine, 10, resume_at=resume_at) == pytest.approx(expected, abs=1e-12)
    steps = Training(epochs=10, lr=0.1, schedule="step", milestones=(3, 7), gamma=0.1)
    expected = reference(lambda made: MultiStepLR(made, [3, 7], gamma=0.1), 10, every=STEPS)
    assert rates(steps, 10, resume_at=resume_at) == pytest.approx(expected, rel=1e-12)
    plateau = Training(epochs=10, lr=0.1, schedule="plateau", plateau_patience=1, gamma=0.5)
    expected = reference(
        lambda made: ReduceLROnPlateau(made, mode="max", factor=0.5, patience=1), 10, every=STEPS, metrics=METRICS
    )
    assert len(set(expected)) > 2
    assert rates(plateau, 10, METRICS, resume_at=resume_at) == pytest.approx(expected, rel=1e-12)
    assert set(rates(Training(lr=0.1, schedule="constant"), 3, resume_at=resume_at)) == {0.1}


@pytest.mark.parametrize("warmup", [1.0, 0.5, 0.6, 2.3])
@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau"])
def test_warm_up_rises_in_a_line_and_never_over_the_peak(warmup, schedule):
    found = rates(Training(epochs=4, lr=0.1, schedule=schedule, warmup_epochs=warmup), 4, [0.1, 0.2, 0.3, 0.4])
    steps = math.ceil(warmup * STEPS)
    rising = found[:steps]
    assert rising == pytest.approx([min(0.1, 0.1 * (step + 1) / (warmup * STEPS)) for step in range(steps)])
    assert max(found) <= 0.1 + 1e-12
    if schedule == "cosine":
        rest = [
            0.05 * (1 + math.cos(math.pi * (step / STEPS - warmup) / (4 - warmup))) for step in range(steps, 4 * STEPS)
        ]
        assert found[steps:] == pytest.approx(rest, abs=1e-12)
    else:
        assert set(found[steps:]) == {0.1}


def test_optimizers_are_torchs():
    sgd = optimizer(Training(optimizer="sgd", lr=0.2, momentum=0.8, weight_decay=1e-3))
    assert isinstance(sgd, SGD)
    group = sgd.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.2, 0.8, 1e-3, True)
    assert optimizer(Training(momentum=0.0)).param_groups[0]["nesterov"] is False
    adam = optimizer(Training(optimizer="adamw", lr=1e-3, weight_decay=0.1))
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (1e-3, 0.1)


def test_nesterov_is_a_choice():
    assert optimizer(Training()).param_groups[0]["nesterov"]
    assert not optimizer(Training(nesterov=False)).param_groups[0]["nesterov"]
    assert not optimizer(Training(momentum=0.0)).param_groups[0]["nesterov"]


def test_a_network_without_a_parameter_to_train_is_refused():
    for network in (nn.Linear(2, 2).requires_grad_(False), nn.Flatten()):
        with pytest.raises(ConfigError, match="Expected `student` to be a network with a parameter to train, got"):
            make_optimizer(network, Training())


def test_frozen_parameters_are_left_out():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    assert len(make_optimizer(network, Training()).param_groups[0]["params"]) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, r"`epochs` to be a whole number of at least 1, got 0 \(training\)"),
        ({"epochs": 1.5}, r"`epochs` to be a whole number of at least 1, got 1\.5"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"accumulate": 0}, "`accumulate`"),
        ({"devices": 0}, "`devices`"),
        ({"workers": -1}, r"`workers` to be a whole number of at least 0, got -1"),
        ({"seed": -1}, "`seed`"),
        ({"checkpoint_steps": -1}, "`checkpoint_steps`"),
        ({"cache_bytes": -1}, "`cache_bytes`"),
        ({"lr": 0.0}, r"`lr` to be a number above 0, got 0\.0"),
        ({"lr": float("inf")}, "`lr`"),
        ({"momentum": 1.5}, r"`momentum` to be between 0 and 1, got 1\.5"),
        ({"weight_decay": -1e-4}, "`weight_decay` to be between 0 and inf"),
        ({"gamma": 2.0}, "`gamma` to be between 0 and 1"),
        ({"warmup_epochs": 31.0}, r"`warmup_epochs` to be between 0 and 30, got 31\.0"),
        ({"probe_share": 1.1}, "`probe_share` to be between 0 and 1"),
        ({"clip_norm": 0.0}, "`clip_norm` to be a number above 0"),
        ({"patience": 0}, r"`patience` to be a whole number of at least 1, got 0"),
        ({"plateau_patience": -1}, "`plateau_patience`"),
        ({"schedule": "step"}, r"`milestones` to be epochs of the step schedule.*'\[150,180,210\]'"),
        ({"schedule": "step", "milestones": (10, 30)}, r"`milestones` to be below epochs, 30, got 30"),
        ({"milestones": (10,)}, r"`milestones` to be empty with schedule cosine, got \(10,\)"),
        ({"schedule": "step", "milestones": (0,)}, "`milestones` to be a whole number of at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        Training(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"optimizer": "adam"}, r"Unknown optimizer 'adam'\. Nearest: adamw, sgd"),
        ({"schedule": "cos"}, r"Unknown schedule 'cos'\. Nearest: cosine"),
        ({"accelerator": "cud"}, r"Unknown accelerator 'cud'\. Nearest: cuda"),
        ({"precision": "bf16"}, r"Unknown precision 'bf16'\. Nearest: bf16-mixed"),
    ],
)
def test_unknown_names_list_the_nearest(options, match):
    with pytest.raises(UnknownNameError, match=match):
        Training(**options)


def test_find_device():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UnknownNameError, match="Unknown accelerator 'tpu'"):
        find_device("tpu")
