"""`bookkd report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bookkd.cli._show import busy, bytes_text, console
from bookkd.cli._verb import Verb
from bookkd.core.errors import DataError, expected
from bookkd.core.files import check_here, write_atomic
from bookkd.report import FORMATS, cautions, find_runs, numbers_of, render, summary


def report(
    runs: Sequence[str],
    out: str | None = None,
    format: Literal["auto", "html", "md", "json", "csv"] = "auto",  # noqa: A002 - the option's name
    baseline: str | None = None,
    title: str = "BookKD report",
) -> dict[str, Any]:
    """Write what runs of a comparison say: words, tables, charts, costs, provenance.

    Args:
        runs: Folders of runs, or folders that hold such folders.
        out: File to write; report.html, or report and the format, where none is given.
        format: html is one page that loads nothing; md, json and csv hold the same numbers; auto goes by the name of the file.
        baseline: Arm that all others are held against; the supervised arm with the same student where none is given.
        title: Title of the report.
    """
    if not runs:
        raise DataError(expected("runs", "at least one folder", "none", do="Give the folder of a comparison."))
    form = _form_of(out) if format == "auto" else format
    path = check_here(Path(out or f"report.{form}"))
    with busy("reading the runs"):
        found = find_runs(runs)
        numbers = numbers_of(found, baseline=baseline, title=title)
        data = render(numbers, form).encode()
        write_atomic(path, data)
    return {
        "out": str(path),
        "format": form,
        "bytes": len(data),
        "runs": len(found),
        "failed": sum(row.failed for row in numbers.rows),
        "arms": len(numbers.rows),
        "summary": list(summary(numbers)),
        "cautions": list(cautions(numbers)),
    }


def _form_of(out: str | None) -> str:
    ending = Path(out or "").suffix.removeprefix(".").lower()
    return ending if ending in FORMATS else "html"


def show(result: dict[str, Any]) -> None:
    """Print the sentences, and where the report lies."""
    out = console()
    for sentence in (*result["summary"], *result["cautions"]):
        out.print(sentence, soft_wrap=True, markup=False)
    out.print(f"Wrote {result['out']}, {bytes_text(result['bytes'])}.", soft_wrap=True, markup=False)


VERB = Verb(
    "report",
    report,
    show,
    "  bookkd report runs/compare -o report.html\n"
    "  bookkd report runs/compare --format csv --baseline 'supervised / resnet8'",
    positional={"runs": False},
    many="runs",
    short={"-o": "--out"},
)
