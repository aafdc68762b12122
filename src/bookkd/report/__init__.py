"""From the records of runs to something to decide from."""

from __future__ import annotations

from bookkd.report.build import FORMATS, render
from bookkd.report.cautions import cautions
from bookkd.report.numbers import Numbers, numbers_of
from bookkd.report.record import RECORD_NAME, RECORD_VERSION, RunRecord
from bookkd.report.runs import FoundRun, find_runs
from bookkd.report.words import summary

__all__ = [
    "FORMATS",
    "RECORD_NAME",
    "RECORD_VERSION",
    "FoundRun",
    "Numbers",
    "RunRecord",
    "cautions",
    "find_runs",
    "numbers_of",
    "render",
    "summary",
]
