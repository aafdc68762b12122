"""What a codec lost of the logits, measured while writing: T^2 KL, top-1 agreement, kept mass, error of the gradient.

Per unit: exact sums and a histogram with logarithmic bins, so that units merge without their records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bookkd.book.codecs import ClassArray, Codec, RowIds, SampledArray, SparseArray
from bookkd.book.codecs.base import Array, Decoded
from bookkd.core.errors import BookFormatError, FidelityError
from bookkd.core.fields import LOGITS

__all__ = [
    "Lost",
    "Measured",
    "honoured",
    "joined",
    "lost",
    "measure",
    "measure_codec",
    "merge",
    "pick",
    "summary",
    "with_choice",
]

ROWS = 1024
_VALUES = 2**22
_LOW, _HIGH, _PER_DECADE = -12, 4, 8
_BINS = (_HIGH - _LOW) * _PER_DECADE + 2
"""Bin 0: below 1e-12; the last: above 1e4; the others are eighths of a decade."""


class Lost(NamedTuple):
    """What was lost of each measured position at one temperature, all [rows].

    Args:
        kl: KL(original || decoded) in nats, over the outcomes that the codec keeps. Of draws: KL(draws || original), which is
            noise: on average nothing was lost.
        every_class: The same over every class, what is known as one sum spread evenly. Of draws: the same as `kl`.
        kept: Mass of the original on the classes that were kept.
        error: Squared distance of the decoded probabilities from the original ones.
        signal: Squared distance of the original ones from equal probabilities.
    """

    kl: Array
    every_class: Array
    kept: Array
    error: Array
    signal: Array


@dataclass
class Measured:
    """Values per measured position, gathered until the unit is whole."""

    agree: list[Array] = field(default_factory=list)
    lost: dict[float, list[Lost]] = field(default_factory=dict)
    unpromised: dict[float, list[Array]] = field(default_factory=dict)
    """Kept mass at temperatures that the codec cannot honour."""
    unbiased: bool = False
    """Whether the rows are draws, whose KL is noise."""

    def to_json(self) -> dict[str, Any]:
        """Return sums and histograms."""
        agree = np.concatenate(self.agree)
        found: dict[str, Any] = {
            "n": len(agree),
            "agree": int(agree.sum()),
            "temperatures": [_sums(at, joined(self.lost[at])) for at in sorted(self.lost)],
        }
        if self.unbiased:
            found["unbiased"] = True
        if self.unpromised:
            kept = {at: math.fsum(np.concatenate(values).tolist()) for at, values in self.unpromised.items()}
            found["unpromised"] = [{"temperature": at, "kept": kept[at]} for at in sorted(kept)]
        return found


def pick(rows: int, shape: Sequence[int]) -> Array:
    """Return the rows of a unit that are measured: evenly spaced, at most 1024 and about 4 million values."""
    count = max(1, min(rows, ROWS, _VALUES // max(1, math.prod(shape))))
    found: Array = np.arange(count) * rows // count
    return found


def honoured(codec: Codec, promised: Sequence[float], temperatures: Sequence[float]) -> list[float]:
    """Return those of `temperatures` that a field can honour; none of a codec that keeps no distribution."""
    return [] if codec.hard else [each for each in temperatures if not promised or each in promised]


def measure(
    into: Measured, original: Array, decoded: Decoded, temperatures: Sequence[float], unpromised: Sequence[float] = ()
) -> None:
    """Add rows [rows, classes, ...] and what the codec made of them.

    Args:
        into: Where the values go.
        original: Logits.
        decoded: Of the same rows.
        temperatures: Where the loss is measured: those that the codec honours.
        unpromised: Where the kept mass alone is measured, of a codec that leaves classes out.
    """
    flat = np.moveaxis(original, 1, -1).reshape(-1, original.shape[1]).astype(np.float64)
    if isinstance(decoded, np.ndarray):
        decoded = np.moveaxis(decoded, 1, -1).reshape(flat.shape).astype(np.float64)
    into.agree.append(flat.argmax(axis=1) == _top(decoded))
    into.unbiased |= isinstance(decoded, SampledArray)
    for temperature in temperatures:
        found = lost(flat, decoded, temperature)
        kl, every_class = (np.maximum(temperature**2 * each, 0.0) for each in found[:2])
        into.lost.setdefault(temperature, []).append(found._replace(kl=kl, every_class=every_class))
    if not isinstance(decoded, np.ndarray):
        for temperature in unpromised:
            p = np.exp(_log_softmax(flat / temperature))
            into.unpromised.setdefault(temperature, []).append(np.where(_kept(decoded, p.shape), p, 0.0).sum(axis=1))


def measure_codec(codec: Codec, array: Array, temperatures: Sequence[float]) -> dict[str, Any]:
    """Return what a codec loses of logits, before a book is made with it.

    Args:
        codec: The codec.
        array: Logits [rows, classes].
        temperatures: Where to measure; of those that the codec does not promise, the kept mass alone.

    Returns:
        As an edition has it: `n`, `top1_agreement`, and by temperature the `mean`, `p99` and `max` of T^2 KL(original ||
        decoded) in nats, the `kept_mass` and the `gradient_error`; see `docs/book-format.md`.

    >>> from bookkd.book.codecs import Dense
    >>> found = measure_codec(Dense(), np.array([[2.0, 3.5, -1.0], [0.1, 0.2, 0.3]]), [4.0])
    >>> found["top1_agreement"], found["temperatures"]["4"]["mean"] < 1e-6
    (1.0, True)
    """
    measured, promised = Measured(), honoured(codec, codec.promised, temperatures)
    ids = RowIds(np.arange(len(array)), 0, LOGITS)
    parts = codec.encode(array, ids) if codec.draws_rows else codec.encode(array)
    others = [each for each in temperatures if each not in promised]
    measure(measured, array, codec.decode(parts, array.shape[1:]), promised, others)
    return summary(merge([{"": measured.to_json()}], ""))


def lost(original: Array, decoded: Decoded, temperature: float) -> Lost:
    """Return what is lost at `temperature`.

    KL = sum_c p_c (log p_c - log q_c), with p and q the softmax of logits / T. For a `SparseArray` the classes left out
    stand as one bucket on both sides.

    Args:
        original: float64 [rows, classes]; -inf allowed.
        decoded: The same shape, or what is left of a distribution.
        temperature: Above 0; one of the promised ones where there are some.
    """
    log_p = _log_softmax(original / temperature)
    p = np.exp(log_p)
    signal = ((p - 1 / p.shape[1]) ** 2).sum(axis=1)
    if isinstance(decoded, SampledArray):
        q = decoded.probabilities()
        with np.errstate(divide="ignore"):
            noise = _kl(np.log(q), log_p)
        return Lost(noise, noise, np.where(q > 0, p, 0.0).sum(axis=1), ((q - p) ** 2).sum(axis=1), signal)
    if isinstance(decoded, SparseArray):
        kl, kept = _bucket(log_p, decoded, temperature)
        q = _spread(decoded, temperature)
        with np.errstate(divide="ignore"):
            every_class = _kl(log_p, np.log(q))
        return Lost(kl, every_class, kept, ((q - p) ** 2).sum(axis=1), signal)
    if isinstance(decoded, ClassArray):
        raise FidelityError("Expected a distribution to measure, got classes alone (codec argmax).")
    log_q = _log_softmax(decoded / temperature)
    kl = _kl(log_p, log_q)
    return Lost(kl, kl, np.ones(len(p)), ((np.exp(log_q) - p) ** 2).sum(axis=1), signal)


def _top(decoded: Decoded) -> Array:
    """Return the likeliest class of each row."""
    if isinstance(decoded, SparseArray):
        return decoded.indices[:, 0]
    if isinstance(decoded, SampledArray):
        decoded = decoded.probabilities()
    top: Array = decoded.classes if isinstance(decoded, ClassArray) else decoded.argmax(axis=1)
    return top


def _kept(decoded: SparseArray | SampledArray | ClassArray, shape: tuple[int, ...]) -> Array:
    """Return which classes are kept, bool [rows, classes]."""
    if isinstance(decoded, SampledArray):
        found: Array = decoded.probabilities() > 0
        return found
    out = np.zeros(shape, dtype=np.bool_)
    places = decoded.indices if isinstance(decoded, SparseArray) else decoded.classes[:, None]
    np.put_along_axis(out, places.astype(np.int64), True, axis=1)
    return out


def _spread(decoded: SparseArray, temperature: float) -> Array:
    """Return probabilities of every class, the tail in equal parts: the gradient's target where the student says as much."""
    tail = np.exp(decoded.log_tail_mass[:, decoded.temperatures.index(temperature), None].astype(np.float64))
    rows, k = decoded.values.shape
    out = np.broadcast_to(tail / max(1, decoded.n_classes - k), (rows, decoded.n_classes)).copy()
    inside = (1 - tail) * np.exp(_log_softmax(decoded.values.astype(np.float64) / temperature))
    np.put_along_axis(out, decoded.indices.astype(np.int64), inside, axis=1)
    return out


