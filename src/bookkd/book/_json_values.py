"""JSON values of a plan that are for people and for comparing: kept as a copy, whatever was given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bookkd.core import jsonio
from bookkd.core.errors import ConfigError, expected

__all__ = ["json_values", "parsed"]


class _Parsed(dict[str, Any]):
    """What was parsed just now: JSON values, of which no second copy is needed."""


def parsed(value: Any) -> Any:
    """Mark an object that was parsed just now, so that `json_values` does not copy it by way of JSON again."""
    return _Parsed(value) if isinstance(value, dict) else value


def json_values(value: Any, what: str) -> dict[str, Any]:
    """Return a mapping as plain JSON values, `what` being its name.

    Raises:
        ConfigError: for anything that is no mapping of them.
    """
    if isinstance(value, _Parsed):
        return dict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(expected(what, "a mapping of JSON values", value, where="plan"))
    try:
        found: dict[str, Any] = json.loads(jsonio.canonical(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(expected(what, "a mapping of JSON values", f"{error} in it", where="plan")) from error
    return found
