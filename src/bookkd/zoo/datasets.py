"""Data sets by name, or the user's own code, brought to one shape."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import import_reference, is_reference, look_up
from bookkd.zoo.calls import accepted, call
from bookkd.zoo.images import ImageDataset, SubsetDataset
from bookkd.zoo.order import stratified_order
from bookkd.zoo.tables import DATASETS, MASKS, SEQUENCES
from bookkd.zoo.user_data import adopt

__all__ = ["open_dataset"]


def _needs_root(reader: Any) -> bool:
    """Whether a reader is of files whose folder comes first."""
    first = next(iter(inspect.signature(reader).parameters.values()), None)
    return first is not None and first.name == "root" and first.annotation in (Path, "Path")


def open_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    download: bool = False,
    limit: int | None = None,
    args: Mapping[str, Any] | None = None,
) -> ImageDataset:
    """Open a data set of (uint8 image [channels, height, width], label) pairs.

    The label is a class, or a vector of labels where the data set has several, or numbers, for each sample.

    Args:
        name: A name of `DATASETS`, `MASKS` or `SEQUENCES`, or `package.module:callable`, which is given `root`, `split` and `download` if it has
            such arguments and returns anything with a length whose items are (image, label); see `user_data.adopt`.
        root: Where the files lie: a folder, or a zip of one for "folder".
        split: "train", "test", or what the set has.
        download: If true, a set that is not there may be fetched; nothing is ever fetched otherwise.
        limit: Take this many samples: the first of a fixed order, so that a smaller limit is a part of a larger one; every
            prefix holds the classes in their shares, where a sample has one.
        args: Further arguments of the reader, such as `{"cache": True}` for "folder".

    Raises:
        UnknownNameError: no such data set or split; the nearest names are listed.
        DataError: files or labels that are not what the reader needs.
        ConfigError: options that the data set does not take.

    >>> digits = open_dataset("digits", split="test", limit=100)
    >>> len(digits), digits[0][0].shape, digits[0][0].dtype
    (100, torch.Size([1, 8, 8]), torch.uint8)
    """
    what = f"data set {name}"
    reader = (
        import_reference(name, "data set")
        if is_reference(name)
        else look_up(name, {**DATASETS, **MASKS, **SEQUENCES}, "data set")
    )
    if not callable(reader):
        raise ConfigError(expected("data set", "a callable that returns a data set", reader, where=name))
    takes = accepted(reader)
    if root is not None and "root" not in takes:
        raise ConfigError(expected("root", "absent", str(root), where=what, do="This data set takes no root."))
    if download and "download" not in takes:
        raise ConfigError(expected("download", "absent", download, where=what, do="This data set is never fetched."))
    if is_reference(name) and "split" not in takes and split not in ("train", "all"):
        raise ConfigError(
            expected("split", "'train' or 'all'", split, where=what)
            + " Give the callable an argument `split`: without one, training samples would be handed out as test samples."
        )
    if root is None and not is_reference(name) and _needs_root(reader):
        do = "Pass --data.root FOLDER (root=)."
        raise ConfigError(expected("root", "the folder that holds the files", None, where=what, do=do))
    offered = {"root": None if root is None else Path(root), "split": split, "download": download}
    fixed = {key: value for key, value in offered.items() if key in takes}
    dataset: ImageDataset = call(reader, what, fixed, args)
    if is_reference(name):
        # A data set of sequences says so itself, and has its own checks.
        dataset = dataset if hasattr(dataset, "pad_value") else adopt(dataset, name)
    if len(dataset) == 0:
        raise DataError(expected("data set", "at least one sample long", 0, where=what))
    if limit is None:
        return dataset
    at_least(limit, 1, "limit", where=what)
    labels = getattr(dataset, "labels", None)
    if not isinstance(labels, np.ndarray) or labels.ndim > 1:
        labels = np.zeros(len(dataset), dtype=np.int64)
    return SubsetDataset(dataset, stratified_order(labels, "limit")[:limit])
