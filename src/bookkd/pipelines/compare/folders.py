"""The runs of a sweep on disk: where each lies, what it is, and whether it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bookkd.core.errors import BookFormatError, ConfigError, DataError
from bookkd.core.files import file_digest, write_atomic
from bookkd.core.jsonio import parse, pretty, read
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.shared import Shared
from bookkd.pipelines.compare.sweep import Source
from bookkd.report import RECORD_NAME, RunRecord

__all__ = ["Run", "begin", "configuration", "differences", "refuse_others", "runs_of", "state_of"]

RUN_NAME = "run.json"
"""What the run is; written before it starts."""
_WITHOUT_EFFECT = ("workers", "checkpoint_steps", "cache_views", "cache_bytes", "probe_share")
"""Fields of `Training` that say how fast and how carefully a run goes, not where to."""

State = Literal["done", "failed", "begun", "new", "other"]


@dataclass(frozen=True)
class Run:
    """One student to train.

    Args:
        arm: What it is of.
        seed: Its seed.
        folder: Where it lies.
        configuration: All that its result depends on, as JSON values.
        baseline: Name of the arm that it is held against; its own name for nothing.
    """

    arm: Arm
    seed: int
    folder: Path
    configuration: Mapping[str, Any]
    baseline: str

    @property
    def noted(self) -> dict[str, Any]:
        """What the record says of the configuration: also what the arm is held against, so that a report says the same."""
        return {**self.configuration, "sweep": {"baseline": self.baseline}}


def runs_of(shared: Shared, arms: Sequence[Arm], against: Mapping[int, int], out: Path) -> list[Run]:
    """Return the runs of a sweep: all arms of one seed before those of the next, so that what is done so far is paired.

    Args:
        shared: Opens books.
        arms: The arms.
        against: Place of an arm -> place of its baseline.
        out: Folder of the sweep.
    """
    return [
        Run(
            arm,
            seed,
            out / "runs" / arm.slug / f"seed-{seed}",
            configuration(shared, arm, seed),
            arms[against.get(place, place)].name,
        )
        for seed in shared.sweep.seeds
        for place, arm in enumerate(arms)
    ]


def configuration(shared: Shared, arm: Arm, seed: int) -> dict[str, Any]:
    """Return what the result of a run depends on; the path of a book or file of weights does not count, its content does."""
    method, sweep = arm.method.build(), shared.sweep
    found = {
        "arm": arm.name,
        "seed": seed,
        "method": {"name": method.name, **plain(method)},
        "student": _network(plain(arm.student)),
        "knowledge": _source(shared, arm.source),
        "seen_as": None if arm.seen_as is arm.source else _source(shared, arm.seen_as),
        "views": None if arm.views is None else plain(arm.views),
        "training": plain(replace(arm.training, seed=seed)),
        "data": plain(sweep.data),
        "label_fraction": arm.label_fraction,
        "test": sweep.test,
        "validation": sweep.validation,
        "validation_fraction": sweep.held_out,
    }
    if shared.samples.task.name != "classification":
        # Left out there, so that folders of before compare had other tasks are gone on with.
        found["task"] = shared.samples.task.name
    if sweep.task_args:
        found["task_args"] = dict(sweep.task_args)
    if shared.samples.task.name == "seq2seq":
        found["beam"] = sweep.beam
    # Through JSON and back, so that tuples and lists compare equal.
    return parse(pretty(found), "configuration")


def _source(shared: Shared, source: Source | None) -> Any:
    if source is None:
        return None
    books = [{"path": path, "digest": shared.book(path).book.content_digest} for path in source.books]
    found: dict[str, Any] = {"books": books, "teachers": [_network(plain(options)) for options in source.teachers]}
    if source.members:
        found["members"] = [teacher.digest for stored in shared.stored(source) for teacher in stored.teachers]
    return found


def _network(options: dict[str, Any]) -> dict[str, Any]:
    """Return a network's options with the digest of its file of weights."""
    if options["weights"] is None:
        return options
    try:
        found = file_digest(Path(options["weights"]))
    except OSError as error:
        raise ConfigError(
            f"Expected weights of {options['name']} to be a readable file, got {options['weights']}: {error.strerror}."
        ) from error
    return {**options, "digest": found}


def state_of(run: Run) -> State:
    """Return how far a run has come; "other" if its folder holds a finished run of another configuration."""
    known = _known(run.folder)
    same = known is not None and not differences(known, run.configuration)
    if (run.folder / RECORD_NAME).exists():
        try:
            status = RunRecord.load(run.folder).status
        except DataError:
            status = "failed"
        if status == "done":
            return "done" if same else "other"
        return "failed" if same else "new"
    return "begun" if same else "new"


def _known(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_NAME
    try:
        return read(path, str(path)) if path.exists() else None
    except (BookFormatError, OSError):
        return None


def refuse_others(runs: Sequence[Run]) -> None:
    """Refuse a folder whose finished runs have another configuration than these.

    Raises:
        ConfigError: naming what differs.
    """
    for run in runs:
        if state_of(run) == "other":
            found = differences(_known(run.folder) or {}, run.configuration)
            raise ConfigError(
                f"Expected {run.folder} to hold a run of the same configuration, got other {', '.join(found[:6])}. "
                "Choose another --out, or delete that folder to run it again."
            )


def begin(run: Run) -> bool:
    """Note what the run is, and forget that it failed before; return whether what lies in its folder is of another one."""
    known = _known(run.folder)
    other = bool(known is None or differences(known, run.configuration)) and (run.folder / "config.json").exists()
    (run.folder / RECORD_NAME).unlink(missing_ok=True)
    write_atomic(run.folder / RUN_NAME, pretty(dict(run.configuration)))
    return other


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Return what two configurations say differently, in words, but for what has no effect on the result."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{where}.{key}".strip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for a, b in zip(old, new, strict=True) for line in differences(a, b, where)]
    root, _, key = where.rpartition(".")
    without = (root == "training" and key in _WITHOUT_EFFECT) or key in ("path", "weights")
    return [] if old == new or without else [f"{where} ({old!r}, now {new!r})"]
