"""Augmentations: shapes, replay from the generators that a view seeds, pickling, bad arguments."""

from __future__ import annotations

import pickle

import pytest
import torch
from tests.zoo import cases

from bookkd.core.errors import ConfigError, UnknownNameError
from bookkd.zoo import TRANSFORMS, create_transform


def own(shift: int = 1):
    return Shift(shift)


class Shift:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image + self.by


def not_made() -> torch.Tensor:
    return torch.zeros(1)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_every_name_has_a_case():
    assert set(TRANSFORMS) == set(cases.TRANSFORMS)


@pytest.mark.parametrize(("name", "args", "before", "after"), [(name, *row) for name, row in cases.TRANSFORMS.items()])
def test_kind_replay_and_pickle(name: str, args: dict, before: tuple, after: tuple):
    transform = create_transform(name, args)
    image = noise(*before)
    kept = image.clone()
    drawn = []
    for each in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(4)
        drawn.append(torch.stack([each(image) for _ in range(8)]))
    assert drawn[0].shape == (8, *after)
    assert drawn[0].dtype == torch.uint8
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(image, kept)
    varied = len({bytes(each.numpy()) for each in drawn[0]})
    assert varied == 1 if name == "none" else varied > 4


def test_crop_flip_moves_by_at_most_the_padding():
    image = noise(1, 6, 6)
    framed = torch.nn.functional.pad(image, (2, 2, 2, 2))
    crops = {
        bytes(part[:, y : y + 6, x : x + 6].contiguous().numpy())
        for y in range(5)
        for x in range(5)
        for part in (framed, framed.flip(2))
    }
    transform = create_transform("crop-flip", {"size": 6, "padding": 2})
    torch.manual_seed(0)
    assert {bytes(transform(image).contiguous().numpy()) for _ in range(300)} <= crops


def test_digits_stay_in_place_when_nothing_may_move():
    image = noise(1, 8, 8)
    still = create_transform("digits", {"degrees": 0, "shift": 0, "scale": 0})
    assert torch.equal(still(image), image)


def test_own_code():
    assert create_transform(f"{__name__}:own", {"shift": 2})(torch.tensor([1])).tolist() == [3]


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        ("crop-flp", None, UnknownNameError, r"Unknown transform 'crop-flp'. Nearest: crop-flip"),
        ("crop-flip", {"pad": 1}, ConfigError, r"that it takes \(padding, size\), got \{'pad': 1\}"),
        (
            "crop-flip",
            {"size": 0},
            ConfigError,
            r"`size` to be a whole number of at least 1, got 0 \(transform crop-flip\)",
        ),
        ("digits", {"degrees": 181}, ConfigError, r"`degrees` to be between 0 and 180"),
        ("digits", {"scale": 1}, ConfigError, r"`scale` to be between 0 and 0.99"),
        ("crop-flip-jitter-erase", {"erase": 1.5}, ConfigError, r"`erase` to be between 0 and 1"),
        ("rand-augment", {"magnitude": 31}, ConfigError, r"`magnitude` to be between 0 and 30"),
        ("random-resized-crop", {"min_area": 0}, ConfigError, r"`min_area` to be between"),
        (f"{__name__}:not_made", None, ConfigError, r"Name the class or a function that makes the transform"),
        (f"{__name__}:__doc__", None, ConfigError, r"a callable that returns a transform"),
    ],
)
def test_refusals(name: str, args: dict | None, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        create_transform(name, args)
