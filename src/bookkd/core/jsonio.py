"""JSON as this package writes and reads it: one spelling, bounded, no NaN, no duplicate keys."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import xxhash

from bookkd.core.errors import BookFormatError

__all__ = ["MAX_DEPTH", "canonical", "digest", "parse", "pretty", "read"]

MAX_DEPTH = 32
MAX_BYTES = 256 * 2**20
MAX_KEYS = 2**16
_OBJECT, _KEY, _VALUE = 192, 40, 90
"""Most bytes that an object or list, another key, another value take beyond their text: CPython's smallest dicts and texts."""
_KEYS = re.compile(rb'"((?:[^"\\]|\\.)*+)"\s*+:', re.DOTALL)


def canonical(value: Any) -> bytes:
    """Return the one spelling of `value`: sorted keys, no blanks, ASCII; NaN and infinity are refused.

    >>> canonical({"b": [1, 2.5], "a": "x"})
    b'{"a":"x","b":[1,2.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the xxh3_128 of the canonical spelling, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(canonical(value))


def pretty(value: Any) -> bytes:
    """Return `value` as indented JSON with sorted keys and a final line break."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Say whether more than `limit` objects and lists stand one in another, `value` counted."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _check_size(data: bytes, text: str, limit: int) -> None:
    """Refuse a text that says so many values that they would take many times its own size in memory.

    What a reader takes is at most twice the bytes and, for `limit` of 16 MiB, 48 MiB. Counting is quick and sees a little more
    than there is: characters inside of texts count too.
    """
    keys = data.count(b":")
    values = _OBJECT * (data.count(b"{") + data.count(b"[")) + _KEY * keys + _VALUE * data.count(b",")
    # Letters beyond Latin are wide, in the text and in what is taken out of it.
    if values + 2 * (sys.getsizeof(text) - len(data)) > 3 * max(limit, 2**20):
        raise ValueError("more values than a file of this length may have")
    if keys > MAX_KEYS:
        found = set()
        for match in _KEYS.finditer(data):
            found.add(match[1])
            if len(found) > MAX_KEYS:
                raise ValueError(f"more than {MAX_KEYS} different keys")


def parse(data: bytes, where: str, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Parse bytes that hold one JSON object, trusting nothing.

    Args:
        data: The bytes.
        where: File name for the error.
        limit: Most bytes accepted.

    Raises:
        BookFormatError: too long, not UTF-8, nested deeper than 32, a duplicate key, NaN, infinity, a number too long, more
            values than `limit` leaves room for, or not an object.

    >>> parse(b'{"a": 1}', "plan.json")
    {'a': 1}
    """
    if len(data) > limit:
        raise BookFormatError(
            f"Expected {where} to be at most {limit} bytes, got {len(data)}. It is not a file of a book."
        )
    try:
        # Decoded here, since `json` would also take UTF-16 and UTF-32.
        text = data.decode("utf-8")
        _check_size(data, text, limit)
        found = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BookFormatError(
            f"Expected {where} to be valid JSON, got: {error}. The file is damaged; run `bookkd verify`."
        ) from error
    if not isinstance(found, dict):
        raise BookFormatError(
            f"Expected {where} to hold a JSON object, got {type(found).__name__}. It is not a file of a book."
        )
    if _deeper_than(found, MAX_DEPTH):
        raise BookFormatError(f"Expected {where} to nest at most {MAX_DEPTH} levels. It is not a file of a book.")
    return found


def read(path: Path, where: str | None = None, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read and `parse` one file."""
    name = where or path.name
    size = path.stat().st_size
    if size > limit:
        raise BookFormatError(f"Expected {name} to be at most {limit} bytes, got {size}. It is not a file of a book.")
    return parse(path.read_bytes(), name, limit=limit)
