"""From the records of runs to something to decide from."""

from __future__ import annotations

from bookkd.report.record import RECORD_NAME, RECORD_VERSION, RunRecord

__all__ = ["RECORD_NAME", "RECORD_VERSION", "RunRecord"]
