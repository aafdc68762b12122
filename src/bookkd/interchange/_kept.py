"""From the classes that somebody kept, with their log-probabilities, to the parts of codec `top_k` at temperature 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import FieldPlan
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import LOGITS
from bookkd.interchange._source import ABSENT

__all__ = ["MEASURED_ROWS", "Loss", "top_k_parts"]

Array = npt.NDArray[Any]

_LOWEST = float(np.finfo(np.float16).min)
MEASURED_ROWS = 128
"""Rows of a unit whose loss is measured."""


@dataclass
class Loss:
    """What importing lost: gathered over the units that a run wrote.

    Args:
        kl: KL(source || book) in nats of the measured rows, the classes left out as one bucket on both sides.
        kept: Their kept mass.
        agree: Whether their most likely class is the same.
        excess: The most that kept probabilities exceeded 1 in any row, before they were scaled to 1.
        padded: Places that a row left empty; a class of probability 0 stands there.
    """

    kl: list[Array] = field(default_factory=list)
    kept: list[Array] = field(default_factory=list)
    agree: list[Array] = field(default_factory=list)
    excess: float = 0.0
    padded: int = 0

    def fidelity(self) -> dict[str, Any]:
        """Return it in the form of an edition; empty if nothing was measured."""
        if not self.kl:
            return {}
        kl, kept, agree = (np.concatenate(each) for each in (self.kl, self.kept, self.agree))
        measured = {
            "mean": float(kl.mean()),
            "p99": float(np.quantile(kl, 0.99)),
            "max": float(kl.max()),
            "kept_mass": float(kept.mean()),
        }
        return {LOGITS: {"n": len(kl), "top1_agreement": float(agree.mean()), "temperatures": {"1": measured}}}


def top_k_parts(
    log_p: Array,
    classes: Array,
    entry: FieldPlan,
    *,
    allowed: float,
    renormalise: bool,
    place: Callable[[int], str],
    loss: Loss,
    measured: Array | None = None,
) -> dict[str, Array]:
    """Return the parts of a field of codec `top_k` for rows of kept classes.

    tail = 1 - the sum of the kept probabilities. Where a row keeps fewer classes than the codec, the lowest classes that it does
    not keep stand in the free places with the lowest value of float16, exp(-65504) = 0: their mass is in the tail, where the
    source left it, and what is kept is the source's word alone.

    Args:
        log_p: Log-probabilities at temperature 1, [rows, n], in any order; -inf for none.
        classes: Their classes, int64 [rows, n]; `ABSENT` where there is nothing.
        entry: The field.
        allowed: How far kept probabilities may exceed 1 by the rounding of the source; more is refused.
        renormalise: Whether kept probabilities are scaled to 1, without a tail.
        place: Names a row, for errors.
        loss: Takes what is lost.
        measured: Rows whose loss is measured; None for all.

    Returns:
        `values` and `indices` [rows, k] and `log_tail_mass` [rows, 1], in the dtypes of the codec.

    Raises:
        DataError: a class beyond the classes, one twice, none at all, or no probabilities; names the row.
    """
    n_classes, k = entry.shape[0], int(getattr(entry.codec, "k", 0))
    present = classes != ABSENT
    _check_classes(classes, present, n_classes, place)
    p = _probabilities(log_p, present, place)
    p, classes, present = _sorted(p, classes, present)
    p, classes, present = p[:, :k], classes[:, :k], present[:, :k]
    total = p.sum(axis=1)
    over = total - 1.0
    worst = int(over.argmax())
    if over[worst] > allowed:
        wish = f"at most 1 together (a rounding of {allowed:g} is allowed)"
        do = "The file, or what it says about its own layout, is wrong."
        raise DataError(expected("probabilities", wish, f"{total[worst]:.6g}", where=place(worst), do=do))
    loss.excess = max(loss.excess, float(over[worst]))
    bare = np.flatnonzero(total <= 0)
    if len(bare):
        raise DataError(expected("probabilities", "above 0 for one class", 0.0, where=place(int(bare[0]))))
    if renormalise or (n_classes == k and bool(present.all())):
        p, tail = p / total[:, None], np.zeros(len(p))
    else:
        p = p / np.maximum(total, 1.0)[:, None]
        tail = np.maximum(1.0 - total, 0.0)
    p, classes = _filled(p, classes, present, k, loss)
    parts = _encoded(p, classes, tail, entry)
    _measure(p, tail, parts, loss, np.arange(len(p)) if measured is None else measured)
    return parts


def _check_classes(classes: Array, present: Array, n_classes: int, place: Callable[[int], str]) -> None:
    wrong = present & ((classes < 0) | (classes >= n_classes))
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(axis=1))[0])
        do = "Pass --n_classes with all classes of the teacher, or the file is damaged."
        got: object = int(classes[row][wrong[row]][0])
        raise DataError(expected("class", f"from 0 to {n_classes - 1}", got, where=place(row), do=do))
    ordered = np.sort(classes, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row = int(np.flatnonzero(twice.any(axis=1))[0])
        got = f"class {int(ordered[row, 1:][twice[row]][0])} twice"
        raise DataError(expected("classes", "without repeats", got, where=place(row)))
    empty = np.flatnonzero(~present.any(axis=1))
    if len(empty):
        raise DataError(expected("classes", "at least one", "none of them", where=place(int(empty[0]))))


def _probabilities(log_p: Array, present: Array, place: Callable[[int], str]) -> Array:
    values = np.where(present, log_p.astype(np.float64), -np.inf)
    wrong = np.isnan(values) | (values > 1.0)
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(axis=1))[0])
        got = float(values[row][wrong[row]][0])
        raise DataError(expected("log-probability", "a number up to 0", got, where=place(row)))
    found: Array = np.exp(values)
    return found


def _sorted(p: Array, classes: Array, present: Array) -> tuple[Array, Array, Array]:
    """Order places by probability, descending; of equal ones the lower class is first, and empty places are last."""
    order = np.lexsort((classes, -np.where(present, p, -1.0)), axis=1)
    return tuple(np.take_along_axis(each, order, axis=1) for each in (p, classes, present))  # type: ignore[return-value]


def _filled(p: Array, classes: Array, present: Array, k: int, loss: Loss) -> tuple[Array, Array]:
    """Give free places, which are last, to the lowest classes that the row does not keep, with probability 0."""
    missing = k - p.shape[1]
    if missing > 0:
        p = np.pad(p, ((0, 0), (0, missing)))
        classes = np.pad(classes, ((0, 0), (0, missing)), constant_values=ABSENT)
        present = np.pad(present, ((0, 0), (0, missing)))
    if present.all():
        return p, classes
    p, classes = np.where(present, p, 0.0), classes.copy()
    for row in np.flatnonzero(~present.all(axis=1)):
        free = np.flatnonzero(~present[row])
        # Among the k lowest classes are at least as many unused ones as there are free places.
        used = classes[row][present[row]]
        unused = np.setdiff1d(np.arange(k), used[used < k], assume_unique=True)
        classes[row, free] = unused[: len(free)]
        loss.padded += len(free)
    return p, classes


def _encoded(p: Array, classes: Array, tail: Array, entry: FieldPlan) -> dict[str, Array]:
    layout = entry.codec.parts(entry.shape)
    with np.errstate(divide="ignore"):
        # What the source rounded to 0 stays 0: exp(-65504) is.
        values = np.maximum(np.log(p) - np.log(p[:, :1]), _LOWEST)
        log_tail = np.log(tail)
    found = {"values": values, "indices": classes, "log_tail_mass": log_tail[:, None]}
    return {part: np.ascontiguousarray(found[part].astype(dtype)) for part, (dtype, _) in layout.items()}


def _measure(p: Array, tail: Array, parts: dict[str, Array], loss: Loss, picked: Array) -> None:
    if not len(picked):
        return
    source = np.concatenate([p, tail[:, None]], axis=1)[picked]
    q_tail = np.exp(parts["log_tail_mass"][picked].astype(np.float64))
    kept = np.exp(parts["values"][picked].astype(np.float64))
    stored = np.concatenate([(1.0 - q_tail) * kept / kept.sum(axis=1, keepdims=True), q_tail], axis=1)
    ratio = np.log(source, where=source > 0, out=np.zeros_like(source)) - np.log(np.maximum(stored, 1e-300))
    loss.kl.append(np.maximum((source * ratio).sum(axis=1), 0.0))
    loss.kept.append(source[:, :-1].sum(axis=1))
    loss.agree.append(source[:, :-1].argmax(axis=1) == stored[:, :-1].argmax(axis=1))
