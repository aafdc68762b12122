"""Values taken out of untrusted JSON: each has its type and range checked where it is taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bookkd.book._layout import FORMAT_VERSION
from bookkd.core.errors import BookFormatError, BookVersionError, expected

__all__ = ["hex_digest", "integer", "integers", "listed", "mapped", "text", "texts", "version"]

_DO = "Run `bookkd verify`."


def _missing(found: Mapping[str, Any], key: str, kind: str, where: str) -> BookFormatError:
    return BookFormatError(expected(key, kind, found.get(key, "nothing"), where=where, do=_DO))


def integer(found: Mapping[str, Any], key: str, where: str, low: int = 0, high: int = 2**62) -> int:
    """Return the whole number at `key` if it lies in [low, high]."""
    value = found.get(key)
    if type(value) is not int or not low <= value <= high:
        raise _missing(found, key, f"a whole number from {low} to {high}", where)
    return value


def integers(found: Mapping[str, Any], key: str, where: str, high: int = 2**62) -> list[int]:
    """Return the list of whole numbers at `key`, each in [0, high]."""
    value = listed(found, key, where)
    if any(type(entry) is not int for entry in value) or (value and not (min(value) >= 0 and max(value) <= high)):
        raise _missing(found, key, f"a list of whole numbers from 0 to {high}", where)
    return value


def text(found: Mapping[str, Any], key: str, where: str, pattern: re.Pattern[str] | None = None) -> str:
    """Return the text at `key`, if it matches `pattern` as a whole."""
    value = found.get(key)
    if not isinstance(value, str) or (pattern is not None and not pattern.fullmatch(value)):
        raise _missing(found, key, "a text" + (f" like {pattern.pattern}" if pattern else ""), where)
    return value


def texts(found: Mapping[str, Any], key: str, where: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the list of texts at `key`, each matching `pattern` as a whole."""
    value = listed(found, key, where)
    if any(not isinstance(entry, str) or not pattern.fullmatch(entry) for entry in value):
        raise _missing(found, key, f"a list of texts like {pattern.pattern}", where)
    return value


def hex_digest(found: Mapping[str, Any], key: str, where: str, digits: int = 32) -> str:
    """Return the lower-case hexadecimal digest at `key`."""
    return text(found, key, where, re.compile(f"[0-9a-f]{{{digits}}}"))


def listed(found: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """Return the list at `key`."""
    value = found.get(key)
    if not isinstance(value, list):
        raise _missing(found, key, "a list", where)
    return value


def mapped(found: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return the object at `key`."""
    value = found.get(key)
    if not isinstance(value, dict):
        raise _missing(found, key, "an object", where)
    return value


def version(found: Mapping[str, Any], where: str) -> None:
    """Refuse another format version, before anything else of the file is judged.

    Raises:
        BookVersionError: for a newer version.
        BookFormatError: for no version at all.
    """
    number = integer(found, "format_version", where, 1)
    if number > FORMAT_VERSION:
        raise BookVersionError(
            f"Expected format version {FORMAT_VERSION} at most, got {number} ({where}). "
            f"The book was written by a newer bookkd: upgrade bookkd to read it."
        )
