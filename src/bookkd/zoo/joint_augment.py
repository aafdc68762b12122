"""JDA: fourteen operations in a fixed order and of fixed strengths, each drawn for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bookkd.core.check import between
from bookkd.core.names import choose, require
from bookkd.zoo.transforms import cropped_and_flipped

__all__ = ["JointAugment", "jda"]

GREY = 128.0
_LEVELS = 9
_GREATEST = {
    "brightness": 0.9, "contrast": 0.9, "colour": 0.9, "sharpness": 0.9, "rotate": 30.0, "shear": 0.3, "translate": 150 / 331
}  # fmt: skip
"""Strength at the highest level: change of a factor, degrees, and shares of the side."""
POLICIES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "cifar10": (
        ("invert", 7), ("rotate", 2), ("shear-y", 8), ("posterize", 9), ("autocontrast", 8), ("colour", 3), ("sharpness", 9),
        ("equalize", 5), ("contrast", 7), ("translate-y", 3), ("brightness", 6), ("solarize", 2), ("translate-x", 3),
        ("shear-x", 8),
    ),
    "cifar100": (
        ("autocontrast", 2), ("contrast", 3), ("posterize", 0), ("solarize", 4), ("translate-y", 8), ("shear-x", 5),
        ("brightness", 3), ("shear-y", 0), ("translate-x", 1), ("sharpness", 5), ("invert", 4), ("colour", 4), ("equalize", 8),
        ("rotate", 3),
    ),
}  # fmt: skip
"""Policy -> operations in their order, with the level of their strength, 0 to 9; the authors' code."""
PROBABILITIES = {"cifar10": 0.5, "cifar100": 0.3}


class JointAugment:
    """Apply each operation of a policy with one probability, in its order, to a uint8 image [3, height, width].

    Draws from torch's global generator, which a view seeds.

    Args:
        policy: A name of `POLICIES`.
        probability: Of each operation, 0 to 1.

    >>> image = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    >>> torch.equal(JointAugment("cifar10", 0.0)(image), image)
    True
    """

    def __init__(self, policy: str, probability: float) -> None:
        self.policy, self.probability = choose(policy, POLICIES, "policy"), probability

    def __repr__(self) -> str:
        return f"JointAugment({self.policy!r}, {self.probability})"

    def __call__(self, image: Tensor) -> Tensor:
        functional = require("torchvision.transforms.v2.functional", "train")
        # As many draws whatever is taken, so that an operation does not hang on those before it.
        draws = torch.rand(2, len(POLICIES[self.policy])).tolist()
        for (name, level), taken, side in zip(POLICIES[self.policy], *draws, strict=True):
            if taken < self.probability:
                image = _apply(functional, name, image, level / _LEVELS, 1 if side < 0.5 else -1)
        return image


def _apply(functional: Any, name: str, image: Tensor, share: float, sign: int) -> Tensor:
    kind, _, axis = name.partition("-")
    if kind in ("shear", "translate", "rotate"):
        return _moved(functional, kind, axis, image, share * _GREATEST[kind], sign)
    factors: dict[str, Callable[[Tensor, float], Tensor]] = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "colour": functional.adjust_saturation,
        "sharpness": functional.adjust_sharpness,
    }
    if kind in factors:
        return factors[kind](image, 1 + sign * share * _GREATEST[kind])
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "autocontrast": functional.autocontrast,
        "equalize": functional.equalize,
        "invert": functional.invert,
        "posterize": lambda given: functional.posterize(given, round(8 - 4 * share)),
        # A level of 0 leaves all below 256 alone.
        "solarize": lambda given: functional.solarize(given, 256 * (1 - share)),
    }
    return plain[kind](image)


def _moved(functional: Any, kind: str, axis: str, image: Tensor, amount: float, sign: int) -> Tensor:
    height, width = image.shape[-2:]
    options: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    if kind == "rotate":
        options["angle"] = -amount  # counter-clockwise in the source, clockwise here
    elif kind == "translate":
        moved = sign * amount
        options["translate"] = [round(moved * width), 0] if axis == "x" else [0, round(moved * height)]
    else:
        degrees = sign * float(torch.rad2deg(torch.atan(torch.tensor(amount))))
        options["shear"] = [degrees, 0.0] if axis == "x" else [0.0, degrees]
    found: Tensor = functional.affine(
        image, **options, interpolation=functional.InterpolationMode.BILINEAR, fill=[GREY] * image.shape[-3]
    )
    return found


def jda(
    *,
    size: int = 32,
    padding: int = 4,
    policy: Literal["cifar10", "cifar100"] = "cifar10",
    probability: float | None = None,
) -> Any:
    """Apply each of fourteen operations with one probability, then crop and flip: JDA, joint data augmentation.

    Args:
        size: Side of the crop in pixels.
        padding: Width of the border in pixels.
        policy: Order and strengths, cifar10 or cifar100.
        probability: Of each operation, 0 to 1; that of the policy where None, 0.5 and 0.3.

    Source: Li, Shao, Qiu, Song, "What Role Does Data Augmentation Play in Knowledge Distillation?", ACCV 2022, and its
    code: order, strengths and probabilities. Turns, shears and shifts are bilinear and about the middle, by torchvision;
    there they are bicubic or nearest and shears hold the upper left corner.
    """
    where = "transform jda"
    choose(policy, POLICIES, "policy", where=where)
    chosen = PROBABILITIES[policy] if probability is None else probability
    return cropped_and_flipped(
        size, padding, where, before=[JointAugment(policy, between(chosen, 0, 1, "probability", where=where))]
    )
