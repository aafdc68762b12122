"""placeholder; the branch floss has it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def channel_mean(features: Tensor) -> Tensor:
    return features.mean((2, 3))


def average_pool(features: Tensor, *, size: int) -> Tensor:
    return F.adaptive_avg_pool2d(features, size)


def max_pool(features: Tensor, *, size: int) -> Tensor:
    return F.adaptive_max_pool2d(features, size)


def attention_map(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def channel_gram(features: Tensor) -> Tensor:
    rows = F.normalize(features.flatten(2), dim=2)
    return rows @ rows.mT


def spatial_gram(features: Tensor) -> Tensor:
    columns = F.normalize(features.flatten(2), dim=1)
    return columns.mT @ columns


def principal(features: Tensor, basis: Tensor) -> Tensor:
    moved = features.movedim(1, -1) - basis[0]
    return (moved @ basis[1:].mT).movedim(-1, 1)
