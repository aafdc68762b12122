from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.views.cases import PIPELINES, Images, N
from torchvision.transforms import v2

from bookkd.core.errors import ConfigError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.views import CutMix, MixUp, Pick, Replay, Views
from bookkd.views.mix import draw_partners, draw_ratio
from bookkd.zoo import SubsetDataset

PICKS = [Pick(sample, view) for sample in range(N) for view in range(2)]


def replays(mix, kind: str = "float", transform=None):
    """The mixed replay, and the same without mixing."""
    transform = transform or v2.RandomCrop(8)
    return [Replay(Images(kind), Views(transform, n_views=2, seed=9, mix=use)) for use in (mix, None)]


def test_mixup_is_the_weighted_sum_of_two_views():
    mixed, plain = replays(MixUp(0.7))
    ratios = []
    for item in mixed.__getitems__(PICKS):
        own = plain[Pick(item["sample"], item["view"])]
        other = plain[Pick(item["partner"], item["view"])]
        ratio = np.float64(item["ratio"])
        expected = ratio * own["input"].numpy().astype(float) + (1 - ratio) * other["input"].numpy().astype(float)
        assert np.abs(item["input"].numpy() - expected).max() < 2e-7
        assert (item["label"], item["partner_label"]) == (own["label"], other["label"])
        ratios.append(item["ratio"])
    assert len(set(ratios)) == len(PICKS)


def test_mixup_of_bytes_is_the_mixup_of_scaled_floats():
    (bytes_, _), (floats, _) = replays(MixUp(1.0), "uint8"), replays(MixUp(1.0), "float")
    for pick in PICKS[:8]:
        view = bytes_[pick]["input"]
        assert view.dtype == torch.float32
        assert torch.equal(view, floats[pick]["input"])
        assert torch.equal(view, v2.ToDtype(torch.float32, scale=True)(view))


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_cutmix_takes_a_box_from_the_partner_and_the_ratio_is_the_rest(kind):
    mixed, plain = replays(CutMix(1.0), kind)
    for item in mixed.__getitems__(PICKS):
        pair = (plain[Pick(item[name], item["view"])]["input"].numpy() for name in ("sample", "partner"))
        own, other, view = *pair, item["input"].numpy()
        top, bottom, left, right = mixed.views.mix.box(
            seed=9, sample=item["sample"], view=item["view"], height=8, width=8
        )
        inside = np.zeros((8, 8), dtype=bool)
        inside[top:bottom, left:right] = True
        assert np.array_equal(view, np.where(inside, other, own))
        assert view.dtype == own.dtype
        assert item["ratio"] == np.float32(1 - inside.mean())


