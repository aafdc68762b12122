"""`bookkd stats`."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import bytes_text, console, progress_bar, rows
from bookkd.cli._verb import Verb
from bookkd.pipelines.options import DataOptions
from bookkd.pipelines.statistics import describe_records

_FIGURES = ("min", "mean", "max", "std")


def stats(
    book: str,
    data: DataOptions = DataOptions(name=""),  # noqa: B008 - frozen
    labels: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Write statistics of every record as Parquet, for `bookkd query`: likeliest class, confidence, margin, entropy, and with labels who was right.

    They belong to the content of the book: after it has grown they are refused, and made again by this command.

    Args:
        book: Folder of the book, or its address (s3://..., https://...).
        data: The samples that the book is about; their labels go in.
        labels: A NumPy file (.npy) with one class a sample, in place of --data; negative where it is not known.
        out: Folder of the statistics; the folder `stats` inside the book where none is given.
    """
    with progress_bar("records") as progress:
        return describe_records(book, data=data, labels=labels, out=out, progress=progress)


def show(result: dict[str, Any]) -> None:
    """Print what was written."""
    known = "with labels" if result["labels"] else "without labels (pass --data)"
    count = len(result["teachers"])
    console().print(
        f"Statistics of {result['records']:,} records ({result['views']} views, {count} teacher{'s'[: count != 1]}) {known} in "
        f"{result['folder']}, {bytes_text(result['bytes'])}.",
        soft_wrap=True,
        markup=False,
    )
    if result["constants"]:
        lines = [
            (name, "x".join(map(str, each["shape"])), each["dtype"], *(f"{each[key]:.4g}" for key in _FIGURES))
            for name, each in result["constants"].items()
        ]
        console().print(rows("Constants", ("constant", "shape", "dtype", *_FIGURES), lines))
    for line in result["notes"]:
        console().print(f"Note: {line}", soft_wrap=True)


VERB = Verb(
    "stats",
    stats,
    show,
    "  bookkd stats books/resnet56 --data digits",
    positional={"book": False},
    short={"--data": "--data.name", "--download": "--data.download"},
)
