"""Writing down what a network says of every view: the plan of a book by one teacher, and its units."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from bookkd.book import BookWriter, Codec, Dense, FieldPlan, Plan, Raw, Unit
from bookkd.book.ragged import RaggedArray, Rows, offsets_of
from bookkd.core.called import check_called
from bookkd.core.errors import ConfigError, FidelityError, TeacherOutputError, expected
from bookkd.core.features import Feature, is_feature
from bookkd.core.fields import LOGITS, PROBE_HASH, PROBE_PROJECTIONS
from bookkd.core.protocols import Knowledge
from bookkd.knowledge.capture import layers_of
from bookkd.knowledge.constants import Source, missing_constants, work_out
from bookkd.knowledge.ensemble import teachers_of
from bookkd.knowledge.live import LiveKnowledge
from bookkd.knowledge.teacher import Teacher
from bookkd.losses import DenseTarget
from bookkd.tasks import Task
from bookkd.views import CachedViews, Pick, Replay, Views, collate
from bookkd.zoo import check_takes, fingerprint

__all__ = ["Progress", "Viewed", "check_speaker", "offer", "plan_book", "say", "write_units"]

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


def check_speaker(teacher: Teacher, dataset: Any) -> None:
    """Refuse samples that the teacher cannot take, and a text in the tokens of two: it would be fed the student's.

    Raises:
        ConfigError: naming which.
    """
    if hasattr(dataset, "of_book"):
        do = "Make it of its `teacher`, the teacher's tokens; students learn from that book with the pairs."
        raise ConfigError(expected("dataset", "one side of the pairs", type(dataset).__name__, where="make", do=do))
    check_takes(teacher.network, dataset)


def plan_book(
    teacher: Teacher,
    dataset: Any,
    views: Views,
    task: Task,
    *,
    codec: Codec,
    temperatures: tuple[float, ...],
    features: Sequence[str] = (),
    feature_codec: Codec | None = None,
) -> Plan:
    """Return the plan of a book by one teacher; arguments as `make`.

    Raises:
        ConfigError: for data that the task would misread, a network that cannot take it, or a text in the tokens of two.
        FidelityError: for a sparse codec where the task needs every value.
    """
    check_speaker(teacher, dataset)
    task.check_data(dataset)
    of_teacher = task.of_teacher()
    if getattr(dataset, "pad_value", None) is not None and len(dataset):
        one = Replay(dataset, views, probe_share=0.0).batch([Pick(0, 0)])
        check_called(teacher.network, of_teacher.inputs(one), task.name)
    check = getattr(of_teacher, "check_utterances", None)
    if check is not None:
        check(dataset, views.transform, transcripts=False)
    if codec.sparse and not of_teacher.sparse:
        do = "Use the codec dense or int8."
        where = f"task {task.name}, whose losses need every value"
        raise FidelityError(expected("codec", "one that keeps every value", codec.name, where=where, do=do))
    knowledge, seen = LiveKnowledge(teacher, task), Viewed(dataset, views)
    offer(knowledge, features, Replay(dataset, views, probe_share=0.0))
    fields = {
        name: FieldPlan(
            info.shape,
            (feature_codec or Dense()) if is_feature(name) else Dense("float32") if info.exact else codec,
            positions=knowledge.task.most_positions(seen) if info.by_position else None,
            taken=taken(teacher, name) if is_feature(name) else None,
        )
        for name, info in knowledge.fields.items()
    }
    fields[PROBE_HASH] = FieldPlan((), Raw("uint64"))
    fields[PROBE_PROJECTIONS] = FieldPlan((2,), Raw("float32"))
    return Plan(
        n_samples=len(dataset),
        n_views=views.n_views,
        fields=fields,
        task=task.name,
        teachers=(teacher.info,),
        data={**fingerprint(dataset), **getattr(of_teacher, "noted", {})},
        views=views.recipe(len(dataset)),
        class_names=of_teacher.class_names,
        masked_classes=task.masked,
        temperatures=temperatures,
        threads=torch.get_num_threads(),
        device=str(torch.device(teacher.device).type),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    )


def offer(
    knowledge: Knowledge | None, names: Iterable[str], replay: Replay | CachedViews, *, constants: Iterable[str] = ()
) -> None:
    """Let live teachers say those of some fields that are taken inside of them, by the shapes that they have of a first sample.

    What is to be known of them once and for all, and is not yet, is worked out; see `bookkd.knowledge.constants`.

    Args:
        knowledge: Anything; books and labels have what they have.
        names: Fields; others than `features/...` are passed over.
        replay: Views of the samples.
        constants: Names of what else is to be known of them.
    """
    inside, needed = tuple(name for name in names if is_feature(name)), tuple(constants)
    for live in teachers_of(knowledge) if inside or needed else ():
        missing = missing_constants(live.constants, needed, inside)
        if missing:
            source = Source(live.teacher, live.task, replay, inside)
            live.teacher = live.teacher.knowing(work_out(missing, source))
        if inside:
            live.offer(inside, collate([replay[Pick(int(replay.rows[0]), 0)]]))


def taken(teacher: Teacher, name: str) -> dict[str, Any]:
    """Return where a field was taken inside of a teacher, and what was kept of it, as a book notes it."""
    feature = Feature.of(name)
    paths = {**layers_of(teacher.network), **teacher.layers}
    noted = {"module": paths.get(feature.layer, feature.layer)}
    if feature.other:
        noted["other"] = paths.get(feature.other, feature.other)
    return {**noted, **({"loses": feature.loses} if feature.loses else {})}


@dataclass(frozen=True)
class Viewed:
    """A data set of sequences as its views are: one that changes their length says how long they may become, by its `longest`."""

    dataset: Any
    views: Views

    @property
    def most_positions(self) -> int:
        most: int = self.dataset.most_positions
        longest = getattr(self.views.transform, "longest", None)
        return most if longest is None else int(longest(most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


def write_units(
    writer: BookWriter,
    knowledge: LiveKnowledge,
    replay: Replay,
    batch_size: int,
    workers: int,
    progress: Progress | None = None,
) -> int:
    """Write every unit that is missing, and return how many records these are.

    Args:
        writer: Of the book.
        knowledge: Who speaks.
        replay: The views, with a probe of each.
        batch_size: That of the plan.
        workers: Loader processes.
        progress: Called with (records done, records in all).
    """
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
    with torch.inference_mode():
        for batch in loader:
            rows = len(batch["sample"])
            view, start = int(batch["view"][0]), int(batch["sample"][0])
            said = say(knowledge, batch, view, start)
            if not written:
                _warn(knowledge.task, said, batch)
            writer.write_rows(view, start, said)
            written += rows
            if progress is not None:
                progress(done + written, total)
    return written


def _warn(task: Task, said: Mapping[str, Rows], batch: Mapping[str, Any]) -> None:
    """Warn of what a task finds odd in the first batch, before the teacher has spoken for days."""
    doubt, found = getattr(task, "doubt", None), said.get(LOGITS)
    text = doubt(torch.from_numpy(found.values), batch) if doubt is not None and isinstance(found, RaggedArray) else ""
    if text:
        warnings.warn(text, stacklevel=4)


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
        if not isinstance(target, DenseTarget | torch.Tensor):
            raise ConfigError(expected(name, "dense knowledge", type(target).__name__, where="make"))
        values = (target if isinstance(target, torch.Tensor) else target.logits).cpu().numpy()
        by_position = counts is not None and knowledge.fields[name].by_position
        said[name] = (
            RaggedArray(values, offsets_of(counts.cpu().numpy())) if by_position and counts is not None else values
        )
    said[PROBE_HASH] = batch[PROBE_HASH].numpy().view(np.uint64)
    said[PROBE_PROJECTIONS] = batch[PROBE_PROJECTIONS].numpy().astype(np.float32)
    return said
