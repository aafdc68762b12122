"""What every knowledge has that passes nothing through a teacher while a student learns."""

from __future__ import annotations

from collections.abc import Mapping

from bookkd.core.fields import FieldInfo

__all__ = ["Teacherless"]


class Teacherless:
    """Knowledge that needs no pass of a teacher network: its fields, and a count that stays 0.

    Args:
        fields: What it can say, by field name.
    """

    def __init__(self, fields: Mapping[str, FieldInfo]) -> None:
        self._fields = dict(fields)

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """What it can say, by field name."""
        return self._fields

    @property
    def teacher_forwards(self) -> int:
        """Always 0: nothing is passed through a teacher; passes of the student, or of a live speaker, are not its own."""
        return 0

    def logged(self) -> dict[str, float]:
        """Return nothing; one that is told of events may say here what it did, for the record of an epoch."""
        return {}
