"""A small encoder-decoder for segmentation: residual stages down, skip connections up.

Source of the shape: Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015 (arXiv 1505.04597), with residual blocks (arXiv 1512.03385) in place
of plain convolutions, features added up instead of put side by side after a 1x1 convolution, and bilinear upsampling.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bookkd.core.check import at_least

__all__ = ["UNet", "unet_large", "unet_small"]


def _unit(in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The identity, or a mean over pixels and a 1x1 convolution; a 1x1 convolution of stride 2 ends the process on some processors."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    pooled = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pooled, *_unit(in_channels, channels, 1))


class ResidualBlock(nn.Module):
    """relu(f(x) + shortcut(x)), f of two 3x3 convolutions.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: 1, or 2 to halve the resolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _unit(in_channels, channels, stride=stride)
        self.second = _unit(channels, channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class UNet(nn.Module):
    """Logits [batch, classes, height, width] from images of any size.

    A stem at half the resolution, `stages` residual stages at 1/2, 1/4, 1/8, ... of it with width, 2 width, 4 width, ... channels, then up
    again: at each resolution the deeper map is brought up bilinearly and added to the stage's own. The logits of half the resolution are
    brought to that of the image.

    Args:
        n_classes: Number of classes.
        width: Channels of the first stage.
        blocks: Residual blocks a stage.
        stages: Number of resolutions, at least 1; the deepest has 2^(stages - 1) width channels.
        in_channels: Channels of the image.

    >>> import torch
    >>> UNet(5, width=4, blocks=1)(torch.zeros(2, 3, 30, 42)).shape
    torch.Size([2, 5, 30, 42])
    """

    def __init__(self, n_classes: int, *, width: int, blocks: int, stages: int = 4, in_channels: int = 3) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks), ("stages", stages), ("in_channels", in_channels)):
            at_least(value, 1, name, where="UNet")
        self.stages = stages
        self.stem = _unit(in_channels, width, stride=2)
        widths = [width * 2**place for place in range(stages)]
        for place, (before, channels) in enumerate(zip([width, *widths], widths, strict=False)):
            first = ResidualBlock(before, channels, 1 if place == 0 else 2)
            rest = (ResidualBlock(channels, channels, 1) for _ in range(blocks - 1))
            setattr(self, f"stage{place + 1}", nn.Sequential(first, *rest))
        self.up = nn.ModuleList(_unit(2 * channels, channels, 1) for channels in widths[:-1])
        self.merge = nn.ModuleList(_unit(channels, channels) for channels in widths[:-1])
        self.head = nn.Conv2d(width, n_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.relu(self.stem(x))]
        for place in range(self.stages):
            maps.append(getattr(self, f"stage{place + 1}")(maps[-1]))
        out = maps.pop()
        for place in reversed(range(self.stages - 1)):
            beside = maps.pop()
            raised = F.interpolate(self.up[place](out), size=beside.shape[-2:], mode="bilinear", align_corners=False)
            out = F.relu(self.merge[place](F.relu(raised + beside)))
        logits: Tensor = self.head(out)
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def unet_large(*, n_classes: int, width: int = 32, blocks: int = 2, stages: int = 4, in_channels: int = 3) -> UNet:
    """Build the teacher."""
    return UNet(n_classes, width=width, blocks=blocks, stages=stages, in_channels=in_channels)


def unet_small(*, n_classes: int, width: int = 12, blocks: int = 1, stages: int = 4, in_channels: int = 3) -> UNet:
    """Build the student, about a fifteenth of the teacher."""
    return UNet(n_classes, width=width, blocks=blocks, stages=stages, in_channels=in_channels)
