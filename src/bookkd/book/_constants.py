"""Constants of a book: packed and written before the first record, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from bookkd.book import _container, _files, _layout
from bookkd.book._shard import read_header
from bookkd.book.codecs.base import Array
from bookkd.book.codecs.raw import RAW_DTYPES
from bookkd.book.constant import Constant
from bookkd.book.remote import Root
from bookkd.core.errors import BookKDError, ConfigError, StorageError, TeacherOutputError, expected
from bookkd.core.fields import check_field_name
from bookkd.core.names import choose

__all__ = ["Constants", "Packed", "packed_constants", "planned_constants", "put_constants", "read_constant"]

_TENSOR = "values"
_ALIGNED = 8

_T = TypeVar("_T")


class Packed(NamedTuple):
    """A constant with the bytes of its file."""

    entry: Constant
    data: bytes


class Constants(Mapping[str, Array]):
    """The constants of a book by name: each is read and checked when it is first asked for, and cannot be written to.

    Args:
        root: Place of the book.
        entries: What its plan notes of them.
    """

    def __init__(self, root: Root, entries: Mapping[str, Constant]) -> None:
        self._root, self._entries = root, dict(entries)
        self._read: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._read:
            choose(name, self._entries, "constant", where=str(self._root))
            self._read[name] = read_constant(self._root, self._entries[name])
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        shown = (f"{name}: {entry.dtype} {list(entry.shape)}" for name, entry in self._entries.items())
        return f"Constants({', '.join(shown)})"

    @overload
    def get(self, name: str, /) -> Array | None: ...

    @overload
    def get(self, name: str, /, default: Array | _T) -> Array | _T: ...

    def get(self, name: str, /, default: Any = None) -> Any:
        """Return a constant, or `default` where there is none of this name."""
        if name not in self:
            return default
        return self[name]


def packed_constants(constants: Mapping[str, Any]) -> dict[str, Packed]:
    """Return the bytes of the files of constants, and refuse what are none.

    Raises:
        ConfigError: for a name, dtype or shape that no constant has.
        TeacherOutputError: for NaN or infinity.
    """
    if len(constants) > _layout.MAX_CONSTANTS:
        raise ConfigError(expected("constants", f"at most {_layout.MAX_CONSTANTS}", len(constants)))
    return {name: _packed(check_field_name(name), constants[name]) for name in sorted(constants)}


def planned_constants(constants: Mapping[str, Any]) -> dict[str, Constant]:
    """Return what the plan of a book notes of constants.

    Args:
        constants: Name -> array, as for `BookWriter`.

    Raises:
        ConfigError: for a name, dtype or shape that no constant has.
        TeacherOutputError: for NaN or infinity.

    >>> planned_constants({"classifier/bias": np.zeros(3)})["classifier/bias"].shape
    (3,)
    """
    return {name: each.entry for name, each in packed_constants(constants).items()}


def _packed(name: str, given: Any) -> Packed:
    what = f"constants[{name}]"
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # of a tensor on another device, or with a gradient
        got = f"{type(given).__name__} ({' '.join(str(error).split())[:120]})"
        raise ConfigError(expected(what, "an array", got, do="Give a numpy array.")) from error
    if array.dtype.name not in RAW_DTYPES or not 1 <= array.ndim <= 8 or not array.size:
        wish = "an array of numbers with 1 to 8 axes, none of them empty"
        raise ConfigError(expected(what, wish, f"{array.dtype} of shape {array.shape}"))
    if array.nbytes > _layout.MAX_CONSTANT_BYTES:
        raise ConfigError(expected(what, f"of at most {_layout.MAX_CONSTANT_BYTES} bytes", array.nbytes))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise TeacherOutputError(expected(what, "finite", f"{array[place]} at {list(place)}"))
    data = _container.pack({_TENSOR: array.astype(array.dtype.newbyteorder("<"), copy=False)})
    return Packed(Constant(array.dtype.name, array.shape, len(data), _files.digest_of(data)), data)


def put_constants(root: Root, entries: Mapping[str, Constant], packed: Mapping[str, Packed]) -> None:
    """Write what is not there yet of the constants of a plan.

    Args:
        root: Place of the book.
        entries: What the plan notes of them.
        packed: Those that were given; the others have to be there.

    Raises:
        ConfigError: for one that is neither given nor there.
        BookLockedError: if a server has other bytes in its place.
    """
    for name, entry in entries.items():
        # A server compares what it has with what is put.
        if (name not in packed or isinstance(root, Path)) and _is_there(root, entry):
            continue
        if name not in packed:
            do = "Give every constant of the plan: constants={name: array}."
            raise ConfigError(
                expected(f"constants[{name}]", "given, as the plan names it", None, where=str(root), do=do)
            )
        _files.write_atomic(root, entry.file, packed[name].data)


def _is_there(root: Root, entry: Constant) -> bool:
    try:
        read_constant(root, entry)
    except StorageError:
        raise  # nobody knows what is there
    except BookKDError:
        return False
    return True


def read_constant(root: Root, entry: Constant) -> Array:
    """Read one constant, which cannot be written to.

    Raises:
        BookMissingError: if its file is not there.
        BookCorruptError: if it is not what was written.
        BookFormatError: if it holds another array than the plan says.
    """
    where = str(root / entry.file)
    data = _files.read_inside(root, entry.file, entry.bytes, expect=(entry.bytes, entry.digest))
    spans = read_header(memoryview(data), where)
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    _container.check_layout(spans, {_TENSOR: (dtype, entry.shape[1:])}, entry.shape[0], where)
    span = spans[_TENSOR]
    array: Array = np.frombuffer(data, np.uint8, span.stop - span.start, span.start)
    if span.start % _ALIGNED:  # not by our writer
        array = array.copy()
    found = array.view(dtype).reshape(entry.shape)
    found.flags.writeable = False
    return found
