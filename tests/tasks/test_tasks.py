"""What every task keeps to, and what classification takes and refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tasks.cases import FIELDS, LEADING, METRICS
from tests.tasks.cases import TASKS as CASES

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError, UnknownNameError
from bookkd.core.schedules import Clock
from bookkd.learning import Learner, Step
from bookkd.losses import DenseTarget
from bookkd.objectives import Objective
from bookkd.tasks import TASKS, Classification, predict, task_class
from bookkd.zoo import open_dataset

THREE = Classification(("a", "b", "c"))


def loss_of(task, objective, fields, targets, batch):
    """The loss as the step works it out: everything as the task shows it to losses."""
    seen = task.batch(batch)
    weights = task.weights(seen)
    sums = objective.sums(task.student(fields), task.targets(targets, batch), seen, weights, Clock())
    return objective.loss(sums, objective.totals(seen, task.divisors(seen)), Clock())


def doubled(inputs):
    """What a network is given, in float64 where it is of numbers."""
    return [each.double() if each.is_floating_point() else each for each in inputs]


def test_table_and_cases_are_one():
    assert set(TASKS) == set(CASES) == set(FIELDS) == set(METRICS)


@pytest.mark.parametrize("name", sorted(TASKS))
class TestEveryTask:
    def test_names_itself(self, name):
        task, _, _ = CASES[name]()
        assert task_class(name) is type(task)
        assert task.name == name
        assert task.primary_metric == METRICS[name]
        assert task == CASES[name]()[0]
        assert hash(task) == hash(CASES[name]()[0])

    def test_fields_have_the_shapes_that_are_promised(self, name):
        task, network, batch = CASES[name]()
        fields = task.fields(network(*task.inputs(batch)), batch)
        assert {field: info.shape for field, info in task.field_infos.items()} == FIELDS[name]
        axes = LEADING.get(name, 1)
        assert {field: tuple(values.shape[axes:]) for field, values in fields.items()} == FIELDS[name]

    def test_padding_and_hidden_labels_weigh_nothing(self, name):
        task, network, batch = CASES[name]()
        objective = Objective((task.label_term(weight=1.0, label_smoothing=0.0),))
        losses = []
        for rows in (slice(None), slice(0, 3)):
            part = {key: value[rows] for key, value in batch.items()}
            losses.append(
                float(loss_of(task, objective, task.fields(network(*task.inputs(part)), part), {}, part).detach())
            )
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert losses[0] > 0

    def test_a_student_that_says_what_the_teacher_says_has_no_loss(self, name):
        task, network, batch = CASES[name]()
        fields = task.fields(network.double()(*doubled(task.inputs(batch))), batch)
        own = {key: value.detach().requires_grad_() for key, value in fields.items()}
        soft = task.soft_term(weight=1.0, temperature=2.0, t_squared=True, class_reduction="sum", soft_loss="kl")
        for other, zero in ((fields, True), ({key: value.flip(0) for key, value in fields.items()}, False)):
            targets = {key: DenseTarget(value.detach()) for key, value in other.items()}
            loss = loss_of(task, Objective((soft,)), own, targets, batch)
            slopes = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            largest = max(float(slope.abs().max()) for slope in slopes if slope is not None)
            assert (abs(float(loss.detach())) < 1e-12) == zero
            assert (largest < 1e-12) == zero

    def test_split_batches_add_up(self, name):
        task, network, batch = CASES[name]()
        step = Step(Objective((task.label_term(weight=1.0, label_smoothing=0.0),)), task)
        learner = Learner(network, task)
        parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
        totals = step.totals(parts)
        added = sum(float(step.loss(learner, part, Clock(), totals).loss.detach()) for part in parts)
        assert added == pytest.approx(float(step.loss(learner, batch, Clock()).loss.detach()), rel=1e-6)


def test_label_term_is_torchs_cross_entropy():
    task, network, batch = CASES["classification"]()
    logits = network(batch["input"]).double().detach()
    objective = Objective((task.label_term(weight=2.0, label_smoothing=0.1),))
    weights = torch.ones(4, dtype=torch.float64)
    found = objective.loss(
        objective.sums({"logits": logits}, {}, batch, weights, Clock()), objective.totals(batch, weights), Clock()
    )
    known = slice(0, 3)
    expected = torch.nn.functional.cross_entropy(logits[known], batch["label"][known], label_smoothing=0.1)
    assert float(found) == pytest.approx(2 * float(expected), rel=1e-12)


def test_mixed_labels_count_with_the_ratio():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
    batch = {
        "label": torch.tensor([1, 0]),
        "partner_label": torch.tensor([0, 2]),
        "ratio": torch.tensor([0.25, 1.0]),
    }
    objective = Objective((THREE.label_term(weight=1.0, label_smoothing=0.0),))
    ones = torch.ones(2, dtype=torch.float64)
    found = objective.loss(
        objective.sums({"logits": logits}, {}, batch, ones, Clock()), objective.totals(batch, ones), Clock()
    )
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    expected = (-0.25 * np.log(p[0, 1]) - 0.75 * np.log(p[0, 0]) - np.log(p[1, 0])) / 2
    assert float(found) == pytest.approx(expected, rel=1e-6)


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [LOGITS, {"logits": LOGITS, "loss": 1}, SimpleNamespace(logits=LOGITS), (LOGITS, "aux"), [LOGITS]],
    ids=["tensor", "mapping", "object", "tuple", "list"],
)
def test_outputs_of_common_networks_are_understood(output):
    assert THREE.fields(output, {})["logits"] is LOGITS


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(2, 4), r"shape \(2, 4\)"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(2, 3, 1), r"shape \(2, 3, 1\)"),
        ({"scores": LOGITS}, "a dict without them"),
        ((), "a tuple without them"),
        (None, "a NoneType without them"),
    ],
)
def test_other_outputs_are_refused(output, got):
    with pytest.raises(
        TeacherOutputError, match=rf"Expected `logits` to be \[batch, 3\], got {got} .*Build the network"
    ):
        THREE.fields(output, {})


def test_one_class_is_none():
    with pytest.raises(ConfigError, match=r"Expected `class_names` to be at least two names, got \['cat'\]"):
        Classification(("cat",))


def test_labels_that_are_no_class_are_refused():
    THREE.check_labels(np.array([0, 1, 2, -1]), "toy")
    with pytest.raises(DataError, match=r"`label` to be between 0 and 2, got 3 \(sample 1 of toy\)"):
        THREE.check_labels(np.array([0, 3, 4]), "toy")
    with pytest.raises(DataError, match=r"got -2 \(sample 2 of toy\)\. Check the class names"):
        THREE.check_labels(np.array([0, 1, -2]), "toy")
    for other in (np.array([0.5, 1.0]), np.array([[0, 1, 1]])):
        with pytest.raises(DataError, match=r"one class a sample, got .* \(toy\)\. Use task multi-label or regression"):
            THREE.check_labels(other, "toy")


def test_an_unknown_task_lists_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown task 'clasification'\. Nearest: classification"):
        task_class("clasification")


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_predict_keeps_the_order_and_the_callers_generators(batch_size):
    data = open_dataset("digits", limit=30)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    said = predict(
        lambda views: views.float().flatten(1)[:, :10],
        data,
        Classification(data.class_names),
        batch_size=batch_size,
    )
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.stack([image for image, _ in data]).float().flatten(1)[:, :10]
    assert torch.equal(said.fields["logits"], expected)
    assert said.labels.tolist() == list(data.labels)


def test_predict_transforms_and_keeps_float64():
    data = open_dataset("digits", limit=12)
    task = Classification(data.class_names)
    said = predict(
        lambda views: views.flatten(1)[:, :10], data, task, transform=lambda image: image.double() / 255, workers=0
    )
    assert said.fields["logits"].dtype == torch.float64
    assert float(said.fields["logits"].max()) <= 1
    half = predict(lambda views: views.flatten(1)[:, :10].bfloat16(), data, task)
    assert half.fields["logits"].dtype == torch.float32
