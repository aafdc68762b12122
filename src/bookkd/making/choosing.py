"""Choosing a codec by asking the teacher first: a sample of the records that the book will hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.book import Auto, Choice, Codec, RowIds, choose_codec, newest_plan
from bookkd.book.ragged import offsets_of
from bookkd.core.errors import BookMismatchError, ConfigError, FidelityError, TeacherOutputError, expected
from bookkd.core.fields import LOGITS, SAMPLE
from bookkd.knowledge import LiveKnowledge
from bookkd.losses import DenseTarget
from bookkd.views import Pick, Replay

__all__ = ["Told", "check_wish", "chosen_codec", "sample_logits"]

RECORDS = 2048
_VALUES = 2**24

Told = Callable[[Choice], None]


def chosen_codec(
    path: str | Path,
    auto: Auto,
    knowledge: LiveKnowledge,
    replay: Replay,
    *,
    temperatures: tuple[float, ...],
    batch_size: int,
    told: Told | None = None,
) -> tuple[Codec, Mapping[str, Any]]:
    """Return the codec of a book, and what its plan keeps of the choice.

    A book begun before keeps its own, so that a resumed run measures nothing and cannot choose otherwise.

    Args:
        path: Folder of the book.
        auto: What the codec is to meet.
        knowledge: The teacher.
        replay: The views.
        temperatures: Where it is to be met.
        batch_size: Samples of a pass.
        told: Called with a new choice.

    Raises:
        BookMismatchError: if the book begun before was asked for something else.
        FidelityError: if no codec meets it.
        ConfigError: for a task whose fields are no logits over one set of classes.
    """
    if LOGITS not in knowledge.fields or not knowledge.task.sparse:
        do, where = "Name a codec: dense or int8.", f"task {knowledge.task.name}"
        raise ConfigError(
            expected(
                "codec", "a codec by name, where a record is no distribution over classes", "auto", where=where, do=do
            )
        )
    begun = newest_plan(path)
    if begun is not None and begun.choice and LOGITS in begun.fields:
        check_wish(begun.choice, auto, temperatures, str(path))
        return begun.fields[LOGITS].codec, begun.choice
    logits, ids = sample_logits(knowledge, replay, batch_size)
    choice = choose_codec(logits, auto, temperatures=temperatures, ids=ids)
    if told is not None:
        told(choice)
    return choice.codec, choice.to_json()


def check_wish(choice: Mapping[str, Any], auto: Auto, temperatures: tuple[float, ...], path: str) -> None:
    """Refuse to go on with a book whose codec was chosen for something else.

    Args:
        choice: What the book keeps of its choice.
        auto: What is asked now.
        temperatures: Where.
        path: Folder of the book, for the error.

    Raises:
        BookMismatchError: naming what differs.
    """
    asked = {"max_kl": auto.max_kl, "max_bytes": auto.max_bytes, "temperatures": list(map(float, temperatures))}
    for key, value in asked.items():
        if choice.get(key) != value:
            wish = f"{choice.get(key)}, which {path} was begun with"
            raise BookMismatchError(expected(key, wish, value, do="Give another path, or its options."))


def sample_logits(
    knowledge: LiveKnowledge, replay: Replay, batch_size: int, records: int = RECORDS
) -> tuple[npt.NDArray[np.float64], RowIds]:
    """Ask the teacher about records that are spread evenly over samples and views: data sets lie sorted by class.

    Args:
        knowledge: The teacher.
        replay: The views.
        batch_size: Samples of a pass.
        records: Most records; fewer where they have many classes.

    Returns:
        Logits [records, classes] and the samples they are of.
    """
    (n_classes,) = knowledge.fields[LOGITS].shape
    total, n_views = len(replay), replay.views.n_views
    most = max(1, min(records, _VALUES // n_classes))
    count = min(most, total * n_views)
    places = np.arange(count) * (total * n_views) // count
    picks = [Pick(int(place) % total, int(place) // total) for place in places]
    said, ids = [], []
    for start in range(0, count, batch_size):
        batch = replay.batch(picks[start : start + batch_size])
        with torch.inference_mode():
            target = knowledge.targets(batch, [LOGITS])[LOGITS]
        if not isinstance(target, DenseTarget):
            raise FidelityError(expected("teacher", "logits of every class", type(target).__name__, where="codec auto"))
        samples = RowIds(places[start : start + batch_size] % total, 0, LOGITS)
        counts, rows = knowledge.task.counts(batch), slice(None)
        if counts is not None:  # of sequences, some positions of each
            samples = samples.at_positions(offsets_of(counts.cpu().numpy()))
            share = -(-most * len(batch[SAMPLE]) // count)
            rows = slice(None, None, max(1, len(samples) // share))
        said.append(target.logits[rows].double().cpu().numpy())
        ids.append(samples.part(rows))
        if sum(map(len, said)) >= most:
            break
    logits = np.concatenate(said)
    if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all(axis=1).any():
        do = "Check the teacher in eval mode."
        raise TeacherOutputError(expected(LOGITS, "numbers", "NaN or infinity", where="codec auto", do=do))
    positions = None if ids[0].positions is None else np.concatenate([np.asarray(each.positions) for each in ids])
    return logits, RowIds(np.concatenate([each.samples for each in ids]), 0, LOGITS, positions)
