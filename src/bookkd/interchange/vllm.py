"""JSON lines of top-k log-probabilities, as they are written from vLLM.

One line is one sequence: an answer of vLLM's server, or what its Python interface returned, as JSON. Taken are

- `prompt_logprobs`: a list with null for the first token, then for each token an object class -> `{"logprob": ...}` or number;
- `logprobs` of the completion in the same form; as `{"top_logprobs": [{"token_id:7": -0.1}, ...]}`; or as
  `{"content": [{"top_logprobs": [{"token": "token_id:7", "logprob": -0.1}]}]}`, for which the server must have been started with
  `--return-tokens-as-token-ids`: a text is no class.

at the top, or in each entry of `choices` (server) or `outputs` (`RequestOutput`), and `prompt_token_ids` for the positions of a
completion without its prompt. Prompt and completion are one sequence.

A line of several completions (`n` above 1) is as many sequences, numbered on in the order of the file; equal completions are two
sequences all the same, since how often one was drawn is knowledge. A prompt that stands at the top of the line is in the sequence of the
first completion, and the positions of the others begin behind it, so that no position is told twice. With `echo` a completion's
`logprobs` begin with null and have the prompt in them, and `prompt_logprobs` beside them are not read.

vLLM gives the k most likely classes of a position and the token that stands there if it is not among them. By default as many
classes are kept as every position has; what is cut is in the tail. A position beyond the vocabulary is an error.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import DataError, expected
from bookkd.interchange._json_text import Walk, check_utf8
from bookkd.interchange._source import ABSENT, MAX_FILE, PIECE, Options, Sequences, Tokens, fingerprint, kept_places
from bookkd.interchange._vllm_position import position_of

__all__ = ["VllmJsonLines"]

Array = npt.NDArray[Any]

_MAX_LINE = 2**27
_MAX_COMPLETIONS = 2**12
_ROW_PLACES = 16
"""Places that a position counts for at least while positions are gathered, for what an array costs beside its numbers."""
_LISTS = ("choices", "outputs")


@dataclass(frozen=True)
class _Part:
    """Where the lists of a sequence lie in its line.

    Args:
        spans: Places of lists of positions; the first entry of each is left out where it is null.
        first: Position of the first record.
    """

    spans: tuple[int, ...]
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
        self.size = path.stat().st_size
        self.raw = {}
        # Eight bytes a sequence each: where its line is, its place in it, its length and first position.
        self._offsets, self._inside, lengths, firsts = (array("q") for _ in range(4))
        fewest, most = 2**31, 0
        for offset, number, text in self._lines(0):
            where = f"{path}, line {number}"
            for inside, part in enumerate(_parts_of(text, where)):
                length = 0
                for classes, _ in _positions(text, part, where, self.n_classes):
                    fewest, most, length = min(fewest, len(classes)), max(most, len(classes)), length + 1
                self._offsets.append(offset)
                self._inside.append(inside)
                lengths.append(length)
                firsts.append(part.first)
        # By default no record of the book has an empty place.
        self.k = kept_places(
            options, most if options.k else max(1, fewest), self.n_classes, full=fewest >= self.n_classes
        )
        self.data |= {"sequences": len(lengths), "digest": fingerprint([path], path)}
        self.lay_out(lengths, firsts=firsts)
        self.views = {"transform": "none", "n_views": 1}
        self.notes = [
            f"positions have {fewest} to {most} classes, {self.k} are kept; all others are one tail, known at temperature 1",
            "a record is one token position, its key (sequence << 32) + position of the last token that was read; sequences are "
            "completions, numbered in the order of the file",
        ]

    def stream(self, sequence: int) -> Iterator[tuple[int, Tokens]]:
        place, skipped = sequence, self._inside[sequence]
        for _, number, text in self._lines(self._offsets[sequence]):
            where = self.where(place) if place < len(self._offsets) else f"{self.path}, line {number}"
            for part in _parts_of(text, where)[skipped:]:
                yield from ((place, tokens) for tokens in self._tokens(text, part, self.where(place)))
                place += 1
            skipped = 0

    def _tokens(self, text: bytes, part: _Part, where: str) -> Iterator[Tokens]:
        """Yield the positions of a sequence, some at a time, no wider than what is kept of the widest of them."""
        rows: list[tuple[Array, Array]] = []
        width = 0
        for classes, log_p in _positions(text, part, where, self.n_classes):
            row = self._likeliest(np.array(classes, dtype=np.int64), np.array(log_p, dtype=np.float64))
            if (len(rows) + 1) * max(width, len(row[0]), _ROW_PLACES) > PIECE and rows:
                yield _matrix(rows, width)
                rows, width = [], 0
            rows.append(row)
            width = max(width, len(row[0]))
        if rows:
            yield _matrix(rows, width)

    def _likeliest(self, classes: Array, log_p: Array) -> tuple[Array, Array]:
        """Return the `k` likeliest of a position, and before all a class beyond the vocabulary, which is then refused."""
        if len(classes) <= self.k:
            return classes, log_p
        kept = np.lexsort((-log_p, classes < self.n_classes))[: self.k]
        return classes[kept], log_p[kept]

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
                if not line.isspace():
                    yield offset, number, line
                offset += len(line)


def _matrix(rows: list[tuple[Array, Array]], width: int) -> Tokens:
    log_p = np.full((len(rows), width), -np.inf)
    classes = np.full((len(rows), width), ABSENT, dtype=np.int64)
    for row, (numbers, values) in enumerate(rows):
        classes[row, : len(numbers)], log_p[row, : len(numbers)] = numbers, values
    return Tokens(log_p, classes)


@dataclass
class _Found:
    """What stands at the top of a line, or in one of its completions."""

    names: list[str]
    prompt: int | None = None
    logprobs: int | None = None
    ids: int = 0
    completions: list[_Found] | None = None


def _parts_of(text: bytes, where: str) -> list[_Part]:
    """Return the sequences of a line."""
    try:
        check_utf8(text)
        walk = Walk(text)
        if walk.kind() != "dict":
            raise DataError(expected("line", "one JSON object", walk.kind(), where=where))
        top = _found(walk, _LISTS)
        walk.finish()
        return _sequences(text, top, where)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(expected("line", "one JSON object", f"{error}", where=where)) from error


def _found(walk: Walk, lists: tuple[str, ...] = ()) -> _Found:
    found = _Found([])
    for name in walk.members():
        if len(found.names) < 8:
            found.names.append(name[:40])
        start = None if walk.peek() == b"n" else walk.at
        if name in lists and walk.kind() == "list":
            some = _completions(walk)
            found.completions = some or found.completions
        elif name == "prompt_token_ids" and walk.kind() == "list":
            begin = walk.at
            walk.skip()
            found.ids = 0 if Walk(walk.data, begin + 1).peek() == b"]" else 1 + walk.data.count(b",", begin, walk.at)
        else:
            walk.skip()
            if name == "prompt_logprobs":
                found.prompt = start
            elif name == "logprobs":
                found.logprobs = start
    return found


def _completions(walk: Walk) -> list[_Found]:
    found = []
    for _ in walk.items():
        if walk.kind() == "dict":
            found.append(_found(walk))
        else:
            walk.skip()
        if len(found) > _MAX_COMPLETIONS:
            raise ValueError(f"more than {_MAX_COMPLETIONS} completions")
    return found


def _sequences(text: bytes, top: _Found, where: str) -> list[_Part]:
    # A line that has `logprobs` itself is a completion itself.
    several = top.completions or [_Found([])]
    if top.logprobs is not None:
        several = [_Found([], several[0].prompt, top.logprobs, several[0].ids)]
    prompt = None if top.prompt is None else _listed(text, top.prompt, "prompt_logprobs", where)
    parts = []
    for number, each in enumerate(several):
        said = where if len(several) == 1 else f"{where}, completion {number}"
        own = prompt
        if prompt is None and each.prompt is not None:
            own = _listed(text, each.prompt, "prompt_logprobs", said)
        place = None if each.logprobs is None else _place_of(text, each.logprobs, said)
        done = None if place is None else _listed(text, place, "logprobs", said)
        if each.logprobs is None and (own is None or (number and prompt is not None)):
            got = ", ".join(top.names + each.names)[:80]
            raise DataError(expected("line", "with prompt_logprobs or logprobs", got, where=said))
        if done is not None and done.null:
            parts.append(_Part((done.at,), 0))  # echo
        elif number and prompt is not None and done is not None:
            parts.append(_Part((done.at,), prompt.count))
        else:
            spans = tuple(span.at for span in (own, done) if span is not None)
            parts.append(_Part(spans, 0 if own is not None else max(0, (top.ids or each.ids) - 1)))
    return parts


def _place_of(text: bytes, at: int, where: str) -> int | None:
    """Return where the list of positions of a completion is: itself, or `content` or `top_logprobs` of an object."""
    walk = Walk(text, at)
    if walk.kind() != "dict":
        return at
    places: dict[str, int] = {}
    for name in walk.members():
        if walk.peek() != b"n" and name in ("content", "top_logprobs"):
            places[name] = walk.at
        walk.skip()
    return places.get("content", places.get("top_logprobs"))


@dataclass(frozen=True)
class _Span:
    """A list of positions: its place, its records, and whether null stands before them."""

    at: int
    count: int
    null: bool


def _listed(text: bytes, at: int, name: str, where: str) -> _Span:
    walk = Walk(text, at)
    if walk.kind() != "list":
        wish = "a list" if name == "prompt_logprobs" else "a list of positions"
        got = "dict" if walk.kind() == "dict" else type(walk.scalar()).__name__
        raise DataError(expected(name, wish, got, where=where))
    count, null = 0, False
    for _ in walk.items():
        null = null or (count == 0 and walk.peek() == b"n")
        walk.skip()
        count += 1
    return _Span(at, count - null, null)


def _positions(text: bytes, part: _Part, where: str, n_classes: int) -> Iterator[tuple[array[int], array[float]]]:
    """Yield classes and log-probabilities of each position of a sequence."""
    position = part.first
    for at in part.spans:
        walk = Walk(text, at)
        for number, _ in enumerate(walk.items()):
            # Nothing comes before the first token, so that it has no probability.
            if number == 0 and walk.peek() == b"n":
                walk.skip()
                continue
            yield position_of(walk, f"{where}, position {position}", n_classes)
            position += 1
