"""What the sentences say, word for word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats
from tests.report.records import BOOK, TEACHER, as_found, example, failed, record, sweep

from bookkd.report import cautions, numbers_of, summary
from bookkd.report.tables import differences_table, main_table


def metric(value):
    return {"value": value, "low": value, "high": value}


def arm(name, values, method, **other):
    return [
        replace(
            record(name, seed, method=method, **other),
            metrics={"accuracy": metric(value)},
            confusion={},
            calibration={},
        )
        for seed, value in enumerate(values)
    ]


def exact(**other):
    taught = {"teachers": [TEACHER], "books": [BOOK]}
    found = [
        *arm("supervised", (0.700, 0.720, 0.710), "supervised", per_class_recall=()),
        *arm("vanilla-kd", (0.732, 0.749, 0.741), "vanilla-kd", per_class_recall=(), **taught),
        *arm("dkd", (0.705, 0.708, 0.716), "dkd", per_class_recall=(), **taught),
    ]
    return [replace(each, learning={"epochs": 10, "seconds": 50.0}, **other) for each in found]


def said(records):
    return summary(numbers_of(as_found(records)))


def test_all_of_it():
    assert said(exact()) == (
        "9 runs in 3 arms on cifar10 (test, 10,000 samples).",
        "Most accurate is vanilla-kd with 74.07 ± 0.85 % (3 seeds), 15.46 points below resnet56 (89.53 %) with 1/11 of its parameters.",
        "vanilla-kd is +3.07 points (95 % +2.69 to +3.45, 3 seeds) against supervised: more than the noise between seeds.",
        "dkd is −0.03 points (95 % −2.55 to +2.48, 3 seeds) against supervised: inside the noise between seeds.",
        "Lowest distillation metric at equal weight of size and accuracy: vanilla-kd with 0.132.",
        "Making 1 book took 61.4 s and 81,920 teacher passes, once, 1.75 MiB on disk.",
        "6 students learned from books in 5.00 min; with the teachers asked at each step they would take 8.84 min (estimated from "
        "the making): the books pay from student 2 on.",
    )
    assert cautions(numbers_of(as_found(exact()))) == ()


def test_one_seed_proves_nothing():
    records = [each for each in exact() if each.seed == 0]
    assert "dkd is +0.50 points against supervised (one seed: no statement about noise)." in said(records)
    assert cautions(numbers_of(as_found(records))) == (
        "One seed only, so that the noise between seeds is unknown: vanilla-kd, dkd, supervised.",
    )


def test_an_arm_near_the_best_is_named():
    near = arm("twin", (0.731, 0.750, 0.739), "dkd", per_class_recall=())
    assert "Within one standard deviation between seeds of it is twin." in said([*exact(), *near])


def test_books_that_save_no_time():
    quick = [replace(each, learning={"epochs": 0, "seconds": 50.0}) for each in exact()]
    assert said(quick)[-1].endswith("they would take 5.00 min (estimated from the making): the books save no time.")


def losing(cats, dogs):
    """Two arms, the second with these recalls, one a seed, where the first has 0.8 and 0.6 in all seeds."""
    recalls = {"supervised": ([0.8] * 3, [0.6] * 3), "dkd": (cats, dogs)}
    return [
        record(name, seed, method=name, classes=("cat", "dog"), per_class_recall=(metric(cat), metric(dog)))
        for name, values in recalls.items()
        for seed, (cat, dog) in enumerate(zip(*values, strict=True))
    ]


def test_a_class_that_loses_is_named():
    assert (
        "The average hides a loss: recall of class cat in dkd is −20.00 points (95 % −22.48 to −17.52, 3 seeds) against supervised."
    ) in said(losing((0.59, 0.6, 0.61), (0.7, 0.75, 0.8)))
    assert any(
        sentence.endswith("against supervised, the greatest of 2 in 2 comparisons.")
        for sentence in said(losing((0.59, 0.6, 0.61), (0.49, 0.5, 0.51)))
    )


def test_a_class_that_loses_the_same_in_all_seeds_is_no_evidence():
    assert not any("hides" in sentence for sentence in said(losing((0.6, 0.6, 0.6), (0.7, 0.75, 0.8))))


def test_losses_that_chance_would_give_are_said_to_be_so():
    assert any(
        "comparisons, about 8 of which chance alone would give." in sentence
        for sentence in said(sweep())
        if "hides" in sentence
    )


def test_temperature_and_entropy():
    text = " ".join(said(example()))
    assert "(T = 1.39, fitted on train, held out) takes the calibration error from 0.057 to 0.013." in text
    assert "The entropy scalar of bookkd / resnet8 went from 1.09 to 1.49 over 20 epochs." in text
    assert "(partly estimated)" in text


def test_the_metric_is_told_for_each_teacher_apart():
    found = [sentence for sentence in said(example()) if "metric" in sentence]
    start = "Lowest distillation metric at equal weight of size and accuracy of those that "
    assert found == [
        f"{start}resnet56 taught: vanilla-kd T=4 / resnet8 with 0.108; below a weight of size of 0.31 vanilla-kd T=4 / resnet14 "
        "is better.",
        f"{start}resnet56 + resnet20 taught: bookkd / resnet8 with 0.097.",
    ]


@pytest.mark.parametrize(
    ("records", "caution"),
    [
        ([*exact(), failed()], "Failed runs are in no mean: crd / resnet8 (1)."),
        (
            [*exact(), record("other", data={"name": "svhn", "split": "test"})],
            "The arms were measured on several data sets or splits; arms are compared within one only.",
        ),
        (
            exact(teachers=({**TEACHER, "split": "train"},)),
            "The teacher's accuracy is of another split than the student's: vanilla-kd, supervised, dkd.",
        ),
        (
            example(),
            "The distillation metric of arms with different teachers cannot be compared: a weak teacher flatters.",
        ),
        (
            sweep(),
            "33 arms are compared at 95 %: about 2 would look like more than noise by chance alone, and the best of many is so "
            "partly by luck.",
        ),
        (sweep(), "Some arms are held against an arm with another student: supervised / resnet8."),
    ],
)
def test_cautions(records, caution):
    assert caution in cautions(numbers_of(as_found(records)))


def test_many_arms_are_summed_up():
    found = [sentence for sentence in said(sweep()) if "points (95 %" in sentence and "hides" not in sentence]
    assert len(found) == 8
    assert "Of 25 more arms, 16 are better and 0 worse by more than the noise between seeds." in said(sweep())


def test_nothing_done():
    assert said([failed()]) == ("0 runs in 1 arm; 1 run failed.", "No run has an accuracy.")


def test_arms_of_other_seeds_are_not_paired_and_it_is_said():
    mine, theirs = (0.732, 0.749, 0.741), (0.700, 0.720, 0.710)
    records = [*arm("supervised", theirs, "supervised"), *arm("dkd", mine, "dkd")]
    moved = [replace(each, seed=each.seed + 10) if each.arm == "dkd" else each for each in records]
    found = stats.ttest_ind(mine, theirs, equal_var=False).confidence_interval(0.95)
    low, high = (f"{100 * end:+.2f}" for end in (found.low, found.high))
    assert (
        f"dkd is +3.07 points (95 % {low} to {high}, 3 seeds or more each) against supervised: more than the noise between seeds, "
        "seeds not paired."
    ) in said(moved)
    numbers = numbers_of(as_found(moved))
    (row,) = main_table(numbers).rows[:1]
    assert "more than the noise between seeds, seeds not paired" in [cell.text for cell in row]
    note = differences_table(numbers).note
    assert "Seeds not paired, since few or none are common, with Welch's interval: dkd." in note
    assert "not paired" not in differences_table(numbers_of(as_found(records))).note
