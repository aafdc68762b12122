"""The tables of the presets: what each part of BookKD gives, and whether distillation adds up with something else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bookkd.evaluation import difference_of, interaction_of, lower_is_better
from bookkd.pipelines.compare.arms import Arm, student_label
from bookkd.pipelines.compare.presets import FULL
from bookkd.report.columns import QUALITY

__all__ = ["TOLERANCE", "ablation", "orthogonality"]

TOLERANCE = 0.003
"""Widest interval of an interaction that counts as additive: 0.3 points of accuracy, as the card has it, and as much of others."""
_SHARES = frozenset(column.key for columns in QUALITY.values() for column in columns if column.share)

Quality = Sequence[Mapping[int, float]]
"""Seed -> primary metric, for each arm."""


def ablation(arms: Sequence[Arm], quality: Quality, metric: str) -> list[dict[str, Any]]:
    """Return for each student what every part of the full method gives: full less without it, over the same seeds.

    What a part gives is above 0 where it helps: of an error, what it falls by.

    Args:
        arms: Of the sweep.
        quality: Of each arm.
        metric: What that is.
    """
    quality, rows = _rising(quality, metric), []
    for place, arm in enumerate(arms):
        student = student_label(arm.student)
        found = [n for n, other in enumerate(arms) if _is_full(other) and student_label(other.student) == student]
        full = next(iter(found), place)
        if place == full:
            continue
        gain = difference_of(quality[full], quality[place], arm.name)
        rows.append(
            {
                "student": student,
                "without": _words(arm),
                "full_less_without": None if gain is None else asdict(gain),
            }
        )
    return rows


def _rising(quality: Quality, metric: str) -> Quality:
    """Return the figures, those of an error with the other sign, so that more of each is better."""
    if not lower_is_better(metric):
        return quality
    return [{seed: -value for seed, value in each.items()} for each in quality]


def _is_full(arm: Arm) -> bool:
    return arm.override.partition(" ")[0] == FULL


def _words(arm: Arm) -> str:
    return arm.override.removeprefix("minus ")


def orthogonality(arms: Sequence[Arm], quality: Quality, metric: str) -> list[dict[str, Any]]:
    """Return for each partner of distillation the four cells, the gains, and their interaction.

    Arms stand in the order students x methods x augmentations. A partner is the other augmentation, once for each student, or
    the other architecture, once for each augmentation. A gain is above 0 where it is one: of an error, what it falls by.

    Args:
        arms: Of the sweep.
        quality: Of each arm.
        metric: What that is.
    """
    quality = _rising(quality, metric)
    students = list(dict.fromkeys(student_label(arm.student) for arm in arms))
    n_views = len(arms) // (2 * len(students))

    def place(student: int, distilled: int, views: int) -> int:
        return (student * 2 + distilled) * n_views + views

    found = []
    if n_views == 2:
        for student, name in enumerate(students):
            cells = [place(student, distilled, views) for views in (0, 1) for distilled in (0, 1)]
            labels = [arms[place(student, 0, views)].override for views in (0, 1)]
            found.append(_table("augmentation", name, labels, cells, arms, quality, metric in _SHARES))
    if len(students) == 2:
        for views in range(n_views):
            cells = [place(student, distilled, views) for student in (0, 1) for distilled in (0, 1)]
            found.append(
                _table("architecture", arms[views].override, students, cells, arms, quality, metric in _SHARES)
            )
    return found


def _table(
    partner: str,
    at: str,
    labels: Sequence[str],
    cells: Sequence[int],
    arms: Sequence[Arm],
    quality: Quality,
    shares: bool,
) -> dict[str, Any]:
    """Return one table; cells are base, distilled, partner, both. Figures that are `shares` also have log-odds."""
    values = [quality[cell] for cell in cells]
    names = dict(zip(("base", "distilled", "partner", "both"), (arms[cell].name for cell in cells), strict=True))
    head = {"partner": partner, "from": labels[0], "to": labels[1], "at": at, "cells": names}
    if not all(values):
        return {**head, "interaction": None, "interaction_log_odds": None}
    found = interaction_of(*values, tolerance=TOLERANCE)
    if not shares:
        return {**head, "interaction": asdict(found), "interaction_log_odds": None}
    # Near the ceiling gains shrink by themselves: on log-odds that is no conflict.
    odds = [{seed: _log_odds(value) for seed, value in each.items()} for each in values]
    finite = all(math.isfinite(value) for each in odds for value in each.values())
    on_odds = interaction_of(*odds, tolerance=TOLERANCE).interaction if finite else None
    return {**head, "interaction": asdict(found), "interaction_log_odds": on_odds}


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else math.inf
