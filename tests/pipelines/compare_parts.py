"""Parts of a user's own that sweeps of the tests name: a network that can be made to fail, data whose test split tells."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import torch
from torch import nn

from bookkd.zoo import SubsetDataset, create_network, open_dataset

BREAK = "BOOKKD_TEST_BREAK"
"""Environment variable: "raise" or "kill" (workers alone) while the fragile network learns."""


class Fragile(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.inner = create_network("digits-small", n_classes=n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and os.environ.get(BREAK) == "raise":
            raise RuntimeError("the network\nbroke")
        if self.training and os.environ.get(BREAK) == "kill" and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)


def fragile(n_classes: int) -> nn.Module:
    return Fragile(n_classes)


class Guarded:
    """Samples that may not be looked at but for the first, which says the shape; labels may, since the task checks them."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.class_names, self.labels, self.name = inner.class_names, inner.labels, "guarded"

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int):
        if index == 0:
            return self.inner[0]
        raise AssertionError("the test split was looked at")


def three_parts(split: str = "train"):
    """Digits with a split to choose on, which is other samples than the two of the zoo."""
    found = open_dataset("digits", split="test" if split == "test" else "train")
    places = {"train": range(128), "valid": range(128, 192), "test": range(len(found))}
    return SubsetDataset(found, np.array(places[split]))


def guarded(split: str = "train"):
    found = open_dataset("digits", split=split, limit=120)
    return Guarded(found) if split == "test" else found
