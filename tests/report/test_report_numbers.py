"""Every figure against one worked by hand, by scipy or by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.report.records import BOOK, SECOND, SECOND_BOOK, TEACHER, as_found, example, failed, record

from bookkd.core.errors import UnknownNameError
from bookkd.report import numbers_of
from bookkd.report.arms import arms_of, baselines_of
from bookkd.report.books import books_of, making_shares
from bookkd.report.pareto import Point, _front


def metric(value):
    return {"value": value, "low": value, "high": value}


def plain(arm, seed, accuracy, *, method="vanilla-kd", **other):
    """A run with one exact accuracy and nothing else that was drawn."""
    values = {"metrics": {"accuracy": metric(accuracy)}, "confusion": {}, "per_class_recall": (), "calibration": {}}
    return record(arm, seed, method=method, **{**values, **other})


def rows(records, **options):
    return {row.arm: row for row in numbers_of(as_found(records), **options).rows}


ACCURACIES = {
    "base": (0.700, 0.720, 0.710, 0.705),
    "better": (0.731, 0.744, 0.742, 0.729),
    "same": (0.69, 0.73, 0.71, 0.70),
}


@pytest.fixture(scope="module")
def three():
    kinds = {"base": "supervised", "better": "vanilla-kd", "same": "dkd"}
    return rows(
        [
            plain(arm, seed, value, method=kinds[arm])
            for arm, values in ACCURACIES.items()
            for seed, value in enumerate(values)
        ]
    )


@pytest.mark.parametrize("arm", ACCURACIES)
def test_mean_and_deviation(three, arm):
    spread = three[arm].figures["accuracy"]
    assert spread.mean == pytest.approx(np.mean(ACCURACIES[arm]))
    assert spread.sd == pytest.approx(np.std(ACCURACIES[arm], ddof=1))
    assert spread.n == 4


@pytest.mark.parametrize(("arm", "verdict"), [("better", "more than the noise"), ("same", "inside the noise")])
def test_differences_are_those_of_a_paired_t_test(three, arm, verdict):
    found = three[arm].differences["accuracy"]
    test = stats.ttest_rel(ACCURACIES[arm], ACCURACIES["base"])
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(ACCURACIES[arm]) - np.mean(ACCURACIES["base"]))
    assert verdict in found.verdict
    assert (test.pvalue < 0.05) == ("more" in found.verdict)


def test_the_baseline_is_held_against_nothing(three):
    assert three["base"].baseline == ""
    assert three["base"].differences == {}


def test_only_seeds_that_both_have_are_compared():
    found = rows(
        [
            *(plain("base", seed, 0.7 + 0.01 * seed, method="supervised") for seed in (0, 1, 2)),
            *(plain("other", seed, 0.8 + 0.01 * seed) for seed in (1, 2, 7)),
        ]
    )["other"]
    assert found.differences["accuracy"].n == 2
    assert found.differences["accuracy"].mean == pytest.approx(0.1)
    assert found.figures["accuracy"].n == 3


def names(records, wanted=None):
    return {arm: base.name for arm, base in baselines_of(arms_of(as_found(records)), wanted).items()}


def test_an_arm_is_held_against_the_supervised_arm_with_its_student():
    assert names(example())["vanilla-kd T=4 / resnet14"] == "supervised / resnet14"
    assert names(example())["dkd / resnet8"] == "supervised / resnet8"
    assert not {"supervised / resnet8", "supervised / resnet14", "crd / resnet8"} & names(example()).keys()


def test_the_share_of_labels_counts_before_the_order():
    def seen(share):
        return {**record().data, "label_fraction": share}

    found = names([record("all"), record("tenth", data=seen(0.1)), record("kd", method="vanilla-kd", data=seen(0.1))])
    assert found == {"kd": "tenth"}


def test_without_a_supervised_arm_the_first_is_the_baseline():
    assert names([record("a", method="dkd"), record("b", method="vanilla-kd")]) == {"b": "a"}


def test_other_data_is_never_compared():
    elsewhere = record("b", method="dkd", data={"name": "svhn", "split": "test"})
    assert names([record("a"), elsewhere]) == {}


def test_a_baseline_of_ones_own():
    found = names(example(), "dkd / resnet8")
    assert set(found.values()) == {"dkd / resnet8"}
    with pytest.raises(UnknownNameError, match=r"Unknown arm 'dk / resnet8' \(--baseline\). Nearest: dkd / resnet8"):
        names(example(), "dk / resnet8")


# Size in per cent of the teacher, accuracy in per cent, and the metric at 0.5 as published; teacher 71.76 %.
PUBLISHED = [(62.84, 69.12, 0.333), (35.36, 67.04, 0.210), (15.25, 62.87, 0.138), (3.74, 43.11, 0.218)]


def published():
    teacher = {**TEACHER, "parameters": 100.0, "accuracy": 0.7176}
    return rows(
        [
            replace(
                plain(f"{size}", 0, accuracy / 100, teachers=[teacher]),
                student={"name": f"{size}", "parameters": size},
            )
            for size, accuracy, _ in PUBLISHED
        ]
    )


@pytest.mark.parametrize(("size", "accuracy", "value"), PUBLISHED)
def test_the_distillation_metric_is_that_of_the_survey(size, accuracy, value):
    found = published()[f"{size}"]
    assert round(found.figures["ds_0.5"].mean, 3) == value
    assert found.figures["ds_0.3"].mean == pytest.approx(0.3 * size / 100 + 0.7 * (1 - accuracy / 71.76))


def test_arms_cross_where_their_metrics_are_equal():
    found = published()
    assert found["15.25"].crossing_alpha is None  # the best at 0.5
    for size, accuracy, _ in PUBLISHED:
        alpha = found[f"{size}"].crossing_alpha
        if alpha is not None:
            mine = alpha * size / 100 + (1 - alpha) * (1 - accuracy / 71.76)
            best = alpha * 0.1525 + (1 - alpha) * (1 - 62.87 / 71.76)
            assert mine == pytest.approx(best)
    assert found["3.74"].crossing_alpha > 0.7  # at 0.7 it almost draws level


def test_the_teacher_is_that_of_the_same_split_where_it_was_measured():
    measured = record("a", teachers=[TEACHER], method="vanilla-kd")
    counts = np.array(measured.confusion["teacher"])
    row = rows([measured])["a"]
    assert row.teacher_quality.mean == pytest.approx(np.trace(counts) / counts.sum())
    told = rows([replace(measured, confusion={})])["a"]
    assert told.teacher_quality.mean == TEACHER["accuracy"]
    held_out = {**TEACHER, "split": "train"}
    assert not rows([replace(measured, confusion={}, teachers=(held_out,))])["a"].same_split


def test_sizes_of_several_teachers_add_up_and_their_accuracy_is_not_guessed():
    both = record("a", teachers=[TEACHER, SECOND], method="bookkd")
    row = rows([replace(both, confusion={})])["a"]
    assert row.teacher_parameters == 855_770 + 272_474
    assert (row.teacher_quality, row.terms) == (None, None)


def test_worst_class():
    recalls = (metric(0.9), None, metric(0.4), metric(0.7))
    assert (
        rows([replace(record(), per_class_recall=recalls)])["supervised / resnet8"].figures["worst_class"].mean == 0.4
    )


def ledger(records):
    return numbers_of(as_found(records)).ledger


def learned(seconds, epochs=10, **more):
    return {"epochs": epochs, "seconds": seconds, "seconds_per_epoch": seconds / epochs, **more}


def arms(online: bool):
    one = {"teachers": [TEACHER], "method": "vanilla-kd"}
    found = [record("book", seed, books=[BOOK], learning=learned(50.0), **one) for seed in (0, 1)]
    found.append(record("labels", 0, learning=learned(45.0)))
    if online:
        found += [record("live", seed, learning=learned(90.0, teacher_forwards=51_200), **one) for seed in (0, 1)]
    return found


def test_online_cost_is_measured_where_an_arm_was_online():
    found = ledger(arms(online=True))
    book = next(cost for cost in found.arms if cost.arm == "book")
    # 50 s + (9 - 5) s an epoch * 10 epochs; each student saves 40 s of 61.44 s.
    assert (book.online_seconds, book.online_from) == (pytest.approx(90.0), "measured, live")
    assert book.break_even == pytest.approx(61.44 / 40)
    assert (found.making_seconds, found.book_bytes, found.making_forwards) == (61.44, 1_835_008, 81_920)
    assert found.learning_seconds == pytest.approx(2 * 50 + 45 + 2 * 90)
    assert found.learning_forwards is None  # the supervised run does not say
    assert (found.book_students, found.book_seconds, found.online_seconds) == (2, 100.0, pytest.approx(180.0))
    assert found.break_even == pytest.approx(61.44 / 40)


def test_online_cost_is_estimated_from_the_making_else():
    found = ledger(arms(online=False))
    book = next(cost for cost in found.arms if cost.arm == "book")
    # 61.44 s / 81,920 records * 5,120 samples * 10 epochs = 38.4 s
    assert (book.online_seconds, book.online_from) == (pytest.approx(88.4), "estimated")
    assert book.break_even == pytest.approx(61.44 / 38.4)


def test_an_arm_online_with_another_teacher_measures_nothing():
    other = [replace(each, teachers=(SECOND,)) if each.arm == "live" else each for each in arms(online=True)]
    assert next(cost for cost in ledger(other).arms if cost.arm == "book").online_from == "estimated"


def test_a_book_that_saves_nothing_has_no_break_even():
    slow = [replace(each, learning=learned(40.0)) if each.arm == "live" else each for each in arms(online=True)]
    found = ledger(slow)
    assert next(cost for cost in found.arms if cost.arm == "book").break_even is None
    assert found.break_even is None


def test_a_book_is_made_once_however_many_read_it():
    found = ledger(example())
    assert [(book.label, book.students) for book in found.books] == [("resnet56", 12), ("resnet20", 3)]
    assert found.making_seconds == pytest.approx(61.44 + 30.72)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_shares_of_the_making_add_up(readers):
    runs = as_found(
        [
            replace(BARE, arm=f"{place}", books=(*([BOOK] if one else ()), *([SECOND_BOOK] if two else ())))
            for place, (one, two) in enumerate(readers)
        ]
    )
    shares = making_shares(runs, books_of(runs))
    read = 61.44 * any(one for one, _ in readers) + 30.72 * any(two for _, two in readers)
    assert sum(shares.values()) == pytest.approx(read)


BARE = replace(failed(), status="done", error="")


def test_a_book_of_unknown_cost_leaves_the_share_open():
    runs = as_found([replace(BARE, books=({**BOOK, "cost": {}},), learning={"seconds": 5.0})])
    assert numbers_of(runs).rows[0].figures["cost_seconds"] is None
    assert numbers_of(runs).ledger.making_seconds is None


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=10))
def test_the_front_is_what_nothing_beats(places):
    points = [Point(f"{place}", "student", cost, accuracy, None) for place, (cost, accuracy) in enumerate(places)]
    for point in _front(points):
        beaten = any(
            other.cost <= point.cost
            and other.quality >= point.quality
            and (other.cost, other.quality) != (point.cost, point.quality)
            for other in points
        )
        assert point.front is not beaten


def test_networks_of_the_charts():
    pareto = numbers_of(as_found(example())).pareto
    assert list(pareto) == ["parameters", "batch 1", "batch 64"]
    kinds = {point.name: point.kind for point in pareto["parameters"]}
    assert kinds["resnet56"] == kinds["resnet56 + resnet20"] == "teacher"
    assert kinds["supervised / resnet14"] == "baseline"
    assert kinds["dkd / resnet8"] == "student"
    assert "resnet56" not in {point.name for point in pareto["batch 1"]}  # nobody measured its time


def test_reliability_is_that_of_all_seeds_together():
    def bins(count, confidence, accuracy):
        full = {"low": 0.5, "high": 1.0, "count": count, "confidence": confidence, "accuracy": accuracy}
        return {"before": [{"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None}, full]}

    runs = [
        replace(record(seed=0), calibration=bins(10, 0.8, 0.6)),
        replace(record(seed=1), calibration=bins(30, 0.9, 0.8)),
    ]
    (found,) = numbers_of(as_found(runs)).calibration
    (only,) = found.before
    assert (only.count, only.confidence, only.accuracy) == (40, pytest.approx(0.875), pytest.approx(0.75))
    assert found.after == ()


def test_recall_by_class_is_paired_and_the_greatest_loss_comes_first():
    def recalls(*values):
        return tuple(None if value is None else metric(value) for value in values)

    found = numbers_of(
        as_found(
            [
                record("base", 0, classes=("a", "b", "c"), per_class_recall=recalls(0.5, 0.5, 0.5)),
                record("base", 1, classes=("a", "b", "c"), per_class_recall=recalls(0.6, 0.6, None)),
                record("kd", 0, classes=("a", "b", "c"), per_class_recall=recalls(0.7, 0.3, 0.5), method="dkd"),
                record("kd", 1, classes=("a", "b", "c"), per_class_recall=recalls(0.7, 0.3, 0.5), method="dkd"),
            ]
        )
    ).classes
    assert [(each.name, round(each.difference.mean, 6), each.difference.n) for each in found] == [
        ("b", -0.25, 2),
        ("c", 0.0, 1),
        ("a", 0.15, 2),
    ]


def test_mistakes_are_shares_of_the_true_class():
    counts = {"student": [[8, 2], [5, 15]], "teacher": [[9, 1], [0, 20]]}
    (found,) = numbers_of(as_found([replace(record(classes=("cat", "dog")), confusion=counts)])).confusions
    assert found.student == ((0.8, 0.2), (0.25, 0.75))
    assert [(m.true, m.predicted, m.student, m.teacher) for m in found.mistakes] == [
        ("dog", "cat", 0.25, 0.0),
        ("cat", "dog", 0.2, 0.1),
    ]


def test_curves_are_means_with_their_range():
    def curve(*values):
        return tuple({"epoch": place, "val/accuracy": value} for place, value in enumerate(values, 1))

    runs = [replace(record(seed=0), curve=curve(0.1, 0.4)), replace(record(seed=1), curve=curve(0.3, 0.6, 0.7))]
    (found,) = numbers_of(as_found(runs)).curves
    assert (found.epochs, found.low, found.high) == ((1, 2, 3), (0.1, 0.4, 0.7), (0.3, 0.6, 0.7))
    assert found.mean == pytest.approx((0.2, 0.5, 0.7))


def test_entropies_are_shown_where_a_run_has_them():
    entropies = numbers_of(as_found(example())).entropies
    assert [(each.arm, each.entry) for each in entropies] == [
        ("bookkd / resnet8", "train/entropy_scale"),
        ("bookkd / resnet8", "train/book_entropy"),
        ("bookkd / resnet8", "train/student_entropy"),
    ]


def test_provenance_says_where_seeds_differ():
    def configured(seed, lr):
        return replace(record(seed=seed), configuration={"training": {"lr": lr, "seed": seed}})

    (found,) = numbers_of(as_found([configured(0, 0.1), configured(1, 0.2)])).provenance.configurations
    assert found.differing == ("training.lr",)
    lineages = numbers_of(as_found(example())).provenance.lineages
    assert lineages["resnet20 77aa77aa77aa"][1].startswith("  resnet56 5f3a")


def test_rows_are_ordered_by_accuracy_and_those_without_come_last():
    found = numbers_of(as_found(example())).rows
    values = [row.figures["accuracy"].mean for row in found[:-1]]
    assert values == sorted(values, reverse=True)
    assert found[-1].arm == "crd / resnet8"
