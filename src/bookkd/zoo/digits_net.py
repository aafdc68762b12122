"""A pair of small convolutional networks for 8x8 digits: a teacher and a student thirty times smaller.

Three 3x3 convolutions with batch normalisation, the resolution halved once (8x8 to 4x4), a global average and one
linear layer. Small enough to train on one processor core in seconds, so that demo and tests need no download.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected

__all__ = ["DigitsNet", "digits_large", "digits_small"]


class DigitsNet(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        channels: Channels of the three convolutions.
        n_classes: Width of the output.
        in_channels: Channels of the input image.

    >>> import torch
    >>> DigitsNet((6, 12, 18), n_classes=10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    feature_layers: ClassVar[Mapping[str, str]] = {
        "stage1": "conv2:input", "stage2": "conv3:input", "stage3": "relu", "last": "relu", "pooled": "linear:input",
        "pre1": "bn1", "pre2": "bn2", "pre3": "bn3",
    }  # fmt: skip
    """Where its stages are, and what they are before their activation."""

    def __init__(self, channels: tuple[int, int, int], *, n_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        if len(channels) != 3:
            raise ConfigError(expected("channels", "three numbers", channels, where="digits network"))
        for count in (*channels, in_channels):
            at_least(count, 1, "channels", where="digits network")
        first, second, third = channels
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(third, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.relu(self.bn3(self.conv3(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def digits_large(*, n_classes: int, in_channels: int = 1) -> DigitsNet:
    """Build the teacher of the pair: 94,410 parameters for 10 classes."""
    return DigitsNet((32, 64, 128), n_classes=n_classes, in_channels=in_channels)


def digits_small(*, n_classes: int, in_channels: int = 1) -> DigitsNet:
    """Build the student of the pair: 2,942 parameters for 10 classes."""
    return DigitsNet((8, 12, 16), n_classes=n_classes, in_channels=in_channels)
