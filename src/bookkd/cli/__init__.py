"""The program `bookkd`: one file for each verb, imported when it is called."""

from __future__ import annotations

from bookkd.cli._main import VERBS, main

__all__ = ["VERBS", "main"]
