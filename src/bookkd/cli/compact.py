"""`bookkd compact`; needs no teacher."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import bytes_text, console, progress_bar
from bookkd.cli._verb import Verb
from bookkd.pipelines.keep_book import compact_book


def compact(book: str, prune: bool = False, shard_bytes: int = 4 * 2**30) -> dict[str, Any]:
    """Put the files of each view into one, which is read fastest: a new edition of the same content; readers go on meanwhile.

    Args:
        book: Folder of the book.
        prune: Delete all older editions and every file that the newest does not name, also those of an unfinished growth.
        shard_bytes: Largest file; a larger view becomes several.
    """
    with progress_bar("bytes") as progress:
        return compact_book(book, drop_old=prune, shard_bytes=shard_bytes, progress=progress)


def show(result: dict[str, Any]) -> None:
    """Print what was done."""
    out = console()
    done = "compacted to" if result["compacted"] else "compact already:"
    out.print(
        f"Book {result['path']}, edition {result['edition']}: {done} {result['files']} files for {result['views']} views, "
        f"{bytes_text(result['bytes'])}.",
        soft_wrap=True,
    )
    if "pruned" in result:
        gone = result["pruned"]
        out.print(f"Deleted: {len(gone['editions'])} editions, {gone['files']} files, {bytes_text(gone['bytes'])}.")


VERB = Verb(
    "compact",
    compact,
    show,
    "  bookkd compact books/resnet56\n  bookkd compact books/resnet56 --prune",
    positional={"book": False},
)
