"""`compare`: methods x students x books x seeds, resumable, with paired statistics over seeds."""

from __future__ import annotations

from bookkd.pipelines.compare.document import read_document, read_sweep, sweep_of
from bookkd.pipelines.compare.presets import PRESETS, with_preset
from bookkd.pipelines.compare.runner import run_sweep
from bookkd.pipelines.compare.spaces import Space, spaces_of
from bookkd.pipelines.compare.sweep import MethodChoice, Override, Source, Sweep

__all__ = [
    "PRESETS",
    "MethodChoice",
    "Override",
    "Source",
    "Space",
    "Sweep",
    "read_document",
    "read_sweep",
    "run_sweep",
    "spaces_of",
    "sweep_of",
    "with_preset",
]
