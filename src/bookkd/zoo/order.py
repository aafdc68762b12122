"""A fixed, class-balanced order of samples: what `limit` and the digits split take their samples from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bookkd.core.rng import draw64

__all__ = ["stratified_order"]


def stratified_order(labels: npt.NDArray[np.int64], stream: str) -> npt.NDArray[np.int64]:
    """Return a permutation every prefix of which holds the classes in about their shares of the whole.

    Within a class the order is random but fixed: it depends on the sample numbers and `stream` alone. The k-th of the n
    samples of a class stands at (k + 1/2) / n, and classes are merged by that place.

    Args:
        labels: One class a sample, shape [n]; -1, not known, is a class of its own here.
        stream: What the order is for.

    Returns:
        Sample numbers, shape [n].

    >>> order = stratified_order(np.array([0] * 8 + [1] * 4), "example")
    >>> sorted(order.tolist()) == list(range(12)), sorted(int(i >= 8) for i in order[:3])
    (True, [0, 0, 1])
    """
    count = len(labels)
    draws = draw64(0, stream, np.arange(count), np.zeros(count, dtype=np.int64))[:, 0]
    shuffled = np.lexsort((draws, labels))
    sizes = np.unique(labels, return_counts=True)[1]
    # After the sort the classes lie one after another, so a sample's place in its class is its place less the start.
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = (np.arange(count) - starts + 0.5) / np.repeat(sizes, sizes)
    order: npt.NDArray[np.int64] = shuffled[np.argsort(places, kind="stable")].astype(np.int64)
    return order
