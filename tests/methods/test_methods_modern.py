"""The worked numbers, presets and refusals of the methods of card modern-logit-losses: dkd, dist and mlkd."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from tests.learning.digits import TASK, TRAIN, book, run, student, training, views
from tests.methods.test_methods_contract import THREE, total, worked_sample

from bookkd.book import TopK
from bookkd.core.errors import ConfigError, FidelityError
from bookkd.core.fields import LABEL, PARTNER_LABEL, WEIGHT
from bookkd.core.protocols import Needs
from bookkd.core.schedules import Clock, Linear
from bookkd.learning import check_batches, learn
from bookkd.losses import DenseTarget
from bookkd.methods import DIST, DKD, MLKD, VanillaKD, build_method
from bookkd.objectives import Extract, Objective, Standardise, transformed
from bookkd.tasks import MultiLabel

CE = 0.464369
FULL = Clock(epoch=20)
HIDDEN = np.full(len(TRAIN), -1)


def near(value):
    return pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize(
    ("epoch", "share"), [(0.0, 1 / 20), (0.99, 1 / 20), (1.0, 2 / 20), (18.5, 19 / 20), (19.0, 1.0), (200.0, 1.0)]
)
def test_the_soft_term_of_dkd_warms_up(epoch, share):
    assert total(DKD(), clock=Clock(epoch=epoch)).item() == near(CE + share * 6.060594)


@pytest.mark.parametrize(
    ("preset", "value"),
    [
        ("resnet56-resnet20", CE + 0.273110 + 2 * 0.723435),
        ("resnet110-resnet32", CE + 0.273110 + 2 * 0.723435),
        ("wrn40-2", CE + 0.273110 + 6 * 0.723435),
        ("vgg13", CE + 0.273110 + 6 * 0.723435),
        ("imagenet-resnet34-resnet18", CE + 0.078271 + 0.5 * 0.306925),
        ("imagenet-resnet50-mobilenetv1", CE + 0.078271 + 2 * 0.306925),
    ],
)
def test_presets_of_dkd(preset, value):
    method = build_method("dkd", preset)
    assert total(method, clock=FULL).item() == near(value)
    assert set(DKD.presets) == {given for given, _ in test_presets_of_dkd.pytestmark[0].args[1]}
    # On ImageNet the whole weight is there from the first epoch.
    assert (total(method).item() == near(value)) == preset.startswith("imagenet")


def test_dkd_with_what_the_teacher_leaves_to_the_others_is_vanilla():
    left = 1 - float(softmax(np.array([2, 3.5, -1]) / 4)[1])
    plain = total(VanillaKD(ce_weight=1.0, kd_weight=1.0))
    torch.testing.assert_close(total(DKD(beta=left, warmup_epochs=1)), plain, rtol=1e-12, atol=1e-12)


def test_hidden_labels_teach_dkd_nothing(stored):
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([2, -1, 0, -1])
    some = total(DKD(), student, teacher, labels, clock=FULL)
    torch.testing.assert_close(some, total(DKD(), student[::2], teacher[::2], labels[::2], clock=FULL))
    with pytest.raises(ConfigError, match=r"`labels` to be known for one sample at least, got none of them"):
        run(None, method=DKD(), knowledge_of=stored, labels=HIDDEN)


def test_dkd_refuses_mixed_views():
    batch = {LABEL: torch.tensor([1]), PARTNER_LABEL: torch.tensor([0]), WEIGHT: torch.ones(1)}
    fields, targets = {"logits": torch.zeros(1, 3)}, {"logits": DenseTarget(torch.zeros(1, 3))}
    objective = DKD(ce_weight=0.0).objective(THREE)
    with pytest.raises(
        ConfigError, match=r"`views` to be not mixed: each has one true class, got mixed views \(decoupled"
    ):
        objective.sums(fields, targets, batch, batch[WEIGHT], Clock())


def test_weights_that_leave_nothing_are_refused():
    for make in (
        lambda: DKD(alpha=0.0, beta=0.0),
        lambda: DIST(beta=0.0, gamma=0.0),
        lambda: MLKD(kd_weight=0.0, class_weight=0.0, batch_weight=0.0),
    ):
        with pytest.raises(
            ConfigError, match=r"to be above 0, or .*, got 0 \(.*Without a soft term use method supervised"
        ):
            make()


def test_weights_of_0_leave_their_terms_out():
    def names(method):
        return [term.name for term in method.objective(THREE).terms]

    assert names(DKD(ce_weight=0.0)) == ["decoupled"]
    assert names(DIST(gamma=0.0)) == ["cross_entropy", "inter"]
    assert names(DIST(beta=0.0, ce_weight=0.0)) == ["intra"]
    assert names(MLKD((2.0,), class_weight=0.0)) == ["cross_entropy", "samples_2", "batch_2"]
    # Without relations between rows, batches need not be whole.
    assert not DIST(gamma=0.0).objective(THREE).relational
    assert not MLKD(class_weight=0.0, batch_weight=0.0).objective(THREE).relational
    assert DIST(beta=0.0).objective(THREE).relational


@pytest.mark.parametrize(
    ("method", "value"),
    [
        (DIST(temperature=4.0), CE + 16 * (0.053290 + 0.088238)),
        (DIST(temperature=4.0, t_squared=False), CE + 0.053290 + 0.088238),
        (DIST(gamma=0.0), CE + 0.010950),
        (DIST(beta=0.0, ce_weight=2.0), 2 * CE + 0.011950),
        (build_method("dist", "no-t-squared"), CE + 0.010950 + 0.011950),
        (build_method("dist", "imagenet-recalled"), CE + 2 * (0.010950 + 0.011950)),
        (build_method("dist", "cifar100-recalled"), CE + 2 * 16 * (0.053290 + 0.088238)),
    ],
)
def test_totals_of_dist(method, value):
    assert total(method).item() == pytest.approx(value, abs=4e-5 if method.temperature == 4 else 2e-6)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"temperatures": (4.0,)}, 2 * (CE + 0.271685 + 0.002881 + 0.001219)),
        ({"temperatures": (1.0,)}, 2 * (CE + 0.077244 + 0.041288 + 0.040865)),
        ({"temperatures": (1.0, 4.0), "kd_weight": 0.0, "class_weight": 0.0}, 2 * (CE + 0.040865 + 0.001219)),
        ({"temperatures": (4.0,), "ce_weight": 0.0, "batch_weight": 3.0}, 2 * (0.271685 + 0.002881 + 3 * 0.001219)),
    ],
)
def test_totals_of_mlkd(options, value):
    assert total(MLKD(**options)).item() == pytest.approx(value, abs=5e-6)


def released_code(weak, strong, y):
    """The released code's loss, where the masks keep exactly half: student and teacher of the weak view and of the strong one."""

    def parts(view, t):
        q, p = (softmax(logits / t, axis=1) for logits in view)
        classes = np.square(p.T @ p - q.T @ q).sum() / p.shape[1]
        return t * t * rel_entr(p, q).sum(1).mean(), classes, np.square(p @ p.T - q @ q.T).sum() / len(p)

    kd = cc = bc = 0.0
    for t in (4, 3, 5, 2, 6):
        sample, of_classes, of_samples = parts(weak, t)
        kd += sample / 2 + parts(weak if t in (2, 6) else strong, t)[0]
        cc += of_classes / 2
        bc += of_samples / 2
    ce = -sum(log_softmax(view[0], axis=1)[np.arange(len(y)), y].mean() for view in (weak, strong))
    return 0.1 * ce + 0.9 * (kd + cc + bc)


