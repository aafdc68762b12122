"""Runs of a benchmark in a folder: what is done is read and not done again, and no figure stands beside options that did not make it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Runs"]


class Runs:
    """The runs of one benchmark under one set of options.

    Args:
        folder: Made if it is not there; a quick run has a folder of its own in it.
        options: Of the whole benchmark, plain values; a folder of others is refused.
        quick: Whether the figures are only to show that everything runs.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], *, quick: bool) -> None:
        self.folder = folder / "quick" if quick else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "options.json"
        text = json.dumps({**options, "quick": quick}, indent=1, sort_keys=True, default=str) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise SystemExit(
                f"Expected {self.folder} to be of these options, got others in options.json. Give another --out."
            )
        path.write_text(text, encoding="utf-8")

    def done(self, arm: str, seed: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a run of an arm came to; `run` is called where it was not done before."""
        path = self.folder / f"{arm.replace(',', '').replace(' ', '-')}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps({"arm": arm, "seed": seed, **run()}, indent=1), encoding="utf-8")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
