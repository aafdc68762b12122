"""Knowledge distillation from books: the teacher speaks once, any number of students learn.

The names below are loaded on first use, so that reading a book needs numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Book": "bookkd.book",
    "BookWriter": "bookkd.book",
    "Plan": "bookkd.book",
    "verify": "bookkd.book",
    "Replay": "bookkd.views",
    "Views": "bookkd.views",
    "ViewSampler": "bookkd.views",
    "LiveKnowledge": "bookkd.knowledge",
    "StoredKnowledge": "bookkd.knowledge",
    "make": "bookkd.making",
    "learn": "bookkd.learning",
    "evaluate": "bookkd.evaluation",
}

__all__ = [
    "Book",
    "BookWriter",
    "LiveKnowledge",
    "Plan",
    "Replay",
    "StoredKnowledge",
    "ViewSampler",
    "Views",
    "__version__",
    "evaluate",
    "learn",
    "make",
    "verify",
]

if TYPE_CHECKING:
    from bookkd.book import Book, BookWriter, Plan, verify
    from bookkd.evaluation import evaluate
    from bookkd.knowledge import LiveKnowledge, StoredKnowledge
    from bookkd.learning import learn
    from bookkd.making import make
    from bookkd.views import Replay, Views, ViewSampler


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bookkd' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