def test_mlkd_as_coded_is_the_released_code_on_average_over_which_view_is_weak():
    student, teacher = 2 * torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1]).repeat_interleave(2)
    found = total(build_method("mlkd", "as-coded"), student, teacher, labels).item()
    first, second = ((student[v::2].numpy(), teacher[v::2].numpy()) for v in range(2))
    both = [released_code(*pair, labels[::2].numpy()) for pair in ((first, second), (second, first))]
    assert abs(both[0] - both[1]) > 0.1
    assert found == pytest.approx(np.mean(both), rel=1e-12)


def test_mlkd_as_published_is_the_default():
    assert build_method("mlkd", "as-published") == MLKD()
    assert MLKD((2.0, 8.0)).needs(TASK) == Needs({"logits": (2.0, 8.0)}, ("logits",), views_per_sample=2)


def test_mlkd_wants_two_views_and_an_even_batch(stored, tmp_path):
    with pytest.raises(ConfigError, match=r"`batch_size` to be a multiple of views_per_sample = 2, got 7"):
        run(None, method=MLKD(), knowledge_of=stored, training=training(batch_size=7))
    single = book(tmp_path / "single", views=views(n_views=1)).path
    with pytest.raises(
        ConfigError, match=r"`n_views` to be at least 2 for method mlkd, got 1 .*bookkd make \.\.\. --views.n_views 2"
    ):
        run(None, method=MLKD(), knowledge_of=single, views=views(n_views=1))


