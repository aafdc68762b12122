"""From teacher to student with several labels a sample, and with numbers: both doors, books as live teachers, the metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.learning.digits import assert_equal, to_float
from torch import nn

from bookkd.book import Dense, Int8, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, FidelityError
from bookkd.core.schedules import Clock
from bookkd.knowledge import Ensemble, LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Learner, Run, Step, Training, learn, make_groups, measure, predictions_of, visible_labels
from bookkd.learning.configuration import check_task
from bookkd.making import bake, make, merge
from bookkd.methods import DKD, BookKD, SelfDistillation, Supervised, TfKDSelf, VanillaKD
from bookkd.tasks import CTC, CausalLM, Classification, MultiLabel, Regression
from bookkd.views import Replay, Views
from bookkd.zoo import open_dataset

SETS = {"multi-label": "digits-pairs", "regression": "digits-angle"}
TRAIN = {task: open_dataset(name, limit=48) for task, name in SETS.items()}
TEST = {task: open_dataset(name, split="test", limit=40) for task, name in SETS.items()}
TASKS = {
    "multi-label": MultiLabel(TRAIN["multi-label"].class_names),
    "regression": Regression(TRAIN["regression"].class_names),
    "teacher's variance": Regression(TRAIN["regression"].class_names, variance="teacher"),
    "both variances": Regression(TRAIN["regression"].class_names, variance="both"),
}


class Head(nn.Module):
    """A small network; with `spread` it gives mean and variance."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int = 12, spread: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh())
        self.mean = nn.Linear(hidden, outputs)
        self.spread = nn.Linear(hidden, outputs) if spread else None

    def forward(self, x):
        found = self.body(x)
        if self.spread is None:
            return self.mean(found)
        return self.mean(found), nn.functional.softplus(self.spread(found)) + 1e-3


def network(name, seed, *, spread=False, hidden=12):
    task = TASKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Head(TRAIN[task.name][0][0].numel(), len(task.class_names), hidden=hidden, spread=spread)


def teacher(name, seed=0):
    return Teacher(network(name, seed, spread="variance" in name, hidden=20), to_float, name="teacher")


def student(name, seed=1):
    return network(name, seed, spread=name == "both variances")


def views():
    # A turn would change what angle is right.
    return Views(None, n_views=1, name="none")


def training(**changes):
    return Training(**{"epochs": 2, "batch_size": 8, "lr": 0.05, "accelerator": "cpu", "seed": 3, **changes})


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    return {
        name: make(
            folder / f"{place}", teacher(name), TRAIN[task.name], views(), task=task, codec=Dense(), batch_size=16
        )
        for place, (name, task) in enumerate(TASKS.items())
    }


