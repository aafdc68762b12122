"""JSON lines of top-k log-probabilities, as they are written from vLLM.

One line is one sequence: an answer of vLLM's server, or what its Python interface returned, as JSON. Taken are

- `prompt_logprobs`: a list with null for the first token, then for each token an object class -> `{"logprob": ...}` or number;
- `logprobs` of the completion in the same form; as `{"top_logprobs": [{"token_id:7": -0.1}, ...]}`; or as
  `{"content": [{"top_logprobs": [{"token": "token_id:7", "logprob": -0.1}]}]}`, for which the server must have been started with
  `--return-tokens-as-token-ids`: a text is no class.

at the top, or under the one entry of `choices` (server) or `outputs` (`RequestOutput`), and `prompt_token_ids` for the positions of a
completion without its prompt. Prompt and completion of one line are one sequence; a line of several completions is refused, since they
are several sequences: write each as a line of its own.

vLLM gives the k most likely classes of a position and the token that stands there if it is not among them. By default as many
classes are kept as every position has; what is cut is in the tail. A position beyond the vocabulary is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from heapq import nlargest
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bookkd.core.errors import DataError, expected
from bookkd.interchange._source import ABSENT, MAX_FILE, Options, Sequences, Tokens, fingerprint

__all__ = ["VllmJsonLines"]

_MAX_LINE = 2**27
_CLASS = re.compile(r"(?:token_id:)?(\d{1,10})")
_NOTHING = -9999.0
"""What vLLM's server writes for minus infinity."""


class _Line(NamedTuple):
    positions: list[Any]
    first: int


