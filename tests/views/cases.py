"""Data sets and transforms of the tests of views; module level, so that spawned workers can import them."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

SIZE = 12
N = 24


def pixels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


class Images:
    """PIL images, uint8 tensors, float tensors or arrays, with labels index % 5."""

    def __init__(self, kind: str = "uint8", n: int = N) -> None:
        self.kind, self.n = kind, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        array = pixels(index)
        chw = torch.from_numpy(array).permute(2, 0, 1).contiguous()
        image = {
            "pil": lambda: Image.fromarray(array),
            "uint8": lambda: chw,
            "float": lambda: chw.float() / 255,
            "array": lambda: array,
        }[self.kind]()
        return image, index % 5


class Masks(Images):
    """Images whose label is a mask with the classes drawn in the image itself."""

    def __getitem__(self, index: int):
        image, _ = super().__getitem__(index)
        return image, tv_tensors.Mask(image[0].long())


def user_random(image: torch.Tensor) -> torch.Tensor:
    return torch.roll(image, random.randrange(SIZE), -1)


def user_numpy(image: np.ndarray) -> np.ndarray:
    return (image * np.random.uniform(0.5, 1.0)).astype(np.uint8)[:, ::-1]


class OwnsGenerator:
    """A transform that does not replay: its generator is its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.roll(image, int(self.rng.integers(SIZE)), -1)


class Counts:
    """A transform that does not replay: it depends on how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return image + self.calls % 2


def in_place(image: torch.Tensor) -> torch.Tensor:
    return image.add_(1)


def _pipeline(*last):
    return v2.Compose(
        [
            v2.RandomResizedCrop(10, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandAugment(),
            *last,
            v2.RandomErasing(p=0.5),
        ]
    )


def _float_pipeline():
    return v2.Compose(
        [
            v2.RandomResizedCrop(10, antialias=True),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandAugment(),
            v2.GaussianNoise(),
            v2.RandomErasing(p=0.5, value="random"),
        ]
    )


class Dispatch:
    """All pipelines in one, by the first pixel, with views of one form: few spawned workers then cover them all."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        kind, transform = list(PIPELINES.values())[int(image[0, 0, 0]) % len(PIPELINES)]
        array = image.permute(1, 2, 0).contiguous().numpy()
        given = {"pil": Image.fromarray(array), "uint8": image, "float": image / 255, "array": array}[kind]
        view = torch.as_tensor(np.ascontiguousarray(transform(given)), dtype=torch.float32)
        return view.reshape(-1)[:300].clone()


PIPELINES = {
    "uint8": ("uint8", _pipeline()),
    "float": ("float", _float_pipeline()),
    "pil": ("pil", _pipeline(v2.ToImage(), v2.ToDtype(torch.float32, scale=True))),
    "user random": ("uint8", user_random),
    "user numpy": ("array", user_numpy),
}
