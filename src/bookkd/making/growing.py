"""Growing a book: more views, more samples or further teachers, after proving that they go with what it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from bookkd.book import Auto, Book, Codec, Dense, GrowthWriter, Plan, TeacherInfo, planned_constants
from bookkd.book.plan import TOLD
from bookkd.book.ragged import Rows
from bookkd.book.remote import local_folder
from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS, PROBE_HASH, PROBE_PROJECTIONS, SAMPLE, VIEW
from bookkd.core.rng import generator
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, keys_of, member_fields, with_pool_of
from bookkd.knowledge.writing import offer, plan_book, say
from bookkd.making.local import peak_memory_bytes
from bookkd.making.merging import merged_plan, sources_of
from bookkd.making.on_device import encoding_on
from bookkd.tasks import Task
from bookkd.views import Pick, Replay, Views, check_replay, collate, differences
from bookkd.zoo import fingerprint, known_as

__all__ = ["First", "check_samples", "grow"]

Progress = Callable[[int, int], None]
_PROVEN = 64
"""Records whose probes are compared before anything is added."""


def grow(
    path: str | Path,
    teachers: Teacher | Sequence[Teacher],
    dataset: Any,
    views: Views,
    *,
    task: Task,
    codec: Codec | Auto | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    temperatures: tuple[float, ...] = (1.0, 4.0),
    keys: npt.NDArray[np.uint64] | None = None,
    constants: Sequence[Mapping[str, npt.ArrayLike]] = (),
    progress: Progress | None = None,
) -> Book:
    """Add what is missing to a finished book, as its next edition; the one before stays readable all the while.

    With the book's own teachers: views beyond those it has, and samples behind those it has. With further teachers, alone or
    listed behind the book's own: what they say about its samples and views. Interrupted, it is gone on with. The result
    is the book that would have been made in one go, record by record, where the teacher says the same in every batch.

    Args:
        path: Folder of a finished book.
        teachers: The book's own in their order, further ones, or both; all of them are in memory.
        dataset: The book's samples, and more behind them.
        views: The book's recipe, with as many views or more; mixed views keep the partners that the book froze.
        task: As `make`.
        codec: How logits become bytes. Of the book's own teachers that of the book, which is taken where None or `Auto`: what was
            chosen stays chosen. Of further teachers any by name, float16 where None.
        batch_size: That of the book, which is taken where None.
        workers: Loader processes.
        temperatures: As `make`.
        keys: Key of each sample, if the book has keys; the data set's attribute `keys` where None.
        constants: For each further teacher what it has once, name -> array, which becomes `members/<i>/<name>`.
        progress: Called with (records done, records in all), of those that are added.

    Returns:
        The grown book, open; as it was where nothing is missing.

    Raises:
        BookMismatchError: if teachers, samples, views or codecs are not those of the book; what differs is named.
        ViewMismatchError: if a replayed view is not the input that the book is about.
        ConfigError: for further teachers together with more views or samples, or to a book of more than logits.
        BookLockedError: if another process writes the book.
        StorageError: if the disk is full; running it again goes on.
    """
    book = Book(local_folder(path, "grow"))
    stored = StoredKnowledge(book)
    given = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    views = with_pool_of(stored, views)
    replay = Replay(dataset, views)
    further = _further(book, given)
    if further is None and (len(dataset), views.n_views) == (book.n_samples, book.n_views) and _known(book, constants):
        return book  # what these teachers say is all there
    if further is None:
        wish = "the book's own in their order, for more views or samples"
        got = [teacher.name for teacher in given]
        raise BookMismatchError(expected("teachers", wish, got, where=str(book.path)))
    check_replay(replay)
    speakers = further or given
    inside = [] if further else [name for name in book.fields if is_feature(name)]
    kept = book.fields[inside[0]].codec if inside else None
    if inside:
        # What the book knows of its teacher, not what a larger sample would say.
        speakers = [teacher.knowing(stored.constants) for teacher in speakers]
    asked = [
        plan_book(
            teacher, dataset, views, task, codec=each, temperatures=temperatures, features=inside, feature_codec=kept
        )
        for teacher, each in zip(speakers, _codecs(book, codec, further or []), strict=True)
    ]
    proof = _prove(stored, replay, views)
    plan, names = _larger(book, asked, dataset, views, bool(further))
    if batch_size is not None:
        plan = replace(plan, batch_size=batch_size)
    knowledge = [LiveKnowledge(teacher, task) for teacher in speakers]
    for each in knowledge:
        offer(each, inside, replay)
    members = _members(book, plan, len(knowledge), bool(further))
    added = _constants(book, constants, members, bool(further))
    with GrowthWriter(path, plan, keys=_keys(book, dataset, keys), names=names, constants=added) as writer:
        started, cpu = time.perf_counter(), time.process_time()
        written = _write(writer, stored, replay, list(zip(members, knowledge, strict=True)), workers, progress)
        forwards = sum(each.teacher_forwards for each in knowledge)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        return writer.finish(_cost(book, written, forwards, seconds, cpu_seconds, proof))


def _codecs(book: Book, codec: Codec | Auto | None, further: Sequence[Teacher]) -> list[Codec]:
    """Return the codec of each speaker's logits."""
    if further and isinstance(codec, Auto):
        do = "Choose it with `make`, in a book of its own, and `merge`."
        raise ConfigError(
            expected("codec", "a codec by name, for a further teacher", "auto", where=str(book.path), do=do)
        )
    if further:
        return [Dense() if codec is None or isinstance(codec, Auto) else codec for _ in further]
    names = member_fields(book.plan) or [LOGITS]
    own = [book.fields[name].codec if name in book.fields else Dense() for name in names]
    return own if codec is None or isinstance(codec, Auto) else [codec for _ in own]


