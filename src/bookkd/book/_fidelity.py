"""What a codec lost of the logits, measured while writing: T^2 KL(original || decoded), top-1 agreement, kept mass.

Per unit: exact sums and a histogram with logarithmic bins, so that units merge without their records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bookkd.book.codecs import Codec, SparseArray
from bookkd.book.codecs.base import Array
from bookkd.core.errors import BookFormatError

__all__ = ["Measured", "kl_and_kept", "measure", "measure_codec", "merge", "pick", "summary"]

ROWS = 1024
_VALUES = 2**22
_LOW, _HIGH, _PER_DECADE = -12, 4, 8
_BINS = (_HIGH - _LOW) * _PER_DECADE + 2
"""Bin 0: below 1e-12; the last: above 1e4; the others are eighths of a decade."""


@dataclass
class Measured:
    """Values per measured position, gathered until the unit is whole."""

    agree: list[Array] = field(default_factory=list)
    kl: dict[float, list[Array]] = field(default_factory=dict)
    kept: dict[float, list[Array]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return sums and histograms."""
        agree = np.concatenate(self.agree)
        return {
            "n": len(agree),
            "agree": int(agree.sum()),
            "temperatures": [
                _sums(temperature, np.concatenate(self.kl[temperature]), np.concatenate(self.kept[temperature]))
                for temperature in sorted(self.kl)
            ],
        }


