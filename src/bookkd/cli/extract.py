"""`bookkd extract`; needs no teacher."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import bytes_text, console, progress_bar
from bookkd.cli._verb import Verb
from bookkd.pipelines.keep_book import extract_part
from bookkd.pipelines.options import DataOptions


def extract(
    book: str,
    out: str,
    classes: str = "",
    samples: str = "",
    views: str = "",
    teachers: str = "",
    data: DataOptions = DataOptions(name=""),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Write some classes, samples, views or teachers of a book as a book of its own; records are copied as they are stored.

    The logits of some classes stand for the distribution given that the teacher chose one of them: softmax over them is
    p(class) over the sum of p of these classes, at every temperature.

    Args:
        book: Folder of the book, or its address (s3://..., https://...).
        out: Folder of the new book.
        classes: Names or numbers with commas between, in the order of the new book.
        samples: A range such as 0:1000, numbers with commas between, or a file of them.
        views: A range such as 0:4, or numbers with commas between.
        teachers: Names or places with commas between, of a book of several.
        data: A data set of these samples and classes alone, to learn from the new book with.
    """
    with progress_bar("records") as progress:
        return extract_part(
            book, out, classes=classes, samples=samples, views=views, teachers=teachers, data=data, progress=progress
        )


def show(result: dict[str, Any]) -> None:
    """Print what was written."""
    out = console()
    out.print(
        f"Book {result['path']}: {result['records']:,} records ({result['samples']:,} samples x {result['views']} views, "
        f"{len(result['classes'])} classes), {bytes_text(result['bytes'])}.",
        soft_wrap=True,
    )
    for line in result["notes"]:
        out.print(f"Note: {line}", soft_wrap=True)


VERB = Verb(
    "extract",
    extract,
    show,
    "  bookkd extract books/resnet56 books/animals --classes cat,dog,horse\n"
    "  bookkd extract books/resnet56 books/first --samples 0:1000 --views 0:4",
    positional={"book": False, "out": False},
    short={"--data": "--data.name", "--download": "--data.download"},
)
