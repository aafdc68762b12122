"""`bookkd verify`; needs no torch and no teacher."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bookkd.book import verify as verify_book
from bookkd.cli._show import console, progress_bar
from bookkd.cli._verb import Verb


def verify(book: str, edition: int | None = None) -> tuple[dict[str, Any], int]:
    """Read a whole book and compare every hash; exit code 0 when whole, 1 with one line for each fault.

    Args:
        book: Folder of the book, or its address (s3://..., https://...).
        edition: Which edition; the newest where none is given.
    """
    with progress_bar("shards") as progress:
        faults = verify_book(book, edition, progress=progress)
    listed = [{**asdict(fault), "path": str(fault.path), "line": str(fault)} for fault in faults]
    return {"book": book, "whole": not faults, "faults": listed}, int(bool(faults))


def show(result: dict[str, Any]) -> None:
    """Print one line, or one line a fault."""
    out = console()
    if result["whole"]:
        out.print(f"{result['book']} is whole.", soft_wrap=True)
    for fault in result["faults"]:
        out.print(fault["line"], soft_wrap=True, markup=False)


VERB = Verb("verify", verify, show, "  bookkd verify books/resnet56", positional={"book": False})
