"""How to train: plain values, and the optimizer and learning-rate schedule made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from bookkd.core.check import at_least, between, positive
from bookkd.core.errors import ConfigError, DeviceError, expected
from bookkd.core.names import choose
from bookkd.learning.learner import Learner

__all__ = ["LearningRate", "Training", "find_device", "make_optimizer", "trainable"]

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "plateau", "step")
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
SHUFFLES = ("auto", "blocks", "rows")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Training:
    """How a student is trained; the same for every method and every door.

    Args:
        epochs: Passes over the samples; each epoch shows one view of each.
        batch_size: Samples of a batch on one rank.
        accumulate: Batches that make one optimizer step.
        optimizer: "sgd" or "adamw".
        lr: Peak learning rate.
        momentum: Of SGD.
        nesterov: Nesterov's momentum in SGD; False is the plain momentum of most published recipes.
        weight_decay: On all parameters.
        schedule: "cosine" to 0, "step" (times `gamma` at `milestones`), "plateau" (times `gamma` when the validation
            metric stalls for `plateau_patience` epochs), or "constant".
        warmup_epochs: Linear warm-up from 0; may be a fraction.
        milestones: Epochs of the "step" schedule, each below `epochs`.
        gamma: Factor of "step" and "plateau".
        plateau_patience: Epochs that "plateau" waits.
        clip_norm: Largest gradient norm; None does not clip.
        patience: Stop early after so many validations without improvement, and give the student of the best epoch; None
            never stops and gives the last. As many as `epochs` gives the best epoch and never stops.
        checkpoint_steps: Optimizer steps between checkpoints inside an epoch; 0 saves at the end of each epoch only.
        workers: Loader processes.
        seed: Of the order of samples and of dropout.
        shuffle: "rows" shuffles all samples; "blocks" shuffles blocks of samples, then the samples inside a window of them, so
            that a book larger than memory is read at the speed of the disk; "auto" takes blocks where what an epoch reads of
            the book is more than half of the free memory.
        shuffle_window: Blocks of a window, with "blocks": more mix better and take more memory; None takes as many as fit.
        shuffle_block_rows: Samples of a block, with "blocks": fewer mix samples better that lie sorted by class, and are read
            more slowly; None takes the book's hashing blocks, and finer ones where samples lie sorted.
        probe_share: Share of views whose probe is compared with the book's, 0 to 1.
        cache_views: Keep all views in memory, so that each is drawn once for all epochs.
        cache_bytes: Most memory that `cache_views` may use.
        accelerator: "auto", "cpu", "cuda" (or "gpu"), "mps".
        devices: Processes, one a device.
        precision: Lightning's names: "32-true", "bf16-mixed", "16-mixed".
        compile: Pass the student through `torch.compile`.
    """

    epochs: int = 30
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "plateau", "step"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    plateau_patience: int = 5
    clip_norm: float | None = None
    patience: int | None = None
    checkpoint_steps: int = 0
    workers: int = 0
    seed: int = 0
    shuffle: Literal["auto", "blocks", "rows"] = "auto"
    shuffle_window: int | None = None
    shuffle_block_rows: int | None = None
    probe_share: float = 0.02
    cache_views: bool = False
    cache_bytes: int = 4 * 2**30
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    devices: int = 1
    precision: str = "32-true"
    compile: bool = False

    def __post_init__(self) -> None:
        for key, low in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("devices", 1),
            ("workers", 0),
            ("seed", 0),
            ("checkpoint_steps", 0),
            ("plateau_patience", 0),
            ("cache_bytes", 0),
        ):
            at_least(getattr(self, key), low, key, where="training")
        for key, high in (
            ("momentum", 1),
            ("gamma", 1),
            ("probe_share", 1),
            ("warmup_epochs", self.epochs),
            ("weight_decay", math.inf),
        ):
            between(getattr(self, key), 0, high, key, where="training")
        positive(self.lr, "lr", where="training")
        choose(self.optimizer, OPTIMIZERS, "optimizer")
        choose(self.schedule, SCHEDULES, "schedule")
        choose(self.accelerator, ACCELERATORS, "accelerator")
        choose(self.precision, PRECISIONS, "precision")
        choose(self.shuffle, SHUFFLES, "shuffle")
        for key in ("shuffle_window", "shuffle_block_rows"):
            value = getattr(self, key)
            if value is None:
                continue
            at_least(value, 1, key, where="training")
            if self.shuffle != "blocks":
                wish, do = f"None with shuffle {self.shuffle}", "Pass --training.shuffle blocks with it."
                raise ConfigError(expected(key, wish, value, where="training", do=do))
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Refuse a length, milestones or a norm that mean nothing to the schedule."""
        if self.patience is not None:
            at_least(self.patience, 1, "patience", where="training")
        for milestone in self.milestones:
            at_least(milestone, 1, "milestones", where="training")
            if milestone >= self.epochs:
                do = "A milestone at the end or behind it changes nothing: leave it out."
                raise ConfigError(
                    expected("milestones", f"below epochs, {self.epochs}", milestone, where="training", do=do)
                )
        if self.milestones and self.schedule != "step":
            do = "Pass --training.schedule step, or leave the milestones out."
            raise ConfigError(
                expected("milestones", f"empty with schedule {self.schedule}", self.milestones, where="training", do=do)
            )
        if self.clip_norm is not None:
            positive(self.clip_norm, "clip_norm", where="training")
        if self.schedule == "step" and not self.milestones:
            raise ConfigError(
                expected(
                    "milestones",
                    "epochs of the step schedule",
                    (),
                    where="training",
                    do="Pass --training.milestones '[150,180,210]'.",
                )
            )


