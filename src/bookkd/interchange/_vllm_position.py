"""One position of vLLM's log-probabilities: an object of classes, or the list of a chat's answer."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator
from typing import Any

from bookkd.core.errors import DataError, expected
from bookkd.interchange._json_text import Walk

__all__ = ["position_of"]

_CLASS = re.compile(r"(?:token_id:)?(\d{1,10})")
_NUMBER = rb"(-?\d{1,10}(?:\.\d{1,30})?(?:[eE][-+]?\d{1,3})?)"
_PLAIN = re.compile(
    rb'"(?:token_id:)?(\d{1,10})"[ ]?:[ ]?(?:' + _NUMBER + rb'|\{"logprob"[ ]?:[ ]?' + _NUMBER + rb"(?:,[ ]?"
    rb'"rank"[ ]?:[ ]?\d{1,10})?(?:,[ ]?"decoded_token"[ ]?:[ ]?(?:"[^"\\\x00-\x1f]{0,256}"|null))?[ ]?\})(?:,[ ]?(?=")|(?=\}))'
)
"""A class as vLLM writes it, which is read at once; whatever is written otherwise is walked."""
_NOTHING = -9999.0
"""What vLLM's server writes for minus infinity."""


def position_of(walk: Walk, where: str, n_classes: int) -> tuple[array[int], array[float]]:
    """Return classes and log-probabilities of the position at which `walk` stands."""
    if walk.kind() != "dict":
        got = "list" if walk.kind() == "list" else type(walk.scalar()).__name__
        raise DataError(expected("position", "an object class -> log-probability", got, where=where))
    start = walk.at
    found = _plain_position(walk, n_classes)
    if found is not None:
        return found
    try:
        place = _chat_place(walk)
        return _walked_position(Walk(walk.data, start if place is None else place), place is not None, where, n_classes)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(expected("line", "one JSON object", f"{error}", where=where)) from error


def _plain_position(walk: Walk, n_classes: int) -> tuple[array[int], array[float]] | None:
    """Return a position and pass over it, if all of it is written as vLLM does."""
    classes, log_p = array("q"), array("d")
    at = walk.at + 1
    while len(classes) <= n_classes and (match := _PLAIN.match(walk.data, at)):
        value = float(match[2] or match[3])
        classes.append(int(match[1]))
        log_p.append(-math.inf if value <= _NOTHING else value)
        at = match.end()
    if not classes or len(classes) > n_classes or max(log_p) > 1e300 or walk.data[at : at + 1] != b"}":
        return None
    walk.at = at + 1
    return classes, log_p


def _chat_place(walk: Walk) -> int | None:
    """Pass over a position and return where its `top_logprobs` are, if it has them: the form of chats."""
    place = None
    for name in walk.members():
        if name == "top_logprobs" and walk.kind() == "list":
            place = walk.at
        walk.skip()
    return place


def _walked_position(walk: Walk, chat: bool, where: str, n_classes: int) -> tuple[array[int], array[float]]:
    classes, log_p = array("q"), array("d")
    pairs = _chat_pairs(walk) if chat else ((name, _said(walk)) for name in walk.members())
    for name, value in pairs:
        classes.append(_class(name, where))
        log_p.append(_number(value, where))
        if len(classes) > n_classes:
            do = "Pass --n_classes with all classes of the teacher, or the file is damaged."
            raise DataError(expected("classes", f"at most {n_classes}", "more", where=where, do=do))
    return classes, log_p


def _chat_pairs(walk: Walk) -> Iterator[tuple[Any, Any]]:
    for _ in walk.items():
        token = value = None
        if walk.kind() != "dict":
            walk.skip()
        else:
            for name in walk.members():
                if name == "token":
                    token = _said(walk)
                elif name == "logprob":
                    value = _said(walk)
                else:
                    walk.skip()
        yield token, value


def _said(walk: Walk) -> Any:
    """Return a value, or of an object its `logprob`."""
    if walk.kind() == "list":
        walk.skip()
        return []
    if walk.kind() != "dict":
        return walk.scalar()
    value = None
    for name in walk.members():
        if name == "logprob" and walk.kind() not in ("dict", "list"):
            value = walk.scalar()
        else:
            walk.skip()
    return value


def _class(name: Any, where: str) -> int:
    match = _CLASS.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        do = "Start the server with --return-tokens-as-token-ids: a text is no class."
        raise DataError(expected("token", "a class number", name, where=where, do=do))
    return int(match[1])


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        if value == -math.inf:
            return -math.inf
        raise DataError(expected("logprob", "a number", value, where=where))
    return -math.inf if value <= _NOTHING else float(value)
