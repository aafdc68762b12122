"""Captured log-probabilities of DistillKit: Parquet files, one row a sequence.

    data_0.parquet, data_1.parquet ...      input_ids, and either compressed_logprobs and bytepacked_indices (a list of bytes for
                                            each position) or token_ids and top_values
    compression_config.yaml                 how the bytes are made; without it they cannot be read

A position's bytes of log-probabilities are, in this order: `exact_k` values of `exact_dtype`; the coefficients of
`polynomial_terms` (powers, sqrt or exp of the place t = 0, 1, 2..., or 0 to 1 with `normalize_t`) in `term_dtype`; and for each of
`residual_bins` a scale and `num_elements` whole numbers of `element_bits` bits, highest bit first, that are added to the curve.
`delta_encoding` stores differences. Classes are packed in ceil(log2 d) bits each, highest bit first.

The positions are those of the prompt from the second token on, so that record i says what comes after token i.

Source: the layout that arcee-ai/DistillKit reads and writes (`distillkit/compression`, `distillkit/sample_common.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bookkd.book import FieldPlan, Raw
from bookkd.core.errors import DataError, expected
from bookkd.core.names import require
from bookkd.interchange._source import Options, Sequences, Tokens, fingerprint, listed, read_file

__all__ = ["DistillKit", "Layout"]

Array = npt.NDArray[Any]

IDS = "position/token"
_CONFIG = "compression_config.yaml"
_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_MAX_K = 2**16
_MAX_POSITIONS = 2**22
_ROWS = 4


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
    k = whole("k", found["k"], 1, min(d, _MAX_K))
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


class DistillKit(Sequences):
    """Folder of Parquet files -> a record for each position."""

    name: ClassVar[str] = "distillkit"
    allowed = 0.05  # a curve through the tail is not exact

    def __init__(self, path: Path, options: Options) -> None:
        self.files = sorted(listed(path, "*.parquet", "Parquet files of DistillKit"), key=_natural)
        names = set(self._parquet(self.files[0]).schema_arrow.names)
        self.layout: Layout | None = None
        if {"compressed_logprobs", "bytepacked_indices"} <= names:
            config = path / _CONFIG if options.compression is None else Path(options.compression)
            if not config.is_file():
                do = "Pass --compression FILE.yaml with the configuration that they were captured with."
                raise DataError(
                    expected("compression", f"{_CONFIG} beside the files", "no such file", where=str(path), do=do)
                )
            self.layout = read_layout(config)
            self.columns = ["compressed_logprobs", "bytepacked_indices"]
        elif {"token_ids", "top_values"} <= names:
            self.columns = ["top_values", "token_ids"]
        else:
            wish = "compressed_logprobs and bytepacked_indices, or token_ids and top_values"
            raise DataError(expected("columns", wish, ", ".join(sorted(names)), where=str(self.files[0])))
        for file in self.files:
            self._check_columns(file)
        self.raw = {IDS: FieldPlan((), Raw("int64"))}
        self.data = {"name": "distillkit", "source": path.name, "files": len(self.files)}
        self._groups: list[tuple[int, Path, int]] = []
        lengths, widest = self._scan()
        self.n_classes = options.classes(str(path)) if self.layout is None else self.layout.d
        self.k = min(options.k or widest, self.n_classes)
        self.data |= {"sequences": len(lengths), "digest": fingerprint(self.files, path)}
        self.lay_out(lengths)
        self.views = {"transform": "none", "n_views": 1}
        self.notes = [
            f"{widest} classes a position; all others are one tail, known at temperature 1",
            "a record is one token position, its key (sequence << 32) + position; `position/token` is the token at that position, "
            "-1 where the file has none",
        ]
        if self.layout is not None and self.layout.terms:
            self.notes.append(
                "log-probabilities after the exact ones are a curve that the producer fitted, not the teacher's own"
            )

    def stream(self, sequence: int) -> Iterator[Tokens]:
        begin = max(place for place, (first, _, _) in enumerate(self._groups) if first <= sequence)
        for place, path, group in self._groups[begin:]:
            for number, tokens in enumerate(self._read(path, group, place), start=place):
                if number >= sequence:
                    yield tokens

    def where(self, sequence: int) -> str:
        return f"{self.data['source']}, sequence {sequence}"

    def _check_columns(self, path: Path) -> None:
        types = require("pyarrow.types", "interchange")
        found: dict[str, Any] = {field.name: field.type for field in self._parquet(path).schema_arrow}
        for name, depth in ((self.columns[0], 2), (self.columns[1], 2), ("input_ids", 1)):
            kind: Any = found.get(name)
            for _ in range(depth):
                listed_ = kind is not None and (types.is_list(kind) or types.is_large_list(kind))
                kind = kind.value_type if listed_ else None
            if kind is None or not (types.is_integer(kind) or types.is_floating(kind)):
                wish = f"numbers in {'lists of ' * (depth - 1)}lists"
                raise DataError(expected(name, wish, str(found.get(name)), where=str(path)))

    def _scan(self) -> tuple[list[int], int]:
        """Return the positions of each sequence and the most classes of one."""
        lengths: list[int] = []
        widest = 0 if self.layout is None else self.layout.k
        for path in self.files:
            for group in range(self._parquet(path).num_row_groups):
                self._groups.append((len(lengths), path, group))
                for values, _, _ in self._rows(path, group, tokens=False):
                    lengths.append(0 if values is None else len(values))
                    if self.layout is None and lengths[-1]:
                        widest = max(widest, int(np.asarray(values.value_lengths().fill_null(0)).max()))
                    if lengths[-1] > _MAX_POSITIONS:
                        where = f"{path}, sequence {len(lengths) - 1}"
                        raise DataError(expected("positions", f"at most {_MAX_POSITIONS}", lengths[-1], where=where))
        if widest > _MAX_K:
            raise DataError(expected("classes", f"at most {_MAX_K} a position", widest, where=str(self.files[0])))
        return lengths, widest

    def _parquet(self, path: Path) -> Any:
        pq = require("pyarrow.parquet", "interchange")
        try:
            return pq.ParquetFile(path)
        except (OSError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise DataError(expected("file", "a whole Parquet file", said, where=str(path))) from error

    def _rows(self, path: Path, group: int, *, tokens: bool) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the columns of each row, a few rows in memory at a time."""
        columns = [*self.columns, "input_ids"] if tokens else self.columns[:1]
        try:
            for batch in self._parquet(path).iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
                given = {name: batch.column(name) for name in columns}
                values, classes, ids = (given.get(name) for name in (*self.columns, "input_ids"))
                for row in range(batch.num_rows):
                    yield tuple(None if each is None else each[row].values for each in (values, classes, ids))  # type: ignore[misc]
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            said = f"{type(error).__name__}: {error}"
            raise DataError(expected("file", "a whole Parquet file of DistillKit", said, where=str(path))) from error

    def _read(self, path: Path, group: int, first: int) -> Iterator[Tokens]:
        for place, (values, classes, ids) in enumerate(self._rows(path, group, tokens=True), start=first):
            where = f"{path}, sequence {place}"
            if values is None or classes is None or ids is None or len(values) != len(classes):
                raise DataError(expected("columns", "equally long", "others", where=where))
            if self.layout is not None:
                log_p = self.layout.log_p(_bytes(values, self.layout.logprob_bytes, where))
                numbers = self.layout.classes(_bytes(classes, self.layout.index_bytes, where))
            else:
                log_p, numbers = _matrix(values, np.float64, -np.inf, where), _matrix(classes, np.int64, -1, where)
            known = np.full(len(log_p), -1, dtype=np.int64)
            given = _plain(ids, where).astype(np.int64)[: len(log_p)]
            known[: len(given)] = given
            yield Tokens(log_p, numbers, {IDS: known})


