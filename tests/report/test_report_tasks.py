"""Reports of several labels and of numbers: their own figures, and nothing that has no meaning for them."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tests.report.records import BOOK, TEACHER, as_found, interval, record

from bookkd.core.errors import DataError, UnknownNameError
from bookkd.report import cautions, numbers_of, render, summary
from bookkd.report.charts import charts_of
from bookkd.report.columns import QUALITY, columns_of
from bookkd.report.pareto import pareto_of
from bookkd.report.sections import sections
from bookkd.report.tables import differences_table, main_table
from bookkd.tasks import TASKS, task_class

R2 = {"supervised": (0.61, 0.63, 0.60), "vanilla-kd": (0.70, 0.73, 0.69), "worse": (-0.20, -0.10, -0.15)}
MAP = {"supervised": (0.81, 0.82, 0.80), "vanilla-kd": (0.85, 0.87, 0.84)}


def run(task, arm, seed, metrics, **other):
    """A record as `compare` writes it of another task than classification."""
    taught = {} if arm == "supervised" else {"teachers": [{**TEACHER, "accuracy": 0.9}], "books": [BOOK]}
    whole = record(arm, seed, method=arm if arm != "worse" else "dkd", **taught)
    curve = tuple({"epoch": n, "train/loss": 1 / n, f"val/{next(iter(metrics))}": 1 - 1 / n} for n in (1, 2, 3))
    return replace(
        whole,
        task=task,
        metrics={name: interval(value) for name, value in metrics.items()},
        per_class_recall=(),
        calibration={},
        confusion={},
        curve=curve,
        **other,
    )


def numbers():
    found = []
    for arm, values in R2.items():
        for seed, value in enumerate(values):
            told = {"r2": value, "rmse": 1 - value / 2, "mae": 0.5 - value / 4, "correlation": 0.9}
            told |= {} if arm == "supervised" else {"teacher_rmse": 0.2}
            found.append(run("regression", arm, seed, told, class_names=("angle",)))
    return found


def labels():
    found = []
    for arm, values in MAP.items():
        for seed, value in enumerate(values):
            told = {"map": value, "micro_f1": value - 0.1, "hamming_loss": 0.1, "nll": 0.3, "ece": 0.05}
            by_class = {"average_precision": [interval(value - 0.2), None, interval(value)]}
            found.append(run("multi-label", arm, seed, told, per_class=by_class, class_names=("a", "b", "c")))
    return found


BOTH = pytest.mark.parametrize("records", [numbers(), labels()], ids=["numbers", "labels"])


def test_every_task_has_columns_that_begin_with_its_first_metric():
    assert set(QUALITY) == set(TASKS)
    for name in TASKS:
        assert QUALITY[name][0].key == task_class(name).primary_metric
        keys = [column.key for column in columns_of(name)]
        assert len(set(keys)) == len(keys)


def test_arms_of_numbers_are_ranked_and_compared_by_explained_variance():
    found = numbers_of(as_found(numbers()))
    assert [row.arm for row in found.rows] == ["vanilla-kd", "supervised", "worse"]
    best, base, worst = found.rows
    wanted = stats.ttest_rel(R2["vanilla-kd"], R2["supervised"]).confidence_interval(0.95)
    difference = best.differences["r2"]
    assert (difference.low, difference.high) == pytest.approx((wanted.low, wanted.high))
    assert difference.better is True
    assert worst.differences["r2"].better is False
    # Of an error less is better.
    assert best.differences["rmse"].mean < 0
    assert best.differences["rmse"].better is True
    assert base.differences == {}
    assert best.teacher_quality.mean == 0.9


def test_sentences_of_numbers():
    said = summary(numbers_of(as_found(numbers())))
    assert (*said[:5], said[-1]) == (
        "9 runs in 3 arms on cifar10 (test, 10,000 samples).",
        "Best by R² is vanilla-kd with 0.707 ± 0.021 (3 seeds), 0.193 below resnet56 (0.900).",
        "worse is −0.763 (95 % −0.867 to −0.660, 3 seeds) against supervised: worse, more than the noise between seeds.",
        "vanilla-kd is +0.093 (95 % +0.079 to +0.108, 3 seeds) against supervised: better, more than the noise between seeds.",
        "Making 1 book took 61.4 s and 81,920 teacher passes, once, 1.75 MiB on disk.",
        "The task is regression: temperature scaling, confusion of classes and the distillation metric are those of one class for "
        "each sample, and are left out.",
    )
    for values, end in ((R2["vanilla-kd"], (0.079, 0.108)), (R2["worse"], (-0.867, -0.660))):
        found = stats.ttest_rel(values, R2["supervised"]).confidence_interval(0.95)
        assert np.round([found.low, found.high], 3).tolist() == pytest.approx(end)


def test_sentences_of_several_labels():
    said = summary(numbers_of(as_found(labels())))
    assert "Best by mAP is vanilla-kd with 85.33 ± 1.53 % (3 seeds), 4.67 points below resnet56 (90.00 %)." in said
    assert any(line.startswith("vanilla-kd is +4.33 points (95 % ") for line in said)


def test_the_table_has_the_figures_that_there_are():
    table = main_table(numbers_of(as_found(numbers())))
    heads = [head.title for head in table.heads]
    assert heads[:8] == ["arm", "student", "seeds", "R²", "Δ R²", "verdict", "RMSE", "MAE"]
    assert "NLL" not in heads  # no network gives a variance
    assert not any(head.startswith(("DS", "accuracy", "α")) for head in heads)
    assert [cell.text for cell in table.rows[0]][3:5] == ["0.707 ± 0.021", "+0.093 [+0.079, +0.108]"]
    below = differences_table(numbers_of(as_found(numbers())))
    assert [head.title for head in below.heads][3:5] == ["Δ R²", "Δ RMSE"]
    assert "Lower is better for RMSE, MAE and RMSE to teacher." in below.note
    table = main_table(numbers_of(as_found(labels())))
    heads = [head.title for head in table.heads]
    assert heads[3:5] == ["mAP, %", "Δ points"]
    worst = table.rows[0][heads.index("worst class, %")]
    assert worst.value == pytest.approx(np.mean(MAP["vanilla-kd"]) - 0.2)


@BOTH
def test_what_means_nothing_is_left_out_and_nothing_is_empty(records):
    found = numbers_of(as_found(records))
    shown = {section.key for section in sections(found)}
    assert {"arms", "size", "curves", "cost", "provenance"} <= shown
    of_classes = {"regression": set(), "multi-label": {"classes"}}[found.task]
    assert shown & {"calibration", "classes"} == of_classes
    charts = {chart.key: chart for some in charts_of(found).values() for chart in some}
    assert not set(charts) & {"score", "reliability-before", "confusion-student"}
    assert {"accuracy-size", "curves", "cost", *of_classes} <= set(charts)
    for chart in charts.values():
        assert all(data.rows for name, data in chart.data.items() if name != "teachers")
    title = {"regression": "R² against size", "multi-label": "mAP against size"}[found.task]
    assert charts["accuracy-size"].title == title
    assert json.dumps(charts["accuracy-size"].spec).count("accuracy, %") == 0
    told = "\n".join([*summary(found), *cautions(found)])
    assert "accuracy" not in told.lower()


@BOTH
def test_every_format_holds_the_same(records):
    pytest.importorskip("altair")
    found = numbers_of(as_found(records))
    key = {"regression": "r2", "multi-label": "map"}[found.task]
    first = found.rows[0].figures[key].mean
    told = json.loads(render(found, "json"))
    assert (told["task"], told["rows"][0]["figures"][key]["mean"]) == (found.task, first)
    (line, *_) = csv.DictReader(io.StringIO(render(found, "csv")))
    assert float(line[key]) == first
    assert float(line[f"{key}_difference_mean"]) == found.rows[0].differences[key].mean
    assert "ds_0.5" not in line
    assert "The task is" in render(found, "md")
    assert "The task is" in render(found, "html")


def test_of_an_error_the_front_is_below():
    found = numbers_of(as_found(numbers()))
    up, down = (pareto_of(found.rows, (), key)["parameters"] for key in ("r2", "rmse"))
    for points in (up, down):
        students = [point.name for point in points if point.front and point.kind != "teacher"]
        assert students == ["vanilla-kd"]
    assert [point.quality for point in up] != [point.quality for point in down]


def test_two_tasks_are_not_one_report():
    wanted = "Expected `runs` to be of one task, got 9 of regression and 6 of multi-label (report). Report the folders of each"
    with pytest.raises(DataError, match=re.escape(wanted)):
        numbers_of(as_found([*numbers(), *labels()]))
    with pytest.raises(UnknownNameError, match="Unknown task 'detection'"):
        numbers_of(as_found([replace(numbers()[0], task="detection")]))


def test_runs_without_their_first_metric_say_so():
    found = numbers_of(as_found([replace(each, metrics={}) for each in numbers()]))
    assert "No run has R²." in summary(found)
    render(found, "md")


def translated(arm, seed, bleu, signature):
    metrics = {"perplexity": 9.0 - bleu / 10, "bleu": bleu, "chrf": 50.0}
    return run("seq2seq", arm, seed, metrics, signatures={"bleu": signature, "chrf": "nc:6|nw:0|version:2.6.0"})


def test_translations_are_told_with_the_signatures_of_their_scores():
    """Version and tokenisation stand beside the figures in every format; of two, a caution says that they do not compare."""
    pytest.importorskip("altair")
    mine, other = "tok:13a|version:2.6.0", "tok:none|version:2.5.1"
    runs = [translated(arm, seed, 20.0 + seed, mine) for arm in ("supervised", "vanilla-kd") for seed in (0, 1)]
    found = numbers_of(as_found(runs))
    told = "Signatures: BLEU tok:13a|version:2.6.0; chrF nc:6|nw:0|version:2.6.0."
    assert told in main_table(found).note
    assert told in render(found, "html")
    assert told in render(found, "md").replace("\\", "")
    assert json.loads(render(found, "json"))["provenance"]["signatures"]["bleu"] == [mine]
    assert not any("several versions" in each for each in cautions(found))
    mixed = numbers_of(as_found([*runs, translated("vanilla-kd", 2, 30.0, other)]))
    assert f"BLEU {mine} and {other};" in main_table(mixed).note
    assert "Runs computed BLEU by several versions or settings, whose values cannot be compared." in cautions(mixed)
    # Without BLEU in the table, nothing is said of it.
    assert main_table(numbers_of(as_found(labels()))).note == "Mean ± standard deviation between seeds."
