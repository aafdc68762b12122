"""Arrays in a file of `torch.save`, read with numpy alone and without running the pickle in it.

Both layouts: the zip archive (`data.pkl` and one file a storage) and the stream that torch wrote before 1.6. Tensors and
numpy arrays come out; anything else is refused by name. PyTorch's own reader would refuse the numpy arrays of these files
with `weights_only=True`, and run whatever the file says without it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import DataError, expected
from bookkd.interchange._pickles import Call, Name, Reference, read_pickle

__all__ = ["BFLOAT16", "load_arrays", "widened"]

Array = npt.NDArray[Any]

_MAGIC = 0x1950A86A20F9469CFC6C
_BFLOAT16 = "bfloat16"
BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""Numbers of bfloat16 as they lie in a file, see `widened`."""
_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": _BFLOAT16,
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool",
}  # fmt: skip
_TORCH_DTYPES = {
    "float32": "float32", "float64": "float64", "float16": "float16", "bfloat16": _BFLOAT16, "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint8": "uint8", "bool": "bool", "uint16": "uint16",
    "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
_RECONSTRUCT = {Name("numpy.core.multiarray", "_reconstruct"), Name("numpy._core.multiarray", "_reconstruct")}
_NUMPY_DTYPES = frozenset(
    f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes
) | {"b1"}
_DEPTH = 8


def load_arrays(data: bytes | mmap, where: str, file: IO[bytes] | None = None) -> Any:
    """Return what a file of `torch.save` holds: numpy arrays in lists, tuples and dicts.

    Arrays are views of `data` where they can be, so that they take no memory of their own; bfloat16 comes as `BFLOAT16`.

    Args:
        data: The whole file.
        where: Its name, for errors.
        file: The file itself, if `data` is a map of it.

    Raises:
        DataError: for a damaged file, or one that holds anything but arrays, numbers and text.
    """
    file = io.BytesIO(data) if file is None else file
    try:
        if data[:2] == b"PK":
            return _from_zip(memoryview(data), file)
        return _from_stream(memoryview(data), file)
    except (ValueError, KeyError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        wish = "a file of torch.save with arrays alone"
        raise DataError(
            expected("file", wish, f"{error}", where=where, do="It is damaged, or holds something else.")
        ) from error


def widened(array: Array) -> Array:
    """Return numbers as they are, and those of bfloat16 as float32, which holds all of them."""
    if array.dtype != BFLOAT16:
        return array
    found: Array = array["bfloat16"].astype("<u4")
    found <<= 16
    return found.view("<f4")


def _from_zip(data: memoryview, file: IO[bytes]) -> Any:
    archive = zipfile.ZipFile(file)
    found = [
        info for info in archive.infolist() if info.filename.endswith("/data.pkl") and info.filename.count("/") == 1
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} entries data.pkl in a zip archive")
    root = found[0].filename.partition("/")[0]

    def member(name: str) -> memoryview:
        info = archive.getinfo(f"{root}/{name}")
        # As torch writes them, so that no entry can be larger than the file, and none is copied out of it.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > len(data):
            raise ValueError(f"entry {name[:40]!r} is compressed or longer than its file")
        head = data[info.header_offset : info.header_offset + 30]
        if len(head) < 30 or bytes(head[:4]) != b"PK\3\4":
            raise ValueError(f"entry {name[:40]!r} is not where the archive says")
        skipped = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        start = info.header_offset + 30 + skipped
        content = data[start : start + info.file_size]
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise ValueError(f"entry {name[:40]!r} has another checksum than its content")
        return content

    if f"{root}/byteorder" in archive.namelist() and bytes(member("byteorder")) != b"little":
        raise ValueError("big-endian numbers")
    said = read_pickle(io.BytesIO(member("data.pkl")))
    return _Resolver(lambda key: member(f"data/{key}"), len(data)).resolve(said)


def _from_stream(data: memoryview, file: IO[bytes]) -> Any:
    if read_pickle(file) != _MAGIC:
        raise ValueError("no file of torch.save")
    protocol, system = read_pickle(file), read_pickle(file)
    if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("another protocol, or big-endian numbers")
    said, keys = read_pickle(file), read_pickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("no list of storages")
    widths = _storage_widths(said)
    storages: dict[str, memoryview] = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        size, start = length * widths.get(key, 1), file.tell()
        if size > len(data) - start:
            raise ValueError(f"a storage of {length} values, which the file does not have")
        storages[key] = data[start : start + size]
        file.seek(start + size)
    return _Resolver(storages.__getitem__, len(data)).resolve(said)


def _storage_widths(said: Any) -> dict[str, int]:
    """Return the bytes of a value by key of the storage."""
    widths: dict[str, int] = {}
    waiting, seen = [said], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Reference):
            kind, key, _ = _storage(value)
            widths[key] = _width(kind)
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, Call):
            waiting += value.arguments
    return widths


def _storage(reference: Reference) -> tuple[str, str, int]:
    """Return dtype, key and number of values of a storage; the dtype is empty where the tensor says it."""
    key = reference.key
    if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Name):
        raise ValueError("an unknown storage")
    kind = "" if key[1].name == "UntypedStorage" else _STORAGES.get(key[1].name)
    if kind is None or not key[1].module.startswith("torch"):
        raise ValueError(f"an unknown storage {key[1]}")
    return kind, str(key[2]), _count(key[4])


