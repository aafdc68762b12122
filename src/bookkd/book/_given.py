"""What callers give a writer beside the records: keys of the samples, and what making cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import _container, _layout
from bookkd.core import jsonio
from bookkd.core.errors import ConfigError, expected

__all__ = ["json_cost", "packed_keys"]


def packed_keys(keys: npt.NDArray[np.uint64], n_samples: int) -> bytes:
    """Return the bytes of a file of keys, and refuse what are none.

    Raises:
        ConfigError: for another number of keys, negative ones, fractions or repeats.
    """
    found = np.asarray(keys)
    if found.shape != (n_samples,) or found.dtype.kind not in "ui" or (found.size and found.min() < 0):
        raise ConfigError(
            expected("keys", f"whole numbers from 0, shape ({n_samples},)", f"{found.dtype} of shape {found.shape}")
        )
    if len(np.unique(found)) != n_samples:
        raise ConfigError(expected("keys", "without repeats", f"{n_samples - len(np.unique(found))} repeated ones"))
    return _container.pack({"keys": found.astype(np.uint64)})


def json_cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return what making cost as plain values, and refuse what no manifest can hold.

    Raises:
        ConfigError: for values that are not JSON, or too many of them.
    """
    try:
        jsonio.parse(jsonio.canonical({"": dict(cost)}), "cost", limit=_layout.JSON_LIMIT // 2)
    except (TypeError, ValueError) as error:
        raise ConfigError(expected("cost", "a mapping of finite JSON values", f"{error} in it")) from error
    return dict(cost)
