"""`bookkd merge`."""

from __future__ import annotations

from typing import Any

from bookkd.book import Codec
from bookkd.cli._show import bytes_text, console, progress_bar
from bookkd.cli._verb import Choice, Verb
from bookkd.cli.make import choose_codec
from bookkd.methods import Method, build_method, method_class
from bookkd.pipelines.merge_books import merge_books
from bookkd.pipelines.options import DataOptions


def merge(
    books: list[str],
    method: Method,
    codec: Codec,
    out: str = "merged",
    bake: bool = False,
    data: DataOptions = DataOptions(name=""),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Put books about the same data and views into one book of all their teachers; nothing is lost and no teacher runs.

    With --bake the processed target of a method (how teachers are combined and regularised, at its temperature) is written in
    place of their logits: a smaller book that serves this temperature alone, and says what it lost.

    Args:
        books: Folders of the books, in the order of the teachers; with blanks or commas between.
        method: With --bake: whose target, such as bookkd with its options.
        codec: With --bake: how the target becomes bytes.
        out: Folder of the new book.
        bake: Write the processed target in place of every teacher's logits.
        data: With --bake: the samples, where the method looks at labels; taken from the books where they need no files.
    """
    with progress_bar("records") as progress:
        return merge_books(
            out,
            books=[each for word in books for each in word.split(",")],
            bake=bake,
            method=method,
            codec=codec,
            data=data,
            progress=progress,
        )


def show(result: dict[str, Any]) -> None:
    """Print what was made."""
    out = console()
    out.print(
        f"Book {result['path']}: {result['records']:,} records ({result['samples']:,} samples x {result['views']} views) of "
        f"{len(result['teachers'])} teachers, {bytes_text(result['bytes'])}, {result['bytes_per_record']:.0f} bytes a record.",
        soft_wrap=True,
    )
    for line in result["notes"]:
        out.print(f"Note: {line}", soft_wrap=True)


VERB = Verb(
    "merge",
    merge,
    show,
    "  bookkd merge books/resnet20 books/resnet56 --out books/both\n"
    "  bookkd merge books/resnet20 books/resnet56 --bake --method bookkd --method.preset regularised --codec int8 --out books/baked",
    positional={"books": False},
    many="books",
    short={"--data": "--data.name", "--download": "--data.download"},
    choices={
        "method": Choice("bookkd", method_class, build_method, lambda found: found.presets),
        "codec": Choice("dense", choose_codec, lambda name, **values: choose_codec(name)(**values)),
    },
)
