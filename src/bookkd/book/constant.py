"""What a plan notes of a constant: an array that a teacher has once, not once a record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bookkd.book import _checked, _layout
from bookkd.book._container import HEADER_LIMIT
from bookkd.book.codecs.raw import RAW_DTYPES
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose

__all__ = ["Constant", "constant_from_json"]


@dataclass(frozen=True)
class Constant:
    """What a plan notes of one constant; the array itself is a file of the book, named by its digest.

    Args:
        dtype: A numpy name, such as "float32".
        shape: Its axes, 1 to 8, none empty.
        bytes: Size of the file.
        digest: xxh3_128 of the file.

    >>> Constant("float32", (10, 64), 2640, "0" * 32).file
    'constants/00000000000000000000000000000000.safetensors'
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    digest: str

    def __post_init__(self) -> None:
        choose(self.dtype, RAW_DTYPES, "dtype", where="constant")
        object.__setattr__(self, "shape", tuple(self.shape))
        if not 1 <= len(self.shape) <= 8 or any(type(size) is not int or size < 1 for size in self.shape):
            raise ConfigError(expected("shape", "1 to 8 axes, none of them empty", self.shape, where="constant"))
        data = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if data > _layout.MAX_CONSTANT_BYTES:
            wish = f"of at most {_layout.MAX_CONSTANT_BYTES} bytes"
            raise ConfigError(expected("shape", wish, f"{data} bytes", where="constant"))
        if type(self.bytes) is not int or not data < self.bytes <= data + 8 + HEADER_LIMIT:
            raise ConfigError(expected("bytes", f"those of a file around {data}", self.bytes, where="constant"))
        if not _layout.CONSTANT_FILE.fullmatch(f"{self.digest}.safetensors"):
            raise ConfigError(expected("digest", "32 hexadecimal digits", self.digest, where="constant"))

    @property
    def file(self) -> str:
        """Path of its file in the book: equal bytes are one file, whatever names them and in however many editions."""
        return f"{_layout.CONSTANTS_FOLDER}/{self.digest}.safetensors"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"dtype": self.dtype, "shape": list(self.shape), "bytes": self.bytes, "xxh3_128": self.digest}


def constant_from_json(found: Mapping[str, Any], where: str) -> Constant:
    """Return what `to_json` wrote, trusting nothing.

    Raises:
        BookFormatError: for a value of another type.
        ConfigError: for one that no constant has.
        UnknownNameError: for an unknown dtype.
    """
    return Constant(
        _checked.text(found, "dtype", where),
        tuple(_checked.integers(found, "shape", where)),
        _checked.integer(found, "bytes", where),
        _checked.hex_digest(found, "xxh3_128", where),
    )
