"""Every other scheme, through fsspec: read only, since not every file system of it creates in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from bookkd.book.remote.secrets import reason
from bookkd.book.remote.store import Interrupted
from bookkd.core.errors import StorageError
from bookkd.core.names import require

__all__ = ["FsspecStore"]

_PIECE = 8 * 2**20
_T = TypeVar("_T")


class FsspecStore:
    """A place on a server that fsspec reaches.

    Args:
        url: Address without credentials; they are what the file system's own configuration says.
    """

    writable = False

    def __init__(self, url: str) -> None:
        fsspec = require("fsspec", "remote")
        self._url = url
        self._files, self._root = fsspec.core.url_to_fs(url)

    def size(self, key: str) -> int:
        found = self._ask(lambda: self._files.info(self._path(key)))
        if found.get("type") == "directory":
            raise FileNotFoundError
        return int(found["size"])

    def stream(self, key: str, start: int) -> tuple[int, Iterable[bytes]]:
        size = self.size(key)
        return size, self._pieces(key, start, size)

    def _pieces(self, key: str, start: int, size: int) -> Iterator[bytes]:
        for at in range(start, size, _PIECE):
            yield bytes(self.ranges(key, [at], [min(at + _PIECE, size)])[0])

    def ranges(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]:
        path = self._path(key)
        return [
            self._ask(lambda begin=begin, end=end: self._files.cat_file(path, start=begin, end=end))  # type: ignore[misc]
            for begin, end in zip(starts, stops, strict=True)
        ]

    def names(self, key: str) -> dict[str, int]:
        try:
            self._files.invalidate_cache()  # a listing that was kept would hide a new edition
            listed = self._ask(lambda: self._files.ls(self._path(key), detail=True))
        except FileNotFoundError:
            return {}
        return {
            str(each["name"]).rstrip("/").rpartition("/")[2]: -1 if each["type"] == "directory" else int(each["size"])
            for each in listed
        }

    def create(self, key: str, data: bytes) -> bool:
        raise NotImplementedError  # `writable` is false

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}" if key else str(self._root)

    def _ask(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError from None
        except (PermissionError, ImportError, ValueError, TypeError, NotImplementedError) as error:
            raise StorageError(
                f"Expected {self._url} to be readable, got {reason(error)}. Check the configuration of its fsspec client."
            ) from None
        except Exception as error:  # file systems of others raise what they like
            raise Interrupted(reason(error)) from None
