from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tests.views.cases import PIPELINES, Images, Masks, N
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bookkd.core.errors import ConfigError, DataError
from bookkd.views import CachedViews, CutMix, MixUp, Pick, Replay, Views, ViewSampler, collate

PICKS = random.Random(0).sample([Pick(s, v, float(s % 2)) for s in range(N) for v in range(3)], 30)


def same(batch, other) -> bool:
    assert batch.keys() == other.keys()
    return all(torch.equal(batch[name], other[name]) and batch[name].dtype == other[name].dtype for name in batch)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("mix", [None, MixUp(1.0)])
def test_cached_views_are_the_replayed_ones(name, mix):
    kind, transform = PIPELINES[name]
    replay = Replay(Images(kind), Views(transform, n_views=3, seed=2, mix=mix), probe_share=0.5)
    cached = CachedViews(replay, max_bytes=10**7)
    assert same(collate(cached.__getitems__(PICKS)), collate(replay.__getitems__(PICKS)))
    assert torch.equal(cached[PICKS[0]]["input"], replay[PICKS[0]]["input"])
    assert len(cached) == len(replay)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_computed_and_read_by_workers():
    replay = Replay(Images(), Views(PIPELINES["uint8"][1], n_views=3, mix=CutMix(1.0)))
    before = torch.get_rng_state()
    cached = CachedViews(replay, max_bytes=10**7, workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    sampler = ViewSampler(N, 3, 8)
    loader = DataLoader(cached, batch_sampler=sampler, collate_fn=collate, num_workers=1)
    for batch, picks in zip(loader, sampler, strict=True):
        assert same(batch, collate(replay.__getitems__(picks)))


def test_some_views_of_a_reordered_data_set():
    rows = np.random.default_rng(1).permutation(N) * 10
    replay = Replay(Images(), Views(v2.RandomCrop(7), n_views=6), rows=rows)
    cached = CachedViews(replay, max_bytes=10**7, views=[4, 1])
    picks = [Pick(int(row), view) for row in rows[:5] for view in (1, 4)]
    assert same(cached.__getitems__(picks), collate(replay.__getitems__(picks)))
    with pytest.raises(ConfigError, match=r"`view` to be one of those cached: \[4, 1\], got 2"):
        cached[Pick(int(rows[0]), 2)]
    with pytest.raises(DataError, match="one of the 24 rows that the data set holds, got 5"):
        cached[Pick(5, 1)]


def test_more_records_than_one_chunk():
    images = [(torch.full((1, 2, 2), index, dtype=torch.int16), index) for index in range(700)]
    cached = CachedViews(Replay(images, Views(None, n_views=1)), max_bytes=10**6)
    batch = cached.__getitems__([Pick(index, 0) for index in range(699, -1, -1)])
    assert torch.equal(batch["input"][:, 0, 0, 0].long(), batch["label"])
    assert torch.equal(batch["label"], torch.arange(699, -1, -1))


def test_labels_of_each_view_are_held():
    replay = Replay(Masks(), Views(v2.RandomCrop(6), n_views=2), probe_share=0.0)
    cached = CachedViews(replay, max_bytes=10**7)
    picks = [Pick(3, 0), Pick(3, 1)]
    assert same(cached.__getitems__(picks), collate(replay.__getitems__(picks)))
    assert not torch.equal(*cached.__getitems__(picks)["label"])


def test_memory_is_stated_and_bounded():
    replay = Replay(Images(), Views(v2.RandomCrop(6), n_views=5), probe_share=0.0)
    need = N * 5 * (3 * 6 * 6 + 8)
    assert CachedViews(replay, max_bytes=need).nbytes == need
    with pytest.raises(
        ConfigError, match=f"`max_bytes` to be at least the {need} bytes that 120 views need, got {need - 1}"
    ):
        CachedViews(replay, max_bytes=need - 1)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "`views` to be at least one view of one sample"),
        ([1, 1], "without repeats"),
        ([2], "`view` to be between 0 and 1, got 2"),
    ],
)
def test_refused_views(views, message):
    with pytest.raises(ConfigError, match=message):
        CachedViews(Replay(Images(), Views(v2.RandomCrop(6), n_views=2)), max_bytes=10**7, views=views)


def test_views_of_several_shapes_are_refused():
    images = [(torch.zeros(1, 2 + index // 256, 2), 0) for index in range(300)]
    with pytest.raises(DataError, match=r"`input` to be torch.float32 \(1, 2, 2\) for all views, got .*\(1, 3, 2\)"):
        CachedViews(Replay(images, Views(None, n_views=1)), max_bytes=10**7)
    with pytest.raises(ConfigError, match="`workers` to be a whole number of at least 0"):
        CachedViews(Replay(images, Views(None, n_views=1)), max_bytes=10**7, workers=-1)
