"""Worked features for the methods that look inside: those of the card `feature-losses`, two samples, through identity adapters."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bookkd.core.schedules import Linear

FS = np.array([[[[1, 2]], [[0, 1]]], [[[2, 0]], [[1, 1]]]], dtype=np.float64)
FT = np.array([[[[1, 1]], [[1, 2]]], [[[0, 2]], [[3, 1]]]], dtype=np.float64)
"""Maps of two samples, two channels and 1 x 2 positions."""
FLOWS = tuple(np.einsum("nahw,nbhw->nab", first, FT) / 2 for first in (FS, FT))
"""Of the student from FS to FT, of the teacher from FT to FT, as on the card."""
S = np.array([[1, 0], [0, 2], [2, 1]], dtype=np.float64)
T = np.array([[0, 1], [1, 1], [3, 0]], dtype=np.float64)
"""Vectors of three samples."""
BS = np.array([-2, -0.5, 0.3, 1.7]).reshape(1, 1, 1, 4)
BT = np.array([-1, 0.4, -0.2, 2]).reshape(1, 1, 1, 4)
"""Maps of one sample before their activation."""
OTHERS = np.array([[1, -1], [-2, 1]], dtype=np.float64)
"""The teacher's of two more."""
CLASSES = np.array([1, 1, 1, 0, 1])
"""Of all five."""


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def contrast(anchors, others, classes, tau=0.07):
    """One side of the card's contrastive loss, with every row of another class as a negative and Z the mean of the exponentials times n = 1."""
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchors, others))
    close = np.exp(u @ v.T / tau)
    negative = classes[: len(u), None] != classes
    p, noise = close / close[negative | np.eye(*close.shape, dtype=bool)].mean(), negative.sum(1, keepdims=True)
    told = np.log(p / (p + noise + 1e-7)).diagonal().sum()
    missed = np.log(np.maximum(noise, 1) / (p + noise + 1e-7))
    return -(told + missed[negative].sum()) / len(u)


def attention(maps):
    where = (maps**2).mean(1).reshape(len(maps), -1)
    return where / np.linalg.norm(where, axis=1, keepdims=True)


def review(features):
    """The card's walk from the deepest layer, with adapters that hand on and gates that look at the first two channels."""
    running, found = None, []
    for maps in reversed(features):
        if running is not None:
            gates = 1 / (1 + np.exp(-maps[:, :2]))
            maps = maps * gates[:, :1] + running * gates[:, 1:]  # a map of 1 x 1 is wide enough for every position
        running = maps
        found.append(maps)
    return found[::-1]


def reviewed():
    """The squared errors of the layers, which is all of the hierarchical loss where maps are one high."""
    layers = [FS, FS, FS, S[:2, :, None, None]]
    wanted = [FT, FT, FT, T[:2, :, None, None]]
    return sum(((mine - theirs) ** 2).mean() for mine, theirs in zip(review(layers), wanted, strict=True))


