"""Losses: pure functions of tensors, one value per position, without reduction and without gradient to the teacher."""

from __future__ import annotations

from bookkd.losses.adaptive import adaptive_smoothing, smoothing_strength
from bookkd.losses.claims import Claims, Loss, claims, claims_of
from bookkd.losses.combined import BakedTarget, CombinedTarget, TransformedTarget
from bookkd.losses.correlation import correlation_inter, correlation_intra
from bookkd.losses.ctc import consistency, ctc_loss, guided_ctc, view_consistency
from bookkd.losses.decoupled import decoupled_kl
from bookkd.losses.divergences import generalised_jsd, reverse_kl, skew_kl, skew_reverse_kl
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.entropy import student_entropy, teacher_entropy
from bookkd.losses.gram import batch_gram, class_gram
from bookkd.losses.labels import cross_entropy
from bookkd.losses.ordered import uld
from bookkd.losses.regression import as_normal, gaussian_kl, gaussian_nll, mean_matching, squared_error
from bookkd.losses.sampling import expected_unique, importance_weights
from bookkd.losses.smoothing import beta_targets
from bookkd.losses.soft import probability_cross_entropy, soft_cross_entropy, soft_target_kl, softened_mse
from bookkd.losses.targets import DenseTarget, FullTarget, SparseTarget, Target, as_target
from bookkd.losses.truncated import truncated_kl

__all__ = [
    "LOSSES",
    "BakedTarget",
    "Claims",
    "ClassTarget",
    "CombinedTarget",
    "DenseTarget",
    "FullTarget",
    "Loss",
    "SampledTarget",
    "SparseTarget",
    "Target",
    "TransformedTarget",
    "adaptive_smoothing",
    "as_normal",
    "as_target",
    "batch_gram",
    "beta_targets",
    "claims",
    "claims_of",
    "class_gram",
    "consistency",
    "correlation_inter",
    "correlation_intra",
    "cross_entropy",
    "ctc_loss",
    "decoupled_kl",
    "expected_unique",
    "gaussian_kl",
    "gaussian_nll",
    "generalised_jsd",
    "guided_ctc",
    "importance_weights",
    "mean_matching",
    "probability_cross_entropy",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "smoothing_strength",
    "soft_cross_entropy",
    "soft_target_kl",
    "softened_mse",
    "squared_error",
    "student_entropy",
    "teacher_entropy",
    "truncated_kl",
    "uld",
    "view_consistency",
]

LOSSES: dict[str, Loss] = {
    "adaptive_smoothing": adaptive_smoothing,
    "batch_gram": batch_gram,
    "class_gram": class_gram,
    "consistency": consistency,
    "correlation_inter": correlation_inter,
    "correlation_intra": correlation_intra,
    "cross_entropy": cross_entropy,
    "ctc_loss": ctc_loss,
    "decoupled_kl": decoupled_kl,
    "gaussian_kl": gaussian_kl,
    "gaussian_nll": gaussian_nll,
    "generalised_jsd": generalised_jsd,
    "guided_ctc": guided_ctc,
    "mean_matching": mean_matching,
    "probability_cross_entropy": probability_cross_entropy,
    "reverse_kl": reverse_kl,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "soft_cross_entropy": soft_cross_entropy,
    "soft_target_kl": soft_target_kl,
    "softened_mse": softened_mse,
    "squared_error": squared_error,
    "student_entropy": student_entropy,
    "truncated_kl": truncated_kl,
    "uld": uld,
    "view_consistency": view_consistency,
}
"""Every loss by name. A new one takes a function, a line here, and a row in `tests/losses/cases.py`."""
