"""Finding a tensor in what a network returns: a tensor, an object, a mapping, or a tuple that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bookkd.core.errors import TeacherOutputError, expected
from bookkd.core.fields import LOGITS, MEAN, VARIANCE

__all__ = ["found_logits", "logits_of", "normal_of", "width_of"]


def found_logits(output: Any) -> Any:
    """Return what stands for the logits in a network's output, whatever it is."""
    found = getattr(output, LOGITS, output)
    if isinstance(found, Mapping):
        found = found.get(LOGITS, found.get("out"))  # torchvision's name in segmentation
    return found[0] if isinstance(found, tuple | list) and found else found


def width_of(output: Any) -> int | None:
    """Return how many numbers a network says at a position, a pixel of maps [batch, classes, height, width], or of a sample.

    None where it says no logits.

    >>> import torch
    >>> width_of({"logits": torch.zeros(2, 5, 7)})
    7
    """
    found = found_logits(output)
    if not isinstance(found, Tensor) or not found.ndim:
        return None
    return int(found.shape[1 if found.ndim == 4 else -1])


def logits_of(output: Any, n_classes: int) -> Tensor:
    """Take the logits out of a network's output.

    Args:
        output: A tensor [batch, classes], an object with `.logits`, a mapping with `"logits"`, or a tuple that begins with
            the logits, as torchvision, timm and Transformers return them.
        n_classes: Number of classes.

    Raises:
        TeacherOutputError: if the logits have another shape.
    """
    found = found_logits(output)
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != n_classes:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(output).__name__} without them"
        do = "Build the network with the data set's number of classes."
        raise TeacherOutputError(expected("logits", f"[batch, {n_classes}]", got, where="output of a network", do=do))
    return found


def normal_of(output: Any, n_outputs: int, *, with_variance: bool) -> dict[str, Tensor]:
    """Take mean, and variance if it is wanted, out of a network's output.

    Args:
        output: A tensor (the mean), a tuple (mean, variance), an object with attributes, or a mapping.
        n_outputs: Numbers for each sample; of one, [batch] will do.
        with_variance: Whether a variance must be there; without, one that is there is left aside.

    Returns:
        `mean`, and `variance`, both [batch, n_outputs].

    Raises:
        TeacherOutputError: if a part is missing or has another shape, or a variance is not above 0.
    """
    parts = {MEAN: output} if isinstance(output, Tensor) else _named(output)
    names = (MEAN, VARIANCE) if with_variance else (MEAN,)
    found = {name: _column(parts.get(name), name, n_outputs, type(output).__name__) for name in names}
    # NaN passes: a network that says it has diverged, which is found and named elsewhere.
    if with_variance and bool((found[VARIANCE] <= 0).any()):
        wrong = found[VARIANCE][found[VARIANCE] <= 0]
        do = "End the head with softplus and add a small number."
        raise TeacherOutputError(expected(VARIANCE, "above 0", wrong[0].item(), where="output of a network", do=do))
    return found


def _named(output: Any) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    # Before tuples, since a named tuple is both.
    if hasattr(output, MEAN):
        return {name: getattr(output, name, None) for name in (MEAN, VARIANCE)}
    if isinstance(output, tuple | list):
        return dict(zip((MEAN, VARIANCE), output, strict=False))
    return {}


def _column(part: Any, name: str, n_outputs: int, kind: str) -> Tensor:
    if isinstance(part, Tensor) and part.ndim == 1 and n_outputs == 1:
        part = part.unsqueeze(-1)
    if not isinstance(part, Tensor) or part.ndim != 2 or part.shape[1] != n_outputs:
        got = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {kind} without it"
        do = "Build the network with one output for each name, or (mean, variance) where it gives a variance."
        raise TeacherOutputError(expected(name, f"[batch, {n_outputs}]", got, where="output of a network", do=do))
    return part
