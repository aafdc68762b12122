"""Finding a batch size for a pass that nobody chose one for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bookkd.core.errors import DeviceError, expected

__all__ = ["find_batch_size"]


def find_batch_size(
    forward: Callable[[Tensor], object],
    view: Tensor,
    *,
    candidates: tuple[int, ...] = (32, 64, 128, 256, 512),
    gain: float = 1.05,
    seconds: float = 5.0,
) -> int:
    """Return the smallest candidate that the next larger one does not beat by `gain` in samples a second.

    Args:
        forward: Passes a batch through the teacher.
        view: One view, [channels, height, width] or any shape; repeated to make batches.
        candidates: Batch sizes, increasing.
        gain: Least speed-up that makes a larger batch worth its memory.
        seconds: Stop trying larger batches once this much time was spent.

    Returns:
        One of `candidates`; the last that fitted where memory ran out, or a half, quarter... of the first where that did
        not fit.

    Raises:
        DeviceError: if not even one view fits into memory.
    """
    best, best_speed, started = 0, 0.0, time.perf_counter()
    for size in candidates:
        speed = _speed(forward, view, size, warm=best == 0)
        if speed is None or speed < best_speed * gain:
            break
        best, best_speed = size, speed
        if time.perf_counter() - started > seconds:
            break
    return best or _largest_that_fits(forward, view, candidates[0] // 2)


def _largest_that_fits(forward: Callable[[Tensor], object], view: Tensor, size: int) -> int:
    while size:
        if _speed(forward, view, size, warm=False) is not None:
            return size
        size //= 2
    do = "Use a device with more memory, or a smaller network."
    raise DeviceError(expected("memory", "enough for one view at least", "none left", where="batch size", do=do))


def _speed(forward: Callable[[Tensor], object], view: Tensor, size: int, *, warm: bool) -> float | None:
    """Return samples a second; None where memory runs out."""
    try:
        batch = view.unsqueeze(0).expand(size, *view.shape).contiguous()
        with torch.inference_mode():
            if warm:
                forward(batch)
            begun = time.perf_counter()
            forward(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return size / (time.perf_counter() - begun)
    except (torch.OutOfMemoryError, MemoryError):
        return None
