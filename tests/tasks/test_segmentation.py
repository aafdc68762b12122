"""Task segmentation: the grid, what void pixels weigh, books beside a live teacher, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tasks.cases import segmentation
from torch import nn

from bookkd.book import Dense, Int8, TopK
from bookkd.core.errors import ConfigError, DataError, TeacherOutputError
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Cohort, Learner, Step, learner_for, offer_needs
from bookkd.losses import DenseTarget
from bookkd.making import make
from bookkd.methods import METHODS, method_class
from bookkd.objectives import Objective
from bookkd.tasks import Segmentation
from bookkd.views import CutMix, MixUp, Pick, Replay, Views
from bookkd.zoo import create_preprocess, create_transform, shapes

DATA = shapes(n=6, height=18, width=26)
NAMES = DATA.class_names


def network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 1))


def teacher(seed=0, **options):
    return Teacher(network(seed), create_preprocess("unet-small"), **options)


def loss_of(task, term, output, batch, targets=()):
    objective, seen = Objective((term,)), task.batch(batch)
    student = task.student(task.fields(output, batch))
    sums = objective.sums(student, task.targets(dict(targets), batch), seen, task.weights(seen), Clock())
    return objective.loss(sums, objective.totals(seen, task.divisors(seen)), Clock())


def soft(task, **options):
    given = {"weight": 1.0, "temperature": 3.0, "t_squared": True, "class_reduction": "sum", "soft_loss": "kl"}
    return task.soft_term(**given, **options)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("grid", ["mean", "pick"])
def test_the_grid_by_hand(stride, grid):
    task, logits = Segmentation(("a", "b"), stride=stride, grid=grid), torch.randn(1, 2, 5, 7)
    batch = {"input": torch.zeros(1, 3, 5, 7), "label": torch.arange(35).reshape(1, 5, 7) % 2, "weight": torch.ones(1)}
    found = task.student(task.fields(logits, batch))
    cells = [[(y, x) for x in range(0, 7, stride)] for y in range(0, 5, stride)]
    for row, places in enumerate(cells):
        for column, (y, x) in enumerate(places):
            cell = logits[0, :, y : y + stride, x : x + stride].flatten(1)
            middle = logits[0, :, min(y + stride // 2, 4), min(x + stride // 2, 6)]
            wanted = middle if grid == "pick" else cell.mean(1)
            torch.testing.assert_close(found["logits"][0, row, column], wanted)
            label = batch["label"][0, min(y + stride // 2, 4), min(x + stride // 2, 6)]
            assert task.batch(batch)["label"][0, row, column] == label
    assert task.counts(batch).tolist() == [len(cells) * len(cells[0])]
    assert torch.equal(found["pixels/logits"], logits.permute(0, 2, 3, 1))


def test_labels_are_learnt_at_every_pixel_whatever_the_stride():
    _, net, batch = segmentation()
    batch["weight"] = torch.ones(4)
    output = net(batch["input"])
    for stride in (1, 2, 4):
        task = Segmentation(("a", "b", "c"), stride=stride)
        found = loss_of(task, task.label_term(weight=1.0, label_smoothing=0.1), output, batch)
        wanted = F.cross_entropy(output, batch["label"], ignore_index=-1, label_smoothing=0.1)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("taught", [False, True])
def test_void_pixels_are_taught_only_where_asked_and_images_without_labels_everywhere(taught):
    task = Segmentation(("a", "b", "c"), teach_void=taught)
    student, theirs = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    labels = torch.tensor([[[0, -1], [2, 1]], [[-1, -1], [-1, -1]]])
    batch = {"input": torch.zeros(2, 3, 2, 2), "label": labels, "weight": torch.ones(2)}
    found = loss_of(task, soft(task), student, batch, {"logits": DenseTarget(theirs.permute(0, 2, 3, 1))}.items())
    gap = F.kl_div((student / 3).log_softmax(1), (theirs / 3).log_softmax(1), reduction="none", log_target=True).sum(1)
    counted = torch.ones(2, 2, 2, dtype=torch.bool)
    counted[0, 0, 1] = taught
    torch.testing.assert_close(found, 9 * gap[counted].mean())


def test_a_cell_weighs_its_known_share():
    labels = torch.tensor([[[0, -1, 1], [0, 0, -1]]])
    batch = {"input": torch.zeros(1, 3, 2, 3), "label": labels, "weight": torch.tensor([2.0])}
    assert Segmentation(("a", "b"), stride=2).batch(batch)["weight"].tolist() == [[[1.5, 1.0]]]
    assert Segmentation(("a", "b"), stride=2, grid="pick").batch(batch)["weight"].tolist() == [[[2.0, 0.0]]]


@pytest.mark.parametrize(
    ("codec", "within"),
    [(Dense("float32"), 1e-6), (Dense(), 1e-3), (Int8(), 2e-3), (TopK(k=4, temperatures=(3.0,)), 1e-3)],
)
@pytest.mark.parametrize("stride", [1, 4])
def test_a_book_says_what_the_live_teacher_says(tmp_path, codec, within, stride):
    task = Segmentation(NAMES, stride=stride)
    views = Views(create_transform("mask-affine"), 2, name="mask-affine")
    book = make(tmp_path / "book", teacher(), DATA, views, task=task, codec=codec, batch_size=4)
    assert book.plan.data["grid"] == {"stride": stride, "of": "mean"}
    assert (book.plan.task, book.fields["logits"].positions) == ("segmentation", -(-18 // stride) * -(-26 // stride))
    batch = Replay(DATA, views).batch([Pick(4, 1), Pick(0, 0), Pick(3, 1)])
    learner = Learner(network(1), task, preprocess=create_preprocess("unet-small"))
    objective = method_class("vanilla-kd")(temperature=3.0).objective(task)
    losses = [
        Step(objective, task, knowledge).loss(learner, batch, Clock()).loss.item()
        for knowledge in (LiveKnowledge(teacher(), task), StoredKnowledge(book))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=within)


def test_half_of_the_classes_keep_their_tail(tmp_path):
    task, views = Segmentation(NAMES, stride=3), Views(None, 1)
    book = make(
        tmp_path / "book", teacher(), DATA, views, task=task, codec=TopK(k=2, temperatures=(3.0,)), batch_size=4
    )
    batch = Replay(DATA, views).batch([Pick(2, 0), Pick(5, 0)])
    target = task.targets(StoredKnowledge(book).targets(batch, ["logits"]), batch)["logits"]
    assert (tuple(target.positions), target.k) == ((2, 6, 9), 2)
    live = task.targets(LiveKnowledge(teacher(), task).targets(batch), batch)["logits"].log_probabilities(3.0).exp()
    kept = live.gather(-1, target.indices)
    torch.testing.assert_close(target.kept_log_probabilities(3.0).exp(), kept, atol=2e-3, rtol=0)
    loss = Step(Objective((soft(task),)), task, StoredKnowledge(book)).loss
    learner = Learner(network(1), task, preprocess=create_preprocess("unet-small"))
    assert 0 < loss(learner, batch, Clock()).loss.item() < float("inf")


LAYERS = {"stage1": "0", "stage2": "1", "stage3": "1", "last": "1"}


@pytest.mark.parametrize("name", sorted(name for name in METHODS if "segmentation" in method_class(name).tasks))
def test_every_method_that_says_so_learns(name):
    method, task = method_class(name)(), Segmentation(NAMES, stride=2)
    peers = [network(seed) for seed in range(method.cohort)]
    objective, replay, knowledge = (
        method.objective(task),
        Replay(DATA, Views(None, 1)),
        LiveKnowledge(teacher(9, layers=LAYERS), task),
    )
    student = peers[0] if method.cohort == 1 else Cohort(peers)
    offer_needs(method, task, knowledge, replay)
    learner = learner_for(
        student,
        task,
        method,
        replay=replay,
        knowledge=knowledge,
        preprocess=create_preprocess("unet-small"),
        layers=LAYERS,
    )
    batch = replay.batch([Pick(0, 0), Pick(1, 0)])
    step = Step(objective, task, knowledge)
    step.loss(learner, batch, Clock(epoch=3.0)).loss.backward()
    for peer in peers:
        assert all(bool(each.grad.isfinite().all()) and bool(each.grad.any()) for each in peer.parameters())


@pytest.mark.parametrize("mix", [MixUp(1.0), CutMix(1.0)])
def test_mixed_views_have_mixed_labels(mix):
    task, batch = (
        Segmentation(NAMES, stride=2),
        Replay(DATA, Views(None, 1, 3, mix=mix)).batch([Pick(1, 0), Pick(2, 0)]),
    )
    output = torch.randn(2, 4, 18, 26)
    found = loss_of(task, task.label_term(weight=1.0, label_smoothing=0.0), output, batch)
    own, other, ratio = (batch[key] for key in ("label", "partner_label", "ratio"))
    if mix.name == "cutmix":
        plain = [DATA[sample][1] for sample in (1, 2)]
        partners = [DATA[sample][1] for sample in batch["partner"].tolist()]
        for row in range(2):
            moved = own[row] != plain[row]
            assert torch.equal(own[row][moved], partners[row][moved])
        wanted = F.cross_entropy(output, own, ignore_index=-1)
    else:
        each = [F.cross_entropy(output, labels.clamp_min(0), reduction="none") for labels in (own, other)]
        mixed = ratio[:, None, None] * each[0] + (1 - ratio[:, None, None]) * each[1]
        wanted = mixed[(own >= 0) & (other >= 0)].mean()
    torch.testing.assert_close(found, wanted)


def test_outputs_of_common_networks_are_understood():
    task, batch = Segmentation(("a", "b")), {"input": torch.zeros(1, 3, 4, 8)}
    logits = torch.randn(1, 2, 4, 8)
    for output in (logits, {"logits": logits}, {"out": logits, "aux": logits[:, :1]}, (logits, 1)):
        assert torch.equal(task.fields(output, batch)["logits"], logits.permute(0, 2, 3, 1))
    small = task.fields({"logits": logits[:, :, ::2, ::2]}, batch)["logits"]
    wanted = F.interpolate(logits[:, :, ::2, ::2], (4, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(small, wanted.permute(0, 2, 3, 1))
    for wrong, got in (
        (logits[:, :1], "(1, 1, 4, 8)"),
        (logits[0], "(2, 4, 8)"),
        ({"scores": 1}, "a dict without them"),
    ):
        with pytest.raises(TeacherOutputError, match=rf"`logits` to be \[1, 2, height, width\].*{re.escape(got)}"):
            task.fields(wrong, batch)


def test_what_does_not_fit_is_refused(tmp_path):
    task, batch = Segmentation(NAMES, stride=2), Replay(DATA, Views(None, 1)).batch([Pick(0, 0)])
    with pytest.raises(ConfigError, match=r"`class_names` to be at least two names, got \['a'\] \(task segmentation\)"):
        Segmentation(("a",))
    with pytest.raises(ConfigError, match=r"`stride` to be .*1, got 0 \(task segmentation\)"):
        Segmentation(NAMES, stride=0)
    with pytest.raises(ConfigError, match=r"`data` to be images with a mask each, got label \d.*image-masks"):
        task.check_data([(torch.zeros(3, 4, 4), 7)])
    with pytest.raises(DataError, match=r"`labels` to be one a pixel, got shape \[4\] \(mine\)"):
        task.check_labels(np.zeros(4, int), "mine")
    with pytest.raises(
        DataError,
        match=r"`label` to be whole numbers \[1, 18, 26\], got .*\[1, 18, 25\] \(task segmentation, sample 0\)",
    ):
        task.batch({**batch, "label": batch["label"][..., 1:]})
    wish = r"`cells of logits` to be 117 in this batch: 9 x 13 cells of stride 2 an image, got 35 \(teacher\)\. Give the task the `stride`"
    with pytest.raises(TeacherOutputError, match=wish):
        task.targets({"logits": DenseTarget(torch.zeros(35, 4))}, batch)
    with pytest.raises(ConfigError, match=r"`stride` to be 4, as the book has, got 2 \(some book\)"):
        task.as_noted({"grid": {"stride": 4, "of": "mean"}}, "some book")
    assert Segmentation(NAMES).as_noted({"grid": {"stride": 4, "of": "pick"}}, "").grid == "pick"
