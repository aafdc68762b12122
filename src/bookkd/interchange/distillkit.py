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

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bookkd.book import FieldPlan, Raw
from bookkd.core.errors import DataError, expected
from bookkd.core.names import require
from bookkd.interchange._distillkit_layout import MAX_K, Layout, read_layout
from bookkd.interchange._source import (
    ABSENT,
    PIECE,
    Options,
    Sequences,
    Tokens,
    fingerprint,
    kept_places,
    listed,
    total_size,
)

__all__ = ["DistillKit"]

Array = npt.NDArray[Any]

IDS = "position/token"
_CONFIG = "compression_config.yaml"
_MAX_POSITIONS = 2**22
_LEAST_VALUES = 2**20
_VALUES_A_BYTE = 4
"""Numbers in the lists of a row group for each byte of its file. The bytes of DistillKit hardly compress: about 1."""
_BUFFER = 2**20


class DistillKit(Sequences):
    """Folder of Parquet files -> a record for each position."""

    name: ClassVar[str] = "distillkit"
    allowed = 0.05  # a curve through the tail is not exact
    places_a_byte = 16

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
        self.size = total_size(self.files)
        self._groups: list[tuple[int, Path, int]] = []
        lengths, widest = self._scan()
        self.n_classes = self._classes(options, path)
        self.k = kept_places(options, widest, self.n_classes)
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

    def stream(self, sequence: int) -> Iterator[tuple[int, Tokens]]:
        begin = max(place for place, (first, _, _) in enumerate(self._groups) if first <= sequence)
        for place, path, group in self._groups[begin:]:
            yield from self._read(path, group, place, sequence)

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

    def _classes(self, options: Options, path: Path) -> int:
        if self.layout is None:
            return options.classes(str(path))
        if options.n_classes not in (None, self.layout.d):
            wish = f"{self.layout.d}, as the configuration says, or left out"
            raise DataError(expected("n_classes", wish, options.n_classes, where=str(path)))
        return self.layout.d

    def _scan(self) -> tuple[list[int], int]:
        """Return the positions of each sequence and the most classes of one."""
        lengths: list[int] = []
        widest = 0 if self.layout is None else self.layout.k
        for path in self.files:
            self._check_size(path)
            for group in range(self._parquet(path).num_row_groups):
                self._groups.append((len(lengths), path, group))
                for values, _, _ in self._rows(path, group, tokens=False):
                    lengths.append(0 if values is None else len(values))
                    if self.layout is None and lengths[-1]:
                        widest = max(widest, int(np.asarray(values.value_lengths().fill_null(0)).max()))
                    if lengths[-1] > _MAX_POSITIONS:
                        where = f"{path}, sequence {len(lengths) - 1}"
                        raise DataError(expected("positions", f"at most {_MAX_POSITIONS}", lengths[-1], where=where))
        if widest > MAX_K:
            raise DataError(expected("classes", f"at most {MAX_K} a position", widest, where=str(self.files[0])))
        return lengths, widest

    def _check_size(self, path: Path) -> None:
        """Refuse a file whose lists are far longer than its bytes: repeated values take none in Parquet."""
        metadata, size = self._parquet(path).metadata, path.stat().st_size
        allowed = max(_LEAST_VALUES, _VALUES_A_BYTE * size)
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group)
            values = max((found.column(i).num_values for i in range(found.num_columns)), default=0)
            if values > allowed:
                wish = f"at most {allowed} numbers in a row group of a file of {size} bytes"
                raise DataError(expected("file", wish, values, where=str(path)))

    def _parquet(self, path: Path) -> Any:
        pq = require("pyarrow.parquet", "interchange")
        try:
            return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        except (OSError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise DataError(expected("file", "a whole Parquet file", said, where=str(path))) from error

    def _rows(self, path: Path, group: int, *, tokens: bool) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the columns of each row, one in memory at a time: Arrow takes some 16 bytes for each of its numbers."""
        columns = [*self.columns, "input_ids"] if tokens else self.columns[:1]
        rows = {"batch_size": 1, "row_groups": [group], "columns": columns, "use_threads": False}
        try:
            for batch in self._parquet(path).iter_batches(**rows):
                given = {name: batch.column(name) for name in columns}
                values, classes, ids = (given.get(name) for name in (*self.columns, "input_ids"))
                for row in range(batch.num_rows):
                    yield tuple(None if each is None else each[row].values for each in (values, classes, ids))  # type: ignore[misc]
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            said = f"{type(error).__name__}: {error}"
            raise DataError(expected("file", "a whole Parquet file of DistillKit", said, where=str(path))) from error

    def _read(self, path: Path, group: int, first: int, sequence: int) -> Iterator[tuple[int, Tokens]]:
        """Yield the positions of each row, some at a time, from place `sequence` on; the first row is at place `first`."""
        for place, (values, classes, ids) in enumerate(self._rows(path, group, tokens=True), start=first):
            if place < sequence:
                continue
            where = f"{path}, sequence {place}"
            if values is None or classes is None or ids is None or len(values) != len(classes):
                raise DataError(expected("columns", "equally long", "others", where=where))
            known = np.full(len(values), -1, dtype=np.int64)
            given = _plain(ids, where)[: len(values)].astype(np.int64)
            known[: len(given)] = given
            for rows in self._pieces(values):
                log_p, numbers = self._decoded(values[rows], classes[rows], where, rows.start)
                # Where the server gave fewer classes than were asked for, any number stands beside minus infinity.
                yield place, Tokens(log_p, np.where(np.isneginf(log_p), ABSENT, numbers), {IDS: known[rows]})

    def _pieces(self, values: Any) -> Iterator[slice]:
        """Yield slices of the positions of a row that hold few enough places each."""
        widths = np.full(len(values), self.layout.k) if self.layout else np.asarray(values.value_lengths().fill_null(0))
        start = 0
        while start < len(values):
            most = np.maximum.accumulate(np.maximum(widths[start : start + PIECE], 1))
            stop = start + max(1, int((most * np.arange(1, len(most) + 1) <= PIECE).sum()))
            yield slice(start, stop)
            start = stop

    def _decoded(self, values: Any, classes: Any, where: str, start: int) -> tuple[Array, Array]:
        """Return log-probabilities and classes of the positions from `start` on, [positions, n]."""
        if self.layout is not None:
            log_p = self.layout.log_p(_bytes(values, self.layout.logprob_bytes, where, start))
            return log_p, self.layout.classes(_bytes(classes, self.layout.index_bytes, where, start))
        if not values.value_lengths().fill_null(0).equals(classes.value_lengths().fill_null(0)):
            raise DataError(expected("columns", "equally long", "others", where=f"{where}, from position {start}"))
        return _matrix(values, np.float64, -np.inf, where), _matrix(classes, np.int64, ABSENT, where)


def _natural(path: Path) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d{1,18})", path.name))


def _plain(values: Any, where: str) -> Array:
    if values.null_count:
        raise DataError(expected("values", "without gaps", f"{values.null_count} null", where=where))
    found: Array = values.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "iuf":
        raise DataError(expected("values", "numbers", str(found.dtype), where=where))
    return found


def _bytes(values: Any, width: int, where: str, start: int) -> Array:
    """Return a list of equally long lists of bytes as uint8 [positions, width]."""
    counts = np.asarray(values.value_lengths().fill_null(-1))
    if len(counts) and (counts != width).any():
        wish = f"{width} bytes a position, as the configuration of compression says"
        wrong = int(np.flatnonzero(counts != width)[0])
        do = "They were captured with another configuration: pass --compression FILE.yaml."
        raise DataError(expected("bytes", wish, int(counts[wrong]), where=f"{where}, position {start + wrong}", do=do))
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
