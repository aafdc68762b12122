"""The generators that a transform may draw from: saved, seeded for each view, and put back."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["isolated", "seed_all"]

# The generators belong to the whole process, so two threads must not replay at the same time.
_LOCK = threading.RLock()


def _new_lock() -> None:
    global _LOCK
    _LOCK = threading.RLock()


# A worker forked while another thread replays would inherit a lock that nobody opens.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def isolated() -> Iterator[None]:
    """Save the global generators of torch (CPU), numpy and random, run on one thread, put everything back.

    One thread, because a sum inside a transform (the mean of ColorJitter) may depend on how it is split. Saving and
    restoring costs about 0.1 ms: enter once a batch, call `seed_all` once a view.

    >>> before = torch.initial_seed(), random.getstate()
    >>> with isolated():
    ...     seed_all(7)
    >>> (torch.initial_seed(), random.getstate()) == before
    True
    """
    with _LOCK:
        states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
        threads = torch.get_num_threads()
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)
            torch.default_generator.set_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])


def seed_all(seed: int) -> None:
    """Seed the global CPU generators of torch, numpy and random; to be called inside `isolated`.

    Args:
        seed: 0 to 2**64 - 1. torch and numpy run the same algorithm from 32 bits of a seed, so they get different
            halves: with the same half they would draw the same numbers.
    """
    # torch.manual_seed also visits every other device and costs a hundred times as much.
    torch.default_generator.manual_seed(seed & 0xFFFFFFFF)
    np.random.seed(seed >> 32)
    random.seed(seed)
