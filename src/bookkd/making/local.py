"""Making a book on one machine: every unit is a run of the plan's batches, written when it is whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.book import Auto, Book, BookWriter, Codec, Dense, newest_constants, newest_plan
from bookkd.core.errors import DataError, expected
from bookkd.core.features import Feature, is_feature
from bookkd.knowledge import LiveKnowledge, Teacher, keys_of, layers_of, missing_constants
from bookkd.knowledge.writing import Progress, check_speaker, offer, plan_book, write_units
from bookkd.making.batch_size import find_batch_size
from bookkd.making.choosing import Told, chosen_codec
from bookkd.making.on_device import encoding_on
from bookkd.methods import Method, build_method
from bookkd.tasks import Task
from bookkd.views import Pick, Replay, Views, check_replay

__all__ = ["Progress", "make", "plan_book"]


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
    constants: Mapping[str, npt.ArrayLike] | None = None,
    progress: Progress | None = None,
    told: Told | None = None,
    features: Sequence[str] = (),
    feature_codec: Codec | None = None,
    serve: Sequence[str | Method] = (),
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
        constants: What the teacher has once and methods ask for, such as {"classifier/weight": weight}: name -> array of finite
            numbers, for `Book.constants`. What `features` and `serve` ask for besides is worked out, see `bookkd.knowledge.constants`.
        progress: Called with (records done, records in all).
        told: Called with the choice where a codec was chosen by measuring, before anything is written.
        features: What to keep of the inside of the teacher beside what it says, such as `features/stage3/mean`; see
            `bookkd.core.features`. A method names what it reads in `needs(task).fields`.
        feature_codec: How these become bytes; float16 where None.
        serve: Methods, or names of methods at their defaults: what they read inside of the teacher is kept beside `features`, and
            what they must know of it once and for all becomes constants.

    Returns:
        The finished book, open.

    Raises:
        BookMismatchError: if the folder holds a book of another teacher, data set, recipe or codec.
        TeacherOutputError: if the teacher says NaN, infinity or another width; nothing of that unit is kept. So for a constant.
        ConfigError: if the views cannot be replayed; for a layer that the teacher has not, or that does not run.
        FidelityError: for a sparse codec where the task needs every value; if no codec meets `Auto`.
        StorageError: if the disk is full; running `make` again goes on.
    """
    knowledge = LiveKnowledge(teacher, task)
    replay = Replay(dataset, views)
    if len(replay) == 0:
        raise DataError(expected("dataset", "at least one sample", 0, do="Check --data.root and --data.split."))
    check_replay(replay)
    check_speaker(teacher, dataset)  # before the batch size is tried
    task.check_data(dataset)
    if batch_size is None:
        batch_size = _planned_batch_size(path) or find_batch_size(teacher, *_longest_record(replay, task))
    features, needed = _looked_at(teacher, task, features, serve)
    constants = {**_planned_constants(path, missing_constants(constants or {}, needed, features)), **(constants or {})}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in constants.items()}
    teacher = knowledge.teacher = teacher.knowing(tensors)
    offer(knowledge, features, replay, constants=needed)
    fresh = {name: knowledge.constants[name].numpy() for name in knowledge.constants.keys() - tensors.keys()}
    constants, teacher = {**constants, **fresh}, knowledge.teacher
    choice: Mapping[str, Any] = {}
    if isinstance(codec, Auto):
        codec, choice = chosen_codec(
            path, codec, knowledge, replay, temperatures=temperatures, batch_size=batch_size, told=told
        )
    plan = plan_book(
        teacher, dataset, views, task, codec=codec or Dense(), temperatures=temperatures, features=features,
        feature_codec=feature_codec,
    )  # fmt: skip
    plan = replace(plan, batch_size=batch_size, unit_rows=unit_rows, choice=choice)
    with BookWriter(path, plan, keys=keys_of(dataset) if keys is None else keys, constants=constants) as writer:
        started, cpu = time.perf_counter(), time.process_time()
        with encoding_on(knowledge.teacher.device):
            written = write_units(writer, knowledge, replay, batch_size, workers, progress)
        cost = {
            "seconds": round(time.perf_counter() - started, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "teacher_forwards": knowledge.teacher_forwards,
            "records": written,
            "peak_memory_bytes": peak_memory_bytes(),
            **({"outputs": knowledge.cut} if knowledge.cut else {}),
        }
        return writer.finish(cost)


def _looked_at(
    teacher: Teacher, task: Task, features: Sequence[str], serve: Sequence[str | Method]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the fields inside of a teacher that are asked for, or that methods read, and the constants that these know."""
    given = (features,) if isinstance(features, str) else tuple(features)
    for name in given:
        Feature.of(name)  # refuses what is no field of features, which would be kept as nothing
    named = {**layers_of(teacher.network), **teacher.layers}
    methods = (serve,) if isinstance(serve, str) else tuple(serve)
    served = [build_method(each) if isinstance(each, str) else each for each in methods]
    needs = [each.looking_at(named).needs(task) for each in served]
    inside = [name for each in needs for name in each.fields if is_feature(name)]
    return tuple(dict.fromkeys((*given, *inside))), [name for each in needs for name in each.constants]


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


def _planned_constants(path: str | Path, wanted: Sequence[str]) -> dict[str, npt.ArrayLike]:
    """Return those of a book begun before that are wanted: what was trained is not trained again."""
    known = newest_constants(path) if wanted else {}
    return {name: known[name] for name in known if any(f"{name}/".startswith(f"{each}/") for each in wanted)}


def _planned_batch_size(path: str | Path) -> int | None:
    """Return the batch size of a book begun before, whose units must all use it."""
    plan = newest_plan(path)
    return None if plan is None else plan.batch_size
