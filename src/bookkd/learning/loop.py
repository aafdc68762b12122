"""The plain training loop: the whole of learning in one page, for scripts, notebooks and tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from bookkd.learning.checkpoint import load_checkpoint, save_checkpoint
from bookkd.learning.data import Groups
from bookkd.learning.run import Run
from bookkd.learning.step import to_device
from bookkd.learning.validation import Validation

__all__ = ["fit"]


def fit(
    run: Run,
    groups: Groups,
    *,
    validation: Validation | None = None,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train until the run is finished.

    Args:
        run: The state that is moved; it may come from a checkpoint, also from inside an epoch.
        groups: The batches; `groups.sampler` is `run.sampler`.
        validation: Measured after each epoch.
        folder: Where `last.ckpt` and `best.ckpt` are kept; None keeps none. A `last.ckpt` found there is gone on from.
        log: Called with one flat dict after each epoch.
    """
    last = None if folder is None else folder / "last.ckpt"
    if last is not None and last.exists():
        run.load_state_dict(load_checkpoint(last))
    device = next(run.learner.parameters()).device
    run.fire("run_start")
    while not run.finished:
        run.learner.train()
        run.fire("epoch_start")
        started, sums, count = time.perf_counter(), dict[str, Tensor](), 0
        for group in groups:
            logs = run.optimizer_step([to_device(batch, device) for batch in group])
            for name, value in logs.items():
                sums[name] = sums[name] + value if name in sums else value
            count += 1
            every = run.training.checkpoint_steps
            if last is not None and every and run.steps % every == 0 and run.steps % run.steps_per_epoch:
                save_checkpoint(last, run.state_dict())
        seconds = time.perf_counter() - started
        record: dict[str, Any] = {"epoch": run.epoch, "step": run.steps, "seconds": seconds}
        record |= {f"train/{name}": float(value) / max(1, count) for name, value in sums.items()}
        record["lr"] = run.optimizer.param_groups[0]["lr"]
        run.end_epoch()
        if validation is not None:
            metrics = validation(run.learner)
            record |= {f"val/{name}": value for name, value in metrics.items()}
            if run.validated(metrics[run.learner.task.primary_metric]) and folder is not None:
                save_checkpoint(folder / "best.ckpt", {"learner": run.learner.state_dict(), "epoch": run.epoch})
        if last is not None:
            save_checkpoint(last, run.state_dict())
        if log is not None:
            log(record)
    run.fire("run_end")
