"""Which codec: every candidate tried on what the teacher really says, and the smallest taken that loses no more than asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bookkd.book._fidelity import Lost, Measured, honoured, joined, measure
from bookkd.book.codecs import Argmax, Codec, Dense, Int8, RowIds, Sampled, TopK, codec_text, codec_to_config
from bookkd.book.codecs.base import Array, Parts
from bookkd.book.ragged import RaggedArray
from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, FidelityError, TeacherOutputError, expected
from bookkd.core.fields import LOGITS

if TYPE_CHECKING:
    from bookkd.book.reader import Book

__all__ = ["Auto", "Candidate", "Choice", "choose_codec", "shortfall"]

_KEPT = (4, 8, 16, 32, 64, 128, 256, 512)
_MANY_CLASSES = 4096
"""Above it, and at temperature 1 alone, draws are a candidate: they are unbiased there and the noise averages out."""


@dataclass(frozen=True)
class Auto:
    """A wish in place of a codec: the smallest that meets it is taken.

    Args:
        max_kl: Most that may be lost: the mean of T^2 KL(teacher || record) over every class, in nats, at each temperature.
        max_bytes: Most bytes of a record's logits; None for no bound.

    >>> Auto(max_kl=1e-4)
    Auto(max_kl=0.0001, max_bytes=None)
    """

    max_kl: float = 1e-3
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        positive(self.max_kl, "max_kl", where="codec auto")
        if self.max_bytes is not None:
            at_least(self.max_bytes, 1, "max_bytes", where="codec auto")


@dataclass(frozen=True)
class Candidate:
    """One codec and what it loses.

    Args:
        codec: The codec.
        bytes_per_record: Bytes of a record's logits; the mean where they vary.
        top1_agreement: Share of records whose likeliest class is the teacher's.
        temperatures: Temperature -> `mean` and `p99` of T^2 KL over every class, `kept_mass`, `gradient_error`; of draws
            these are noise, right on average.
        meets: Whether it may be taken.
        why: Why not, or what else to know; empty where the figures say it.
    """

    codec: Codec
    bytes_per_record: float
    top1_agreement: float
    temperatures: Mapping[float, Mapping[str, float]]
    meets: bool
    why: str = ""

    @property
    def worst(self) -> float:
        """The largest mean loss over the temperatures; infinite where the codec honours none."""
        return max((figures["mean"] for figures in self.temperatures.values()), default=float("inf"))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "codec": codec_to_config(self.codec),
            "bytes_per_record": self.bytes_per_record,
            "top1_agreement": self.top1_agreement,
            "temperatures": {f"{at:g}": dict(figures) for at, figures in self.temperatures.items()},
            "meets": self.meets,
            "why": self.why,
        }


@dataclass(frozen=True)
class Choice:
    """What was measured, and the codec that was taken.

    Args:
        codec: The smallest that meets the wish.
        auto: The wish.
        temperatures: Where it had to be met.
        records: Records measured.
        candidates: All that were tried, by size.
    """

    codec: Codec
    auto: Auto
    temperatures: tuple[float, ...]
    records: int
    candidates: tuple[Candidate, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return what a plan keeps of it, JSON values."""
        return {
            "max_kl": self.auto.max_kl,
            "max_bytes": self.auto.max_bytes,
            "temperatures": list(self.temperatures),
            "records": self.records,
            "chosen": codec_to_config(self.codec),
            "candidates": [each.to_json() for each in self.candidates],
        }


def choose_codec(logits: Array, auto: Auto, *, temperatures: Sequence[float], ids: RowIds | None = None) -> Choice:
    """Try every candidate on some records and take the smallest that meets the wish.

    Candidates are float32, float16, int8, the k largest at several k with the tail at each temperature, draws, and the likeliest
    class. The last keeps no distribution and is only shown; draws may be taken at temperature 1 alone with more than 4096
    classes, where their noise averages out, and else by name only.

    Args:
        logits: What the teacher says, [records, classes]; a few thousand records, spread over samples and views.
        auto: The wish.
        temperatures: Where it must be met, at least one.
        ids: Which records they are, for draws; the first ones of view 0 where None.

    Returns:
        The choice, with the figures of every candidate.

    Raises:
        FidelityError: if none meets the wish; names the one that comes nearest.
        ConfigError: without a temperature, or for logits of another shape.

    >>> logits = np.random.default_rng(0).normal(size=(500, 100)) * 3
    >>> choose_codec(logits, Auto(), temperatures=[4.0]).codec, choose_codec(logits, Auto(1e-6), temperatures=[4.0]).codec
    (Int8(), Dense(dtype='float16'))
    """
    asked = tuple(float(positive(each, "temperatures", where="codec auto")) for each in temperatures)
    if not asked or logits.ndim != 2 or not len(logits):
        got = f"{len(asked)} temperatures and logits of shape {list(logits.shape)}"
        wish = "at least one, for logits [records, classes]"
        raise ConfigError(expected("temperatures", wish, got, where="codec auto"))
    rows = RowIds(np.arange(len(logits)), 0, LOGITS) if ids is None else ids
    tried = []
    for codec in _candidates(logits.shape[1], asked):
        try:
            tried.append(_tried(codec, logits, auto, asked, rows))
        except TeacherOutputError as error:
            nothing: dict[float, dict[str, float]] = {}
            tried.append(Candidate(codec, codec.bytes_per_record(logits.shape[1:]), 0.0, nothing, False, str(error)))
    tried.sort(key=lambda each: (each.bytes_per_record, each.worst))
    fit = [each for each in tried if each.meets]
    if not fit:
        raise _none(tried, auto, asked)
    return Choice(fit[0].codec, auto, asked, len(logits), tuple(tried))


