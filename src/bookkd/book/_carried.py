"""What codecs lost of records that are copied: taken along from the sidecars of the book that they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from bookkd.book import _fidelity, _manifest
from bookkd.book.reader import Book

__all__ = ["Carried", "merged_fidelity", "nothing_measured"]


class Carried:
    """The measurements of a book's shards, for shards that are cut otherwise.

    Those of a shard of the book go as a whole to the new shard that has its first row, so that their sum stays what it was.

    Args:
        book: The source.
        names: Field of the source -> its name in the copy.
        views: Views whose shards all have to be measured alike, since a book of its own is made of them; a field that one of them
            has not measured is left out. None to look at each view alone.
    """

    def __init__(self, book: Book, names: Mapping[str, str], views: Iterable[int] | None = None) -> None:
        self._book, self._names = book, dict(names)
        self._of = cache(self._read)
        for view in views or ():
            measured = set(self._names).intersection(*(fidelity for _, fidelity in self._of(view)))
            self._names = {name: new for name, new in self._names.items() if name in measured}

    def of(self, view: int, start: int, stop: int) -> dict[str, Any]:
        """Return the fidelity of a sidecar for rows `start` to `stop` of a view; fields not measured everywhere are left out."""
        shards = self._of(view)
        names = set(shards[0][1]).intersection(*(fidelity for _, fidelity in shards))
        here = [fidelity for first, fidelity in shards if start <= first < stop]
        return {
            self._names[name]: _fidelity.merge(here, name) if here else nothing_measured(shards[0][1][name])
            for name in sorted(names & self._names.keys())
        }

    def _read(self, view: int) -> Sequence[tuple[int, Mapping[str, Any]]]:
        file = self._book._files[view]
        sidecars = (_manifest.read_sidecar(self._book.path, file, index) for index in range(len(file.stems)))
        return [(sidecar.start, sidecar.fidelity) for sidecar in sidecars]


def merged_fidelity(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the measurements of rows that stand together from now on, of the fields that every part has measured."""
    found = list(parts)
    names = set(found[0]).intersection(*found[1:]) if found else set()
    return {name: _fidelity.merge(found, name) for name in sorted(names)}


def nothing_measured(like: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurement of no row, at the temperatures of another: every sum and count is 0.

    >>> nothing_measured({"n": 3, "temperatures": [{"temperature": 4.0, "sum": 0.5, "histogram": [0, 3]}]})
    {'n': 0, 'temperatures': [{'temperature': 4.0, 'sum': 0.0, 'histogram': [0, 0]}]}
    """
    return {key: value if key == "temperature" else _zero(value) for key, value in like.items()}


def _zero(value: Any) -> Any:
    if isinstance(value, Mapping):
        return nothing_measured(value)
    if isinstance(value, list):
        return [_zero(each) for each in value]
    return type(value)(0) if isinstance(value, int | float) and not isinstance(value, bool) else value
