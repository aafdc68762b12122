"""Preprocessing: against torchvision and the equation, layouts, and what goes with which network."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference

from bookkd.core.errors import ConfigError, DataError, UnknownNameError
from bookkd.zoo import Preprocess, create_preprocess

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def views(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_against_the_equation():
    x = views(4, 3, 6, 5)
    mean, std = (np.array(each).reshape(1, 3, 1, 1) for each in IMAGENET)
    wanted = (x.numpy().astype(np.float64) / 255 - mean) / std
    found = Preprocess(*IMAGENET)(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("size", [(16, 16), (5, 9), (40, 33)])
def test_against_torchvision(size: tuple[int, int]):
    x = views(2, 3, 20, 24)
    scaled = reference.resize(reference.to_dtype(x, torch.float32, scale=True), list(size), antialias=True)
    wanted = reference.normalize(scaled, *IMAGENET)
    torch.testing.assert_close(Preprocess(*IMAGENET, size)(x), wanted, atol=1e-5, rtol=1e-5)


def test_floats_are_taken_as_they_are_and_not_changed():
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    before = x.clone()
    assert torch.equal(Preprocess()(x), x.to(torch.float32))
    y = x.to(torch.float32)
    torch.testing.assert_close(Preprocess((0.5,), (2.0,))(y), (y - 0.5) / 2)
    assert torch.equal(x, before)
    assert torch.equal(y, before.to(torch.float32))


def test_one_number_serves_all_channels():
    x = views(1, 3, 2, 2)
    assert torch.equal(Preprocess((0.5,), (0.25,))(x), Preprocess((0.5,) * 3, (0.25,) * 3)(x))


@pytest.mark.parametrize("size", [None, (12, 12)])
def test_channels_last_stays(size: tuple[int, int] | None):
    x = views(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    assert Preprocess(*IMAGENET, size)(x).is_contiguous(memory_format=torch.channels_last)


def test_autograd_works_after_a_first_call_in_inference_mode():
    preprocess = Preprocess((0.123,), (0.321,))
    with torch.inference_mode():
        preprocess(views(1, 1, 2, 2))
    x = torch.rand(1, 1, 2, 2, requires_grad=True)
    preprocess(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 1, 2, 2), 1 / 0.321))


def test_pickles_and_compares():
    preprocess = Preprocess(*IMAGENET, (8, 8))
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
    assert hash(preprocess) == hash(Preprocess(*IMAGENET, (8, 8)))


def test_ids_pass_where_nothing_is_done():
    ids = torch.arange(6).view(2, 3)
    assert Preprocess()(ids) is ids
    with pytest.raises(DataError, match=r"`views` to be uint8 or floating point, got torch.int64"):
        Preprocess((0.5,), (0.5,))(ids)


def test_wrong_shapes():
    with pytest.raises(DataError, match=r"of shape \[batch, 3, height, width\], got \(2, 1, 8, 8\)"):
        Preprocess(*IMAGENET)(views(2, 1, 8, 8))
    with pytest.raises(DataError, match=r"of shape \[batch, channels, height, width\], got \(3, 8, 8\)"):
        Preprocess(size=(4, 4))(views(3, 8, 8))


@pytest.mark.parametrize(
    ("name", "mean", "size"),
    [
        ("resnet56", IMAGENET[0], None),
        ("digits-large", (), None),
        ("torchvision:resnet18", IMAGENET[0], None),
        ("torchvision:vit_b_16", IMAGENET[0], (224, 224)),
        ("timm:vit_tiny_patch16_224", (0.5, 0.5, 0.5), (224, 224)),
        ("timm:resnet18", IMAGENET[0], None),
        ("some.module:network", (), None),
    ],
)
def test_defaults(name: str, mean: tuple[float, ...], size: tuple[int, int] | None):
    found = create_preprocess(name)
    assert (found.mean, found.size) == (mean, size)
    assert len(found.std) == len(mean)


def test_what_is_given_replaces_the_default():
    found = create_preprocess("resnet20", mean=[0.1] * 3, size=64)
    assert found == Preprocess((0.1,) * 3, IMAGENET[1], (64, 64))
    assert create_preprocess("resnet20", mean=()) == Preprocess()
    assert create_preprocess("digits-small", size=(9, 8)).size == (9, 8)


def test_refusals():
    with pytest.raises(UnknownNameError, match=r"Unknown network 'resnet9'. Nearest: resnet"):
        create_preprocess("resnet9")
    with pytest.raises(UnknownNameError, match="Unknown timm network"):
        create_preprocess("timm:resnet1")
    with pytest.raises(ConfigError, match=r"`std` to be as long as mean \(1\)"):
        Preprocess(mean=(0.5,))
    with pytest.raises(ConfigError, match="`std` to be a number above 0, got 0"):
        Preprocess((0.5,), (0,))
    with pytest.raises(ConfigError, match="`mean` to be a finite number, got nan"):
        Preprocess((float("nan"),), (1.0,))
    with pytest.raises(ConfigError, match="`size` to be one side, or height and width"):
        create_preprocess("resnet20", size=(1, 2, 3))
