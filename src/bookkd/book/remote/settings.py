"""How long a server is waited for, and where what it sent is kept: from the environment, checked."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Self

from bookkd.core.errors import ConfigError, StorageError, expected

__all__ = ["Fetcher", "Patience", "cache_folder", "cache_limit", "retry_seconds"]

RETRY_SECONDS = 60.0
PROGRESS = 2**20
"""Bytes that count as progress: a server that sends less in `retry_seconds` is given up."""
_SHARE = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


def retry_seconds() -> float:
    """Return how long a failing transfer is tried again, in seconds: `BOOKKD_RETRY_SECONDS`, else 60.

    Raises:
        ConfigError: if it is no number from 0 on.
    """
    return _number("BOOKKD_RETRY_SECONDS", RETRY_SECONDS)


def cache_folder() -> Path | None:
    """Return the folder of the cache: `BOOKKD_CACHE`, else the platform's; None where that is "none".

    Raises:
        ConfigError: if the environment names no folder, and the user has none.
    """
    given = os.environ.get("BOOKKD_CACHE", "")
    if given.lower() == "none":
        return None
    if given:
        return Path(given)
    try:
        return _usual_folder()
    except RuntimeError:
        do = "Set it to a folder, or to none for streaming."
        raise ConfigError(
            expected("BOOKKD_CACHE", "set for a user without a home folder", None, where="environment", do=do)
        ) from None


def _usual_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bookkd"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "bookkd" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bookkd"


def cache_limit(free: int, held: int) -> int:
    """Return the most bytes that the cache may hold: `BOOKKD_CACHE_BYTES`, else a quarter of what it could have.

    Args:
        free: Bytes free on its disk.
        held: Bytes that it holds.

    >>> cache_limit(free=100, held=20)
    30
    """
    given = _number("BOOKKD_CACHE_BYTES", -1.0)
    return (free + held) // _SHARE if given < 0 else int(given)


def _number(name: str, usual: float) -> float:
    given = os.environ.get(name, "")
    if not given:
        return usual
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(expected(name, "a number from 0 on", given, where="environment"))
    return value


class Fetcher(threading.Thread):
    """A thread whose transfers can be given up: they end with the next piece, or instead of the next try."""

    given_up = False
    task = 0
    """What it is at, for whoever gives it tasks."""

    @classmethod
    def current(cls) -> Self:
        """Return the thread that asks."""
        found = threading.current_thread()
        if not isinstance(found, cls):
            raise TypeError(found)
        return found


class Patience:
    """Bounds how long a failing transfer is tried again: the time since it last got on.

    Args:
        where: Address for the error.
        seconds: The bound; 0 for no second try.
    """

    def __init__(self, where: str, seconds: float) -> None:
        self._where, self._seconds = where, seconds
        self._since, self._mark, self._pause = time.monotonic(), 0, _FIRST_PAUSE

    def got_to(self, position: int) -> None:
        """Note how far the transfer is, in bytes.

        Raises:
            StorageError: if the transfer is given up.
        """
        self._check_wanted()
        if position - self._mark >= PROGRESS:
            self._mark = position
            self.renew()

    def renew(self) -> None:
        """Note that things get on, by whatever it is told."""
        self._since, self._pause = time.monotonic(), _FIRST_PAUSE

    def wait(self, reason: str, longest: float = _LONGEST_PAUSE) -> None:
        """Wait before the next try, each time longer.

        Args:
            reason: Why the last one failed.
            longest: Seconds between two tries at most.

        Raises:
            StorageError: if the time is over, or the transfer is given up.
        """
        self._check_wanted()
        left = self._seconds - (time.monotonic() - self._since)
        if left <= 0:
            raise StorageError(
                f"Expected {self._where} to arrive, got {reason}, for {self._seconds:g} s. Check the server and the network; "
                f"BOOKKD_RETRY_SECONDS is how long it is tried."
            )
        time.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, longest)

    def _check_wanted(self) -> None:
        thread = threading.current_thread()
        if isinstance(thread, Fetcher) and thread.given_up:
            raise StorageError(
                f"Expected {self._where} to be wanted, got a book that was closed meanwhile. Read again."
            )
