"""Pictures of a segmentation on the page: of the samples that all arms show, and nothing that is no picture."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from tests.report.records import HOSTILE, record

from bookkd.core.errors import DataError
from bookkd.report import numbers_of, render
from bookkd.report.runs import FoundRun

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and the rest").decode()


def found(arm, samples=(0, 3), picture=PNG, colour="#d94c4c", teacher=True):
    cells = {"image": PNG, "truth": PNG, "student": picture} | ({"teacher": PNG} if teacher else {})
    entries = [{"sample": sample, **cells} for sample in samples]
    metrics = {"miou": {"value": 0.5, "low": 0.4, "high": 0.6}}
    pictures = {"colours": [colour, "#00ff00"], "samples": entries}
    given = {"task": "segmentation", "metrics": metrics, "pictures": pictures, "class_names": ("road", HOSTILE)}
    return FoundRun(arm, replace(record(arm), **given, per_class={}, per_class_recall=(), calibration={}, confusion={}))


def test_samples_that_all_arms_show_stand_side_by_side():
    numbers = numbers_of([found("a"), found("b", samples=(3, 5), teacher=False)])
    (row,) = numbers.pictures.rows
    assert (row.sample, [cell.title for cell in row.cells]) == (3, ["image", "truth", "teacher", "a", "b"])
    assert numbers.pictures.legend == (("road", "#d94c4c"), (HOSTILE, "#00ff00"))
    page = render(numbers)
    assert page.count("data:image/png;base64,") == 5
    assert "<script>alert" not in page
    assert all(PNG not in render(numbers, form) for form in ("md", "json", "csv"))


def test_segmentation_shows_the_iou_of_every_class_against_the_baseline():
    def run(arm, method, seed, *ious):
        each = found(arm)
        entries = [None if iou is None else {"value": iou, "low": iou - 0.1, "high": iou + 0.1} for iou in ious]
        return replace(
            each, record=replace(each.record, per_class={"iou": entries}, method={"name": method}, seed=seed)
        )

    runs = [
        run("a", "supervised", 0, 0.5, 0.25),
        run("b", "cwd", 0, 0.75, 0.2),
        run("a", "supervised", 1, 0.4, None),
        run("b", "cwd", 1, 0.5, None),
    ]
    numbers = numbers_of(runs)
    assert [
        (each.arm, each.measure, round(each.value.mean, 3), round(each.difference.mean, 3)) for each in numbers.classes
    ] == [
        ("b", "IoU", 0.2, -0.05),
        ("b", "IoU", 0.625, 0.175),
    ]
    page = render(numbers)
    assert "IoU by class" in page
    assert "Recall" not in page


@pytest.mark.parametrize(("wrong", "wish"), [
    ({"picture": HOSTILE}, "`pictures` to be PNG files in base64, got 'str'"),
    ({"picture": None}, "`pictures` to be PNG files in base64"),
    ({"picture": base64.b64encode(b"<svg onload=1>").decode()}, "`pictures` to be PNG files in base64"),
    ({"colour": "red;}"}, "`pictures.colours` to be colours such as #d94c4c"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(wrong, wish):
    with pytest.raises(DataError, match=wish):
        numbers_of([found("a", **wrong)])