@pytest.mark.parametrize("method", [DIST(), MLKD()])
def test_relations_want_whole_batches(stored, method):
    with pytest.raises(ConfigError, match=r"`accumulate` to be 1, got 2 \(training\)\. The method relates the rows"):
        run(None, method=method, knowledge_of=stored, training=training(accumulate=2))
    with pytest.raises(ConfigError, match=r"`devices` to be 1, got 2 \(training\)\. The method relates the rows"):
        check_batches(training(devices=2), samples=60, views_per_sample=1, whole=True)
    with pytest.raises(ConfigError, match=r"`batch_size` to be at most (60|120) for 60 samples, got 122"):
        run(None, method=method, knowledge_of=stored, training=training(batch_size=122))


def test_dist_leaves_out_the_last_batch(stored):
    learned = run(None, method=DIST(), knowledge_of=stored, training=training(epochs=1, batch_size=8))
    assert learned.history[0]["step"] == 60 // 8


@pytest.mark.parametrize(
    ("method", "least"), [(DIST(), 2), (DIST(beta=0.0), 2), (MLKD(), 4), (MLKD(kd_weight=0.0, class_weight=0.0), 4)]
)
def test_relations_want_two_samples_in_a_batch(stored, method, least):
    views_per_sample = method.needs(TASK).views_per_sample
    too_few = training(epochs=1, batch_size=least - views_per_sample)
    match = (
        rf"`batch_size` to be a whole number of at least {least}, got {too_few.batch_size} \(training\)\. The method"
    )
    with pytest.raises(ConfigError, match=match):
        run(None, method=method, knowledge_of=stored, training=too_few)
    learned = run(None, method=method, knowledge_of=stored, training=training(epochs=1, batch_size=least))
    assert learned.history[0]["step"] == 60 * views_per_sample // least


@pytest.mark.parametrize("method", [DKD(), DIST(gamma=0.0)])
def test_methods_without_relations_learn_from_one_sample_at_a_time(stored, method):
    assert (
        run(None, method=method, knowledge_of=stored, training=training(epochs=1, batch_size=1)).history[0]["step"]
        == 60
    )


@pytest.mark.parametrize("method", [DKD(), DIST(), MLKD()])
@pytest.mark.parametrize("change", [Standardise(), Extract(4.0), Extract(4.0, share=0.5)], ids=str)
def test_transforms_compose(method, change):
    student, teacher, labels = (given.repeat_interleave(2, 0) for given in worked_sample("dist"))
    objective = method.objective(THREE)
    terms = tuple(transformed(term, change) if term.teacher else term for term in objective.terms)

    changed = SimpleNamespace(
        name=method.name, cohort=1, objective=lambda task: Objective(terms), own_knowledge=method.own_knowledge
    )
    leaf = student.clone().requires_grad_()
    value = total(changed, leaf, teacher, labels)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert math.isfinite(value.item())
    assert gradient.isfinite().all()
    assert abs(value.item() - total(method, student, teacher, labels).item()) > 1e-3
    # What the transform takes away plays no part.
    if isinstance(change, Standardise):
        torch.testing.assert_close(total(changed, student, 5 * teacher + 3, labels), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [DKD(), DIST(), MLKD()])
def test_classes_that_exclude_one_another_are_asked_for(method):
    with pytest.raises(
        ConfigError,
        match=rf"`task` to be one that method {method.name} serves \(classification[^)]*\), got 'multi-label'",
    ):
        learn(student(), TRAIN, views(), task=MultiLabel(TRAIN.class_names), method=method)


def test_temperatures_that_move():
    moving = Linear(4.0, 1.0)
    assert (
        DKD(temperature=moving).needs(TASK)
        == DIST(temperature=moving).needs(TASK)
        == Needs({"logits": ()}, ("logits",))
    )
    end = Clock(step=10, epoch=20, total_steps=10)
    assert total(DKD(temperature=moving), clock=end).item() == near(CE + 0.078271 + 8 * 0.306925)
    assert total(DIST(temperature=moving), clock=end).item() == near(CE + 0.010950 + 0.011950)


@pytest.mark.parametrize("method", [DKD(), DIST(), MLKD()])
def test_sparse_books_are_refused(tmp_path, method):
    sparse = book(tmp_path / "sparse", codec=TopK(k=3, temperatures=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))).path
    with pytest.raises(FidelityError, match=rf"'logits' to be dense for method {method.name}, got a sparse codec"):
        run(None, method=method, knowledge_of=sparse)
