"""Who knows: a book, a live teacher, several of them, or the student itself; one protocol (`bookkd.core.protocols.Knowledge`)."""

from __future__ import annotations

from bookkd.knowledge.alignment import check_alignment, keys_of, with_pool_of
from bookkd.knowledge.ensemble import Ensemble, SideBySide, books_of, teachers_of
from bookkd.knowledge.live import LiveKnowledge
from bookkd.knowledge.needs import check_needs
from bookkd.knowledge.own import BetaSmoothing, SelfKnowledge, VirtualKnowledge
from bookkd.knowledge.stored import StoredKnowledge, member_fields
from bookkd.knowledge.teacher import Teacher

__all__ = [
    "BetaSmoothing",
    "Ensemble",
    "LiveKnowledge",
    "SelfKnowledge",
    "SideBySide",
    "StoredKnowledge",
    "Teacher",
    "VirtualKnowledge",
    "books_of",
    "check_alignment",
    "check_needs",
    "keys_of",
    "member_fields",
    "teachers_of",
    "with_pool_of",
]
