"""The fingerprint of a data set: small, made in seconds, different if samples, order, classes or pixels differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from bookkd.core.jsonio import digest
from bookkd.zoo.images import ImageDataset

__all__ = ["fingerprint"]

_PROBED = 256


def fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """Describe a data set so that another can be told from it.

    All labels count; of the images, 256 at even distances (all, if there are fewer). A change of one pixel in an image that
    is not among them goes unseen here; the probes of a book see it.

    Args:
        dataset: The data set; `name`, `labels` and `class_names` count where it has them.

    Returns:
        A JSON object with `name`, `length`, `n_classes`, `classes`, `labels` and `samples`; the last three are digests, None
        for what the data set does not tell.

    >>> from bookkd.zoo.datasets import open_dataset
    >>> fingerprint(open_dataset("digits"))["length"]
    1297
    """
    length = len(dataset)
    names = getattr(dataset, "class_names", None)
    labels = getattr(dataset, "labels", None)
    hasher = xxhash.xxh3_128()
    for index in np.unique(np.linspace(0, length - 1, min(length, _PROBED)).round().astype(int)).tolist():
        image, label = dataset[index]
        pixels = image.contiguous().numpy()
        hasher.update(f"{index} {label} {pixels.dtype} {pixels.shape} ".encode())
        hasher.update(pixels.tobytes())
    return {
        "name": str(getattr(dataset, "name", type(dataset).__name__)),
        "length": length,
        "n_classes": None if names is None else len(names),
        "classes": None if names is None else digest([str(each) for each in names]),
        "labels": None if labels is None else xxhash.xxh3_128_hexdigest(np.asarray(labels, dtype="<i8").tobytes()),
        "samples": hasher.hexdigest(),
    }
