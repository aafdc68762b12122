"""Checks of plain values; each returns the value, so that it can stand where the value is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bookkd.core.errors import ConfigError, expected

__all__ = ["at_least", "below", "between", "finite", "positive", "unique"]


def finite(value: float, what: str, *, where: str = "", do: str = "") -> float:
    """Return `value` if it is a finite number.

    >>> finite(0.5, "weight")
    0.5
    """
    if not _is_finite(value):
        raise ConfigError(expected(what, "a finite number", value, where=where, do=do))
    return value


def positive(value: float, what: str, *, where: str = "", do: str = "") -> float:
    """Return `value` if it is a finite number above 0.

    >>> positive(0, "temperature")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `temperature` to be a number above 0, got 0.
    """
    if not _is_finite(value) or value <= 0:
        raise ConfigError(expected(what, "a number above 0", value, where=where, do=do))
    return value


def between(value: float, low: float, high: float, what: str, *, where: str = "", do: str = "") -> float:
    """Return `value` if it is a number in the closed range from `low` to `high`.

    >>> between(0.1, 0, 1, "label_smoothing")
    0.1
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(expected(what, f"between {low} and {high}", value, where=where, do=do))
    return value


def below(value: float, low: float, high: float, what: str, *, where: str = "", do: str = "") -> float:
    """Return `value` if it is a number from `low` to below `high`.

    >>> below(1, 0, 1, "momentum")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `momentum` to be from 0 to below 1, got 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise ConfigError(expected(what, f"from {low} to below {high}", value, where=where, do=do))
    return value


def at_least(value: int, low: int, what: str, *, where: str = "", do: str = "") -> int:
    """Return `value` if it is a whole number of at least `low`.

    >>> at_least(2.5, 1, "n_views")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `n_views` to be a whole number of at least 1, got 2.5.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(expected(what, f"a whole number of at least {low}", value, where=where, do=do))
    return value


def unique(values: Sequence[object], what: str, *, where: str = "", do: str = "") -> None:
    """Refuse a sequence that repeats a value.

    >>> unique([1, 4, 1], "temperatures")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `temperatures` to be without repeats, got 1 twice.
    """
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConfigError(expected(what, "without repeats", f"{value} twice", where=where, do=do))
        seen.add(value)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False