def find_device(accelerator: str) -> torch.device:
    """Return the device that `accelerator` names.

    Raises:
        DeviceError: if it is not there.

    >>> find_device("cpu").type
    'cpu'
    """
    choose(accelerator, ACCELERATORS, "accelerator")
    wanted = {"gpu": "cuda"}.get(accelerator, accelerator)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        have = ", ".join(name for name, there in present.items() if there)
        raise DeviceError(
            expected(
                "accelerator", f"one of those present here: {have}", accelerator, do="Pass --training.accelerator auto."
            )
        )
    return torch.device(wanted)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training moves.

    Raises:
        ConfigError: if there are none.
    """
    found = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not found:
        do = "Call student.requires_grad_(True) on a frozen network; a Teacher freezes the network that it is given."
        raise ConfigError(
            expected("student", "a network with a parameter to train", "a frozen one", where="training", do=do)
        )
    return found


def make_optimizer(module: nn.Module, training: Training) -> Optimizer:
    """Return the optimizer of `training` over the parameters of `module` that are not frozen.

    Of a `Learner` the parameters that a shaped student has set apart, and the connectors, are groups of their own behind the student's.
    """
    apart = [group for group in module.shaping.groups() if group.parameters] if isinstance(module, Learner) else []
    theirs = {id(parameter) for group in apart for parameter in group.parameters}
    mine = [
        each for each in trainable(module.student if isinstance(module, Learner) else module) if id(each) not in theirs
    ]
    groups: list[dict[str, Any]] = [{"params": mine}]
    if isinstance(module, Learner):
        for group in apart:
            lr = training.lr if group.lr is None else group.lr
            groups.append({"params": list(group.parameters), "lr": lr, "weight_decay": group.weight_decay})
        for connector in module.connectors:
            lr = training.lr if connector.lr is None else connector.lr
            own = list(module.part(connector).parameters())
            decay = training.weight_decay if connector.weight_decay is None else connector.weight_decay
            groups.append({"params": own, "lr": lr, "weight_decay": decay})
    if training.optimizer == "sgd":
        return SGD(
            groups,
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov and training.momentum > 0,
        )
    return AdamW(groups, lr=training.lr, weight_decay=training.weight_decay)


class LearningRate:
    """The learning-rate schedule, stepped after every optimizer step and told of every validation.

    Args:
        optimizer: Whose rate is set.
        training: Names the schedule.
        steps_per_epoch: Optimizer steps of an epoch.
    """

    def __init__(self, optimizer: Optimizer, training: Training, steps_per_epoch: int) -> None:
        self.training = training
        self.steps_per_epoch = steps_per_epoch
        self._by_step = LambdaLR(optimizer, self.factor)
        self._plateau = (
            ReduceLROnPlateau(optimizer, mode="max", factor=training.gamma, patience=training.plateau_patience)
            if training.schedule == "plateau"
            else None
        )

    def factor(self, step: int) -> float:
        """Return the share of the peak rate at optimizer step `step`."""
        training, epoch = self.training, step / self.steps_per_epoch
        if epoch < training.warmup_epochs:
            # At most 1: a warm-up of 2.5 steps has a third step, which would overshoot.
            return min(1.0, (step + 1) / (training.warmup_epochs * self.steps_per_epoch))
        if training.schedule == "cosine":
            rest = max(1e-9, training.epochs - training.warmup_epochs)
            return (1 + math.cos(math.pi * min(1.0, (epoch - training.warmup_epochs) / rest))) / 2
        if training.schedule == "step":
            return float(training.gamma ** sum(epoch >= milestone for milestone in training.milestones))
        return 1.0

    def after_step(self) -> None:
        """Move on by one optimizer step."""
        # ReduceLROnPlateau owns the rate once warm-up is over: LambdaLR would set it back.
        warm = self.training.warmup_epochs * self.steps_per_epoch
        if self._plateau is None or self._by_step.last_epoch < warm:
            self._by_step.step()

    def after_validation(self, metric: float) -> None:
        """Tell the plateau schedule of a validation metric; larger is better."""
        if self._plateau is not None:
            self._plateau.step(metric)

    def state_dict(self) -> dict[str, object]:
        """Return what a checkpoint must hold."""
        plateau = self._plateau.state_dict() if self._plateau is not None else None
        step = {key: value for key, value in self._by_step.state_dict().items() if key != "lr_lambdas"}
        return {"by_step": step, "plateau": plateau}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Take it back."""
        self._by_step.load_state_dict({**state["by_step"], "lr_lambdas": [None]})
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])
