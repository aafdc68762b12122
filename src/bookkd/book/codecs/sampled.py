"""Classes drawn from the teacher's distribution at one temperature: unbiased for losses that are linear in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bookkd.book.codecs.base import Array, Codec, Parts, RowIds, SampledArray, UnreadableRowError
from bookkd.book.codecs.heavy import heavy, parts_of
from bookkd.book.ragged import RaggedArray, offsets_of
from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.rng import philox4x32, stream_id

__all__ = ["Sampled"]

_MOST_DRAWS = 4096
_TURN_BITS = 12
_MASK32 = np.uint64(2**32 - 1)


@dataclass(frozen=True)
class Sampled(Codec):
    """Keep `draws` classes, drawn with replacement from softmax(logits / T), as the classes that came and how often.

    counts / draws is right on average: the mean over draws of the cross-entropy and of its gradient are those of the
    whole distribution. That holds for what is linear in the distribution (cross-entropy, forward KL up to a constant) and
    for nothing else, and at T alone: other losses and temperatures are refused. Stated error: none on average; the
    variance of a class's share p is p (1 - p) / draws.

    The draws of a record are a function of (seed, field, teacher, sample, view), so that they depend on no batch, order or resume,
    and those of two teachers are independent. Of logits the field is `logits`, whatever the teacher's place among others.

    Args:
        draws: Draws of a record, 1 to 4096. 50 leave about 12 classes of a language model.
        temperature: T, above 0.
        seed: 0 to 2**64 - 1.

    >>> codec = Sampled(draws=50)
    >>> ids = RowIds(np.arange(1), view=0, field="logits")
    >>> kept = codec.decode(codec.encode(np.log([[0.75, 0.25]]), ids), (2,))
    >>> kept.classes.values.tolist(), int(kept.counts.values.sum())
    ([0, 1], 50)

    Source: Anshumann et al. 2025 (arXiv 2503.16870), random-sampling distillation.
    """

    name: ClassVar[str] = "sampled"
    sparse: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    draws_rows: ClassVar[bool] = True
    divides: ClassVar[bool] = True
    draws: int = 50
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        where = "codec sampled"
        if at_least(self.draws, 1, "draws", where=where) > _MOST_DRAWS:
            raise ConfigError(expected("draws", f"at most {_MOST_DRAWS}", self.draws, where=where))
        positive(self.temperature, "temperature", where=where)
        if at_least(self.seed, 0, "seed", where=where) >= 2**64:
            raise ConfigError(expected("seed", "at most 2**64 - 1", self.seed, where=where))
        object.__setattr__(self, "temperature", float(self.temperature))

    @property
    def promised(self) -> tuple[float, ...]:
        """The temperature of the draws."""
        return (self.temperature,)

    @property
    def ragged(self) -> tuple[str, ...]:
        """The entries: as many as different classes came."""
        return ("entries",)

    def most_items(self, shape: Sequence[int]) -> int:
        return min(self.draws, *shape)

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        if len(shape) != 1:
            do = "Use codec dense or int8."
            raise ConfigError(expected("shape", "(n_classes,) for codec sampled", tuple(shape), do=do))
        width = -(-(_class_bits(shape[0]) + self.draws.bit_length()) // 8)
        return {"entries": (np.dtype(np.uint8), (width,))}

    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        values = np.asarray(array)
        _, (width,) = self.parts(values.shape[1:])["entries"]
        if ids is None or len(ids) != len(values):
            wish, got = (
                f"the ids of the {len(values)} rows, which its draws come from",
                None if ids is None else len(ids),
            )
            raise ConfigError(
                expected("ids", wish, got, where="codec sampled", do="Pass RowIds(samples, view, field).")
            )
        n_classes, drawn = values.shape[1], np.empty((len(values), self.draws), dtype=np.int64)
        for part in parts_of(len(values), self.draws):
            # In order: the same classes, found in half the time.
            uniforms = np.sort(self._uniforms(ids.part(part)), axis=1)
            drawn[part] = heavy().draw(values[part], self.temperature, uniforms)
        fresh = np.ones_like(drawn, dtype=np.bool_)
        fresh[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        # A row begins with a fresh class, so that no run of equal classes goes on into the next row.
        places = np.flatnonzero(fresh)
        counts = np.diff(places, append=drawn.size)
        packed = drawn.ravel()[places].astype(np.uint64) | (
            counts.astype(np.uint64) << np.uint64(_class_bits(n_classes))
        )
        entries = packed.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
        return {"entries": RaggedArray(np.ascontiguousarray(entries), offsets_of(fresh.sum(axis=1)))}

    def divide(self, items: Mapping[str, Array], shape: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return where rows end: wherever the counts so far are a multiple of `draws`."""
        _, counts = _unpacked(items["entries"], shape[0])
        whole = np.cumsum(counts) % self.draws == 0
        return np.append(0, np.flatnonzero(whole) + 1)

    def decode(self, parts: Mapping[str, Any], shape: Sequence[int]) -> SampledArray:
        entries: RaggedArray = parts["entries"]
        classes, counts = _unpacked(entries.values, shape[0])
        self._check(classes, counts, entries.offsets, shape[0])
        offsets = entries.offsets
        return SampledArray(
            RaggedArray(classes, offsets), RaggedArray(counts, offsets), self.draws, self.temperature, shape[0]
        )

    def _check(self, classes: Array, counts: Array, offsets: npt.NDArray[np.int64], n_classes: int) -> None:
        """Refuse entries that `encode` does not make: others would be weights that add up to something else."""
        total = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=total[1:])
        wrong = total[offsets[1:]] - total[offsets[:-1]] != self.draws
        if wrong.any():
            raise UnreadableRowError(int(wrong.argmax()), f"its counts do not add up to {self.draws}")
        falls = np.zeros(len(classes), dtype=np.bool_)
        falls[1:] = classes[1:] <= classes[:-1]
        falls[offsets[:-1]] = False
        bad = np.flatnonzero((classes >= n_classes) | (counts == 0) | falls)
        if len(bad):
            row = int(np.searchsorted(offsets, bad[0], side="right")) - 1
            raise UnreadableRowError(row, f"an entry is no class below {n_classes} with a count, in rising order")

    def _uniforms(self, ids: RowIds) -> npt.NDArray[np.float64]:
        """Return [rows, draws] numbers from 0 to below 1, of 53 bits.

        The counter has the sample (40 bits), the view (16), the field, the draw (12 bits), and the position inside of the
        record (20), 0 where there is none.
        """
        samples = np.asarray(ids.samples).astype(np.uint64)[:, None]
        turns = np.arange(-(-self.draws // 2), dtype=np.uint64)[None]
        where = (samples >> np.uint64(32)) | np.uint64(ids.view << 16)
        if ids.positions is not None:
            turns = turns | np.asarray(ids.positions).astype(np.uint64)[:, None] << np.uint64(_TURN_BITS)
        counter = (samples & _MASK32, where, turns, np.uint64(stream_id(ids.field)))
        a, b, c, d = philox4x32(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))
        words = np.stack([a | b << np.uint64(32), c | d << np.uint64(32)], axis=-1).reshape(len(samples), -1)
        return (words[:, : self.draws] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _unpacked(entries: Array, n_classes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return class and count of each entry, uint8 [entries, width]."""
    width = entries.shape[1]
    wide = np.zeros((len(entries), 4 if width <= 4 else 8), dtype=np.uint8)
    wide[:, :width] = entries
    packed = wide.view("<u4" if width <= 4 else "<u8")[:, 0].astype(np.int64)
    bits = _class_bits(n_classes)
    return packed & ((1 << bits) - 1), packed >> bits


def _class_bits(n_classes: int) -> int:
    return max(1, (n_classes - 1).bit_length())
