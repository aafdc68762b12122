"""Who knows: a stored book or a live teacher, behind one protocol (`bookkd.core.protocols.Knowledge`)."""

from __future__ import annotations

from bookkd.knowledge.alignment import check_alignment, keys_of, with_pool_of
from bookkd.knowledge.live import LiveKnowledge
from bookkd.knowledge.needs import check_needs
from bookkd.knowledge.stored import StoredKnowledge
from bookkd.knowledge.teacher import Teacher

__all__ = ["LiveKnowledge", "StoredKnowledge", "Teacher", "check_alignment", "check_needs", "keys_of", "with_pool_of"]
