"""Augmentations by name, on uint8 images [channels, height, width]; all draw from the generators that a view seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose, import_reference, is_reference, look_up, require
from bookkd.zoo.calls import call
from bookkd.zoo.tables import TRANSFORMS

__all__ = [
    "auto_augment",
    "create_transform",
    "crop_flip",
    "crop_flip_jitter_erase",
    "cropped_and_flipped",
    "digits",
    "none",
    "rand_augment",
    "random_resized_crop",
    "trivial_augment",
]


def create_transform(name: str, args: Mapping[str, Any] | None = None) -> Callable[[Tensor], Tensor]:
    """Return a random transform of one image.

    Args:
        name: A name of `TRANSFORMS`, or `package.module:callable`, which is called with `args` and returns the transform.
        args: Arguments of the transform, such as `{"size": 32, "padding": 4}` for "crop-flip".

    Returns:
        A picklable callable from uint8 [channels, height, width] to the same kind.

    Raises:
        UnknownNameError: no such transform; the nearest names are listed.
        ConfigError: arguments that it does not take, or a callable that returns no callable.

    >>> import torch
    >>> create_transform("crop-flip", {"size": 8, "padding": 1})(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([3, 8, 8])
    """
    factory = import_reference(name, "transform") if is_reference(name) else look_up(name, TRANSFORMS, "transform")
    if not callable(factory):
        raise ConfigError(expected("transform", "a callable that returns a transform", factory, where=name))
    transform: Callable[[Tensor], Tensor] = call(factory, f"transform {name}", {}, args)
    if not callable(transform):
        raise ConfigError(
            expected("transform", "a callable that returns a transform", transform, where=name)
            + " Name the class or a function that makes the transform, not the transform itself."
        )
    return transform


def _v2() -> Any:
    return require("torchvision.transforms.v2", "train")


def mask_fill() -> dict[Any, int]:
    """Return what is moved in from outside: black, and void in a mask."""
    return {require("torchvision.tv_tensors", "train").Mask: IGNORE_LABEL, "others": 0}


def none() -> Any:
    """Return the image as it is."""
    return _v2().Identity()


def digits(*, degrees: float = 10.0, shift: float = 0.125, scale: float = 0.1) -> Any:
    """Turn, shift and scale a little, bilinearly; what is moved in is black. For 8x8 digits, where a flip changes the class.

    Args:
        degrees: Greatest angle, 0 to 180.
        shift: Greatest shift as a share of the side, 0 to 1; 0.125 is one pixel of eight.
        scale: Greatest change of the size, 0 to below 1.
    """
    between(degrees, 0, 180, "degrees", where="transform digits")
    between(shift, 0, 1, "shift", where="transform digits")
    between(scale, 0, 0.99, "scale", where="transform digits")
    v2 = _v2()
    return v2.RandomAffine(
        degrees,
        translate=(shift, shift),
        scale=(1 - scale, 1 + scale),
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=mask_fill(),
    )


def cropped_and_flipped(
    size: int, padding: int, where: str, *, before: Sequence[Any] = (), behind: Sequence[Any] = ()
) -> Any:
    """Return transforms in a row: those before, the crop and the flip of CIFAR, and those behind.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.
        where: Who asks, for errors.
        before: Done first.
        behind: Done last.
    """
    at_least(size, 1, "size", where=where)
    at_least(padding, 0, "padding", where=where)
    v2 = _v2()
    crop = v2.RandomCrop(size, padding=padding or None, fill=mask_fill())
    return v2.Compose([*before, crop, v2.RandomHorizontalFlip(), *behind])


def crop_flip(*, size: int = 32, padding: int = 4) -> Any:
    """Crop from the image with a black border, and flip half of them: the standard augmentation of CIFAR.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, section 4.2.
    """
    return cropped_and_flipped(size, padding, "transform crop-flip")


def crop_flip_jitter_erase(
    *,
    size: int = 32,
    padding: int = 4,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    erase: float = 0.25,
) -> Any:
    """Crop, flip, change the colours, and blacken a rectangle of some images.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.
        brightness: Greatest relative change, 0 to 1.
        contrast: Likewise.
        saturation: Likewise.
        erase: Probability of a blackened rectangle.

    Source: Zhong, Zheng, Kang, Li, Yang, "Random Erasing Data Augmentation", 2017, https://arxiv.org/abs/1708.04896;
    black instead of noise.
    """
    where = "transform crop-flip-jitter-erase"
    for name, value in (
        ("brightness", brightness),
        ("contrast", contrast),
        ("saturation", saturation),
        ("erase", erase),
    ):
        between(value, 0, 1, name, where=where)
    v2 = _v2()
    jitter = v2.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation)
    return cropped_and_flipped(size, padding, where, behind=[jitter, v2.RandomErasing(p=erase)])


def rand_augment(*, size: int = 32, padding: int = 4, num_ops: int = 2, magnitude: int = 9) -> Any:
    """Crop, flip, and apply some random operations of one strength.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.
        num_ops: Operations an image.
        magnitude: Strength, 0 to 30.

    Source: Cubuk, Zoph, Shlens, Le, "RandAugment", 2019, https://arxiv.org/abs/1909.13719.
    """
    where = "transform rand-augment"
    at_least(num_ops, 1, "num_ops", where=where)
    between(magnitude, 0, 30, "magnitude", where=where)
    drawn = _v2().RandAugment(num_ops=num_ops, magnitude=magnitude)
    return cropped_and_flipped(size, padding, where, behind=[drawn])


def auto_augment(
    *, size: int = 32, padding: int = 4, policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"
) -> Any:
    """Crop, flip, and apply one of 25 pairs of operations that were searched for on a data set.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.
        policy: The data set: cifar10, imagenet or svhn.

    Source: Cubuk, Zoph, Mane, Vasudevan, Le, "AutoAugment", 2018, https://arxiv.org/abs/1805.09501; policies as in torchvision.
    """
    where = "transform auto-augment"
    v2 = _v2()
    known = {each.value: each for each in v2.AutoAugmentPolicy}
    drawn = v2.AutoAugment(known[choose(policy, list(known), "policy", where=where)])
    return cropped_and_flipped(size, padding, where, behind=[drawn])


def trivial_augment(*, size: int = 32, padding: int = 4) -> Any:
    """Crop, flip, and apply one random operation of random strength, with nothing to tune.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.

    Source: Mueller, Hutter, "TrivialAugment", 2021, https://arxiv.org/abs/2103.10158, with its wide ranges.
    """
    return cropped_and_flipped(size, padding, "transform trivial-augment", behind=[_v2().TrivialAugmentWide()])


def random_resized_crop(*, size: int = 224, min_area: float = 0.08, flip: float = 0.5) -> Any:
    """Cut out a part of random area and shape, resize it, and flip some: the standard augmentation of ImageNet.

    Args:
        size: Side of the result in pixels.
        min_area: Least share of the image's area, above 0, at most 1.
        flip: Probability of a flip.

    Source: Szegedy and others, "Going Deeper with Convolutions", 2014, section 6, https://arxiv.org/abs/1409.4842.
    """
    where = "transform random-resized-crop"
    at_least(size, 1, "size", where=where)
    between(min_area, 1e-6, 1, "min_area", where=where)
    between(flip, 0, 1, "flip", where=where)
    v2 = _v2()
    crop = v2.RandomResizedCrop(size, scale=(min_area, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip)])