def _further(book: Book, given: Sequence[Teacher]) -> list[Teacher] | None:
    """Return the teachers that the book has not, none where they are its own; None where it has each but not they alone."""
    mine = [(teacher.digest, teacher.mode) for teacher in book.plan.teachers]
    theirs = [(teacher.digest, teacher.mode) for teacher in given]
    if theirs == mine:
        return []
    if theirs[: len(mine)] == mine:
        return list(given[len(mine) :])
    if not set(theirs) & set(mine):
        return list(given)
    if set(theirs) <= set(mine):
        return None
    wish = "the book's own in their order, or further ones, or both"
    raise BookMismatchError(
        expected("teachers", wish, [teacher.name for teacher in given], where=str(book.path), do="List its own first.")
    )


class First:
    """The first samples of a data set, for their fingerprint."""

    def __init__(self, dataset: Any, count: int) -> None:
        self._dataset, self._count = dataset, count
        for name in ("name", "class_names", "blank"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))
        labels = getattr(dataset, "labels", None)
        if labels is not None and hasattr(labels, "__getitem__"):
            self.labels = labels[:count]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def check_samples(book: Book, dataset: Any, views: Views) -> bool:
    """Refuse samples or views that are not those of a book, as far as it has them.

    Args:
        book: The book.
        dataset: Its samples, or more.
        views: Its views, of whatever number.

    Returns:
        Whether the fingerprint proves the samples; a book of another producer may have none of ours.

    Raises:
        BookMismatchError: naming what differs.
    """
    if len(dataset) < book.n_samples:
        wish, do = (
            f"the book's {book.n_samples} samples and more",
            "Name the data that the book was made with, or more.",
        )
        raise BookMismatchError(expected("dataset", wish, len(dataset), where=str(book.path), do=do))
    found = differences(book.plan.views, views.recipe(book.n_samples), ignore=("n_views",))
    mine = fingerprint(First(dataset, book.n_samples))
    known = {key: value for key, value in book.plan.data.items() if key not in TOLD}
    fingerprinted = bool(known) and known.keys() <= mine.keys()
    if fingerprinted:
        found += [
            f"data {known_as(key)} is {mine[key]!r}, the book's is {value!r}"
            for key, value in known.items()
            if mine[key] != value
        ]
    if found:
        raise BookMismatchError(
            f"Expected book {book.path} to begin with these samples and views, got: {'; '.join(found)}. Pass the data set, "
            "transform and seed that the book was made with."
        )
    return fingerprinted


