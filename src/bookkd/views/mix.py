"""Mixed views: a view of one sample blended with, or partly replaced by, a view of another.

Partner, ratio and box are functions of (seed, sample, view), so the teacher's output on the mixed input can be stored
and the student sees the same mixture. The pool of partners is part of the recipe: a book that grows keeps its mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.rng import draw64, generator

__all__ = ["CutMix", "Mix", "MixUp", "draw_partners", "draw_ratio"]


def draw_partners(seed: int, samples: Sequence[int], views: Sequence[int], *, pool: int) -> npt.NDArray[np.int64]:
    """Draw the partner of each (sample, view), uniform over the rows 0 to pool - 1 without the sample itself.

    Args:
        seed: Seed of the views.
        samples: Rows of the book, shape [n].
        views: Shape [n].
        pool: Number of rows that may be partners; with 1 the only partner is row 0.

    Returns:
        Shape [n], int64.

    >>> draw_partners(0, [0, 1], [5, 5], pool=2).tolist()
    [1, 0]
    """
    rows = np.asarray(samples, dtype=np.int64)
    # The remainder of 64 random bits favours some rows by less than pool / 2**64.
    draws = draw64(seed, "partner", rows, np.asarray(views, dtype=np.int64))[:, 0]
    inside = (rows < pool) & (pool > 1)
    partners = (draws % np.where(inside, pool - 1, pool).astype(np.uint64)).astype(np.int64)
    return partners + (inside & (partners >= rows))


def draw_ratio(seed: int, sample: int, view: int, *, alpha: float) -> float:
    """Draw the ratio of one mixed view from Beta(alpha, alpha), rounded to float32 as the batch carries it.

    >>> 0 <= draw_ratio(0, 3, 1, alpha=1.0) <= 1
    True
    """
    return float(np.float32(generator(seed, "ratio", sample, view).beta(alpha, alpha)))


def _check(alpha: float, pool: int | None, where: str) -> None:
    positive(alpha, "alpha", where=where)
    if pool is not None:
        at_least(pool, 1, "pool", where=where)


def _same_form(own: Tensor, partner: Tensor, where: str) -> None:
    if own.shape != partner.shape or own.dtype != partner.dtype or own.ndim < 2:
        raise ConfigError(
            expected(
                "view",
                "of one shape [..., height, width] and one dtype for all samples",
                f"{own.dtype} {tuple(own.shape)} and {partner.dtype} {tuple(partner.shape)}",
                where=where,
                do="End the transform with a crop or resize to one size.",
            )
        )


@dataclass(frozen=True)
class MixUp:
    """Blend: mixed = ratio view(sample) + (1 - ratio) view(partner), ratio from Beta(alpha, alpha).

    A uint8 view is first brought to float32 between 0 and 1 (as torchvision's `ToDtype(scale=True)` does, which then
    leaves the mixture alone); a float view stays in its dtype. Other dtypes are refused.

    Args:
        alpha: Above 0; 1 draws the ratio uniformly.
        pool: Rows 0 to pool - 1 may be partners; None for all samples at the time of making.

    Source: Zhang et al. 2018, arXiv:1710.09412, eq. 1. Labels are not mixed: the teacher speaks about the mixture, and
    partner, its label and the ratio are in the batch. The partner is drawn per record, not by permuting a batch.
    """

    alpha: float
    pool: int | None = None
    name = "mixup"

    def __post_init__(self) -> None:
        _check(self.alpha, self.pool, "MixUp")

    def __call__(self, own: Tensor, partner: Tensor, *, seed: int, sample: int, view: int) -> tuple[Tensor, float]:
        """Return the mixed view and the share of the sample itself.

        Args:
            own: View of the sample, shape [..., height, width].
            partner: The same view number of the partner, same shape and dtype.
            seed: Seed of the views.
            sample: Row of the book.
            view: View number.

        >>> MixUp(1.0)(torch.ones(1, 2, 2), torch.ones(1, 2, 2), seed=0, sample=0, view=0)[0].sum().item()
        4.0
        """
        _same_form(own, partner, "MixUp")
        if own.dtype == torch.uint8:
            own, partner = own.to(torch.float32) / 255, partner.to(torch.float32) / 255
        if not own.is_floating_point():
            raise ConfigError(expected("view", "uint8 or float", str(own.dtype), where="MixUp"))
        ratio = draw_ratio(seed, sample, view, alpha=self.alpha)
        return own * ratio + partner * (1 - ratio), ratio


@dataclass(frozen=True)
class CutMix:
    """Replace a box of the view by the same box of the partner's view; any dtype.

    The box covers a share 1 - r of the area, r from Beta(alpha, alpha), its centre uniform over the pixels; it is
    clipped at the border. ratio = 1 - area of the clipped box / (height width), exactly.

    Args:
        alpha: Above 0; 1 draws the area uniformly.
        pool: Rows 0 to pool - 1 may be partners; None for all samples at the time of making.

    Source: Yun et al. 2019, arXiv:1905.04899, eq. 1 and 2 with the clipping of the authors' code. The partner is drawn
    per record, not by permuting a batch.
    """

    alpha: float
    pool: int | None = None
    name = "cutmix"

    def __post_init__(self) -> None:
        _check(self.alpha, self.pool, "CutMix")

    def box(self, *, seed: int, sample: int, view: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw the clipped box as (top, bottom, left, right), bottom and right exclusive."""
        side = (1 - draw_ratio(seed, sample, view, alpha=self.alpha)) ** 0.5
        draws = draw64(seed, "box", [sample], [view], 2)[0]
        middle = int(draws[0]) % height, int(draws[1]) % width
        half = int(height * side) // 2, int(width * side) // 2
        rows = max(0, middle[0] - half[0]), min(height, middle[0] + half[0])
        columns = max(0, middle[1] - half[1]), min(width, middle[1] + half[1])
        return (*rows, *columns)

    def __call__(self, own: Tensor, partner: Tensor, *, seed: int, sample: int, view: int) -> tuple[Tensor, float]:
        """Return the mixed view and the share of the sample itself; arguments as for `MixUp`.

        >>> mixed, ratio = CutMix(1.0)(torch.ones(1, 8, 8), torch.zeros(1, 8, 8), seed=0, sample=0, view=0)
        >>> mixed.mean().item() == ratio
        True
        """
        _same_form(own, partner, "CutMix")
        height, width = own.shape[-2:]
        top, bottom, left, right = self.box(seed=seed, sample=sample, view=view, height=height, width=width)
        mixed = own.clone()
        mixed[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
        return mixed, float(np.float32(1 - (bottom - top) * (right - left) / (height * width)))


Mix = MixUp | CutMix
