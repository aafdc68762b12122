"""Where measured figures are kept for the page `docs/performance.md`: plain JSON, without paths."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bookkd.pipelines.bench import Goal

KEPT = Path(__file__).parent / "performance"
MACHINE = ("cpu", "cpus", "threads", "load", "accelerator", "python", "torch", "numpy")


def keep(name: str, goals: Sequence[Goal | Mapping[str, Any]], machine: Mapping[str, Any], **more: Any) -> Path:
    """Write figures with the machine and the day.

    Args:
        name: Of the file.
        goals: Figures.
        machine: What `bench.machine` said before the measurement, so that the load is that of others.
        **more: Further JSON values.

    Returns:
        The file.
    """
    KEPT.mkdir(exist_ok=True)
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {key: machine.get(key) for key in MACHINE},
        "goals": [goal.to_json() if isinstance(goal, Goal) else dict(goal) for goal in goals],
        **more,
    }
    path = KEPT / f"{name}.json"
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