def _prove(stored: StoredKnowledge, replay: Replay, views: Views) -> str:
    """Refuse samples or views that are not the book's, as far as it has them; return how it was proven, in words."""
    book = stored.book
    fingerprinted = check_samples(book, replay.dataset, views)
    probed = PROBE_HASH in book.fields and PROBE_PROJECTIONS in book.fields
    if not fingerprinted and not probed:
        wish = "a fingerprint of ours or probes, to prove that the samples are its own"
        raise BookMismatchError(expected("book", wish, "neither", where=str(book.path), do="Make a new book."))
    draws = generator(0, "growth")
    last = min(views.n_views, book.n_views)
    # The first record is among them: a data set that begins otherwise is seen whatever is drawn.
    picks = [Pick(0, 0)] + [
        Pick(int(draws.integers(book.n_samples)), int(draws.integers(last)))
        for _ in range(min(_PROVEN, book.n_samples * last) - 1)
    ]
    stored.check(replay.batch(picks))
    probes = f"probes of {len(picks)} records"
    return " and ".join((["fingerprint of the samples"] if fingerprinted else []) + ([probes] if probed else []))


def _larger(
    book: Book, asked: Sequence[Plan], dataset: Any, views: Views, further: bool
) -> tuple[Plan, dict[str, str]]:
    """Return the plan of the grown book, and the names that the book's fields have there."""
    old, first = book.plan, asked[0]
    now: dict[str, Any] = {"n_samples": len(dataset), "n_views": views.n_views}
    run: dict[str, Any] = {"threads": first.threads, "device": first.device, "versions": first.versions}
    # The text of the recipe stays the book's, which another version of a library may print otherwise.
    recipe = {**old.views, "n_views": views.n_views, "versions": first.views["versions"]}
    if "n_views" not in old.views:
        del recipe["n_views"]
    data = first.data if len(dataset) > book.n_samples else old.data
    if further:
        plan = replace(merged_plan([old, *asked]), **now, **run, views=recipe, data=data, unit_rows=None)
        return plan, {name: new for new, (place, name) in sources_of([old, *asked]).items() if place == 0}
    fields = dict(first.fields)
    if len(asked) > 1:
        fields = {name: each.fields[LOGITS] for name, each in zip(member_fields(old), asked, strict=True)}
        fields |= {name: entry for name, entry in first.fields.items() if name in (PROBE_HASH, PROBE_PROJECTIONS)}
    plan = replace(
        first,
        **now,
        fields=fields,
        teachers=_same_or(old.teachers, [each.teachers[0] for each in asked]),
        data=data,
        views=recipe,
        choice=old.choice,
        constants=old.constants,
        batch_size=old.batch_size,
        unit_rows=None,
        block_rows=None,
    )
    return plan, {}


def _same_or(mine: Sequence[TeacherInfo], theirs: Sequence[TeacherInfo]) -> tuple[TeacherInfo, ...]:
    """Return what the book notes of its teachers; where a run has measured one and the book had not, what the run notes."""
    return tuple(
        other if own.accuracy is None and other.accuracy is not None else own
        for own, other in zip(mine, theirs, strict=True)
    )


def _members(book: Book, plan: Plan, speakers: int, further: bool) -> list[int | None]:
    """Return the place of each speaker among the teachers of the grown book; None where it is the only one."""
    if further:
        return list(range(len(plan.teachers) - speakers, len(plan.teachers)))
    if speakers > 1 and not member_fields(book.plan):
        raise ConfigError(expected("book", "with each teacher's logits", sorted(book.fields), where=str(book.path)))
    return [None] if not member_fields(book.plan) else list(range(speakers))


