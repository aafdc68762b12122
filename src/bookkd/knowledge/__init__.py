"""Who knows: a book, a live teacher, several of them, or the student itself; one protocol (`bookkd.core.protocols.Knowledge`)."""

from __future__ import annotations

from bookkd.knowledge.alignment import check_alignment, keys_of, with_pool_of
from bookkd.knowledge.base import Teacherless
from bookkd.knowledge.capture import Capture, layers_of, shapes_of
from bookkd.knowledge.constants import CONSTANTS, missing_constants, work_out
from bookkd.knowledge.ensemble import Ensemble, SideBySide, books_of, check_same, constants_of, teachers_of
from bookkd.knowledge.lineage import NOTES, classes_of_weights, lineage_of_weights, notes_of_weights, teachers_behind
from bookkd.knowledge.live import LiveKnowledge
from bookkd.knowledge.needs import check_fields, check_needs, check_views, unmeasured
from bookkd.knowledge.negatives import Negatives
from bookkd.knowledge.own import BetaSmoothing, SelfKnowledge, VirtualKnowledge
from bookkd.knowledge.past import PastSelf, PriorKnowledge, SelfChapters, Surroundings
from bookkd.knowledge.stored import StoredKnowledge, as_knowledge, member_fields
from bookkd.knowledge.teacher import Teacher

__all__ = [
    "CONSTANTS",
    "NOTES",
    "BetaSmoothing",
    "Capture",
    "Ensemble",
    "LiveKnowledge",
    "Negatives",
    "PastSelf",
    "PriorKnowledge",
    "SelfChapters",
    "SelfKnowledge",
    "SideBySide",
    "StoredKnowledge",
    "Surroundings",
    "Teacher",
    "Teacherless",
    "VirtualKnowledge",
    "as_knowledge",
    "books_of",
    "check_alignment",
    "check_fields",
    "check_needs",
    "check_same",
    "check_views",
    "classes_of_weights",
    "constants_of",
    "keys_of",
    "layers_of",
    "lineage_of_weights",
    "member_fields",
    "missing_constants",
    "notes_of_weights",
    "shapes_of",
    "teachers_behind",
    "teachers_of",
    "unmeasured",
    "with_pool_of",
    "work_out",
]
