"""What a book and its students will cost, from a sample of the real work, before anything is paid for."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from bookkd.book import Book, Codec, Dense, Int8, TopK, measure_codec
from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import INPUT, LOGITS, PROBE_HASH, PROBE_PROJECTIONS
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, check_views
from bookkd.learning import (
    Step,
    Training,
    begin_run,
    check_batches,
    find_device,
    for_networks,
    learner_for,
    make_groups,
    offer_needs,
    to_device,
)
from bookkd.learning.configuration import check_task
from bookkd.making import find_batch_size, make
from bookkd.methods import Method, VanillaKD
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.task import check_dataset, teacher_for
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Pick, Replay, Views, collate
from bookkd.zoo import SubsetDataset

__all__ = ["Prediction", "predict_cost", "record_bytes"]

SAMPLE = 512
STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What making and learning will take.

    Args:
        records: Records of the book.
        making_seconds: The teacher's passes over all views, written down.
        teacher_forwards: Samples passed through the teacher, once.
        student_seconds: One student from the book, all epochs.
        online_seconds: One student with the teacher asked at every step.
        students: How many students are planned.
        book_total: Making once and all students from the book.
        online_total: All students online.
        paid_after_students: Students after which the book has paid for itself: making it and learning from it took no more time
            than so many students with the teacher online; None where it never does, or where the saving cannot be told.
        saving_spread_seconds: How far what one student saves may be off, twice its standard error by the times of the steps: no
            saving can be told that is not larger.
        steps: Optimizer steps of one student.
        codecs: By name: bytes a record and of the book, and what the codec loses, measured on the sample.
        measured_records: Records that the teacher was timed on, and the codecs measured.
        measured_steps: Steps of the student that were timed from the book, and as many with the teacher online.
    """

    records: int
    making_seconds: float
    teacher_forwards: int
    student_seconds: float
    online_seconds: float
    students: int
    book_total: float
    online_total: float
    paid_after_students: int | None
    saving_spread_seconds: float
    steps: int
    codecs: dict[str, dict[str, Any]]
    measured_records: int
    measured_steps: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def predict_cost(
    *,
    data: DataOptions,
    teacher: NetworkOptions,
    student: NetworkOptions,
    views: ViewOptions,
    training: Training,
    students: int = 1,
    method: Method | None = None,
    temperatures: tuple[float, ...] = (1.0, 4.0),
    sample: int = SAMPLE,
    cpu: bool = False,
) -> Prediction:
    """Make a small book of real records, take a few real steps, and work out the rest.

    Args:
        data: The samples.
        teacher: The teacher.
        student: The student.
        views: The augmentation.
        training: How the student is to be trained.
        students: How many students are planned, at least 1.
        method: What the student minimises; vanilla distillation where None.
        temperatures: Where the loss of the codecs is measured.
        sample: Records that are measured.
        cpu: Count seconds of the processor in place of the clock's: the same on a machine that nothing else uses, and steadier
            on one that is busy.

    Raises:
        ConfigError: if an option is out of range, or the method asks for no teacher, for more views or for other batches.
    """
    at_least(students, 1, "students", where="plan")
    at_least(sample, 16, "sample", where="plan")
    method = method or VanillaKD()
    built = views.without_repeats().build()
    if built.mix is not None:
        do = "Plan with the same views without mixing; mixing costs another draw of each view."
        raise ConfigError(expected("mix", "none for a plan", views.mix, where="views", do=do))
    dataset = data.open()
    task = Classification.of(dataset)
    check_dataset(task, dataset, data.name)
    _check_method(method, task, built, training, len(dataset))
    speaker = teacher_for(teacher, dataset, task, find_device(training.accelerator))
    part = SubsetDataset(dataset, np.linspace(0, len(dataset) - 1, min(sample, len(dataset))).astype(np.int64))
    records = len(dataset) * built.n_views
    rehearsal = _Rehearsal(part, built, task, student, method, training, cpu)
    timed = _timed(rehearsal, speaker)
    steps = _steps(training, len(dataset), rehearsal.views_per_sample, whole=rehearsal.objective.relational)
    seen = training.epochs * rehearsal.views_per_sample
    views_seconds = timed.drawing * len(dataset) * (min(built.n_views, seen) if training.cache_views else seen)
    student_seconds = timed.from_book.median * steps + timed.from_book.epoch * training.epochs + views_seconds
    online_seconds = timed.online.median * steps + timed.online.epoch * training.epochs + views_seconds
    spread = 2 * math.hypot(timed.from_book.error, timed.online.error) * steps
    saved = online_seconds - student_seconds
    making_seconds = timed.record * records
    return Prediction(
        records=records,
        making_seconds=making_seconds,
        teacher_forwards=records,
        student_seconds=student_seconds,
        online_seconds=online_seconds,
        students=students,
        book_total=making_seconds + students * student_seconds,
        online_total=students * online_seconds,
        paid_after_students=_paid_after(making_seconds, saved, spread),
        saving_spread_seconds=spread,
        steps=steps,
        codecs=_codecs(timed.logits, temperatures, records, timed.feature_bytes),
        measured_records=len(part),
        measured_steps=timed.from_book.count,
    )


