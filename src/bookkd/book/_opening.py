"""The first steps into a book: which edition, its plan, its keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bookkd.book import _container, _files, _layout, _manifest
from bookkd.book._numbers import edition_numbers
from bookkd.book._shard import read_header
from bookkd.book.plan import Plan
from bookkd.book.remote import RemotePath, Root, root_of
from bookkd.book.remote.store import PROBED
from bookkd.core import jsonio
from bookkd.core.errors import BookCorruptError, BookFormatError, BookMissingError, BookUnfinishedError, StorageError

__all__ = ["find_edition", "is_finished", "newest_plan", "read_keys", "read_plan"]


def is_finished(path: str | Path | RemotePath) -> bool:
    """Say whether a place holds a finished book, one with an edition; False also where there is no folder.

    Args:
        path: The folder, or an address.

    Raises:
        StorageError: if the folder cannot be read.

    >>> is_finished("no/such/book")
    False
    """
    root = root_of(path)
    return root.is_dir() and bool(edition_numbers(root))


def find_edition(root: Root, edition: int | None) -> int:
    """Return the number of the edition to read; errors say what a book looks like and what is there."""
    if not root.is_dir():
        raise BookMissingError(
            f"Expected {root} to be a book (a folder with plan.json and edition-000001.json), got no folder. Check the path."
        )
    numbers = edition_numbers(root)
    far = isinstance(root, RemotePath)
    if far and edition is not None and edition not in numbers and _is_there(root, edition, sure=not numbers):
        return edition  # of a server that lists nothing, which is asked for the first numbers
    if edition is not None and edition not in numbers and numbers:
        raise BookMissingError(
            f"Expected {root} to have edition {edition}, got editions {', '.join(map(str, numbers))}. Choose one of them."
        )
    if numbers:
        return numbers[-1] if edition is None else edition
    if (root / _layout.PLAN_NAME).exists():
        raise BookUnfinishedError(
            f"Expected {root} to be a finished book, got a plan without an edition. Run `bookkd make` again to finish it."
        )
    wish = f"Expected {root} to be a book (a folder with plan.json and edition-000001.json), got"
    entries = _files.entries(root)[:4]
    if entries:
        raise BookMissingError(f"{wish} a folder with {', '.join(entries)}. Check the path.")
    if not far:
        raise BookMissingError(f"{wish} an empty folder. Check the path.")
    raise BookMissingError(
        f"{wish} nothing there. Check the address; of a server that lists no files editions above {PROBED} are found by "
        f"their number alone (`edition`)."
    )


def _is_there(root: Root, edition: int, *, sure: bool) -> bool:
    """Say whether a server has an edition; where others were found, what it forbids is not there either."""
    try:
        return (root / _layout.edition_name(edition)).exists()
    except StorageError:
        if sure:
            raise
        return False


def read_plan(root: Root, edition: _manifest.Edition) -> Plan:
    """Read the plan that `edition` names."""
    where = str(root / edition.plan_file)
    found, data = _files.read_json(root, edition.plan_file)
    plan = Plan.from_json(found, where)
    if (len(data), _files.digest_of(data)) != (edition.plan_size, edition.plan_digest):
        raise BookCorruptError(
            f"Expected {where} to have {edition.plan_size} bytes with xxh3_128 {edition.plan_digest}, got {len(data)} with "
            f"{_files.digest_of(data)}. "
            f"The file was changed after the edition was written."
        )
    if jsonio.digest(plan.identity()) != edition.identity:
        unknown = ", ".join(sorted(found.keys() - {"format_version", *vars(plan)}))[:200]
        do = f"Upgrade bookkd, which may know its {unknown!r}." if unknown else "Run `bookkd verify`."
        raise BookFormatError(f"Expected {where} to have identity {edition.identity}, got another. {do}")
    return plan


def newest_plan(path: str | Path | RemotePath) -> Plan | None:
    """Return the plan of a book, finished or begun; None where there is no book.

    Args:
        path: Folder of the book, or its address.

    Raises:
        BookFormatError: if the plan or the newest edition is not what the format says.

    >>> newest_plan("no/such/book") is None
    True
    """
    root = root_of(path)
    if is_finished(root):
        return read_plan(root, _manifest.read_edition(root, edition_numbers(root)[-1]))
    if not (root / _layout.PLAN_NAME).is_file():
        return None
    found, _ = _files.read_json(root, _layout.PLAN_NAME)
    return Plan.from_json(found, str(root / _layout.PLAN_NAME))


def read_keys(root: Root, plan: Plan, name: str = _layout.KEYS_NAME) -> npt.NDArray[np.uint64]:
    """Read the keys of a plan from the file `name`."""
    limit = plan.n_samples * 8 + _container.HEADER_LIMIT
    data = _files.read_inside(root, name, limit)
    where = str(root / name)
    if _files.digest_of(data) != plan.keys_digest:
        raise BookCorruptError(
            f"Expected {where} to have xxh3_128 {plan.keys_digest}, got {_files.digest_of(data)}. Run `bookkd verify`."
        )
    spans = read_header(memoryview(data), where)
    _container.check_layout(spans, {"keys": (np.dtype(np.uint64), ())}, plan.n_samples, where)
    found: npt.NDArray[np.uint64] = np.frombuffer(data, dtype="<u8", offset=spans["keys"].start)
    return found
