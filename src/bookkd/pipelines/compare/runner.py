"""Running a sweep: what is done is not done again, what fails is recorded, and the end is one summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookkd.core.check import at_least, unique
from bookkd.core.errors import ConfigError, expected
from bookkd.core.files import check_here, make_folder, write_atomic
from bookkd.core.jsonio import pretty
from bookkd.core.lock import Lock
from bookkd.evaluation import lower_is_better
from bookkd.learning import check_batches
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.arms import Arm, baselines, expand
from bookkd.pipelines.compare.costs import costs_of
from bookkd.pipelines.compare.execute import score_arm
from bookkd.pipelines.compare.folders import Run, configuration, refuse_others, runs_of, state_of
from bookkd.pipelines.compare.pool import run_all
from bookkd.pipelines.compare.shared import Shared
from bookkd.pipelines.compare.spaces import Space, check_spaces, fitting
from bookkd.pipelines.compare.summary import summarise
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.pipelines.compare.tuning import Tuned, tune
from bookkd.report import RunRecord

__all__ = ["run_sweep"]

Say = Callable[[str], None]


def run_sweep(
    sweep: Sweep, out: str | Path, *, jobs: int = 1, say: Say = print, spaces: Sequence[Space] = (), trials: int = 20
) -> dict[str, Any]:
    """Do all runs of a sweep that are not done yet, and say what came out.

    Args:
        sweep: What is compared.
        out: Folder; every run has a folder of its own in it. The same folder and sweep go on where they were.
        jobs: Runs at once, each in a process of its own with its share of the threads.
        say: Called with a line of progress.
        spaces: Options whose values are chosen first, for each arm that has them, on validation samples.
        trials: Tries for each arm.

    Returns:
        What `bookkd compare --json` prints, also in `summary.json`.

    Raises:
        BookMismatchError: if a book is of another task.
        ConfigError: if the sweep contradicts itself, a method does not serve the task, cannot learn from its batches or lacks
            fields or views, or the folder holds finished runs of another configuration.
        FidelityError: if a method asks a book for what its codec cannot honour.
        BookLockedError: if another process compares in the folder.
    """
    at_least(jobs, 1, "jobs", where="compare")
    root = check_here(Path(out))
    shared = Shared(sweep)
    arms = expand(sweep, shared.samples.task)
    against = baselines(sweep, arms)
    shared.check_sources()
    _check_held_out(sweep, spaces)
    check_spaces(arms, spaces)
    for arm in arms:
        shared.check_arm(arm)
        _check_batches(arm, shared)
    notes = shared.notes()
    for note in notes:
        say(note)
    make_folder(root)
    lock = Lock(root / ".lock")
    try:
        tuned = _tuned(shared, arms, spaces, root, trials, say)
        before = arms
        arms = tuple(tuned[place].arm if place in tuned else arm for place, arm in enumerate(arms))
        unique(
            [arm.name for arm in arms], "tuned arms", where="compare", do="Leave out one that the search made equal."
        )
        write_atomic(root / "sweep.json", pretty(plain(sweep)))
        records = _records(shared, arms, against, root, jobs, say)
        result = {"out": str(root), **summarise(sweep, arms, against, records, shared.samples.task)}
        result["notes"] = notes
        result["tuned"] = [{**found.to_json(), "before": before[place].name} for place, found in tuned.items()]
        write_atomic(root / "summary.json", pretty(result))
    finally:
        lock.release()
    return result


def _check_held_out(sweep: Sweep, spaces: Sequence[Space]) -> None:
    if spaces and not sweep.validation and not sweep.held_out:
        do = "Nothing is chosen on the test split: pass --validation_fraction 0.1."
        raise ConfigError(expected("validation_fraction", "above 0 where options are tuned", 0, where="compare", do=do))


def _check_batches(arm: Arm, shared: Shared) -> None:
    method, task = arm.method.build(), shared.samples.task
    check_batches(
        arm.training,
        samples=len(shared.samples.kept),
        views_per_sample=method.needs(task).views_per_sample,
        whole=method.objective(task).relational,
        where=f"training of {arm.name}",
    )


def _tuned(
    shared: Shared, arms: tuple[Arm, ...], spaces: Sequence[Space], root: Path, trials: int, say: Say
) -> dict[int, Tuned]:
    """Choose values for each arm that has the options: all of them, since tuning some alone would favour these."""
    seed = shared.sweep.seeds[0]
    found = {}
    for place, arm in enumerate(arms):
        mine = fitting(arm, spaces)
        if not mine:
            continue

        def score(trial: Arm, folder: Path) -> float:
            return score_arm(shared, trial, seed, folder)

        folder, about = root / ".tuning" / arm.slug, configuration(shared, arm, seed)
        lower = lower_is_better(shared.samples.task.primary_metric)
        options: dict[str, Any] = {"trials": trials, "seed": seed, "about": about, "lower_is_better": lower, "say": say}
        found[place] = tune(arm, mine, score, folder, **options)
    return found


def _records(
    shared: Shared, arms: Sequence[Arm], against: Mapping[int, int], root: Path, jobs: int, say: Say
) -> dict[str, dict[int, RunRecord]]:
    """Return arm -> seed -> record of every run, after doing those that are not done."""
    runs = runs_of(shared, arms, against, root)
    refuse_others(runs)
    pending = [run for run in runs if state_of(run) != "done"]
    found: dict[str, dict[int, RunRecord]] = {arm.name: {} for arm in arms}
    for run in runs:
        if run not in pending:
            found[run.arm.name][run.seed] = _noted(run)
    done = len(runs) - len(pending)
    if done:
        say(f"{done} of {len(runs)} runs are done already")
    if not pending:
        return found
    shared.runs = len(pending)
    costs = costs_of(shared, [run.arm.student for run in pending], root / "costs.json")
    for run, record in run_all(shared, pending, costs, jobs):
        done += 1
        found[run.arm.name][run.seed] = record
        say(f"[{done}/{len(runs)}] {run.arm.name}, seed {run.seed}: {_ended(shared, run, record)}")
    return found


def _noted(run: Run) -> RunRecord:
    """Return the record of a finished run; what it is held against may be another arm now."""
    record = RunRecord.load(run.folder)
    if record.configuration.get("sweep") != run.noted["sweep"]:
        record = replace(record, configuration=run.noted)
        record.save(run.folder)
    return record


def _ended(shared: Shared, run: Run, record: RunRecord) -> str:
    if record.status == "failed":
        return f"failed: {record.error}"
    metric = shared.samples.task.primary_metric
    return f"{metric} {record.metric(metric):.4f}, {record.learning['seconds']:.1f} s"
