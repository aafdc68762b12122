"""Objectives: a loss bound to fields and hyper-parameters is a term; a weighted, scheduled sum of terms is an objective."""

from __future__ import annotations

from bookkd.objectives.objective import Objective
from bookkd.objectives.terms import Term, bind, labelled, masked, scheduled, weighted

__all__ = ["Objective", "Term", "bind", "labelled", "masked", "scheduled", "weighted"]
