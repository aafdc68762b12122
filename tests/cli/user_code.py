"""What a user brings: networks, data sets, transforms and methods, some of them broken, and code that records the picks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from bookkd.core.protocols import Needs
from bookkd.methods import Supervised
from bookkd.zoo import open_dataset


class Linear(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


class SaysNan(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said = super().forward(x)
        said[-1, 3] = float("nan")
        return said


def wide(n_classes: int) -> nn.Module:
    return Linear(n_classes + 2)


def shifted_labels(split: str = "train"):
    digits = open_dataset("digits", split=split, limit=96)
    return Labelled([(image, label + 5) for image, label in digits], digits.class_names)


def other_pixels(split: str = "train"):
    digits = open_dataset("digits", split=split, limit=96)
    return Labelled([(255 - image, label) for image, label in digits], digits.class_names)


def numbered(split: str = "train"):
    """Four digits whose keys are their numbers."""
    digits = open_dataset("digits", limit=4)
    found = Labelled(list(digits), digits.class_names)
    found.keys = np.arange(4, dtype=np.uint64)
    return found


class Labelled:
    def __init__(self, items: list, class_names: tuple[str, ...]) -> None:
        self.items = items
        self.class_names = class_names
        self.labels = np.array([label for _, label in items])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def jitter(**_):
    return Jitter()


class Jitter:
    """A user transform that draws with `random` and numpy; `drift` stands for a library that draws otherwise."""

    drift = 0

    def __repr__(self) -> str:
        return "Jitter()"

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        moved = torch.roll(image, random.randint(-1, 1) + self.drift, -1)
        return (moved.float() + float(np.random.uniform(0, 8))).clamp(0, 255).to(torch.uint8)


def stateful(**_):
    return Stateful()


class Stateful:
    def __init__(self) -> None:
        self.calls = 0

    def __repr__(self) -> str:
        return "Stateful()"

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (image.int() + self.calls).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class MyMethod(Supervised):
    name: ClassVar[str] = "tests.cli.user_code:MyMethod"


@dataclass(frozen=True)
class AsksForFeatures(Supervised):
    """A method that no book of ours can serve."""

    name: ClassVar[str] = "asks-for-features"

    def needs(self, task) -> Needs:
        return Needs({"features/last": ()})
