"""The book: teacher knowledge on disk. Writing, reading and checking it need numpy alone; see `docs/book-format.md`."""

from __future__ import annotations

from bookkd.book._editions import EditionInfo, editions, growth_begun
from bookkd.book._fidelity import measure_codec
from bookkd.book._opening import is_finished, newest_plan
from bookkd.book.codecs import (
    CODECS,
    Codec,
    Dense,
    Int8,
    Raw,
    SparseArray,
    TopK,
    codec_from_config,
    codec_to_config,
)
from bookkd.book.compacting import Pruned, compact, prune
from bookkd.book.copying import copy_book
from bookkd.book.extracting import extract
from bookkd.book.growing import GrowthWriter
from bookkd.book.lineage import lineage_of, lineage_tree
from bookkd.book.plan import FieldPlan, Plan, TeacherInfo, Unit
from bookkd.book.reader import Book
from bookkd.book.repairing import Repaired, repair
from bookkd.book.verification import Fault, verify
from bookkd.book.writer import BookWriter

__all__ = [
    "CODECS",
    "Book",
    "BookWriter",
    "Codec",
    "Dense",
    "EditionInfo",
    "Fault",
    "FieldPlan",
    "GrowthWriter",
    "Int8",
    "Plan",
    "Pruned",
    "Raw",
    "Repaired",
    "SparseArray",
    "TeacherInfo",
    "TopK",
    "Unit",
    "codec_from_config",
    "codec_to_config",
    "compact",
    "copy_book",
    "editions",
    "extract",
    "growth_begun",
    "is_finished",
    "lineage_of",
    "lineage_tree",
    "measure_codec",
    "newest_plan",
    "prune",
    "repair",
    "verify",
]
