"""BookKD against the card's worked numbers, and its scalar through training, checkpoints and inference."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.learning.digits import TASK, StopError, assert_equal, book, run, stopped_after, student, training
from tests.methods.test_methods_contract import STUDENT, TEACHER, THREE, total

from bookkd.core.errors import ConfigError, FidelityError
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge, check_needs
from bookkd.learning import Learner
from bookkd.learning.checkpoint import load_checkpoint
from bookkd.learning.training import make_optimizer
from bookkd.losses import CombinedTarget, DenseTarget
from bookkd.methods import BookKD, VanillaKD
from bookkd.objectives import Scale

ALONE = BookKD(kd_weight=1.0, ce_weight=0.0, label_smoothing=0.0)
SECOND = torch.tensor([[1.0, 2.5, 0.0]], dtype=torch.float64)


def of_scale(scale, student=STUDENT):
    """L_book and its derivative in a, by the method's own objective."""
    a = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    objective = ALONE.objective(THREE)
    batch = {"label": torch.tensor([1]), "weight": torch.ones(1, dtype=torch.float64)}
    weights = THREE.weights(batch)
    fields = {"logits": student, "logits/scaled": a * student}
    sums = objective.sums(fields, {"logits": DenseTarget(TEACHER)}, batch, weights, Clock())
    loss = objective.loss(sums, objective.totals(batch, weights), Clock())
    return loss.item(), torch.autograd.grad(loss, a)[0].item()


class TestCard:
    """Card bookkd, "Tests that pin it"."""

    def test_the_books_term_and_its_slope(self):
        value, slope = of_scale(1.0)
        assert value == pytest.approx(0.636975, abs=1e-6)
        assert slope == pytest.approx(-0.600795, abs=1e-6)
        assert 1.0 - 0.05 * slope == pytest.approx(1.030040, abs=1e-6)

    def test_the_best_scale(self):
        value, slope = of_scale(2.489799)
        assert value == pytest.approx(0.191033, abs=1e-6)
        assert slope == pytest.approx(0, abs=1e-6)
        around = [of_scale(scale)[0] for scale in (0.5, 1.0, 2.0, 2.489799, 3.0, 6.0)]
        assert min(around) == around[3]

    def test_the_total_under_two_teachers(self):
        both = CombinedTarget.of([DenseTarget(TEACHER), DenseTarget(SECOND)])
        objective, batch = BookKD().objective(THREE), {"label": torch.tensor([1]), "weight": torch.ones(1).double()}
        weights = THREE.weights(batch)
        fields = {"logits": STUDENT, "logits/scaled": STUDENT}
        sums = objective.sums(fields, {"logits": both}, batch, weights, Clock())
        loss = objective.loss(sums, objective.totals(batch, weights), Clock())
        assert loss.item() == pytest.approx(0.307108, abs=1e-6)

    def test_one_step_of_training_moves_the_scalar_as_worked(self):
        class Fixed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.logits = torch.nn.Parameter(STUDENT.clone())

            def forward(self, views):
                return self.logits

        learner = Learner(Fixed(), THREE, connectors=ALONE.objective(THREE).connectors).double()
        optimizer = make_optimizer(learner, training(momentum=0.0, lr=0.0001, weight_decay=0.1))
        objective = ALONE.objective(THREE)
        batch = {"input": torch.zeros(1, 1), "label": torch.tensor([1]), "weight": torch.ones(1).double()}
        weights = THREE.weights(batch)
        targets = {"logits": DenseTarget(TEACHER)}
        sums = objective.sums(learner(batch), targets, batch, weights, Clock())
        objective.loss(sums, objective.totals(batch, weights), Clock()).backward()
        optimizer.step()
        learner.after_step()
        # With a learning rate of its own, 0.05, and no weight decay.
        assert learner.logged()["entropy_scale"] == pytest.approx(1.030040, abs=1e-6)


def test_reduced_to_one_teacher_it_is_vanilla_to_the_bit(stored):
    plain = VanillaKD()
    reduced = BookKD(learn_scale=False, label_smoothing=0.0)
    assert torch.equal(total(reduced), total(plain))
    one, other = (run(None, knowledge_of=stored, method=method, network=student()) for method in (reduced, plain))
    assert_equal(one.student, other.student)
    assert [r["train/loss"] for r in one.history] == [r["train/loss"] for r in other.history]


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_the_scalar_learns_is_logged_and_stays_behind(stored, tmp_path, door):
    learned = run(tmp_path / "run", knowledge_of=stored, method=BookKD(), network=student(), door=door)
    scales = [record["train/entropy_scale"] for record in learned.history]
    assert scales[0] != 1.0
    assert scales[-1] != scales[0]
    for name in ("book_entropy", "student_entropy"):
        assert 0 < learned.history[-1][f"train/{name}"] < 2.31  # log 10 is 2.303
    assert not any("scale" in name for name in load_file(tmp_path / "run" / "student.safetensors"))


def test_doors_move_the_scalar_alike(stored):
    one, other = (
        run(None, knowledge_of=stored, method=BookKD(), network=student(), door=door) for door in ("plain", "lightning")
    )
    assert_equal(one.student, other.student, tolerance=1e-6)
    pairs = zip(one.history, other.history, strict=True)
    assert all(a["train/entropy_scale"] == pytest.approx(b["train/entropy_scale"], abs=1e-6) for a, b in pairs)


def test_the_scalar_is_in_the_checkpoint_and_a_killed_run_ends_the_same(stored, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", knowledge_of=stored, method=BookKD(), network=student())

    options = {"knowledge_of": stored, "method": BookKD(), "training": training(checkpoint_steps=1)}
    with monkeypatch.context() as patch:
        stopped_after(patch, 11)
        with pytest.raises(StopError):
            run(tmp_path / "killed", network=student(), **options)
    saved = load_checkpoint(tmp_path / "killed" / "checkpoints" / "last.ckpt")
    assert float(saved["learner"]["parts.entropy_scale.scale"]) != 1.0
    again = run(tmp_path / "killed", network=student(), **options)
    assert_equal(again.student, whole.student)
    assert again.history[-1]["train/entropy_scale"] == whole.history[-1]["train/entropy_scale"]


def test_a_corrected_record_cannot_be_surer_than_a_tie():
    with pytest.raises(ConfigError, match=r"`entropy_high` to be at least log 2 = 0\.6931 with correct, got 0\.5"):
        BookKD(correct=True, entropy_high=0.5)
    with pytest.raises(ConfigError, match="`entropy` to be 0 <= low <= high with high above 0"):
        BookKD(entropy_high=0.0)


def test_the_scalar_stays_in_its_range():
    scale = Scale(0.5, 2.0, "a")
    for value, kept in ((9.0, 2.0), (-3.0, 0.5), (1.2, 1.2)):
        with torch.no_grad():
            scale.scale.fill_(value)
        scale.after_step()
        assert scale.logged() == {"a": pytest.approx(kept)}


def test_regularisation_wants_every_class_and_a_plain_book_of_one_teacher_may_be_sparse(tmp_path):
    from bookkd.book import TopK

    sparse = StoredKnowledge(book(tmp_path / "sparse", codec=TopK(k=3, temperatures=(4.0,))))
    check_needs(BookKD().needs(TASK), sparse, "bookkd")
    for method in (BookKD(correct=True), BookKD(flatten=0.1), BookKD(entropy_low=0.5), BookKD(ensemble="logit")):
        with pytest.raises(FidelityError, match="Expected field 'logits' to be dense for method bookkd"):
            check_needs(method.needs(TASK), sparse, "bookkd")
