"""What one record says in five numbers; numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import ClassArray, Decoded, SampledArray, SparseArray
from bookkd.core.errors import ConfigError, FidelityError, expected

__all__ = ["no_draws", "record_statistics"]

Array = npt.NDArray[Any]


def record_statistics(
    decoded: Decoded, labels: npt.ArrayLike | None = None, *, temperature: float = 1.0
) -> dict[str, Array]:
    """Describe the records of a batch by their distribution p = softmax(logits / temperature).

    Of a sparse record the classes that were left out are one bucket: its entropy is -sum(p log p) over the kept classes and
    this bucket, which is at most the entropy of the whole distribution, and what only the left-out classes could tell is NaN.
    Of a record that keeps a class alone (codec argmax) all but `top1` is NaN. Draws are refused: one record of them is noise.

    Args:
        decoded: Logits [rows, classes], -inf allowed; or what the codec top_k or argmax decodes to.
        labels: Class of each row [rows], negative where it is not known; None for none.
        temperature: Of the softmax; for sparse records one that the codec promises.

    Returns:
        Name -> [rows]: `top1` int32, and as float32 `confidence` (probability of the most likely class), `margin` (to the
        second), `entropy` in nats. With labels also `label_probability`. The lower class wins a tie.

    Raises:
        ConfigError: for records that are no vector of classes.
        FidelityError: for a temperature that the codec does not promise; for draws.

    >>> found = record_statistics(np.log([[0.7, 0.2, 0.1]]), [1])
    >>> int(found["top1"][0]), round(float(found["margin"][0]), 4), round(float(found["label_probability"][0]), 4)
    (0, 0.5, 0.2)
    """
    wanted = None if labels is None else np.asarray(labels, dtype=np.int64)
    if isinstance(decoded, ClassArray):
        return _of_classes(decoded, labels=wanted is not None)
    if isinstance(decoded, SampledArray):
        raise no_draws("decoded", "statistics")
    if isinstance(decoded, SparseArray):
        probabilities, classes, tail = _kept(decoded, temperature)
    else:
        if not isinstance(decoded, np.ndarray) or decoded.ndim != 2:
            got = type(decoded).__name__ if not isinstance(decoded, np.ndarray) else f"shape {decoded.shape}"
            raise ConfigError(expected("decoded", "logits [rows, classes] or a SparseArray", got, where="statistics"))
        probabilities, classes, tail = _softmax(decoded, temperature), None, np.zeros(len(decoded))
    found = _described(probabilities, classes, tail)
    if wanted is not None:
        found["label_probability"] = _of_labels(probabilities, classes, tail, wanted).astype(np.float32)
    return found


def no_draws(what: str, where: str) -> FidelityError:
    """Return the error for records that are draws."""
    wish, do = "records that say something one by one", "Make a book with codec dense, int8, top_k or argmax."
    return FidelityError(
        expected(what, wish, "draws (codec sampled), which are right on average alone", where=where, do=do)
    )


def _of_classes(decoded: ClassArray, *, labels: bool) -> dict[str, Array]:
    unknown = np.full(len(decoded), np.nan, np.float32)
    names = ("confidence", "margin", "entropy", *(("label_probability",) if labels else ()))
    return {"top1": decoded.classes.astype(np.int32), **{name: unknown.copy() for name in names}}


def _softmax(logits: Array, temperature: float) -> Array:
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def _kept(sparse: SparseArray, temperature: float) -> tuple[Array, Array, Array]:
    """Return probabilities and classes [rows, k], descending, and the mass of all others [rows]."""
    if temperature not in sparse.temperatures:
        promised = ", ".join(f"{value:g}" for value in sparse.temperatures)
        raise FidelityError(expected("temperature", f"one that the codec promises ({promised})", temperature))
    column = sparse.temperatures.index(temperature)
    tail = np.minimum(np.exp(sparse.log_tail_mass[:, column].astype(np.float64)), 1.0)
    kept = (1.0 - tail)[:, None] * _softmax(sparse.values, temperature)
    return kept, sparse.indices.astype(np.int64), tail


def _described(probabilities: Array, classes: Array | None, tail: Array) -> dict[str, Array]:
    rows = np.arange(len(probabilities))
    first = probabilities.argmax(axis=1)
    confidence = probabilities[rows, first]
    if probabilities.shape[1] > 1:
        second = np.partition(probabilities, -2, axis=1)[:, -2]
        margin = confidence - second
    else:
        margin = np.full(len(rows), np.nan)
    entropy = -(_p_log_p(probabilities).sum(axis=1) + _p_log_p(tail))
    return {
        "top1": (first if classes is None else classes[rows, first]).astype(np.int32),
        "confidence": confidence.astype(np.float32),
        "margin": margin.astype(np.float32),
        "entropy": np.maximum(entropy, 0.0).astype(np.float32),
    }


def _p_log_p(p: Array) -> Array:
    found: Array = p * np.log(p, where=p > 0, out=np.zeros_like(p))
    return found


def _of_labels(probabilities: Array, classes: Array | None, tail: Array, labels: Array) -> Array:
    if classes is None:
        inside = (labels >= 0) & (labels < probabilities.shape[1])
        found: Array = np.take_along_axis(probabilities, np.where(inside, labels, 0)[:, None], axis=1)[:, 0]
        return np.where(inside, found, np.nan)
    match = classes == labels[:, None]
    found = (probabilities * match).sum(axis=1)
    # Nothing left out: a class that is not kept has no probability. Else its share of the bucket is not known.
    return np.where(match.any(axis=1) | ((tail == 0) & (labels >= 0)), found, np.nan)