def _bucket(log_p: Array, decoded: SparseArray, temperature: float) -> tuple[Array, Array]:
    """Return the KL over kept classes and one bucket of all others, and the kept mass of the original."""
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
        others = list(zip(*(unit.get("unpromised", []) for unit in units), strict=True))
        unpromised = [
            {"temperature": column[0]["temperature"], "kept": math.fsum(entry["kept"] for entry in column)}
            for column in others
        ]
        return {
            **({"unbiased": True} if any(unit.get("unbiased") for unit in units) else {}),
            **({"unpromised": unpromised} if unpromised else {}),
            "n": sum(unit["n"] for unit in units),
            "agree": sum(unit["agree"] for unit in units),
            "temperatures": [
                {
                    "temperature": column[0]["temperature"],
                    "sum": math.fsum(entry["sum"] for entry in column),
                    "max": max(entry["max"] for entry in column),
                    # Units of a book that was begun before these were measured do not have them.
                    **{
                        key: math.fsum(entry[key] for entry in column)
                        for key in ("kept", "every_class", "error", "signal")
                        if key == "kept" or all(key in entry for entry in column)
                    },
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
    """Return the figures of an edition: n, top-1 agreement, and per temperature mean, p99, max, kept mass, gradient error.

    p99 is the upper edge of its histogram bin (a third above the true value at most), or the maximum if that is less. The
    mean over every class stands beside that over the outcomes kept only where the two differ.
    """
    n = merged["n"]
    unpromised = {
        f"{entry['temperature']:g}": {"kept_mass": entry["kept"] / n} for entry in merged.get("unpromised", ())
    }
    return {
        **({"unbiased": True} if merged.get("unbiased") else {}),
        **({"unpromised": unpromised} if unpromised else {}),
        "n": n,
        "top1_agreement": merged["agree"] / n,
        "temperatures": {
            f"{entry['temperature']:g}": {
                "mean": entry["sum"] / n,
                "p99": min(_quantile(entry["histogram"], 0.99), entry["max"]),
                "max": entry["max"],
                "kept_mass": entry["kept"] / n,
                **_of_every_class(entry, n),
            }
            for entry in merged["temperatures"]
        },
    }


def with_choice(measured: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of each field with what its codec was chosen for and by, where it was."""
    return {name: {**figures, "choice": dict(choice)} if choice else figures for name, figures in measured.items()}


def joined(pieces: Sequence[Lost]) -> Lost:
    """Return the values of all pieces, in order."""
    return Lost(*(np.concatenate([piece[place] for piece in pieces]) for place in range(len(Lost._fields))))


def _of_every_class(entry: Mapping[str, Any], n: int) -> dict[str, float]:
    found = {}
    if entry.get("every_class", entry["sum"]) != entry["sum"]:
        found["mean_of_every_class"] = entry["every_class"] / n
    if "error" in entry and "signal" in entry:
        found["gradient_error"] = math.sqrt(entry["error"] / entry["signal"]) if entry["signal"] > 0 else 0.0
    return found


def _sums(temperature: float, found: Lost) -> dict[str, Any]:
    values = found.kl
    with np.errstate(divide="ignore"):
        bins = np.floor((np.log10(values) - _LOW) * _PER_DECADE) + 1
    counts = np.bincount(np.clip(bins, 0, _BINS - 1).astype(np.int64), minlength=_BINS)
    return {
        "temperature": temperature,
        "sum": math.fsum(values.tolist()),
        "max": float(values.max()),
        "kept": math.fsum(found.kept.tolist()),
        "every_class": math.fsum(found.every_class.tolist()),
        "error": math.fsum(found.error.tolist()),
        "signal": math.fsum(found.signal.tolist()),
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
