"""From names to a finished book."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bookkd.book import Auto, Book, Choice, Codec, Dense, Int8, Sampled, is_finished, shortfall
from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import Feature, is_feature
from bookkd.core.fields import LOGITS
from bookkd.core.names import choose
from bookkd.evaluation import Evaluation, Measures, lower_is_better
from bookkd.knowledge import Teacher, member_fields
from bookkd.learning import find_device, measure_network
from bookkd.making import grow as grow_book
from bookkd.making import make, make_several
from bookkd.making.local import Progress
from bookkd.methods import Method, build_method
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.task import build_task, check_dataset, says_variance, teacher_for, with_variance
from bookkd.tasks import Task
from bookkd.views import Views

FEATURE_CODECS: Mapping[str, Codec] = {"float16": Dense(), "float32": Dense("float32"), "int8": Int8()}
"""How features become bytes."""

__all__ = ["FEATURE_CODECS", "features_of", "make_book", "measure_teacher", "note_accuracy"]


def measure_teacher(teacher: Teacher, data: DataOptions, task: Task, split: str) -> float | None:
    """Measure a teacher on another split, note its accuracy on it and return it; see `note_accuracy`.

    Args:
        teacher: Ready to speak.
        data: The data set; its split is replaced.
        task: Turns output into fields.
        split: Held-out split.
    """
    measured = measure_network(teacher, data.other(split).open(), task, device=teacher.device, replicates=0)
    return note_accuracy(teacher, measured, task, split)


def note_accuracy(teacher: Teacher, measured: Evaluation | Measures, task: Task, split: str) -> float | None:
    """Note on a teacher what it scores on a split, and return it; None where it has none.

    That is the task's first metric where it grows with quality, else the share of positions that the teacher is right about.
    """
    name = "accuracy" if lower_is_better(task.primary_metric) else task.primary_metric
    value = measured.metrics[name].value if name in measured.metrics else None
    teacher.accuracy, teacher.split = value, split
    return value


def make_book(
    out: str,
    *,
    data: DataOptions,
    teacher: NetworkOptions | Sequence[NetworkOptions],
    views: ViewOptions,
    codec: Codec | Auto | None = None,
    batch_size: int | None = None,
    unit_rows: int | None = None,
    workers: int = 0,
    accelerator: str = "auto",
    temperatures: tuple[float, ...] = (1.0, 4.0),
    held_out: str = "",
    accuracy: float | None = None,
    task: str = "classification",
    task_args: Mapping[str, Any] | None = None,
    grow: bool = False,
    progress: Progress | None = None,
    told: Callable[[Choice], None] | None = None,
    features: Sequence[str] = (),
    serve: Sequence[str | Method] = (),
    feature_codec: str = "float16",
    hint: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Make a book from named parts, by one teacher or several; gone on with where it was begun, or grown where it is finished.

    Args are those of `bookkd make`, `accuracy`: what a teacher is known to reach on `held_out`, which then is not measured
    again; `task_args`: options of the task; `features`, `serve` and `feature_codec` are of one teacher; `told`: called with the choice
    where a codec is chosen by measuring; and `hint`: called before anything is written with what a smaller codec would save, where the
    codec keeps every token at each position.

    Returns:
        What `bookkd make --json` prints.
    """
    dataset = data.open()
    plain = build_task(task, dataset, task_args)
    check_dataset(plain, dataset, data.name)
    device = find_device(accelerator)

    def load(options: NetworkOptions) -> Teacher:
        speaker = teacher_for(options, dataset, plain, device)
        if held_out and accuracy is not None:
            speaker.accuracy, speaker.split = accuracy, held_out
        elif held_out:
            measure_teacher(speaker, data, plain, held_out)
        return speaker

    notes = []
    given, views = views, views.without_repeats()
    if views != given:
        notes.append(f"transform none draws the same view each time: 1 view is stored, not {given.n_views}.")
    features = (features,) if isinstance(features, str) else tuple(features)
    serve = (serve,) if isinstance(serve, str) else tuple(serve)
    inside = tuple(dict.fromkeys((*features, *(name for method in serve for name in features_of(method, plain)))))
    options: dict[str, Any] = {
        "codec": codec,
        "batch_size": batch_size,
        "unit_rows": unit_rows,
        "workers": workers,
        "temperatures": temperatures,
        "progress": progress,
    }
    teachers = [teacher] if isinstance(teacher, NetworkOptions) else list(teacher)
    drawn = views.build()
    if inside and len(teachers) > 1:
        do = "Features are of one teacher, and learnt from in a book of its own: make one of each, without the others."
        raise ConfigError(expected("teachers", "one, to keep features of", len(teachers), where="make", do=do))
    if hint is not None and (text := _of_every_token(codec, plain, dataset, views.n_views * len(teachers))):
        hint(text)
    if grow and is_finished(out):
        _check_grown(out, features, serve, plain)
        book, told_of_growth = _grown(out, [load(each) for each in teachers], dataset, drawn, plain, options)
        notes += told_of_growth
    elif len(teachers) == 1:
        speaker = load(teachers[0])
        known = with_variance(plain, teacher=says_variance(plain, speaker, dataset, views=drawn), student=False)
        kept: dict[str, Any] = {
            "features": tuple(features),
            "serve": tuple(serve),
            "feature_codec": FEATURE_CODECS[choose(feature_codec, FEATURE_CODECS, "codec")],
        }
        book = make(out, speaker, dataset, drawn, task=known, told=told, **kept, **options)
    else:
        loaders = [partial(load, each) for each in teachers]
        book = make_several(out, loaders, dataset, drawn, task=plain, told=told, **options)
    notes += shortfall(book)
    if cut := book.cost.get("outputs"):
        notes.append(
            f"the teacher says {cut['said']:,} outputs at a position; the book keeps the first {cut['kept']:,}."
        )
    chosen = {name: lost["choice"] for name, lost in book.fidelity.items() if "choice" in lost}
    told_of = {"data": data.name, "data_args": data.args, "task": plain.name}
    return {**describe(book), **told_of, "notes": notes, **({"chosen": chosen} if chosen else {})}


