"""From what YAML and flags hold to the plain values of a dataclass, with the nearest name for a key that is none."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from bookkd.core.errors import BookKDError, ConfigError, expected
from bookkd.core.names import nearest
from bookkd.core.schedules import Schedule, parse_schedule

__all__ = ["listed", "mapped", "only", "typed"]


def only(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse a key that is not known.

    Raises:
        ConfigError: naming the nearest keys.

    >>> only(["seed"], ["seeds", "students"], "sweep")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Unknown key 'seed' of sweep. Nearest: seeds, students.
    """
    for key in given:
        if key not in known:
            near = ", ".join(nearest(str(key), known)[:4])
            raise ConfigError(f"Unknown key {str(key)!r} of {where}. Nearest: {near or 'none, it takes no keys'}.")


def mapped(value: Any, where: str, of: str = "sweep") -> dict[str, Any]:
    """Return a mapping with text for keys.

    Args:
        value: What YAML gave.
        where: What it is to be, for errors.
        of: What that is a part of.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(expected(where, "keys with values", value, where=of))
    return dict(value)


def listed(value: Any) -> list[Any]:
    """Return a list as it is, text at its commas, nothing as an empty list, and anything else as a list of one.

    >>> listed("resnet8, resnet14"), listed({"name": "resnet8"}), listed(None)
    (['resnet8', 'resnet14'], [{'name': 'resnet8'}], [])
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def typed(cls: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values for fields of a dataclass in the types that it says; text becomes a number where one is asked for.

    Args:
        cls: The dataclass.
        values: Field -> value, as YAML gives it.
        where: What they are, for errors.

    Raises:
        ConfigError: for a key that is no field, or a value of another type, in one line.

    >>> from bookkd.learning import Training
    >>> typed(Training, {"lr": "1e-2", "milestones": [3, 5]}, "training")
    {'lr': 0.01, 'milestones': (3, 5)}
    """
    only(values, [entry.name for entry in fields(cls)], where)
    hints = typing.get_type_hints(cls)
    found = {}
    for key, value in values.items():
        moves = Schedule in typing.get_args(hints[key])
        # Made by the caller in Python: a schedule, or a dataclass.
        found[key] = value if moves and callable(value) else _one(hints[key], moves, value, f"{where}.{key}")
    return found


def _one(kind: Any, moves: bool, value: Any, where: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=parse_schedule if moves else kind)
    try:
        return parser.parse_object({"value": value}).value
    except BookKDError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        wish = "a number or a schedule such as linear:4:1" if moves else _kind(kind)
        raise ConfigError(expected(where, wish, value, where="sweep")) from error


def _kind(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return plain.get(kind) or str(kind).replace("typing.", "")
