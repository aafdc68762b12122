"""The handwritten digits that scikit-learn ships: 1,797 images of 8x8 pixels, no download."""

from __future__ import annotations

import numpy as np
import torch

from bookkd.core.names import choose, require
from bookkd.zoo.images import ArrayDataset
from bookkd.zoo.order import stratified_order

__all__ = ["digits"]

N_TEST = 500


def digits(*, split: str = "train") -> ArrayDataset:
    """Read the digits.

    The set has no split of its own: 500 samples with every class in its share are the test set, the same on every machine.

    Args:
        split: "train" (1,297 images), "test" (500) or "all".

    Returns:
        Images [1, 8, 8]; the set's 17 grey levels 0..16 become 0..255.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
    (its test part, as scikit-learn distributes it).
    """
    choose(split, ("train", "test", "all"), "split", where="data set digits")
    raw = require("sklearn.datasets", "train").load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = raw.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[stratified_order(labels, "digits")[:N_TEST]] = True
    chosen = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
    names = tuple(str(name) for name in raw.target_names)
    return ArrayDataset("digits", torch.from_numpy(images[chosen]), labels[chosen], names)
