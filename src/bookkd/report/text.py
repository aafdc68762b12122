"""The report as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from bookkd.report.cautions import cautions
from bookkd.report.figures import Row
from bookkd.report.numbers import Numbers
from bookkd.report.sections import sections
from bookkd.report.tables import Table
from bookkd.report.words import summary

__all__ = ["to_csv", "to_json", "to_markdown"]

_SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|#~"})


def to_json(numbers: Numbers) -> str:
    """Return everything, the sentences too, at full precision."""
    found = {"summary": summary(numbers), "cautions": cautions(numbers), **numbers.to_json()}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def to_csv(numbers: Numbers) -> str:
    """Return the table of all arms at full precision, one line an arm; shares, not per cent."""
    file = io.StringIO()
    lines = [_flat(row, numbers) for row in numbers.rows]
    writer = csv.DictWriter(file, list(_flat(numbers.rows[0], numbers)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _flat(row: Row, numbers: Numbers) -> dict[str, Any]:
    difference = row.differences.get(numbers.first.key)
    found: dict[str, Any] = {
        **{name: _text(getattr(row, name)) for name in ("arm", "method", "student", "teacher", "baseline")},
        "seeds": " ".join(map(str, row.seeds)),
        "failed": row.failed,
    }
    for column in numbers.columns:
        spread = row.figures[column.key]
        found[column.key] = None if spread is None else spread.mean
        found[f"{column.key}_sd"] = None if spread is None else spread.sd
    for name in ("mean", "sd", "low", "high", "n", "verdict"):
        found[f"{numbers.first.key}_difference_{name}"] = None if difference is None else getattr(difference, name)
    return {**found, "crossing_alpha": row.crossing_alpha}


def _text(text: str) -> str:
    # A spreadsheet runs a cell that begins like a formula; the apostrophe is its own mark for text.
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_markdown(numbers: Numbers) -> str:
    """Return the sentences and all tables."""
    return "\n".join(_markdown(numbers)).rstrip() + "\n"


def _markdown(numbers: Numbers) -> Iterator[str]:
    yield from (f"# {_escaped(numbers.title)}", "")
    yield from (f"- {_escaped(sentence)}" for sentence in summary(numbers))
    said = cautions(numbers)
    if said:
        yield from ("", "Before believing it:", "")
        yield from (f"- {_escaped(sentence)}" for sentence in said)
    for section in sections(numbers):
        yield from ("", f"## {_escaped(section.title)}")
        for table in (*section.tables, *section.details):
            yield from _table(table)
        for text in section.texts:
            yield from ("", f"{_escaped(text.title)}:", "", *(f"    {line}" for line in text.body.splitlines()))
    yield from ("", f"Written by bookkd {numbers.version}.")


def _table(table: Table) -> Iterator[str]:
    yield from ("", f"**{_escaped(table.title)}**", "")
    yield _line([head.title for head in table.heads])
    yield f"| {' | '.join('---:' if head.numeric else '---' for head in table.heads)} |"
    yield from (_line([cell.text for cell in row]) for row in table.rows)
    if table.note:
        yield from ("", _escaped(table.note))


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_SPECIAL)
