"""Calls with arguments that a person typed: a wrong name is answered with the names that exist."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bookkd.core.errors import ConfigError, expected

__all__ = ["accepted", "call"]


def accepted(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names that `function` takes as keyword arguments; empty where it has no readable signature.

    >>> sorted(accepted(lambda width, *, n_classes=2, **rest: None))
    ['n_classes', 'width']
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def call(function: Callable[..., Any], what: str, fixed: Mapping[str, Any], args: Mapping[str, Any] | None) -> Any:
    """Call `function` with `fixed`, which we pass, and `args`, which a person gave.

    Args:
        function: What is called.
        what: Its name in an error, such as "network resnet20".
        fixed: Arguments of ours; a person may not set them a second time.
        args: Arguments of theirs.

    Raises:
        ConfigError: if the arguments do not fit the signature.

    >>> call(lambda n_classes, width=16: (n_classes, width), "network x", {"n_classes": 10}, {"width": 32})
    (10, 32)
    """
    given = dict(args or {})
    twice = sorted(set(given) & set(fixed))
    if twice:
        raise ConfigError(expected("args", f"without {twice[0]!r}, which has an option of its own", given, where=what))
    try:
        inspect.signature(function).bind(**fixed, **given)
    except TypeError as error:
        takes = ", ".join(sorted(accepted(function) - set(fixed))) or "none"
        raise ConfigError(
            expected("args", f"arguments that it takes ({takes})", given, where=f"{what}: {error}")
        ) from error
    except ValueError:
        pass  # a builtin without a signature: the call itself is the check
    return function(**fixed, **given)
