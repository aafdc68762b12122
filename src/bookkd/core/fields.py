"""Names of fields and of batch entries: spelled once, here.

A *field* is something a network says about a view: `logits`, `features/layer3`. A *batch* is a plain dict of tensors,
so that any loader, collate function or trainer can carry it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bookkd.core.errors import ConfigError, expected

__all__ = [
    "COUNTS",
    "FRAMES",
    "IGNORE_LABEL",
    "INPUT",
    "LABEL",
    "LABEL_LENGTH",
    "LENGTH",
    "LOGITS",
    "MEAN",
    "NORMAL",
    "OWN",
    "PARTNER",
    "PARTNER_LABEL",
    "PROBE_HASH",
    "PROBE_PROJECTIONS",
    "PROBE_TAKEN",
    "RATIO",
    "SAMPLE",
    "SAMPLE_WEIGHT",
    "STUDENT",
    "TEACHER",
    "TEACHER_LENGTH",
    "TEACHER_SHIFT",
    "VARIANCE",
    "VIEW",
    "WEIGHT",
    "FieldInfo",
    "check_field_name",
]

LOGITS = "logits"
MEAN = "mean"
"""What a regression network expects of each output."""
VARIANCE = "variance"
"""How far from its mean it expects an output, squared; above 0."""
NORMAL = "normal"
"""Mean and, where it is given, variance on a last axis: what losses see of a regression; no book has it."""

OWN = "own/"
"""Begins the fields that a method's own knowledge gives (an average of the student, a virtual teacher), not a teacher's."""

TEACHER = "teacher/"
"""Begins, in what a connector reads, the fields of the teacher."""

STUDENT = "student/"
"""Begins, in what a loss reads beside the two sides, further fields of the student's own."""

SAMPLE = "sample"
"""int64 [batch]: the row of the book, 0 to n_samples - 1."""
VIEW = "view"
"""int64 [batch]: the view, 0 to n_views - 1."""
WEIGHT = "weight"
"""float32 [batch]: 1, or 0 for a row that only pads the last batch of an epoch."""
SAMPLE_WEIGHT = "sample_weight"
"""float32 [batch]: the weight of each sample, where `weight` has become that of each position on the way to the losses."""
INPUT = "input"
"""The view itself, before any network's own preprocessing."""
LABEL = "label"
"""int64 [batch]: the class; `IGNORE_LABEL` where the student may not see it. Several labels, or numbers: [batch, ...]."""
LENGTH = "length"
"""int64 [batch]: the positions of a sequence that are no padding; only where the data set is of sequences."""
FRAMES = "frames"
"""int64 [batch]: the frames of each utterance as losses see them, one utterance behind another; of task ctc."""
COUNTS = "counts"
"""int64 [batch], on the processor: the positions that a book should have of each record; only where somebody compares."""
LABEL_LENGTH = "label_length"
"""int64 [batch]: the entries of a label that are no padding; only where the data set is of sequences and labels are such."""
TEACHER_LENGTH = "teacher_length"
"""int64 [batch]: the tokens of the same text on the side of a teacher of another tokenizer."""
TEACHER_SHIFT = "teacher_shift"
"""int64 [batch]: the position of the teacher that belongs to the student's position 0; below 0 where the student has more before."""
PARTNER = "partner"
"""int64 [batch]: the sample that a mixed view was mixed with."""
PARTNER_LABEL = "partner_label"
"""int64 [batch]: its class."""
RATIO = "ratio"
"""float32 [batch]: the share of the sample itself in a mixed view."""
PROBE_TAKEN = "probe_taken"
"""bool [batch]: rows whose probe was computed."""
PROBE_HASH = "probe/hash"
"""Exact xxh3_64 of the view's bytes; int64 bit pattern in a batch, uint64 in a book."""
PROBE_PROJECTIONS = "probe/projections"
"""Two random-sign projections of the view; float64 [batch, 2] in a batch, float32 in a book."""

IGNORE_LABEL = -1
"""The label of a sample whose class the student may not see; losses on labels give it weight 0."""

_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*){0,7}")


def check_field_name(name: str) -> str:
    """Return `name` if it may name a field: lower-case first part, then at most seven parts of letters, digits, `_ . -`.

    >>> check_field_name("features/layer3.0")
    'features/layer3.0'
    >>> check_field_name("../logits")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `field` to be a name such as `logits` or `features/layer3`, got '../logits'.
    """
    if len(name) > 200 or not _FIELD_NAME.fullmatch(name) or any(part.startswith(".") for part in name.split("/")):
        raise ConfigError(expected("field", "a name such as `logits` or `features/layer3`", name))
    return name


@dataclass(frozen=True)
class FieldInfo:
    """What a knowledge can say under one name.

    Args:
        shape: Shape of one record as the losses see it; `(n_classes,)` for logits.
        sparse: True where only some classes are kept, with the rest in a tail bucket.
        temperatures: Temperatures that the field can honour; empty means every one.
        exact: True where a book keeps float32 whatever codec is asked for, since small values count as much as large ones.
        linear: True where it serves only losses that are linear in it, since it is draws.
        hard: True where it is the likeliest class and no distribution.
        measured: What the codec lost, as a book's edition has it; for refusals.
        by_position: True where a record is a sequence, with one value of `shape` a position.
    """

    shape: tuple[int, ...]
    sparse: bool = False
    temperatures: tuple[float, ...] = ()
    exact: bool = False
    linear: bool = False
    hard: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False)
    by_position: bool = False
