"""Losses: pure functions of tensors, one value per position, without reduction and without gradient to the teacher."""

from __future__ import annotations

from bookkd.losses.claims import Claims, Loss, claims, claims_of
from bookkd.losses.labels import cross_entropy
from bookkd.losses.soft import soft_target_kl
from bookkd.losses.targets import DenseTarget, SparseTarget, Target, as_target

__all__ = [
    "LOSSES",
    "Claims",
    "DenseTarget",
    "Loss",
    "SparseTarget",
    "Target",
    "as_target",
    "claims",
    "claims_of",
    "cross_entropy",
    "soft_target_kl",
]

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "soft_target_kl": soft_target_kl,
}
"""Every loss by name. A new one takes a function, a line here, and a row in `tests/losses/cases.py`."""
