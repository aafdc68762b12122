"""Methods that look inside of a teacher, and students of some of its classes, through the verbs of the program."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tests.pipelines.compare_books import DATA, QUICK, document

from bookkd.book import BookWriter, Dense, FieldPlan, Plan, TeacherInfo
from bookkd.core.errors import ConfigError
from bookkd.knowledge import NOTES, Negatives, classes_of_weights
from bookkd.learning import Training
from bookkd.methods import AT, CRD, CSKD, FitNets, Supervised, VanillaKD
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions, make_book
from bookkd.pipelines.compare.document import sweep_of
from bookkd.pipelines.compare.runner import run_sweep
from bookkd.pipelines.evaluate_student import evaluate_student
from bookkd.pipelines.learn_student import learn_student
from bookkd.pipelines.predict_cost import predict_cost
from bookkd.pipelines.rank_views import rank_views
from bookkd.report import find_runs
from bookkd.views import Views
from bookkd.zoo import create_network, fingerprint, save_weights

DEEP = {"deep": "bn3"}
STUDENT = NetworkOptions("digits-small", layers={"deep": "conv3"})
TRAINING = Training(**{**QUICK, "epochs": 1})
SOME = DataOptions(**DATA, classes="3,5,7")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A book of all classes with what the methods read inside of its teacher, and the weights of that."""
    folder = tmp_path_factory.mktemp("inside")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(create_network("digits-large", n_classes=10), folder / "one.safetensors")
    teacher = NetworkOptions("digits-large", weights=str(folder / "one.safetensors"), layers=DEEP)
    make_book(
        str(folder / "one"), data=DataOptions(**DATA), teacher=teacher, views=ViewOptions("digits", 2), batch_size=32,
        accelerator="cpu", features="features/deep", serve=["at", "crd"],
    )  # fmt: skip
    return {"one": folder / "one"}


def learnt(made, out, method, data, book="one"):
    books = ",".join(str(made[each]) for each in book.split(","))
    return learn_student(
        str(out), student=STUDENT, method=method, book=books, data=data, training=TRAINING, loggers=(), validate_on=""
    )


@pytest.mark.parametrize("data", [DataOptions(**DATA), SOME], ids=["all", "some"])
@pytest.mark.parametrize("method", [AT(), CRD(negatives=16), FitNets(layer="deep"), CSKD()], ids=lambda each: each.name)
def test_learn(made, tmp_path, monkeypatch, method, data):
    told, among = [], Negatives.among
    monkeypatch.setattr(Negatives, "among", lambda self, *given: (told.append(given), among(self, *given))[1])
    found = learnt(made, tmp_path / "run", method, data)
    width = len(data.open().class_names)
    assert (found["epochs"], found["teacher_forwards"]) == (1, 0)
    assert found["student_parameters"] == 2942 - (10 - width) * 17
    if method.name == "crd":
        dataset = data.open()
        rows = getattr(dataset, "indices", None) if data is SOME else np.arange(len(dataset))
        assert [sorted(each) for each, _ in told] == [sorted(rows)]
        assert sorted(told[0][1]) == sorted(dataset.labels)


def test_weights_say_which_classes_they_are_of(made, tmp_path):
    learnt(made, tmp_path / "run", CSKD(), SOME)
    student = replace(STUDENT, weights=str(tmp_path / "run" / "student.safetensors"))
    right = evaluate_student(student=student, data=SOME, accelerator="cpu", replicates=0, latency=False)
    assert right["samples"] == len(SOME.open())
    wish = r"`student.weights` to be of the classes {}, got 3, 5, 7 \(.*student.safetensors\)\. Pass --classes 3,5,7\."
    for classes, named in (("1,2,4", "1, 2, 4"), ("7,5,3", "7, 5, 3"), ("", ".*9")):
        with pytest.raises(ConfigError, match=wish.format(named)):
            evaluate_student(student=student, data=replace(SOME, classes=classes), accelerator="cpu")


