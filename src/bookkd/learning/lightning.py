"""The Lightning door: devices, precision, loggers, callbacks and distributed training are Lightning's, the step is ours.

Optimization is manual in Lightning's sense, since one optimizer step of ours spans a group of micro-batches whose term
weights are known before the first backward pass. Set clipping and accumulation in `Training`, not on the Trainer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, RichProgressBar
from pytorch_lightning.plugins import CheckpointIO
from torch.optim import Optimizer

from bookkd.core.errors import ConfigError, expected
from bookkd.learning.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from bookkd.learning.data import Groups
from bookkd.learning.learner import Learner
from bookkd.learning.loop import close_epoch
from bookkd.learning.run import Run
from bookkd.learning.step import to_device
from bookkd.learning.training import Training, find_device
from bookkd.learning.validation import Validation

__all__ = ["BookModule", "SafeCheckpointIO", "fit_lightning", "make_trainer"]


class SafeCheckpointIO(CheckpointIO):
    """Lightning checkpoints as safetensors and JSON, never pickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; a callable map_location of Lightning's means "leave it on the CPU"."""
        return load_checkpoint(path, None if callable(map_location) else map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        remove_checkpoint(path)


class BookModule(pl.LightningModule):
    """A run inside Lightning.

    Args:
        learner: The student.
        make_run: Builds the run once the learner is on its device and the process group is up.
        validation: Measured after each epoch by every rank on the whole set, so that the metric is exact.
        folder: Where `last.ckpt` is kept; None keeps none.
        log: Called on rank 0 with one flat dict after each epoch.
    """

    def __init__(
        self,
        learner: Learner,
        make_run: Callable[[Learner], Run],
        *,
        validation: Validation | None = None,
        folder: Path | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner = learner
        self.run: Run | None = None
        self._make_run = make_run
        self._validation = validation
        self._folder = folder
        self._log_record = log
        self._restored: Mapping[str, Any] | None = None
        self._started = 0.0

    @property
    def active(self) -> Run:
        """The run, once Lightning has set up its optimizer."""
        if self.run is None:
            raise ConfigError(
                "Expected the run to be set up, got a module outside of Trainer.fit. Call Trainer.fit first."
            )
        return self.run

    def configure_optimizers(self) -> Optimizer:
        """Build the run; Lightning has moved the learner to its device by now."""
        self.run = self._make_run(self.learner)
        if self._restored is not None:
            self.run.load_progress_state(self._restored)
        return self.run.optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a group, leaving addresses and probes on the CPU."""
        return [to_device(one, device) for one in batch]

    def on_train_start(self) -> None:
        """Tell the handlers; a run that had stopped early does not start again."""
        self._check_order()
        self.active.fire("run_start")
        self.trainer.should_stop = self.active.finished
        # Lightning calls no hook for the start of an epoch that it goes on with.
        self._started = time.perf_counter()

    def _check_order(self) -> None:
        """Refuse ranks that chose different orders by the memory of their machines: samples would be lost and doubled."""
        mine = self.active.sampler.state_dict()
        first = self.trainer.strategy.broadcast(mine)
        if first != mine:
            differing = sorted(key for key in {*first, *mine} if first.get(key) != mine.get(key))
            do = "Pass --training.shuffle rows, or blocks with --training.shuffle_window."
            wish = f"the same on all ranks ({', '.join(differing)})"
            raise ConfigError(expected("order of samples", wish, mine, where=f"rank {self.trainer.global_rank}", do=do))

    def on_train_epoch_start(self) -> None:
        """Begin an epoch."""
        self.active.begin_epoch()
        self._started = time.perf_counter()

    def training_step(self, group: list[dict[str, Any]], batch_idx: int) -> None:
        """Run one optimizer step of ours."""
        optimizer = self.optimizers()
        if isinstance(optimizer, list):
            raise ConfigError(expected("optimizers", "one", len(optimizer), where="Lightning door"))
        self.active.optimizer_step(group, backward=self.manual_backward, apply=optimizer.step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep a checkpoint inside an epoch."""
        if self.active.checkpoint_due:
            self._save()

    def on_train_epoch_end(self) -> None:
        """Close the epoch: means of the terms, validation, next order of samples, checkpoint, early stopping."""
        run, first = self.active, self.trainer.is_global_zero
        seconds = time.perf_counter() - self._started
        record = close_epoch(run, seconds=seconds, validation=self._validation)
        self.log_dict({key: value for key, value in record.items() if "/" in key or key == "lr"})
        self.trainer.should_stop = run.finished
        if self._log_record is not None and first:
            self._log_record(record)
        self._save()

    def on_train_end(self) -> None:
        """Tell the handlers."""
        self.active.fire("run_end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the progress of the run; Lightning saves weights and optimizer itself."""
        checkpoint["bookkd"] = self.active.progress_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the progress until the run is built."""
        self._restored = checkpoint["bookkd"]

    def _save(self) -> None:
        if self._folder is not None:
            self.trainer.save_checkpoint(self._folder / "last.ckpt")


def make_trainer(
    training: Training,
    *,
    folder: Path | None = None,
    loggers: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **overrides: Any,
) -> pl.Trainer:
    """Return a Lightning Trainer that leaves sharding of samples, validation and checkpoints to `BookModule`.

    Args:
        training: Devices, precision, epochs.
        folder: Root of what callbacks write; None is the working directory.
        loggers: Any Lightning loggers.
        callbacks: Further callbacks.
        progress: Show a progress bar.
        **overrides: Passed to `Trainer`.

    Raises:
        DeviceError: if the accelerator is not there.
        ConfigError: if precision and clipping contradict each other.
    """
    device = find_device(training.accelerator)
    if training.precision == "16-mixed" and training.clip_norm is not None:
        raise ConfigError(
            expected(
                "clip_norm",
                "None with precision 16-mixed, whose gradients are scaled",
                training.clip_norm,
                where="training",
                do="Pass --training.precision bf16-mixed.",
            )
        )
    settings: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": training.devices,
        "precision": training.precision,
        "max_epochs": training.epochs,
        "logger": list(loggers) or False,
        "callbacks": [*callbacks, *([RichProgressBar()] if progress else [])],
        "plugins": [SafeCheckpointIO()],
        "use_distributed_sampler": False,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder or os.curdir),
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**{**settings, **overrides})


def fit_lightning(
    learner: Learner,
    make_run: Callable[[Learner, Groups], Run],
    make_groups: Callable[[int, int], Groups],
    trainer: pl.Trainer,
    *,
    validation: Validation | None = None,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train with Lightning.

    Args:
        learner: The student.
        make_run: Builds the run from learner and batches.
        make_groups: Builds the batches of a rank: called with rank and world size.
        trainer: From `make_trainer`.
        validation: Measured after each epoch.
        folder: Where `last.ckpt` is kept; None keeps none. One found there is gone on from.
        log: Called with one flat dict after each epoch.

    Returns:
        The run, done.
    """
    groups = make_groups(trainer.global_rank, trainer.world_size)
    module = BookModule(learner, lambda placed: make_run(placed, groups), validation=validation, folder=folder, log=log)
    last = None if folder is None else folder / "last.ckpt"
    checkpoint = None if last is None or not last.exists() else str(last)
    learner.train()  # Lightning leaves modules in the mode in which it finds them.
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train_dataloaders=groups, ckpt_path=checkpoint)
    except SystemExit as ended:
        # Lightning turns Ctrl-C into an exit with code 1, and leaves the signal switched off.
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt or signal.SIG_DFL)
        raise KeyboardInterrupt from ended
    # Not in a hook: Lightning calls none where a checkpoint of the last epoch is gone on from.
    module.active.conclude()
    return module.active
