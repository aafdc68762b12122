"""Every recipe that the program knows by name gives the same views in another order, by other workers, and mixed with the same partners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bookkd.core.fields import PARTNER, PROBE_HASH, RATIO
from bookkd.views import CutMix, MixUp, Pick, Replay, Views, check_replay, collate
from bookkd.zoo import ArrayDataset, create_transform

RECIPES = {
    **{name: (name, None) for name in ("auto-augment", "jda", "rand-augment", "trivial-augment")},
    "mixup": ("crop-flip", MixUp(1.0)),
    "cutmix": ("crop-flip", CutMix(1.0)),
    "jda, mixup": ("jda", MixUp(0.4)),
    "rand-augment, cutmix": ("rand-augment", CutMix(1.0)),
}
PICKS = [Pick(sample, view) for sample in range(10) for view in range(4)]


def photos(n: int = 10) -> ArrayDataset:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))
    return ArrayDataset("photos", images, torch.arange(n) % 3, ("a", "b", "c"))


def replay_of(recipe: str, n: int = 10, pool: int | None = None) -> Replay:
    name, mix = RECIPES[recipe]
    views = Views(create_transform(name), n_views=4, seed=3, mix=mix)
    return Replay(photos(n), views if pool is None else views.with_pool(pool))


def by_pick(replay: Replay, picks: list[Pick], workers: int = 0) -> dict:
    batches = [picks[start : start + 7] for start in range(0, len(picks), 7)]
    loader = DataLoader(replay, batch_sampler=batches, collate_fn=collate, num_workers=workers)
    found = {}
    for batch in loader:
        mixed = [batch[key].tolist() for key in (PARTNER, RATIO) if key in batch]
        values = zip(batch["sample"].tolist(), batch["view"].tolist(), batch[PROBE_HASH].tolist(), *mixed, strict=True)
        found.update({(sample, view): rest for sample, view, *rest in values})
    return found


# Forking a process that has threads is what DataLoader does by default on Linux; newer Pythons warn of it.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_views_in_another_order_and_by_other_workers(recipe):
    reference = by_pick(replay_of(recipe), PICKS)
    assert by_pick(replay_of(recipe), PICKS[::-1], workers=2) == reference
    assert len({hashed for hashed, *_ in reference.values()}) > 30
    check_replay(replay_of(recipe))


@pytest.mark.parametrize("recipe", [name for name, (_, mix) in RECIPES.items() if mix])
def test_a_frozen_pool_keeps_the_mixtures_when_the_data_grow(recipe):
    reference = by_pick(replay_of(recipe), PICKS)
    grown = by_pick(replay_of(recipe, n=14, pool=10), PICKS)
    # Its own images are drawn anew by ArrayDataset of the same seed: the first ten are the same.
    assert grown == reference
