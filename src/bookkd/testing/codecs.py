"""The contract suite of codecs: everything that a codec of the book promises, checked on one `CodecCase`.

Use it on a codec of your own in a test:

    check_codec(CodecCase("mine", Mine(), shape=(10,), make=my_rows, within=my_stated_error))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, fields

import numpy as np
import numpy.typing as npt

from bookkd.book import Codec, SparseArray, codec_from_config, codec_to_config
from bookkd.book.codecs.base import Array
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
        n_bytes: Bytes of a record, worked out by hand.
    """

    name: str
    codec: Codec
    shape: tuple[int, ...]
    make: Callable[[np.random.Generator, int], Array]
    within: Callable[[Array, Array | SparseArray], None]
    n_bytes: int

    def rows(self, count: int = ROWS) -> Array:
        """Return the same rows in every check."""
        return self.make(np.random.default_rng(20), count)


def check_round_trip(case: CodecCase) -> None:
    """What comes back differs by no more than the stated error, whatever the float type or memory order that came in."""
    rows = case.rows()
    decoded = _decode(case, case.codec.encode(rows))
    case.within(rows, decoded)
    strided = np.asfortranarray(rows)
    _assert_equal(decoded, _decode(case, case.codec.encode(strided)))


def check_parts(case: CodecCase) -> None:
    """Encoded parts have the planned names, dtypes and shapes, and the stated number of bytes a record."""
    parts = case.codec.encode(case.rows())
    planned = case.codec.parts(case.shape)
    made = {name: (part.dtype, part.shape[1:]) for name, part in parts.items()}
    _promise(made == planned, case, f"parts as planned {planned}, got {made}")
    _promise({len(part) for part in parts.values()} == {ROWS}, case, "one encoded row per record in each part")
    total = sum(part.nbytes for part in parts.values())
    stated = case.codec.bytes_per_record(case.shape)
    _promise(total == ROWS * stated == ROWS * case.n_bytes, case, f"{case.n_bytes} bytes a record, got {total / ROWS}")


def check_rows_are_independent(case: CodecCase) -> None:
    """Encoding pieces equals pieces of the encoding, and decoding any rows in any order equals these rows of the whole."""
    rows = case.rows()
    whole = case.codec.encode(rows)
    pieces = [case.codec.encode(rows[start : start + 10]) for start in range(0, ROWS, 10)]
    for name, part in whole.items():
        np.testing.assert_array_equal(part, np.concatenate([piece[name] for piece in pieces]))
    decoded = _decode(case, whole)
    for chosen in (np.arange(0), np.array([3]), np.random.default_rng(21).permutation(ROWS), np.array([5, 5, 0])):
        _assert_equal(_rows_of(decoded, chosen), _decode(case, {name: part[chosen] for name, part in whole.items()}))


def check_input_is_kept(case: CodecCase) -> None:
    """`encode` changes nothing of what it is given, and `decode` does not need to write into its parts."""
    rows = case.rows()
    before = rows.copy()
    rows.flags.writeable = False
    parts = case.codec.encode(rows)
    np.testing.assert_array_equal(rows, before)
    frozen = {name: part.copy() for name, part in parts.items()}
    for part in frozen.values():
        part.flags.writeable = False
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
    for temperature in case.codec.promised or (0.5, 1.0, 4.0, 20.0):
        case.codec.check_temperature(temperature)
    if case.codec.promised:
        other = max(case.codec.promised) + 1.0
        try:
            case.codec.check_temperature(other)
        except FidelityError as error:
            _promise("promises" in str(error), case, f"the promised temperatures in the refusal, got {error}")
        else:
            _promise(False, case, f"a refusal of temperature {other}")
    decoded = _decode(case, case.codec.encode(case.rows()))
    _promise(case.codec.sparse == isinstance(decoded, SparseArray), case, "`sparse` as what decode returns")


CHECKS: tuple[Callable[[CodecCase], None], ...] = (
    check_round_trip,
    check_parts,
    check_rows_are_independent,
    check_input_is_kept,
    check_configuration,
    check_temperatures,
)


def check_codec(case: CodecCase, checks: Sequence[Callable[[CodecCase], None]] = CHECKS) -> None:
    """Run the whole suite on one case; an AssertionError says which promise is broken."""
    for check in checks:
        check(case)


def _promise(held: bool, case: CodecCase, what: str) -> None:
    """Like `assert`, which `python -O` would drop."""
    if not held:
        raise AssertionError(f"{case.name}: expected {what}")


def _decode(case: CodecCase, parts: dict[str, Array]) -> Array | SparseArray:
    return case.codec.decode(parts, case.shape)


def _rows_of(target: Array | SparseArray, rows: npt.NDArray[np.int64]) -> Array | SparseArray:
    if not isinstance(target, SparseArray):
        chosen: Array = target[rows]
        return chosen
    parts = (target.values[rows], target.indices[rows], target.log_tail_mass[rows])
    return SparseArray(*parts, target.temperatures, target.n_classes)


def _assert_equal(one: Array | SparseArray, other: Array | SparseArray) -> None:
    if isinstance(one, SparseArray) and isinstance(other, SparseArray):
        np.testing.assert_array_equal((*one.temperatures, one.n_classes), (*other.temperatures, other.n_classes))
        for name in ("values", "indices", "log_tail_mass"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    else:
        np.testing.assert_array_equal(one, other)
