"""Objectives: a loss bound to fields and hyper-parameters is a term; a weighted, scheduled sum of terms is an objective."""

from __future__ import annotations

from bookkd.objectives.connectors import Connector, ConnectorModule, Scale, Shapes
from bookkd.objectives.frames import Frames
from bookkd.objectives.objective import Objective
from bookkd.objectives.terms import Term, bind, labelled, masked, scheduled, selected, weighted
from bookkd.objectives.transforms import (
    Combine,
    Correct,
    EntropyBand,
    Extract,
    FieldTransform,
    Flatten,
    Standardise,
    Temper,
    transformed,
)

__all__ = [
    "Combine",
    "Connector",
    "ConnectorModule",
    "Correct",
    "EntropyBand",
    "Extract",
    "FieldTransform",
    "Flatten",
    "Frames",
    "Objective",
    "Scale",
    "Shapes",
    "Standardise",
    "Temper",
    "Term",
    "bind",
    "labelled",
    "masked",
    "scheduled",
    "selected",
    "transformed",
    "weighted",
]
