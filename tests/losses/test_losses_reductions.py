"""Reductions: against numpy, against the numbers that cards give on maps, in half precision, and at zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses.feature_cases import FS, FT, number
from torch.testing import assert_close

from bookkd.core.errors import ConfigError
from bookkd.losses import (
    attention_map,
    average_pool,
    channel_gram,
    channel_mean,
    feature_l1,
    feature_mse,
    fsp_matrix,
    max_pool,
    nst,
    pairwise_similarity,
    principal,
    similarity_preserving,
    spatial_gram,
)
from bookkd.losses.reductions import paraphrase, same_size, unit

STUDENT, TEACHER = number(FS), number(FT)
OF_MAPS = {
    "mean": channel_mean,
    "attention": attention_map,
    "gram": channel_gram,
    "spatial": spatial_gram,
    "pool2": lambda maps: average_pool(maps, size=2),
    "max2": lambda maps: max_pool(maps, size=2),
    "fsp": lambda maps: fsp_matrix(maps, maps.flip(1)),
    "pca": lambda maps: principal(maps, number([[0.1, 0.2, 0.3], [1.0, 0.0, -1.0]])),
}
maps_of = st.integers(0, 10**6).map(
    lambda seed: torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
)
few = settings(max_examples=20, deadline=None)


def numpys(name, maps):
    """Each reduction of one map, spelled out."""
    c, h, w = maps.shape
    rows = maps.reshape(c, h * w)
    if name == "mean":
        return rows.sum(1) / (h * w)
    if name == "attention":
        found = np.array([sum(rows[k, x] ** 2 for k in range(c)) / c for x in range(h * w)])
        return found / np.sqrt((found**2).sum())
    if name == "gram":
        return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in rows] for b in rows])
    if name == "spatial":
        return numpys("gram", rows.T.reshape(h * w, c, 1))
    if name == "fsp":
        return rows @ rows[::-1].T / (h * w)
    if name == "pca":
        return ((maps[0] - 0.1) - (maps[2] - 0.3))[None]
    blocks = maps.reshape(c, 2, h // 2, 2, w // 2)
    return blocks.mean((2, 4)) if name == "pool2" else blocks.max((2, 4))


@pytest.mark.parametrize("name", OF_MAPS)
def test_they_are_numpys_and_differentiable(name):
    maps = torch.randn(3, 3, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = np.stack([numpys(name, each) for each in maps.numpy()])
    assert_close(OF_MAPS[name](maps), torch.as_tensor(wanted), rtol=1e-9, atol=1e-9)
    torch.autograd.gradcheck(OF_MAPS[name], (maps[:1, :, :2, :2].clone().requires_grad_(),))


@pytest.mark.parametrize("name", OF_MAPS)
def test_half_precision_gives_float32_under_autocast_too(name):
    maps = (300 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))).half()
    wanted = OF_MAPS[name](maps.double()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = OF_MAPS[name](maps)
    assert found.dtype == torch.float32
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OF_MAPS)
@pytest.mark.parametrize("scale", [0.0, 1e-18])
def test_dead_maps_stay_finite(name, scale):
    maps = torch.full((2, 3, 4, 4), scale, requires_grad=True)
    found = OF_MAPS[name](maps)
    (slope,) = torch.autograd.grad(found.sum(), maps)
    assert bool(found.isfinite().all() and slope.isfinite().all())
    if scale == 0 and name in ("attention", "gram", "spatial", "fsp"):
        assert found.abs().max() == slope.abs().max() == 0


def test_unit_bounds_the_gradient_of_tiny_vectors():
    tiny = torch.tensor([[1e-9, 0.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(unit(tiny, 1).sum(), tiny)
    assert 0 < slope.max() <= 1e6
    assert_close(unit(number([[3e-3, 4e-3]]), 1), number([[0.6, 0.8]]), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("reduce", "loss", "wanted"),
    [
        (attention_map, feature_mse, 0.032147),  # AT
        (attention_map, feature_l1, 0.155832),  # FT
        (channel_gram, feature_mse, 0.038933),  # CSC, channels
        (spatial_gram, feature_mse, 0.000736),  # CSC, positions
        (lambda maps: fsp_matrix(maps, TEACHER), feature_mse, 2.687500),  # FSP: (F^a, F^b) = (FS, FT) and (FT, FT)
        (lambda maps: maps, feature_mse, 1.875),  # FitNets
        (lambda maps: maps, nst, 0.225),
        (lambda maps: maps, similarity_preserving, 0.025658),
    ],
)
def test_the_cards_numbers_on_maps(reduce, loss, wanted):
    assert loss(reduce(STUDENT), reduce(TEACHER)).mean().item() == pytest.approx(wanted, abs=1e-6)


def test_the_cards_entries_of_channel_grams():
    assert channel_gram(STUDENT)[0, 0, 1].item() == pytest.approx(0.894427, abs=1e-6)
    assert channel_gram(TEACHER)[0, 0, 1].item() == pytest.approx(0.948683, abs=1e-6)


def test_pairwise_similarity_is_the_distance_of_spatial_grams_of_a_pooled_map():
    student, teacher = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grams = [spatial_gram(max_pool(maps, size=2)) for maps in (student, teacher)]
    assert_close(pairwise_similarity(max_pool(student, size=2), max_pool(teacher, size=2)), feature_mse(*grams))


@given(maps_of, st.floats(1e-6, 1e6))
@few
def test_attention_forgets_scale(maps, scale):
    assert_close(attention_map(scale * maps), attention_map(maps), rtol=1e-9, atol=1e-12)


@given(maps_of, st.permutations(range(8)), st.permutations(range(3)))
@few
def test_permutations(maps, positions, channels):
    moved = maps.flatten(2)[:, :, list(positions)].reshape(maps.shape)
    assert_close(channel_gram(moved), channel_gram(maps))
    assert_close(channel_mean(moved), channel_mean(maps))  # so every loss on channel means, too
    assert_close(fsp_matrix(moved, moved), fsp_matrix(maps, maps))
    mixed = maps[:, list(channels)]
    assert_close(spatial_gram(mixed), spatial_gram(maps))
    assert_close(attention_map(mixed), attention_map(maps))


def test_flow_does_not_forget_scale():
    assert_close(fsp_matrix(2 * STUDENT, 2 * STUDENT), 4 * fsp_matrix(STUDENT, STUDENT))


def test_of_two_sizes_the_larger_is_averaged_on_each_axis():
    generator = torch.Generator().manual_seed(0)
    tall, wide = (torch.randn(*shape, generator=generator) for shape in ((1, 2, 8, 4), (1, 3, 4, 8)))
    a, b = same_size(tall, wide)
    assert_close(a, tall.reshape(1, 2, 4, 2, 4).mean(3))
    assert_close(b, wide.reshape(1, 3, 4, 4, 2).mean(4))
    assert fsp_matrix(tall, wide).shape == (1, 2, 3)
    assert_close(fsp_matrix(tall, wide), fsp_matrix(a, b))


def test_vectors_and_sequences():
    assert_close(principal(number([[3.0, 5.0]]), number([[1.0, 1.0], [0.0, 1.0]])), number([[4.0]]))
    assert attention_map(torch.zeros(2, 5, 7)).shape == (2, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: channel_mean(torch.zeros(2, 3)), r"`features` to be floating maps .*positions\], got .*\[2, 3\] \(channel_mean"),
        (lambda: attention_map(torch.zeros(2, 3, 4, dtype=torch.int64)), r"floating maps .*int64"),
        (lambda: average_pool(torch.zeros(2, 3, 4), size=2), r"height, width\], got torch.float32 of shape \[2, 3, 4\]"),
        (lambda: max_pool(torch.zeros(2, 3, 4, 4), size=0), r"`size` to be .*at least 1, got 0 \(max_pool\)"),
        (lambda: fsp_matrix(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), r"`second` to be of the first's batch .*\[2, 3, 5\]"),
        (lambda: principal(torch.zeros(2, 3), torch.zeros(2, 4)), r"\[batch, 4, \.\.\.\], as the basis, got shape \[2, 3\]"),
    ],
)  # fmt: skip
def test_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_grid_finer_than_the_map_repeats_nothing():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    for pool in (average_pool, max_pool):
        torch.testing.assert_close(pool(maps, size=8), maps)
        assert pool(maps[:, :, :1], size=2).shape == (1, 1, 1, 2)


def test_paraphrasers_are_exact_under_autocast():
    generator = torch.Generator().manual_seed(5)
    maps, weights = torch.randn(2, 3, 4, 4, generator=generator), [torch.randn(2, 3, 3, 3, generator=generator)]
    biases = [torch.zeros(2)]
    wanted = paraphrase(maps.double(), weights, biases).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(paraphrase(maps, weights, biases), wanted, rtol=1e-5, atol=1e-6)
