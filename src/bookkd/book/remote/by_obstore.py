"""S3, Google, Azure and HTTP through obstore; credentials are what its environment says, for HTTP what ~/.netrc says."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bookkd.book import _layout
from bookkd.book.remote.secrets import reason
from bookkd.book.remote.store import PROBED, Interrupted
from bookkd.core.errors import StorageError
from bookkd.core.names import require

__all__ = ["ObstoreStore"]

_READ_SECONDS, _REQUEST_SECONDS = 30, 3600
"""Without a byte for so long, a request is tried again; the whole of one shard may take an hour."""
_WINDOW = 8
"""Numbers of editions that are asked for at once where no listing is to be had; a window without any is the end of them."""
_MOST_EDITIONS = 10**5
"""Where asking for editions ends on any server."""
_AGAIN = re.compile(r"status code: (?:5\d\d|408|425|429)|HTTP error:")
_ABSENT = re.compile(r"status code: 404")
_FORBIDDEN = re.compile(r"status code: 40[13]")
_NO_HEAD = re.compile(r"status code: 405")
_PIECE = 2**20
_GAP = 2**16
"""Bytes that are sooner fetched than left out between two ranges."""
_T = TypeVar("_T")
_used_in: list[int] = []
"""The process whose threads obstore has started."""


class _ForbiddenError(StorageError):
    """The answer 401 or 403, which many servers give for what is absent too."""


class ObstoreStore:
    """A place on a server that obstore reaches; arguments as `open_store`."""

    def __init__(self, url: str, seconds: float) -> None:
        self._obstore = require("obstore", "remote")
        require("obstore.store", "remote")
        self._url = url
        scheme = url.partition(":")[0]
        self._http = scheme in ("http", "https")
        self.writable = not self._http
        client: dict[str, Any] = {
            "timeout": timedelta(seconds=_REQUEST_SECONDS),
            "read_timeout": timedelta(seconds=_READ_SECONDS),
        }
        if self._http:
            client["allow_http"] = scheme == "http"
            client["default_headers"] = _authorization(url)
        elif os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"):
            client["allow_http"] = True
        retry = {
            "max_retries": 1000,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=min(5, max(seconds / 4, 0.1))),
                "base": 2,
            },
        }
        self._store = self._obstore.store.from_url(url, client_options=client, retry_config=retry)

    def size(self, key: str) -> int:
        def asked() -> int:
            try:
                return int(self._obstore.head(self._store, key)["size"])
            except (self._obstore.exceptions.BaseError, FileNotFoundError) as error:
                # The client takes 405 for "not found".
                if not _NO_HEAD.search(str(error)):
                    raise
                return int(self._obstore.get(self._store, key).meta["size"])  # its body is not read

        return self._ask(asked)

    def stream(self, key: str, start: int) -> tuple[int, Iterable[bytes]]:
        options = {"range": {"offset": start}} if start else None
        found = self._ask(lambda: self._obstore.get(self._store, key, options=options))
        return int(found.meta["size"]), self._pieces(found)

    def _pieces(self, found: Any) -> Iterator[bytes]:
        pieces = iter(found.stream(min_chunk_size=_PIECE))
        while (piece := self._ask(lambda: next(pieces, None))) is not None:
            yield bytes(piece)

    def ranges(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]:
        found = self._ask(
            lambda: self._obstore.get_ranges(self._store, key, starts=list(starts), ends=list(stops), coalesce=_GAP)
        )
        return [memoryview(piece) for piece in found]

    def names(self, key: str) -> dict[str, int]:
        if self._http:
            return {} if key else self._probed()
        try:
            listed = self._ask(lambda: self._obstore.list_with_delimiter(self._store, key or None))
        except FileNotFoundError:
            return {}
        except _ForbiddenError:
            if key:
                raise
            return self._probed()  # a public bucket often lets in who knows the name alone
        folders = {str(name).rpartition("/")[2]: -1 for name in listed["common_prefixes"]}
        return folders | {str(each["path"]).rpartition("/")[2]: int(each["size"]) for each in listed["objects"]}

    def _probed(self) -> dict[str, int]:
        """Ask for the files of a book that have fixed names: a plain server lists nothing.

        Raises:
            StorageError: if nothing is found and the server forbids; where something is found, it means by it what is absent. If the
                server has an answer to every name, as for a page of an application.
        """
        found: dict[str, int] = {}
        refused: list[_ForbiddenError] = []

        def ask(name: str) -> bool:
            try:
                found[name] = self.size(name)
            except FileNotFoundError:
                return False
            except _ForbiddenError as error:
                refused.append(error)
                return False
            return True

        if ask(_layout.edition_name(0)):
            raise StorageError(
                f"Expected {self._url} to answer 404 to what is not there, got an answer to {_layout.edition_name(0)}, which no book "
                f"has. Check the address: this server has a page for every name."
            )
        first, more = 1, True
        with ThreadPoolExecutor(_WINDOW) as pool:
            while (more and first <= _MOST_EDITIONS) or (first <= PROBED and not found):
                answers = list(pool.map(ask, map(_layout.edition_name, range(first, first + _WINDOW))))
                more = any(answers)  # only now, so that all are waited for
                first += _WINDOW
        ask(_layout.PLAN_NAME)
        if refused and not found:
            raise refused[0]
        return found

    def create(self, key: str, data: bytes) -> bool:
        exists = self._obstore.exceptions.AlreadyExistsError

        def put() -> bool:
            try:
                self._obstore.put(self._store, key, data, mode="create")
            except exists:
                return False
            return True

        return self._ask(put)

    def _ask(self, call: Callable[[], _T]) -> _T:
        me = os.getpid()
        _used_in[:] = _used_in or [me]
        if _used_in[0] != me:
            raise StorageError(
                f"Expected {self._url} to be asked by the process that opened it or one that was spawned, got a forked one. "
                f"Start workers by spawn, or read from the cache what their parent has read."
            )
        errors = self._obstore.exceptions
        refusals = (errors.PermissionDeniedError, errors.UnauthenticatedError)
        try:
            return call()
        except FileNotFoundError:
            raise FileNotFoundError from None
        except (errors.NotSupportedError, NotImplementedError) as error:
            raise StorageError(
                f"Expected the server of {self._url} to take this request, got {reason(error)}. Copy the book to a folder."
            ) from None
        except (errors.BaseError, ValueError, OSError) as error:
            if _ABSENT.search(str(error)):
                raise FileNotFoundError from None
            if isinstance(error, refusals) or _FORBIDDEN.search(str(error)):
                raise _ForbiddenError(
                    f"Expected {self._url} to be open to these credentials, got {reason(error)}. Check the environment of the "
                    f"store's client."
                ) from None
            if _AGAIN.search(str(error)):
                raise Interrupted(reason(error)) from None
            raise StorageError(
                f"Expected {self._url} to be reachable, got {reason(error)}. Check the address and the environment of the "
                f"store's client."
            ) from None


def _authorization(url: str) -> dict[str, str]:
    """Return the header by which ~/.netrc (or the file that NETRC names) lets in, if it knows the host."""
    try:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        known = netrc(str(path)).hosts.get(urlsplit(url).hostname or "")
    except (OSError, RuntimeError, NetrcParseError):  # RuntimeError where there is no home
        return {}
    if known is None:
        return {}
    user = base64.b64encode(f"{known[0]}:{known[2]}".encode()).decode()
    return {"Authorization": f"Basic {user}"}