def pick(rows: int, shape: Sequence[int]) -> Array:
    """Return the rows of a unit that are measured: evenly spaced, at most 1024 and about 4 million values."""
    count = max(1, min(rows, ROWS, _VALUES // max(1, math.prod(shape))))
    found: Array = np.arange(count) * rows // count
    return found


def measure(into: Measured, original: Array, decoded: Array | SparseArray, temperatures: Sequence[float]) -> None:
    """Add rows [rows, classes, ...] and what the codec made of them."""
    flat = np.moveaxis(original, 1, -1).reshape(-1, original.shape[1]).astype(np.float64)
    if isinstance(decoded, SparseArray):
        into.agree.append(flat.argmax(axis=1) == decoded.indices[:, 0])
    else:
        decoded = np.moveaxis(decoded, 1, -1).reshape(flat.shape).astype(np.float64)
        into.agree.append(flat.argmax(axis=1) == decoded.argmax(axis=1))
    for temperature in temperatures:
        kl, kept = kl_and_kept(flat, decoded, temperature)
        into.kl.setdefault(temperature, []).append(np.maximum(temperature**2 * kl, 0.0))
        into.kept.setdefault(temperature, []).append(kept)


def measure_codec(codec: Codec, array: Array, temperatures: Sequence[float]) -> dict[str, Any]:
    """Return what a codec loses of logits, before a book is made with it.

    Args:
        codec: The codec.
        array: Logits [rows, classes].
        temperatures: Where to measure; those that the codec does not promise are left out.

    Returns:
        As an edition has it: `n`, `top1_agreement`, and by temperature the `mean`, `p99` and `max` of T^2 KL(original ||
        decoded) in nats and the `kept_mass`.

    >>> from bookkd.book.codecs import Dense
    >>> found = measure_codec(Dense(), np.array([[2.0, 3.5, -1.0], [0.1, 0.2, 0.3]]), [4.0])
    >>> found["top1_agreement"], found["temperatures"]["4"]["mean"] < 1e-6
    (1.0, True)
    """
    measured = Measured()
    honoured = [value for value in temperatures if not codec.promised or value in codec.promised]
    decoded = codec.decode(codec.encode(array), array.shape[1:])
    measure(measured, array, decoded, honoured)
    return summary(merge([{"": measured.to_json()}], ""))


def kl_and_kept(original: Array, decoded: Array | SparseArray, temperature: float) -> tuple[Array, Array]:
    """Return KL(original || decoded) at `temperature` and the kept mass of the original, both [rows].

    KL = sum_c p_c (log p_c - log q_c), with p and q the softmax of logits / T. For a `SparseArray` the classes left out
    stand as one bucket on both sides.

    Args:
        original: float64 [rows, classes]; -inf allowed.
        decoded: The same shape, or sparse.
        temperature: Above 0; one of the promised ones for a sparse array.
    """
    log_p = _log_softmax(original / temperature)
    if not isinstance(decoded, SparseArray):
        return _kl(log_p, _log_softmax(decoded / temperature)), np.ones(len(log_p))
    log_tail_q = decoded.log_tail_mass[:, decoded.temperatures.index(temperature)].astype(np.float64)
    inside = np.log1p(-np.minimum(np.exp(log_tail_q), 1.0 - 2**-53))
    log_q = inside[:, None] + _log_softmax(decoded.values.astype(np.float64) / temperature)
    indices = decoded.indices.astype(np.int64)
    kept = np.take_along_axis(log_p, indices, axis=1)
    rest = np.exp(log_p)
    np.put_along_axis(rest, indices, 0.0, axis=1)
    tail = rest.sum(axis=1)
    with np.errstate(divide="ignore"):
        both_p = np.concatenate([kept, np.log(tail)[:, None]], axis=1)
    return _kl(both_p, np.concatenate([log_q, log_tail_q[:, None]], axis=1)), 1.0 - tail


def merge(sidecars: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Merge the `Measured.to_json` of field `name` over the units of a book.

    Raises:
        BookFormatError: if they were not measured alike.
    """
    try:
        units = [sidecar[name] for sidecar in sidecars]
        columns = list(zip(*(unit["temperatures"] for unit in units), strict=True))
        return {
            "n": sum(unit["n"] for unit in units),
            "agree": sum(unit["agree"] for unit in units),
            "temperatures": [
                {
                    "temperature": column[0]["temperature"],
                    "sum": math.fsum(entry["sum"] for entry in column),
                    "max": max(entry["max"] for entry in column),
                    "kept": math.fsum(entry["kept"] for entry in column),
                    "histogram": np.sum([entry["histogram"] for entry in column], axis=0).tolist(),
                }
                for column in columns
            ],
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BookFormatError(
            f"Expected the fidelity of all sidecars to be alike, got: {error!r}. Run `bookkd verify`."
        ) from error


def summary(merged: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an edition: n, top-1 agreement, and per temperature mean, p99, max and kept mass.

    p99 is the upper edge of its histogram bin (a third above the true value at most), or the maximum if that is less.
    """
    n = merged["n"]
    return {
        "n": n,
        "top1_agreement": merged["agree"] / n,
        "temperatures": {
            f"{entry['temperature']:g}": {
                "mean": entry["sum"] / n,
                "p99": min(_quantile(entry["histogram"], 0.99), entry["max"]),
                "max": entry["max"],
                "kept_mass": entry["kept"] / n,
            }
            for entry in merged["temperatures"]
        },
    }


def _sums(temperature: float, values: Array, kept: Array) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        bins = np.floor((np.log10(values) - _LOW) * _PER_DECADE) + 1
    counts = np.bincount(np.clip(bins, 0, _BINS - 1).astype(np.int64), minlength=_BINS)
    return {
        "temperature": temperature,
        "sum": math.fsum(values.tolist()),
        "max": float(values.max()),
        "kept": math.fsum(kept.tolist()),
        "histogram": counts.tolist(),
    }


def _quantile(histogram: Sequence[int], share: float) -> float:
    reached = int(np.searchsorted(np.cumsum(histogram), share * sum(histogram)))
    return float("inf") if reached >= _BINS - 1 else float(10.0 ** (_LOW + reached / _PER_DECADE))


def _log_softmax(values: Array) -> Array:
    centred = values - values.max(axis=1, keepdims=True)
    found: Array = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return found


def _kl(log_p: Array, log_q: Array) -> Array:
    said = np.isfinite(log_p)
    # 0 log 0 = 0; a class that the codec lost altogether would be infinite and is bounded by the smallest double.
    difference = np.subtract(log_p, np.maximum(log_q, -745.0), where=said, out=np.zeros_like(log_p))
    found: Array = (np.exp(log_p) * difference).sum(axis=1)
    return found
