"""A batch size for a pass that nobody chose one for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bookkd.core.errors import DeviceError, expected

__all__ = ["find_batch_size"]


def find_batch_size(forward: Callable[[Tensor], object], view: Tensor, *, most: int = 256) -> int:
    """Return `most`, halved until a batch fits into memory.

    Not the fastest: speeds differ from one run to the next, and the batch is part of what a book is, so that two runs of one
    command would give books of two digests.

    Args:
        forward: Passes a batch through the teacher.
        view: One view, [channels, height, width] or any shape; repeated to make batches.
        most: Samples of a batch where memory is enough.

    Raises:
        DeviceError: if not even one view fits into memory.

    >>> find_batch_size(torch.nn.Linear(4, 2), torch.zeros(4))
    256
    """
    size = most
    while size:
        if _fits(forward, view, size):
            return size
        size //= 2
    do = "Use a device with more memory, or a smaller network."
    raise DeviceError(expected("memory", "enough for one view at least", "none left", where="batch size", do=do))


def _fits(forward: Callable[[Tensor], object], view: Tensor, size: int) -> bool:
    try:
        with torch.inference_mode():
            forward(view.unsqueeze(0).expand(size, *view.shape).contiguous())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except (torch.OutOfMemoryError, MemoryError):
        return False
    return True
