"""Who spoke: what a plan notes of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bookkd.book._json_values import json_values, parsed
from bookkd.core.check import finite
from bookkd.core.errors import ConfigError, expected

__all__ = ["TeacherInfo", "teacher_from_json"]

_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "digest": (str,),
    "parameters": (int, type(None)),
    "bytes": (int, type(None)),
    "accuracy": (float, int, type(None)),
    "split": (str, type(None)),
    "mode": (str,),
    "lineage": (dict, type(None)),
}


@dataclass(frozen=True)
class TeacherInfo:
    """Who spoke.

    Args:
        name: For people and error messages.
        digest: Of the weights; what tells two teachers apart.
        parameters: Number of parameters.
        bytes: Size of the weights in bytes.
        accuracy: Held-out accuracy, 0 to 1; of numbers R^2, which has no least value.
        split: The split that `accuracy` was measured on.
        mode: "eval", or how else the teacher ran.
        lineage: Who taught it: `method`, `parents` (digests) and `ancestors` (back to the first teacher, each with name,
            digest, method and parents), JSON values; None where nobody did or nobody knows.
    """

    name: str
    digest: str
    parameters: int | None = None
    bytes: int | None = None
    accuracy: float | None = None
    split: str | None = None
    mode: str = "eval"
    lineage: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for entry, kinds in _KINDS.items():
            value = getattr(self, entry)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ConfigError(expected(entry, "a plain value of its type", value, where="teacher"))
        if self.accuracy is not None and not finite(self.accuracy, "accuracy", where="teacher") <= 1:
            raise ConfigError(expected("accuracy", "a share, or at most 1", self.accuracy, where="teacher"))
        if self.lineage is not None:
            object.__setattr__(self, "lineage", json_values(self.lineage, "lineage"))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `lineage` only where it is known."""
        found = {entry: getattr(self, entry) for entry in _KINDS if entry != "lineage"}
        return found if self.lineage is None else {**found, "lineage": dict(self.lineage)}


def teacher_from_json(found: Mapping[str, Any]) -> TeacherInfo:
    """Return what `to_json` wrote; keys that are not known are left out.

    Raises:
        ConfigError: for a value of another type.
    """
    return TeacherInfo(**{key: parsed(value) for key, value in found.items() if key in _KINDS})
