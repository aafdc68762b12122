"""Numbers as text: one spelling for the page, Markdown and the sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = [
    "MINUS",
    "bytes_text",
    "capital",
    "count_text",
    "joined",
    "number_text",
    "percent_text",
    "points_text",
    "seconds_text",
    "signed_text",
]

MINUS = "\u2212"
"""A real minus, as wide as a plus, so that signed numbers stand under each other."""

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def number_text(value: float, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals.

    >>> number_text(-0.1234), number_text(12345.678, 1), number_text(-0.0001)
    ('−0.123', '12,345.7', '0.000')
    """
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # nothing but zeros has no sign
    return text.replace("-", MINUS)


def percent_text(share: float, digits: int = 2) -> str:
    """Return a share as per cent.

    >>> percent_text(0.78236)
    '78.24 %'
    """
    return f"{number_text(100 * share, digits)} %"


def points_text(share: float, digits: int = 2) -> str:
    """Return a difference of shares in percentage points, always with its sign.

    >>> points_text(0.0306), points_text(-0.004), points_text(0.0)
    ('+3.06', '−0.40', '0.00')
    """
    text = number_text(100 * share, digits)
    return text if text.startswith(MINUS) or not text.strip("0.,") else f"+{text}"


def signed_text(value: float) -> str:
    """Return a difference with three decimals, always with its sign.

    >>> signed_text(0.0306), signed_text(-0.4), signed_text(0.0)
    ('+0.031', '−0.400', '0.000')
    """
    text = number_text(value, 3)
    return text if text.startswith(MINUS) or not text.strip("0.,") else f"+{text}"


def count_text(value: float) -> str:
    """Return a count: whole up to 99,999, then with a prefix.

    >>> count_text(78042), count_text(1_234_567), count_text(0)
    ('78,042', '1.23 M', '0')
    """
    if value < 100_000:
        return number_text(value, 0)
    size, prefix = next((each for each in _DECIMAL if value >= each[0]), (1.0, ""))
    return f"{_three(value / size)} {prefix}"


def capital(text: str) -> str:
    """Return a title with its first letter large, and those of an abbreviation as they are.

    >>> capital("accuracy"), capital("mAP")
    ('Accuracy', 'mAP')
    """
    return text if text != text.lower() else f"{text[:1].upper()}{text[1:]}"


def joined(texts: Iterable[str]) -> str:
    """Return texts as a list in words.

    >>> joined(["a"]), joined(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def bytes_text(value: float) -> str:
    """Return a number of bytes.

    >>> bytes_text(512), bytes_text(317_440), bytes_text(2.5 * 2**30)
    ('512 B', '310 KiB', '2.50 GiB')
    """
    size, unit = next((each for each in _BINARY if value >= each[0]), (1.0, "B"))
    return f"{number_text(value, 0) if size == 1 else _three(value / size)} {unit}"


def seconds_text(value: float) -> str:
    """Return a time for reading, in the unit that suits it.

    >>> seconds_text(0.31), seconds_text(75.2), seconds_text(600), seconds_text(90_000)
    ('0.31 s', '75.2 s', '10.0 min', '25.0 h')
    """
    for size, unit, above in ((3600.0, "h", 5400.0), (60.0, "min", 180.0)):
        if abs(value) >= above:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value)} s"


def _three(value: float) -> str:
    """Return three significant digits, and more only before the point."""
    digits = 2 if value == 0 else min(2, max(0, 2 - math.floor(math.log10(abs(value)))))
    return number_text(value, digits)
