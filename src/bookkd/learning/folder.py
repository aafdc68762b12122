"""The folder of a run: resolved configuration, environment, metrics as JSON lines, checkpoints, weights, result."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from bookkd.core.errors import BookFormatError, CheckpointError, ConfigError
from bookkd.core.files import check_here, make_folder, write_atomic
from bookkd.core.jsonio import parse, pretty, read
from bookkd.core.lock import Lock

__all__ = ["RunFolder", "is_main_process", "plain"]

_OURS = (
    "config.json",
    "environment.json",
    "options.json",
    "order.json",
    "shaping.json",
    "metrics.jsonl",
    "result.json",
    "chapters",
    "checkpoints",
    "logs",
)
_LOCK = ".lock"
_RESULTS = ("metrics.jsonl", "result.json", "checkpoints/last.ckpt")

_WITHOUT_EFFECT = frozenset(
    f"training.{key}" for key in ("workers", "checkpoint_steps", "cache_views", "cache_bytes", "probe_share")
)
"""How fast and how carefully a run goes, not where to: a run may go on with others of these."""


def plain(value: Any) -> Any:
    """Return a configuration value as JSON: dataclasses become dicts, schedules name their class.

    >>> from bookkd.core.schedules import Linear
    >>> plain({"temperature": Linear(1.0, 4.0)})
    {'temperature': {'Linear': {'start': 1.0, 'end': 4.0}}}
    """
    if is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {type(value).__name__: inner} if callable(value) else inner
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__name__)}"
    return str(value)


class RunFolder:
    """One run on disk.

    A folder whose run never got to a record, checkpoint or result is taken over by whatever configuration comes next. A
    run that is not finished is locked: leave the `with` block, or call `release`, to give it back.

    Args:
        path: The folder; created.
        config: Everything that the result depends on.
        overwrite: Start again where the folder holds another run; only files of a run are deleted.

    Raises:
        ConfigError: if the folder holds a run with another configuration, naming what differs; if its `config.json` is
            not of a run; if a folder to overwrite holds files and no run.
        BookLockedError: if another process trains in the folder.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = check_here(Path(path))
        self.checkpoints = self.path / "checkpoints"
        self._lock: Lock | None = None
        if is_main_process() and (overwrite or not (self.path / "result.json").exists()):
            make_folder(self.path)
            self._lock = Lock(self.path / _LOCK)
        try:
            self._begin(config, overwrite)
        except BaseException:
            self.release()
            raise

    def _begin(self, config: dict[str, Any], overwrite: bool) -> None:
        known = self._config()
        if overwrite and is_main_process():
            self._clear(known)
            known = None
        # Through JSON and back, so that tuples and lists compare equal.
        mine = parse(pretty(config), "config")
        if known is not None and self.begun:
            differing = _differences(known, mine)
            if differing:
                raise ConfigError(
                    f"Expected {self.path} to hold a run of the same configuration, got other {', '.join(differing[:6])}. "
                    "Choose another --out, or start again: delete that folder, or let `learn` do it with --overwrite."
                )
        elif is_main_process():
            write_atomic(self.path / "config.json", pretty(config))
            write_atomic(self.path / "environment.json", pretty(_environment()))

    def _config(self) -> dict[str, Any] | None:
        """Return the configuration that the folder remembers; None where it remembers none."""
        path = self.path / "config.json"
        found = _read(path)
        if found is not None and not {"door", "method", "training"} <= found.keys():
            raise ConfigError(f"Expected {path} to be of a run of bookkd, got another file. Choose another --out.")
        return found

    def _clear(self, known: dict[str, Any] | None) -> None:
        """Delete the files of a run, and no others."""
        if known is None:
            if any(path.name != _LOCK for path in self.path.iterdir()):
                raise ConfigError(
                    f"Expected {self.path} to hold a run or nothing, got other files, which --overwrite does not delete. "
                    "Choose another --out."
                )
            return
        for path in [*(self.path / name for name in _OURS), *self.path.glob("student*.safetensors")]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes train in the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None where it is not finished.

        Raises:
            CheckpointError: if it is damaged.
        """
        path = self.path / "result.json"
        found = _read(path)
        if found is not None and not all(isinstance(found.get(key), int) for key in ("epoch", "teacher_forwards")):
            advice = "Pass --overwrite to start again."
            raise CheckpointError(f"Expected {path} to be the result of a run, got damaged text. {advice}")
        return found

    @property
    def begun(self) -> bool:
        """Whether the run has left anything that it goes on from."""
        return any((self.path / name).exists() for name in _RESULTS)

    def order(self) -> dict[str, Any] | None:
        """Return what `note_order` kept; None where nothing is there."""
        return _read(self.path / "order.json")

    def note_order(self, order: dict[str, Any]) -> None:
        """Keep how the samples are shuffled: it was chosen by free memory, which may be other when the run goes on."""
        if is_main_process():
            write_atomic(self.path / "order.json", pretty(order))

    def shaping(self) -> dict[str, Any]:
        """Return what `note_shaping` kept; empty where nothing is there."""
        return _read(self.path / "shaping.json") or {}

    def note_shaping(self, shaping: dict[str, Any]) -> None:
        """Keep what is to be remembered of what was done to the student while it learnt."""
        write_atomic(self.path / "shaping.json", pretty(shaping))

    def history(self) -> list[dict[str, Any]]:
        """Return one record for each epoch done.

        Raises:
            CheckpointError: if a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [_record(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]

    def log(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch; those of a run that was killed before its checkpoint give way."""
        kept = [old for old in self.history() if old["epoch"] < record["epoch"]]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in [*kept, record])
        write_atomic(self.path / "metrics.jsonl", text.encode())

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        write_atomic(self.path / "result.json", pretty(result))


def is_main_process() -> bool:
    """Say whether this process writes files; with several devices Lightning starts one process for each."""
    # NODE_RANK is Lightning's name, GROUP_RANK torchrun's.
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file says: None where there is none, nothing where it is damaged."""
    if not path.exists():
        return None
    try:
        return read(path, str(path))
    except BookFormatError:
        return {}


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("epoch"), int):
        advice = "Pass --overwrite to start again."
        raise CheckpointError(f"Expected {where} to be the record of an epoch, got damaged text. {advice}")
    return found


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}".strip("."))
        ]
    return [] if old == new or where in _WITHOUT_EFFECT else [f"{where} ({old!r}, now {new!r})"]
