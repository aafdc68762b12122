"""Hook of MkDocs: the build fails if a public name of any room is missing from the API pages."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

import bookkd

_ANCHOR = re.compile(r'id="(bookkd[\w.]*)"')
# The program has a page of its own, made from its parsers.
_ELSEWHERE = {"cli"}


def public_names() -> dict[str, str]:
    """Return every name of every room's `__all__` as `bookkd.room.name`, with the name of the place that defines it."""
    rooms = [room.name for room in pkgutil.iter_modules(bookkd.__path__) if room.ispkg and room.name not in _ELSEWHERE]
    modules = [importlib.import_module(f"bookkd.{room}") for room in rooms]
    return {
        f"{module.__name__}.{name}": _home(getattr(module, name))
        for module in modules
        for name in getattr(module, "__all__", ())
    }


def _home(found: object) -> str:
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"


def missing(site: Path) -> list[str]:
    """Return the public names that have no anchor in the built pages."""
    found = {name for path in (site / "api").rglob("*.html") for name in _ANCHOR.findall(path.read_text("utf-8"))}
    # A function in a module of its own name (bookkd.learning.learn) is shown at the place that defines it.
    return sorted(name for name, home in public_names().items() if name not in found and home not in found)


def on_post_build(config: Any, **_: Any) -> None:
    """Compare when the site is written."""
    absent = missing(Path(config["site_dir"]))
    if absent:
        raise PluginError(f"Expected every public name in docs/api, got none of: {', '.join(absent)}.")
