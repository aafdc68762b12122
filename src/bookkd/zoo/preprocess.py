"""What each network does to a view before it looks at it: scale, resize, normalise. Deterministic, without parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bookkd.core.check import at_least, finite, positive
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose, is_reference, require
from bookkd.zoo.tables import FAMILIES, NETWORKS

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocess", "create_preprocess"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Networks of torchvision whose position table fixes the resolution.
_FIXED_224 = ("vit_", "maxvit_")


@lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Made once per device, so that no call waits for a copy; outside inference mode, so that autograd may keep it.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class Preprocess:
    """Turn views into the float32 images that one network takes.

        out = (resize(x / 255 if x is uint8 else x) - mean) / std

    Args:
        mean: One number a channel in units of [0, 1], or one for all; empty for no normalisation.
        std: Likewise, above 0; empty exactly where `mean` is.
        size: Height and width after a bilinear, antialiased resize; None to keep the view's.

    >>> Preprocess(mean=(0.5,), std=(0.25,))(torch.tensor([[[[255]]]], dtype=torch.uint8))
    tensor([[[[2.]]]])
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ConfigError(expected("std", f"as long as mean ({len(self.mean)})", self.std, where="preprocess"))
        for value in self.mean:
            finite(value, "mean", where="preprocess")
        for value in self.std:
            positive(value, "std", where="preprocess")
        for side in self.size or ():
            at_least(side, 1, "size", where="preprocess")

    def __call__(self, views: Tensor) -> Tensor:
        """Prepare a batch.

        Args:
            views: [batch, channels, height, width], uint8 in 0..255 or floating point, on any device; never changed.
                Where neither normalisation nor size is set, any shape is taken, and integers other than uint8
                (token ids) pass as they are.

        Returns:
            float32 in the same memory format, [batch, channels, *size].

        Raises:
            DataError: another number of dimensions or channels, or integers that are no uint8.
        """
        if views.dtype == torch.uint8:
            out = views.to(torch.float32).div_(255)
        elif views.is_floating_point():
            out = views.to(torch.float32)
        elif not self.mean and self.size is None:
            return views
        else:
            raise DataError(expected("views", "uint8 or floating point", views.dtype, where="preprocess"))
        if self.size is not None and out.shape[-2:] != self.size:
            self._check(out)
            out = F.interpolate(out, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        if self.mean:
            self._check(out)
            out = (out - _channels(self.mean, out.device)).div_(_channels(self.std, out.device))
        return out

    def _check(self, views: Tensor) -> None:
        if views.ndim != 4 or (len(self.mean) > 1 and views.shape[1] != len(self.mean)):
            channels = len(self.mean) if len(self.mean) > 1 else "channels"
            raise DataError(
                expected(
                    "views", f"of shape [batch, {channels}, height, width]", tuple(views.shape), where="preprocess"
                )
                + " Pass a mean and std with one number a channel."
            )


def create_preprocess(
    name: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> Preprocess:
    """Return the preprocessing that goes with a network's name; what is given replaces the default.

    Defaults: the CIFAR ResNets and torchvision have ImageNet's mean and std; timm what the network's own configuration
    says; the digits networks and user code none. The size is set only for networks that take one resolution.

    Args:
        name: As for `create_network`; nothing is built or downloaded.
        mean: One number a channel; empty for no normalisation.
        std: Likewise.
        size: Side of a square, or height and width.

    Raises:
        UnknownNameError: no such network.

    >>> create_preprocess("digits-small")
    Preprocess(mean=(), std=(), size=None)
    >>> create_preprocess("resnet20").mean
    (0.485, 0.456, 0.406)
    """
    default = _default(name)
    chosen = default.size if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if chosen is not None and len(chosen) != 2:
        raise ConfigError(expected("size", "one side, or height and width", size, where="preprocess"))
    if mean is not None and len(mean) == 0 and std is None:
        std = ()
    return Preprocess(
        mean=default.mean if mean is None else tuple(mean),
        std=default.std if std is None else tuple(std),
        size=None if chosen is None else (chosen[0], chosen[1]),
    )


def _default(name: str) -> Preprocess:
    if name.startswith("timm:"):
        timm = require("timm", "timm")
        wanted = name.removeprefix("timm:")
        if not timm.is_model(wanted.partition(".")[0]):
            choose(wanted, timm.list_models(), "timm network")
        config = timm.get_pretrained_cfg(wanted)
        if config is None:
            return Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        height, width = config.input_size[-2:]
        return Preprocess(
            mean=tuple(config.mean), std=tuple(config.std), size=(height, width) if config.fixed_input_size else None
        )
    if name.startswith("torchvision:"):
        models = require("torchvision.models", "train")
        known = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
        wanted = choose(name.removeprefix("torchvision:"), known, "torchvision network")
        size = (224, 224) if wanted.startswith(_FIXED_224) else None
        return Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD, size=size)
    if name.partition(":")[0] in FAMILIES:  # of Transformers, which takes tokens as they are
        return Preprocess()
    if is_reference(name) or choose(name, NETWORKS, "network").startswith("digits-"):
        return Preprocess()
    return Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
