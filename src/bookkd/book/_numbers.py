"""Which editions a folder has, which one is being grown, and what a reader is told whose files were pruned."""

from __future__ import annotations

from collections.abc import Sequence

from bookkd.book import _files, _layout, _manifest
from bookkd.book.remote import Root
from bookkd.core.errors import BookKDError, BookMissingError

__all__ = ["edition_numbers", "gone", "unfinished_growth"]


def edition_numbers(root: Root) -> list[int]:
    """Return the numbers of the editions in `root`, ascending."""
    found = (_layout.EDITION_NAME.fullmatch(name) for name in _files.entries(root))
    return sorted(int(match[1]) for match in found if match)


def unfinished_growth(root: Root) -> int | None:
    """Return the number of the edition that a growth has begun and not finished: its plan is there, it is not."""
    following = max(edition_numbers(root), default=0) + 1
    return following if following > 1 and (root / _layout.plan_name(following)).exists() else None


def gone(root: Root, relative: str, error: BookMissingError) -> BookMissingError:
    """Return the error of a reader whose file is missing; where a newer edition does without it, one that says so."""
    try:
        number = edition_numbers(root)[-1]
        edition = _manifest.read_edition(root, number)
        folder, _, name = relative.partition("/")
        view = int(folder.removeprefix("view-"))
        stems: Sequence[str] = ()
        if view < len(edition.views):
            stems = _manifest.read_view_file(root, view, edition.views[view], edition.n_samples).stems
    except (BookKDError, IndexError, ValueError):
        return error
    if name.partition(".")[0] in stems:
        return error
    return BookMissingError(
        f"Expected {root / relative} to be a file of the book, got nothing there: the edition that named it was pruned, the "
        f"newest is {number}. Open the book again to read edition {number}."
    )
