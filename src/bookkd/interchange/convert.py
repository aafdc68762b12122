"""From what others stored to a book."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bookkd import __version__
from bookkd.book import Book, BookWriter, FieldPlan, Plan, TeacherInfo, TopK, Unit
from bookkd.core import jsonio
from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.names import look_up
from bookkd.interchange._kept import MEASURED_ROWS, Loss, top_k_parts
from bookkd.interchange._source import Options, Source

__all__ = ["FORMATS", "Imported", "import_book"]

FORMATS = {
    "fkd": "bookkd.interchange.fkd:FKD",
    "tinyvit": "bookkd.interchange.tinyvit:TinyViT",
    "distillkit": "bookkd.interchange.distillkit:DistillKit",
    "megatron": "bookkd.interchange.megatron:Megatron",
    "vllm-jsonl": "bookkd.interchange.vllm:VllmJsonLines",
}
"""Format -> its reader, imported when it is asked for."""

_UNIT_BYTES = 2**26
_MOST_ROWS = 2**16
_MOST_UNITS = 2**15
_LEAST_UNIT = 2**24
_LEAST_PLACES = 2**22

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Imported:
    """What `import_book` made.

    Args:
        book: The book.
        notes: What the format loses or cannot say, one line each.
    """

    book: Book
    notes: tuple[str, ...]


def import_book(
    out: str | Path,
    source: str | Path,
    *,
    source_format: str,
    n_classes: int | None = None,
    k: int | None = None,
    renormalise: bool = False,
    compression: str | None = None,
    teacher: str = "",
    progress: Progress | None = None,
) -> Imported:
    """Make a book of what others stored; nothing in their files is run.

    Logits come as codec `top_k` at temperature 1: the kept classes and the mass of all others, tail = 1 - sum of what is kept. What
    the files do not have, no book can say: another temperature is refused on reading. How a view was made stands in raw fields,
    so that nothing is lost that the files have.

    Formats of sequences (distillkit, megatron, vllm-jsonl) give one record a token position, found by its key, see `sequence_key`;
    the others a record for each sample and view, found by its place or by `sample_key` of its name. An interrupted import goes on
    where it ended.

    Args:
        out: Folder of the new book.
        source: Folder, or file, of the other format.
        source_format: One of `FORMATS`.
        n_classes: Classes of the teacher, or its vocabulary; every format but distillkit needs it.
        k: Classes kept of a record; what the format has where None.
        renormalise: Scale kept probabilities to 1 and keep no tail, as FKD's `marginal_renorm` reads its files.
        compression: DistillKit's `compression_config.yaml`; the one beside its files where None.
        teacher: Name of the teacher, which tells two books of one source apart.
        progress: Called with (records done, records).

    Raises:
        UnknownNameError: for a format that is not in `FORMATS`.
        DataError: for a damaged file, or one of another layout; names file and record.
        MissingExtraError: without pyarrow or zstandard, which the extra `interchange` brings.
        BookMismatchError: if `out` is a book of something else.

    >>> import json, tempfile
    >>> line = {"prompt_logprobs": [None, {"5": {"logprob": -0.1, "rank": 1}, "2": {"logprob": -3.0, "rank": 2}}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "answers.jsonl"
    ...     _ = path.write_text(json.dumps(line) + chr(10))
    ...     made = import_book(Path(folder) / "book", path, source_format="vllm-jsonl", n_classes=8)
    ...     made.book.read([0], [0])["logits"].indices.tolist()
    [[5, 2]]
    """
    if compression is not None and source_format != "distillkit":
        raise ConfigError(expected("compression", "given for distillkit alone", compression, where=source_format))
    options = Options(n_classes, None if k is None else at_least(k, 1, "k", where="import"), renormalise, compression)
    found: Source = look_up(source_format, FORMATS, "format")(Path(source), options)
    _check_places(found, str(source))
    plan = _plan(found, options, source_format, teacher)
    loss = Loss()
    total, done = found.n_samples * found.n_views, 0
    with BookWriter(out, plan, keys=found.keys) as writer:
        pending = writer.pending()
        done = total - sum(unit.stop - unit.start for unit in pending)
        for unit in found.order(pending):
            writer.copy(unit, _parts(found, unit, plan.fields[LOGITS], options, loss))
            done += unit.stop - unit.start
            if progress is not None:
                progress(done, total)
        notes = tuple(found.notes + _told(loss))
        book = writer.finish({"source_format": source_format, "notes": list(notes)}, fidelity=loss.fidelity())
    return Imported(book, notes)


def _plan(found: Source, options: Options, source_format: str, teacher: str) -> Plan:
    codec = TopK(found.k, (1.0,))
    entry = FieldPlan((found.n_classes,), codec)
    identity = {"format": source_format, "name": teacher, "data": found.data, "renormalise": options.renormalise}
    # A unit is in memory whole. That of a small source is small too, whatever its records say of themselves.
    record = _record_bytes({LOGITS: entry, **found.raw})
    rows = min(_MOST_ROWS, min(2 * _UNIT_BYTES, max(_LEAST_UNIT, found.size // 4)) // record)
    if found.record_bytes:
        rows = min(rows, _UNIT_BYTES // found.record_bytes)
    rows = max(rows, -(-found.n_samples // _MOST_UNITS))
    # A power of two, which every size of a hashing block divides.
    unit_rows = found.n_samples if rows >= found.n_samples else max(1, 1 << max(0, rows.bit_length() - 1))
    return Plan(
        n_samples=found.n_samples,
        n_views=found.n_views,
        fields={LOGITS: entry, **found.raw},
        teachers=(TeacherInfo(teacher or source_format, jsonio.digest(identity)),),
        data=found.data,
        views=found.views,
        temperatures=(1.0,),
        unit_rows=unit_rows,
        versions={"bookkd": __version__},
    )


def _record_bytes(fields: dict[str, FieldPlan]) -> int:
    layouts = [entry.codec.parts(entry.shape) for entry in fields.values()]
    return sum(dtype.itemsize * math.prod(shape) for layout in layouts for dtype, shape in layout.values())


def _check_places(found: Source, source: str) -> None:
    """Refuse a book of far more places than the files have bytes for: a record that says much, at the length of the longest."""
    places = found.n_samples * found.n_views * found.k
    allowed = max(_LEAST_PLACES, found.places_a_byte * found.size)
    if places > allowed:
        wish = f"at most {allowed} places (records x k) of a source of {found.size} bytes"
        got = f"{found.n_samples * found.n_views} records x {found.k}"
        raise DataError(
            expected("book", wish, got, where=source, do="Pass a smaller --k, or look for a damaged record.")
        )


def _parts(found: Source, unit: Unit, entry: FieldPlan, options: Options, loss: Loss) -> dict[str, Any]:
    """Return the parts of a unit, filled some rows at a time."""
    rows, done = unit.stop - unit.start, 0
    parts = {
        f"{name}/{part}": np.empty((rows, *shape), dtype)
        for name, each in {LOGITS: entry, **found.raw}.items()
        for part, (dtype, shape) in each.codec.parts(each.shape).items()
    }
    measured = np.unique(np.arange(MEASURED_ROWS) * rows // MEASURED_ROWS)
    for records in found.read(unit):
        start, done = done, done + len(records.log_p)
        kept = top_k_parts(
            records.log_p,
            records.classes,
            entry,
            allowed=found.allowed,
            renormalise=options.renormalise,
            place=lambda row, start=start: found.place(unit, start + row),  # type: ignore[misc]
            loss=loss,
            measured=measured[(measured >= start) & (measured < done)] - start,
        )
        for part, array in kept.items():
            parts[f"{LOGITS}/{part}"][start:done] = array
        for name, array in records.raw.items():
            parts[f"{name}/values"][start:done] = found.raw[name].codec.encode(array)["values"]
    return parts


def _told(loss: Loss) -> list[str]:
    found = []
    if loss.excess > 1e-6:
        found.append(f"kept probabilities exceeded 1 by up to {loss.excess:.2g} and were scaled to 1")
    if loss.padded:
        found.append(
            f"{loss.padded} places of positions with fewer classes hold classes with probability 0, whose mass is in the tail"
        )
    return found
