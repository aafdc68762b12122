"""The first steps into a book: which edition, its plan, its keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bookkd.book import _container, _files, _layout, _manifest
from bookkd.book._shard import read_header
from bookkd.book.plan import Plan
from bookkd.core import jsonio
from bookkd.core.errors import BookCorruptError, BookFormatError, BookMissingError, BookUnfinishedError

__all__ = ["edition_numbers", "find_edition", "is_finished", "read_keys", "read_plan"]


def edition_numbers(root: Path) -> list[int]:
    """Return the numbers of the editions in `root`, ascending."""
    found = (_layout.EDITION_NAME.fullmatch(name) for name in _files.entries(root))
    return sorted(int(match[1]) for match in found if match)


def is_finished(path: str | Path) -> bool:
    """Say whether a folder holds a finished book, one with an edition; False also where there is no folder.

    Args:
        path: The folder.

    Raises:
        StorageError: if the folder cannot be read.

    >>> is_finished("no/such/book")
    False
    """
    root = Path(path)
    return root.is_dir() and bool(edition_numbers(root))


def find_edition(root: Path, edition: int | None) -> int:
    """Return the number of the edition to read; errors say what a book looks like and what is there."""
    if not root.is_dir():
        raise BookMissingError(
            f"Expected {root} to be a book (a folder with plan.json and edition-000001.json), got no folder. Check the path."
        )
    numbers = edition_numbers(root)
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
    entries = _files.entries(root)[:4]
    raise BookMissingError(
        f"Expected {root} to be a book (a folder with plan.json and edition-000001.json), got "
        f"{'a folder with ' + ', '.join(entries) if entries else 'an empty folder'}. Check the path."
    )


def read_plan(root: Path, edition: _manifest.Edition) -> Plan:
    """Read the plan that `edition` names."""
    found, data = _files.read_json(root, _layout.PLAN_NAME)
    plan = Plan.from_json(found, str(root / _layout.PLAN_NAME))
    if (len(data), _files.digest_of(data)) != (edition.plan_size, edition.plan_digest):
        raise BookCorruptError(
            f"Expected {root / _layout.PLAN_NAME} to have xxh3_128 {edition.plan_digest}, got {_files.digest_of(data)}. "
            f"The file was changed after the edition was written."
        )
    if jsonio.digest(plan.identity()) != edition.identity:
        raise BookFormatError(
            f"Expected {root / _layout.PLAN_NAME} to have identity {edition.identity}, got another. Run `bookkd verify`."
        )
    return plan


def read_keys(root: Path, plan: Plan) -> npt.NDArray[np.uint64]:
    """Read the keys file that `plan` names."""
    limit = plan.n_samples * 8 + _container.HEADER_LIMIT
    data = _files.read_inside(root, _layout.KEYS_NAME, limit)
    where = str(root / _layout.KEYS_NAME)
    if _files.digest_of(data) != plan.keys_digest:
        raise BookCorruptError(
            f"Expected {where} to have xxh3_128 {plan.keys_digest}, got {_files.digest_of(data)}. Run `bookkd verify`."
        )
    spans = read_header(memoryview(data), where)
    _container.check_layout(spans, {"keys": (np.dtype(np.uint64), ())}, plan.n_samples, where)
    found: npt.NDArray[np.uint64] = np.frombuffer(data, dtype="<u8", offset=spans["keys"].start)
    return found
