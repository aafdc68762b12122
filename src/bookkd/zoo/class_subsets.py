"""The samples of some classes alone, under new numbers: what a student sees that is to tell these apart and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import ConfigError, DataError, UnknownNameError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose
from bookkd.zoo.images import ImageDataset, SubsetDataset

__all__ = ["ClassSubset", "class_subset", "find_classes"]


class ClassSubset(SubsetDataset):
    """Samples of some classes of another data set; its labels are places in `class_names`, which are those of the subset.

    Args:
        whole: The data set.
        indices: int64 [n]: the sample of `whole` behind each sample.
        classes: Numbers of the classes in `whole`, in the order that they have here.
    """

    def __init__(self, whole: ImageDataset, indices: npt.NDArray[np.int64], classes: tuple[int, ...]) -> None:
        super().__init__(whole, indices)
        object.__setattr__(self, "classes", classes)
        numbers = np.full(len(whole.class_names), IGNORE_LABEL, dtype=np.int64)
        numbers[list(classes)] = np.arange(len(classes))
        object.__setattr__(self, "_numbers", numbers)
        object.__setattr__(self, "_labels", numbers[np.asarray(whole.labels)[indices]])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the subset."""
        return tuple(self.whole.class_names[place] for place in self.classes)

    @property
    def all_class_names(self) -> tuple[str, ...]:
        """Of the whole data set, which a teacher may know."""
        return tuple(self.whole.class_names)

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Places in `class_names`, int64 [n]."""
        found: npt.NDArray[Any] = self._labels
        return found

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        view, label = self.whole[int(self.indices[index])]
        return view, int(self._numbers[int(label)])


def find_classes(given: Sequence[str | int], names: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the numbers of some classes.

    Args:
        given: Names, or numbers (also as text where no class is called so); at least two.
        names: All classes, in their order.
        where: The data set, for the error.

    Raises:
        UnknownNameError: for a class that there is not; the nearest are listed.
        ConfigError: for a class that is given twice, or fewer than two.

    >>> find_classes(["dog", "0"], ["cat", "dog", "owl"], "pets")
    (1, 0)
    """
    known = {name: place for place, name in enumerate(names)}
    found = []
    for each in given:
        text = str(each)
        if text not in known and text.isdecimal() and int(text) < len(names):
            found.append(int(text))
        else:
            if text not in known and text.isdecimal():
                wish = f"a number from 0 to {len(names) - 1}, or a name"
                raise UnknownNameError(expected("class", wish, text, where=where))
            found.append(known[choose(text, names, "class", where=where)])
    if len(set(found)) < len(found):
        twice = names[next(place for place in found if found.count(place) > 1)]
        raise ConfigError(expected("classes", "each given once", f"{twice} twice", where=where, do="Leave one out."))
    if len(found) < 2:
        raise ConfigError(expected("classes", "at least two, to tell apart", list(given), where=where))
    return tuple(found)


def class_subset(dataset: ImageDataset, classes: Sequence[str | int]) -> ClassSubset:
    """Return the samples of some classes alone, under new numbers.

    Args:
        dataset: Of single labels.
        classes: Names or numbers, in the order that they are to have.

    Raises:
        UnknownNameError: for a class that there is not.
        ConfigError: for a class that is given twice, fewer than two, or labels that are vectors.
        DataError: if no sample is of these classes.
    """
    name = dataset.name
    given = getattr(dataset, "labels", None)
    labels = np.asarray(() if given is None else given)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(dataset):
        do = "A subset of classes is of data with one class a sample."
        got = "none, or a class at every pixel" if given is None else f"{labels.dtype} {labels.shape}"
        raise ConfigError(expected("labels", "one class a sample", got, where=name, do=do))
    chosen = find_classes(classes, dataset.class_names, name)
    indices = np.flatnonzero(np.isin(labels, chosen))
    if not len(indices):
        raise DataError(expected("samples", f"of the classes {', '.join(map(str, classes))}", "none", where=name))
    return ClassSubset(dataset, indices.astype(np.int64), chosen)
