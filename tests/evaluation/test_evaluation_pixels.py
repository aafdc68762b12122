"""Metrics of segmentation against torchmetrics and SciPy, exact whatever the batches, with intervals over images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_jaccard_index,
)

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError
from bookkd.evaluation import PixelSums, direction_of
from bookkd.evaluation.pixels import boundary_hits

NAMES = ("a", "b", "c", "d")


def data(n=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 4, 9, 11, generator=draws)
    logits = torch.nn.functional.avg_pool2d(logits, 3, 1, 1) * 6
    labels = (logits + 2 * torch.randn(logits.shape, generator=draws)).argmax(1)
    labels[torch.rand(labels.shape, generator=draws) < 0.1] = -1
    return logits.permute(0, 2, 3, 1), labels


def gathered(logits, labels, parts=None, teacher=None, **options):
    sums = PixelSums(NAMES, **options)
    for part in parts or (slice(None),):
        said = {"logits": logits[part], "pixels/logits": logits[part]}
        seen = {"pixels/label": labels[part], "weight": (labels[part] >= 0).float()}
        sums.add(said, seen, torch.ones(len(labels[part])), None if teacher is None else {"logits": teacher[part]})
    return sums


def values(measures):
    return {name: each.value for name, each in measures.metrics.items()}


def test_overlap_and_calibration_are_torchmetrics():
    logits, labels = data()
    found = gathered(logits, labels).measures(replicates=0)
    flat, truth = logits.flatten(0, 2), labels.flatten()
    options = {"num_classes": 4, "ignore_index": -1}
    iou = multiclass_jaccard_index(flat, truth, average="none", **options)
    assert [each.value for each in found.per_class["iou"]] == pytest.approx(iou.tolist(), abs=1e-6)
    assert found.metrics["miou"].value == pytest.approx(iou.mean().item(), abs=1e-6)
    recall = multiclass_accuracy(flat, truth, average="none", **options)
    assert [each.value for each in found.per_class["recall"]] == pytest.approx(recall.tolist(), abs=1e-6)
    micro = multiclass_accuracy(flat, truth, average="micro", **options)
    assert found.metrics["accuracy"].value == pytest.approx(micro.item(), abs=1e-6)
    ece = multiclass_calibration_error(flat.softmax(-1), truth, n_bins=15, norm="l1", **options)
    assert found.metrics["ece"].value == pytest.approx(ece.item(), abs=1e-5)
    nll = torch.nn.functional.cross_entropy(flat, truth, ignore_index=-1)
    assert found.metrics["nll"].value == pytest.approx(nll.item(), rel=1e-5)


def test_counts_do_not_depend_on_the_batches():
    logits, labels = data()
    whole = gathered(logits, labels, teacher=logits.flip(0)).measures(replicates=50, seed=3)
    parts = gathered(logits, labels, [slice(0, 1), slice(1, 4), slice(4, 5)], logits.flip(0)).measures(
        replicates=50, seed=3
    )
    for name, each in whole.metrics.items():
        other = parts.metrics[name]
        assert (other.value, other.low, other.high) == pytest.approx((each.value, each.low, each.high), rel=1e-9)
        assert each.low <= each.value <= each.high or name == "ece"


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_boundaries_are_scipys(tolerance):
    logits, labels = data(seed=1)
    guess = logits.argmax(-1)
    found = boundary_hits(guess, labels, 4, tolerance)
    square, window = np.ones((3, 3)), np.ones((2 * tolerance + 1, 2 * tolerance + 1))
    for image in range(len(labels)):
        for kind in range(4):
            said, there = ((each[image] == kind).numpy() for each in (guess, labels))
            edges = [each & ~ndimage.binary_erosion(each, square, border_value=1) for each in (said, there)]
            wide = [ndimage.binary_dilation(each, window) for each in edges]
            counted = edges[0] & (labels[image] >= 0).numpy()
            wanted = {
                "boundary_said": counted, "boundary_said_met": counted & wide[1],
                "boundary_there": edges[1], "boundary_there_met": edges[1] & wide[0],
            }  # fmt: skip
            assert {name: int(each[image, kind]) for name, each in found.items()} == {
                name: int(each.sum()) for name, each in wanted.items()
            }


def test_a_boundary_that_is_one_pixel_off():
    labels = torch.zeros(1, 6, 8, dtype=torch.long)
    labels[:, :, 4:] = 1
    said = torch.zeros(1, 6, 8, dtype=torch.long)
    said[:, :, 5:] = 1
    logits = torch.nn.functional.one_hot(said, 4).float() * 9
    exact, near = (values(gathered(logits, labels, tolerance=t).measures(replicates=0)) for t in (0, 1))
    assert (exact["boundary_f1"], near["boundary_f1"]) == (0.0, 1.0)
    assert exact["miou"] == pytest.approx((24 / 30 + 18 / 24) / 2)  # classes that are nowhere do not count


def test_void_pixels_and_a_right_student():
    _, labels = data()
    logits = torch.nn.functional.one_hot(labels.clamp_min(0), 4).float() * 50
    found = values(gathered(logits, labels, teacher=logits).measures(replicates=0))
    assert found["ece"] == pytest.approx(0.0, abs=1e-6)
    assert {name: round(value, 6) for name, value in found.items() if name not in ("ece", "boundary_f1")} == {
        "miou": 1, "accuracy": 1, "balanced_accuracy": 1, "nll": 0, "agreement": 1, "teacher_kl": 0,
    }  # fmt: skip
    changed = logits.clone()
    changed[labels < 0] = torch.tensor([0.0, 0.0, 0.0, 90.0])
    again = values(gathered(changed, labels, teacher=logits).measures(replicates=0))
    assert again["miou"] == again["agreement"] == 1
    assert again["teacher_kl"] == pytest.approx(0, abs=1e-6)


def test_a_worked_gap_to_the_teacher():
    mine, theirs = torch.zeros(1, 1, 2, 4), torch.log(torch.tensor([0.7, 0.1, 0.1, 0.1])).expand(1, 1, 2, 4)
    found = values(gathered(mine, torch.tensor([[[0, -1]]]), teacher=theirs).measures(replicates=0))
    assert found["teacher_kl"] == pytest.approx(math.log(4) + 0.7 * math.log(0.7) + 0.3 * math.log(0.1), abs=1e-6)
    assert found["agreement"] == 1.0


def test_intervals_are_over_images():
    logits, labels = data(1)
    twice = gathered(logits.repeat(4, 1, 1, 1), labels.repeat(4, 1, 1)).measures(replicates=30).metrics["miou"]
    assert twice.low == pytest.approx(twice.value) == pytest.approx(twice.high)


def test_which_way_is_better():
    assert [direction_of(name, None, ours=True) for name in ("miou", "boundary_f1", "ece")] == [False, False, True]


def test_what_does_not_fit_is_refused():
    logits, labels = data()
    with pytest.raises(DataError, match=r"`labels` to be classes below 4, got 7"):
        gathered(logits, labels.masked_fill(labels == 0, 7))
    with pytest.raises(DataError, match=r"`logits` to be floating \[images, height, width, classes\]"):
        gathered(logits, labels[:, 1:])
    with pytest.raises(DataError, match="NaN or infinity"):
        gathered(logits * torch.nan, labels)
    with pytest.raises(DataError, match="at least one of known class"):
        gathered(logits, torch.full_like(labels, -1)).measures()
    with pytest.raises(TeacherOutputError, match="`teacher` to be of shape"):
        gathered(logits, labels, teacher=logits[:, 1:])
    with pytest.raises(ConfigError, match="4 names or none"):
        PixelSums(NAMES[:3]).add({"logits": logits, "pixels/logits": logits}, {"pixels/label": labels}, labels)
