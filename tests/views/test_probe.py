from __future__ import annotations

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.views.cases import PIPELINES, Counts, Images, N, OwnsGenerator, in_place
from torchvision.transforms import v2

from bookkd.core.errors import ConfigError, ViewMismatchError
from bookkd.views import MixUp, Pick, Replay, Views, check_probes, check_replay, collate, probe, versions

PICKS = [Pick(sample, view) for sample in range(N) for view in range(2)]


def batch_of(views: torch.Tensor, **others):
    hashes, projections = probe(views)
    n = len(views)
    return {
        "input": views,
        "sample": torch.arange(n) + 100,
        "view": torch.full((n,), 3),
        "probe_taken": torch.ones(n, dtype=torch.bool),
        "probe/hash": hashes,
        "probe/projections": projections,
        **others,
    }


def stored_of(views: torch.Tensor):
    """What a book holds."""
    hashes, projections = probe(views)
    return hashes.numpy().view(np.uint64), projections.numpy().astype(np.float32)


def check(views, original, **options):
    check_probes(batch_of(views), *stored_of(original), **{"recipe_versions": versions(), **options})


GOLDEN_HASHES = [-3270755037115356213, -1137742995598877394]
GOLDEN_PROJECTIONS = [[-0.06792356108113246, 0.00905647481081766], [-0.17660125881094438, 0.00905647481081766]]
ELSEWHERE = {**versions(), "torchvision": "0.1"}


# --- the fingerprint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_hash_is_xxh3_of_form_and_bytes(dtype):
    views = torch.randint(2, (3, 2, 5)).to(dtype)
    hashes, _ = probe(views)
    for view, found in zip(views, hashes.tolist(), strict=True):
        raw = f"{dtype}(2, 5)".encode() + bytes(view.reshape(-1).view(torch.uint8).tolist())
        assert found % 2**64 == xxhash.xxh3_64_intdigest(raw)


def test_projections_are_signed_sums_over_the_square_root_of_the_size():
    size = 37
    # Unit vectors show the signs themselves.
    signs = probe(torch.eye(size, dtype=torch.float64))[1].numpy() * size**0.5
    assert np.abs(np.abs(signs) - 1).max() < 1e-12
    assert abs(signs.sum(axis=0)).max() < 4 * size**0.5
    assert (signs[:, 0] != signs[:, 1]).any()
    values = np.random.default_rng(0).normal(size=(6, size))
    expected = values @ signs / size**0.5
    assert np.abs(probe(torch.from_numpy(values))[1].numpy() - expected).max() < 1e-6
    # Values are rounded to 2**-24, so that sums are exact.
    assert np.abs(probe(torch.from_numpy(values).float())[1].numpy() - expected).max() < 1e-6
    pixels = np.random.default_rng(1).integers(0, 256, (6, size), dtype=np.uint8)
    expected = (pixels / 255) @ signs / size**0.5
    assert np.abs(probe(torch.from_numpy(pixels))[1].numpy() - expected).max() < 1e-12


def test_sums_of_floats_are_exact():
    size = 3000
    signs = np.rint(probe(torch.eye(size, dtype=torch.uint8))[1].numpy() * 255 * size**0.5).astype(np.int64)
    values = torch.rand(4, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = np.rint(values.numpy() * 2**24).astype(np.int64) @ signs
    assert np.array_equal(probe(values)[1].numpy(), whole / (2**24 * size**0.5))


def test_signs_are_balanced_and_independent():
    size = 4096
    signs = probe(torch.eye(size, dtype=torch.uint8))[1].numpy() * 255 * size**0.5
    assert abs(signs.mean(axis=0)).max() < 5 / size**0.5
    assert abs((signs[:, 0] * signs[:, 1]).mean()) < 5 / size**0.5
    assert abs((signs[1:] * signs[:-1]).mean(axis=0)).max() < 5 / size**0.5


def test_a_probe_of_today_equals_one_in_an_old_book():
    views = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)
    hashes, projections = probe(views)
    assert hashes.tolist() == GOLDEN_HASHES
    assert np.abs(projections.numpy() - GOLDEN_PROJECTIONS).max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 300), st.sampled_from([torch.float32, torch.uint8]), st.randoms())
