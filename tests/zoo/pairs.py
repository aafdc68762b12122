"""A tiny translation: digits the other way round, under other names."""

from __future__ import annotations

import numpy as np
import torch

from bookkd.zoo import PairDataset, TranslationTransformer

BEGIN, END, V = 1, 2, 13  # 0 is padding, digits are 3 to 12


def reversed_digits(count: int = 60, seed: int = 0, most: int = 6, **options) -> PairDataset:
    rng = np.random.default_rng(seed)
    digits = [rng.integers(10, size=int(rng.integers(1, most))) for _ in range(count)]
    sources = [[*(each + 3), END] for each in digits]
    targets = [(each[::-1] + 4) % 10 + 3 for each in digits]
    return PairDataset.of("reversed", sources, targets, vocabulary=V, **{"begin": BEGIN, "end": END, **options})


def translator(seed: int = 0, **options) -> TranslationTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TranslationTransformer(V, **{"width": 16, "heads": 2, "layers": 1, "dropout": 0.0, **options})
