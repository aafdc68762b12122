"""The few things that are asked of a server, by the client that knows its scheme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from bookkd.book.remote.secrets import reason
from bookkd.core.errors import ConfigError, StorageError, expected

__all__ = ["PROBED", "Interrupted", "Store", "open_store"]

OBSTORE = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "http", "https")
"""Schemes that obstore knows; every other one is fsspec's."""

PROBED = 64
"""Numbers up to which the first edition is looked for where a server lists nothing."""


class Interrupted(Exception):  # noqa: N818 - not an error yet: the transfer is tried again
    """A transfer that broke off and may be gone on with."""


class Store(Protocol):
    """A book's place on a server; keys are relative to it.

    Every method may raise FileNotFoundError, `Interrupted`, or a StorageError that trying again does not mend.
    """

    writable: bool
    """Whether "create if absent" is one step, which is what keeps two writers apart."""

    def size(self, key: str) -> int:
        """Return the bytes of an object."""

    def stream(self, key: str, start: int) -> tuple[int, Iterable[bytes]]:
        """Return the size of an object, and its bytes from `start` on, in pieces."""

    def ranges(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]:
        """Return pieces of an object, each a buffer."""

    def names(self, key: str) -> dict[str, int]:
        """Return what is directly in a folder: name -> bytes, -1 for a folder."""

    def create(self, key: str, data: bytes) -> bool:
        """Put an object where there is none, in one step; return whether there was none."""


def open_store(url: str, seconds: float) -> Store:
    """Open the place of a book.

    Args:
        url: Address without credentials.
        seconds: How long a failing request is tried again.

    Raises:
        MissingExtraError: if the client is not installed.
        ConfigError: if the client does not take the address.
    """
    scheme = url.partition(":")[0]
    try:
        if scheme in OBSTORE:
            from bookkd.book.remote.by_obstore import ObstoreStore

            return ObstoreStore(url, seconds)
        from bookkd.book.remote.by_fsspec import FsspecStore

        return FsspecStore(url)
    except (ImportError, StorageError):
        raise
    except Exception as error:
        do = "Check the address, and the environment of its client."
        place = "/".join(url.split("/")[:3])  # scheme and host: the rest says nothing here
        raise ConfigError(expected("address", "one that its client takes", reason(error), where=place, do=do)) from None
