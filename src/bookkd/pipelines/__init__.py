"""From names to results: make a book, learn from it, evaluate, demonstrate, measure."""

from __future__ import annotations

from bookkd.pipelines.evaluate_student import evaluate_student
from bookkd.pipelines.learn_student import learn_student
from bookkd.pipelines.make_book import make_book
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.rollouts import RolledOut, Rollouts, learn_by_rollouts, mixed_texts

__all__ = [
    "DataOptions",
    "NetworkOptions",
    "RolledOut",
    "Rollouts",
    "ViewOptions",
    "evaluate_student",
    "learn_by_rollouts",
    "learn_student",
    "make_book",
    "mixed_texts",
]