def test_a_teacher_whose_weights_are_of_other_classes_is_refused(made, tmp_path):
    notes = {"classes": list("9876543210")}
    network = create_network("digits-large", n_classes=10)
    save_weights(network, tmp_path / "other.safetensors", {NOTES: json.dumps(notes)})
    teacher = NetworkOptions("digits-large", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(
        ConfigError, match=r"`teacher.weights` to be of the classes 0, 1, .*, got 9, 8, .* A teacher knows all classes"
    ):
        make_book(
            str(tmp_path / "book"),
            data=DataOptions(**DATA),
            teacher=teacher,
            views=ViewOptions("digits", 1),
            accelerator="cpu",
        )
    assert not (tmp_path / "book").exists()
    refused = partial(pytest.raises, ConfigError, match="`teacher.weights` to be of the classes 0, 1, .*, got 9, 8")
    views, out = ViewOptions("digits", 1), tmp_path / "run"
    with refused():
        learn_student(
            str(out), student=STUDENT, method=VanillaKD(), teacher=teacher, data=DataOptions(**DATA), views=views,
            training=TRAINING, loggers=(), validate_on="",
        )  # fmt: skip
    assert not out.exists()
    with refused():
        predict_cost(data=DataOptions(**DATA), teacher=teacher, student=STUDENT, views=views, training=TRAINING)
    with refused():
        rank_views({"digits": views}, data=DataOptions(**DATA), teacher=teacher, passes=128)
    for damaged in ([["0"]], [], "0123456789", 3):
        save_weights(network, tmp_path / "other.safetensors", {NOTES: json.dumps({"classes": damaged})})
        assert classes_of_weights(tmp_path / "other.safetensors") == ()


def test_a_book_is_asked_about_the_samples_of_these_classes_among_those_of_the_limit(tmp_path):
    """Of a book without probes, which would tell other records from these."""
    dataset = DataOptions("digits").open()
    logits = 9.0 * np.eye(10, dtype=np.float32)[np.asarray(dataset.labels)]
    plan = Plan(
        len(dataset), 1, {"logits": FieldPlan((10,), Dense())}, task="classification", data=fingerprint(dataset),
        views=Views(None, n_views=1).recipe(len(dataset)), class_names=dataset.class_names,
        teachers=(TeacherInfo(name="labels", digest="labels"),),
    )  # fmt: skip
    with BookWriter(tmp_path / "book", plan) as writer:
        for unit in writer.pending():
            writer.write(unit, {"logits": logits[unit.start : unit.stop]})
        writer.finish()
    save_weights(create_network("digits-small", n_classes=10), tmp_path / "student.safetensors")
    student = NetworkOptions("digits-small", weights=str(tmp_path / "student.safetensors"))
    found = evaluate_student(
        student=student, data=DataOptions("digits", limit=100, classes="3,5,7"), book=str(tmp_path / "book"),
        accelerator="cpu", replicates=0, latency=False,
    )  # fmt: skip
    assert found["samples"] < 100
    # The teacher says the labels.
    assert found["metrics"]["agreement"]["value"] == found["metrics"]["accuracy"]["value"]


@pytest.mark.parametrize("limit", [None, 4])
def test_masks_without_their_task_are_told_so(tmp_path, limit):
    data, student = DataOptions("shapes", limit=limit), NetworkOptions("resnet8")
    message = r"`task` to be segmentation, .* got 'classification' .* Pass --task segmentation\."
    with pytest.raises(ConfigError, match=message):
        learn_student(
            str(tmp_path / "run"), student=student, method=Supervised(), data=data, training=TRAINING, loggers=()
        )
    with pytest.raises(ConfigError, match=message):
        evaluate_student(student=student, data=data, accelerator="cpu")
    with pytest.raises(ConfigError, match=message):
        predict_cost(data=data, teacher=student, student=student, views=ViewOptions("none", 1), training=TRAINING)


def own_masks():
    """Images of a user's own, with a class at every pixel."""
    items = [(np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8)) for _ in range(4)]
    return Listed(items)


class Listed(list):
    class_names = ("ground", "sky")


def test_masks_of_a_users_own_without_their_task_are_told_so(tmp_path):
    data = DataOptions(f"{__name__}:own_masks")
    with pytest.raises(ConfigError, match=r"`task` to be segmentation, .*Pass --task segmentation\."):
        learn_student(
            str(tmp_path / "run"), student=NetworkOptions("resnet8"), method=Supervised(), data=data, training=TRAINING,
            loggers=(), validate_on="",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_several_books_are_refused_with_the_reason(made, tmp_path):
    with pytest.raises(
        ConfigError, match=r"`knowledge` to be one for method at, since features/stage1/attention is of one teacher"
    ):
        learnt(made, tmp_path / "run", AT(), DataOptions(**DATA), book="one,one")


def test_compare(made, tmp_path):
    live = {"name": "digits-large", "weights": f"{made['one']}.safetensors", "layers": DEEP}
    sweep = document(
        made, data={**DATA, "classes": "3,5,7"}, students=[{"name": "digits-small", "layers": {"deep": "conv3"}}],
        methods=[{"name": "fitnets", "layer": "deep"}, "cskd"], teachers={"live": live}, seeds=1,
        training={**QUICK, "epochs": 1},
    )  # fmt: skip
    run_sweep(sweep_of(sweep), tmp_path / "out", say=lambda line: None)
    records = [run.record for run in find_runs([tmp_path / "out"])]
    assert sorted(record.arm for record in records) == [
        f"{method} / digits-small / {source}" for method in ("cskd", "fitnets layer=deep") for source in ("live", "one")
    ]
    assert {(record.status, record.error) for record in records} == {("done", "")}
    # What the teacher scores is its word on these classes alone, by whichever way it is asked.
    network, preprocess = NetworkOptions("digits-large", weights=live["weights"]).build(10, role="teacher")
    test = DataOptions("digits", split="test", classes="3,5,7").open()
    with torch.no_grad():
        logits = network.eval()(preprocess(torch.stack([view for view, _ in test])))
    right = (logits[:, [3, 5, 7]].argmax(1).numpy() == test.labels).mean()
    assert [record.teachers[0]["accuracy"] for record in records] == pytest.approx([right] * 4)