def _width(kind: str) -> int:
    return 2 if kind == _BFLOAT16 else 1 if kind in ("", "bool") else np.dtype(kind).itemsize


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError("a size that is none")
    return value


class _Resolver:
    """Makes arrays of what a pickle described; each object once, so that shared ones cost nothing.

    Arrays are views of the file. What has to be copied is counted, and more than the file has bytes is refused.
    """

    def __init__(self, storage: Callable[[str], memoryview], size: int) -> None:
        self.read = storage
        self.left = size + 2**16
        self.storages: dict[str, memoryview] = {}
        self.known: dict[int, Any] = {}
        self.kept: list[Any] = []

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("more arrays than the file has bytes for")

    def storage(self, key: str) -> memoryview:
        if key not in self.storages:
            self.storages[key] = self.read(key)
        return self.storages[key]

    def resolve(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, str | bytes | int | float):
            return value
        if depth > _DEPTH:
            raise ValueError("containers too deep")
        if id(value) not in self.known:
            self.kept.append(value)
            self.known[id(value)] = self.make(value, depth)
        return self.known[id(value)]

    def make(self, value: Any, depth: int) -> Any:
        if isinstance(value, list | tuple):
            return [self.resolve(each, depth + 1) for each in value]
        if isinstance(value, dict):
            return {key: self.resolve(each, depth + 1) for key, each in value.items()}
        if isinstance(value, Call) and value.what in _RECONSTRUCT:
            return self.numpy_array(value)
        if isinstance(value, Call) and value.what == Name("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor(value.arguments, None)
        if isinstance(value, Call) and value.what == Name("torch._utils", "_rebuild_tensor_v3"):
            return self.tensor(value.arguments, value.arguments[6] if len(value.arguments) > 6 else None)
        if isinstance(value, Call) and value.what == Name("collections", "OrderedDict"):
            return {}
        what = value.what if isinstance(value, Call) else value
        raise ValueError(f"{what}, which is no array")

    def tensor(self, arguments: tuple[Any, ...], dtype: Any) -> Array:
        reference, offset, size, stride = arguments[:4]
        if not isinstance(reference, Reference) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise ValueError("a tensor without storage")
        kind, key, _ = _storage(reference)
        if dtype is not None:
            kind = _TORCH_DTYPES.get(dtype.name, "") if isinstance(dtype, Name) and dtype.module == "torch" else ""
        if not kind:
            raise ValueError("a tensor of an unknown dtype")
        raw = self.storage(key)
        count, rest = divmod(len(raw), _width(kind))
        if rest or len(size) != len(stride) or len(size) > 8:
            raise ValueError("a tensor that does not fit its storage")
        shape, steps, first = [_count(each) for each in size], [_count(each) for each in stride], _count(offset)
        last = (
            first + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) if math.prod(shape) else first - 1
        )
        if last >= count or math.prod(shape) > count:
            raise ValueError("a tensor that leaves its storage")
        flat = np.frombuffer(raw, dtype=BFLOAT16 if kind == _BFLOAT16 else np.dtype(kind).newbyteorder("<"))[first:]
        width = flat.dtype.itemsize
        return np.lib.stride_tricks.as_strided(flat, shape, [step * width for step in steps], writeable=False)

    def numpy_array(self, call: Call) -> Array:
        state = call.state
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple):
            raise ValueError("a numpy array without content")
        _, shape, dtype, fortran, content = state
        raw = _bytes(content)
        self.spend(0 if raw is content else len(raw))
        kind = _numpy_dtype(dtype)
        sizes = [_count(each) for each in shape]
        if len(sizes) > 8 or math.prod(sizes) * kind.itemsize != len(raw):
            raise ValueError("a numpy array of another size than its content")
        flat = np.frombuffer(raw, dtype=kind)
        self.spend(0 if kind.isnative else len(raw))
        found = flat.reshape(sizes[::-1]).T if fortran is True else flat.reshape(sizes)
        return found.astype(kind.newbyteorder("="), copy=False)


def _numpy_dtype(call: Any) -> np.dtype[Any]:
    state = call.state if isinstance(call, Call) and call.what == Name("numpy", "dtype") else None
    code = call.arguments[0] if state is not None and call.arguments else None
    if (
        code not in _NUMPY_DTYPES
        or not isinstance(state, tuple)
        or len(state) < 2
        or state[1] not in ("<", ">", "|", "=")
    ):
        raise ValueError(f"a numpy array of dtype {str(code)[:20]}")
    return np.dtype(f"{'<' if state[1] in '|=' else state[1]}{code}")


def _bytes(content: Any) -> bytes:
    """Return bytes as a pickle spells them: as they are, or in protocol 2 as text in latin-1."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, Call) and content.what == Name("_codecs", "encode") and len(content.arguments) == 2:
        text, encoding = content.arguments
        if isinstance(text, str) and encoding == "latin1":
            return text.encode("latin1")
    raise ValueError("content that is no bytes")


def entry(found: Any, key: str, where: str) -> Any:
    """Return what a file has under `key`."""
    if not isinstance(found, Mapping) or key not in found:
        got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise DataError(expected("file", f"arrays with {key!r}", got, where=where))
    return found[key]
