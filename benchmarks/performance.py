"""The page `docs/performance.md` from the figures that were kept in `benchmarks/performance/`.

python benchmarks/performance.py                              # writes the page
python benchmarks/performance.py --measure store [--pairs 15] # runs `bookkd bench store`, keeps its figures, writes the page
python benchmarks/larger_than_memory.py --keep                # the other figures come from scripts of their own
python benchmarks/shuffle_accuracy.py --keep
python benchmarks/peers.py --keep
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keeping import KEPT, keep

from bookkd.core.memory import keep_freed_memory
from bookkd.pipelines.bench import BENCHES, machine, run_bench

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

HEAD = """# Performance

Written by `benchmarks/performance.py` from figures that were measured on the machine named below each table; a figure that misses its
goal stands here as a miss. Figures are medians of ratios of two things done in turn in one process, the order changing with each
pair, so that whatever else the machine does falls on both; the interval is a 95 % bootstrap interval of that median. *Load* is the
load average just before, that is, of other work: on a busy machine intervals are wide. Measure your own with `bookkd bench`.
"""

SECTIONS = {
    "store": """## The store

`bookkd bench store`, synthetic books, warm. Records of 20 bytes have no goal: there the share of a training step is what counts,
below.""",
    "learn": """## Learning and making

`bookkd bench learn`: ResNet-8 students of ResNet-20 and 56, random images of 32 × 32.""",
    "methods": """## An epoch of every method over one of labels alone

`bookkd bench methods`.""",
    "sequences": """## Language models

`bookkd bench sequences`: a transformer of two layers of 128 over 8,192 tokens, random text in sequences of 128, books of a teacher of six
layers of 256. Memory is what follows a network's logits, to their gradient, at 2,048 positions of 32,000
tokens, all of them of sequences of 512, or where every other one is half as long. Cross-entropy alone is a loop of PyTorch with its own
cross-entropy, on the same batches and the same tokens.""",
    "remote": """## From a server

`benchmarks/remote.py`: a server of the S3 protocol (moto) on the same machine, whose own work falls on the epoch that is measured.
Each remote epoch opens the book anew with an empty cache.""",
    "larger-than-memory": """## A book larger than memory

`benchmarks/larger_than_memory.py`. Blocks of 4096 rows are shuffled, then the rows inside a window of blocks, in batches of 256; the
next window is read ahead. The finest blocks, for samples sorted by class, are of 256 KiB of all tensors together; in the first epoch the whole hashing block
around each is read to check it. The limit on cached files is held by the script, which has the system forget what was used longest ago
while the clock stands; a sandbox lets no process limit itself.""",
    "shuffle": """## What block windows do to accuracy

`benchmarks/shuffle_accuracy.py`: students of a book on the digits, blocks of 16 samples, paired over seeds, Student's 95 % interval.
Sorted by class is the worst case, in which a window of six blocks sees a few classes at a time; finer blocks mix them in the same
memory, and `learn` takes them by itself where it finds samples sorted.""",
}
PEERS = """## Beside other formats

`benchmarks/peers.py`: the same {rows:,} records of {row_bytes:,} bytes in each, through the public names of its package. *Write* is
the speed over a plain write of the same bytes with fsync; *batch* that of 256 random rows over indexing of the same array in memory,
every page touched before. Formats that find no flipped bit leave that to others; a book does it where a record is read."""


def page() -> str:
    """Return the page: a section for each file that was kept."""
    parts = [HEAD]
    for name, text in SECTIONS.items():
        found = kept(name)
        if found is not None:
            parts.append(f"{text}\n\n{goals_table(found)}\n\n{said(found)}\n")
    found = kept("peers")
    if found is not None:
        text = PEERS.format(rows=found["rows"], row_bytes=found["row_bytes"])
        parts.append(f"{text}\n\n{peers_table(found)}\n\n{said(found)}\n")
    missing = [name for name in [*SECTIONS, "peers"] if kept(name) is None]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def kept(name: str) -> dict[str, Any] | None:
    """Return what was kept of a measurement; None where nothing was."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def goals_table(found: Mapping[str, Any]) -> str:
    """Return one row a goal."""
    lines = ["| measured | figure | 95 % | goal | met | pairs | |", "|---|---|---|---|---|---|---|"]
    for goal in found["goals"]:
        interval = "" if goal["low"] is None else f"{number(goal['low'])} to {number(goal['high'])}"
        wish = "" if goal["goal"] is None else f"{'≥' if goal['sense'] == '>=' else '≤'} {goal['goal']:g}"
        met = "" if goal["goal"] is None else "yes" if goal["holds"] else "**no**"
        cells = (goal["name"], number(goal["value"]), interval, wish, met, str(goal["pairs"]), goal["note"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def peers_table(found: Mapping[str, Any]) -> str:
    """Return one row a format."""
    lines = [
        "| format | version | write | batch (95 %) | bytes a record | open, ms | a flipped bit |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in found["peers"]:
        if peer["problem"]:
            lines.append(f"| {peer['words']} | {peer['problem']} | | | | | |")
            continue
        batch = "in order only"
        if peer["gather_ratio"] is not None:
            low, high = number(peer["gather_low"]), number(peer["gather_high"])
            batch = f"{number(peer['gather_ratio'])} ({low} to {high})"
        cells = (peer["words"], peer["version"], number(peer["write_ratio"]), batch)
        cells += (f"{peer['bytes_per_record']:.0f}", number(peer["open_ms"]), peer["flipped_bit"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def said(found: Mapping[str, Any]) -> str:
    """Return the machine and the day."""
    here = found["machine"]
    threads = f"{here['threads']} thread{'s' if here['threads'] != 1 else ''}"
    device = f", {here['accelerator']}" if here["accelerator"] else ""
    versions = f"Python {here['python']}, PyTorch {here['torch']}, NumPy {here['numpy']}"
    return f"{here['cpu']}, {here['cpus']} processors, {threads}{device}, load {here['load']}; {versions}; {found['date']}."


def number(value: float) -> str:
    """Return a figure for reading, three digits.

    >>> number(0.08412), number(1234.5), number(1.0)
    ('0.0841', '1234', '1')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=sorted(BENCHES), help="run this benchmark first")
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    if options.measure:
        keep_freed_memory()  # as the program does
        before = machine()
        keep(options.measure, run_bench(options.measure, pairs=options.pairs)["goals"], before)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
