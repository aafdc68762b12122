"""The book: teacher knowledge on disk. Writing, reading and checking it need numpy alone; see `docs/book-format.md`."""

from __future__ import annotations

from bookkd.book._constants import planned_constants
from bookkd.book._editions import EditionInfo, editions, growth_begun
from bookkd.book._fidelity import measure_codec
from bookkd.book._opening import is_finished, newest_plan
from bookkd.book.choice import Auto, Candidate, Choice, choose_codec, shortfall
from bookkd.book.codecs import (
    CODECS,
    Argmax,
    ClassArray,
    Codec,
    Decoded,
    Dense,
    Int8,
    Pooled,
    Raw,
    RowIds,
    Sampled,
    SampledArray,
    SparseArray,
    TopK,
    codec_from_config,
    codec_text,
    codec_to_config,
)
from bookkd.book.compacting import Pruned, compact, prune
from bookkd.book.constant import Constant
from bookkd.book.copying import copy_book
from bookkd.book.extracting import extract
from bookkd.book.field_plan import FieldPlan, Positions, Said
from bookkd.book.growing import GrowthWriter
from bookkd.book.lineage import lineage_of, lineage_tree
from bookkd.book.plan import Plan, Unit
from bookkd.book.ragged import RaggedArray
from bookkd.book.reader import Book
from bookkd.book.repairing import Repaired, repair
from bookkd.book.teacher_info import TeacherInfo
from bookkd.book.verification import Fault, verify
from bookkd.book.writer import BookWriter

__all__ = [
    "CODECS",
    "Argmax",
    "Auto",
    "Book",
    "BookWriter",
    "Candidate",
    "Choice",
    "ClassArray",
    "Codec",
    "Constant",
    "Decoded",
    "Dense",
    "EditionInfo",
    "Fault",
    "FieldPlan",
    "GrowthWriter",
    "Int8",
    "Plan",
    "Pooled",
    "Positions",
    "Pruned",
    "RaggedArray",
    "Raw",
    "Repaired",
    "RowIds",
    "Said",
    "Sampled",
    "SampledArray",
    "SparseArray",
    "TeacherInfo",
    "TopK",
    "Unit",
    "choose_codec",
    "codec_from_config",
    "codec_text",
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
    "planned_constants",
    "prune",
    "repair",
    "shortfall",
    "verify",
]
