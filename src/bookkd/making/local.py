"""Making a book on one machine: every unit is a run of the plan's batches, written when it is whole."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from bookkd.book import Auto, Book, BookWriter, Codec, Dense, FieldPlan, Plan, Raw, Unit, newest_plan
from bookkd.book.ragged import RaggedArray, Rows, offsets_of
from bookkd.core.errors import ConfigError, DataError, FidelityError, TeacherOutputError, expected
from bookkd.core.fields import PROBE_HASH, PROBE_PROJECTIONS
from bookkd.knowledge import LiveKnowledge, Teacher, keys_of
from bookkd.losses import DenseTarget
from bookkd.making.batch_size import find_batch_size
from bookkd.making.choosing import Told, chosen_codec
from bookkd.making.on_device import encoding_on
from bookkd.tasks import Task
from bookkd.views import Pick, Replay, Views, check_replay, collate
from bookkd.zoo import fingerprint

__all__ = ["make", "plan_book"]

Progress = Callable[[int, int], None]


class _UnitBatches:
    """Batch sampler over the missing units: the plan's batches, each starting at its unit's first row."""

    def __init__(self, units: Sequence[Unit], batch_size: int) -> None:
        self.units = units
        self.batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-(unit.stop - unit.start) // self.batch_size) for unit in self.units)

    def __iter__(self) -> Iterator[list[Pick]]:
        for unit in self.units:
            for start in range(unit.start, unit.stop, self.batch_size):
                stop = min(start + self.batch_size, unit.stop)
                yield [Pick(sample, unit.view) for sample in range(start, stop)]


def make(
    path: str | Path,
    teacher: Teacher,
    dataset: Any,
    views: Views,
    *,
    task: Task,
    codec: Codec | Auto | None = None,
    batch_size: int | None = None,
    unit_rows: int | None = None,
    workers: int = 0,
    temperatures: tuple[float, ...] = (1.0, 4.0),
    keys: npt.NDArray[np.uint64] | None = None,
    progress: Progress | None = None,
    told: Told | None = None,
) -> Book:
    """Write down what a teacher says about every view of every sample.

    A book that was begun and not finished is gone on with, after checking that teacher, data, views and codecs are the
    ones of its plan; a finished one is returned as it is.

    Args:
        path: Folder of the book, or its address (extra `remote`): each unit is put there when it is whole.
        teacher: The network, ready to speak.
        dataset: `dataset[i] -> (image, label)`, with `len`.
        views: Replayable augmentation.
        task: Turns the teacher's output into fields.
        codec: How logits become bytes; float16 where None. With `Auto`, the smallest codec that meets it on a sample of
            records; a book begun before keeps the codec that was chosen then. `bookkd.book.shortfall` says whether the
            whole book meets it.
        batch_size: Samples a pass; None takes that of a book begun before, else 256, or fewer where memory does not hold them.
        unit_rows: Samples of a unit, the grain of resuming; None chooses by record size.
        workers: Loader processes.
        temperatures: At which the loss of the codec is measured while writing.
        keys: Own id of each sample, uint64, so that reordered data finds its records; the data set's attribute `keys`
            where None.
        progress: Called with (records done, records in all).
        told: Called with the choice where a codec was chosen by measuring, before anything is written.

    Returns:
        The finished book, open.

    Raises:
        BookMismatchError: if the folder holds a book of another teacher, data set, recipe or codec.
        TeacherOutputError: if the teacher says NaN, infinity or another width; nothing of that unit is kept.
        ConfigError: if the views cannot be replayed.
        FidelityError: for a sparse codec where the task needs every value; if no codec meets `Auto`.
        StorageError: if the disk is full; running `make` again goes on.
    """
    knowledge = LiveKnowledge(teacher, task)
    replay = Replay(dataset, views)
    if len(replay) == 0:
        raise DataError(expected("dataset", "at least one sample", 0, do="Check --data.root and --data.split."))
    check_replay(replay)
    if batch_size is None:
        batch_size = _planned_batch_size(path) or find_batch_size(teacher, *_longest_record(replay, task))
    choice: Mapping[str, Any] = {}
    if isinstance(codec, Auto):
        codec, choice = chosen_codec(
            path, codec, knowledge, replay, temperatures=temperatures, batch_size=batch_size, told=told
        )
    plan = plan_book(teacher, dataset, views, task, codec=codec or Dense(), temperatures=temperatures)
    plan = replace(plan, batch_size=batch_size, unit_rows=unit_rows, choice=choice)
    with BookWriter(path, plan, keys=keys_of(dataset) if keys is None else keys) as writer:
        started, cpu = time.perf_counter(), time.process_time()
        written = _write_units(writer, knowledge, replay, batch_size, workers, progress)
        cost = {
            "seconds": round(time.perf_counter() - started, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "teacher_forwards": knowledge.teacher_forwards,
            "records": written,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        return writer.finish(cost)


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process has held; None where nobody knows."""
    try:
        import resource
    except ImportError:  # Windows does not have it
        return None
    # In KiB everywhere but on macOS, where it is in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _longest_record(replay: Replay, task: Task) -> list[torch.Tensor]:
    """Return what a network is given of one record, of sequences the longest, without batch axis."""
    lengths = getattr(replay.dataset, "lengths", None)
    place = 0 if lengths is None else int(np.argmax(lengths))
    return [part[0] for part in task.inputs(replay.batch([Pick(int(replay.rows[place]), 0)]))]


