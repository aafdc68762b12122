"""Images with one class at every pixel: in memory, and drawn shapes that need no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose, require
from bookkd.core.rng import generator

__all__ = ["MaskDataset", "as_mask", "check_mask", "shapes"]


def as_mask(classes: npt.NDArray[Any] | Tensor) -> Tensor:
    """Return classes [height, width] as torchvision's `Mask`, int64, which transforms move along with the image."""
    mask: Tensor = require("torchvision.tv_tensors", "train").Mask(torch.as_tensor(classes, dtype=torch.int64))
    return mask


def check_mask(mask: npt.NDArray[Any], size: Sequence[int], n_classes: int, where: str) -> None:
    """Refuse a mask of another size than its image, and ids that are no class.

    Args:
        mask: Classes [height, width], `IGNORE_LABEL` where void.
        size: Height and width of the image.
        n_classes: Number of classes.
        where: The file or sample, for the error.

    Raises:
        DataError: naming it.

    >>> check_mask(np.array([[0, 7]]), (1, 2), 3, "a.png")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.DataError: Expected `mask` to be of classes 0 to 2, or void, got 7 (a.png; 1 of 2 pixels). \
Name the classes of all ids, or give the id as void.
    """
    if mask.shape != tuple(size):
        do = "Bring both to one size, the mask without interpolation."
        raise DataError(expected("mask", f"{list(size)} pixels as its image", list(mask.shape), where=where, do=do))
    wrong = (mask >= n_classes) | ((mask < 0) & (mask != IGNORE_LABEL))
    if wrong.any():
        place = f"{where}; {int(wrong.sum())} of {wrong.size} pixels"
        do = "Name the classes of all ids, or give the id as void."
        wish = f"of classes 0 to {n_classes - 1}, or void"
        raise DataError(expected("mask", wish, int(mask[wrong][0]), where=place, do=do))


@dataclass(frozen=True, eq=False)
class MaskDataset:
    """Images with one class at every pixel, in memory.

    Args:
        name: Name of the set.
        images: uint8 [n, channels, height, width].
        masks: Classes [n, height, width], whole numbers; `IGNORE_LABEL` where void.
        class_names: One name a class.

    Raises:
        DataError: for masks of another size, or ids that are no class, naming the sample.

    >>> data = MaskDataset("mine", torch.zeros(1, 3, 2, 2, dtype=torch.uint8), np.zeros((1, 2, 2), np.int8), ("a", "b"))
    >>> data[0][1].shape, data[0][1].dtype
    (torch.Size([2, 2]), torch.int64)
    """

    name: str
    images: Tensor
    masks: npt.NDArray[Any]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(expected("images", "uint8 [n, channels, height, width]", got, where=self.name))
        if self.masks.ndim != 3 or self.masks.dtype.kind not in "iu" or len(self.masks) != len(self.images):
            got = f"{self.masks.dtype} {self.masks.shape}"
            raise DataError(
                expected("masks", f"{len(self.images)} of whole numbers, one an image", got, where=self.name)
            )
        for sample, mask in enumerate(self.masks):
            check_mask(mask, self.images.shape[-2:], len(self.class_names), f"{self.name}, sample {sample}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], as_mask(self.masks[index])


SHAPES = ("background", "disc", "square", "triangle")


def shapes(
    *, split: str = "train", n: int | None = None, height: int = 32, width: int = 48, void: bool = True
) -> MaskDataset:
    """Draw discs, squares and triangles of any colour on a noisy background; a pixel around each is void, as in VOC.

    Args:
        split: "train" (200 images), "test" (60) or "all", both.
        n: Images of the split, in place of these.
        height: Of an image, at least 16.
        width: Likewise.
        void: Whether the border of a shape is of no class.

    Returns:
        Images [3, height, width] of two or three shapes each; the same on every machine.

    >>> data = shapes(split="test", n=4)
    >>> len(data), data.class_names, data[0][0].shape
    (4, ('background', 'disc', 'square', 'triangle'), torch.Size([3, 32, 48]))
    """
    choose(split, ("train", "test", "all"), "split", where="data set shapes")
    for name, side in (("height", height), ("width", width)):
        at_least(side, 16, name, where="data set shapes")
    counts = {"train": (200,), "test": (60,), "all": (200, 60)}[split]
    parts = zip(("train", "test") if split == "all" else (split,), counts, strict=True)
    drawn = [_drawn(part, count if n is None else at_least(n, 1, "n"), height, width, void) for part, count in parts]
    images, masks = (np.concatenate(each) for each in zip(*drawn, strict=True))
    return MaskDataset("shapes", torch.from_numpy(images), masks, SHAPES)


def _drawn(
    split: str, n: int, height: int, width: int, void: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int8]]:
    draws = generator(0, f"shapes {split}")
    down, right = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    images, masks = np.empty((n, 3, height, width), np.uint8), np.zeros((n, height, width), np.int8)
    for image, mask in zip(images, masks, strict=True):
        image[:] = draws.integers(40, 120, size=(3, 1, 1)) + draws.integers(-30, 31, size=(3, height, width))
        for _ in range(int(draws.integers(2, 4))):
            kind, radius = int(draws.integers(1, 4)), float(draws.uniform(4, min(height, width) / 4))
            middle = draws.uniform(radius, height - radius), draws.uniform(radius, width - radius)
            far = _distance(kind, down - middle[0], right - middle[1])
            colour = draws.integers(90, 256, size=(3, 1))
            inside = far <= radius
            image[:, inside] = np.clip(colour + draws.integers(-30, 31, size=(3, int(inside.sum()))), 0, 255)
            mask[inside] = kind
            if void:
                mask[np.abs(far - radius) < 0.5] = IGNORE_LABEL
    return images, masks


def _distance(kind: int, down: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return how far pixels are from the middle of a shape, as its radius counts."""
    if kind == 1:
        far = np.hypot(down, right)
    elif kind == 2:
        far = np.maximum(np.abs(down), np.abs(right)) * 1.15
    else:
        far = np.maximum(down * 1.6, np.abs(right) * 1.4 - down * 0.7)
    return np.asarray(far)
