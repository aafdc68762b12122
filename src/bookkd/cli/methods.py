"""`bookkd methods`."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from typing import Any

from bookkd.cli._show import console, rows
from bookkd.cli._verb import Verb
from bookkd.methods import METHODS, method_class


def methods(name: str | None = None) -> dict[str, Any]:
    """List the methods with their source, options and status; with a name, show that method's card.

    Args:
        name: Method whose card to show.
    """
    wanted = list(METHODS) if name is None else [name]
    return {"methods": [_entry(entry) for entry in wanted], "card": None if name is None else _card(name)}


def _entry(name: str) -> dict[str, Any]:
    found = method_class(name)
    values = {entry.name: _plain(entry.default) for entry in fields(found)}  # type: ignore[arg-type]
    return {
        "name": name,
        "title": found.card.title,
        "needs": found.card.needs,
        "status": found.card.status,
        "source": found.card.source,
        "options": values,
        "presets": sorted(found.presets),
    }


def _plain(value: Any) -> Any:
    """Return a default as JSON has it, a schedule in words."""
    return str(value) if callable(value) else value


def _card(name: str) -> str:
    return inspect.getdoc(sys.modules[method_class(name).__module__]) or ""


def show(result: dict[str, Any]) -> None:
    """Print the table, or the card."""
    out = console()
    if result["card"] is not None:
        out.print(result["card"], markup=False)
        return
    values = [
        (entry["name"], entry["title"], entry["needs"], entry["status"], entry["source"]) for entry in result["methods"]
    ]
    out.print(rows("Methods", ("name", "what it does", "needs", "equations", "source"), values))
    out.print("More: bookkd methods NAME")


VERB = Verb("methods", methods, show, "  bookkd methods vanilla-kd", positional={"name": True})
