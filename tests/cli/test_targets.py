"""`--task`: several labels and numbers from teacher to table, through the verbs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bookkd.book import Book
from bookkd.cli import main
from bookkd.core.errors import ConfigError
from bookkd.pipelines.task import build_task, says_variance, task_name, with_variance
from bookkd.tasks import Regression
from bookkd.zoo import create_network, save_weights

OWN = "tests.cli.user_targets:"
QUICK = ["--training.epochs", "2", "--training.batch_size", "30", "--training.accelerator", "cpu", "--loggers", "[]"]
LIMIT = ["--data.limit", "60"]
PREPARE = ["--student.mean", "[0.3]", "--student.std", "[0.3]"]


def weights_of(path: Path, name: str, outputs: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(create_network(name, n_classes=outputs), path)
    return path


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "digits-pairs": weights_of(folder / "pairs.safetensors", "digits-large", 10),
        "digits-angle": weights_of(folder / "angle.safetensors", "digits-large", 1),
        "spread": weights_of(folder / "spread.safetensors", f"{OWN}spread", 1),
    }


TASKS = {"digits-pairs": "multi-label", "digits-angle": "regression"}


def make(teachers, data, out, *more, network="digits-large", weights=None):
    given = ["--data", data, "--data.limit", "60", "--teacher", network]
    given += ["--teacher.weights", str(weights or teachers[data]), "--views", "none", "--batch_size", "16"]
    return main(["make", *given, "--task", TASKS[data], "--out", str(out), "--held_out", "test", *more])


def learn(book, out, *more):
    given = [str(book)] if book else []
    return main(["learn", *given, "--student", "digits-small", *QUICK, "--out", str(out), *more])


@pytest.fixture(scope="module")
def books(teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    for data in TASKS:
        assert make(teachers, data, folder / data) == 0
    return folder


@pytest.mark.parametrize("data", sorted(TASKS))
def test_from_book_to_table(books, teachers, tmp_path, data, last_json, capsys):
    task, first = TASKS[data], {"digits-pairs": "map", "digits-angle": "r2"}[data]
    book = Book(books / data)
    assert book.plan.task == task
    assert book.plan.teachers[0].accuracy <= 1
    # The task comes from the book, and the data set too where that is whole.
    assert learn(books / data, tmp_path / "run", "--data.limit", "60", "--json") == 0
    learned = last_json()
    assert first in learned["metrics"]
    assert learned["teacher_forwards"] == 0
    assert json.loads((tmp_path / "run" / "options.json").read_text())["task"] == task
    student = ["--student", "digits-small", "--student.weights", learned["weights"], "--latency", "false"]
    against = ["--teacher", "digits-large", "--teacher.weights", str(teachers[data])]
    options = ["--data", data, "--data.limit", "60", "--task", task, "--replicates", "20"]
    assert main(["evaluate", *student, *options, *against, "--json"]) == 0
    table = last_json()
    assert table["task"] == task
    assert table["metrics"][first]["low"] <= table["metrics"][first]["value"]
    assert {"digits-pairs": "teacher_kl", "digits-angle": "teacher_rmse"}[data] in table["metrics"]
    assert main(["evaluate", *student, *options]) == 0
    shown = capsys.readouterr().out
    assert first in shown
    assert {"digits-pairs": "Average precision by class: 0 0", "digits-angle": "R2 by class: angle"}[data] in shown


@pytest.mark.parametrize("data", sorted(TASKS))
def test_a_book_is_compared_with_as_its_teacher_is(books, teachers, tmp_path, data, last_json):
    student = weights_of(tmp_path / "s.safetensors", "digits-small", len(Book(books / data).plan.class_names))
    common = ["evaluate", "--student", "digits-small", "--student.weights", str(student), "--latency", "false"]
    common += ["--data", data, "--data.limit", "60", "--data.split", "train", "--replicates", "0", "--json"]
    assert main([*common, "--book", str(books / data)]) == 0
    stored = last_json()
    against = ["--teacher", "digits-large", "--teacher.weights", str(teachers[data]), "--task", TASKS[data]]
    assert main([*common, *against]) == 0
    live = last_json()
    assert stored["task"] == live["task"] == TASKS[data]
    for name, entry in live["metrics"].items():
        assert stored["metrics"][name]["value"] == pytest.approx(entry["value"], rel=2e-3, abs=1e-3), name


def test_who_gives_a_variance_is_found_out(teachers, tmp_path, last_json):
    spread = ["--student", f"{OWN}spread", *PREPARE]
    made = tmp_path / "spread"
    prepare = ["--teacher.mean", "[0.3]", "--teacher.std", "[0.3]"]
    assert make(teachers, "digits-angle", made, *prepare, network=f"{OWN}spread", weights=teachers["spread"]) == 0
    assert {"mean", "variance"} <= set(Book(made).fields)
    last = {}
    for name, more in {
        "teacher": [str(made), *LIMIT],
        "both": [str(made), *LIMIT, *spread],
        "labels": ["--data", "digits-angle", "--data.limit", "60", "--task", "regression", "--method", "supervised"],
    }.items():
        more += spread if name == "labels" else []
        given = ["learn", *more, *([] if "--student" in more else ["--student", "digits-small"])]
        assert main([*given, *QUICK, "--out", str(tmp_path / name), "--json"]) == 0
        assert last_json()["notes"] == []
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        last[name] = json.loads(lines[-1])
    assert "train/squared_error" in last["teacher"]
    assert "val/nll" not in last["teacher"]
    for name in ("both", "labels"):
        assert "train/gaussian_nll" in last[name]
        assert "val/nll" in last[name]


def test_a_variance_that_nobody_teaches_is_noted(books, tmp_path, last_json):
    spread = ["--student", f"{OWN}spread", *PREPARE]
    assert (
        main(["learn", str(books / "digits-angle"), *LIMIT, *spread, *QUICK, "--out", str(tmp_path / "r"), "--json"])
        == 0
    )
    assert last_json()["notes"] == ["the teacher gives no variance, so that the student's is not learnt."]


def test_a_live_teacher_of_numbers_and_few_labels(teachers, tmp_path, last_json):
    data = ["--data", "digits-angle", "--data.limit", "60", "--task", "regression", "--label_fraction", "0.2"]
    teacher = ["--teacher", f"{OWN}spread", "--teacher.weights", str(teachers["spread"])]
    prepare = ["--teacher.mean", "[0.3]", "--teacher.std", "[0.3]"]
    given = ["learn", "--student", "digits-small", *data, *teacher, *prepare, *QUICK]
    assert main([*given, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert last_json()["teacher_forwards"] == 2 * 60


def test_own_data_with_numbers(tmp_path, last_json):
    weights = weights_of(tmp_path / "t.safetensors", "digits-large", 1)
    teacher = ["--teacher", "digits-large", "--teacher.weights", str(weights)]
    given = ["--data", f"{OWN}Angles", *teacher, "--views", "none", "--task", "regression", "--batch_size", "16"]
    assert main(["make", *given, "--out", str(tmp_path / "book"), "--json"]) == 0
    assert last_json()["records"] == 60
    more = ["--data", f"{OWN}Angles", "--validate_on", "", "--json"]
    assert learn(tmp_path / "book", tmp_path / "run", *more) == 0
    assert last_json()["epochs"] == 2
    student = ["--student", "digits-small", "--student.weights", str(tmp_path / "run" / "student.safetensors")]
    options = ["--task", "regression", "--latency", "false", "--replicates", "5", "--json"]
    assert main(["evaluate", *student, "--data", f"{OWN}Known", *options]) == 0
    assert last_json()["class_names"] == ["turn"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "--data", "digits-pairs"], r"Expected `labels` to be one class a sample, .*Use task multi-label"),
        (["make", "--data", "digits", "--task", "multi-label"], r"Expected `labels` to be \[samples, 10\]"),
        (
            ["make", "--data", "digits-pairs", "--task", "regression"],
            r"Expected `labels` to be floating \[samples, 10\]",
        ),
        (
            ["make", "--data", "digits-pairs", "--task", "multi-labels"],
            r"Unknown task 'multi-labels'\. Nearest: multi-label",
        ),
        (["make", "--data", f"{OWN}halves", "--task", "multi-label"], r"Expected `label` to be 0, 1, or -1"),
    ],
)
def test_labels_of_another_task_are_refused_in_one_line(teachers, tmp_path, words, message, capsys):
    more = [
        "--teacher",
        "digits-large",
        "--teacher.weights",
        str(teachers["digits-pairs"]),
        "--out",
        str(tmp_path / "b"),
    ]
    assert main([*words, *more]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line


def test_refusals_of_books_and_methods(books, teachers, tmp_path, capsys):
    def line():
        (found,) = capsys.readouterr().err.strip().splitlines()
        return found

    assert learn(books / "digits-pairs", tmp_path / "a", "--task", "classification") == 2
    assert "label" in line()
    assert learn(books / "digits-angle", tmp_path / "b", "--method", "dkd") == 2
    assert "to be one that method dkd serves (classification, segmentation)" in line()
    one = json.dumps({"name": "digits-large", "weights": str(teachers["digits-angle"])})
    several = ["--teachers", f"[{one}, {one}]", "--data", "digits-angle", "--task", "regression"]
    assert main(["make", *several, "--data.limit", "20", "--out", str(tmp_path / "c")]) == 2
    assert "Expected `teachers` to be one, got 2 (task regression" in line()
    assert not (tmp_path / "c.parts").exists()
    pairs = make(teachers, "digits-pairs", tmp_path / "d", "--codec", "top_k", "--codec.k", "3")
    assert pairs == 2
    assert "to be one that keeps every value, got 'top_k' (task multi-label" in line()
    assert main(["learn", f"{books / 'digits-angle'},{books / 'digits-angle'}", "--student", "digits-small"]) == 2
    assert "knowledge of `logits`" in line()


def test_a_book_of_a_task_of_ones_own_is_not_learned_from_by_name():
    stored = SimpleNamespace(book=SimpleNamespace(plan=SimpleNamespace(task="own"), path="my-book"))
    with pytest.raises(
        ConfigError, match=r"`task` to be one of causal-lm, .*, got 'own' \(my-book\)\. Learn from it in"
    ):
        task_name("", stored)
    assert task_name("regression", stored) == "regression"
    assert task_name("", None) == "classification"


def test_a_network_is_asked_once_and_left_as_it_was():
    network = create_network(f"{OWN}spread", n_classes=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task = build_task("regression", SimpleNamespace(class_names=("angle",)))
    assert says_variance(task, network.train(), [(torch.rand(1, 8, 8), 0.5)])
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not says_variance(build_task("classification", SimpleNamespace(class_names=("a", "b"))), network, [])
    found = {
        (teacher, student): with_variance(task, teacher=teacher, student=student).variance
        for teacher in (None, False, True)
        for student in (False, True)
    }
    assert found == {
        (None, False): "nobody",
        (None, True): "both",
        (False, False): "nobody",
        (False, True): "nobody",
        (True, False): "teacher",
        (True, True): "both",
    }
    assert isinstance(task, Regression)
