"""Running a sweep: what is done is not done again, what fails is recorded, several at once if asked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from bookkd.core.check import at_least
from bookkd.core.memory import keep_freed_memory
from bookkd.pipelines.compare.one import do_run, finished
from bookkd.pipelines.compare.runs import RunSpec, runs_of
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.pipelines.compare.workshop import Workshop
from bookkd.report import RunRecord

__all__ = ["run_sweep"]

Say = Callable[[str], None]

_shop: Workshop | None = None


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    runs: Sequence[RunSpec] | None = None,
    jobs: int = 1,
    replicates: int = 1000,
    say: Say = print,
) -> list[RunRecord]:
    """Do all runs of a sweep that are not done yet.

    Args:
        sweep: The sweep.
        out: Folder; each run has a folder of its own in it.
        runs: Other runs than `runs_of(sweep)`.
        jobs: Runs at once, each in a process of its own with its share of the threads.
        replicates: Bootstrap replicates of the metrics.
        say: Called with a line for every run that is done.

    Returns:
        The records of all runs, in their order; failed ones too.
    """
    wanted, root = list(runs_of(sweep) if runs is None else runs), Path(out)
    at_least(jobs, 1, "jobs", where="compare")
    known = {run.folder: finished(root / run.folder, run) for run in wanted}
    records = {folder: record for folder, record in known.items() if record is not None}
    if records:
        say(f"{len(records)} of {len(wanted)} runs are done already")
    pending = [run for run in wanted if run.folder not in records]
    for run, record in _done(sweep, pending, root, jobs, replicates):
        records[run.folder] = record
        accuracy = record.metric("accuracy")
        ended = f"accuracy {accuracy:.4f}" if accuracy is not None else f"failed: {record.error}"
        say(f"[{len(records)}/{len(wanted)}] {run.arm}, seed {run.seed}: {ended}")
    return [records[run.folder] for run in wanted]


def _done(
    sweep: Sweep, pending: list[RunSpec], root: Path, jobs: int, replicates: int
) -> Iterator[tuple[RunSpec, RunRecord]]:
    if jobs == 1 or len(pending) < 2:
        shop = Workshop(sweep)
        for run in pending:
            yield run, do_run(shop, run, root / run.folder, replicates=replicates)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # Spawned, since a fork of a process that has used several threads may wait for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(sweep, threads)) as pool:
        waiting: dict[Future[RunRecord], RunSpec] = {
            pool.submit(_work, run, root / run.folder, replicates): run for run in pending
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(sweep: Sweep, threads: int) -> None:
    global _shop
    keep_freed_memory()
    torch.set_num_threads(threads)
    _shop = Workshop(sweep)


def _work(run: RunSpec, folder: Path, replicates: int) -> RunRecord:
    if _shop is None:
        raise RuntimeError("a worker that was not begun")
    return do_run(_shop, run, folder, replicates=replicates)