def _check_method(method: Method, task: Classification, views: Views, training: Training, samples: int) -> None:
    """Refuse a method that asks for no teacher, or that could not be trained so."""
    check_task(method, task, where="plan")
    needs = method.needs(task)
    if not needs.fields or needs.live_teacher:
        got = f"{method.name}, which learns from {'a live teacher' if needs.live_teacher else 'no teacher'}"
        do = "A book neither costs nor saves it anything; plan with --method vanilla-kd or another that learns from a book."
        raise ConfigError(expected("method", "one that learns from a book", got, where="plan", do=do))
    check_views(needs, views.n_views, method.name, where="plan")
    whole = method.objective(task).relational
    check_batches(training, samples=samples, views_per_sample=needs.views_per_sample, whole=whole, where="plan")


def _steps(training: Training, samples: int, views_per_sample: int, *, whole: bool) -> int:
    """Return the optimizer steps of a run.

    Args:
        training: Epochs, batch size, accumulation.
        samples: Samples of an epoch.
        views_per_sample: Rows of a batch that are views of one sample.
        whole: Whether the last incomplete batch of an epoch is left out, not filled up.

    >>> training = Training(epochs=2, batch_size=64)
    >>> _steps(training, 100, 1, whole=False), _steps(training, 100, 2, whole=False), _steps(training, 100, 2, whole=True)
    (4, 8, 6)
    """
    full, rest = divmod(samples * views_per_sample, training.batch_size)
    return training.epochs * -(-(full + bool(rest and not whole)) // training.accumulate)


def _paid_after(making_seconds: float, saved_seconds: float, spread_seconds: float = 0.0) -> int | None:
    """Return after how many students a book has paid for itself; None where they save nothing, or nothing that can be told.

    Args:
        making_seconds: What making it takes, once.
        saved_seconds: What one student from it takes less than one with the teacher online.
        spread_seconds: How far that may be off, at least 0.

    >>> _paid_after(10.0, 4.0), _paid_after(1.0, 4.0), _paid_after(8.0, 4.0), _paid_after(10.0, -1.0)
    (3, 1, 2, None)
    >>> _paid_after(10.0, 4.0, 3.9), _paid_after(10.0, 4.0, 4.0)
    (3, None)
    """
    return max(1, math.ceil(making_seconds / saved_seconds)) if saved_seconds > spread_seconds else None


@dataclass(frozen=True)
class _StepSeconds:
    """Seconds of one optimizer step: the median of those that were taken, its standard error, and what an epoch adds to its steps.

    `count` of them were taken.
    """

    median: float
    error: float
    epoch: float
    count: int


@dataclass(frozen=True, eq=False)
class _Timed:
    """Seconds of the parts of the work, what the teacher said of the sample [records, classes], and the bytes a record of features."""

    record: float
    from_book: _StepSeconds
    online: _StepSeconds
    drawing: float
    logits: npt.NDArray[np.float64]
    feature_bytes: int


def _timed(rehearsal: _Rehearsal, teacher: Teacher) -> _Timed:
    """Make a book of the sample, and take steps of the student from it and with the teacher online."""
    part, task = rehearsal.part, rehearsal.task
    with tempfile.TemporaryDirectory(prefix="bookkd-plan-") as folder:
        book, record = _sampled_book(
            Path(folder) / "book", teacher, part, rehearsal.views, task, rehearsal.cpu, rehearsal.method
        )
        return _Timed(
            record=record,
            from_book=rehearsal.seconds_of_step(StoredKnowledge(book)),
            online=rehearsal.seconds_of_step(LiveKnowledge(teacher, task)),
            drawing=rehearsal.seconds_of_drawing(),
            logits=np.asarray(book.read(np.arange(len(part)), 0, [LOGITS])[LOGITS], dtype=np.float64),
            feature_bytes=sum(plan.bytes_per_record for name, plan in book.fields.items() if is_feature(name)),
        )


def _sampled_book(
    path: Path, teacher: Teacher, part: SubsetDataset, views: Views, task: Classification, cpu: bool, method: Method
) -> tuple[Book, float]:
    """Make a book of the sample and return the seconds a record, warm, without what is paid once a book."""
    batch = find_batch_size(teacher, Replay(part, views)[Pick(0, 0)][INPUT])
    make(path.with_name("warm-up"), teacher, part, views, task=task, batch_size=batch, serve=[method])
    book = make(path, teacher, part, views, task=task, batch_size=batch, codec=Dense("float32"), serve=[method])
    return book, float(book.cost["cpu_seconds" if cpu else "seconds"]) / (len(part) * views.n_views)


class _Rehearsal:
    """A few real steps of a student, on views that are drawn beforehand: as many of a sample as a batch holds."""

    def __init__(
        self,
        part: SubsetDataset,
        views: Views,
        task: Classification,
        student: NetworkOptions,
        method: Method,
        training: Training,
        cpu: bool,
    ) -> None:
        self.cpu = cpu
        self.clock = time.process_time if cpu else time.perf_counter
        self.part = part
        self.objective = method.objective(task)
        self.views_per_sample = method.needs(task).views_per_sample
        self.views = replace(views, n_views=self.views_per_sample)
        self.n_views, self.drawn = views.n_views, Replay(part, views, probe_share=training.probe_share)
        self.replay = Replay(part, self.views, probe_share=training.probe_share)
        self.cached = CachedViews(self.replay, max_bytes=2**31)
        size = min(training.batch_size, len(part) * self.views_per_sample)
        self.training = replace(
            training,
            batch_size=size,
            accumulate=1,
            epochs=10**6,
            schedule="constant",
            milestones=(),
            # The sample is in memory, whatever order the whole is read in.
            shuffle="rows",
            shuffle_window=None,
            shuffle_block_rows=None,
        )
        self.scale = training.batch_size * training.accumulate / size
        self.task, self.student, self.method = task, student, method

    def seconds_of_step(self, knowledge: StoredKnowledge | LiveKnowledge) -> _StepSeconds:
        """Return the seconds of one optimizer step of the planned batch."""
        network, preprocess = self.student.cohort(self.task.n_classes, self.method.cohort, seed=0)
        method = for_networks(self.method, network, knowledge, self.student.layers)
        objective = method.objective(self.task)
        offer_needs(method, self.task, knowledge, self.cached)
        learner = learner_for(
            network, self.task, method, replay=self.cached, knowledge=knowledge, preprocess=preprocess,
            layers=self.student.layers,
        )  # fmt: skip
        device = find_device(self.training.accelerator)
        learner.to(device)
        if device.type == "cpu":
            learner.to(memory_format=torch.channels_last)
        groups = make_groups(
            self.cached,
            self.training,
            samples=len(self.cached),
            n_views=self.views_per_sample,
            views_per_sample=self.views_per_sample,
            whole=objective.relational,
        )
        run = begin_run(learner, Step(objective, self.task, knowledge), method, self.training, groups)
        counted: list[float] = []
        warm, epochs, total = 0, 0, 0.0
        while len(counted) < STEPS:
            began = started = self.clock()
            taken: list[float] = []
            run.begin_epoch()
            for group in groups:
                run.optimizer_step([to_device(batch, device) for batch in group])
                taken.append(self.clock() - started)
                started = self.clock()
            run.end_epoch()
            if warm < 2:
                warm += len(taken)
                continue
            # Gathering a batch is part of a step.
            counted += taken
            epochs += 1
            total += self.clock() - began
        low, middle, high = statistics.quantiles(counted, n=4, method="inclusive")
        # Of a normal distribution a median has the error 1.253 sd / sqrt(n), and the quartiles are 1.349 sd apart.
        error = 1.253 / 1.349 * (high - low) / math.sqrt(len(counted))
        around = max(0.0, total - middle * len(counted)) / epochs
        return _StepSeconds(middle * self.scale, error * self.scale, around, len(counted))

    def seconds_of_drawing(self) -> float:
        """Return the seconds of drawing one view, in batches of the planned size as a run draws them."""
        size = self.training.batch_size
        picks = [Pick(int(row), place % self.n_views) for place, row in enumerate(self.replay.rows)]
        batches = [picks[start : start + size] for start in range(0, len(picks), size)]
        loader = DataLoader(self.drawn, batch_sampler=batches, collate_fn=collate, generator=torch.Generator())
        next(iter(loader))
        started = self.clock()
        for _ in loader:
            pass
        return (self.clock() - started) / len(picks)


def record_bytes(n_classes: int, temperatures: tuple[float, ...], *, features: int = 0) -> dict[str, tuple[Codec, int]]:
    """Return name -> codec and the bytes of one record with its probes, of the codecs that a plan holds against one another.

    Args:
        n_classes: Classes of the teacher.
        temperatures: That a sparse codec is to honour.
        features: Bytes a record of what is kept of the inside of the teacher, whatever the codec of its logits.

    >>> record_bytes(10, (1.0,))["int8"][1], record_bytes(10, (1.0,), features=128)["int8"][1]
    (30, 158)
    """
    k = min(max(4, n_classes // 10), n_classes - 1)
    candidates: dict[str, Codec] = {
        "dense float32": Dense("float32"),
        "dense float16": Dense(),
        "int8": Int8(),
        f"top_k {k}": TopK(k=k, temperatures=temperatures),
    }
    beside = sum({PROBE_HASH: 8, PROBE_PROJECTIONS: 8}.values()) + features
    return {name: (codec, codec.bytes_per_record((n_classes,)) + beside) for name, codec in candidates.items()}


def _codecs(
    logits: npt.NDArray[np.float64], temperatures: tuple[float, ...], records: int, features: int
) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes_per_record": size, "bytes": size * records, **measure_codec(codec, logits, temperatures)}
        for name, (codec, size) in record_bytes(logits.shape[1], temperatures, features=features).items()
    }
