"""Two sets made of scikit-learn's digits, for tasks of several labels and of numbers: no download, the same on every machine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from bookkd.core.names import choose
from bookkd.core.rng import draw64
from bookkd.zoo.digits import digits
from bookkd.zoo.images import ArrayDataset, VectorDataset

__all__ = ["digits_angle", "digits_pairs"]

_SPLITS = ("train", "test", "all")
MOST = math.pi / 4


def digits_pairs(*, split: str = "train") -> VectorDataset:
    """Read pairs of digits side by side; the labels say which of the ten digits occur: one or two of them.

    The left digit of sample i is digit i of the split, the right one is drawn from the same split.

    Args:
        split: "train" (1,297 images), "test" (500) or "all", both.

    Returns:
        Images [1, 8, 16]; labels int64 [n, 10] of 0 and 1.
    """
    images, labels = [], []
    for part in _parts(split, "digits-pairs"):
        left = np.arange(len(part))
        right = (_draws(len(part), "digits pairs") % np.uint64(len(part))).astype(np.int64)
        images.append(torch.cat([part.images, part.images[torch.from_numpy(right)]], dim=-1))
        occurs = np.zeros((len(part), 10), dtype=np.int64)
        occurs[left, part.labels] = occurs[left, part.labels[right]] = 1
        labels.append(occurs)
    names = tuple(str(digit) for digit in range(10))
    return VectorDataset("digits-pairs", torch.cat(images), np.concatenate(labels), names)


def digits_angle(*, split: str = "train") -> VectorDataset:
    """Read digits that are turned about their centre; the label is the angle.

    Args:
        split: "train" (1,297 images), "test" (500) or "all", both.

    Returns:
        Images [1, 8, 8]; labels float32 [n, 1]: radians from -pi / 4 to pi / 4, counter-clockwise, drawn uniformly.
    """
    images, labels = [], []
    for part in _parts(split, "digits-angle"):
        # The upper 53 bits are what a float64 holds.
        share = (_draws(len(part), "digits angle") >> np.uint64(11)).astype(np.float64) * 2.0**-53
        angle = (2 * share - 1) * MOST
        turned = _turned(part.images[:, 0].numpy().astype(np.float64), angle)
        images.append(torch.from_numpy(np.rint(turned).astype(np.uint8)[:, None]))
        labels.append(angle.astype(np.float32)[:, None])
    return VectorDataset("digits-angle", torch.cat(images), np.concatenate(labels), ("angle",))


def _parts(split: str, name: str) -> list[ArrayDataset]:
    choose(split, _SPLITS, "split", where=f"data set {name}")
    return [digits(split=part) for part in (("train", "test") if split == "all" else (split,))]


def _draws(count: int, stream: str) -> npt.NDArray[np.uint64]:
    return draw64(0, stream, np.arange(count), np.zeros(count, dtype=np.int64))[:, 0]


def _turned(images: npt.NDArray[np.float64], angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return square images [n, side, side] turned by `angle` [n], bilinearly; what is moved in is black."""
    n, side, _ = images.shape
    middle = (side - 1) / 2
    down, right = np.meshgrid(np.arange(side) - middle, np.arange(side) - middle, indexing="ij")
    cos, sin = (function(angle)[:, None, None] for function in (np.cos, np.sin))
    # Where each pixel comes from: rows count downwards, so that the way back is clockwise.
    row, column = cos * down + sin * right + middle, cos * right - sin * down + middle
    top, left = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    bordered = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(images)
    for rows, share_down in ((top, 1 - (row - top)), (top + 1, row - top)):
        for columns, share_right in ((left, 1 - (column - left)), (left + 1, column - left)):
            # Everything outside lies on the black border.
            at = np.clip(rows + 1, 0, side + 1), np.clip(columns + 1, 0, side + 1)
            out += share_down * share_right * bordered[np.arange(n)[:, None, None], *at]
    return out
