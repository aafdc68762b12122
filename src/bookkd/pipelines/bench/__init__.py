"""Measured goals: ratios of things run in turn in one process, with an interval, never a single time."""

from __future__ import annotations

from bookkd.core.names import look_up
from bookkd.pipelines.bench.measure import Goal, Ratio, machine, paired

__all__ = ["BENCHES", "Goal", "Ratio", "machine", "paired", "run_bench"]

BENCHES = {
    "learn": "bookkd.pipelines.bench.learn:bench_learn",
    "methods": "bookkd.pipelines.bench.methods:bench_methods",
    "sequences": "bookkd.pipelines.bench.sequences:bench_sequences",
    "store": "bookkd.pipelines.bench.store:bench_store",
}
"""Benchmark name -> function of (pairs, quick) that returns goals."""


def run_bench(name: str, *, pairs: int = 15, quick: bool = False) -> dict[str, object]:
    """Run one benchmark.

    Args:
        name: Name in `BENCHES`.
        pairs: Interleaved pairs of each ratio; the judged figure is their median.
        quick: Few and small pairs, within a minute; printed but not judged.

    Returns:
        `{"bench": name, "machine": {...}, "quick": bool, "goals": [...]}`.
    """
    function = look_up(name, BENCHES, "benchmark")
    goals: list[Goal] = function(pairs=3 if quick else pairs, quick=quick)
    return {"bench": name, "machine": machine(), "quick": quick, "goals": [goal.to_json() for goal in goals]}
