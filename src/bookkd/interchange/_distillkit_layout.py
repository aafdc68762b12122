"""How DistillKit's bytes become log-probabilities and classes: its configuration of compression, checked, and the decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import DataError, expected
from bookkd.core.names import require
from bookkd.interchange._source import read_file

__all__ = ["MAX_K", "Layout", "read_layout"]

Array = npt.NDArray[Any]

MAX_K = 2**16
"""Most classes of a position."""
_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Layout:
    """DistillKit's `compression_config.yaml`, checked.

    Args:
        d: Vocabulary.
        k: Classes a position.
        exact_k: Of them, how many are stored as numbers.
        exact_dtype: Of these.
        terms: Powers, "sqrt" or "exp" of the curve through the others.
        term_dtype: Of its coefficients.
        bins: (dtype of the scale, bits of an element, elements) of each bin of residuals.
        delta: Whether differences are stored.
        normalised: Whether places run from 0 to 1.
    """

    d: int
    k: int
    exact_k: int
    exact_dtype: str
    terms: tuple[int | str, ...]
    term_dtype: str
    bins: tuple[tuple[str, int, int], ...]
    delta: bool
    normalised: bool

    @property
    def index_bits(self) -> int:
        """Bits of a class."""
        return math.ceil(float(np.log2(np.float32(self.d))))

    @property
    def logprob_bytes(self) -> int:
        """Bytes of a position's log-probabilities."""
        bins = sum(_WIDTHS[kind] + (bits * count + 7) // 8 for kind, bits, count in self.bins)
        return self.exact_k * _WIDTHS[self.exact_dtype] + len(self.terms) * _WIDTHS[self.term_dtype] + bins

    @property
    def index_bytes(self) -> int:
        """Bytes of a position's classes."""
        return (self.k * self.index_bits + 7) // 8

    def log_p(self, data: Array) -> Array:
        """Return log-probabilities float64 [positions, k] of bytes [positions, logprob_bytes]."""
        # Bytes of another configuration are any numbers; that they are no log-probabilities is found where they are used.
        with np.errstate(all="ignore"):
            return self._log_p(data)

    def _log_p(self, data: Array) -> Array:
        exact, data = _split(data, self.exact_k * _WIDTHS[self.exact_dtype])
        coefficients, data = _split(data, len(self.terms) * _WIDTHS[self.term_dtype])
        count = self.k - self.exact_k
        rest = np.zeros((len(data), count))
        if self.terms and count:
            rest += _floats(coefficients, self.term_dtype) @ self._curve(count).T
        place = 0
        for kind, bits, number in self.bins:
            scale, data = _split(data, _WIDTHS[kind])
            packed, data = _split(data, (bits * number + 7) // 8)
            codes = _unpacked(packed, bits, number).astype(np.float64)
            signed = 2 * codes - 1 if bits == 1 else codes - 2.0 ** (bits - 1)
            rest[:, place : place + number] += signed * _floats(scale, kind)
            place += number
        found = np.concatenate([_floats(exact, self.exact_dtype), rest], axis=1)
        return np.cumsum(found, axis=1) if self.delta else found

    def classes(self, data: Array) -> Array:
        """Return classes int64 [positions, k] of bytes [positions, index_bytes]."""
        return _unpacked(data, self.index_bits, self.k)

    def _curve(self, count: int) -> Array:
        t = np.linspace(0, 1, count) if self.normalised else np.arange(count, dtype=np.float64)
        functions = {"sqrt": np.sqrt, "exp": np.exp}
        return np.stack([functions[term](t) if isinstance(term, str) else t**term for term in self.terms], axis=1)


def read_layout(path: Path) -> Layout:
    """Return the configuration of a file.

    Raises:
        DataError: if it is none.
    """
    yaml = require("yaml", "interchange")
    try:
        found = yaml.safe_load(read_file(path, 2**20).decode("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(expected("compression", "a YAML file", f"{error}", where=str(path))) from error
    if not isinstance(found, dict):
        raise DataError(expected("compression", "names and values", type(found).__name__, where=str(path)))
    found = found.get("logprob_compressor", found)
    try:
        return _layout(found, str(path))
    except (KeyError, TypeError, AttributeError) as error:
        wish = "d, k, exact_k and the others of DistillKit"
        raise DataError(expected("compression", wish, f"{type(error).__name__} {error}", where=str(path))) from error


def _layout(found: Mapping[str, Any], where: str) -> Layout:
    def whole(name: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DataError(expected(name, f"a whole number from {low} to {high}", value, where=where))
        return value

    def kind(name: str, value: Any) -> str:
        if value not in _WIDTHS:
            raise DataError(expected(name, f"one of {', '.join(_WIDTHS)}", value, where=where))
        return str(value)

    d = whole("d", found["d"], 2, 2**31)
    k = whole("k", found["k"], 1, min(d, MAX_K))
    exact_k = whole("exact_k", found["exact_k"], 0, k)
    terms = list(found.get("polynomial_terms") or [])
    if len(terms) > 64 or not all(
        term in ("sqrt", "exp") or whole("polynomial_terms", term, -64, 64) <= 64 for term in terms
    ):
        raise DataError(expected("polynomial_terms", "at most 64 powers, sqrt or exp", len(terms), where=where))
    bins = []
    for each in found.get("residual_bins") or []:
        bits = whole("element_bits", each["element_bits"], 1, 32)
        bins.append((kind("scale_dtype", each["scale_dtype"]), bits, whole("num_elements", each["num_elements"], 1, k)))
    if sum(count for _, _, count in bins) > k - exact_k:
        raise DataError(expected("residual_bins", f"at most k - exact_k = {k - exact_k} elements", bins, where=where))
    return Layout(
        d,
        k,
        exact_k,
        kind("exact_dtype", found.get("exact_dtype", "float32")),
        tuple(terms),
        kind("term_dtype", found.get("term_dtype", "float32")),
        tuple(bins),
        found.get("delta_encoding", True) is True,
        found.get("normalize_t", False) is True,
    )


def _split(data: Array, width: int) -> tuple[Array, Array]:
    return np.ascontiguousarray(data[:, :width]), data[:, width:]


def _floats(data: Array, kind: str) -> Array:
    """Return bytes [rows, n * width] as float64 [rows, n]."""
    if not data.shape[1]:
        return np.zeros((len(data), 0))
    if kind == "bfloat16":
        found: Array = (data.view("<u2").astype("<u4") << 16).view("<f4")
    else:
        found = data.view(np.dtype(kind).newbyteorder("<"))
    return found.astype(np.float64)


def _unpacked(data: Array, bits: int, count: int) -> Array:
    """Return whole numbers of `bits` bits, highest first, packed without gaps: int64 [rows, count]."""
    flags = np.unpackbits(data, axis=1)[:, : bits * count].reshape(len(data), count, bits)
    found = np.zeros((len(data), count), dtype=np.int64)
    for bit in range(bits):
        found = found << 1 | flags[:, :, bit]
    return found
