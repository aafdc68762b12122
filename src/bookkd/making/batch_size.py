"""A batch size for a pass that nobody chose one for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bookkd.core.errors import DeviceError, expected
from bookkd.core.memory import available_memory, forget_peak_memory, peak_memory

__all__ = ["find_batch_size"]

_TRIED = 8
"""Views of the pass by which the memory of a batch is estimated."""


def find_batch_size(forward: Callable[..., object], view: Tensor, *more: Tensor, most: int = 256) -> int:
    """Return `most`, halved until a batch fits into memory.

    Not the fastest: speeds differ from one run to the next, and the batch is part of what a book is, so that two runs of one
    command would give books of two digests. Where the system says how much memory a process takes (Linux), a pass of 8 views comes
    first, and a batch may take half of what is free by it: a system that has no more ends processes, and no error tells.

    Args:
        forward: Passes a batch through the teacher.
        view: One view, [channels, height, width] or any shape; repeated to make batches.
        more: What the network takes behind it, of one record too.
        most: Samples of a batch where memory is enough.

    Raises:
        DeviceError: if not even one view fits into memory.

    >>> find_batch_size(torch.nn.Linear(4, 2), torch.zeros(4))
    256
    """
    size = _by_memory(forward, (view, *more), most)
    while size:
        if _fits(forward, (view, *more), size):
            return size
        size //= 2
    do = "Use a device with more memory, or a smaller network."
    raise DeviceError(expected("memory", "enough for one view at least", "none left", where="batch size", do=do))


def _by_memory(forward: Callable[..., object], record: Sequence[Tensor], most: int) -> int:
    """Return `most`, halved until such a batch takes half of the free memory by what a small one takes."""
    free = available_memory()
    if free is None or not forget_peak_memory():
        return most
    before = peak_memory() or 0
    if not _fits(forward, record, _TRIED):
        return _TRIED
    each, size = max(0, (peak_memory() or 0) - before) / _TRIED, most
    while size > 1 and each * size > free / 2:
        size //= 2
    return size


def _fits(forward: Callable[..., object], record: Sequence[Tensor], size: int) -> bool:
    try:
        with torch.inference_mode():
            forward(*(each.unsqueeze(0).expand(size, *each.shape).contiguous() for each in record))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:  # the allocators of processors and of MPS have no class for it
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        return False
    return True
