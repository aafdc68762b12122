"""The user's own data set, brought to the shape that this package works with."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.zoo.images import ImageDataset, check_labels, check_vectors
from bookkd.zoo.masks import as_mask, check_mask

__all__ = ["UserDataset", "UserMasks", "UserVectors", "adopt"]


class _Wrapped:
    """Images of a data set of the user's, converted when they are read."""

    def __init__(self, whole: Any, name: str, labels: npt.NDArray[Any], class_names: tuple[str, ...]) -> None:
        self.whole = whole
        self.name = name
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def _item(self, index: int) -> tuple[Tensor, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, label = _pair(self.whole, index, self.name)
        return _tensor(image, index, self.name), label


class UserDataset(_Wrapped):
    """A data set of the user's with the names that `ImageDataset` asks for, of one class a sample.

    Args:
        whole: The user's object.
        name: Its name.
        labels: int64 [len]; -1 where the class is not known.
        class_names: One name a class.
    """

    def __init__(self, whole: Any, name: str, labels: npt.NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        super().__init__(whole, name, check_labels(labels, len(class_names), name), class_names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._item(index)
        return image, int(_class(label, index, self.name))


class UserVectors(_Wrapped):
    """A data set of the user's with several labels, or numbers, a sample.

    Args:
        whole: The user's object.
        name: Its name.
        labels: [len, names]; they, and not those of the items, are given out.
        class_names: One name a class, or a number.
    """

    def __init__(self, whole: Any, name: str, labels: npt.NDArray[Any], class_names: tuple[str, ...]) -> None:
        super().__init__(whole, name, check_vectors(labels, len(class_names), len(labels), name), class_names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, _ = self._item(index)
        return image, torch.from_numpy(self.labels[index].copy())


class UserMasks:
    """A data set of the user's with one class at every pixel.

    Args:
        whole: The user's object; its `void` says which ids stand for no class.
        name: Its name.

    Raises:
        DataError: without names of the classes.
    """

    def __init__(self, whole: Any, name: str) -> None:
        self.whole, self.name = whole, name
        self.void = np.atleast_1d(getattr(whole, "void", 255))
        names = next((getattr(whole, key) for key in ("class_names", "classes") if hasattr(whole, key)), None)
        if names is None:
            do = "Give the data set an attribute `class_names`, in the order of the ids."
            raise DataError(expected("class_names", "given with masks", "none", where=name, do=do))
        self.class_names = tuple(str(each) for each in names)

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, mask = _pair(self.whole, index, self.name)
        view, ids = _tensor(image, index, self.name), np.asarray(mask).astype(np.int64)
        ids[np.isin(ids, self.void)] = IGNORE_LABEL
        check_mask(ids, view.shape[-2:], len(self.class_names), f"{self.name}, sample {index}")
        return view, as_mask(ids)


def adopt(dataset: Any, name: str) -> ImageDataset:
    """Bring what a user's callable returned to an `ImageDataset`.

    Items are (image, label) pairs; the image is a tensor, a numpy array or a PIL image. Labels come from `labels` or
    `targets`, or else by reading every item once; names from `class_names` or `classes`, or else the numbers. The label is

    - a whole number: the class. -1 says that it is not known: a book can be made of such samples and a student learns from
      what the teacher says of them, but a test on them is refused;
    - a vector, of one length for all samples: for whole numbers which classes are present (1, 0, and -1 where not known), for
      floating ones numbers to predict (NaN where not known);
    - a floating number: a vector of one;
    - a mask, a tensor or array [height, width] or a PIL image: the class of each pixel, `IGNORE_LABEL` or an id of the data set's attribute
      `void` (255 without) where it has none. Masks are read when they are asked for, and names must be given.

    Args:
        dataset: Anything with a length and items by number.
        name: Its name in errors and in the fingerprint.

    Raises:
        DataError: no length, items of another form, labels out of range, or neither names nor any known class.

    >>> adopt([(torch.zeros(1, 2, 2, dtype=torch.uint8), 1)] * 3, "pairs").class_names
    ('0', '1')
    >>> adopt([(torch.zeros(1, 2, 2, dtype=torch.uint8), 0.5)] * 3, "angles")[0][1]
    tensor([0.5000])
    """
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise DataError(expected("data set", "an object with a length and items by number", dataset, where=name))
    if len(dataset) == 0:
        raise DataError(expected("data set", "at least one sample long", 0, where=name))
    image, first = _pair(dataset, 0, name)
    _tensor(image, 0, name)
    if getattr(first, "ndim", 0) == 2 or hasattr(first, "getbands"):
        return UserMasks(dataset, name)  # type: ignore[return-value]
    labels = _labels(dataset, name)
    names = next((getattr(dataset, key) for key in ("class_names", "classes") if hasattr(dataset, key)), None)
    if labels.ndim == 2:
        names = range(labels.shape[1]) if names is None else names
        return UserVectors(dataset, name, labels, tuple(str(each) for each in names))
    if names is None:
        if labels.max() == IGNORE_LABEL:
            raise DataError(
                expected("class_names", "given where no sample has a class", "none", where=name)
                + " Give the data set an attribute `class_names`, in the order of the teacher's classes."
            )
        names = range(int(labels.max()) + 1)
    return UserDataset(dataset, name, labels.astype(np.int64), tuple(str(each) for each in names))


def _labels(dataset: Any, name: str) -> npt.NDArray[Any]:
    """Return classes [len], or vectors [len, names]."""
    given = next((getattr(dataset, key) for key in ("labels", "targets") if hasattr(dataset, key)), None)
    if given is None:
        given = [_label(_pair(dataset, index, name)[1], index, name) for index in range(len(dataset))]
    try:
        labels = np.asarray(given)
    except ValueError as error:
        raise DataError(expected("labels", "of one length for all samples", str(error), where=name)) from error
    if labels.shape == (len(dataset),) and labels.dtype.kind == "f":
        labels = labels[:, None]
    vectors = labels.ndim == 2 and labels.shape[0] == len(dataset) and labels.dtype.kind in "biuf"
    if not vectors and (labels.shape != (len(dataset),) or labels.dtype.kind not in "iu"):
        got = f"{labels.dtype} {labels.shape}"
        raise DataError(expected("labels", f"{len(dataset)} whole numbers, one a sample, or vectors", got, where=name))
    return labels


def _pair(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            expected("item", "an (image, class) pair", type(item).__name__, where=f"{name}, sample {index}")
        )
    return item[0], item[1]


def _label(label: Any, index: int, name: str) -> Any:
    """Return a class, a number or a vector as numpy takes them."""
    if isinstance(label, float | np.floating):
        return float(label)
    if isinstance(label, list | tuple) or getattr(label, "ndim", 0) == 1:
        return np.asarray(label)
    if getattr(label, "ndim", None) == 0 and np.asarray(label).dtype.kind == "f":
        return float(label)
    return _class(label, index, name)


def _class(label: Any, index: int, name: str) -> int:
    try:
        found: int = label.__index__()
    except (AttributeError, TypeError) as error:
        raise DataError(
            expected("class", "a whole number, -1 where not known", label, where=f"{name}, sample {index}")
        ) from error
    return found


def _tensor(image: Any, index: int, name: str) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image)
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        pixels = np.array(image, dtype=np.uint8)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    raise DataError(
        expected("image", "a tensor, an array or a PIL image", type(image).__name__, where=f"{name}, sample {index}")
    )
