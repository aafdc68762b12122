"""The plain training loop: the whole of learning in one page, for scripts, notebooks and tests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bookkd.learning.checkpoint import load_checkpoint, save_checkpoint
from bookkd.learning.data import Groups
from bookkd.learning.run import Run
from bookkd.learning.step import to_device
from bookkd.learning.validation import Validation

__all__ = ["close_epoch", "fit"]


def fit(
    run: Run,
    groups: Groups,
    *,
    validation: Validation | None = None,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train until the run is finished; with `patience` the learner ends with the best epoch's weights, else the last's.

    Args:
        run: The state that is moved; it may come from a checkpoint, also from inside an epoch.
        groups: The batches; `groups.sampler` is `run.sampler`.
        validation: Measured after each epoch.
        folder: Where `last.ckpt` is kept; None keeps none. One found there is gone on from.
        log: Called with one flat dict after each epoch.
    """
    last = None if folder is None else folder / "last.ckpt"
    if last is not None and last.exists():
        run.load_state_dict(load_checkpoint(last))
    device = next(run.learner.parameters()).device
    run.fire("run_start")
    while not run.finished:
        run.begin_epoch()
        started = time.perf_counter()
        for group in groups:
            run.optimizer_step([to_device(batch, device) for batch in group])
            if last is not None and run.checkpoint_due:
                save_checkpoint(last, run.state_dict())
        record = close_epoch(run, seconds=time.perf_counter() - started, validation=validation)
        # The record first: a run killed between the two does the epoch again, and its record gives way.
        if log is not None:
            log(record)
        if last is not None:
            save_checkpoint(last, run.state_dict())
    run.fire("run_end")
    run.conclude()


def close_epoch(run: Run, *, seconds: float, validation: Validation | None = None) -> dict[str, Any]:
    """Close an epoch and validate; every door calls it.

    Args:
        run: Has done the last step of the epoch.
        seconds: What the steps took.
        validation: What to measure; None measures nothing.

    Returns:
        The flat record of the epoch: epoch, step, seconds, lr (of its last step), `train/...` and `val/...`; of an epoch after which
        a chapter was written also `chapter_seconds` and `chapter_forwards`, samples passed through the student for it.

    Raises:
        DataError: if training has diverged.
    """
    record: dict[str, Any] = {"epoch": run.epoch, "step": run.steps, "seconds": seconds}
    record["lr"] = run.lr
    record |= {f"train/{name}": value for name, value in run.end_epoch().items()}
    if validation is not None:
        metrics = validation(run.learner)
        record |= {f"val/{name}": value for name, value in metrics.items() if not math.isnan(value)}
        run.validated(validation.score(metrics, run.learner.task))
    for handler in run.handlers:
        record |= handler.logged()  # what it has done since, such as a book that was written
    return record