class VllmJsonLines(Sequences):
    """A file of JSON lines -> a record for each position."""

    name: ClassVar[str] = "vllm-jsonl"
    allowed = 1e-2  # log-probabilities of half precision models

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.n_classes = options.classes(str(path))
        self.data = {"name": "vllm-jsonl", "source": path.name}
        if path.is_symlink() or not path.is_file():
            raise DataError(expected("source", "a file of JSON lines", "no such file", where=str(path)))
        self.raw = {}
        self.offsets: list[int] = []
        lengths, firsts, fewest, most = [], [], 2**31, 0
        for offset, number, text in self._lines(0):
            line = _parsed(text, f"{path}, line {number}")
            counts = [len(each) for each in line.positions]
            fewest, most = min([fewest, *counts]), max([most, *counts])
            self.offsets.append(offset)
            lengths.append(len(line.positions))
            firsts.append(line.first)
        self.k = min(options.k or max(1, fewest), max(1, most), self.n_classes)
        self.data |= {"sequences": len(lengths), "digest": fingerprint([path], path)}
        self.lay_out(lengths, firsts=firsts)
        self.views = {"transform": "none", "n_views": 1}
        self.notes = [
            f"positions have {fewest} to {most} classes, {self.k} are kept; all others are one tail, known at temperature 1",
            "a record is one token position, its key (line << 32) + position of the last token that was read",
        ]

    def stream(self, sequence: int) -> Iterator[Tokens]:
        for place, (_, number, text) in enumerate(self._lines(self.offsets[sequence]), start=sequence):
            where = self.where(place) if place < len(self.offsets) else f"{self.path}, line {number}"
            positions = _parsed(text, where).positions
            # No wider than what is kept, so that one long position does not cost its length at all others.
            positions = [nlargest(self.k, each, key=self._worth) for each in positions]
            width = max((len(each) for each in positions), default=0)
            log_p = np.full((len(positions), width), -np.inf)
            classes = np.full((len(positions), width), ABSENT, dtype=np.int64)
            for row, each in enumerate(positions):
                for column, (name, value) in enumerate(each):
                    classes[row, column], log_p[row, column] = name, value
            yield Tokens(log_p, classes)

    def _worth(self, pair: tuple[int, float]) -> tuple[bool, float]:
        """Return what a class is kept by: its probability, and before all one beyond the vocabulary, which is then refused."""
        return pair[0] >= self.n_classes, pair[1]

    def where(self, sequence: int) -> str:
        return f"{self.path}, sequence {sequence}"

    def _lines(self, offset: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield place in the file, number from there and text of each line that is not blank."""
        limit = min(_MAX_LINE, MAX_FILE)
        with self.path.open("rb") as file:
            file.seek(offset)
            number = 0
            while line := file.readline(limit + 1):
                number += 1
                if len(line) > limit:
                    raise DataError(
                        expected("line", f"at most {limit} bytes", "more", where=f"{self.path}, line {number}")
                    )
                if line.strip():
                    yield offset, number, line
                offset += len(line)


def _parsed(text: bytes, where: str) -> _Line:
    """Return the positions of a line, each a list of (class, log-probability)."""
    try:
        found = json.loads(text.decode("utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(expected("line", "one JSON object", f"{error}", where=where)) from error
    if not isinstance(found, dict):
        raise DataError(expected("line", "one JSON object", type(found).__name__, where=where))
    choice = _only_choice(found, where)
    prompt = _first(found, choice, "prompt_logprobs")
    completion = _first(found, choice, "logprobs")
    ids = _first(found, choice, "prompt_token_ids")
    if prompt is None and completion is None:
        raise DataError(
            expected("line", "with prompt_logprobs or logprobs", ", ".join(map(str, found))[:80], where=where)
        )
    entries = _prompt(prompt, where) + _completion(completion, where)
    first = max(0, len(ids) - 1) if prompt is None and isinstance(ids, list) else 0
    return _Line([_position(entry, f"{where}, position {first + i}") for i, entry in enumerate(entries)], first)


def _only_choice(found: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the one completion of a line, of the server or of the Python interface; nothing where the line is one itself."""
    for name in ("choices", "outputs"):
        listed = found.get(name)
        if not isinstance(listed, list) or not listed:
            continue
        if len(listed) > 1:
            do = "Write each as a line of its own."
            raise DataError(expected(name, "one completion a line", f"{len(listed)}", where=where, do=do))
        if isinstance(listed[0], dict):
            return listed[0]
    return {}


def _constant(name: str) -> float:
    if name == "-Infinity":
        return -math.inf
    raise ValueError(f"{name} is no log-probability")


def _first(found: Mapping[str, Any], choice: Mapping[str, Any], name: str) -> Any:
    value = found.get(name)
    return choice.get(name) if value is None else value


def _prompt(found: Any, where: str) -> list[Any]:
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(expected("prompt_logprobs", "a list", type(found).__name__, where=where))
    # Nothing comes before the first token, so that it has no probability.
    return found[1:] if found and not found[0] else found


def _completion(found: Any, where: str) -> list[Any]:
    if isinstance(found, dict):
        found = found.get("top_logprobs") if found.get("content") is None else found["content"]
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(expected("logprobs", "a list of positions", type(found).__name__, where=where))
    return found


def _position(entry: Any, where: str) -> list[tuple[int, float]]:
    if isinstance(entry, dict) and isinstance(entry.get("top_logprobs"), list):
        pairs = [
            (each.get("token"), each) if isinstance(each, dict) else (None, None) for each in entry["top_logprobs"]
        ]
    elif isinstance(entry, dict):
        pairs = list(entry.items())
    else:
        raise DataError(expected("position", "an object class -> log-probability", type(entry).__name__, where=where))
    return [(_class(name, where), _number(value, where)) for name, value in pairs]


def _class(name: Any, where: str) -> int:
    match = _CLASS.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        do = "Start the server with --return-tokens-as-token-ids: a text is no class."
        raise DataError(expected("token", "a class number", name, where=where, do=do))
    return int(match[1])


def _number(value: Any, where: str) -> float:
    if isinstance(value, dict):
        value = value.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        if value == -math.inf:
            return -math.inf
        raise DataError(expected("logprob", "a number", value, where=where))
    return -math.inf if value <= _NOTHING else float(value)
