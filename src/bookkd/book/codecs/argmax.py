"""The teacher's likeliest class in one to four bytes: a label, and no distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bookkd.book.codecs.base import Array, ClassArray, Codec, Parts, RowIds, UnreadableRowError
from bookkd.core.errors import ConfigError, FidelityError, expected

__all__ = ["Argmax"]


@dataclass(frozen=True)
class Argmax(Codec):
    """Keep the class of the largest logit; of equal ones the lowest. Hard labels are all that it promises.

    Stated error: none in the class; what the teacher thinks of it and of the others is not kept, so that every
    temperature and every loss on a distribution is refused.

    >>> Argmax().decode(Argmax().encode(np.array([[0.0, 2.0, 1.0]])), (3,)).classes
    array([1], dtype=uint8)
    """

    name: ClassVar[str] = "argmax"
    sparse: ClassVar[bool] = True
    hard: ClassVar[bool] = True

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        if len(shape) != 1:
            do = "Use codec dense or int8."
            raise ConfigError(expected("shape", "(n_classes,) for codec argmax", tuple(shape), do=do))
        kind = np.uint8 if shape[0] <= 2**8 else np.uint16 if shape[0] <= 2**16 else np.uint32
        return {"classes": (np.dtype(kind), ())}

    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        values = np.asarray(array)
        dtype, _ = self.parts(values.shape[1:])["classes"]
        return {"classes": values.argmax(axis=1).astype(dtype)}

    def decode(self, parts: Mapping[str, Array], shape: Sequence[int]) -> ClassArray:
        classes = parts["classes"]
        wrong = classes >= shape[0]
        if wrong.any():
            raise UnreadableRowError(int(wrong.argmax()), f"class {classes.max()} is none of {shape[0]}")
        return ClassArray(classes, shape[0])

    def check_temperature(self, temperature: float) -> None:
        raise FidelityError(
            f"Expected no `temperature` of codec argmax, got {temperature:g}: it keeps the likeliest class and no "
            f"distribution. Learn from its classes as labels, or make the book with codec dense, int8 or top_k."
        )
