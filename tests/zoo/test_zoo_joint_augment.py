"""JDA: each operation against Pillow's, which the authors' code calls, its order and its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from bookkd.core.errors import ConfigError, UnknownNameError
from bookkd.zoo import create_transform, joint_augment
from bookkd.zoo.joint_augment import POLICIES, PROBABILITIES, JointAugment

GREY = (128, 128, 128)
PHOTO = np.uint8(np.random.default_rng(0).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1) * 0.6 + 30)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def one(monkeypatch, name: str, level: int) -> list[torch.Tensor]:
    """What one operation makes of the photo, of both signs."""
    monkeypatch.setitem(joint_augment.POLICIES, "one", ((name, level),))
    torch.manual_seed(0)
    image, transform = tensor(Image.fromarray(PHOTO)), JointAugment("one", 1.0)
    found = {bytes(each.contiguous().numpy()): each for each in (transform(image) for _ in range(12))}
    return list(found.values())


def shift(pixels: int, axis: int) -> Image.Image:
    matrix = (1, 0, pixels, 0, 1, 0) if axis == 0 else (1, 0, 0, 0, 1, pixels)
    return Image.fromarray(PHOTO).transform((32, 32), Image.AFFINE, matrix, fillcolor=GREY)


@pytest.mark.parametrize(
    ("name", "level", "references"),
    [
        ("autocontrast", 2, [ImageOps.autocontrast]),
        ("equalize", 8, [ImageOps.equalize]),
        ("invert", 4, [ImageOps.invert]),
        ("posterize", 9, [lambda image: ImageOps.posterize(image, 4)]),
        ("solarize", 4, [lambda image: ImageOps.solarize(image, 256 - 4 * 256 / 9)]),
        ("contrast", 3, [lambda image, by=by: ImageEnhance.Contrast(image).enhance(by) for by in (0.7, 1.3)]),
        ("brightness", 6, [lambda image, by=by: ImageEnhance.Brightness(image).enhance(by) for by in (0.4, 1.6)]),
        ("colour", 3, [lambda image, by=by: ImageEnhance.Color(image).enhance(by) for by in (0.7, 1.3)]),
        ("translate-x", 3, [lambda _, by=by: shift(by, 0) for by in (-5, 5)]),  # 3 / 9 of 150 / 331 of 32: 4.8 pixels
        ("translate-y", 8, [lambda _, by=by: shift(by, 1) for by in (-13, 13)]),
    ],
)
def test_operations_are_pillows(monkeypatch, name, level, references):
    found = one(monkeypatch, name, level)
    wanted = [tensor(reference(Image.fromarray(PHOTO))) for reference in references]
    assert len(found) == len(wanted)
    for each in wanted:
        assert min(int((each.int() - other.int()).abs().max()) for other in found) <= 2  # Pillow rounds its grey


def test_a_turn_is_counter_clockwise_and_filled_with_grey(monkeypatch):
    (found,) = one(monkeypatch, "rotate", 9)
    wanted = Image.fromarray(PHOTO).rotate(30, Image.BILINEAR, fillcolor=GREY)
    apart = (found.int() - tensor(wanted).int()).abs().float()
    assert apart.mean() < 6
    assert (found[:, 0, 0] == 128).all()


def test_a_shear_moves_rows_against_the_middle(monkeypatch):
    steps = torch.zeros(3, 32, 32, dtype=torch.uint8)
    steps[:, :, 16:] = 255
    monkeypatch.setitem(joint_augment.POLICIES, "one", (("shear-x", 9),))
    torch.manual_seed(0)
    edges = (JointAugment("one", 1.0)(steps)[0, :, 4:28] > 127).float().sum(1)
    assert abs(float(edges[27] - edges[4])) == pytest.approx(23 * 0.3, abs=1.5)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_operation_is_there_once_and_drawn_for_itself(policy, monkeypatch):
    assert len({name for name, _ in POLICIES[policy]}) == 14
    done = []
    monkeypatch.setattr(joint_augment, "_apply", lambda _, name, image, *more: done.append(name) or image)
    transform, order = JointAugment(policy, PROBABILITIES[policy]), [name for name, _ in POLICIES[policy]]
    torch.manual_seed(1)
    lengths = []
    for _ in range(400):
        done.clear()
        transform(torch.zeros(3, 4, 4, dtype=torch.uint8))
        assert done == [name for name in order if name in done]
        lengths.append(len(done))
    assert np.mean(lengths) == pytest.approx(14 * PROBABILITIES[policy], abs=0.3)
    assert np.var(lengths) == pytest.approx(14 * PROBABILITIES[policy] * (1 - PROBABILITIES[policy]), rel=0.25)


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        ("jda", {"policy": "cifar"}, UnknownNameError, "Unknown policy 'cifar'"),
        ("jda", {"probability": 1.5}, ConfigError, r"`probability` to be between 0 and 1, got 1.5 \(transform jda\)"),
        ("jda", {"size": 0}, ConfigError, r"`size` to be a whole number of at least 1"),
        ("auto-augment", {"policy": "digits"}, UnknownNameError, "Unknown policy 'digits'"),
        ("trivial-augment", {"padding": -1}, ConfigError, r"`padding` .* got -1 \(transform trivial-augment\)"),
    ],
)
def test_refusals(name, args, error, message):
    with pytest.raises(error, match=message):
        create_transform(name, args)
