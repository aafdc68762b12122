"""The record of one run: all that a comparison or a report says of it, as plain values in one file.

`compare` writes it when a run is done or has failed; `report` reads nothing else but this file and the curve beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from bookkd.core.errors import BookFormatError, DataError, expected
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import pretty, read

__all__ = ["RECORD_NAME", "RECORD_VERSION", "RunRecord"]

RECORD_NAME = "record.json"
"""Name of the file in the folder of a run."""
RECORD_VERSION = 2
"""Version of its form; a newer one is refused. 1 had no `task` and `per_class`: all its runs are of classification."""


@dataclass(frozen=True)
class RunRecord:
    """One student, one method, one seed.

    Everything but the first four entries may be empty: a run that failed knows little.

    Args:
        arm: Name of what is compared, equal for all seeds of it, such as "vanilla-kd T=8 / resnet8".
        seed: Of the run; arms with the same seeds are paired.
        status: "done" or "failed".
        method: `{"name": NAME, **options}`.
        task: Name of the task, whose metrics these are.
        error: What went wrong, one line; empty for a run that is done.
        student: `{"name", "parameters", "bytes", "macs", "device", "threads", "latency_ms": {batch size: {"p50": {value, low,
            high}, "p95": ...}}}`, as `evaluation.Cost.to_json` gives them, and the name.
        data: `{"name", "split", "samples", "train_samples", "label_fraction"}`.
        metrics: Metric -> `{"value", "low", "high"}`, on the split of `data`, as `to_json` of `evaluation.Evaluation` or
            `evaluation.Measures` gives them.
        signatures: Metric -> version and settings of the package that computed it, where it says them, as sacreBLEU does.
        per_class_recall: One `{"value", "low", "high"}` or None a class; of classification.
        per_class: Metric -> one such a class or output; of other tasks.
        pictures: Of segmentation: `{"colours": ["#rrggbb"] a class, "samples": [{"sample", "image", "truth", "student", "teacher"}]}` with
            PNG files in base64; the teacher's is absent where none was asked.
        class_names: In the order of the logits; for numbers the names of the outputs.
        calibration: `{"temperature", "fitted_on", "before": BINS, "after": BINS, "nll_after", "ece_after"}` with BINS a list of
            `{"low", "high", "count", "confidence", "accuracy"}`; temperature scaling is never fitted on the reported split.
        confusion: `{"student": [[count]], "teacher": [[count]]}`, rows true classes, columns predictions; the teacher's is
            absent where no teacher was measured. Calibration and confusion are of classification alone.
        teachers: One a teacher: `{"name", "digest", "parameters", "bytes", "accuracy", "split", "lineage"}`; "accuracy" is the
            first metric of its task.
        books: One a book: `{"label", "content_digest", "samples", "views", "records", "bytes", "cost": {"seconds",
            "teacher_forwards", ...}}`; empty for labels alone and live teachers.
        learning: `{"epochs", "epoch", "seconds", "seconds_per_epoch", "teacher_forwards", "peak_bytes", "gpu_peak_bytes"}`; the last
            two are the most memory that the process and the GPU held while the run went (see `core.memory.peak_memory`), with
            data, views and teachers that it shares with other runs; absent where the platform does not say them.
        environment: Versions, processor, threads.
        configuration: The resolved configuration, to copy.
        curve: One flat record an epoch: "epoch", "train/...", "val/...", "lr", "seconds".
        weights: Digest of the student's weights.
        shaping: What is remembered of what was done to the student while it learnt: `{"gates": {"kind", "tables": [{"layer", "rows",
            "columns", "shares", "entropies", "entropy", "spread", "of_classes", "derived"}]}}`, as `shaping.gate_record` gives it.

    >>> RunRecord(arm="supervised / resnet8", seed=0, status="done", method={"name": "supervised"}).status
    'done'
    """

    arm: str
    seed: int
    status: Literal["done", "failed"]
    method: Mapping[str, Any]
    task: str = "classification"
    error: str = ""
    student: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)
    per_class_recall: tuple[Mapping[str, float] | None, ...] = ()
    per_class: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    confusion: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[Mapping[str, Any], ...] = ()
    books: tuple[Mapping[str, Any], ...] = ()
    learning: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, Any], ...] = ()
    weights: str = ""
    shaping: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            wanted = _KINDS.get(str(entry.type).partition("[")[0], object)
            if not isinstance(value, wanted) or (entry.name == "seed" and isinstance(value, bool)):
                wish = f"of its kind ({entry.type})"
                raise DataError(expected(entry.name, wish, type(value).__name__, where="record of a run"))
        if self.status not in ("done", "failed") or "name" not in self.method:
            got = f"{self.status!r} and {dict(self.method)}"
            raise DataError(expected("status", "done or failed, of a named method", got, where="record of a run"))

    def metric(self, name: str) -> float | None:
        """Return the value of a metric; None where the run did not measure it."""
        found = self.metrics.get(name)
        return None if found is None else float(found["value"])

    def save(self, folder: str | Path) -> Path:
        """Write the record into the folder of its run; the file appears whole or not at all."""
        path = Path(folder) / RECORD_NAME
        body = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        write_atomic(path, pretty({"format": RECORD_VERSION, **body}))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> RunRecord:
        """Read the record of a run.

        Raises:
            DataError: if there is none, it is damaged, or a newer version wrote it.
        """
        path = Path(folder) / RECORD_NAME
        if not path.is_file():
            do = (
                "Give folders that `bookkd compare` made; a run that was killed has no record until it is gone on with."
            )
            raise DataError(expected("run", f"a folder with {RECORD_NAME}", "none", where=str(folder), do=do))
        try:
            found = read(path, str(path))
        except (BookFormatError, OSError) as error:
            raise DataError(f"Expected {path} to be the record of a run, got damaged text: {error}") from error
        version = found.pop("format", None)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DataError(expected("format", f"a number up to {RECORD_VERSION}", version, where=str(path)))
        if version > RECORD_VERSION:
            do = "Update bookkd."
            raise DataError(expected("format", f"up to {RECORD_VERSION}", version, where=str(path), do=do))
        known = {entry.name: entry for entry in fields(cls)}
        values = {name: value for name, value in found.items() if name in known}
        missing = [name for name in ("arm", "seed", "status", "method") if name not in values]
        if missing:
            raise DataError(expected("record", f"complete, with {', '.join(missing)}", sorted(found), where=str(path)))
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        try:
            return cls(**{**values, **lists})
        except DataError as error:
            raise DataError(f"{error} ({path})") from error


_KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "Mapping": Mapping,
    "tuple": tuple,
    "Literal": str,
}
