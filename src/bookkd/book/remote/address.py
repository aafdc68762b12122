"""What an address may be: a path, or a URL without credentials."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from bookkd.book.remote.path import RemotePath
from bookkd.book.remote.secrets import scrub
from bookkd.core.errors import ConfigError, expected

__all__ = ["Root", "local_folder", "root_of"]

Root = Path | RemotePath

# Two letters at least, so that a drive of Windows is none.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_CONTAINER = ("abfs", "abfss")
"""Schemes that write `container@account`: no credential."""


def root_of(path: str | Path | RemotePath) -> Root:
    """Return the place that an address means.

    Args:
        path: A folder, or a URL: `s3://`, `gs://`, `az://`, `http://`, `https://`, or of any scheme that fsspec knows.

    Raises:
        ConfigError: for a URL with credentials in it, which would end up in logs and results; or with `..`.

    >>> str(root_of("s3://bucket/book/"))
    's3://bucket/book'
    >>> root_of("https://me:secret@host/book")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `address` to be without credentials, got a user or password before https://host/book. ...
    """
    if not isinstance(path, str):
        return path
    match = _URL.fullmatch(path)
    if match is None:
        return Path(path)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return Path(url2pathname(unquote(urlsplit(path).path)))
    if _has_credentials(scheme, rest):
        # Where a password ends is not known, for it may have "/" and "@" in it: nothing before the last "@" is shown.
        host = rest.rpartition("@")[2] if "@" in rest else "..."
        raise _refused(f"a user or password before {scrub(f'{scheme}://{host}')}")
    shown = scrub(f"{scheme}://{rest}")
    if re.search("[?#]", rest):
        raise _refused(f"a query behind {shown}")
    plain = rest.rstrip("/")
    if not plain or any(part in (".", "..") for part in plain.split("/")) or re.search(r"[\x00-\x20\\]", plain):
        raise ConfigError(expected("address", "a URL such as s3://bucket/book", shown))
    return RemotePath(f"{scheme}://{plain}")


def local_folder(path: str | Path | RemotePath, what: str) -> Path:
    """Return the folder that an address means, for what works on this machine's files alone.

    Args:
        path: An address.
        what: What is to be done with it, such as "compact".

    Raises:
        ConfigError: if it is the address of a server.
    """
    root = root_of(path)
    if isinstance(root, Path):
        return root
    do = f"Copy it, and the result back: bookkd copy {root} DIR."
    raise ConfigError(expected("book", f"a folder of this machine, to {what} it", str(root), do=do))


def _has_credentials(scheme: str, rest: str) -> bool:
    """Say whether a user or password stands before the host; secrets of AWS and Azure may have "/" in them.

    >>> [_has_credentials("s3", rest) for rest in ("key:a/b@shelf/book", "host:9000/book", "shelf/a@b/book", "me:1/2@host/book")]
    [True, False, False, True]
    """
    first, _, after = rest.partition("/")
    user, at, _ = first.rpartition("@")
    if at and (scheme not in _CONTAINER or ":" in user):
        return True
    port = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]*\]|[^:]*)(?::([0-9]*))?", first.rpartition("@")[2])
    return port is None or (port[1] is not None and "@" in after)


def _refused(what: str) -> ConfigError:
    do = "Give them by the environment of the store's client (AWS_ACCESS_KEY_ID, ...), or for http by ~/.netrc."
    return ConfigError(expected("address", "without credentials", what, do=do))