def test_boxes_are_centred_anywhere_and_cover_what_was_drawn_unless_clipped():
    mix = CutMix(1.0)
    height, width = 400, 300
    centres, areas, wanted = [], [], []
    for sample in range(1500):
        top, bottom, left, right = mix.box(seed=3, sample=sample, view=1, height=height, width=width)
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        if top > 0 and left > 0 and bottom < height and right < width:
            areas.append((bottom - top) * (right - left) / (height * width))
            wanted.append(1 - draw_ratio(3, sample, 1, alpha=1.0))
        if bottom - top < 40 and top > 0 and bottom < height:
            centres.append((top + bottom) / 2 / height)
    assert np.abs(np.array(areas) - wanted).max() < 0.02
    assert len(areas) > 200
    assert stats.kstest(centres, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_ratio_is_beta(alpha):
    drawn = [draw_ratio(4, sample, view, alpha=alpha) for sample in range(500) for view in range(2)]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_partners_are_uniform_over_the_pool_and_never_the_sample_itself():
    pool = 7
    samples = np.repeat(np.arange(pool + 3), 700)
    partners = draw_partners(1, samples, np.tile(np.arange(700), pool + 3), pool=pool)
    assert partners.min() == 0
    assert partners.max() == pool - 1
    assert not (partners == samples).any()
    for sample in range(pool + 3):
        counts = np.bincount(partners[samples == sample], minlength=pool)
        others = np.delete(counts, sample) if sample < pool else counts
        assert stats.chisquare(others).pvalue > 1e-4


def test_the_only_row_of_a_pool_is_its_own_partner():
    assert draw_partners(1, [0, 1, 0], [0, 0, 1], pool=1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mix", [MixUp(1.0), CutMix(1.0)])
@pytest.mark.parametrize("name", ["float", "pil"])
def test_mixed_views_replay(mix, name):
    kind, transform = PIPELINES[name]
    replay, _ = replays(mix, kind, transform)
    reference = replay.__getitems__(PICKS)
    for item, pick in zip(reversed(reference), reversed(PICKS), strict=True):
        again = replay[pick]
        assert torch.equal(item["input"], again["input"])
        assert all(item[key] == again[key] for key in ("partner", "ratio", "partner_label", "probe/hash"))


def test_a_frozen_pool_keeps_the_mixtures_of_a_data_set_that_grows_or_shrinks():
    views = Views(v2.RandomCrop(8), n_views=2, mix=MixUp(1.0))
    recipe = views.recipe(10)
    assert recipe["mix"] == {"name": "mixup", "alpha": 1.0, "pool": 10}
    small = Replay(Images("float", n=10), views)
    frozen = views.with_pool(recipe["mix"]["pool"])
    assert frozen.recipe(N) == recipe
    large = Replay(Images("float", n=N), frozen)
    unfrozen = Replay(Images("float", n=N), views)
    for sample in range(10):
        assert torch.equal(small[Pick(sample, 1)]["input"], large[Pick(sample, 1)]["input"])
    assert any(small[Pick(s, 1)]["partner"] != unfrozen[Pick(s, 1)]["partner"] for s in range(10))
    assert all(item["partner"] < 10 for item in large.__getitems__(PICKS))

    reordered = np.random.default_rng(0).permutation(10)
    part = Replay([small.dataset[row] for row in reordered], frozen, rows=reordered)
    assert torch.equal(part[Pick(6, 0)]["input"], small[Pick(6, 0)]["input"])
    refused = r"`rows` to be of all 10 samples, which are partners of one another in mixed views, got 1 of them .*--data\.limit"
    with pytest.raises(ConfigError, match=refused):
        Replay([small.dataset[6]], frozen, rows=[6])


def test_partners_outside_of_a_part_are_drawn_from_the_whole_and_say_no_label():
    whole, rows = Images("float", n=10), [7, 2, 5]
    views = Views(v2.RandomCrop(8), n_views=2, mix=CutMix(1.0, pool=10))
    picks = [Pick(row, view) for row in rows for view in (0, 1)]
    part = Replay(SubsetDataset(whole, np.array(rows)), views, rows=rows).__getitems__(picks)
    hidden = 0
    for mine, theirs in zip(part, Replay(whole, views).__getitems__(picks), strict=True):
        assert all(mine[key] == theirs[key] for key in ("partner", "ratio", "label", "probe/hash"))
        outside = mine["partner"] not in rows
        assert mine["partner_label"] == (IGNORE_LABEL if outside else theirs["partner_label"])
        hidden += outside
    assert 0 < hidden < len(picks)


def test_label_array_also_labels_the_partner():
    labels = np.arange(N) * 10
    replay = Replay(Images("float"), Views(None, n_views=1, mix=MixUp(1.0)), labels=labels)
    item = replay[Pick(3, 0)]
    assert item["label"] == 30
    assert item["partner_label"] == 10 * item["partner"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixUp(0.0), r"`alpha` to be a number above 0, got 0.0 \(MixUp\)"),
        (lambda: CutMix(-1.0), r"`alpha` to be a number above 0, got -1.0 \(CutMix\)"),
        (lambda: CutMix(1.0, pool=0), "`pool` to be a whole number of at least 1"),
        (lambda: Views(None, 1).with_pool(3), "`mix` to be MixUp or CutMix where a partner pool is given"),
        (
            lambda: Replay([torch.zeros(2, 3), torch.zeros(2, 4)], Views(None, 1, mix=MixUp(1.0)))[Pick(0, 0)],
            r"`view` to be of one shape .* got torch.float32 \(2, 3\) and torch.float32 \(2, 4\)",
        ),
        (
            lambda: Replay([torch.zeros(2)] * 2, Views(None, 1, mix=CutMix(1.0)))[Pick(0, 0)],
            r"`view` to be of one shape \[..., height, width\]",
        ),
        (
            lambda: Replay([torch.zeros(2, 2, dtype=torch.int64)] * 2, Views(None, 1, mix=MixUp(1.0)))[Pick(0, 0)],
            "`view` to be uint8 or float, got 'torch.int64'",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
