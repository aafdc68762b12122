"""Faults of every kind, against books: what was done, how often, and what was found.

    python benchmarks/faults/run.py --out results.json            # all of it, an hour and more
    python benchmarks/faults/run.py kills storage --out some.json
    python benchmarks/faults/run.py damage --share 0.01 --out quick.json

`--keep` writes each experiment to `benchmarks/results/faults/`, from which `page.py` makes `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks" / "results" / "faults"
sys.path.insert(0, str(ROOT))

EXPERIMENTS = ("kills", "storage", "damage", "fuzzing")
"""Module of each, with `run(folder, share)`."""


def machine() -> dict[str, Any]:
    """Return what the experiments ran on."""
    import numpy

    return {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "processors": os.cpu_count(),
        "root": os.geteuid() == 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXPERIMENTS)}; all where none is named")
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="where the numbers go")
    parser.add_argument("--share", type=float, default=1.0, help="how much of each experiment, 0 to 1")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where books are made; a temporary folder where left out"
    )
    parser.add_argument("--keep", action="store_true", help="write each experiment where the page finds it, too")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(EXPERIMENTS))
    if unknown or not 0 < given.share <= 1:
        parser.error(
            f"Expected names of {', '.join(EXPERIMENTS)} and a share above 0, got {unknown} and {given.share}."
        )
    found: dict[str, Any] = {"machine": machine()}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="bookkd-faults-", dir=given.folder) as folder:
        for name in given.names or EXPERIMENTS:
            started = time.perf_counter()
            result = importlib.import_module(f"benchmarks.faults.{name}").run(Path(folder), given.share)
            result = {
                "machine": machine(),
                "share": given.share,
                "seconds": round(time.perf_counter() - started),
                "found": result,
            }
            found[name] = result
            faults = _wrong(result)
            wrong += len(faults)
            print(f"{name}: {result['seconds']} s, {len(faults)} wrong", flush=True)
            for line in faults[:20]:
                print(f"  {line}", flush=True)
            if given.keep:
                KEPT.mkdir(parents=True, exist_ok=True)
                (KEPT / f"{name}.json").write_text(
                    json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8"
                )
            given.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _wrong(found: Any) -> list[str]:
    """Return every line that stands under a key `wrong`, wherever."""
    if isinstance(found, dict):
        own = [str(line) for line in found.get("wrong", [])]
        return own + [line for key, inner in found.items() if key != "wrong" for line in _wrong(inner)]
    return []


if __name__ == "__main__":
    raise SystemExit(main())