def test_a_probe_does_not_depend_on_its_batch(count, size, dtype, rng):
    views = (torch.rand(count, size, generator=torch.Generator().manual_seed(rng.randrange(2**32))) * 255).to(dtype)
    together = probe(views)
    assert all(map(torch.equal, together, probe(list(views))))
    order = rng.sample(range(count), count)
    assert all(torch.equal(part[order], other) for part, other in zip(together, probe(views[order]), strict=True))
    for row in range(count):
        assert all(torch.equal(part[row], other[0]) for part, other in zip(together, probe([views[row]]), strict=True))


def test_views_of_several_shapes_and_none():
    views = [torch.ones(2, 3), torch.ones(3, 2), torch.ones(6), torch.ones(6, dtype=torch.float64), torch.ones(())]
    hashes, projections = probe(views)
    assert len(set(hashes.tolist())) == 5
    assert torch.equal(projections[0], projections[2])
    assert probe([])[0].shape == (0,)
    assert probe([])[1].shape == (0, 2)


def test_a_probe_leaves_its_input_alone():
    for dtype in (torch.float64, torch.float32, torch.uint8):
        views = (torch.rand(2, 7) * 200).to(dtype)
        before = views.clone()
        probe(views)
        assert torch.equal(views, before)


def test_strides_do_not_matter():
    views = torch.rand(2, 6, 4)
    assert all(map(torch.equal, probe(views.transpose(1, 2)), probe(views.transpose(1, 2).contiguous())))


# --- the comparison ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 224, 700])
def test_one_flipped_bit_of_one_pixel_is_caught(size):
    views = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    check(views, views)
    for bit in range(8):
        flipped = views.clone()
        flipped[1, 2, 5, 7] ^= 1 << bit
        with pytest.raises(ViewMismatchError, match=r"in 1 of 2 records, first sample 101, view 3, off by"):
            check(flipped, views)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 32, 64]), st.sampled_from([1.0, 5.0]))
def test_rounding_noise_of_floats_passes(seed, size, scale):
    rng = torch.Generator().manual_seed(seed)
    views = torch.rand(4, 3, size, size, generator=rng) * scale
    noisy = views + 1e-6 * (2 * torch.rand(views.shape, generator=rng) - 1)
    assert not torch.equal(noisy, views)
    check(noisy, views)


def test_a_grey_level_in_every_pixel_passes_between_versions_only():
    # Drawn anew each time, one record in some hundreds would have both of its projections equal by chance.
    draws = torch.Generator().manual_seed(0)
    views = torch.randint(1, 255, (16, 3, 32, 32), dtype=torch.uint8, generator=draws)
    off = (views.int() + torch.randint(-1, 2, views.shape, generator=draws)).to(torch.uint8)
    check(off, views, recipe_versions=ELSEWHERE)
    with pytest.raises(ViewMismatchError, match="in 16 of 16 records"):
        check(off, views)
    check(off, views, tolerance=0.02)


@pytest.mark.parametrize("recipe_versions", [versions(), ELSEWHERE])
@pytest.mark.parametrize(
    "other",
    [
        Views(v2.RandomResizedCrop(10, antialias=True), n_views=2, seed=5),
        Views(PIPELINES["uint8"][1], n_views=2, seed=6),
        Views(PIPELINES["uint8"][1], n_views=2, seed=5, mix=MixUp(1.0)),
    ],
)
def test_another_transform_seed_or_mix_is_caught(recipe_versions, other):
    here, book = (
        collate(Replay(Images(), views).__getitems__(PICKS))
        for views in (Views(PIPELINES["uint8"][1], n_views=2, seed=5), other)
    )
    with pytest.raises(ViewMismatchError, match=r"Expected the replayed view to be the input that the teacher saw"):
        check_probes(here, *stored_of(book["input"]), recipe_versions=recipe_versions)


def test_other_data_and_other_order_are_caught():
    batch = collate(Replay(Images(), Views(None, n_views=1)).__getitems__([Pick(s, 0) for s in range(N)]))
    with pytest.raises(ViewMismatchError, match=f"in {N} of {N} records"):
        check_probes(batch, *stored_of(batch["input"].roll(1, 0)), recipe_versions=versions())


def test_the_message_names_versions_place_and_remedy():
    views = torch.rand(1, 3, 4, 4)
    with pytest.raises(ViewMismatchError) as caught:
        check(views + 1, views, recipe_versions=ELSEWHERE, where="book /data/b")
    message = str(caught.value)
    assert "book /data/b; made with numpy" in message
    assert "torchvision 0.1; here numpy" in message
    assert f"torchvision {versions()['torchvision']})" in message
    assert message.endswith(
        "Install the versions of the book, or make it again with these; check data, transform and seed too."
    )
    assert "\n" not in message
    with pytest.raises(ViewMismatchError, match=r"made and replayed with numpy .* Use the data, transform, arguments"):
        check(views + 1, views)