_MANY = 256
"""Classes of a position from which on a codec that keeps them all is worth a word."""


def _of_every_token(codec: Codec | Auto | None, task: Task, dataset: Any, spoken: int) -> str:
    """Return what a codec that keeps every token takes at most, and which take less; empty where that is little to speak of."""
    info = task.field_infos.get(LOGITS)
    if isinstance(codec, Auto) or info is None or not info.by_position or info.shape[0] < _MANY:
        return ""
    kept = codec or Dense()
    if kept.sparse or not hasattr(dataset, "most_positions"):
        return ""
    each, fewer = kept.bytes_per_record(info.shape), Sampled(50).bytes_per_record(info.shape)
    whole = each * (task.most_positions(dataset) or 1) * len(dataset) * spoken
    return (
        f"Codec {kept.name} keeps all {info.shape[0]:,} tokens at each position: {each:,} bytes, {whole / 2**20:,.1f} MiB in all at the most. "
        f"--codec sampled keeps 50 draws, at most {fewer:,} bytes; --codec top_k the likeliest tokens."
    )


def features_of(method: str | Method, task: Task) -> list[str]:
    """Return what a method, at its defaults where it is a name, reads inside of a teacher.

    Raises:
        ConfigError: for a method that reads nothing there.
    """
    chosen = build_method(method) if isinstance(method, str) else method
    found = [name for name in chosen.needs(task).fields if is_feature(name)]
    if not found:
        do = "It learns from what every book of this task holds: leave it out."
        raise ConfigError(
            expected("serve", "a method that looks inside of the teacher", chosen.name, where="make", do=do)
        )
    return found


def _check_grown(out: str, features: Sequence[str], serve: Sequence[str | Method], task: Task) -> None:
    """Refuse features that a finished book has not: what it said of its records is not asked again.

    Raises:
        ConfigError: naming the first.
    """
    had = Book(out).fields
    named = {Feature.of(name).layer for name in had if is_feature(name)}
    served = [build_method(each) if isinstance(each, str) else each for each in serve]
    # As it was made: of the stages that its teacher names.
    asked = [*features, *(name for each in served for name in features_of(each.looking_at(named), task))]
    missing = next((name for name in asked if name not in had), None)
    if missing is not None:
        do = "A book grows by views, samples and teachers: make another one with them (--out)."
        raise ConfigError(
            expected("features", "among those of the finished book", missing, where=f"make --grow, {out}", do=do)
        )


def _grown(
    out: str, teachers: list[Teacher], dataset: Any, views: Views, task: Task, options: dict[str, Any]
) -> tuple[Book, list[str]]:
    """Add what is missing to a finished book, and return it with what is to be said of that; `options` are those of `make`."""
    known = with_variance(task, teacher=says_variance(task, teachers[0], dataset, views=views), student=False)
    had, notes = Book(out), []
    unit_rows = options.pop("unit_rows")
    if isinstance(options["codec"], Auto):
        # A book keeps the codec that it was begun with.
        options["codec"] = had.fields[(member_fields(had.plan) or [LOGITS])[0]].codec
    if unit_rows not in (None, had.plan.unit_rows):
        notes.append(f"a unit stays at the book's {had.plan.unit_rows} samples, not {unit_rows}.")
    book = grow_book(out, teachers, dataset, views, task=known, **options)
    return book, notes + _growth_notes(book, had.edition)


def _growth_notes(book: Book, before: int) -> list[str]:
    if book.edition == before:
        return ["nothing was missing: the book is as it was."]
    growth = book.cost["growth"]
    return [
        f"edition {book.edition}: {growth['teacher_forwards']:,} samples through a teacher; that the samples of edition {before} are "
        f"its own is proven by {growth['proven_by']}."
    ]


def describe(book: Book) -> dict[str, Any]:
    """Return what a book is, in a few plain values."""
    return {
        "path": str(book.path),
        "records": book.n_samples * book.n_views,
        "samples": book.n_samples,
        "views": book.n_views,
        "bytes": book.nbytes,
        "bytes_per_record": book.bytes_per_record,
        "content_digest": book.content_digest,
        "fidelity": book.fidelity,
        "cost": book.cost,
    }
