"""JSON that is walked, not built: a line of a hundred megabytes would be gigabytes of Python objects.

A `Walk` stands somewhere in the bytes of one JSON text. `members` and `items` go through an object or a list, `scalar` reads a
number, text or constant, and `skip` passes over a value. What is skipped is checked in its brackets and strings alone.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["Walk", "check_utf8"]

_SPACE = re.compile(rb"[ \t\r\n]*")
_ATOM = re.compile(rb"[-+.\w]{1,64}")
_NUMBER = re.compile(rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_CONSTANTS = {b"true": True, b"false": False, b"null": None, b"-Infinity": float("-inf")}
_FLAT = rb'(?:[^"\[\]{}]++|"[^"\\]*+")*+'
_FLATTER = rb'(?:[^"\[\]{}]++|"[^"\\]*+"|\{' + _FLAT + rb"\}|\[" + _FLAT + rb"\])*+"
_RUN = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+"|\{' + _FLATTER + rb"\}|\[" + _FLATTER + rb"\])*+")
"""Values with at most two levels of brackets in them, which are passed over at once; possessive, so that nothing is remembered."""
_ENDS = {b"[": b"]", b"{": b"}"}
_KINDS = {b"{": "dict", b"[": "list", b'"': "str", b"t": "bool", b"f": "bool", b"n": "NoneType"}
_MAX_DEPTH = 256
_MAX_TEXT = 2**16
_PIECE = 2**16


def check_utf8(data: bytes) -> None:
    """Raise ValueError for bytes that are no UTF-8, without decoding all of them at once."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), _PIECE):
        decoder.decode(data[start : start + _PIECE])
    decoder.decode(b"", final=True)


class Walk:
    """A place in a JSON text, moved by what is read.

    Args:
        data: The text in UTF-8.
        at: The place to begin at.

    Every method raises ValueError for what is no JSON.

    >>> walk = Walk(b'{"a": [1, 2.5], "b": {"c": [[]]}, "d": "x"}')
    >>> found = {}
    >>> for name in walk.members():
    ...     found[name] = list(walk.scalar() for _ in walk.items()) if name == "a" else walk.skip()
    >>> found["a"], sorted(found)
    ([1, 2.5], ['a', 'b', 'd'])
    """

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def peek(self) -> bytes:
        """Return the next byte that is no space; empty at the end."""
        self.at = _SPACE.match(self.data, self.at).end()  # type: ignore[union-attr]
        return self.data[self.at : self.at + 1]

    def kind(self) -> str:
        """Return the name of the Python type of the next value."""
        return _KINDS.get(self.peek(), "number")

    def members(self) -> Iterator[str]:
        """Yield the names of an object; each value must be read or skipped before the next."""
        for _ in self._parts(b"{", b"}"):
            if self.peek() != b'"':
                raise ValueError(f"a name expected at byte {self.at}")
            name = self.scalar(long="")
            self._pass(b":")
            yield str(name)

    def items(self) -> Iterator[None]:
        """Yield for each value of a list; it must be read or skipped before the next."""
        return self._parts(b"[", b"]")

    def scalar(self, long: str | None = None) -> Any:
        """Return a text, number, true, false, null or -Infinity.

        Args:
            long: What to return for a text of more than 64 KiB; such a text is refused where None.
        """
        if self.peek() == b'"':
            start, self.at = self.at, self._end_of_text(self.at)
            if self.at - start > _MAX_TEXT:
                if long is None:
                    raise ValueError(f"a text of {self.at - start} bytes at byte {start}")
                return long
            return json.loads(self.data[start : self.at])
        match = _ATOM.match(self.data, self.at)
        if match is None:
            raise ValueError(f"a value expected at byte {self.at}")
        self.at = match.end()
        if match[0] in _CONSTANTS:
            return _CONSTANTS[match[0]]
        if match[0] in (b"NaN", b"Infinity"):
            raise ValueError(f"{match[0].decode()} is no log-probability")
        if _NUMBER.fullmatch(match[0]) is None:
            raise ValueError(f"a value expected at byte {match.start()}")
        return json.loads(match[0])

    def skip(self) -> None:
        """Pass over a value."""
        if self.peek() not in _ENDS:
            self.scalar(long="")
            return
        waiting = [_ENDS[self.peek()]]
        self.at += 1
        while waiting:
            self.at = _RUN.match(self.data, self.at).end()  # type: ignore[union-attr]
            found = self.data[self.at : self.at + 1]
            if not found:
                raise ValueError("no end")
            if found == b'"':
                self.at = self._end_of_text(self.at)
                continue
            self.at += 1
            if found in _ENDS:
                waiting.append(_ENDS[found])
                if len(waiting) > _MAX_DEPTH:
                    raise ValueError("too deep")
            elif waiting.pop() != found:
                raise ValueError(f"another bracket expected at byte {self.at - 1}")

    def finish(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise ValueError(f"more than one value, at byte {self.at}")

    def _parts(self, opening: bytes, closing: bytes) -> Iterator[None]:
        self._pass(opening)
        if self.peek() == closing:
            self.at += 1
            return
        while True:
            yield
            if self.peek() == closing:
                self.at += 1
                return
            self._pass(b",")

    def _pass(self, wanted: bytes) -> None:
        if self.peek() != wanted:
            raise ValueError(f"{wanted.decode()!r} expected at byte {self.at}")
        self.at += 1

    def _end_of_text(self, start: int) -> int:
        at = start
        while (at := self.data.find(b'"', at + 1)) >= 0:
            slashes = at
            while self.data[slashes - 1] == ord("\\"):
                slashes -= 1
            if (at - slashes) % 2 == 0:
                return at + 1
        raise ValueError("a text without end")
