"""Cached log-probabilities of Megatron-LM: tar files of training iterations.

    dp0__20.tar or cp0_dp0__20.tar     (a number of iterations, or a range of samples `dp0__0-160.tar`)
      _meta.json                       hash and identifiers of the data, `saver`: k, p, sizes of batches, format_version
      1.pt.zst, 2.pt.zst ...           (or `0-8.pt.zst`) zstandard over `torch.save`: values, indices_low uint16, bit_17 bool

Format 1 has a list of tensors [positions, samples, classes], one for each micro-batch; format 2 one tensor [positions, samples of this
rank, classes]. A class is `bit_17 << 16 | indices_low`, so that vocabularies end at 131,072. With top-p, places after the nucleus hold
-10000 or -1000 and class -1, and are empty here.

A sequence's number is its place in the stream of samples: that of the iteration, and in it
((row // micro-batch) * ranks + rank) * micro-batch + row % micro-batch. Only whole sequences are read: shards of context-parallel ranks
above 0 are refused.

Source: the layout that NVIDIA/Megatron-LM reads and writes (`megatron/training/distillation`). The pickles are not run.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from array import array as numbers_array
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import DataError, expected
from bookkd.core.names import require
from bookkd.interchange._source import (
    ABSENT,
    MAX_FILE,
    PIECE,
    Options,
    Sequences,
    Tokens,
    check_positions,
    fingerprint,
    kept_places,
    listed,
    total_size,
)
from bookkd.interchange._tensors import BFLOAT16, entry, load_arrays, widened

__all__ = ["Megatron"]

Array = npt.NDArray[Any]

_TAR = re.compile(r"(?:cp(\d{1,6})_)?dp(\d{1,6})__(\d{1,15})(?:-(\d{1,15}))?\.tar")
_SUFFIX = ".pt.zst"
_MEMBER = re.compile(r"\d{1,15}(?:-\d{1,15})?\.pt\.zst")
_META = "_meta.json"
_EMPTY_BELOW = -999.0
_MAX_CLASSES = 2**17
_MAX_FORMAT = 2
_IN_MEMORY = 2**24
"""Bytes of an iteration that are decompressed to memory; longer ones to a file without a name, and mapped."""
_RATIO = 512
"""How often longer an iteration may be than its compressed bytes: places after a small nucleus take next to none."""


@dataclass(frozen=True)
class _Saver:
    """What `_meta.json` says of how the samples lie."""

    version: int
    micro_batch: int | None
    ranks: int | None
    batch: int | None


class _Payload(NamedTuple):
    """One iteration of one rank: arrays [positions, samples, classes] as they lie in the file, one for each micro-batch."""

    values: list[Array]
    low: list[Array]
    high: list[Array]

    def pieces(self) -> Iterator[Iterator[tuple[Array, Array]]]:
        """Yield for each sample its (log-probabilities, classes) [positions, classes], some positions at a time."""
        for values, low, high in zip(self.values, self.low, self.high, strict=True):
            for column in range(values.shape[1]):
                yield _of_sample(values[:, column], low[:, column], high[:, column])


class _Member(NamedTuple):
    path: Path
    rank: int
    name: str
    first: int
    ranged: bool


class Megatron(Sequences):
    """Folder of tar files -> a record for each position."""

    name: ClassVar[str] = "megatron"
    allowed = 2e-2  # bfloat16
    places_a_byte = 128

    def __init__(self, path: Path, options: Options) -> None:
        self.n_classes = options.classes(str(path))
        if self.n_classes > _MAX_CLASSES:
            wish = f"at most {_MAX_CLASSES}: these files keep 17 bits of a class"
            raise DataError(expected("n_classes", wish, self.n_classes, where=str(path)))
        self.files = _tars(path)
        self.ranks = 1 + max(rank for _, rank in self.files)
        self.raw = {}
        self.data = {"name": "megatron", "source": path.name, "files": len(self.files)}
        self.size = total_size(file for file, _ in self.files)
        lengths, numbers, widest, hashes = self._count()
        self.k = kept_places(options, widest, self.n_classes)
        known = {"hash": hashes[0]} if hashes else {}
        self.data |= {"sequences": len(lengths), "digest": fingerprint([file for file, _ in self.files], path), **known}
        self.lay_out(lengths, numbers=numbers)
        self.views = {"transform": "none", "n_views": 1}
        self.notes = [
            f"up to {widest} classes a position; all others are one tail, known at temperature 1",
            "a record is one token position, its key (sequence << 32) + position; the tokens themselves are not in the files, so "
            "that the data must be read with the seed and blend that `_meta.json` names",
        ]

    def _count(self) -> tuple[Array, Array, int, list[str]]:
        """Return length and number of each sequence, the most classes of a position, and the hash of the data."""
        self.members: list[_Member] = []
        self._first: list[int] = []
        # Eight bytes a sequence each.
        lengths, numbers = numbers_array("q"), numbers_array("q")
        positions, widest, hashes = 0, 0, set()
        for file, rank in self.files:
            saver: _Saver | None = None
            for name, data in _entries(file):
                where = f"{file}, {name}"
                if name == _META:
                    saver, digest = _saver(data, where)
                    hashes.add(digest)
                    continue
                first, _, end = name.removesuffix(_SUFFIX).partition("-")
                member = _Member(file, rank, name, int(first), bool(end))
                payload = _payload(data, where)
                positions += sum(each.shape[0] * each.shape[1] for each in payload.values)
                check_positions(positions, self.size, where)
                self.members.append(member)
                self._first.append(len(lengths))
                numbers.frombytes(_sequence_numbers(payload, member, saver, self.ranks, where).tobytes())
                for array in payload.values:
                    lengths.frombytes(np.full(array.shape[1], array.shape[0], dtype=np.int64).tobytes())
                for pieces in payload.pieces():
                    widest = max(widest, *(int((classes != ABSENT).sum(axis=1).max()) for _, classes in pieces))
        if len(hashes) > 1:
            got = ", ".join(sorted(hashes))
            raise DataError(expected("hash", "one, of one stream of data", got, where=self.data["source"]))
        found = np.frombuffer(numbers, dtype=np.int64)
        if len(np.unique(found)) != len(found):
            got = "one twice: shards of two runs lie together"
            raise DataError(expected("sequences", "each once", got, where=self.data["source"]))
        return np.frombuffer(lengths, dtype=np.int64), found, widest, list(hashes)

    def stream(self, sequence: int) -> Iterator[tuple[int, Tokens]]:
        begin = int(np.searchsorted(self._first, sequence, side="right")) - 1
        place = self._first[begin]
        wanted = self.members[begin:]
        for path in dict.fromkeys(member.path for member in wanted):
            names = {member.name for member in wanted if member.path == path}
            for name, data in _entries(path):
                if name not in names:
                    continue
                for pieces in _payload(data, f"{path}, {name}").pieces():
                    if place >= sequence:
                        yield from ((place, Tokens(values, classes)) for values, classes in pieces)
                    place += 1

    def where(self, sequence: int) -> str:
        member = self.members[int(np.searchsorted(self._first, sequence, side="right")) - 1]
        return f"{member.path}, {member.name}, sequence {int(self.numbers[sequence])}"


def _tars(path: Path) -> list[tuple[Path, int]]:
    found = []
    for file in listed(path, "*.tar", "tar files of Megatron"):
        match = _TAR.fullmatch(file.name)
        if match is None:
            raise DataError(expected("file", "named like dp0__20.tar", file.name, where=str(path)))
        if int(match[1] or 0):
            do = "Only whole sequences can be read: write the cache with context-parallel size 1, or with a later version."
            raise DataError(expected("file", "of context-parallel rank 0", file.name, where=str(path), do=do))
        found.append((int(match[3]), int(match[2]), file))
    return [(file, rank) for _, rank, file in sorted(found)]


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each member; nothing is unpacked to the disk."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name
                if not member.isreg() or member.issparse() or not (name == _META or _MEMBER.fullmatch(name)):
                    wish = f"{_META} and <iteration>.pt.zst alone, as regular files"
                    raise DataError(expected("members", wish, name, where=str(path)))
                if not 0 <= member.size <= min(MAX_FILE, size - member.offset_data):
                    wish = "of a size that the archive has"
                    raise DataError(expected("member", wish, f"{member.size} bytes", where=f"{path}, {name}"))
                file = archive.extractfile(member)
                yield name, b"" if file is None else file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        said = f"{type(error).__name__}: {error}"
        raise DataError(expected("file", "a whole tar archive", said, where=str(path))) from error


def _saver(data: bytes, where: str) -> tuple[_Saver, str]:
    try:
        found = json.loads(data[: 2**20 + 1].decode("utf-8"))
        saver = found.get("saver", {})
        sizes = {}
        for name in ("format_version", "mbs_save", "dp_size_save", "gbs_save"):
            value = saver.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31):
                raise ValueError(f"{name} is {value!r}")
            sizes[name] = value
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(expected("_meta.json", "an object with `saver`", f"{error}", where=where)) from error
    version = sizes["format_version"] or 1
    if version > _MAX_FORMAT:
        do = f"Formats 1 to {_MAX_FORMAT} can be read."
        raise DataError(expected("format_version", f"at most {_MAX_FORMAT}", version, where=where, do=do))
    return _Saver(version, sizes["mbs_save"], sizes["dp_size_save"], sizes["gbs_save"]), str(found.get("hash"))[:64]


def _payload(data: bytes, where: str) -> _Payload:
    with _decompressed(data, where) as file:
        # A map outlives its file, which is closed here and then gone with it.
        content = file.getvalue() if isinstance(file, io.BytesIO) else mmap(file.fileno(), 0, access=ACCESS_READ)
        found = load_arrays(content, where, file)
    version = found.get("format_version", 1) if isinstance(found, dict) else 1
    if not isinstance(version, int) or not 1 <= version <= _MAX_FORMAT:
        raise DataError(expected("format_version", f"from 1 to {_MAX_FORMAT}", version, where=where))
    parts = [entry(found, key, where) for key in ("values", "indices_low", "bit_17")]
    lists = [part if isinstance(part, list) else [part] for part in parts]
    if len({len(each) for each in lists}) != 1 or not lists[0]:
        raise DataError(expected("payload", "as many indices as values", [len(each) for each in lists], where=where))
    for value, low, high in zip(*lists, strict=True):
        arrays = (value, low, high)
        fits = all(isinstance(each, np.ndarray) and each.ndim == 3 and each.shape == value.shape for each in arrays)
        if (
            not fits
            or not (value.dtype.kind == "f" or value.dtype == BFLOAT16)
            or low.dtype != np.uint16
            or high.dtype != bool
            or not value.size
        ):
            got = ", ".join(f"{getattr(each, 'dtype', type(each).__name__)} {list(np.shape(each))}" for each in arrays)
            wish = "values float, indices_low uint16 and bit_17 bool, [positions, samples, classes]"
            raise DataError(expected("payload", wish, got, where=where))
        if value.shape[2] > _MAX_CLASSES:
            wish = f"of at most {_MAX_CLASSES} classes a position"
            raise DataError(expected("payload", wish, value.shape[2], where=where))
    return _Payload(*lists)


def _of_sample(values: Array, low: Array, high: Array) -> Iterator[tuple[Array, Array]]:
    """Yield (log-probabilities float64, classes int64) of arrays [positions, classes], some positions at a time."""
    step = max(1, PIECE // values.shape[1])
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        log_p = widened(values[rows]).astype(np.float64)
        classes = (high[rows].astype(np.int64) << 16) | low[rows]
        yield log_p, np.where(log_p <= _EMPTY_BELOW, ABSENT, classes)


def _decompressed(data: bytes, where: str) -> IO[bytes]:
    """Return a file of the bytes of a frame: in memory if they are few."""
    zstandard = require("zstandard", "interchange")
    limit = min(MAX_FILE, max(_IN_MEMORY, _RATIO * len(data)))
    # Temporary files have no name, and are gone when they are closed.
    file: IO[bytes] = io.BytesIO()
    try:
        size = zstandard.get_frame_parameters(data).content_size
        known = size != zstandard.CONTENTSIZE_UNKNOWN
        if known and size > limit:
            raise DataError(expected("member", f"at most {limit} bytes", size, where=where))
        if not known or size > _IN_MEMORY:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (whoever calls this closes it)
        # A frame that does not say its size is read up to the limit and not beyond.
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(data) as reader:
            while file.tell() <= limit and (piece := reader.read(2**20)):
                file.write(piece)
        if not 0 < file.tell() <= limit or (known and file.tell() != size):
            raise DataError(expected("member", "as long as it says", f"{file.tell()} bytes", where=where))
        file.flush()
        file.seek(0)
    except zstandard.ZstdError as error:
        file.close()
        raise DataError(expected("member", "compressed by zstandard", f"{error}", where=where)) from error
    except BaseException:
        file.close()
        raise
    return file


def _sequence_numbers(payload: _Payload, member: _Member, saver: _Saver | None, ranks: int, where: str) -> Array:
    """Return the place of each sample of a payload in the stream of samples, int64."""
    sizes = [array.shape[1] for array in payload.values]
    rows = sum(sizes)
    total = ranks if saver is None or saver.ranks is None else saver.ranks
    micro = sizes[0] if len(sizes) > 1 or saver is None or saver.micro_batch is None else saver.micro_batch
    batch = rows * total if saver is None or saver.batch is None else saver.batch
    if member.rank >= total or rows % micro or (len(sizes) > 1 and set(sizes) != {micro}) or rows * total != batch:
        wish = f"{total} ranks and batches of {micro}, of {batch} together"
        got = f"rank {member.rank} with {rows} samples"
        raise DataError(expected("samples", wish, got, where=where))
    base = member.first if member.ranged else member.first * batch
    if base + batch + rows > 2**32:
        raise DataError(expected("sequences", "below 2**32", base, where=where))
    row = np.arange(rows, dtype=np.int64)
    found: Array = base + ((row // micro) * total + member.rank) * micro + row % micro
    return found
