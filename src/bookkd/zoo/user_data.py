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
from bookkd.zoo.images import ImageDataset, check_labels

__all__ = ["UserDataset", "adopt"]


class UserDataset:
    """A data set of the user's with the names that `ImageDataset` asks for; items are converted when they are read.

    Args:
        whole: The user's object.
        name: Its name.
        labels: int64 [len]; -1 where the class is not known.
        class_names: One name a class.
    """

    def __init__(self, whole: Any, name: str, labels: npt.NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        self.whole = whole
        self.name = name
        self.labels = check_labels(labels, len(class_names), name)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, label = _pair(self.whole, index, self.name)
        return _tensor(image, index, self.name), int(label)


def adopt(dataset: Any, name: str) -> ImageDataset:
    """Bring what a user's callable returned to an `ImageDataset`.

    Items are (image, class) pairs; the image is a tensor, a numpy array or a PIL image. Classes come from `labels` or
    `targets`, or else by reading every item once; names from `class_names` or `classes`, or else the numbers. A class of
    -1 says that it is not known: a book can be made of such samples and a student learns from what the teacher says of
    them, but a test on them is refused.

    Args:
        dataset: Anything with a length and items by number.
        name: Its name in errors and in the fingerprint.

    Raises:
        DataError: no length, items of another form, labels out of range, or neither names nor any known class.

    >>> adopt([(torch.zeros(1, 2, 2, dtype=torch.uint8), 1)] * 3, "pairs").class_names
    ('0', '1')
    """
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise DataError(expected("data set", "an object with a length and items by number", dataset, where=name))
    if len(dataset) == 0:
        raise DataError(expected("data set", "at least one sample long", 0, where=name))
    _tensor(_pair(dataset, 0, name)[0], 0, name)
    given = next((getattr(dataset, key) for key in ("labels", "targets") if hasattr(dataset, key)), None)
    if given is None:
        given = [_pair(dataset, index, name)[1] for index in range(len(dataset))]
    labels = np.asarray(given)
    if labels.shape != (len(dataset),) or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {labels.shape}"
        raise DataError(expected("labels", f"{len(dataset)} whole numbers, one a sample", got, where=name))
    names = next((getattr(dataset, key) for key in ("class_names", "classes") if hasattr(dataset, key)), None)
    if names is None:
        if labels.max() == IGNORE_LABEL:
            raise DataError(
                expected("class_names", "given where no sample has a class", "none", where=name)
                + " Give the data set an attribute `class_names`, in the order of the teacher's classes."
            )
        names = range(int(labels.max()) + 1)
    return UserDataset(dataset, name, labels.astype(np.int64), tuple(str(each) for each in names))


def _pair(dataset: Any, index: int, name: str) -> tuple[Any, int]:
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            expected("item", "an (image, class) pair", type(item).__name__, where=f"{name}, sample {index}")
        )
    image, label = item
    try:
        return image, label.__index__()
    except (AttributeError, TypeError) as error:
        raise DataError(
            expected("class", "a whole number, -1 where not known", label, where=f"{name}, sample {index}")
        ) from error


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
