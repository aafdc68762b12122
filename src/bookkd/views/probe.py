"""Probes: a small fingerprint of the exact input that a network saw, and its comparison.

A probe is an exact hash and two random-sign projections. The hash proves equality; where it differs, the projections
say by how much, since another processor or library may round a pixel differently without making another view.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import xxhash
from torch import Tensor

from bookkd.core.rng import draw64

__all__ = ["probe"]

_CHUNK = 2**17
"""Elements projected at a time: 1 MiB of float64 stays in the cache."""
_GRID = 2.0**24


@lru_cache(maxsize=8)
def _signs(size: int) -> Tensor:
    """Return the two sign vectors of a view of `size` elements, shape [2, size], float64."""
    words = draw64(0, "probe", [size], [0], -(-2 * size // 64))[0]
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=2 * size, bitorder="little")
    return torch.from_numpy(bits.astype(np.float64) * 2 - 1).reshape(size, 2).T.contiguous()


def _hashes(views: Tensor) -> list[int]:
    form = xxhash.xxh3_64(f"{views.dtype}{tuple(views.shape[1:])}".encode())
    rows = views.reshape(len(views), -1).view(torch.uint8).numpy()
    out = []
    for row in rows:
        state = form.copy()
        state.update(row)
        out.append(state.intdigest())
    return out


def _project(views: Tensor) -> Tensor:
    flat = views.reshape(len(views), -1)
    size = flat.shape[1]
    signs = _signs(size)
    grid = _GRID if views.is_floating_point() else 1.0
    step = max(1, _CHUNK // max(1, size))
    sums = torch.empty(len(flat), 2, dtype=torch.float64)
    for start in range(0, len(flat), step):
        # Rounded to a grid of 2**-24, the terms are whole numbers and their float64 sum is exact in any order.
        part = flat[start : start + step].to(torch.float64, copy=True)
        sums[start : start + step] = (part.mul_(grid).round_() if grid != 1 else part) @ signs.T
    scale = grid * max(1, size) ** 0.5 * (255 if views.dtype == torch.uint8 else 1)
    sums /= scale
    return sums


def probe(views: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Fingerprint each view: hash_i = xxh3_64(dtype, shape, bytes), projections_ik = sum_j s_kj x_j / sqrt(size).

    s is +1 or -1, a function of the number of elements alone; x is the value, or value / 255 for uint8, so that the
    projections of an ordinary image are of order 1. A change of one element by d moves them by d / sqrt(size);
    independent rounding noise of standard deviation e moves them by about e.

    Args:
        views: A batch, shape [n, ...], or a list of n views of any shapes; on the CPU.

    Returns:
        The hashes, int64 [n] (bit pattern of the unsigned number), and the projections, float64 [n, 2]; both depend
        on each view alone, not on the batch it stands in.

    >>> hashes, projections = probe(torch.zeros(2, 3, 4, 4))
    >>> hashes.shape, projections.tolist()
    (torch.Size([2]), [[0.0, 0.0], [0.0, 0.0]])
    """
    if not isinstance(views, Tensor):
        forms = {(view.shape, view.dtype) for view in views}
        if len(forms) != 1:
            parts = [probe(view[None]) for view in views]
            empty = torch.empty(0, dtype=torch.int64), torch.empty(0, 2, dtype=torch.float64)
            hashes, projections = zip(*parts, strict=True) if parts else ((empty[0],), (empty[1],))
            return torch.cat(hashes), torch.cat(projections)
        views = torch.stack(list(views))
    views = views.detach().contiguous()
    return torch.from_numpy(np.array(_hashes(views), dtype=np.uint64).view(np.int64)), _project(views)
