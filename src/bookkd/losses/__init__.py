"""Losses: pure functions of tensors, one value per position, without reduction and without gradient to the teacher."""

from __future__ import annotations

from bookkd.losses.activations import activation_boundary, overhaul, overhaul_margins
from bookkd.losses.adaptive import adaptive_smoothing, smoothing_strength
from bookkd.losses.claims import Claims, Loss, claims, claims_of
from bookkd.losses.combined import BakedTarget, CombinedTarget, TransformedTarget
from bookkd.losses.contrastive import crd
from bookkd.losses.correlation import correlation_inter, correlation_intra
from bookkd.losses.ctc import consistency, ctc_loss, guided_ctc, view_consistency
from bookkd.losses.decoupled import decoupled_kl
from bookkd.losses.dense import adaptive_cross_entropy, csc, cwd, pairwise_similarity
from bookkd.losses.divergences import generalised_jsd, reverse_kl, skew_kl, skew_reverse_kl
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.entropy import student_entropy, teacher_entropy
from bookkd.losses.features import feature_l1, feature_mse, hcl, nst, vid
from bookkd.losses.gram import batch_gram, class_gram
from bookkd.losses.labels import cross_entropy
from bookkd.losses.ordered import uld
from bookkd.losses.reductions import (
    attention_map,
    average_pool,
    channel_gram,
    channel_mean,
    fsp_matrix,
    max_pool,
    principal,
    spatial_gram,
)
from bookkd.losses.regression import as_normal, gaussian_kl, gaussian_nll, mean_matching, squared_error
from bookkd.losses.relations import cc_kernel, cc_neighbours, pkt, rkd_angle, rkd_distance, similarity_preserving
from bookkd.losses.sampling import expected_unique, importance_weights
from bookkd.losses.selective import intra_class_variance, orthogonal_projection, selective_kl
from bookkd.losses.smoothing import beta_targets
from bookkd.losses.soft import probability_cross_entropy, soft_cross_entropy, soft_target_kl, softened_mse
from bookkd.losses.targets import DenseTarget, FullTarget, SparseTarget, Target, as_target
from bookkd.losses.truncated import truncated_kl
from bookkd.losses.views import agreed_kl, agreement_weight

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
    "activation_boundary",
    "adaptive_cross_entropy",
    "adaptive_smoothing",
    "agreed_kl",
    "agreement_weight",
    "as_normal",
    "as_target",
    "attention_map",
    "average_pool",
    "batch_gram",
    "beta_targets",
    "cc_kernel",
    "cc_neighbours",
    "channel_gram",
    "channel_mean",
    "claims",
    "claims_of",
    "class_gram",
    "consistency",
    "correlation_inter",
    "correlation_intra",
    "crd",
    "cross_entropy",
    "csc",
    "ctc_loss",
    "cwd",
    "decoupled_kl",
    "expected_unique",
    "feature_l1",
    "feature_mse",
    "fsp_matrix",
    "gaussian_kl",
    "gaussian_nll",
    "generalised_jsd",
    "guided_ctc",
    "hcl",
    "importance_weights",
    "intra_class_variance",
    "max_pool",
    "mean_matching",
    "nst",
    "orthogonal_projection",
    "overhaul",
    "overhaul_margins",
    "pairwise_similarity",
    "pkt",
    "principal",
    "probability_cross_entropy",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "selective_kl",
    "similarity_preserving",
    "skew_kl",
    "skew_reverse_kl",
    "smoothing_strength",
    "soft_cross_entropy",
    "soft_target_kl",
    "softened_mse",
    "spatial_gram",
    "squared_error",
    "student_entropy",
    "teacher_entropy",
    "truncated_kl",
    "uld",
    "vid",
    "view_consistency",
]

LOSSES: dict[str, Loss] = {
    "activation_boundary": activation_boundary,
    "adaptive_cross_entropy": adaptive_cross_entropy,
    "adaptive_smoothing": adaptive_smoothing,
    "agreed_kl": agreed_kl,
    "batch_gram": batch_gram,
    "cc_kernel": cc_kernel,
    "cc_neighbours": cc_neighbours,
    "class_gram": class_gram,
    "consistency": consistency,
    "correlation_inter": correlation_inter,
    "correlation_intra": correlation_intra,
    "crd": crd,
    "cross_entropy": cross_entropy,
    "csc": csc,
    "ctc_loss": ctc_loss,
    "cwd": cwd,
    "decoupled_kl": decoupled_kl,
    "feature_l1": feature_l1,
    "feature_mse": feature_mse,
    "gaussian_kl": gaussian_kl,
    "gaussian_nll": gaussian_nll,
    "generalised_jsd": generalised_jsd,
    "guided_ctc": guided_ctc,
    "hcl": hcl,
    "intra_class_variance": intra_class_variance,
    "mean_matching": mean_matching,
    "nst": nst,
    "orthogonal_projection": orthogonal_projection,
    "overhaul": overhaul,
    "pairwise_similarity": pairwise_similarity,
    "pkt": pkt,
    "probability_cross_entropy": probability_cross_entropy,
    "reverse_kl": reverse_kl,
    "rkd_angle": rkd_angle,
    "rkd_distance": rkd_distance,
    "selective_kl": selective_kl,
    "similarity_preserving": similarity_preserving,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "soft_cross_entropy": soft_cross_entropy,
    "soft_target_kl": soft_target_kl,
    "softened_mse": softened_mse,
    "squared_error": squared_error,
    "student_entropy": student_entropy,
    "truncated_kl": truncated_kl,
    "uld": uld,
    "vid": vid,
    "view_consistency": view_consistency,
}
"""Every loss by name. A new one takes a function, a line here, and a row in `tests/losses/cases.py`."""
