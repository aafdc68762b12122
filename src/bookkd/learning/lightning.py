"""The Lightning door: devices, precision, loggers, callbacks and distributed training are Lightning's, the step is ours.

Optimization is manual in Lightning's sense, since one optimizer step of ours spans a group of micro-batches whose term
weights are known before the first backward pass. Set clipping and accumulation in `Training`, not on the Trainer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.plugins import CheckpointIO
from torch import Tensor
from torch.optim import Optimizer

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LABEL, LOGITS
from bookkd.evaluation import evaluate
from bookkd.learning.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from bookkd.learning.data import Groups
from bookkd.learning.learner import Learner
from bookkd.learning.run import Run
from bookkd.learning.step import to_device
from bookkd.learning.training import Training, find_device

__all__ = ["BookModule", "SafeCheckpointIO", "make_trainer"]


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
        learner: Student and connectors.
        make_run: Builds the run once the learner is on its device and the process group is up.
        log: Called on rank 0 with one flat dict after each epoch.
    """

    def __init__(
        self, learner: Learner, make_run: Callable[[Learner], Run], log: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner = learner
        self.run: Run | None = None
        self._make_run = make_run
        self._log_record = log
        self._restored: Mapping[str, Any] | None = None
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._started = 0.0
        self._said: list[tuple[Tensor, Tensor]] = []
        self._metrics: dict[str, float] = {}
        self._validation_started = self._validation_seconds = 0.0

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
        """Move groups and batches, leaving addresses and probes on the CPU."""
        if isinstance(batch, list):
            return [to_device(one, device) for one in batch]
        return to_device(batch, device)

    def on_train_epoch_start(self) -> None:
        """Reset the sums of the epoch."""
        self._sums, self._count, self._started = {}, 0, time.perf_counter()
        self.active.fire("epoch_start")

    def training_step(self, group: list[dict[str, Any]], batch_idx: int) -> None:
        """Run one optimizer step of ours."""
        optimizer = self.optimizers()
        if isinstance(optimizer, list):
            raise ConfigError(expected("optimizers", "one", len(optimizer), where="Lightning door"))
        logs = self.active.optimizer_step(group, backward=self.manual_backward, apply=optimizer.step)
        for name, value in logs.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def on_train_epoch_end(self) -> None:
        """Close the epoch: means of the terms, next order of samples, early stopping."""
        run = self.active
        run.end_epoch()
        means = {f"train/{name}": float(value) / max(1, self._count) for name, value in self._sums.items()}
        self.log_dict(means)
        record: dict[str, Any] = {"epoch": run.epoch, "step": run.steps, "seconds": time.perf_counter() - self._started}
        record |= {**means, "lr": run.optimizer.param_groups[0]["lr"], **self._metrics}
        record["seconds"] -= self._validation_seconds
        if self._metrics:
            run.validated(self._metrics[f"val/{self.learner.task.primary_metric}"])
        self._metrics, self._validation_seconds = {}, 0.0
        self.trainer.should_stop = run.finished
        if self._log_record is not None and self.trainer.is_global_zero:
            self._log_record(record)

    def on_validation_epoch_start(self) -> None:
        """Start collecting what the student says."""
        self._said, self._validation_started = [], time.perf_counter()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect the student's fields."""
        said = self.learner(batch)[LOGITS]
        self._said.append((said.float().cpu(), batch[LABEL].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Evaluate the whole set; every rank sees all of it, so that the metric is exact."""
        if self.trainer.sanity_checking or not self._said:
            return
        logits, labels = torch.cat([a for a, _ in self._said]), torch.cat([b for _, b in self._said])
        result = evaluate(logits, labels, class_names=self.learner.task.class_names, replicates=0)
        self._metrics = {f"val/{name}": interval.value for name, interval in result.metrics.items()}
        self.log_dict(self._metrics)
        self._validation_seconds = time.perf_counter() - self._validation_started

    def on_fit_start(self) -> None:
        """Tell the handlers."""
        self.active.fire("run_start")

    def on_fit_end(self) -> None:
        """Tell the handlers."""
        self.active.fire("run_end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the progress of the run; Lightning saves weights and optimizer itself."""
        checkpoint["bookkd"] = self.active.progress_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the progress until the run is built."""
        self._restored = checkpoint["bookkd"]


def make_trainer(
    training: Training,
    *,
    folder: Path | None,
    loggers: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **overrides: Any,
) -> pl.Trainer:
    """Return a Lightning Trainer with our checkpoints and without Lightning's own sharding of samples.

    Args:
        training: Devices, precision, epochs.
        folder: Where checkpoints go; None keeps none.
        loggers: Any Lightning loggers.
        callbacks: Further callbacks.
        progress: Show a progress bar.
        **overrides: Passed to `Trainer`.

    Raises:
        DeviceError: if the accelerator is not there.
    """
    device = find_device(training.accelerator)
    if training.precision == "16-mixed" and training.clip_norm is not None:
        raise ConfigError(
            "Expected `clip_norm` to be unset with precision 16-mixed, whose gradients are scaled. Use bf16-mixed."
        )
    kept: list[Callback] = list(callbacks)
    if folder is not None:
        kept.append(
            ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        )
        if training.checkpoint_steps:
            steps = training.checkpoint_steps
            kept.append(
                ModelCheckpoint(folder, filename="last", enable_version_counter=False, every_n_train_steps=steps)
            )
    if progress:
        kept.append(RichProgressBar())
    settings: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": training.devices,
        "precision": training.precision,
        "max_epochs": training.epochs,
        "logger": list(loggers) or False,
        "callbacks": kept,
        "plugins": [SafeCheckpointIO()],
        "use_distributed_sampler": False,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        "enable_checkpointing": folder is not None,
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
    validation_loader: Any | None = None,
    resume_from: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> BookModule:
    """Train with Lightning.

    Args:
        learner: Student and connectors.
        make_run: Builds the run from learner and batches.
        make_groups: Builds the batches of a rank: called with rank and world size.
        trainer: From `make_trainer`.
        validation_loader: Batches of the validation set.
        resume_from: Checkpoint to go on from.
        log: Called with one flat dict after each epoch.
    """
    groups = make_groups(trainer.global_rank, trainer.world_size)
    module = BookModule(learner, lambda placed: make_run(placed, groups), log)
    checkpoint = None if resume_from is None or not resume_from.exists() else str(resume_from)
    trainer.fit(module, train_dataloaders=groups, val_dataloaders=validation_loader, ckpt_path=checkpoint)
    return module
