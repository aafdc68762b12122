"""Finding a batch size for a pass that nobody chose one for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

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
        One of `candidates`; the last that fitted where memory ran out.
    """
    best, best_speed, started = candidates[0], 0.0, time.perf_counter()
    for size in candidates:
        batch = view.unsqueeze(0).expand(size, *view.shape).contiguous()
        try:
            with torch.inference_mode():
                if not best_speed:
                    forward(batch)
                begun = time.perf_counter()
                forward(batch)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                speed = size / (time.perf_counter() - begun)
        except (torch.OutOfMemoryError, MemoryError):
            break
        if speed < best_speed * gain:
            break
        best, best_speed = size, speed
        if time.perf_counter() - started > seconds:
            break
    return best
