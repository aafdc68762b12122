"""Augmentations of images with a mask: what moves pixels moves both alike, colours change in the image alone.

They take (image, mask), or an image alone, and draw from the generators that a view seeds. What is moved in from outside of the image is
black, and void in the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import require
from bookkd.zoo.transforms import mask_fill

__all__ = ["mask_affine", "mask_crop"]


def _size(size: int | Sequence[int], where: str) -> list[int]:
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2:
        raise ConfigError(expected("size", "one side, or height and width", size, where=where))
    return [at_least(side, 1, "size", where=where) for side in sides]


def _colours(brightness: float, contrast: float, saturation: float, where: str) -> list[Any]:
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in given.items():
        between(value, 0, 1, name, where=where)
    return [require("torchvision.transforms.v2", "train").ColorJitter(**given)] if any(given.values()) else []


def mask_crop(
    *,
    size: int | Sequence[int] = 224,
    min_area: float = 0.25,
    flip: float = 0.5,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> Any:
    """Cut out a part of random area and shape, resize it, flip some, and change the colours of the image.

    The image is resized bilinearly, the mask to the nearest pixel.

    Args:
        size: Height and width of the result, or the side of a square.
        min_area: Least share of the image's area, above 0, at most 1.
        flip: Probability of a flip.
        brightness: Greatest relative change, 0 to 1.
        contrast: Likewise.
        saturation: Likewise.
    """
    where, v2 = "transform mask-crop", require("torchvision.transforms.v2", "train")
    between(min_area, 1e-6, 1, "min_area", where=where)
    between(flip, 0, 1, "flip", where=where)
    crop = v2.RandomResizedCrop(_size(size, where), scale=(min_area, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip), *_colours(brightness, contrast, saturation, where)])


def mask_affine(
    *,
    degrees: float = 10.0,
    shift: float = 0.1,
    scale: float = 0.25,
    flip: float = 0.5,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> Any:
    """Turn, shift, scale and flip an image of any size, and change its colours; the size stays.

    The image is moved bilinearly, the mask to the nearest pixel.

    Args:
        degrees: Greatest angle, 0 to 180.
        shift: Greatest shift as a share of each side, 0 to 1.
        scale: Greatest change of the size, 0 to below 1.
        flip: Probability of a flip.
        brightness: Greatest relative change, 0 to 1.
        contrast: Likewise.
        saturation: Likewise.
    """
    where, v2 = "transform mask-affine", require("torchvision.transforms.v2", "train")
    between(degrees, 0, 180, "degrees", where=where)
    between(shift, 0, 1, "shift", where=where)
    between(scale, 0, 0.99, "scale", where=where)
    between(flip, 0, 1, "flip", where=where)
    moved = v2.RandomAffine(
        degrees,
        translate=(shift, shift),
        scale=(1 - scale, 1 + scale),
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=mask_fill(),
    )
    return v2.Compose([moved, v2.RandomHorizontalFlip(flip), *_colours(brightness, contrast, saturation, where)])
