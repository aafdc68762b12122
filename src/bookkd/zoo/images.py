"""The shape of a data set in this package, and the plain ones: whole arrays in memory, and a choice of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL

__all__ = ["ArrayDataset", "ImageDataset", "SubsetDataset", "VectorDataset", "check_labels", "check_vectors"]


@runtime_checkable
class ImageDataset(Protocol):
    """What every reader returns: `ds[i]` is a uint8 image [channels, height, width] and its class, or a vector of labels."""

    @property
    def name(self) -> str:
        """Name of the set, without a path."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, or a number of a vector; the class is the place in this tuple."""
        ...

    @property
    def labels(self) -> npt.NDArray[Any]:
        """All labels, without reading an image.

        Classes int64 [len], `IGNORE_LABEL` (-1) where not known; or vectors [len, names], int64 or float32.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...


def check_labels(labels: npt.NDArray[np.int64], n_classes: int, where: str) -> npt.NDArray[np.int64]:
    """Return `labels` if each is a class, 0 to n_classes - 1, or `IGNORE_LABEL` (-1) where the class is not known.

    Raises:
        DataError: naming the first sample that is not.

    >>> check_labels(np.array([0, 3]), 2, "digits")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.DataError: Expected `label` to be between 0 and 1, or -1 where not known, got 3 (digits, sample 1).
    """
    wrong = np.flatnonzero(((labels < 0) & (labels != IGNORE_LABEL)) | (labels >= n_classes))
    if len(wrong):
        first = int(wrong[0])
        must = f"between 0 and {n_classes - 1}, or {IGNORE_LABEL} where not known"
        raise DataError(expected("label", must, int(labels[first]), where=f"{where}, sample {first}"))
    return labels


def check_vectors(labels: npt.NDArray[Any], names: int, n: int, where: str) -> npt.NDArray[Any]:
    """Return vectors of labels, one a sample, as int64 or float32.

    Args:
        labels: Whole numbers, truths or floats [n, names]; what they may be is for the task to say.
        names: Numbers of a vector.
        n: Number of samples.
        where: Name of the data set, for the error.

    Raises:
        DataError: for another shape or kind.

    >>> check_vectors(np.array([[True, False]]), 2, 1, "mine")
    array([[1, 0]])
    """
    if labels.shape != (n, names) or labels.dtype.kind not in "biuf":
        got = f"{labels.dtype} {labels.shape}"
        raise DataError(expected("labels", f"numbers [{n}, {names}], one vector a sample", got, where=where))
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A data set that lies in memory.

    Args:
        name: Name of the set.
        images: uint8 [n, channels, height, width].
        labels: int64 [n]; -1 where the class is not known.
        class_names: One name a class.
    """

    name: str
    images: Tensor
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(expected("images", "uint8 [n, channels, height, width]", got, where=self.name))
        if len(self.labels) != len(self.images):
            raise DataError(expected("labels", f"{len(self.images)}, one an image", len(self.labels), where=self.name))
        check_labels(self.labels, len(self.class_names), self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True, eq=False)
class VectorDataset:
    """A data set in memory whose labels are vectors: which classes are present, or numbers to predict.

    Args:
        name: Name of the set.
        images: uint8 [n, channels, height, width].
        labels: int64 [n, names] of 0, 1 and -1 where not known, or float32 [n, names] with NaN where not known.
        class_names: One name a class, or a number.

    >>> images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> VectorDataset("mine", images, np.array([[0, 1]]), ("cat", "dog"))[0][1]
    tensor([0, 1])
    """

    name: str
    images: Tensor
    labels: npt.NDArray[Any]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(expected("images", "uint8 [n, channels, height, width]", got, where=self.name))
        labels = check_vectors(np.asarray(self.labels), len(self.class_names), len(self.images), self.name)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], torch.from_numpy(self.labels[index].copy())


_TOLD = frozenset(
    {
        "pad_value", "vocabulary", "tokenizer", "control", "written_by", "most_positions", "label_is_input", "source_vocabulary", "prefix",
        "lineage", "begin", "end", "decode", "blank", "separator", "subsampling", "word_mark", "most_source_positions", "n_features", "all_class_names",
    }
)  # fmt: skip
"""What a data set says of itself: that it is of sequences, which tokens there are, what a network is fed, what its teacher knows."""


def _of_whole(ask: Callable[..., Any], indices: npt.NDArray[np.int64], index: int, *more: Any) -> Any:
    """Ask a data set about the sample behind one of its subset."""
    return ask(int(indices[index]), *more)


@dataclass(frozen=True, eq=False)
class SubsetDataset:
    """Some samples of another data set, renumbered in the order given.

    Args:
        whole: The data set.
        indices: int64 [n]: the sample of `whole` behind each sample.
    """

    whole: ImageDataset
    indices: npt.NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.whole.class_names

    def __getattr__(self, name: str) -> Any:
        # What a data set says of itself beside: that it is of sequences, which vocabulary.
        if name in _TOLD:
            return getattr(self.whole, name)
        if name in ("lengths", "needed") and hasattr(self.whole, name):
            return getattr(self.whole, name)[self.indices]
        if name in ("taught", "beside", "text") and hasattr(self.whole, name):
            return partial(_of_whole, getattr(self.whole, name), self.indices)
        raise AttributeError(name)

    @property
    def labels(self) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.asarray(self.whole.labels)[self.indices]
        return found

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.whole[int(self.indices[index])]
