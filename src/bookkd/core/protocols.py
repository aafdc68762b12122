"""The seam of the house, typed without importing torch: who knows, and what a method needs to be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from bookkd.core.fields import FieldInfo

__all__ = ["EVENTS", "Knowledge", "Needs"]

EVENTS = ("run_start", "epoch_start", "step_end", "epoch_end", "validation_improved", "run_end")
"""What a method's event handler may be told of, in the order in which a run fires them."""


@runtime_checkable
class Knowledge(Protocol):
    """Anything that answers "what does the teacher say about this batch?"."""

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """What it can say, by field name."""
        ...

    @property
    def teacher_forwards(self) -> int:
        """Samples that were passed through a teacher network so far; 0 for a book."""
        ...

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Say it for the whole batch: field name -> a target of `losses`, without gradient.

        Args:
            batch: At least `sample` and `view` (a book) or `input` (a live teacher), see `core/fields.py`.
            fields: The fields wanted; None for all.
        """
        ...


@dataclass(frozen=True)
class Needs:
    """What a method must have before anything long starts.

    Args:
        fields: Field name -> temperatures at which the losses will ask for it (empty: temperature plays no part).
        dense: Fields that must be dense, since a loss of the method cannot honour a tail bucket.
        views_per_sample: Views of one sample in one batch.
        live_teacher: True where gradients or inputs of the student's own making must pass through the teacher.
        nonlinear: Of the others, fields that a loss reads otherwise than linearly, so that draws would bias it.
        hard: Fields of which the losses look at the likeliest class alone, so that a codec that keeps no more will do.
        validation: True where it acts on validations that improve.
        constants: Names of what it must know of the teacher once and for all, such as `classifier/weight`.
    """

    fields: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    dense: tuple[str, ...] = ()
    views_per_sample: int = 1
    live_teacher: bool = False
    nonlinear: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()
    validation: bool = False
    constants: tuple[str, ...] = ()
