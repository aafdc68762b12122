"""Names: literal tables of open sets, user references `package.module:Name`, and the nearest match of a typo."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from bookkd.core.errors import ConfigError, MissingExtraError, UnknownNameError

__all__ = ["choose", "import_reference", "is_reference", "look_up", "nearest", "require"]


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Order `names` by likeness to `name`, nearest first.

    >>> nearest("vanila-kd", ["supervised", "vanilla-kd"])
    ['vanilla-kd', 'supervised']
    """

    def distance(candidate: str) -> tuple[float, str]:
        return (-difflib.SequenceMatcher(None, name.lower(), candidate.lower()).ratio(), candidate)

    return sorted(names, key=distance)


def choose(name: str, names: Iterable[str], what: str, *, where: str = "") -> str:
    """Return `name` if it is one of `names`.

    Raises:
        UnknownNameError: with the known names, nearest first (at most eight).

    >>> choose("dense", ["dense", "int8"], "codec")
    'dense'
    >>> choose("dens", ["int8", "dense"], "codec")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.UnknownNameError: Unknown codec 'dens'. Nearest: dense, int8.
    """
    known = list(names)
    if name in known:
        return name
    ordered = nearest(name, known)
    listed = ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
    place = f" ({where})" if where else ""
    raise UnknownNameError(f"Unknown {what} {name!r}{place}. Nearest: {listed or 'none, the table is empty'}.")


def is_reference(name: str) -> bool:
    """Say whether `name` has the form `package.module:Name` that a user gives for code of their own."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in module.split(".") + attribute.split("."))


def import_reference(reference: str, what: str) -> Any:
    """Import `package.module:Name`.

    Only ever called with text that a person gave on the command line or in Python, or with a literal of this
    package; never with text from a book, manifest or checkpoint.

    Raises:
        ConfigError: if the text has another form, the module cannot be imported or has no such name.
    """
    if not is_reference(reference):
        raise ConfigError(
            f"Expected {what} to be `package.module:Name`, got {reference!r}. Write the module, a colon and the name."
        )
    module_name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise ConfigError(
            f"Expected {what} {reference!r} to be importable, got {type(error).__name__}: {error}. Check the name and PYTHONPATH."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            near = ", ".join(nearest(part, public)[:5])
            raise ConfigError(
                f"Expected {what} {reference!r} to exist, got no {part!r} in {module_name}. Nearest: {near or 'none'}."
            )
        found = getattr(found, part)
    return found


def look_up(name: str, table: Mapping[str, str], what: str) -> Any:
    """Return what a literal table of `name -> package.module:Name` holds, imported on first use.

    Raises:
        UnknownNameError: for a name that is not in the table.
        ModuleNotFoundError: if an optional package is missing; unlike with a user's reference, no misspelling of theirs.
    """
    module, _, attribute = table[choose(name, table, what)].partition(":")
    return getattr(importlib.import_module(module), attribute)


def require(module: str, extra: str) -> Any:
    """Import an optional package, or say which extra brings it.

    Raises:
        MissingExtraError: if the package is not installed.

    >>> require("not_a_package", "train")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.MissingExtraError: This needs the package 'not_a_package', which is not installed. Run: pip install 'bookkd[train]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        name = module.split(".")[0]
        raise MissingExtraError(
            f"This needs the package {name!r}, which is not installed. Run: pip install 'bookkd[{extra}]'"
        ) from error
