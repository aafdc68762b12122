"""Folders become records, whole or not at all."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from tests.report.records import example, failed, record, save

from bookkd.core.errors import DataError
from bookkd.report import RECORD_NAME, RunRecord, find_runs, numbers_of


def test_runs_are_found_in_folders_of_folders_and_counted_once(tmp_path):
    save(example(seeds=(0,)), tmp_path / "sweep" / "part")
    found = find_runs([tmp_path / "sweep", tmp_path / "sweep" / "part" / "run-0", str(tmp_path)])
    assert [run.record.arm for run in found] == [each.arm for each in example(seeds=(0,))]


def test_runs_come_in_the_order_of_people(tmp_path):
    for seed in (0, 9, 10):
        record(seed=seed).save(tmp_path / f"seed-{seed}")
    assert [run.record.seed for run in find_runs([tmp_path])] == [0, 9, 10]


def test_what_a_run_holds_belongs_to_it(tmp_path):
    record().save(tmp_path / "run")
    inside = tmp_path / "run" / "assistant"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    assert len(find_runs([tmp_path])) == 1


def test_runs_without_a_record_are_counted_and_the_first_is_named(tmp_path):
    save(example(seeds=(0,)), tmp_path)
    for name in ("run-1a", "run-2a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"complete, got 2 of 10 without a readable record. The first: .*run-1a"):
        find_runs([tmp_path])


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"Expected `run` to be a folder with record.json, got 'none'"):
        find_runs([tmp_path])


@pytest.mark.parametrize(("text", "said"), [('{"format": 3}', "up to 2, got 3.*Update bookkd"), ("{", "damaged text")])
def test_a_newer_or_damaged_record_is_one_line(tmp_path, text, said):
    record().save(tmp_path / "run-0")
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / RECORD_NAME).write_text(text)
    with pytest.raises(DataError, match=f"1 of 2 without a readable record.*{said}") as found:
        find_runs([tmp_path])
    assert "\n" not in str(found.value)


def test_a_seed_stands_once_in_an_arm(tmp_path):
    save([record(), record()], tmp_path)
    with pytest.raises(DataError, match=r"once in an arm, got two runs, the other in .*run-0"):
        find_runs([tmp_path])


WRONG = {
    "metrics": {"accuracy": {"value": "high"}},
    "student": {"name": "a", "parameters": [1]},
    "learning": {"seconds": True},
    "confusion": {"student": [[1, 2], [3]]},
    "calibration": {"before": {"low": 0}},
    "per_class_recall": (3, "half"),
    "curve": ({"epoch": 1, "val/accuracy": {}},),
    "books": ("book",),
    "teachers": (1,),
}


@pytest.mark.parametrize("entry", WRONG)
def test_what_is_no_number_is_refused_with_its_place(entry, tmp_path):
    save([replace(record(teachers=[{"name": "a", "digest": "b"}]), **{entry: WRONG[entry]})], tmp_path)
    with pytest.raises(DataError, match=re.escape("(arm 'supervised / resnet8', seed 0")):
        numbers_of(find_runs([tmp_path]))


def test_a_record_that_knows_nothing_is_reported(tmp_path):
    empty = {"format": 1, "arm": "a", "seed": 0, "status": "done", "method": {"name": "supervised"}}
    (tmp_path / RECORD_NAME).write_text(json.dumps(empty))
    failed(seed=4).save(tmp_path.parent / "failed")
    numbers = numbers_of(find_runs([tmp_path, tmp_path.parent / "failed"]))
    assert [(row.arm, row.seeds, row.failed) for row in numbers.rows] == [("a", (0,), 0), ("crd / resnet8", (), 1)]
    assert all(spread is None for row in numbers.rows for spread in row.figures.values())


def test_a_record_of_before_there_were_tasks_is_of_classification(tmp_path):
    record().save(tmp_path)
    told = json.loads((tmp_path / RECORD_NAME).read_text())
    assert (told["format"], told["task"]) == (2, "classification")
    old = {key: value for key, value in told.items() if key not in ("task", "per_class")}
    (tmp_path / RECORD_NAME).write_text(json.dumps({**old, "format": 1}))
    assert RunRecord.load(tmp_path) == record()
    (tmp_path / RECORD_NAME).write_text(json.dumps({**told, "task": ["regression"]}))
    with pytest.raises(DataError, match=r"Expected `task` to be of its kind \(str\), got 'tuple'"):
        RunRecord.load(tmp_path)
