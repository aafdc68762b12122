"""The parts of a report in their order: what each shows in tables and in text to copy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.report import class_tables as of_classes
from bookkd.report import more_tables as more
from bookkd.report.formats import capital
from bookkd.report.numbers import Numbers
from bookkd.report.pictures import NO_PICTURES, Pictures
from bookkd.report.provenance import Provenance
from bookkd.report.tables import Table, differences_table, main_table

__all__ = ["Section", "Text", "sections"]


@dataclass(frozen=True)
class Text:
    """Text to copy.

    Args:
        title: What it is.
        body: The lines.
    """

    title: str
    body: str


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Args:
        key: Its name in links.
        title: Its title.
        tables: What it shows in numbers; those without rows are left out.
        details: The numbers behind its charts.
        texts: Text to copy.
        pictures: What the page alone shows.
    """

    key: str
    title: str
    tables: tuple[Table, ...]
    details: tuple[Table, ...] = ()
    texts: tuple[Text, ...] = ()
    pictures: Pictures = NO_PICTURES


def sections(numbers: Numbers, *, pictures: bool = False) -> tuple[Section, ...]:
    """Return the parts that have anything to show; `pictures` are of the page."""
    found = (
        _section(
            "arms", "Figures by arm", [main_table(numbers), differences_table(numbers), more.failed_table(numbers)]
        ),
        _section(
            "size",
            f"{capital(numbers.first.title)} against size and speed",
            [more.teachers_table(numbers)],
            [more.pareto_table(numbers)],
        ),
        _section("curves", "Learning curves", [], [more.series_table(numbers.curves, "Curves")]),
        _section(
            "calibration",
            "Calibration",
            [of_classes.calibration_table(numbers.calibration)],
            [of_classes.bins_table(numbers.calibration)],
        ),
        _section(
            "classes",
            "Classes",
            [],
            [of_classes.classes_table(numbers.classes), of_classes.mistakes_table(numbers.confusions)],
        ),
        Section("pictures", "Pictures", (), pictures=numbers.pictures if pictures else NO_PICTURES),
        _section(
            "gates",
            "Gates",
            [of_classes.gates_table(numbers.gates)],
            [of_classes.readings_table(numbers.gates), of_classes.sharing_table(numbers.gates)],
        ),
        _section("entropy", "Entropy of book and student", [], [more.series_table(numbers.entropies, "Entropy")]),
        _section("cost", "Cost", [more.totals_table(numbers), more.ledger_table(numbers), more.books_table(numbers)]),
        _section("provenance", "Provenance", [], [more.runs_table(numbers)], _texts(numbers.provenance)),
    )
    return tuple(
        section for section in found if section.tables or section.details or section.texts or section.pictures.rows
    )


def _section(
    key: str, title: str, tables: Sequence[Table], details: Sequence[Table] = (), texts: Iterable[Text] = ()
) -> Section:
    shown, behind = (tuple(table for table in some if table.rows) for some in (tables, details))
    return Section(key, title, shown, behind, tuple(texts))


def _texts(provenance: Provenance) -> Iterator[Text]:
    yield from (Text(f"Data of {_runs(each.runs)}", _pretty(each.values)) for each in provenance.data)
    yield from (Text(f"Environment of {_runs(each.runs)}", _pretty(each.values)) for each in provenance.environments)
    yield from (Text(f"Lineage of {name}", "\n".join(lines)) for name, lines in provenance.lineages.items())
    yield from (Text(_configured(each.arm, each.differing), _pretty(each.values)) for each in provenance.configurations)


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _configured(arm: str, differing: tuple[str, ...]) -> str:
    other = f"; other seeds differ in {', '.join(differing)}" if differing else ""
    return f"Configuration of {arm}{other}"


def _pretty(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
