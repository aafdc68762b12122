"""Residual networks for small images, in the layout of the CIFAR-10 experiments of the ResNet paper.

Depth 6n + 2: one 3x3 convolution, three stages of n two-convolution blocks at widths w, 2w, 4w and resolutions 1, 1/2,
1/4, a global average and one linear layer. Where a stage changes width, the shortcut is option A of the paper: take every
second pixel, pad the new channels with zeros; it has no parameters.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, section 4.2,
https://arxiv.org/abs/1512.03385. Names of parameters are those of the publicly distributed CIFAR weights
(`conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`), so that such weights load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bookkd.core.check import at_least

__all__ = [
    "CifarResNet",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: relu(f(x) + shortcut(x)).

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output, at least `in_channels`.
        stride: 1, or 2 to halve the resolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()  # a module, so that what it is given can be taken
        self.stride = stride
        self.new_channels = channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th pixel, new channels of zeros on both sides."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        activated: Tensor = self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))
        return activated


class CifarResNet(nn.Module):
    """A residual network of depth 6 `blocks` + 2.

    Args:
        blocks: Blocks a stage (n of the paper), at least 1.
        n_classes: Width of the output.
        width: Channels of the first stage; 16 in the paper, 32 for the "x2" networks.
        in_channels: Channels of the input image.

    >>> import torch
    >>> CifarResNet(1, n_classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, blocks: int, *, n_classes: int, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        at_least(blocks, 1, "blocks", where="CIFAR ResNet")
        at_least(width, 1, "width", where="CIFAR ResNet")
        at_least(in_channels, 1, "in_channels", where="CIFAR ResNet")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, stride=1)
        self.layer2 = self._stage(blocks, width, 2 * width, stride=2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, stride=2)
        self.linear = nn.Linear(4 * width, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def resnet8(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 8 layers."""
    return CifarResNet(1, n_classes=n_classes, width=width, in_channels=in_channels)


def resnet14(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 14 layers."""
    return CifarResNet(2, n_classes=n_classes, width=width, in_channels=in_channels)


def resnet20(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 20 layers: 269,722 parameters for 10 classes."""
    return CifarResNet(3, n_classes=n_classes, width=width, in_channels=in_channels)


def resnet32(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 32 layers: 464,154 parameters for 10 classes."""
    return CifarResNet(5, n_classes=n_classes, width=width, in_channels=in_channels)


def resnet44(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 44 layers: 658,586 parameters for 10 classes."""
    return CifarResNet(7, n_classes=n_classes, width=width, in_channels=in_channels)


def resnet56(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 56 layers: 853,018 parameters for 10 classes."""
    return CifarResNet(9, n_classes=n_classes, width=width, in_channels=in_channels)


def resnet110(*, n_classes: int, width: int = 16, in_channels: int = 3) -> CifarResNet:
    """Build the network of 110 layers."""
    return CifarResNet(18, n_classes=n_classes, width=width, in_channels=in_channels)
