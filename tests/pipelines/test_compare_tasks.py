"""Sweeps of several labels and of numbers: the task's own metrics, who is refused before anything starts, which way is better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score
from tests.pipelines.compare_books import LIMIT, QUICK, TARGETS, books, target_books

from bookkd.core.errors import BookKDError
from bookkd.evaluation import difference_of
from bookkd.learning import Learner, Training, learn, predictions_of
from bookkd.pipelines.compare import run_sweep, sweep_of
from bookkd.pipelines.compare.arms import expand
from bookkd.pipelines.compare.tables import orthogonality
from bookkd.pipelines.options import NetworkOptions
from bookkd.pipelines.samples import hold_out
from bookkd.report import RunRecord, find_runs, numbers_of, render
from bookkd.tasks import Regression
from bookkd.views import Views
from bookkd.zoo import load_weights, open_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {task: target_books(tmp_path_factory.mktemp(task), task) for task in TARGETS}


def document(task, /, **changes):
    found = {
        "data": {"name": TARGETS[task][0], "limit": LIMIT},
        "students": "digits-small",
        "methods": ["supervised", "vanilla-kd"],
        "training": QUICK,
        "seeds": 2,
        "replicates": 20,
        "latency": False,
    }
    return {**found, **changes}


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    """One sweep a task: several labels from two books together, whose task is taken from the first, numbers from one."""
    labels, numbers = made["multi-label"], made["regression"]
    tests = [str(labels["test"]), str(labels["test-two"])]
    sources = {
        "multi-label": {"both": {"paths": [str(labels["one"]), str(labels["two"])], "test": tests}},
        "regression": {"one": {"paths": str(numbers["one"]), "test": str(numbers["test"])}},
    }
    found = {}
    for task in TARGETS:
        out = tmp_path_factory.mktemp("out")
        found[task] = out, run_sweep(sweep_of(document(task, books=sources[task])), out, say=lambda line: None)
    return found


@pytest.mark.parametrize("task", TARGETS)
def test_a_sweep_is_of_the_tasks_own_metrics(done, task):
    out, result = done[task]
    metric, beside = {"multi-label": ("map", ["micro_f1", "ece"]), "regression": ("r2", ["rmse", "mae"])}[task]
    assert (result["task"], result["metric"], result["beside"], result["failed"]) == (task, metric, beside, [])
    records = {(run.record.arm, run.record.seed): run.record for run in find_runs([out])}
    for row in result["arms"]:
        for key in (metric, *beside):
            values = [records[row["arm"], seed].metric(key) for seed in (0, 1)]
            assert row[key]["mean"] == pytest.approx(np.mean(values))
    alone, taught = result["arms"]
    by_seed = [{seed: records[row["arm"], seed].metric(metric) for seed in (0, 1)} for row in (taught, alone)]
    assert taught["difference"]["mean"] == pytest.approx(difference_of(*by_seed, "x").mean)
    for record in records.values():
        assert record.task == task
        assert record.data["train_samples"] == LIMIT - LIMIT // 10
        assert (record.calibration, record.confusion, record.per_class_recall) == ({}, {}, ())
        assert len(record.per_class["average_precision" if task == "multi-label" else "rmse"]) == TARGETS[task][1]
        assert record.configuration["task"] == task
        # Against the book of the test split, where there is a teacher.
        against = "agreement" if task == "multi-label" else "teacher_rmse"
        assert (against in record.metrics) == bool(record.teachers)


@pytest.mark.parametrize("task", TARGETS)
def test_the_report_reads_it(done, task):
    out, result = done[task]
    numbers = numbers_of(find_runs([out]))
    assert numbers.task == task
    shown = {row.arm: row.figures[result["metric"]].mean for row in numbers.rows}
    assert shown == {row["arm"]: pytest.approx(row[result["metric"]]["mean"]) for row in result["arms"]}
    differences = [row.differences[result["metric"]].mean for row in numbers.rows if row.differences]
    assert differences == [pytest.approx(result["arms"][1]["difference"]["mean"])]
    assert f"The task is {task}" in render(numbers, "md")


@pytest.mark.parametrize("task", TARGETS)
def test_the_metric_is_that_of_the_weights_that_were_kept(done, task):
    out, _ = done[task]
    data, width = TARGETS[task]
    test = open_dataset(data, split="test")
    (folder,) = {path for path in out.rglob("seed-1") if path.parent.name.startswith("vanilla")}
    network, preprocess = NetworkOptions("digits-small").build(width, role="student")
    load_weights(network, folder / "student.safetensors")
    learner = Learner(network, Regression(("a",)) if width == 1 else _labels(test), preprocess=preprocess)
    said, labels = predictions_of(learner, test), np.asarray(test.labels)
    if width == 1:
        wanted = r2_score(labels, said.fields["mean"].numpy())
    else:
        wanted = average_precision_score(labels, said.fields["logits"].numpy(), average="macro")
    record = RunRecord.load(folder)
    assert record.metric("r2" if width == 1 else "map") == pytest.approx(wanted, abs=1e-6)


def _labels(dataset):
    from bookkd.tasks import MultiLabel

    return MultiLabel(dataset.class_names)


def test_the_teachers_of_several_labels_are_one_by_their_mean_probability(made, done, tmp_path):
    """Agreement with two live teachers is that with the mean of their sigmoids."""
    folder = made["multi-label"]["one"].parent
    networks = [{"name": "digits-large", "weights": str(folder / f"{name}.safetensors")} for name in ("one", "two")]
    given = document("multi-label", task="multi-label", seeds=1, methods="vanilla-kd", teachers={"live": networks})
    result = run_sweep(sweep_of(given), tmp_path, say=lambda line: None)
    assert result["failed"] == []
    (run,) = find_runs([tmp_path])
    test = open_dataset("digits-pairs", split="test")
    share = []
    for options in [*networks, None]:
        path = next(tmp_path.rglob("student.safetensors")) if options is None else options["weights"]
        network, preprocess = NetworkOptions("digits-small" if options is None else "digits-large").build(10, role="x")
        load_weights(network, path)
        fields = predictions_of(Learner(network, _labels(test), preprocess=preprocess), test).fields
        share.append(1 / (1 + np.exp(-fields["logits"].double().numpy())))
    same = ((share[0] + share[1]) / 2 > 0.5) == (share[2] > 0.5)
    assert run.record.metric("agreement") == pytest.approx(same.mean(), abs=1e-9)
    assert [teacher["split"] for teacher in run.record.teachers] == ["test", "test"]


def test_networks_that_give_a_variance_are_found_out(tmp_path, made):
    students = ["digits-small", {"name": "tests.cli.user_targets:spread", "mean": [0.3], "std": [0.3]}]
    given = document("regression", task="regression", students=students, methods="supervised", seeds=1)
    given["training"] = {**QUICK, "lr": 0.001}
    assert run_sweep(sweep_of(given), tmp_path, say=lambda line: None)["failed"] == []
    found = {run.record.student["name"]: "nll" in run.record.metrics for run in find_runs([tmp_path])}
    assert found == {"digits-small": False, "tests.cli.user_targets:spread": True}


def test_few_labels_are_hidden_whole_samples(made, tmp_path):
    given = document("regression", task="regression", methods="supervised", seeds=1, label_fraction=0.2)
    result = run_sweep(sweep_of(given), tmp_path, say=lambda line: None)
    assert result["failed"] == []
    (few,) = find_runs([tmp_path])
    run_sweep(sweep_of({**given, "label_fraction": 1.0}), tmp_path / "all", say=lambda line: None)
    (every,) = find_runs([tmp_path / "all"])
    assert few.record.weights != every.record.weights
    assert few.record.data["label_fraction"] == 0.2


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("regression", {"methods": "dkd", "books": "one"}, "Expected `task` to be one that method dkd serves (class"),
        ("multi-label", {"methods": "dist", "books": "one"}, "got 'multi-label' (sweep)"),
        ("regression", {"books": ["one", "two"]}, "which has no ensembles, got 2 together"),
        ("multi-label", {"books": "one", "task": "regression"}, "Expected `labels` to be floating [samples, 10]"),
        ("multi-label", {"books": "one", "task": "numbers"}, "Unknown task 'numbers' (sweep). Nearest:"),
        ("multi-label", {"methods": "supervised", "books": None}, "Use task multi-label or regression"),
    ],
)
def test_what_a_task_does_not_allow_is_refused_before_anything_starts(made, tmp_path, task, changes, message):
    given = document(task, **changes)
    names = given.pop("books")
    if names:
        paths = [str(made[task][name]) for name in ([names] if isinstance(names, str) else names)]
        given["books"] = {"x": paths}
    with pytest.raises(BookKDError, match=re.escape(message)) as caught:
        run_sweep(sweep_of(given), tmp_path / "out", say=lambda line: None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("run.json"))


def test_books_of_the_test_split_are_by_all_teachers_of_the_training_book(made, tmp_path):
    numbers = made["regression"]
    for paths, test in ((["one"], "test-two"), (["two"], "test")):
        books = {"x": {"paths": [str(numbers[name]) for name in paths], "test": str(numbers[test])}}
        with pytest.raises(
            BookKDError, match="`test books` to be by the teachers of the books, got none by digits-large"
        ):
            run_sweep(sweep_of(document("regression", books=books)), tmp_path / "out", say=lambda line: None)
    labels = made["multi-label"]
    books = {"x": {"paths": [str(labels["one"]), str(labels["two"])], "test": str(labels["test"])}}
    with pytest.raises(BookKDError, match="by the teachers of the books, got none by"):
        run_sweep(sweep_of(document("multi-label", books=books)), tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_numbers_that_is_worse_than_their_mean_is_shown_as_it_is(made, tmp_path):
    """Untrained: its explained variance is below 0, in the record as in the book of `make`."""
    weights = made["regression"]["one"].with_name("one.safetensors")
    live = {"live": {"name": "digits-large", "weights": str(weights)}}
    given = document("regression", task="regression", methods="vanilla-kd", teachers=live, seeds=1)
    run_sweep(sweep_of(given), tmp_path, say=lambda line: None)
    (run,) = find_runs([tmp_path])
    test = open_dataset("digits-angle", split="test")
    network, preprocess = NetworkOptions("digits-large").build(1, role="teacher")
    load_weights(network, weights)
    said = predictions_of(Learner(network, Regression(("a",)), preprocess=preprocess), test).fields["mean"].numpy()
    assert run.record.teachers[0]["accuracy"] == pytest.approx(r2_score(np.asarray(test.labels), said), abs=1e-6)
    assert run.record.teachers[0]["accuracy"] < 0


def test_books_of_two_tasks_are_not_compared(made, tmp_path):
    both = {"pairs": str(made["multi-label"]["one"]), "angle": str(made["regression"]["one"])}
    with pytest.raises(BookKDError, match=r"of task multi-label, got 'regression' \(.*one\). Pass --task regression"):
        run_sweep(sweep_of(document("multi-label", books=both)), tmp_path, say=lambda line: None)


def test_numbers_are_tuned_on_what_is_held_out(made, tmp_path):
    pytest.importorskip("optuna")
    from bookkd.pipelines.compare import spaces_of

    given = document("regression", methods="vanilla-kd", seeds=1, books={"one": str(made["regression"]["one"])})
    words = spaces_of("method.kd_weight=0.1,0.9")
    (found,) = run_sweep(sweep_of(given), tmp_path, say=lambda line: None, spaces=words, trials=2)["tuned"]
    assert found["best"]["score"] == max(trial["score"] for trial in found["trials"])


def test_an_error_is_tuned_down(tmp_path):
    pytest.importorskip("optuna")
    from bookkd.pipelines.compare import spaces_of
    from bookkd.pipelines.compare.arms import Arm
    from bookkd.pipelines.compare.document import method_choice
    from bookkd.pipelines.compare.tuning import tune

    arm = Arm(method_choice("vanilla-kd"), NetworkOptions("digits-small"), None, None, None, Training(), 1.0)

    def error(given, folder):
        return abs(given.method.build().temperature - 9) + 0.5

    found = tune(
        arm, spaces_of("method.temperature=1:20"), error, tmp_path, trials=25, seed=0, lower_is_better=True, say=len
    )
    assert found.best.score == min(trial.score for trial in found.trials)
    assert abs(found.best.values["method.temperature"] - 9) < 1


@dataclass(frozen=True)
class ByError(Regression):
    """A task that is ranked by its error."""

    primary_metric: ClassVar[str] = "rmse"


def test_early_stopping_keeps_the_epoch_of_least_error():
    train = open_dataset("digits-angle", limit=96)
    network, preprocess = NetworkOptions("digits-small").build(1, role="student")
    training = Training(epochs=6, batch_size=16, lr=0.2, accelerator="cpu", patience=6)
    task, views = ByError(("angle",)), Views(None, 1)
    learned = learn(network, train, views, task=task, preprocess=preprocess, training=training, validation=train)
    errors = [epoch["val/rmse"] for epoch in learned.history]
    assert learned.epoch == 1 + int(np.argmin(errors))
    assert np.argmin(errors) != np.argmax(errors)


def test_of_an_error_less_is_better():
    high, low = {0: 1.0, 1: 1.2, 2: 1.1}, {0: 0.5, 1: 0.6, 2: 0.55}
    assert difference_of(low, high, "x", lower_is_better=True).better is True
    assert difference_of(high, low, "x", lower_is_better=True).better is False
    assert difference_of(low, high, "x").better is False
    assert difference_of({0: 1.0, 1: 2.0}, {0: 1.1, 1: 1.5}, "x").better is None


def test_gains_in_an_error_are_what_it_falls_by():
    given = {"students": ["digits-small", "resnet8"], "methods": ["supervised", "vanilla-kd"], "books": {"a": "a"}}
    arms = expand(sweep_of(given), Regression(("a",)))
    # Distillation takes 1 off, the other student 2, both 3.
    quality = [{seed: value + 0.1 * seed for seed in range(3)} for value in (5.0, 4.0, 3.0, 2.0)]
    (found,) = orthogonality(arms, quality, "rmse")
    interaction = found["interaction"]
    gains = [interaction[key] for key in ("distillation", "partner", "joint", "interaction")]
    assert gains == pytest.approx([1, 2, 3, 0])
    assert found["interaction_log_odds"] is None


def test_what_is_held_out_of_labels_without_classes():
    numbers = np.array([np.nan, *np.linspace(0, 1, 20)])
    held = hold_out(numbers, 0.25)
    assert len(held) == 5
    assert 0 not in held
    assert set(held) <= set(hold_out(numbers, 0.5))
    vectors = np.zeros((21, 3), np.int64)
    vectors[0], vectors[1, 0] = -1, -1
    assert 0 not in hold_out(vectors, 1.0)
    assert len(hold_out(vectors, 1.0)) == 20


def test_a_folder_of_before_there_were_tasks_is_gone_on_with(tmp_path):
    """What a run of classification says of itself has no entry that it did not have."""
    one = books(tmp_path)["one"]
    given = {
        **document("regression"),
        "data": {"name": "digits", "limit": LIMIT},
        "books": {"one": str(one)},
        "seeds": 1,
    }
    run_sweep(sweep_of({**given, "methods": "supervised"}), tmp_path / "out", say=lambda line: None)
    (run,) = find_runs([tmp_path / "out"])
    assert "task" not in run.record.configuration
    assert run.record.task == "classification"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 9.0}, "`temperature` to be 4.0 for numbers, got 9.0"),
        ({"t_squared": False}, "`t_squared` to be True"),
    ],
)
def test_options_that_soften_mean_nothing_to_numbers(made, tmp_path, options, said):
    books = {"one": str(made["regression"]["one"])}
    given = document("regression", methods=[{"name": "vanilla-kd", "options": options}], books=books)
    with pytest.raises(BookKDError, match=re.escape(said)):
        run_sweep(sweep_of(given), tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()
