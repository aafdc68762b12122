"""What real sweeps showed: other techniques beside distillation, few seeds, teachers of one name, ensembles never measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report.records import BOOK, SECOND, SECOND_BOOK, TEACHER, as_found, example, record

from bookkd.report import numbers_of
from bookkd.report.arms import arms_of, baselines_of
from bookkd.report.books import books_of, making_shares
from bookkd.report.charts import charts_of

SIBLING = {**TEACHER, "digest": "9c41" * 8, "accuracy": 0.89}


def configured(arm, method, *, smoothing=None, baseline=None):
    options = {"name": method} if smoothing is None else {"name": method, "label_smoothing": smoothing}
    configuration = {"run": {"arm": arm, "method": options, "training": {"epochs": 3}}, "sweep": {"baseline": baseline}}
    return record(arm, method=method, configuration=configuration)


def names(records):
    return {arm: base.name for arm, base in baselines_of(arms_of(as_found(records))).items()}


def test_an_arm_is_held_against_the_labels_alone_with_the_same_other_technique():
    found = names(
        [
            configured("supervised + smoothing", "supervised", smoothing=0.1),
            configured("supervised", "supervised", smoothing=0.0),
            configured("kd + smoothing", "vanilla-kd", smoothing=0.1),
            configured("kd", "vanilla-kd", smoothing=0.0),
            configured("bookkd", "bookkd"),
        ]
    )
    assert found == {
        "supervised + smoothing": "supervised",
        "kd + smoothing": "supervised + smoothing",
        "kd": "supervised",
        "bookkd": "supervised",
    }


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"kd": "dkd", "dkd": "dkd", "supervised": "kd"}, {"kd": "dkd", "supervised": "kd"}),
        ({"kd": None, "dkd": "", "supervised": "crd"}, {"kd": "supervised", "dkd": "supervised"}),
    ],
    ids=["by its configuration, itself for nothing", "else by the rule"],
)
def test_an_arm_is_held_against_what_its_sweep_names(told, found):
    methods = {"supervised": "supervised", "kd": "vanilla-kd", "dkd": "dkd"}
    assert names([configured(arm, method, baseline=told[arm]) for arm, method in methods.items()]) == found


def points(records):
    return {point.name: point.quality for point in numbers_of(as_found(records)).pareto["parameters"]}


def test_teachers_of_an_ensemble_that_nobody_measured_stand_by_themselves():
    run = replace(record("kd", method="vanilla-kd", teachers=[TEACHER, SECOND]), confusion={})
    found = points([run])
    assert (found["resnet56"], found["resnet20"]) == (TEACHER["accuracy"], SECOND["accuracy"])
    assert "resnet56 + resnet20" not in found
    elsewhere = {**SECOND, "split": "train"}
    assert "resnet20" not in points([replace(run, teachers=(TEACHER, elsewhere))])


def test_teachers_of_one_name_are_told_apart():
    def taught(arm, teacher):
        return replace(record(arm, method="vanilla-kd", teachers=[teacher]), confusion={})

    numbers = numbers_of(as_found([taught("a", TEACHER), taught("b", SIBLING), taught("c", SECOND)]))
    assert [teacher.name for teacher in numbers.teachers] == ["resnet56 5f3a5f", "resnet56 9c419c", "resnet20"]
    assert {row.arm: row.teacher for row in numbers.rows} == {
        "a": "resnet56 5f3a5f",
        "b": "resnet56 9c419c",
        "c": "resnet20",
    }
    assert {point.name for point in numbers.pareto["parameters"]} >= {teacher.name for teacher in numbers.teachers}


def test_arms_cross_the_best_of_their_own_teachers():
    def sized(arm, accuracy, parameters, teacher):
        run = record(arm, method="vanilla-kd", teachers=[teacher])
        metrics = {"accuracy": {"value": accuracy, "low": accuracy, "high": accuracy}}
        student = {"name": arm, "parameters": parameters}
        return replace(run, metrics=metrics, student=student, confusion={})

    big, small = {**TEACHER, "parameters": 100, "accuracy": 0.8}, {**SECOND, "parameters": 50, "accuracy": 0.8}
    runs = [sized("a", 0.76, 40, big), sized("b", 0.60, 10, big), sized("c", 0.72, 20, small)]
    found = {row.arm: row.crossing_alpha for row in numbers_of(as_found(runs)).rows}
    # 0.4 alpha + 0.05 (1 - alpha) = 0.1 alpha + 0.25 (1 - alpha) at alpha = 0.4; c is alone with its teacher.
    assert found == {"a": pytest.approx(0.4), "b": None, "c": None}


def chart(records, key):
    return next(
        chart for some in charts_of(numbers_of(as_found(records))).values() for chart in some if chart.key == key
    )


def test_wide_intervals_leave_the_bars_of_the_chart_visible():
    found = chart(example(seeds=(0, 1)), "classes").data["classes"]
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    for arm in {row["arm"] for row in rows}:
        some = [row for row in rows if row["arm"] == arm]
        longest = max(abs(row["points"]) for row in some)
        assert all(-3.001 * longest <= row["from"] <= row["to"] <= 3.001 * longest for row in some)
        assert any(row["low"] < row["from"] for row in some)  # what was cut is still said


def test_epochs_are_marked_once_each():
    (layer, *_) = chart([record(epochs=3)], "curves").spec["layer"]
    assert layer["encoding"]["x"]["axis"]["values"] == [1, 2, 3]


MERGED = {
    **BOOK,
    "label": "both",
    "content_digest": "ab0c" * 8,
    "cost": {
        "seconds": 61.44 + 30.72 + 0.84,
        "teacher_forwards": 2 * 81_920,
        "books": [BOOK["content_digest"], SECOND_BOOK["content_digest"]],
    },
}


def test_the_making_of_a_merged_book_and_its_parts_is_counted_once():
    alone = record("alone", method="dkd", books=[BOOK], teachers=[TEACHER])
    both = record("both", method="dkd", books=[MERGED], teachers=[TEACHER, SECOND])
    runs = as_found([alone, both])
    ledger = numbers_of(runs).ledger
    assert ledger.making_seconds == pytest.approx(61.44 + 30.72 + 0.84)
    assert ledger.making_forwards == 2 * 81_920
    assert [(book.label, book.parts) for book in ledger.books] == [
        ("resnet56", ()),
        ("both", (BOOK["content_digest"],)),
    ]
    assert {cost.arm: cost.making_seconds for cost in ledger.arms} == pytest.approx({"alone": 61.44, "both": 93.0})
    shares = making_shares(runs, books_of(runs))
    assert list(shares.values()) == pytest.approx([30.72, 30.72 + 30.72 + 0.84])
    assert numbers_of(as_found([both])).ledger.making_seconds == pytest.approx(93.0)
