"""What gates say: how spread they are in each layer, which classes read the same parents, and what a teacher changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bookkd.core.errors import DataError, expected
from bookkd.evaluation import Difference, class_order, difference_of, shared_parents
from bookkd.report.arms import Arm, Spread
from bookkd.report.runs import FoundRun, listed, mapped, number

__all__ = ["Gates", "gates_of"]


@dataclass(frozen=True)
class Gates:
    """The gates of one layer of one arm.

    Args:
        arm: Its name.
        layer: Module path, "layer 2", or "layer 2 by class".
        kind: "tree" or "vam".
        of_classes: Whether a row is a class.
        derived: Whether the shares are worked out of several layers.
        rows: Names of the children.
        columns: Names of the parents.
        shares: What each child takes of each parent, of the first seed: which parent is which is a matter of the seed.
        spread: Mean entropy over log of the parents, 0 to 1, over the seeds.
        difference: Of the spread, to the arm that learnt from labels alone, paired by seed; None where there is none.
        together: Of classes: how much each two read of the same parents, 0 to 1, mean over the seeds, in `order`; else empty.
        order: Of classes: their places, those together that read the same parents; else empty.
        changed: Of classes: `together` less that of the arm of `difference`, in `order`; empty where there is none.
    """

    arm: str
    layer: str
    kind: str
    of_classes: bool
    derived: bool
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    spread: Spread | None
    difference: Difference | None
    together: tuple[tuple[float, ...], ...]
    order: tuple[int, ...]
    changed: tuple[tuple[float, ...], ...]


def gates_of(arms: Sequence[Arm]) -> tuple[Gates, ...]:
    """Return the gates of the arms that have them, arm by arm and layer by layer."""
    gated = [arm for arm in arms if any(_tables(run) for run in arm.done)]
    return tuple(gates for arm in gated for gates in _of_arm(arm, _reference(arm, gated)))


def _reference(arm: Arm, gated: Sequence[Arm]) -> Arm | None:
    """Return the arm of the same method and student that learnt from plain labels; None for that arm itself, and where there is none."""
    alike = [
        other
        for other in gated
        if (other.method, other.student, other.measured_on) == (arm.method, arm.student, arm.measured_on)
    ]
    plain = [other for other in alike if not _weight(other, "kd_weight") and not _weight(other, "label_smoothing")]
    return plain[0] if plain and arm.name not in [other.name for other in plain] else None


def _weight(arm: Arm, name: str) -> bool:
    value = arm.first.record.method.get(name, 1 if name == "kd_weight" else 0)
    return value not in (0, None)


def _of_arm(arm: Arm, reference: Arm | None) -> Iterator[Gates]:
    first = next(run for run in arm.done if _tables(run))
    kind = str(mapped(first, first.record.shaping.get("gates"), "shaping.gates").get("kind") or "")
    for layer, table in _tables(first).items():
        shares = _shares(first, table)
        rows, columns = (
            _names(first, table, key, count) for key, count in zip(("rows", "columns"), shares.shape, strict=True)
        )
        found = _shares_of(arm, layer)
        classes = table.get("of_classes") is True
        mean = _together(found, shares.shape) if classes else None
        order = () if mean is None else class_order(mean)
        theirs = None if mean is None or reference is None else _together(_shares_of(reference, layer), shares.shape)
        yield Gates(
            arm=arm.name,
            layer=layer,
            kind=kind,
            of_classes=classes,
            derived=table.get("derived") is True,
            rows=rows,
            columns=columns,
            shares=tuple(tuple(row) for row in shares.tolist()),
            spread=arm.spread(lambda run, layer=layer: _spread(run, layer)),  # type: ignore[misc]
            difference=_difference(arm, reference, layer),
            together=() if mean is None else _ordered(mean, order),
            order=order,
            changed=() if mean is None or theirs is None else _ordered(mean - theirs, order),
        )


def _difference(arm: Arm, reference: Arm | None, layer: str) -> Difference | None:
    if reference is None:
        return None
    mine, theirs = (each.by_seed(lambda run: _spread(run, layer)) for each in (arm, reference))
    return difference_of(mine, theirs, reference.name)


def _shares_of(arm: Arm, layer: str) -> list[Any]:
    return [_shares(run, _tables(run)[layer]) for run in arm.done if layer in _tables(run)]


def _together(found: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Return how much each two classes share, mean over the seeds; None where no seed has gates of that shape."""
    alike = [shared_parents(each) for each in found if each.shape == shape]
    return np.mean(alike, axis=0) if alike else None


def _ordered(values: Any, order: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values[np.ix_(order, order)].tolist())


def _spread(run: FoundRun, layer: str) -> float | None:
    return number(run, _tables(run).get(layer), "spread")


def _tables(run: FoundRun) -> dict[str, Mapping[str, Any]]:
    """Return the tables of a run by the name of their layer."""
    gates = mapped(run, run.record.shaping.get("gates"), "shaping.gates")
    tables = [
        mapped(run, each, "shaping.gates.tables") for each in listed(run, gates.get("tables"), "shaping.gates.tables")
    ]
    return {str(table.get("layer")): table for table in tables}


def _shares(run: FoundRun, table: Mapping[str, Any]) -> Any:
    rows = [listed(run, row, "shares") for row in listed(run, table.get("shares"), "shares")]
    values = [[number(run, {"share": value}, "share") for value in row] for row in rows]
    if not values or not values[0] or any(len(row) != len(values[0]) or None in row for row in values):
        raise DataError(expected("shares", "a table of numbers", "another", where=run.where))
    found = np.asarray(values, dtype=np.float64)
    shared_parents(found)  # refuses rows that do not add up to 1
    return found


def _names(run: FoundRun, table: Mapping[str, Any], key: str, count: int) -> tuple[str, ...]:
    names = tuple(map(str, listed(run, table.get(key), key)))
    return names if len(names) == count else tuple(map(str, range(1, count + 1)))
