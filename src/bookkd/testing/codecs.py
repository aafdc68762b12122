"""The contract suite of codecs: everything that a codec of the book promises, checked on one `CodecCase`.

Use it on a codec of your own in a test:

    check_codec(CodecCase("mine", Mine(), shape=(10,), make=my_rows, within=my_stated_error))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from bookkd.book import (
    ClassArray,
    Codec,
    Decoded,
    RaggedArray,
    RowIds,
    SampledArray,
    SparseArray,
    codec_from_config,
    codec_to_config,
)
from bookkd.book.codecs.base import Array, Parts, take_rows
from bookkd.core.errors import FidelityError

__all__ = ["CHECKS", "CodecCase", "check_codec"]

ROWS = 37
"""Odd, so that no row count of the suite is a multiple of a vector width."""


@dataclass(frozen=True)
class CodecCase:
    """One row of a table of codecs.

    Args:
        name: Name in `CODECS`, with "/variant" where a codec has several rows.
        codec: The codec.
        shape: Shape of one record.
        make: From a generator and a number of rows to an array [rows, *shape].
        within: Asserts that (original, decoded) differ by no more than the codec states, by an independent reference.
        n_bytes: Bytes of a record, worked out by hand; the most where parts are ragged.
    """

    name: str
    codec: Codec
    shape: tuple[int, ...]
    make: Callable[[np.random.Generator, int], Array]
    within: Callable[[Array, Any], None]
    n_bytes: int

    def rows(self, count: int = ROWS) -> Array:
        """Return the same rows in every check."""
        return self.make(np.random.default_rng(20), count)

    def encode(self, rows: Array, start: int = 0) -> Parts:
        """Encode rows as the records from `start` on of one view."""
        ids = RowIds(np.arange(start, start + len(rows)), 1, "logits")
        return self.codec.encode(rows, ids) if self.codec.draws_rows else self.codec.encode(rows)


def check_round_trip(case: CodecCase) -> None:
    """What comes back differs by no more than the stated error, whatever the float type or memory order that came in."""
    rows = case.rows()
    decoded = _decode(case, case.encode(rows))
    case.within(rows, decoded)
    strided = np.asfortranarray(rows)
    _assert_equal(decoded, _decode(case, case.encode(strided)))
    if isinstance(decoded, np.ndarray):
        shape = case.codec.decoded_shape(case.shape)
        _promise(decoded.shape == (ROWS, *shape), case, f"decoded records of shape {shape}, got {decoded.shape[1:]}")


def check_parts(case: CodecCase) -> None:
    """Encoded parts have the planned names, dtypes and shapes, and the stated number of bytes a record."""
    parts = case.encode(case.rows())
    planned = case.codec.parts(case.shape)
    ragged = {name for name, part in parts.items() if isinstance(part, RaggedArray)}
    _promise(ragged == set(case.codec.ragged), case, f"ragged parts {case.codec.ragged}, got {sorted(ragged)}")
    arrays = {name: part.values if name in ragged else part for name, part in parts.items()}
    made = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
    _promise(made == planned, case, f"parts as planned {planned}, got {made}")
    _promise({len(part) for part in parts.values()} == {ROWS}, case, "one encoded row per record in each part")
    total = sum(array.nbytes for array in arrays.values()) + (4 * ROWS if ragged else 0)
    stated = case.codec.bytes_per_record(case.shape)
    fits = total <= ROWS * stated if ragged else total == ROWS * stated
    _promise(
        fits and stated == case.n_bytes, case, f"{case.n_bytes} bytes a record, stated {stated}, got {total / ROWS}"
    )
    most = case.codec.most_items(case.shape)
    for name in ragged:
        longest = int(parts[name].counts.max())
        _promise(longest <= most, case, f"at most {most} items a record, got {longest}")


def check_rows_are_independent(case: CodecCase) -> None:
    """Encoding pieces equals pieces of the encoding, and decoding any rows in any order equals these rows of the whole."""
    rows = case.rows()
    whole = case.encode(rows)
    pieces = [case.encode(rows[start : start + 10], start) for start in range(0, ROWS, 10)]
    pieces.insert(2, case.encode(rows[:0]))  # no rows are rows, too: a sequence may have no positions
    for name, part in whole.items():
        if isinstance(part, RaggedArray):
            joined = RaggedArray.concatenate([piece[name] for piece in pieces])
            np.testing.assert_array_equal(part.offsets, joined.offsets)
            np.testing.assert_array_equal(part.values, joined.values)
        else:
            np.testing.assert_array_equal(part, np.concatenate([piece[name] for piece in pieces]))
    decoded = _decode(case, whole)
    for chosen in (np.arange(0), np.array([3]), np.random.default_rng(21).permutation(ROWS), np.array([5, 5, 0])):
        taken = {name: part[chosen] for name, part in whole.items()}
        _assert_equal(take_rows(decoded, chosen), _decode(case, taken))


def check_input_is_kept(case: CodecCase) -> None:
    """`encode` changes nothing of what it is given, and `decode` does not need to write into its parts."""
    rows = case.rows()
    before = rows.copy()
    rows.flags.writeable = False
    parts = case.encode(rows)
    np.testing.assert_array_equal(rows, before)
    frozen = {name: part[np.arange(ROWS)] for name, part in parts.items()}
    for part in frozen.values():
        (part.values if isinstance(part, RaggedArray) else part).flags.writeable = False
    _assert_equal(_decode(case, parts), _decode(case, frozen))


def check_configuration(case: CodecCase) -> None:
    """The configuration survives JSON; the codec is frozen, hashable and equal by value."""
    again = codec_from_config(json.loads(json.dumps(codec_to_config(case.codec))))
    _promise(again == case.codec and hash(again) == hash(case.codec), case, f"an equal codec after JSON, got {again}")
    _promise(case.name.split("/")[0] == case.codec.name, case, f"the name {case.codec.name}")
    for entry in fields(case.codec):  # type: ignore[arg-type]
        try:
            setattr(case.codec, entry.name, None)
        except FrozenInstanceError:
            continue
        _promise(False, case, f"a frozen {entry.name}")


def check_temperatures(case: CodecCase) -> None:
    """Every promised temperature is honoured; where there is a list, another one is refused with the list."""
    if case.codec.hard:
        _refuses(case, 1.0, "no `temperature`")
        return
    for temperature in case.codec.promised or (0.5, 1.0, 4.0, 20.0):
        case.codec.check_temperature(temperature)
    if case.codec.promised:
        _refuses(case, max(case.codec.promised) + 1.0, "promises")


def check_lost_mass_is_told(case: CodecCase) -> None:
    """What is left out of a distribution stands in the record: a tail, counts that add up, or no distribution at all."""
    rows = case.rows()
    decoded = _decode(case, case.encode(rows))
    kinds = {(False, False): SparseArray, (True, False): SampledArray, (False, True): ClassArray}
    kind = kinds[case.codec.linear, case.codec.hard] if case.codec.sparse else np.ndarray
    _promise(
        type(decoded) is kind, case, f"a {kind.__name__} as `sparse`, `linear` and `hard` say, got {type(decoded)}"
    )
    if isinstance(decoded, SampledArray):
        sums = np.add.reduceat(decoded.counts.values, decoded.counts.offsets[:-1])
        _promise(bool((sums == decoded.draws).all()), case, f"counts that add up to {decoded.draws}, got {sums}")
    if not isinstance(decoded, SparseArray):
        return
    _promise(len(case.codec.promised) > 0, case, "temperatures at which the tail is known, got none")
    for column, temperature in enumerate(decoded.temperatures):
        scaled = rows.astype(np.float64) / temperature
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        kept = np.take_along_axis(p, decoded.indices.astype(np.int64), axis=1).sum(axis=1)
        off = np.abs(kept + np.exp(decoded.log_tail_mass[:, column].astype(np.float64)) - 1).max()
        _promise(
            off < 1e-5, case, f"kept mass and tail that add up to 1 at temperature {temperature:g}, off by {off:g}"
        )


def _refuses(case: CodecCase, temperature: float, words: str) -> None:
    try:
        case.codec.check_temperature(temperature)
    except FidelityError as error:
        _promise(words in str(error), case, f"{words} in the refusal, got {error}")
    else:
        _promise(False, case, f"a refusal of temperature {temperature}")


CHECKS: tuple[Callable[[CodecCase], None], ...] = (
    check_round_trip,
    check_parts,
    check_rows_are_independent,
    check_input_is_kept,
    check_configuration,
    check_temperatures,
    check_lost_mass_is_told,
)


def check_codec(case: CodecCase, checks: Sequence[Callable[[CodecCase], None]] = CHECKS) -> None:
    """Run the whole suite on one case; an AssertionError says which promise is broken."""
    for check in checks:
        check(case)


def _promise(held: bool, case: CodecCase, what: str) -> None:
    """Like `assert`, which `python -O` would drop."""
    if not held:
        raise AssertionError(f"{case.name}: expected {what}")


def _decode(case: CodecCase, parts: Parts) -> Decoded:
    return case.codec.decode(parts, case.shape)


def _assert_equal(one: Any, other: Any) -> None:
    if is_dataclass(one):
        _same(type(one), type(other))
        for entry in fields(one):
            _assert_equal(getattr(one, entry.name), getattr(other, entry.name))
    else:
        np.testing.assert_array_equal(one, other)


def _same(one: type[Any], other: type[Any]) -> None:
    if one is not other:
        raise AssertionError(f"expected a {one.__name__}, got a {other.__name__}")
