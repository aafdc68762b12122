"""`bookkd repair`."""

from __future__ import annotations

from typing import Any, Literal

from bookkd.cli._show import console, progress_bar
from bookkd.cli._verb import Verb
from bookkd.core.errors import ConfigError, expected
from bookkd.pipelines.keep_book import repair_book
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions


def repair(
    book: str,
    teacher: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    teachers: list[NetworkOptions] = [],  # noqa: B006 - never changed
    data: DataOptions = DataOptions(name=""),  # noqa: B008 - frozen
    views: ViewOptions = ViewOptions(transform=""),  # noqa: B008 - frozen
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto",
    accept: bool = False,
) -> dict[str, Any]:
    """Mend a damaged book: manifests from what is left, records of faulty blocks by asking the teacher again.

    Nothing is put in place but what has the digest that the book recorded, so that a repaired book is the one that it was.

    Args:
        book: Folder of the book.
        teacher: The book's teacher, where records are damaged.
        teachers: Those of a book of several, in its order.
        data: The samples of the book, or more; taken from the book where it names ones that need no files.
        views: The views of the book; taken from it where they are ours.
        accelerator: Where the teacher runs; a record may come out otherwise than where the book was made.
        accept: Take records that differ from what they were, under a new edition; else they are refused.
    """
    if teacher.name and teachers:
        do = "List it with them."
        raise ConfigError(expected("teacher", "absent where teachers are listed", teacher.name, do=do))
    named = list(teachers) or ([teacher] if teacher.name else [])
    with progress_bar("shards") as progress:
        return repair_book(
            book, teachers=named, data=data, views=views, accelerator=accelerator, accept=accept, progress=progress
        )


def show(result: dict[str, Any]) -> None:
    """Print what was mended."""
    out = console()
    for name in result["restored"]:
        out.print(f"Restored {name}", soft_wrap=True, markup=False)
    for name in result["renewed"]:
        out.print(f"Renewed {name}, under edition {result['edition']}", soft_wrap=True, markup=False)
    if not result["restored"] and not result["renewed"]:
        out.print(f"{result['path']} is whole.", soft_wrap=True)
    if result["said"]:
        out.print(f"{result['said']:,} records were said again.")


VERB = Verb(
    "repair",
    repair,
    show,
    "  bookkd repair books/resnet56 --data cifar10 --data.root data --teacher resnet56 --teacher.weights resnet56.safetensors",
    positional={"book": False},
    short={
        "--data": "--data.name",
        "--download": "--data.download",
        "--teacher": "--teacher.name",
        "--views": "--views.transform",
    },
)