def run(name, network=None, **options):
    task = TASKS[name]
    defaults = {"task": task, "preprocess": to_float, "training": training(), "method": VanillaKD()}
    net = student(name) if network is None else network
    return learn(net, TRAIN[task.name], options.pop("views", views()), **{**defaults, **options})


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_a_book_says_what_the_teacher_says(self, name, books):
        task, book = TASKS[name], books[name]
        assert book.plan.task == task.name
        assert book.plan.class_names == task.class_names
        assert {"logits", "mean", "variance"} & set(book.fields) == set(task.of_teacher().field_infos)
        groups = make_groups(Replay(TRAIN[task.name], views()), training(), samples=48, n_views=1)
        learner = Learner(student(name), task, preprocess=to_float)
        for batch in next(iter(groups)):
            losses = [
                float(Step(VanillaKD().objective(task), task, knowledge).loss(learner, batch, Clock()).loss.detach())
                for knowledge in (StoredKnowledge(book), LiveKnowledge(teacher(name), task))
            ]
            assert losses[0] == pytest.approx(losses[1], rel=1e-3)
            assert losses[0] > 0

    def test_a_student_that_is_the_teacher_has_no_loss(self, name):
        task, speaker = TASKS[name], teacher(name)
        copy = Learner(speaker.network, task, preprocess=to_float)
        if name == "teacher's variance":
            copy = Learner(nn.Sequential(speaker.network, First()), task, preprocess=to_float)
        objective = VanillaKD(ce_weight=0.0).objective(task)
        step = Step(objective, task, LiveKnowledge(speaker, task))
        (batch,) = next(iter(make_groups(Replay(TRAIN[task.name], views()), training(), samples=48, n_views=1)))
        copy.requires_grad_()
        loss = step.loss(copy, batch, Clock()).loss
        loss.backward()
        assert abs(float(loss.detach())) < 1e-6
        gradients = [parameter.grad for parameter in copy.parameters() if parameter.grad is not None]
        assert gradients
        assert all(float(gradient.abs().max()) < 1e-5 for gradient in gradients)

    def test_doors_reach_the_same_weights(self, name, books):
        options = {"knowledge": StoredKnowledge(books[name]), "validation": TEST[TASKS[name].name]}
        learned = [run(name, door=door, **options) for door in ("plain", "lightning")]
        assert_equal(learned[0].student, learned[1].student, 1e-6)
        assert learned[0].metrics == pytest.approx(learned[1].metrics, abs=1e-5)
        assert TASKS[name].primary_metric in learned[0].metrics

    def test_learning_comes_nearer_to_the_teacher(self, name, books):
        task, data = TASKS[name], TRAIN[TASKS[name].name]
        settings = training(epochs=25, lr=0.01, optimizer="adamw")
        learned = run(name, knowledge=StoredKnowledge(books[name]), training=settings, method=VanillaKD(ce_weight=0.0))
        assert learned.history[-1]["train/soft_target"] < 0.5 * learned.history[0]["train/soft_target"]
        theirs = predictions_of(Learner(teacher(name).network, task.of_teacher(), preprocess=to_float), data)
        found = [
            measure(task, predictions_of(Learner(net, task, preprocess=to_float), data), teacher=theirs.fields)
            for net in (student(name), learned.student)
        ]
        closeness = "teacher_kl" if task.name == "multi-label" else "teacher_rmse"
        before, after = (each.metrics[closeness].value for each in found)
        assert after < before
        assert found[1].metrics[closeness].low <= after <= found[1].metrics[closeness].high

    def test_labels_alone_and_few_of_them(self, name):
        labels = visible_labels(np.asarray(TRAIN[TASKS[name].name].labels), 0.25, seed=0)
        settings = training(epochs=20, lr=0.01, optimizer="adamw")
        learned = run(name, method=Supervised(), labels=labels, training=settings)
        term = next(key for key in learned.history[0] if key.startswith("train/") and key != "train/loss")
        assert learned.history[-1][term] < learned.history[0][term]

    def test_a_run_remembers_its_labels(self, name, tmp_path):
        data = TRAIN[TASKS[name].name]
        labels = np.array(data.labels)
        run(name, method=Supervised(), out=tmp_path, labels=labels)
        assert run(name, method=Supervised(), out=tmp_path, labels=labels).history
        changed = labels.copy()
        changed[0, 0] = 0.25 if labels.dtype.kind == "f" else 1 - labels[0, 0]
        with pytest.raises(ConfigError, match="labels"):
            run(name, method=Supervised(), out=tmp_path, labels=changed)

    def test_labels_that_are_all_hidden_are_refused(self, name):
        labels = np.array(TRAIN[TASKS[name].name].labels)
        labels[:] = np.nan if labels.dtype.kind == "f" else -1
        with pytest.raises(ConfigError, match="known for one sample at least"):
            run(name, method=Supervised(), labels=labels)

    def test_a_sparse_book_is_refused(self, name, tmp_path):
        task = TASKS[name]
        codec = TopK(k=1, temperatures=(1.0, 4.0))
        with pytest.raises(FidelityError, match=r"`codec` to be one that keeps every value, got .*dense or int8"):
            make(tmp_path / "b", teacher(name), TRAIN[task.name], views(), task=task, codec=codec, batch_size=16)

    def test_bytes_for_every_value(self, name, tmp_path):
        task = TASKS[name]
        book = make(tmp_path / "b", teacher(name), TRAIN[task.name], views(), task=task, codec=Int8(), batch_size=16)
        run(name, knowledge=StoredKnowledge(book))
        if "variance" in book.fields:
            assert book.plan.fields["variance"].codec == Dense("float32")

    def test_a_book_of_another_task_is_refused(self, name, books):
        names = TASKS[name].class_names
        task = Classification(names) if len(names) > 1 else MultiLabel(names)
        with pytest.raises((BookMismatchError, ConfigError), match=r"task|field"):
            learn(
                student(name), TRAIN[TASKS[name].name], views(), task=task, knowledge=StoredKnowledge(books[name]),
                method=VanillaKD(ce_weight=0.0), training=training(),
            )  # fmt: skip


class First(nn.Module):
    """The mean alone of (mean, variance)."""

    def forward(self, said):
        return said[0]


def test_fidelity_of_several_labels_is_that_of_each_class(books):
    book = books["multi-label"]
    found = book.fidelity["logits"]
    assert found["n"] == 48 * 10
    assert found["temperatures"]["4"]["mean"] < 1e-5
    data = TRAIN["multi-label"]
    said = book.read(np.arange(48), np.zeros(48, dtype=np.int64), ["logits"])["logits"].astype(np.float64)
    with torch.no_grad():
        exact = teacher("multi-label").network(to_float(torch.stack([image for image, _ in data]))).double().numpy()
    assert found["top1_agreement"] == pytest.approx(((said > 0) == (exact > 0)).mean(), abs=1e-12)


@pytest.mark.parametrize("method", [BookKD(), TfKDSelf(), SelfDistillation()], ids=lambda method: method.name)
def test_methods_on_logits_serve_several_labels(books, method):
    learned = run("multi-label", knowledge=StoredKnowledge(books["multi-label"]), method=method)
    assert np.isfinite(learned.history[-1]["train/loss"])


