"""Finding a tensor in what a network returns: a tensor, an object, a mapping, or a tuple that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bookkd.core.errors import TeacherOutputError, expected
from bookkd.core.fields import LOGITS

__all__ = ["logits_of"]


def logits_of(output: Any, n_classes: int) -> Tensor:
    """Take the logits out of a network's output.

    Args:
        output: A tensor [batch, classes], an object with `.logits`, a mapping with `"logits"`, or a tuple that begins with
            the logits, as torchvision, timm and Transformers return them.
        n_classes: Number of classes.

    Raises:
        TeacherOutputError: if the logits have another shape.
    """
    found = getattr(output, LOGITS, output)
    if isinstance(found, Mapping):
        found = found.get(LOGITS)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != n_classes:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(output).__name__} without them"
        do = "Build the network with the data set's number of classes."
        raise TeacherOutputError(expected("logits", f"[batch, {n_classes}]", got, where="output of a network", do=do))
    return found
