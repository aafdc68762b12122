"""A YAML file of options, written as the words of a command line, so that both mean the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bookkd.core.errors import ConfigError

__all__ = ["read_config"]

_NOT_OPTIONS = ("config", "json", "print_config")
_WHOLE = ("args",)
"""Keys whose value is one option, a dict."""


def read_config(path: str) -> list[str]:
    """Return the options of a YAML file: `{training: {epochs: 3}}` is `--training.epochs=3`, `{data: digits}` is `--data=digits`.

    Raises:
        ConfigError: if the file cannot be read or holds anything but a mapping.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"Expected `--config` to be a readable YAML file, got {path!r}: {said}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"Expected `--config` {path} to hold options by name, got {type(found).__name__}.")
    return [f"--{option}={value}" for option, value in _flat(found, "") if option not in _NOT_OPTIONS]


def _flat(found: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        option = f"{prefix}{key}"
        if isinstance(value, dict) and key not in _WHOLE:
            yield from _flat(value, f"{option}.")
        else:
            yield option, value if isinstance(value, str) else json.dumps(value)
