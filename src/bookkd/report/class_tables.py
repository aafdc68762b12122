"""The tables of calibration, of classes and of gates."""

from __future__ import annotations

from collections.abc import Sequence

from bookkd.report.classes import Calibration, ClassDifference, Confusion
from bookkd.report.formats import capital, number_text, percent_text, points_text
from bookkd.report.gates import Gates
from bookkd.report.tables import Cell, Head, Table, cell, difference_cell, percent_number, plain, spread_cell, words

__all__ = [
    "bins_table", "calibration_table", "classes_table", "gates_table", "mistakes_table", "readings_table", "sharing_table", "shown_classes",
]  # fmt: skip

_CLASSES = 20
_PARENTS = 3
_PAIRS = 10


def calibration_table(calibration: Sequence[Calibration]) -> Table:
    """Return calibration before and after temperature scaling."""
    titles = ("temperature", "ECE", "ECE after", "NLL", "NLL after")
    rows = tuple(
        (
            plain(each.arm),
            *(spread_cell(x, "number") for x in (each.temperature, each.ece, each.ece_after, each.nll, each.nll_after)),
            plain(each.fitted_on),
        )
        for each in calibration
    )
    return Table("Calibration", (*words("arm"), *map(Head, titles), *words("fitted on")), rows)


def bins_table(calibration: Sequence[Calibration]) -> Table:
    """Return the bins of the reliability diagrams."""
    titles = ("samples", "confidence, %", "right, %")
    rows = tuple(
        (
            plain(each.arm),
            plain(when),
            Cell(f"{percent_text(one.low, 0)} to {percent_text(one.high, 0)}", one.low),
            cell(one.count, lambda count: number_text(count, 0)),
            cell(one.confidence, percent_number),
            cell(one.accuracy, percent_number),
        )
        for each in calibration
        for when, bins in (("before", each.before), ("after", each.after))
        for one in bins
    )
    return Table("Reliability", (*words("arm", "temperature scaling"), Head("range"), *map(Head, titles)), rows)


def shown_classes(classes: Sequence[ClassDifference]) -> tuple[ClassDifference, ...]:
    """Return for each arm the classes with the greatest losses and gains, all where they are few."""
    arms: dict[str, list[ClassDifference]] = {}
    for each in classes:
        arms.setdefault(each.arm, []).append(each)
    half = _CLASSES // 2
    return tuple(
        each
        for classes in arms.values()
        for each in (classes if len(classes) <= _CLASSES else [*classes[:half], *classes[-half:]])
    )


def classes_table(classes: Sequence[ClassDifference]) -> Table:
    """Return how each class fares against the baseline."""
    measure = classes[0].measure if classes else "recall"
    heads = (*words("arm", "class"), Head(f"{measure}, %"), Head("Δ points"), *words("against"))
    rows = tuple(
        (
            plain(each.arm),
            plain(each.name),
            spread_cell(each.value, "percent"),
            difference_cell(each.difference),
            plain(each.difference.against),
        )
        for each in shown_classes(classes)
    )
    note = (
        ""
        if len(rows) == len(classes)
        else f"The {_CLASSES} greatest losses and gains of each arm; all are in --format json."
    )
    return Table(f"{capital(measure)} by class", heads, rows, note)


def mistakes_table(confusions: Sequence[Confusion]) -> Table:
    """Return the most frequent mistakes of each arm."""
    heads = (*words("arm", "class", "taken for"), Head("student, %"), Head("teacher, %"))
    rows = tuple(
        (
            plain(each.arm),
            plain(mistake.true),
            plain(mistake.predicted),
            cell(mistake.student, percent_number),
            cell(mistake.teacher, percent_number),
        )
        for each in confusions
        for mistake in each.mistakes
    )
    return Table("Most frequent mistakes", heads, rows, "Share of the samples of the class.")


def gates_table(gates: Sequence[Gates]) -> Table:
    """Return how spread the gates of each layer are, and by how much less than those that learnt from labels alone."""
    spread = Head("spread", "Mean entropy of the gates over log of the parents: 1 reads all alike, 0 one parent alone.")
    heads = (*words("arm", "layer", "rows"), Head("parents"), spread, Head("Δ spread"), *words("against"))
    rows = tuple(
        (
            plain(each.arm),
            plain(each.layer),
            plain(f"{len(each.rows)} {'classes' if each.of_classes else 'blocks'}"),
            cell(float(len(each.columns)), lambda count: number_text(count, 0)),
            spread_cell(each.spread, "number"),
            difference_cell(each.difference, share=False),
            plain("" if each.difference is None else each.difference.against),
        )
        for each in gates
    )
    note = "Below 0: sharper than with labels alone. What is by class is worked out along all paths, not a layer's own."
    return Table("How spread gates are", heads, rows, note)


def readings_table(gates: Sequence[Gates]) -> Table:
    """Return what each child reads most of, which is what the heat maps of gates show."""
    heads = (*words("arm", "layer", "child"), Head("share of the first, %"), *words("reads most of"))
    rows = []
    for each in gates:
        surest = sorted(range(len(each.rows)), key=lambda place: -max(each.shares[place]))[:_CLASSES]
        for child, shares in ((each.rows[place], each.shares[place]) for place in sorted(surest)):
            ranked = sorted(zip(each.columns, shares, strict=True), key=lambda of: -of[1])[:_PARENTS]
            told = ", ".join(f"{parent}: {percent_text(share, 0)}" for parent, share in ranked)
            rows.append(
                (plain(each.arm), plain(each.layer), plain(child), cell(ranked[0][1], percent_number), plain(told))
            )
    note = f"Of the first seed, up to {_PARENTS} parents of the {_CLASSES} children that choose most; all are in --format json."
    return Table("What gates read", heads, tuple(rows), note)


def sharing_table(gates: Sequence[Gates]) -> Table:
    """Return the pairs of classes that read most of the same parents, and what the teacher changes in that."""
    heads = (*words("arm", "layer", "class", "class"), Head("shared, %"), Head("Δ points"))
    rows = []
    for each in gates:
        pairs = [(one, other) for one in range(len(each.order)) for other in range(one)]
        for one, other in sorted(pairs, key=lambda pair: -each.together[pair[0]][pair[1]])[:_PAIRS]:
            names = (plain(each.rows[each.order[place]]) for place in (other, one))
            change = each.changed[one][other] if each.changed else None
            rows.append(
                (
                    plain(each.arm),
                    plain(each.layer),
                    *names,
                    cell(each.together[one][other], percent_number),
                    cell(change, points_text),
                )
            )
    note = f"The {_PAIRS} pairs that share most, mean over the seeds; Δ to the arm that learnt from labels alone."
    return Table("Classes that share parents", heads, tuple(rows), note)