CE = 0.4643688
# Name -> field -> what student and teacher have there; a method's total is worked on them.
FEATURES = {
    "ab": {f"features/pre{stage}": (BS, BT) for stage in (1, 2, 3)},
    "at": {f"features/stage{stage}/attention": (attention(FS), attention(FT)) for stage in (1, 2, 3)},
    "cc": {"features/pooled": (S, T)},
    "ccskd": {
        **{f"features/stage{stage}": (S[:, :, None, None], None) for stage in (1, 2, 3)},
        **{f"features/stage{stage}/mean": (None, T) for stage in (1, 2, 3)},
    },
    # All of the batch are of one class; the second of the others is, too.
    "crd": {"features/pooled": (S, T), "own/negatives": (None, OTHERS), "own/labels": (None, CLASSES)},
    "csc-ace": {"features/last": (FS, None), "features/last/pool8": (None, FT[:, :, [0] * 8][..., [0] * 4 + [1] * 4])},
    "cskd": {"features/pooled": (S, None)},
    "fitnets": {"features/stage2": (FS, FT)},
    "fsp": {f"features/{first}/fsp.{second}": FLOWS for first, second in (("stage1", "stage2"), ("stage2", "stage3"))},
    "ft": {"features/last": (FS, None), "features/last/paraphrase": (None, attention(FT))},
    "nst": {f"features/stage{stage}": (FS, FT) for stage in (1, 2, 3)},
    "ofd": {f"features/pre{stage}": (BS, BT) for stage in (1, 2, 3)},
    "pkt": {"features/pooled": (S, T)},
    "reviewkd": {**{f"features/stage{stage}": (FS, FT) for stage in (1, 2, 3)}, "features/pooled": (S[:2], T[:2])},
    "rkd": {"features/pooled": (S, T)},
    "simkd": {"features/last": (FS, FT)},
    "sp": {"features/last": (FS, FT)},
    "vid": {f"features/stage{stage}": (FS, FT) for stage in (1, 2, 3)},
}
CONSTANTS = {
    # The card's margin, and a paraphraser of as many factors as the maps have channels.
    "ft": {"paraphraser/last/bias3": torch.zeros(2)},
    "ofd": {f"margins/pre{stage}": torch.tensor([-0.6], dtype=torch.float64) for stage in (1, 2, 3)},
    "simkd": {"classifier/weight": torch.zeros(3, 2), "classifier/bias": torch.zeros(3)},
}
"""What methods must know of the teacher once and for all."""
COMMON = {"ce_weight": 1.0, "kd_weight": 0.0, "temperature": 4.0}
DEFAULTS = {
    # Card feature-losses, the table of beta: gamma 1, alpha 0.
    # "m = 1", "times 3/1000", "FSP and AB are initial stages in the benchmark (30 epochs)".
    "ab": {"weight": 1.0, **COMMON, "layers": None, "margin": 1.0, "begin_epochs": 30},
    "at": {"weight": 1000.0, **COMMON, "layers": None},
    # "d = 128", "P = 2, g = 0.4".
    "cc": {"weight": 0.02, **COMMON, "layer": "pooled", "form": "neighbours", "width": 128, "gamma": 0.4, "order": 2},
    # The released CIFAR configuration; epochs are counted from 0 here.
    "ccskd": {
        "temperature": 1.0,
        "ce_weight": {"values": (0.0, 1.0), "epochs": (60,)},
        "selective_weight": {"values": (0.0, 0.1), "epochs": (60,)},
        "kd_weight": 0.1,
        "channel_weight": {"values": (6.0, 5.4, 4.86), "epochs": (59, 159)},
        "relation_weight": 6.0,
        "angle_weight": 2.0,
        "selective": "code",
        "factor": {
            "values": (1.0, 0.9, 0.81, 0.729, 0.6561, 0.59049, 0.531441),
            "epochs": (29, 59, 89, 119, 149, 179),
        },
        "layers": None,
    },
    # "dimension 128", "tau = 0.07"; the number of negatives is ours.
    "crd": {
        "weight": 0.8,
        **COMMON,
        "layer": "pooled",
        "width": 128,
        "tau": 0.07,
        "negatives": 1024,
        "other_classes": True,
    },
    # Reconstructed: "recommended default" factorised, "hard switch fits the abstract best", lambda not found.
    "csc-ace": {
        "weight": 1.0,
        "ace_weight": 1.0,
        "ce_weight": 0.0,
        "csc": "factorised",
        "ace": "switch",
        "grid": 8,
        "layer": "last",
    },
    # "Defaults lambda_r = lambda_v = lambda_o = 0.2", "default T = 1".
    "cskd": {
        "temperature": 1.0,
        "kd_weight": 0.2,
        "icv_weight": 0.2,
        "opl_weight": 0.2,
        "ce_weight": 1.0,
        "icv": "code",
        "layer": "pooled",
    },
    "fitnets": {"weight": 100.0, **COMMON, "layer": "stage2"},
    # "50, pre-training stage only".
    "fsp": {"weight": 50.0, **COMMON, "begin_epochs": 30, "layers": None},
    "ft": {"weight": 200.0, **COMMON, "layer": "last"},
    "nst": {"weight": 50.0, **COMMON, "layers": None},
    "ofd": {"weight": 1e-3, **COMMON, "layers": None},
    "pkt": {"weight": 30000.0, **COMMON, "layer": "pooled"},
    # "stages + pooled", "config; ramp epoch/20"; the weight is ours.
    "reviewkd": {"weight": 1.0, **COMMON, "layers": None, "ramp_epochs": 20, "width": 512},
    "rkd": {"weight": 1.0, **COMMON, "layer": "pooled", "distance_weight": 25.0, "angle_weight": 50.0},
    # "CE and KD weights 0", "f = 2".
    "simkd": {"weight": 1.0, **COMMON, "ce_weight": 0.0, "reduction": 2},
    "sp": {"weight": 3000.0, **COMMON, "layer": "last"},
    # "rho init log(exp(5 - 1e-5) - 1) (v = 5)".
    "vid": {"weight": 1.0, **COMMON, "layers": None, "variance": 5.0},
}
TOTALS = {
    "ab": 3 / 1000 * (0.25 + 0.5 + 1) * 3.94,  # (0, 2.25, 1.69, 0) on the card; no labels at first
    "at": CE + 3 * 1000 * 0.032147,
    "cc": CE + 0.02 * 2.0,
    "ccskd": 0.1 * 0.1365202 + 3 * 6 * (1.0 + 0.355624),  # no labels in the first 60 epochs
    "crd": CE + 0.8 * (contrast(S, np.concatenate([T, OTHERS]), CLASSES) + contrast(T, S, CLASSES[: len(S)])),
    # The teacher is right: cross-entropy under it. Means over entries do not see that every position is there several times.
    "csc-ace": float(-(softmax([2, 3.5, -1]) * np.log(softmax([1, 2, 0.5]))).sum()) + 0.038933 + 0.000736,
    # All three of one class: variances 0.5, 2, 0.5; cosines 0, 2 / sqrt 5, 1 / sqrt 5.
    "cskd": CE + 0.2 * (0.1365202 + 4.5**0.5 + 1 - 5**-0.5),
    "fitnets": CE + 100 * 1.875,
    "fsp": 2 * 50 * 2.6875,  # no labels at first
    "ft": CE + 200 * 0.155832,
    "nst": CE + 3 * 50 * 0.225,
    "ofd": CE + 1e-3 * (0.25 + 0.5 + 1) * 1.15,  # (0, 0.81, 0.25, 0.09) on the card
    "pkt": CE + 30000 * 0.019090,
    "reviewkd": CE + reviewed() / 20,  # the first of 20 epochs
    "rkd": CE + 8.890591,
    "simkd": 1.875,  # no labels
    "sp": CE + 3000 * 0.025658,
    "vid": CE + 3 * 0.992219,
}
REFUSED = [
    ("at", "layers", (), r"`layers` to be at least one layer, none twice, got \(\) \(method at\)"),
    ("at", "layers", ("stage1", "stage1"), r"`layers` to be at least one layer, none twice"),
    ("at", "weight", 0.0, r"`weight` to be a number above 0, got 0\.0 \(method at\)"),
    ("cc", "form", "gram", r"`form` to be one of neighbours, kernel, got 'gram' \(method cc\)"),
    ("cc", "width", 0, r"`width` to be a whole number of at least 1, got 0"),
    ("ab", "margin", 0.0, r"`margin` to be a number above 0, got 0\.0 \(method ab\)"),
    ("ab", "begin_epochs", 0, r"`begin_epochs` to be a whole number of at least 1, got 0"),
    ("reviewkd", "layers", ("stage1",), r"`layers` to be at least two, got \('stage1',\) \(method reviewkd\)"),
    ("reviewkd", "ramp_epochs", 0, r"`ramp_epochs` to be a whole number of at least 1, got 0"),
    ("reviewkd", "weight", Linear(0.0, 1.0), r"`weight` to be a number above 0, got Linear.* Its ramp is its schedule"),
    ("ccskd", "selective", "soft", r"`selective` to be code or clean, got 'soft' \(method ccskd\)"),
    ("ccskd", "layers", (), r"`layers` to be at least one layer, none twice, got \(\)"),
    ("crd", "negatives", -1, r"`negatives` to be a whole number of at least 0, got -1 \(method crd\)"),
    ("csc-ace", "ace", "soft", r"`ace` to be switch or blend, got 'soft' \(method csc-ace\)"),
    ("csc-ace", "grid", 0, r"`grid` to be a whole number of at least 1, got 0 \(method csc-ace\)"),
    ("cskd", "icv", "mean", r"`icv` to be code or class, got 'mean' \(method cskd\)"),
    ("cskd", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0 \(method cskd\)"),
    ("fitnets", "layer", "../x", r"`field` to be a name such as `logits` or `features/layer3`"),
    ("fitnets", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0 \(method fitnets\)"),
    ("fitnets", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("fsp", "layers", ("stage1",), r"`layers` to be at least two, got \('stage1',\) \(method fsp\)"),
    ("ft", "layer", "../x", r"`field` to be a name such as `logits` or `features/layer3`"),
    ("nst", "weight", -1.0, r"`weight` to be a number above 0, got -1\.0 \(method nst\)"),
    ("ofd", "layers", (), r"`layers` to be at least one layer, none twice, got \(\) \(method ofd\)"),
    ("pkt", "kd_weight", -1.0, r"`kd_weight` to be at least 0, got -1\.0 \(method pkt\)"),
    ("rkd", "angle_weight", -1.0, r"`angle_weight` to be at least 0, got -1\.0 \(method rkd\)"),
    ("simkd", "reduction", 0, r"`reduction` to be a whole number of at least 1, got 0 \(method simkd\)"),
    ("sp", "weight", 0.0, r"`weight` to be a number above 0, got 0\.0 \(method sp\)"),
    ("vid", "variance", 0.0, r"`variance` to be between 0\.001 and 1000000\.0, got 0\.0 \(method vid\)"),
]
CONTRADICTIONS = [
    ("cc", {"gamma": 1.0}, r"`gamma` to be 0\.4 with form neighbours, got 1\.0"),
    ("cc", {"form": "kernel", "width": 8}, r"`width` to be 128 with form kernel, got 8"),
    ("rkd", {"angle_weight": 0.0, "distance_weight": 0.0}, r"`distance_weight` to be above 0, or angle_weight, got 0"),
]
LOGITS = {"ccskd": {"logits": (1.0,)}, "csc-ace": {"logits": ()}, "cskd": {"logits": (1.0,)}}
"""Those that read logits at their defaults, too."""
DENSE = {"csc-ace": ("logits",)}
RELATIONAL = ("cc", "ccskd", "crd", "pkt", "rkd", "sp")
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
    """The fields of the teacher that a method asks for, and which of them have to be dense: those inside of it, and what `DENSE` says."""
    given = FEATURES[name].items()
    inside = [field for field, (_, teacher) in given if teacher is not None and field.startswith("features/")]
    return {**LOGITS.get(name, {}), **dict.fromkeys(inside, ())}, tuple(sorted([*inside, *DENSE.get(name, ())]))


def sides(name):
    """Student's and teacher's fields as tensors."""
    given = FEATURES[name]
    return (
        {field: torch.tensor(student) for field, (student, _) in given.items() if student is not None},
        {field: torch.tensor(teacher) for field, (_, teacher) in given.items() if teacher is not None},
    )
