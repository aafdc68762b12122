"""Making a book: writing down what a knowledge says about every (sample, view), and putting books together."""

from __future__ import annotations

from bookkd.making.batch_size import find_batch_size
from bookkd.making.decoded import decode_dataset
from bookkd.making.growing import grow
from bookkd.making.local import make, plan_book
from bookkd.making.merging import bake, merge
from bookkd.making.repairing import repair
from bookkd.making.several import make_several
from bookkd.making.texts import open_texts, write_texts

__all__ = [
    "bake",
    "decode_dataset",
    "find_batch_size",
    "grow",
    "make",
    "make_several",
    "merge",
    "open_texts",
    "plan_book",
    "repair",
    "write_texts",
]
