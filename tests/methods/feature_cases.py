"""Worked features for the methods that look inside: those of the card `feature-losses`, two samples, through identity adapters."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

FS = np.array([[[[1, 2]], [[0, 1]]], [[[2, 0]], [[1, 1]]]], dtype=np.float64)
FT = np.array([[[[1, 1]], [[1, 2]]], [[[0, 2]], [[3, 1]]]], dtype=np.float64)
"""Maps of two samples, two channels and 1 x 2 positions."""
S = np.array([[1, 0], [0, 2], [2, 1]], dtype=np.float64)
T = np.array([[0, 1], [1, 1], [3, 0]], dtype=np.float64)
"""Vectors of three samples."""


def attention(maps):
    where = (maps**2).mean(1).reshape(len(maps), -1)
    return where / np.linalg.norm(where, axis=1, keepdims=True)


CE = 0.4643688
# Name -> field -> what student and teacher have there; a method's total is worked on them.
FEATURES = {
    "at": {f"features/stage{stage}/attention": (attention(FS), attention(FT)) for stage in (1, 2, 3)},
    "cc": {"features/pooled": (S, T)},
    "fitnets": {"features/stage2": (FS, FT)},
    "nst": {f"features/stage{stage}": (FS, FT) for stage in (1, 2, 3)},
    "pkt": {"features/pooled": (S, T)},
    "rkd": {"features/pooled": (S, T)},
    "sp": {"features/last": (FS, FT)},
    "vid": {f"features/stage{stage}": (FS, FT) for stage in (1, 2, 3)},
}
COMMON = {"ce_weight": 1.0, "kd_weight": 0.0, "temperature": 4.0}
THREE_STAGES = ("stage1", "stage2", "stage3")
DEFAULTS = {
    # Card feature-losses, the table of beta: gamma 1, alpha 0.
    "at": {"weight": 1000.0, **COMMON, "layers": THREE_STAGES},
    # "d = 128", "P = 2, g = 0.4".
    "cc": {"weight": 0.02, **COMMON, "layer": "pooled", "form": "neighbours", "width": 128, "gamma": 0.4, "order": 2},
    "fitnets": {"weight": 100.0, **COMMON, "layer": "stage2"},
    "nst": {"weight": 50.0, **COMMON, "layers": THREE_STAGES},
    "pkt": {"weight": 30000.0, **COMMON, "layer": "pooled"},
    "rkd": {"weight": 1.0, **COMMON, "layer": "pooled", "distance_weight": 25.0, "angle_weight": 50.0},
    "sp": {"weight": 3000.0, **COMMON, "layer": "last"},
    # "rho init log(exp(5 - 1e-5) - 1) (v = 5)".
    "vid": {"weight": 1.0, **COMMON, "layers": THREE_STAGES, "variance": 5.0},
}
TOTALS = {
    "at": CE + 3 * 1000 * 0.032147,
    "cc": CE + 0.02 * 2.0,
    "fitnets": CE + 100 * 1.875,
    "nst": CE + 3 * 50 * 0.225,
    "pkt": CE + 30000 * 0.019090,
    "rkd": CE + 8.890591,
    "sp": CE + 3000 * 0.025658,
    "vid": CE + 3 * 0.992219,
}
REFUSED = [
    ("at", "layers", (), r"`layers` to be at least one layer, none twice, got \(\) \(method at\)"),
    ("at", "layers", ("stage1", "stage1"), r"`layers` to be at least one layer, none twice"),
    ("at", "weight", 0.0, r"`weight` to be a number above 0, got 0\.0 \(method at\)"),
    ("cc", "form", "gram", r"`form` to be one of neighbours, kernel, got 'gram' \(method cc\)"),
    ("cc", "width", 0, r"`width` to be a whole number of at least 1, got 0"),
    ("fitnets", "layer", "../x", r"`field` to be a name such as `logits` or `features/layer3`"),
    ("fitnets", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0 \(method fitnets\)"),
    ("fitnets", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("nst", "weight", -1.0, r"`weight` to be a number above 0, got -1\.0 \(method nst\)"),
    ("pkt", "kd_weight", -1.0, r"`kd_weight` to be at least 0, got -1\.0 \(method pkt\)"),
    ("rkd", "angle_weight", -1.0, r"`angle_weight` to be at least 0, got -1\.0 \(method rkd\)"),
    ("sp", "weight", 0.0, r"`weight` to be a number above 0, got 0\.0 \(method sp\)"),
    ("vid", "variance", 0.0, r"`variance` to be between 0\.001 and 1000000\.0, got 0\.0 \(method vid\)"),
]
CONTRADICTIONS = [
    ("cc", {"gamma": 1.0}, r"`gamma` to be 0\.4 with form neighbours, got 1\.0"),
    ("cc", {"form": "kernel", "width": 8}, r"`width` to be 128 with form kernel, got 8"),
    ("rkd", {"angle_weight": 0.0, "distance_weight": 0.0}, r"`distance_weight` to be above 0, or angle_weight, got 0"),
]
RELATIONAL = ("cc", "pkt", "rkd", "sp")
"""Those whose terms relate the rows of a batch."""


def identity(module: nn.Module) -> nn.Module:
    """Make an adapter hand on what it is given, where it is square; batch normalisation without its 1e-5."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.dirac_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.eye_(part.weight)
        elif isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0
        if getattr(part, "bias", None) is not None and not isinstance(part, nn.BatchNorm2d):
            nn.init.zeros_(part.bias)
    return module.eval().double()


def needs(name):
    """The fields of the teacher that a method asks for, all of them dense."""
    fields = tuple(FEATURES[name])
    return dict.fromkeys(fields, ()), tuple(sorted(fields))


def sides(name):
    """Student's and teacher's fields as tensors."""
    given = FEATURES[name]
    return (
        {field: torch.tensor(student) for field, (student, _) in given.items() if student is not None},
        {field: torch.tensor(teacher) for field, (_, teacher) in given.items() if teacher is not None},
    )
