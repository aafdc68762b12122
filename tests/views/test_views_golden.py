"""Numbers that books on disk depend on: a change here makes every book of mixed or augmented views unreadable."""

from __future__ import annotations

import numpy as np
import torch

from bookkd.views import CutMix, Views, ViewSampler
from bookkd.views.mix import draw_partners, draw_ratio

SEEDS = [5783079230603119388, 13714349241280648287, 17474412212791205189]
DRAWN = {"torch": [261, 883], "numpy": [703, 143]}
PARTNERS = [5, 9, 1]
RATIOS = [0.9456946849822998, 0.6390998959541321, 0.7308047413825989]
BOX = (8, 26, 0, 8)
FIRST = [(5, 1), (4, 1), (0, 2), (7, 0), (3, 0)]


def test_seeds_of_views():
    assert Views(None, n_views=3, seed=7).seeds([0, 5, 2**40], [0, 2, 1]) == SEEDS


def test_draws_of_the_seeded_generators():
    drawn = {}

    def transform(image):
        drawn["torch"] = torch.randint(1000, (2,)).tolist()
        drawn["numpy"] = np.random.randint(1000, size=2).tolist()
        return image

    Views(transform, n_views=3, seed=7).apply(torch.zeros(1), 5, 2)
    assert drawn == DRAWN


def test_partners_ratios_and_boxes():
    assert draw_partners(7, [0, 5, 12], [0, 2, 1], pool=10).tolist() == PARTNERS
    assert [draw_ratio(7, 5, 2, alpha=alpha) for alpha in (0.2, 1.0, 4.0)] == RATIOS
    assert CutMix(1.0).box(seed=7, sample=5, view=2, height=32, width=24) == BOX


def test_picks_of_the_sampler():
    sampler = ViewSampler(9, 4, 5, seed=7, block_rows=2)
    sampler.set_epoch(3)
    assert [pick[:2] for pick in next(iter(sampler))] == FIRST
