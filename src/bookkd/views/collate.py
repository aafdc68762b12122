"""From records to a batch: a plain dict of tensors with the names of `core.fields`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import INPUT, RATIO, SAMPLE, VIEW, WEIGHT

__all__ = ["collate"]

_FLOATS = {WEIGHT, RATIO}


def collate(items: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> dict[str, Any]:
    """Stack the records of `Replay` into a batch; a batch that is ready already (`CachedViews`) passes through.

    Args:
        items: Records of one shape, or a batch.

    Returns:
        Name -> tensor [batch, ...]: whole numbers int64, other numbers, weights and ratios float32, tensors as they are.

    Raises:
        DataError: if the records differ in their names, shapes or dtypes.

    >>> collate([{"sample": 3, "weight": 1.0}, {"sample": 4, "weight": 0.0}])
    {'sample': tensor([3, 4]), 'weight': tensor([1., 0.])}
    """
    if isinstance(items, Mapping):
        return dict(items)
    names = list(items[0])
    for item in items:
        if item.keys() != items[0].keys():
            raise DataError(expected("records", f"all with {sorted(names)}", sorted(item), where=_where(item)))
    return {name: _stack(name, items) for name in names}


def _where(item: Mapping[str, Any]) -> str:
    return f"sample {item.get(SAMPLE)}, view {item.get(VIEW)}"


def _stack(name: str, items: Sequence[Mapping[str, Any]]) -> Tensor:
    first = items[0][name]
    if not isinstance(first, Tensor):
        if any(isinstance(item[name], Tensor) for item in items):
            raise DataError(expected(name, "a number for all records or a tensor for all", "both"))
        return torch.tensor([item[name] for item in items], dtype=torch.float32 if name in _FLOATS else None)
    for item in items:
        value = item[name]
        if not isinstance(value, Tensor) or value.shape != first.shape or value.dtype != first.dtype:
            shown = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                expected(
                    name,
                    f"{first.dtype} {tuple(first.shape)} like the first record of the batch",
                    shown,
                    where=_where(item),
                    do="End the transform with a crop or resize to one size." if name == INPUT else "",
                )
            )
    return torch.stack([item[name] for item in items])
