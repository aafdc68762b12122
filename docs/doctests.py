"""Extension of Griffe: doctests without a heading are shown as code, and the `Args` of a named tuple as its attributes."""

from __future__ import annotations

import re
from typing import Any

import griffe

# From a prompt at the margin to the next empty line, as doctest reads an example.
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def fenced(text: str) -> str:
    """Put a fence around every run of doctests."""
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)


class Doctests(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Be told of a loaded object."""
        if obj.docstring is not None and "```" not in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
        if obj.docstring is not None and obj.is_class and "NamedTuple" in map(str, getattr(obj, "bases", ())):
            # Its __new__ is made when Python runs, which Griffe does not do.
            obj.docstring.value = obj.docstring.value.replace("\nArgs:\n", "\nAttributes:\n")
