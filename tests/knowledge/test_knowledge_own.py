"""Knowledge without a teacher: the average of the student, smoothed labels, the virtual teacher."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution
from tests.learning.digits import TASK, TRAIN, StopError, assert_equal, book, run, stopped_after, student, training
from torch import nn

from bookkd.core.errors import ConfigError
from bookkd.core.fields import IGNORE_LABEL, FieldInfo
from bookkd.knowledge import BetaSmoothing, SelfKnowledge, SideBySide, StoredKnowledge, VirtualKnowledge
from bookkd.losses import soft_target_kl
from bookkd.methods import BetaLabelSmoothing, SelfDistillation, Supervised, TfKDReg

FIELDS = {"logits": FieldInfo((3,))}


class Says(nn.Module):
    """Logits that are its one parameter."""

    def __init__(self, value=0.0):
        super().__init__()
        self.logits = nn.Parameter(torch.full((3,), value))

    def forward(self, batch):
        return {"logits": self.logits.expand(len(batch["label"]), 3)}


class TestAverage:
    # Card instance-label-smoothing: "EMA factor at steps 1, 2, 9: 0.5, 0.666667, 0.9; capped at 0.999 from step 999".
    @pytest.mark.parametrize(("step", "factor"), [(1, 0.5), (2, 0.666667), (9, 0.9), (999, 0.999), (5000, 0.999)])
    def test_factors_of_the_card(self, step, factor):
        average = SelfKnowledge(Says(1.0), FIELDS, momentum=0.999, mode="train")
        average.update(Says(0.0), step)
        said = average.targets({"label": torch.zeros(2)})["own/logits"].logits
        assert said[0, 0].item() == pytest.approx(factor, abs=1e-6)
        assert not said.requires_grad

    def test_eval_copies_buffers_and_train_uses_the_batch(self):
        network = nn.BatchNorm1d(3)
        averages = {mode: SelfKnowledge(network, FIELDS, momentum=0.9, mode=mode) for mode in ("train", "eval")}
        network(torch.randn(64, 3) + 5)
        for average in averages.values():
            average.update(network, 1)
        torch.testing.assert_close(averages["eval"].network.running_mean, network.running_mean)
        assert averages["train"].network.training
        assert not averages["eval"].network.training

    def test_an_average_that_would_never_move_is_refused(self):
        with pytest.raises(ConfigError, match=r"`momentum` to be from 0 to below 1, got 1 \(average of the student\)"):
            SelfKnowledge(Says(), FIELDS, momentum=1, mode="train")

    def test_with_momentum_0_the_average_is_the_student(self):
        average = SelfKnowledge(Says(1.0), FIELDS, momentum=0.0, mode="train")
        average.update(Says(0.25), 1)
        assert average.network.logits.tolist() == [0.25] * 3

    def test_state_goes_round(self):
        average = SelfKnowledge(Says(1.0), FIELDS, momentum=0.9, mode="train")
        average.update(Says(0.0), 1)
        other = SelfKnowledge(Says(7.0), FIELDS, momentum=0.9, mode="train")
        other.load_state_dict(average.state_dict())
        assert torch.equal(other.network.logits, average.network.logits)


class TestBeta:
    def knowledge(self, step=0, concentration=3.0):
        speaker = SelfKnowledge(Says(), FIELDS, momentum=0.9, mode="train")
        made = BetaSmoothing(speaker, "own/logits", (3,), concentration=concentration, seed=5)
        made.step = step
        return made

    def batch(self, labels):
        return {"label": torch.tensor(labels), "weight": torch.ones(len(labels))}

    def test_draws_are_beta_and_a_function_of_seed_and_step(self):
        labels = [0, 1, 2] * 200
        draws = [
            self.knowledge(step).targets(self.batch(labels))["own/beta"].logits.exp().amax(-1).numpy()
            for step in (0, 0, 1)
        ]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], draws[2])
        mean, error = 0.75, beta_distribution(3, 1).std() / math.sqrt(600)
        assert abs(draws[0].mean() - mean) < 4 * error

    def test_a_large_concentration_is_no_smoothing(self):
        target = self.knowledge(concentration=1e9).targets(self.batch([2, 0]))["own/beta"].logits.exp()
        torch.testing.assert_close(target, torch.eye(3)[[2, 0]], rtol=0, atol=1e-6)

    def test_hidden_labels_and_padding_say_nothing_and_take_no_draw(self):
        batch = {"label": torch.tensor([0, -1, 1, 2]), "weight": torch.tensor([1.0, 1.0, 1.0, 0.0])}
        found = self.knowledge().targets(batch)["own/beta"].logits
        assert bool((found[[1, 3]] == -torch.inf).all())
        alone = self.knowledge().targets(self.batch([0, 1]))["own/beta"].logits
        torch.testing.assert_close(found[[0, 2]], alone, rtol=0, atol=0)

    def test_micro_batches_of_one_step_draw_for_themselves(self):
        said = [
            self.knowledge()
            .targets({**self.batch([0, 1, 2]), "sample": torch.tensor([first, 8, 9])})["own/beta"]
            .logits
            for first in (3, 4)
        ]
        assert not torch.equal(*said)

    def test_mixed_views_are_refused(self):
        with pytest.raises(ConfigError, match="`views` to be not mixed, for Beta smoothing"):
            self.knowledge().targets({**self.batch([0]), "partner_label": torch.tensor([1])})


class TestVirtual:
    # Card tfkd: K = 100, a = 0.99.
    @pytest.mark.parametrize(
        ("temperature", "true", "other"),
        [(1.0, 0.026462, 0.009834), (20.0, 0.010502, 0.009995), (40.0, 0.010248, 0.009997)],
    )
    def test_the_card(self, temperature, true, other):
        said = VirtualKnowledge(100, confidence=0.99).targets({"label": torch.tensor([7])})["own/virtual"]
        p = said.log_probabilities(temperature).exp()[0]
        assert p[7].item() == pytest.approx(true, abs=1e-6)
        assert p[0].item() == pytest.approx(other, abs=1e-6)

    def test_the_paper_form_of_the_card(self):
        said = VirtualKnowledge(3, confidence=0.99).targets({"label": torch.tensor([1])})["own/virtual"]
        z = torch.tensor([[1.0, 2.0, 0.5]])
        found = soft_target_kl(z, said, temperature=20.0, t_squared=False, class_reduction="sum")
        assert found.item() == pytest.approx(7.083e-05, abs=2e-8)

    def test_mixed_views_mix_their_teachers(self):
        batch = {"label": torch.tensor([0]), "partner_label": torch.tensor([2]), "ratio": torch.tensor([0.25])}
        said = VirtualKnowledge(3, confidence=0.98).targets(batch)["own/virtual"].logits
        torch.testing.assert_close(said, torch.tensor([[0.25 * 0.98 + 0.0075, 0.01, 0.75 * 0.98 + 0.0025]]))

    def test_a_confidence_below_chance_is_refused(self):
        with pytest.raises(ConfigError, match=r"`confidence` to be between 0\.33"):
            VirtualKnowledge(3, confidence=0.2)


def test_side_by_side_asks_each_source_for_its_own(tmp_path):
    stored = StoredKnowledge(book(tmp_path / "book"))
    virtual = VirtualKnowledge(10, confidence=0.99)
    both = SideBySide([stored, virtual])
    assert set(both.fields) == {"logits", "own/virtual"}
    batch = {"sample": torch.tensor([3]), "view": torch.tensor([1]), "label": torch.tensor([4])}
    said = both.targets(batch)
    assert torch.equal(said["logits"].logits, stored.targets(batch)["logits"].logits)
    assert set(both.targets(batch, ["own/virtual"])) == {"own/virtual"}
    assert both.teacher_forwards == 0
    with pytest.raises(ConfigError, match="`sources` to be with fields of different names, got logits twice"):
        SideBySide([stored, stored])


@pytest.mark.parametrize("method", [TfKDReg(), BetaLabelSmoothing(), BetaLabelSmoothing(average="eval")])
def test_methods_of_their_own_knowledge_learn_alike_through_both_doors(method):
    one, other = (
        run(None, method=method, network=student("digits-small"), door=door) for door in ("plain", "lightning")
    )
    assert_equal(one.student, other.student, tolerance=1e-5)
    plain = run(None, method=Supervised(), network=student("digits-small"))
    assert one.history[-1]["train/loss"] != plain.history[-1]["train/loss"]
    assert one.teacher_forwards == 0


def test_the_average_is_in_the_checkpoint(tmp_path, monkeypatch):
    method = BetaLabelSmoothing()
    whole = run(tmp_path / "whole", method=method, network=student())

    options = {"method": method, "training": training(checkpoint_steps=1)}
    with monkeypatch.context() as patch:
        stopped_after(patch, 11)
        with pytest.raises(StopError):
            run(tmp_path / "killed", network=student(), **options)
    again = run(tmp_path / "killed", network=student(seed=8), **options)
    assert_equal(again.student, whole.student)


def test_ranking_by_a_book_needs_one_and_takes_its_confidences(tmp_path):
    method = BetaLabelSmoothing(confidence="book")
    stored = StoredKnowledge(book(tmp_path / "book"))
    with pytest.raises(ConfigError, match="Expected knowledge of logits for method beta-smoothing, got none"):
        run(None, method=method, network=student())
    learned = run(None, method=method, knowledge=stored, network=student())
    assert learned.history[-1]["step"] > 0
    rows = torch.arange(20)
    labels = torch.tensor(np.asarray(TRAIN.labels)[:20])
    batch = {"sample": rows, "view": torch.zeros_like(rows), "label": labels, "weight": torch.ones(20)}
    (smoothing,) = method.own_knowledge(None, TASK, stored, 0)
    chosen = smoothing.targets(batch)["own/beta"].logits.gather(1, labels[:, None])[:, 0]
    said = stored.targets(batch)["logits"].log_probabilities(1.0).gather(1, labels[:, None])[:, 0]
    assert torch.equal(chosen.argsort(), said.argsort())


def test_self_distillation_is_label_smoothing_where_the_teacher_is_uniform():
    from tests.methods.test_methods_contract import LABELS, STUDENT, total

    beta = 0.5
    uniform = torch.zeros_like(STUDENT)
    found = total(SelfDistillation(beta=beta), STUDENT, uniform, LABELS)
    smoothed = total(Supervised(label_smoothing=beta / (1 + beta)))
    # Card: (1 + beta) times label smoothing with eps = beta / (1 + beta).
    assert found.item() == pytest.approx((1 + beta) * smoothed.item(), abs=1e-9)


def test_negatives_are_any_others_than_the_batch():
    from bookkd.knowledge.negatives import _others

    own, draws = np.array([0, 3, 4, 9]), (np.arange(6) + 0.5) / 6
    assert _others(own, 10, draws).tolist() == [1, 2, 5, 6, 7, 8]
    assert _others(np.arange(3), 3, np.array([0.0, 0.5, 0.99])).tolist() == [0, 1, 2]


def test_negatives_are_of_what_is_learnt_from_and_say_their_classes(stored):
    from bookkd.knowledge import Negatives

    book = StoredKnowledge(stored)
    negatives, rows = Negatives(book, "logits", 200, seed=0), np.array([41, 7, 3, 20, 11])
    batch = {"sample": torch.tensor([7, 20]), "label": torch.tensor([2, IGNORE_LABEL])}
    assert set(negatives.targets(batch)["own/labels"][2:].tolist()) == {IGNORE_LABEL}
    negatives.among(rows, np.array([5, 2, IGNORE_LABEL, IGNORE_LABEL, 8]))
    found = negatives.targets(batch)
    assert found["own/labels"][:2].tolist() == [2, IGNORE_LABEL]
    # Each is a record of one of the three others, beside its class.
    said = {
        label: book.targets({"sample": torch.tensor([row] * 2), "view": torch.arange(2)}, ["logits"])["logits"].logits
        for row, label in ((41, 5), (3, IGNORE_LABEL), (11, 8))
    }
    drawn = found["own/labels"][2:].tolist()
    assert set(drawn) == set(said)
    for label, logits in zip(drawn, found["own/negatives"].logits, strict=True):
        assert (said[label] == logits).all(1).any()
