"""Making a book: writing down what a knowledge says about every (sample, view)."""

from __future__ import annotations

from bookkd.making.batch_size import find_batch_size
from bookkd.making.local import make

__all__ = ["find_batch_size", "make"]
