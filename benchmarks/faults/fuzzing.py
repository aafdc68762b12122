"""Half an hour of `fuzz.py`: bytes of every kind in place of every kind of file, and whole folders that are written to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 1800


def run(folder: Path, share: float = 1.0) -> dict[str, Any]:
    """Fuzz all readers in a process of their own."""
    out = folder / "fuzz.json"
    script = Path(__file__).with_name("fuzz.py")
    options = ["--seconds", str(max(10, round(SECONDS * share))), "--out", str(out)]
    done = subprocess.run([sys.executable, script, *options], check=False, capture_output=True, text=True)
    return result(out, "" if done.returncode == 0 else f"the fuzzer ended with {done.returncode}: {done.stderr[-300:]}")


def result(out: Path, ended: str = "") -> dict[str, Any]:
    """Return what a run of `fuzz.py` told, its findings under `wrong`."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"broken": ["it told nothing"]}
    return {**found, "wrong": found.pop("broken") + ([ended] if ended else [])}