def test_several_teachers_of_several_labels(books, tmp_path):
    task, data = TASKS["multi-label"], TRAIN["multi-label"]
    other = make(tmp_path / "other", teacher("multi-label", 5), data, views(), task=task, batch_size=16)
    merged = merge(tmp_path / "merged", [books["multi-label"], other])
    both = Ensemble([StoredKnowledge(books["multi-label"]), StoredKnowledge(other)])
    learned = [run("multi-label", knowledge=each) for each in (both, StoredKnowledge(merged))]
    assert_equal(learned[0].student, learned[1].student, 1e-6)
    with pytest.raises(ConfigError, match=r"`books` to be of classification, to bake, got .*combined at read time"):
        bake(tmp_path / "baked", [other], transforms=(), temperature=4.0)


def test_several_teachers_of_numbers_are_refused(books, tmp_path):
    with pytest.raises(ConfigError, match="knowledge of `logits`, got 'mean'"):
        Ensemble([StoredKnowledge(books["regression"])] * 2)
    with pytest.raises(ConfigError, match="logits"):
        merge(tmp_path / "merged", [books["regression"]] * 2)


def test_a_method_of_classes_refuses_numbers(books):
    with pytest.raises(
        ConfigError, match=r"`task` to be one that method dkd serves \(classification, segmentation\), got .*vanilla-kd"
    ):
        run("regression", knowledge=StoredKnowledge(books["regression"]), method=DKD())


def test_advice_names_methods_that_serve_the_task():
    for task, some in ((CTC(("-", "a")), "cons-kd, ctc-kd"), (CausalLM(4), "llm-kd")):
        with pytest.raises(ConfigError, match=f"Use one of .*{some}") as found:
            check_task(DKD(), task, "here")
        named = str(found.value).partition("Use one of ")[2].rstrip(".").split(", ")
        assert "dkd" not in named
        assert ("vanilla-kd" in named) == (task.name != "ctc")


def test_a_book_without_the_variance_that_is_asked_for_is_refused(books):
    with pytest.raises(ConfigError, match="to have field 'variance' for method vanilla-kd"):
        run("teacher's variance", knowledge=StoredKnowledge(books["regression"]))


def test_views_in_memory_give_the_same(books):
    for name in ("multi-label", "regression"):
        learned = [
            run(name, knowledge=StoredKnowledge(books[name]), training=training(cache_views=cached))
            for cached in (False, True)
        ]
        assert_equal(learned[0].student, learned[1].student)


def test_patience_stops_at_the_best(books):
    learned = run(
        "regression",
        knowledge=StoredKnowledge(books["regression"]),
        validation=TEST["regression"],
        training=training(epochs=6, patience=1, lr=0.5),
    )
    scores = [record["val/r2"] for record in learned.history]
    assert learned.metrics["r2"] == max(scores)


class Unlabelled:
    """The images of a set, without labels."""

    def __init__(self, whole):
        self.whole, self.class_names, self.name = whole, whole.class_names, whole.name

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        return self.whole[index][0], None


@pytest.mark.parametrize("name", TASKS)
def test_images_without_labels_learn_from_the_book(name, tmp_path):
    task, data = TASKS[name], Unlabelled(TRAIN[TASKS[name].name])
    book = make(tmp_path / "book", teacher(name), data, views(), task=task, batch_size=16)
    learned = learn(
        student(name), data, views(), task=task, knowledge=StoredKnowledge(book), method=VanillaKD(),
        preprocess=to_float, training=training(),
    )  # fmt: skip
    soft = 0.9 * learned.history[-1]["train/soft_target"]
    assert learned.history[-1]["train/loss"] == pytest.approx(soft, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_half_precision_in_training(name, books):
    settings = training(precision="bf16-mixed")
    learned = run(name, knowledge=StoredKnowledge(books[name]), training=settings, door="lightning")
    exact = run(name, knowledge=StoredKnowledge(books[name]), door="lightning")
    assert learned.history[-1]["train/loss"] == pytest.approx(exact.history[-1]["train/loss"], rel=0.1)


@pytest.mark.parametrize("name", TASKS)
def test_an_interrupted_run_is_gone_on_with(name, books, tmp_path, monkeypatch):
    options = {"knowledge": StoredKnowledge(books[name]), "validation": TEST[TASKS[name].name]}
    whole = run(name, out=tmp_path / "whole", **options)
    real = Run.optimizer_step

    def failing(self, *args, **kwargs):
        if self.steps == 8:  # 48 samples in batches of 8 are 6 steps an epoch
            raise InterruptedError
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "optimizer_step", failing)
        with pytest.raises(InterruptedError):
            run(name, out=tmp_path / "cut", **options)
    gone_on = run(name, out=tmp_path / "cut", network=student(name, seed=9), **options)
    assert_equal(whole.student, gone_on.student)
    assert gone_on.metrics == whole.metrics
