"""Labels of every kind on their way into a batch: a class, a number, or a vector of either."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL

__all__ = ["as_label", "label_rows"]


def as_label(label: Any, sample: int) -> int | float | Tensor:
    """Return what a data set gave for a label as a whole number, a number, or a tensor.

    Args:
        label: A number, an array or tensor, or None where there is none.
        sample: Its sample, for the error.

    Returns:
        An int, a float or a tensor of at least one axis; `IGNORE_LABEL` for None.

    Raises:
        DataError: for anything else.

    >>> as_label(np.float32(0.5), 0), as_label(None, 0), as_label(np.array([1, 0]), 0)
    (0.5, -1, tensor([1, 0]))
    """
    if label is None:
        return IGNORE_LABEL
    if isinstance(label, np.ndarray):
        label = torch.from_numpy(np.require(label, requirements=("C", "W")))
    if isinstance(label, Tensor):
        if label.ndim:
            return label.detach().as_subclass(Tensor)
        label = label.item()
    if isinstance(label, int | np.integer):
        return int(label)
    if isinstance(label, float | np.floating):
        return float(label)
    raise DataError(expected("label", "a number, a tensor or None", label, where=f"sample {sample}"))


def label_rows(labels: npt.ArrayLike, n_rows: int, where: str = "") -> npt.NDArray[Any]:
    """Return labels that are given by row of the book: whole numbers as int64, others as float32.

    Args:
        labels: Shape [rows], or [rows, ...] for vectors.
        n_rows: Least number of rows.
        where: Who takes them, for the error.

    Raises:
        ConfigError: for anything else.

    >>> label_rows([[0, 1], [1, 1]], 2).dtype, label_rows([0.5], 1).dtype
    (dtype('int64'), dtype('float32'))
    """
    found = np.asarray(labels)
    if found.ndim == 0 or found.dtype.kind not in "iubf" or len(found) < n_rows:
        wish = f"numbers, one or one vector a row of the book (at least {n_rows})"
        raise ConfigError(expected("labels", wish, f"{found.dtype} of shape {found.shape}", where=where))
    return np.ascontiguousarray(found, dtype=np.float32 if found.dtype.kind == "f" else np.int64)
