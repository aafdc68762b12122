"""Seconds and bytes of the report of many runs; the goal for 100 is 10 s and 8 MB.

python benchmarks/report.py [RUNS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.report.records import save, sweep  # noqa: E402 - found by the line above

from bookkd.report import FORMATS, find_runs, numbers_of, render  # noqa: E402


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        save(sweep(count), Path(folder))
        for form in FORMATS:
            started, cpu = time.perf_counter(), time.process_time()
            text = render(numbers_of(find_runs([folder])), form)
            # On a busy machine only the second says what the report costs.
            spent = f"{time.perf_counter() - started:.2f} s, {time.process_time() - cpu:.2f} s of a processor"
            print(f"{count} runs, {form}: {spent}, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