def _natural(path: Path) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d{1,18})", path.name))


def _plain(values: Any, where: str) -> Array:
    if values.null_count:
        raise DataError(expected("values", "without gaps", f"{values.null_count} null", where=where))
    found: Array = values.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "iuf":
        raise DataError(expected("values", "numbers", str(found.dtype), where=where))
    return found


def _bytes(values: Any, width: int, where: str) -> Array:
    """Return a list of equally long lists of bytes as uint8 [positions, width]."""
    counts = np.asarray(values.value_lengths().fill_null(-1))
    if len(counts) and (counts != width).any():
        wish = f"{width} bytes a position, as the configuration of compression says"
        wrong = int(np.flatnonzero(counts != width)[0])
        do = "They were captured with another configuration: pass --compression FILE.yaml."
        raise DataError(expected("bytes", wish, int(counts[wrong]), where=f"{where}, position {wrong}", do=do))
    found = _plain(values.flatten(), where)
    if found.dtype.kind == "f" or (len(found) and (found.min() < 0 or found.max() > 255)):
        raise DataError(expected("bytes", "whole numbers from 0 to 255", str(found.dtype), where=where))
    return found.astype(np.uint8).reshape(len(counts), width)


def _matrix(values: Any, dtype: Any, empty: float, where: str) -> Array:
    counts = np.asarray(values.value_lengths().fill_null(0))
    flat = _plain(values.flatten(), where)
    if np.dtype(dtype).kind == "i" and flat.dtype.kind == "f":
        raise DataError(expected("token_ids", "whole numbers", str(flat.dtype), where=where))
    found = np.full((len(counts), int(counts.max(initial=0))), empty, dtype=dtype)
    found[np.arange(found.shape[1]) < counts[:, None]] = flat
    return found


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