def _constants(
    book: Book, given: Sequence[Mapping[str, npt.ArrayLike]], members: Sequence[int | None], further: bool
) -> dict[str, npt.ArrayLike]:
    """Return the constants of further teachers by their names in the grown book."""
    if not further and not _known(book, given):
        do = "Add them alone: bookkd.book.GrowthWriter(path, book.plan, constants={name: array})."
        raise ConfigError(expected("constants", "of further teachers", "others", where=str(book.path), do=do))
    if not further or not given:
        return {}
    if len(given) != len(members):
        wish = f"a mapping for each of {len(members)} further teachers"
        raise ConfigError(expected("constants", wish, len(given), where=str(book.path)))
    pairs = zip(members, given, strict=True)
    return {f"members/{member}/{name}": array for member, each in pairs for name, array in each.items()}


def _known(book: Book, given: Sequence[Mapping[str, npt.ArrayLike]]) -> bool:
    """Say whether a book has these constants, under whatever names."""
    known = set(book.plan.constants.values())
    return all(known.issuperset(planned_constants(each).values()) for each in given)


def _keys(book: Book, dataset: Any, keys: npt.NDArray[np.uint64] | None) -> npt.NDArray[Any] | None:
    found = keys_of(dataset) if keys is None else keys
    return found if book.keys is not None or keys is not None else None


def _batches(writer: GrowthWriter) -> Iterator[list[Pick]]:
    """Yield the plan's batches that hold rows to be said: such a batch is the one of a book made in one go, old rows and all."""
    step, rows = writer.plan.batch_size, writer.plan.unit_rows or writer.plan.n_samples
    for view, said, stop in writer.pending():
        begin = said - said % rows
        for start in range(said - (said - begin) % step, stop, step):
            yield [Pick(sample, view) for sample in range(start, min(start + step, stop))]


def _write(
    writer: GrowthWriter,
    stored: StoredKnowledge,
    replay: Replay,
    speakers: Sequence[tuple[int | None, LiveKnowledge]],
    workers: int,
    progress: Progress | None,
) -> int:
    batches = list(_batches(writer))
    total = writer.rows
    done = total - sum(unit.stop - unit.start for unit in writer.pending())
    written = 0
    loader = DataLoader(
        replay,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),
    )
    device = speakers[0][1].teacher.device if speakers else "cpu"
    with torch.inference_mode(), encoding_on(device):
        for batch in loader:
            view, start = int(batch[VIEW][0]), int(batch[SAMPLE][0])
            _check_old(stored, batch, view)
            writer.write_rows(view, start, _said(speakers, batch, view, start, writer.fields))
            written += len(batch[SAMPLE])
            if progress is not None:
                progress(min(done + written, total), total)
    return written


def _check_old(stored: StoredKnowledge, batch: Mapping[str, Any], view: int) -> None:
    """Compare the views of records that the book has with those that it is about."""
    old = batch[SAMPLE] < stored.book.n_samples
    if view < stored.book.n_views and bool(old.any()):
        stored.check({name: value[old] if isinstance(value, torch.Tensor) else value for name, value in batch.items()})


def _said(
    speakers: Sequence[tuple[int | None, LiveKnowledge]],
    batch: Mapping[str, Any],
    view: int,
    start: int,
    fields: Sequence[str],
) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for member, knowledge in speakers:
        for name, array in say(knowledge, batch, view, start).items():
            found[name if member is None or name != LOGITS else f"members/{member}/{LOGITS}"] = array
    return {name: found[name] for name in fields}


def _cost(book: Book, written: int, forwards: int, seconds: float, cpu_seconds: float, proof: str) -> dict[str, Any]:
    """Return what the book cost in all, and this growth alone."""
    before = book.cost
    return {
        "seconds": round(float(before.get("seconds", 0.0)) + seconds, 3),
        "cpu_seconds": round(float(before.get("cpu_seconds", 0.0)) + cpu_seconds, 3),
        "teacher_forwards": int(before.get("teacher_forwards", 0)) + forwards,
        "records": int(before.get("records", 0)) + written,
        "peak_memory_bytes": peak_memory_bytes(),
        **({"outputs": before["outputs"]} if "outputs" in before else {}),
        "growth": {
            "from_edition": book.edition,
            "seconds": round(seconds, 3),
            "teacher_forwards": forwards,
            "proven_by": proof,
        },
    }