def _planned_batch_size(path: str | Path) -> int | None:
    """Return the batch size of a book begun before, whose units must all use it."""
    plan = newest_plan(path)
    return None if plan is None else plan.batch_size


def plan_book(
    teacher: Teacher, dataset: Any, views: Views, task: Task, *, codec: Codec, temperatures: tuple[float, ...]
) -> Plan:
    """Return the plan of a book by one teacher; arguments as `make`.

    Raises:
        FidelityError: for a sparse codec where the task needs every value.
    """
    if codec.sparse and not task.sparse:
        do = "Use the codec dense or int8."
        where = f"task {task.name}, whose losses need every value"
        raise FidelityError(expected("codec", "one that keeps every value", codec.name, where=where, do=do))
    infos = LiveKnowledge(teacher, task).fields
    fields = {
        name: FieldPlan(
            info.shape,
            Dense("float32") if info.exact else codec,
            positions=task.most_positions(dataset) if info.by_position else None,
        )
        for name, info in infos.items()
    }
    fields[PROBE_HASH] = FieldPlan((), Raw("uint64"))
    fields[PROBE_PROJECTIONS] = FieldPlan((2,), Raw("float32"))
    return Plan(
        n_samples=len(dataset),
        n_views=views.n_views,
        fields=fields,
        task=task.name,
        teachers=(teacher.info,),
        data=fingerprint(dataset),
        views=views.recipe(len(dataset)),
        class_names=task.class_names,
        masked_classes=task.masked,
        temperatures=temperatures,
        threads=torch.get_num_threads(),
        device=str(torch.device(teacher.device).type),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    )


def _write_units(
    writer: BookWriter,
    knowledge: LiveKnowledge,
    replay: Replay,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> int:
    units = writer.pending()
    total = writer.plan.n_samples * writer.plan.n_views
    done = total - sum(unit.stop - unit.start for unit in units)
    written = 0
    loader = DataLoader(
        replay,
        batch_sampler=_UnitBatches(units, batch_size),
        collate_fn=collate,
        num_workers=workers,
        # A generator of its own, since a DataLoader otherwise draws from the global one.
        generator=torch.Generator(),
    )
    with torch.inference_mode(), encoding_on(knowledge.teacher.device):
        for batch in loader:
            rows = len(batch["sample"])
            view, start = int(batch["view"][0]), int(batch["sample"][0])
            writer.write_rows(view, start, say(knowledge, batch, view, start))
            written += rows
            if progress is not None:
                progress(done + written, total)
    return written


def say(knowledge: LiveKnowledge, batch: Mapping[str, Any], view: int, start: int) -> dict[str, Rows]:
    """Return what a teacher says about a batch of one view from sample `start` on, and the batch's probes, as a book keeps them."""
    counts = knowledge.task.counts(batch)
    try:
        targets = knowledge.targets(batch)
    except TeacherOutputError as error:
        raise TeacherOutputError(
            f"{error} Teacher {knowledge.teacher.name}, view {view}, samples from {start}."
        ) from error
    said: dict[str, Rows] = {}
    for name, target in targets.items():
        if not isinstance(target, DenseTarget):
            raise ConfigError(expected(name, "dense knowledge", type(target).__name__, where="make"))
        values = target.logits.cpu().numpy()
        by_position = counts is not None and knowledge.fields[name].by_position
        said[name] = (
            RaggedArray(values, offsets_of(counts.cpu().numpy())) if by_position and counts is not None else values
        )
    said[PROBE_HASH] = batch[PROBE_HASH].numpy().view(np.uint64)
    said[PROBE_PROJECTIONS] = batch[PROBE_PROJECTIONS].numpy().astype(np.float32)
    return said
