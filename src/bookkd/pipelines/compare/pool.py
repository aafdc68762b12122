"""Several runs at once, each in a process of its own with its share of the threads; a process that dies takes one run with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from bookkd.core.memory import keep_freed_memory
from bookkd.pipelines.compare.costs import key_of
from bookkd.pipelines.compare.execute import execute
from bookkd.pipelines.compare.folders import Run
from bookkd.pipelines.compare.shared import Shared
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.report import RunRecord

__all__ = ["run_all"]

Costs = Mapping[str, dict[str, Any]]


def run_all(shared: Shared, runs: Sequence[Run], costs: Costs, jobs: int) -> Iterator[tuple[Run, RunRecord]]:
    """Do runs and yield each with its record, as they end.

    Args:
        shared: What the runs in this process share.
        runs: What to do.
        costs: Of the students.
        jobs: Runs at once; 1 does them in this process.
    """
    jobs = min(jobs, len(runs))
    if jobs < 2:
        for run in runs:
            yield run, execute(shared, run, costs[key_of(run.arm.student)])
        return
    workers: list[_Worker] = []
    waiting = list(reversed(runs))
    try:
        workers += [_Worker(shared.sweep, costs, jobs, len(runs)) for _ in range(jobs)]
        for worker in workers:
            worker.give(waiting.pop())
        while busy := [worker for worker in workers if worker.run is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in [each for each in busy if each.connection in ready]:
                yield worker.take()
                if worker.dead and waiting:
                    workers.append(_Worker(shared.sweep, costs, jobs, len(runs)))
                    workers[-1].give(waiting.pop())
                elif waiting:
                    worker.give(waiting.pop())
    finally:
        # Everything on disk is whole at every moment, so that a worker may be ended anywhere.
        for worker in workers:
            worker.end()


class _Worker:
    """A process that does one run after another."""

    def __init__(self, sweep: Sweep, costs: Costs, jobs: int, runs: int) -> None:
        # Spawned, since a fork of a process that has used several threads may wait for ever.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.run: Run | None = None
        self.dead = False
        settings = (theirs, sweep, dict(costs), jobs, max(1, torch.get_num_threads() // jobs), runs)
        self.process: BaseProcess = context.Process(target=_work, args=settings, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, run: Run) -> None:
        """Start a run."""
        self.run = run
        self.connection.send(run)

    def take(self) -> tuple[Run, RunRecord]:
        """Return the run that has ended and its record."""
        run, self.run = self.run, None
        if run is None:
            raise RuntimeError("a worker without a run")
        try:
            record: RunRecord = self.connection.recv()
        except (EOFError, OSError):
            self.dead = True
            self.process.join()
            record = _lost(run, self.process.exitcode)
            record.save(run.folder)
        return run, record

    def end(self) -> None:
        """End the process, at once where it is busy."""
        self.connection.close()
        if self.run is not None:
            self.process.kill()
        self.process.join()


def _lost(run: Run, code: int | None) -> RunRecord:
    text = (
        f"Expected the process of the run to end by itself, got exit code {code}: it was killed, or ran out of memory."
    )
    method, task = run.configuration["method"], run.configuration.get("task", "classification")
    return RunRecord(run.arm.name, run.seed, "failed", method, error=text, task=task, configuration=run.noted)


def _work(connection: Connection, sweep: Sweep, costs: Costs, jobs: int, threads: int, runs: int) -> None:
    """Do the runs that come, until there are no more."""
    # Ctrl-C reaches every process of the terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    shared = Shared(sweep, runs=-(-runs // jobs), share=1 / jobs)
    while True:
        try:
            run: Run = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(execute(shared, run, costs[key_of(run.arm.student)]))


def _end_with_parent() -> None:
    # A parent that is killed cannot end its workers, and one left behind would hold the lock of its run.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
