"""Segmentation: overlap, boundaries and calibration over pixels, with intervals over images.

What a network says of all pixels of all images would fill the memory, so that exact counts of each image are gathered batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, LOGITS, WEIGHT
from bookkd.evaluation._sums import SequenceSums
from bookkd.evaluation.intervals import Floats
from bookkd.evaluation.measures import Measures, check_names, mean_where_known, measured

__all__ = ["PixelSums", "boundary_hits"]

_PIXELS = "pixels/"


class PixelSums(SequenceSums):
    r"""Measures what a network says at the pixels of images, and compares it with a teacher if one is given.

    Over all pixels of known class of all images, with TP, FP and FN the pixels of a class that are hit, said wrongly, and missed:

        iou = TP / (TP + FP + FN) of a class               miou = its mean over classes that are there or are said
        accuracy = share of pixels that are right           balanced_accuracy = mean recall of the classes that are there
        nll = mean(-log q_y)                                ece over equal bins of max q, as in `evaluate`
        boundary_f1 = mean over classes of 2 P R / (P + R)

    P is the share of a class's boundary pixels as said that have one of the truth within `tolerance` pixels along both axes, R the share
    of those of the truth that have one as said. A pixel is on the boundary of its class if one of its eight neighbours inside of the
    image is of another class, or void; what is said of void pixels may be met, and is not counted. All counts are added up over images
    before they are divided.

    Of a teacher, on the grid that the task compares on and weighted as there:

        agreement = share with argmax q = argmax p          teacher_kl = mean(KL(p || q))

    Intervals are bootstrapped over images, since the pixels of one are no independent samples.

    Args:
        class_names: One name a class.
        tolerance: Pixels that a boundary may be off, at least 0.
        bins: Bins of the calibration error.

    >>> sums = PixelSums(("a", "b"), tolerance=0)
    >>> logits = torch.tensor([[[[2.0, 0.0], [2.0, 0.0]]]])
    >>> seen = {"pixels/label": torch.tensor([[[0, 1]]]), "weight": torch.ones(1, 1, 2)}
    >>> sums.add({"logits": logits, "pixels/logits": logits}, seen, torch.tensor([2]))
    >>> {name: round(each.value, 2) for name, each in sums.measures(replicates=0).metrics.items()}
    {'miou': 0.25, 'accuracy': 0.5, 'balanced_accuracy': 0.5, 'boundary_f1': 0.0, 'nll': 1.13, 'ece': 0.38}

    Source: boundary F1, Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013, with counts of all
    images added up and a tolerance in pixels.
    """

    def __init__(self, class_names: Sequence[str], *, tolerance: int = 2, bins: int = 15) -> None:
        super().__init__(bins)
        self.class_names = tuple(class_names)
        self.tolerance = at_least(tolerance, 0, "tolerance", where="PixelSums")

    def add(
        self,
        said: Mapping[str, Tensor],
        seen: Mapping[str, Any],
        counts: Tensor,
        teacher: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take in some images.

        Args:
            said: The student's fields as losses see them: `pixels/logits` [images, height, width, classes], and `logits` on the grid.
            seen: The batch as losses see it: `pixels/label`, and `weight` of the grid.
            counts: Cells of the grid of each image; unused, since images say it.
            teacher: The teacher's `logits` on the grid.

        Raises:
            DataError: for shapes that do not fit, a label that is no class, or logits that are not finite.
            TeacherOutputError: if the teacher's logits have another shape; if it is there for some batches and for others not.
        """
        logits, labels = said[_PIXELS + LOGITS].detach(), seen[_PIXELS + LABEL]
        theirs = None if teacher is None else teacher[LOGITS]
        check_names(self.class_names, logits.shape[-1], "class_names")
        _check(logits, labels)
        self._compare(said[LOGITS], theirs)
        known = labels != IGNORE_LABEL
        log_q = logits.float().log_softmax(-1)
        top, guess = log_q.max(-1)
        self._gather("pixels", _images(known))
        self._gather("nll", _images(torch.where(known, -log_q.gather(-1, labels.clamp_min(0)[..., None])[..., 0], 0)))
        self._calibration(top.exp(), guess == labels, known)
        # Here, since importing torchmetrics takes seconds.
        from torchmetrics.functional.classification import multiclass_stat_scores

        stats: Tensor = multiclass_stat_scores(
            guess.flatten(1), labels.flatten(1), len(self.class_names), average=None, multidim_average="samplewise",
            ignore_index=IGNORE_LABEL, validate_args=False,
        )  # fmt: skip
        for name, place in (("hit", 0), ("said", 1), ("missed", 3)):
            self._gather(name, stats[..., place].cpu().numpy())
        for name, value in boundary_hits(guess, labels, len(self.class_names), self.tolerance).items():
            self._gather(name, value.cpu().numpy())
        if theirs is not None:
            self._beside(said[LOGITS].detach(), theirs.to(logits.device), seen[WEIGHT])

    def _calibration(self, confidence: Tensor, right: Tensor, known: Tensor) -> None:
        place = (confidence * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        image = torch.arange(len(known), device=known.device)[:, None, None] * self.bins
        for name, value in (("bin_confidence", confidence), ("bin_right", right)):
            flat = torch.zeros(len(known) * self.bins, dtype=torch.float64, device=known.device)
            flat.index_add_(0, (place + image).flatten(), torch.where(known, value.double(), 0).flatten())
            self._gather(name, flat.reshape(len(known), self.bins).cpu().numpy())

    def _beside(self, mine: Tensor, theirs: Tensor, weights: Tensor) -> None:
        log_q, log_p = (each.float().log_softmax(-1) for each in (mine, theirs))
        gap = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(-1)
        self._gather("cells", _images(weights))
        self._gather("agreement", _images(weights * (log_q.argmax(-1) == log_p.argmax(-1))))
        self._gather("teacher_kl", _images(torch.where(weights > 0, weights * gap, 0)))

    def measures(self, *, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> Measures:
        """Return all metrics of what was taken in.

        Args:
            replicates: Bootstrap replicates over images; 0 for values alone.
            seed: Of the bootstrap.
            level: Share of the replicates inside an interval.

        Raises:
            DataError: if no pixel had a known class.
        """
        sums = self._gathered()
        if not sums or not sums["pixels"].sum():
            raise DataError(expected("pixels", "at least one of known class", "none", where="evaluation"))
        kept = sums["pixels"] > 0  # an image that is void all over says nothing
        sums = {name: values[kept] for name, values in sums.items()}
        return measured(
            _Statistic(sums),
            len(sums["pixels"]),
            class_names=self.class_names,
            replicates=replicates,
            seed=seed,
            level=level,
            absolute=("ece",),
        )


class _Statistic:
    """Counts of images [r, n] -> every metric."""

    def __init__(self, sums: dict[str, Floats]) -> None:
        self.sums = sums

    def __call__(self, counts: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        of = {name: counts @ values for name, values in self.sums.items()}
        hit, pixels = of["hit"], of["pixels"]
        with np.errstate(invalid="ignore", divide="ignore"):
            each = {
                "iou": hit / (hit + of["said"] + of["missed"]),
                "recall": hit / (hit + of["missed"]),
                "precision": hit / (hit + of["said"]),
                "boundary_f1": _f1(of),
            }
            found = {
                "miou": mean_where_known(each["iou"]),
                "accuracy": hit.sum(axis=1) / pixels,
                "balanced_accuracy": mean_where_known(each["recall"]),
                "boundary_f1": mean_where_known(each["boundary_f1"]),
                "nll": of["nll"] / pixels,
                "ece": np.abs(of["bin_confidence"] - of["bin_right"]).sum(axis=1) / pixels,
            }
            if "cells" in of:
                found |= {name: of[name] / of["cells"] for name in ("agreement", "teacher_kl")}
        return found, each


def _f1(of: Mapping[str, Floats]) -> Floats:
    """Return 2 P R / (P + R); 0 where only one side has a boundary, NaN where neither has."""
    said, there = of["boundary_said"], of["boundary_there"]
    precision, recall = (
        of[f"{name}_met"] / np.where(count > 0, count, 1)
        for name, count in (("boundary_said", said), ("boundary_there", there))
    )
    found: Floats = np.where(said + there > 0, 2 * precision * recall / np.maximum(precision + recall, 1e-300), np.nan)
    return found


def boundary_hits(guess: Tensor, labels: Tensor, n_classes: int, tolerance: int) -> dict[str, Tensor]:
    """Count boundary pixels of each image and class, and how many of them have one of the other side near.

    Args:
        guess: Classes as they are said, int [images, height, width].
        labels: Classes as they are, likewise; `IGNORE_LABEL` where void.
        n_classes: Number of classes.
        tolerance: Pixels that they may be apart along both axes.

    Returns:
        `boundary_said`, `boundary_there`, and `boundary_said_met`, `boundary_there_met`, each [images, classes].

    >>> line = torch.tensor([[[0, 0, 1, 1]]])
    >>> boundary_hits(line, torch.tensor([[[0, 1, 1, 1]]]), 2, 0)["boundary_said_met"], boundary_hits(line, line, 2, 0)["boundary_said"]
    (tensor([[0, 0]]), tensor([[1, 1]]))
    """
    classes = torch.arange(n_classes, device=labels.device)[:, None, None]
    ours, truth = (_boundary(each[:, None] == classes) for each in (guess, labels))
    counted = ours & (labels != IGNORE_LABEL)[:, None]
    return {
        "boundary_said": counted.sum((2, 3)),
        "boundary_said_met": (counted & _widened(truth, tolerance)).sum((2, 3)),
        "boundary_there": truth.sum((2, 3)),
        "boundary_there_met": (truth & _widened(ours, tolerance)).sum((2, 3)),
    }


def _boundary(inside: Tensor) -> Tensor:
    return inside & _widened(~inside, 1)


def _widened(inside: Tensor, by: int) -> Tensor:
    """Return the pixels that have one inside within `by` along both axes; the two axes one after the other."""
    if not by:
        return inside
    rows = F.max_pool2d(inside.float(), (2 * by + 1, 1), stride=1, padding=(by, 0))
    return F.max_pool2d(rows, (1, 2 * by + 1), stride=1, padding=(0, by)) > 0


def _images(values: Tensor) -> Floats:
    """Return the sum over the pixels of each image."""
    found: Floats = values.double().flatten(1).sum(1).cpu().numpy()
    return found


def _check(logits: Tensor, labels: Tensor) -> None:
    where = "evaluation of pixels"
    if logits.ndim != 4 or not logits.is_floating_point() or labels.shape != logits.shape[:-1]:
        got = f"{logits.dtype} {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        wish = "floating [images, height, width, classes], and one label a pixel"
        raise DataError(expected("logits", wish, got, where=where))
    if bool(((labels < 0) & (labels != IGNORE_LABEL)).any() | (labels >= logits.shape[-1]).any()):
        raise DataError(expected("labels", f"classes below {logits.shape[-1]}", int(labels.max()), where=where))
    said = logits[(labels != IGNORE_LABEL)]
    if bool(torch.isnan(said).any() | (said == torch.inf).any()):
        raise DataError(expected("logits", "finite", "NaN or infinity", where=where))