def test_only_rows_with_a_probe_are_compared():
    views = torch.rand(3, 3, 4, 4)
    batch = batch_of(views, probe_taken=torch.tensor([True, False, True]))
    hashes, projections = stored_of(views)
    hashes[1], projections[1] = 0, 99
    check_probes(batch, hashes, projections, recipe_versions=versions())
    hashes[2], projections[2] = 0, 99
    with pytest.raises(ViewMismatchError, match="in 1 of 2 records, first sample 102, view 3"):
        check_probes(batch, hashes, projections, recipe_versions=versions())
    check_probes({"input": views}, hashes, projections, recipe_versions=versions())


@pytest.mark.parametrize("column", [0, 1])
def test_both_projections_count(column):
    views = torch.rand(1, 3, 4, 4)
    hashes, projections = stored_of(views)
    projections[0, column] += 0.5
    with pytest.raises(ViewMismatchError, match=r"off by 0\."):
        check_probes(batch_of(views), hashes + np.uint64(1), projections, recipe_versions=versions())


def test_nan_passes_where_equal_and_is_caught_elsewhere():
    views = torch.rand(1, 3, 4, 4)
    views[0, 0, 0, 0] = float("nan")
    check(views, views)
    other = views.clone()
    other[0, 1, 1, 1] = 2
    with pytest.raises(ViewMismatchError, match="off by nan"):
        check(other, views)


def test_stored_probes_of_another_shape_are_refused():
    views = torch.rand(2, 3, 4, 4)
    with pytest.raises(ViewMismatchError, match=r"Expected `stored probes` to be of shape \(2,\) and \(2, 2\)"):
        check_probes(batch_of(views), *stored_of(views[:1]), recipe_versions=versions())


# --- transforms that do not replay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("mix", [None, MixUp(1.0)])
def test_transforms_that_replay_pass(name, mix):
    kind, transform = PIPELINES[name]
    check_replay(Replay(Images(kind), Views(transform, n_views=3, mix=mix)))


@pytest.mark.parametrize("transform", [OwnsGenerator(), Counts()])
def test_a_transform_with_a_state_of_its_own_is_refused(transform):
    replay = Replay(Images(), Views(transform, n_views=3))
    with pytest.raises(
        ConfigError,
        match=r"Expected `transform` to be bit-equal .* of 32 records \(sample \d+, view \d\).*state of its own",
    ):
        check_replay(replay)


def test_a_transform_that_writes_into_its_input_is_refused():
    images = [torch.zeros(1, 2, 2) for _ in range(4)]
    with pytest.raises(ConfigError, match=r"another view in 8 of 8 records \(sample 0, view 0\)"):
        check_replay(Replay(images, Views(in_place, n_views=2)))


def test_a_label_or_ratio_with_a_state_of_its_own_is_refused():
    class Drifting(Images):
        calls = 0

        def __getitem__(self, index):
            self.calls += 1
            return super().__getitem__(index)[0], self.calls

    with pytest.raises(ConfigError, match="another view in 3 of 3 records"):
        check_replay(Replay(Drifting(), Views(None, n_views=1)), [Pick(0, 0), Pick(5, 0), Pick(3, 0)])


def test_check_replay_takes_distinct_records_over_samples_and_views():
    seen = []

    class Seen(Replay):
        def __getitems__(self, picks):
            seen.append([pick[:2] for pick in picks])
            return super().__getitems__(picks)

    check_replay(Seen(Images(), Views(v2.RandomCrop(6), n_views=5)), 32)
    assert len(set(seen[0])) == 32
    assert {sample for sample, _ in seen[0]} == set(range(N))
    assert {view for _, view in seen[0]} == set(range(5))
    assert [picks[0] for picks in seen[1:]] == seen[0][::-1]
    seen.clear()
    check_replay(Seen(Images(), Views(v2.RandomCrop(6), n_views=5)), 10)
    assert len({sample for sample, _ in seen[0]}) == 10
    assert {view for _, view in seen[0]} == set(range(5))
    seen.clear()
    check_replay(Seen(Images(n=2), Views(v2.RandomCrop(6), n_views=2)), 32)
    assert len(seen[0]) == 4
    with pytest.raises(ConfigError, match="`picks` to be a whole number of at least 1, got 0"):
        check_replay(Seen(Images(), Views(None, n_views=1)), 0)
