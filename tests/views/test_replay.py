from __future__ import annotations

import random

import pytest
import torch
from tests.views.cases import PIPELINES, Images, N

from bookkd.views import Pick, Replay, Views

PICKS = [Pick(sample, view) for sample in range(N) for view in range(3)]


def replay_of(name: str, **options) -> Replay:
    kind, transform = PIPELINES[name]
    return Replay(Images(kind), Views(transform, n_views=3, seed=5), **options)


@pytest.mark.parametrize("name", PIPELINES)
def test_same_bits_in_any_order_and_alone(name):
    replay = replay_of(name)
    reference = {(item["sample"], item["view"]): item for item in replay.__getitems__(PICKS)}
    shuffled = random.Random(0).sample(PICKS, len(PICKS))
    for item in replay.__getitems__(shuffled):
        assert torch.equal(item["input"], reference[item["sample"], item["view"]]["input"])
    for pick in shuffled[:10]:
        item = replay[pick]
        assert torch.equal(item["input"], reference[pick[:2]]["input"])
        assert item["probe/hash"] == reference[pick[:2]]["probe/hash"]
        assert torch.equal(item["probe/projections"], reference[pick[:2]]["probe/projections"])
    assert len({item["probe/hash"] for item in reference.values()}) > 2 * N
