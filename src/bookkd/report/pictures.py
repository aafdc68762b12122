"""Pictures of a segmentation: an image, its classes, and what the teacher and the best arms say of it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.core.errors import DataError, expected
from bookkd.report.arms import Arm
from bookkd.report.runs import FoundRun, listed, mapped

__all__ = ["NO_PICTURES", "Picture", "PictureRow", "Pictures", "pictures_of"]

_MOST_ARMS = 6
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """One picture.

    Args:
        title: What it shows.
        png: The file, in base64.
    """

    title: str
    png: str


@dataclass(frozen=True)
class PictureRow:
    """What there is of one sample.

    Args:
        sample: Its place in the split.
        cells: Image, truth, teacher where one was asked, and the student of each arm.
    """

    sample: int
    cells: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures of some samples, and what their colours mean.

    Args:
        rows: One a sample.
        legend: (class, colour) in the order of the classes.
    """

    rows: tuple[PictureRow, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()


NO_PICTURES = Pictures()


def pictures_of(ranked: Sequence[Arm]) -> Pictures:
    """Return the pictures of the samples that every arm shows, by its first seed that has some; of the best arms.

    Args:
        ranked: The arms, best first.

    Raises:
        DataError: for something else than pictures in a record.
    """
    shown = [
        (arm.name, run)
        for arm in ranked
        if (run := next((each for each in arm.done if each.record.pictures), None)) is not None
    ]
    shown = shown[:_MOST_ARMS]
    if not shown:
        return NO_PICTURES
    first = shown[0][1]
    each = [{int(entry.get("sample", -1)): entry for entry in _entries(run)} for _, run in shown]
    common = [sample for sample in each[0] if all(sample in entries for entries in each)]
    rows = [PictureRow(sample, tuple(_cells(sample, shown, each))) for sample in common]
    colours = listed(first, mapped(first, first.record.pictures, "pictures").get("colours"), "pictures.colours")
    legend = zip(first.record.class_names, (_colour(first, colour) for colour in colours), strict=False)
    return Pictures(tuple(rows), tuple(legend))


def _entries(run: FoundRun) -> Sequence[Any]:
    found = listed(run, run.record.pictures.get("samples"), "pictures.samples")
    return [mapped(run, entry, "pictures.samples") for entry in found]


def _cells(sample: int, shown: Sequence[tuple[str, FoundRun]], each: Sequence[dict[int, Any]]) -> Iterator[Picture]:
    run, entry = shown[0][1], each[0][sample]
    for name in ("image", "truth"):
        yield Picture(name, _checked(run, entry.get(name)))
    taught = next(
        (
            (run, entries[sample]["teacher"])
            for (_, run), entries in zip(shown, each, strict=True)
            if "teacher" in entries[sample]
        ),
        None,
    )
    if taught is not None:
        yield Picture("teacher", _checked(*taught))
    for (name, run), entries in zip(shown, each, strict=True):
        yield Picture(name, _checked(run, entries[sample].get("student")))


def _checked(run: FoundRun, text: Any) -> str:
    """Return a PNG file in base64, written anew from its bytes."""
    try:
        found = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        found = b""
    if not found.startswith(_PNG):
        raise DataError(expected("pictures", "PNG files in base64", type(text).__name__, where=run.where))
    return base64.b64encode(found).decode("ascii")


def _colour(run: FoundRun, text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"#[0-9a-f]{6}", text):
        raise DataError(expected("pictures.colours", "colours such as #d94c4c", text, where=run.where))
    return text