def shortfall(book: Book) -> list[str]:
    """Say where a book whose codec was chosen loses more than was asked, as measured while it was written.

    Args:
        book: Any book.

    Returns:
        One line for each temperature; empty where all is as asked, or nothing was.
    """
    lines = []
    for name, lost in book.fidelity.items():
        max_kl = _number(_mapped(_mapped(lost).get("choice")).get("max_kl"))
        if max_kl is None or _mapped(lost).get("unbiased"):
            continue
        for at, figures in _mapped(_mapped(lost).get("temperatures")).items():
            mean = _number(_mapped(figures).get("mean_of_every_class", _mapped(figures).get("mean")))
            if mean is not None and mean > max_kl:
                lines.append(
                    f"{name} loses a mean T^2 KL of {mean:.2g} at temperature {at}, above the {max_kl:g} asked of codec "
                    f"auto: the records measured first lost less. Make the book with a smaller --codec.max_kl."
                )
    return lines


def _mapped(value: Any) -> Mapping[str, Any]:
    """Return an object of an edition, nothing in place of anything else: figures are told, and may be any JSON."""
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 2**62 else None


def _candidates(n_classes: int, temperatures: tuple[float, ...]) -> list[Codec]:
    found: list[Codec] = [Argmax(), Dense("float32"), Dense(), Int8()]
    for k in _KEPT:
        codec = TopK(k, temperatures)
        if k < n_classes and codec.bytes_per_record((n_classes,)) < 2 * n_classes:
            found.append(codec)
    return [*found, Sampled(temperature=1.0 if 1.0 in temperatures else temperatures[0])]


def _tried(codec: Codec, logits: Array, auto: Auto, asked: tuple[float, ...], ids: RowIds) -> Candidate:
    parts = codec.encode(logits, ids) if codec.draws_rows else codec.encode(logits)
    measured, promised = Measured(), honoured(codec, codec.promised, asked)
    measure(measured, logits, codec.decode(parts, logits.shape[1:]), promised)
    figures = {at: _figures(joined(measured.lost[at])) for at in promised}
    size = _mean_bytes(parts, len(logits))
    agree = float(np.concatenate(measured.agree).mean())
    meets, why = _judged(codec, figures, size, logits.shape[1], auto, asked)
    return Candidate(codec, size, agree, figures, meets, why)


def _figures(lost: Lost) -> dict[str, float]:
    signal = float(lost.signal.sum())
    return {
        "mean": float(lost.every_class.mean()),
        "p99": float(np.quantile(lost.every_class, 0.99)),
        "kept_mass": float(lost.kept.mean()),
        "gradient_error": float(np.sqrt(lost.error.sum() / signal)) if signal > 0 else 0.0,
    }


def _mean_bytes(parts: Parts, rows: int) -> float:
    ragged = [part for part in parts.values() if isinstance(part, RaggedArray)]
    fixed = sum(part.nbytes for part in parts.values() if not isinstance(part, RaggedArray))
    return float(fixed + sum(part.values.nbytes for part in ragged) + (4 * rows if ragged else 0)) / rows


def _judged(
    codec: Codec,
    figures: Mapping[float, Mapping[str, float]],
    size: float,
    n_classes: int,
    auto: Auto,
    asked: tuple[float, ...],
) -> tuple[bool, str]:
    """Return whether a codec may be taken, and what the figures alone do not say of it."""
    if auto.max_bytes is not None and size > auto.max_bytes:
        return False, "too large"
    if codec.hard:
        return False, "keeps no distribution: hard labels only, by name"
    if not codec.linear:
        return all(each["mean"] <= auto.max_kl for each in figures.values()), ""
    if asked == (1.0,) and n_classes > _MANY_CLASSES:
        return True, "draws: right on average, the figures are noise; only for losses linear in the teacher"
    return False, "draws: one temperature, and only losses linear in the teacher; by name"


def _none(tried: Sequence[Candidate], auto: Auto, asked: tuple[float, ...]) -> FidelityError:
    """Return the error that names the candidate that comes nearest."""
    room = f" in at most {auto.max_bytes} bytes" if auto.max_bytes is not None else ""
    whole = [each for each in tried if not each.codec.hard and not each.codec.linear and each.temperatures]
    within = [each for each in whole if each.why != "too large"]
    best = min(within or whole, key=lambda each: each.worst if within else each.bytes_per_record)
    at = max(best.temperatures, key=lambda each: best.temperatures[each]["mean"])
    listed = ", ".join(f"{each:g}" for each in asked)
    got = f"at best {codec_text(best.codec)}: {best.bytes_per_record:.0f} bytes, {best.worst:.2g} at temperature {at:g}"
    wish = f"met by a candidate: a mean T^2 KL of at most {auto.max_kl:g} at {listed}{room}"
    do = "Raise --codec.max_kl or --codec.max_bytes, leave a temperature out, or name a codec."
    return FidelityError(expected("codec auto", wish, got, do=do))
