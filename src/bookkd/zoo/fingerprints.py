"""The fingerprint of a data set: small, made in seconds, different if samples, order, classes or pixels differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.jsonio import digest

__all__ = ["fingerprint", "known_as"]

_PROBED = 256


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Describe a data set so that another can be told from it.

    All labels count; of the items, 256 at even distances (all, if there are fewer). A change of one pixel in an image that
    is not among them goes unseen here; the probes of a book see it.

    Args:
        dataset: Anything with a length and items by number, made of tensors, arrays, PIL images, plain values and containers
            of them; `labels` and `class_names` count where it has them.

    Returns:
        A JSON object with `name`, `length`, `n_classes`, `classes`, `labels` and `samples`, and `vocabulary`, `tokenizer` and `blank` of
        sequences; `classes`, `labels` and `samples` are digests, None for what the data set does not tell. `name` is for people: two fingerprints that differ in it alone are equal to a
        book, so that a renamed class or another reader of the same samples is the same data.

    Raises:
        DataError: an item holds something without a value, such as an open file.

    >>> from bookkd.zoo.datasets import open_dataset
    >>> fingerprint(open_dataset("digits"))["length"]
    1297
    """
    length = len(dataset)
    name = str(getattr(dataset, "name", type(dataset).__name__))
    class_names = getattr(dataset, "class_names", None)
    hasher = xxhash.xxh3_128()
    for index in np.unique(np.linspace(0, length - 1, min(length, _PROBED)).round().astype(int)).tolist():
        hasher.update(f"#{index} ".encode())
        _update(hasher, dataset[index], f"{name}, sample {index}")
    # Of sequences: which tokens there are, what made them of text, what a network is fed, and who wrote them.
    told = ["vocabulary", "tokenizer", "max_length"]
    told += ["blank"]  # which class of speech is no symbol
    told += ["source_vocabulary", "prefix", "lineage"] if getattr(dataset, "label_is_input", False) else []
    more = {key: _plain(getattr(dataset, key)) for key in told if getattr(dataset, key, None) is not None}
    if getattr(dataset, "control", ()):
        more["control"] = sorted(int(token) for token in dataset.control)
    return {
        **more,
        "name": name,
        "length": length,
        "n_classes": None if class_names is None else len(class_names),
        "classes": None if class_names is None else digest([str(each) for each in class_names]),
        "labels": _labels(dataset, length),
        "samples": hasher.hexdigest(),
    }


def known_as(key: str) -> str:
    """Return an entry of a fingerprint in words: a `length` is that of a sequence to whoever packs text.

    >>> known_as("length"), known_as("samples"), known_as("vocabulary")
    ('samples', 'content', 'vocabulary')
    """
    return {"length": "samples", "samples": "content"}.get(key, key)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _labels(dataset: Any, length: int) -> str | None:
    labels = getattr(dataset, "labels", None)
    if not isinstance(labels, list | tuple | np.ndarray | Tensor):
        return None
    try:
        array = np.asarray(labels)
    except ValueError:  # vectors of different lengths
        return None
    if array.shape[:1] != (length,) or array.dtype.kind not in "biuf":
        return None
    plain = array.astype("<f8" if array.dtype.kind == "f" else "<i8").tobytes()
    if array.ndim == 1 and array.dtype.kind != "f":
        return xxhash.xxh3_128_hexdigest(plain)
    # One number and a vector of one are the same label; so are truths and 0 and 1.
    form = f"{'float' if array.dtype.kind == 'f' else 'int'} {array.reshape(length, -1).shape} "
    return xxhash.xxh3_128_hexdigest(form.encode() + plain)


def _update(hasher: xxhash.xxh3_128, value: Any, where: str) -> None:
    """Add a value to the digest, with its kind and shape, so that different values cannot run into one another."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        hasher.update(f"{str(plain.dtype).removeprefix('torch.')} {tuple(plain.shape)} ".encode())
        hasher.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        hasher.update(f"{value.dtype} {value.shape} ".encode())
        hasher.update(value.tobytes())
    elif isinstance(value, Mapping):
        hasher.update(f"map {len(value)} ".encode())
        for key in sorted(value, key=str):
            _update(hasher, key, where)
            _update(hasher, value[key], where)
    elif isinstance(value, list | tuple):
        hasher.update(f"list {len(value)} ".encode())
        for each in value:
            _update(hasher, each, where)
    elif hasattr(value, "getbands") and hasattr(value, "tobytes"):
        hasher.update(f"image {value.mode} {value.size} ".encode())
        hasher.update(value.tobytes())
    elif isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        hasher.update(f"{type(value).__name__} {len(data)} ".encode())
        hasher.update(data)
    elif value is None or isinstance(value, float | np.floating):
        hasher.update(f"{None if value is None else float(value)!r} ".encode())
    elif hasattr(value, "__index__"):
        # A class may come as an int or as numpy's: both are the same class.
        hasher.update(f"int {value.__index__()} ".encode())
    else:
        raise DataError(expected("item", "made of tensors, arrays and plain values", type(value).__name__, where=where))
