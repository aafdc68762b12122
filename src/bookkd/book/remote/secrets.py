"""What must not be said: credentials in addresses, in the words of clients and servers, and in the environment."""

from __future__ import annotations

import os
import re

__all__ = ["reason", "scrub"]

_USER = re.compile(r"([A-Za-z][\w+.-]*://)(?:[^/\s\"']*:[^\s\"']*|[^/\s\"']*)@")
"""A user before the host; with a password, which may have "/" in it, everything up to the last "@"."""
_QUERY = re.compile(r"([A-Za-z][\w+.-]*://[^\s?#\"']*)[?#][^\s\"']*")
_NAMES = re.compile("KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL")
_STATUS = re.compile(r"status code: (\d{3}[\w ]*)")
_SHORTEST = 8
"""Characters of a secret that is looked for in texts; a shorter one would hide ordinary words."""


def scrub(text: str) -> str:
    """Return a text without the user, query and fragment of any address in it, and without secrets of the environment.

    >>> scrub("GET https://me:pw@host/book?sig=abc failed")
    'GET https://host/book failed'
    """
    for name, value in os.environ.items():
        if _NAMES.search(name.upper()) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def reason(error: BaseException) -> str:
    """Return why a transfer failed, in a few words: never the answer's body, which may quote the request.

    >>> reason(OSError("Error performing GET https://host/x?sig=abc - Server returned non-2xx status code: 403 Forbidden: <x>"))
    'the answer 403 Forbidden'
    """
    text = str(error).partition("\n")[0]
    status = _STATUS.search(text)
    if status:
        return f"the answer {status[1].strip()}"
    text = scrub(text.rpartition(" - ")[2] or type(error).__name__)
    return text if len(text) <= 160 else text[:157] + "..."
