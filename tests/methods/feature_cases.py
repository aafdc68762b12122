"""Worked features for the methods that look inside: those of the card `feature-losses`, two samples, through identity adapters."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

FS = np.array([[[[1, 2]], [[0, 1]]], [[[2, 0]], [[1, 1]]]], dtype=np.float64)
FT = np.array([[[[1, 1]], [[1, 2]]], [[[0, 2]], [[3, 1]]]], dtype=np.float64)
"""Maps of two samples, two channels and 1 x 2 positions."""


def attention(maps):
    where = (maps**2).mean(1).reshape(len(maps), -1)
    return where / np.linalg.norm(where, axis=1, keepdims=True)


CE = 0.4643688
# Name -> field -> what student and teacher have there; a method's total is worked on them.
FEATURES = {
    "at": {f"features/stage{stage}/attention": (attention(FS), attention(FT)) for stage in (1, 2, 3)},
    "fitnets": {"features/stage2": (FS, FT)},
}
DEFAULTS = {
    # Card feature-losses, the table of beta: gamma 1, alpha 0.
    "at": {
        "weight": 1000.0,
        "ce_weight": 1.0,
        "kd_weight": 0.0,
        "temperature": 4.0,
        "layers": ("stage1", "stage2", "stage3"),
    },
    "fitnets": {"weight": 100.0, "ce_weight": 1.0, "kd_weight": 0.0, "temperature": 4.0, "layer": "stage2"},
}
TOTALS = {
    "at": CE + 3 * 1000 * float(((attention(FS) - attention(FT)) ** 2).mean()),  # 0.032147 on the card
    "fitnets": CE + 100 * 1.875,
}
REFUSED = [
    ("at", "layers", (), r"`layers` to be at least one layer, none twice, got \(\) \(method at\)"),
    ("at", "layers", ("stage1", "stage1"), r"`layers` to be at least one layer, none twice"),
    ("at", "weight", 0.0, r"`weight` to be a number above 0, got 0\.0 \(method at\)"),
    ("fitnets", "layer", "../x", r"`field` to be a name such as `logits` or `features/layer3`"),
    ("fitnets", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0 \(method fitnets\)"),
    ("fitnets", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
]
RELATIONAL: tuple[str, ...] = ()
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
