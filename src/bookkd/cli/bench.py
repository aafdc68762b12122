"""`bookkd bench`."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import busy, console, rows
from bookkd.cli._verb import Verb
from bookkd.pipelines.bench import BENCHES, run_bench


def bench(name: str, pairs: int = 15, quick: bool = False) -> tuple[dict[str, Any], int]:
    """Measure the goals of this package on this machine: ratios of things run in turn, median and 95 % interval.

    Exit code 1 if a goal does not hold; quick runs are printed but not judged.

    Args:
        name: Which benchmark: learn, methods, sequences or store.
        pairs: Interleaved pairs of each ratio, at least 15 for a judgement.
        quick: Few and small pairs, within a minute.
    """
    with busy(f"bench {name}"):
        result = run_bench(name, pairs=pairs, quick=quick)
    failed = not quick and not all(goal["holds"] for goal in result["goals"])  # type: ignore[attr-defined]
    return result, int(failed)


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    values = [
        (
            goal["name"],
            f"{goal['value']:.4g}",
            "" if goal["low"] is None else f"{goal['low']:.4g} to {goal['high']:.4g}",
            "" if goal["goal"] is None else f"{goal['sense']} {goal['goal']:g}",
            _verdict(goal, result["quick"]),
            str(goal["pairs"]),
            goal["note"],
        )
        for goal in result["goals"]
    ]
    columns = ("measured", "median", "95 % interval", "goal", "holds", "pairs", "seconds")
    out = console()
    out.print(rows(f"bench {result['bench']}", columns, values))
    out.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))


def _verdict(goal: dict[str, Any], quick: bool) -> str:
    if goal["goal"] is None:
        return "shown"
    if quick:
        return "not judged"
    return "yes" if goal["holds"] else "NO"


VERB = Verb(
    "bench",
    bench,
    show,
    f"  bookkd bench learn\n  bookkd bench store --quick\n  names: {', '.join(BENCHES)}",
    positional={"name": False},
)
