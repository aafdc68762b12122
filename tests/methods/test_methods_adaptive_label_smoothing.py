"""Adaptive label smoothing: its strength, its gradient, and the student's own past in memory, in chapters and from a given book."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from tests.learning.digits import (
    TASK,
    TEST,
    TRAIN,
    StopError,
    assert_equal,
    book,
    run,
    stopped_after,
    student,
    training,
    views,
    weights,
    without_seconds,
)
from tests.zoo.pairs import BEGIN, V, reversed_digits, translator

from bookkd.book import Book, TopK
from bookkd.core.errors import CheckpointError, ConfigError, UnknownNameError
from bookkd.core.schedules import Clock
from bookkd.knowledge import PastSelf, PriorKnowledge, SelfChapters, StoredKnowledge, past
from bookkd.learning import Learner, Step, Training, Validation, learn
from bookkd.learning.run import Run
from bookkd.losses import adaptive_smoothing, smoothing_strength
from bookkd.methods import AdaptiveLabelSmoothing, Supervised
from bookkd.tasks import CausalLM, Classification, Seq2Seq
from bookkd.views import Pick, Replay, Views

LIVE, CHAPTER = AdaptiveLabelSmoothing(), AdaptiveLabelSmoothing(mode="chapter", codec="float32")
P, PHI = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
PLAIN = {"alpha": None, "largest": 1.0}


def strength(p, largest=1.0):
    return smoothing_strength(p.log(), alpha=None, largest=largest)


class TestStrength:
    def test_is_that_of_the_card(self):
        p = torch.tensor([[0.7, 0.2, 0.1], [0.98, 0.01, 0.01], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]]).double()
        wanted = torch.tensor([0.270153, 0.898142, 0.0, 1.0]).double()
        torch.testing.assert_close(strength(p), wanted, rtol=0, atol=1e-6)

    def test_is_a_share_whatever_the_order_or_the_level(self):
        z = 8 * torch.randn(200, 11, generator=torch.Generator().manual_seed(0)).double()
        found = smoothing_strength(z, **PLAIN)
        assert 0 <= float(found.min()) < float(found.max()) <= 1
        torch.testing.assert_close(smoothing_strength(z[:, torch.randperm(11)] + 7, **PLAIN), found)
        assert smoothing_strength(torch.zeros(2, 50_000), **PLAIN).tolist() == pytest.approx([0, 0], abs=1e-6)

    def test_can_be_bounded_or_constant(self):
        assert strength(torch.tensor([1.0, 0.0]), largest=0.9).item() == pytest.approx(0.9)
        assert smoothing_strength(torch.randn(3, 4), alpha=0.25, largest=1.0).tolist() == [0.25] * 3


def test_the_strength_is_taken_as_constant():
    """With it moving, finite differences are those of the card; the gradient is not."""
    z = P.log()

    def value(at):
        return adaptive_smoothing(at, PHI.log(), torch.tensor(0), **PLAIN)

    step = 1e-5
    moving = torch.stack([(value(z + step * e) - value(z - step * e)) / (2 * step) for e in torch.eye(3).double()])
    torch.testing.assert_close(moving, torch.tensor([0.052057, 0.006478, -0.058535]).double(), rtol=0, atol=1e-6)
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(slope, torch.tensor([-0.164923, 0.118954, 0.045969]).double(), rtol=0, atol=1e-6)


TRANSLATE = Seq2Seq(V, begin=BEGIN)
PAIRS, HELD_OUT, AS_THEY_ARE = reversed_digits(40), reversed_digits(20, seed=1), Views(None, n_views=1)


@pytest.mark.parametrize("options", [{"prior": "uniform"}, {"first": "uniform"}, {"prior": "uniform", "alpha": 0.1}])
def test_tokens_that_are_masked_are_asked_of_nobody(options):
    torch.manual_seed(0)
    task, logits = CausalLM(4, masked=(3,)), torch.randn(1, 2, 4, requires_grad=True)
    batch = {"input": torch.tensor([[0, 2, 1]]), "length": torch.tensor([3]), "weight": torch.ones(1)}
    said, seen = task.fields(logits, batch)["logits"], task.batch(batch)
    phi = PriorKnowledge(task, before="uniform").targets(batch)["own/logits"]
    (term, _) = AdaptiveLabelSmoothing(**options).objective(task).terms
    alpha = options.get("alpha")
    found = adaptive_smoothing(said, phi, seen["label"], alpha=alpha, largest=1.0)
    log_p = logits[0, :, :3].log_softmax(-1)  # as if there were three classes
    entropy = -(log_p.exp() * log_p).sum(-1)
    share = (1 - entropy / math.log(4)).detach() if alpha is None else alpha
    wanted = -(1 - share) * log_p.gather(1, seen["label"][:, None])[:, 0] - share * log_p.mean(-1)
    torch.testing.assert_close(found, wanted)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(slope).all()
    assert not slope[..., 3].any()
    assert term.name == "adaptive_smoothing"


def test_a_strength_that_is_given_is_checked():
    with pytest.raises(ConfigError, match=r"`alpha` to be .*above 0, got 0.*method supervised"):
        AdaptiveLabelSmoothing(alpha=0.0)
    with pytest.raises(ConfigError, match=r"`alpha` to be numbers from 0 to 1 of shape \[3\], got shape \[2\]"):
        smoothing_strength(torch.randn(3, 4), alpha=torch.rand(2), largest=1.0)
    with pytest.raises(ConfigError, match="`alpha` to be numbers from 0 to 1"):
        smoothing_strength(torch.randn(3, 4), alpha=torch.full((3,), torch.nan), largest=1.0)


def test_padding_counts_nowhere():
    """A batch alone and beside a longer one: the same loss and mean strength, weighted by positions."""
    learner = Learner(translator(), TRANSLATE)
    past_self = PastSelf(learner, TRANSLATE, before="labels")
    past_self.take(Learner(translator(1), TRANSLATE))
    step = Step(LIVE.objective(TRANSLATE), TRANSLATE, past_self)
    replay, order = Replay(PAIRS, AS_THEY_ARE), np.argsort(PAIRS.lengths)
    rows = [int(order[0]), int(order[1]), int(order[-1])]
    alone = [step.loss(learner, replay.batch([Pick(row, 0)]), Clock()) for row in rows]
    both = step.loss(learner, replay.batch([Pick(row, 0) for row in rows]), Clock())
    shares = PAIRS.lengths[rows] / PAIRS.lengths[rows].sum()
    assert float(both.loss.detach()) == pytest.approx(
        sum(s * float(a.loss.detach()) for s, a in zip(shares, alone, strict=True)), rel=1e-5
    )
    for name in ("alpha", "adaptive_smoothing"):
        mean = sum(s * float(a.terms[name]) for s, a in zip(shares, alone, strict=True))
        assert float(both.terms[name]) == pytest.approx(mean, rel=1e-5)
    assert float(both.loss.detach()) == pytest.approx(float(both.terms["adaptive_smoothing"]))


class TestPast:
    def test_is_the_labels_before_there_is_one(self):
        batch = {"label": torch.tensor([2, -1])}
        task = Classification(("a", "b", "c"))
        assert PriorKnowledge(task, before="labels").targets(batch)["own/logits"].log_probabilities(1.0)[
            0
        ].exp().tolist() == [0, 0, 1]
        assert PriorKnowledge(task, before="uniform").targets(batch)["own/logits"].logits.tolist() == [[0.0] * 3] * 2
        masked = CausalLM(4, masked=(1, 3))
        said = PriorKnowledge(masked, before="uniform").prior(
            {"input": torch.zeros(1, 3).long(), "length": torch.tensor([3]), "weight": torch.ones(1)}
        )
        assert said.softmax(-1).tolist() == [[0.5, 0, 0.5, 0]] * 2
        mixed = {**batch, "partner_label": torch.tensor([0, 1]), "ratio": torch.tensor([0.25, 1.0])}
        found = PriorKnowledge(task, before="labels").prior(mixed)[0].exp()
        torch.testing.assert_close(found, torch.tensor([0.75, 0.0, 0.25]))

    def test_moves_with_improvements_alone(self, monkeypatch):
        seen = []
        real = Run.validated

        def validated(self, metric):
            (mine,) = [each for each in self.handlers if isinstance(each, PastSelf)]
            before, scripted = mine.digest, [3.0, 2.0, 3.0, 4.0][self.epoch - 1]
            improved = real(self, scripted)
            seen.append((improved, mine.digest == before))
            return improved

        monkeypatch.setattr(Run, "validated", validated)
        run(None, method=LIVE, training=training(epochs=4), validation=Validation(TEST))
        assert seen == [(True, False), (False, True), (False, True), (True, False)]

    def test_is_asked_without_dropout_and_without_gradient(self):
        learner = Learner(student(dropout=0.5), TASK).train()
        mine = PastSelf(learner, TASK, before="labels")
        mine.take(learner)
        batch = {"input": torch.rand(3, 1, 8, 8), "label": torch.tensor([1, 2, 3])}
        said = [mine.targets(batch)["own/logits"].logits for _ in range(2)]
        assert torch.equal(*said)
        assert not said[0].requires_grad
        assert learner.training


def test_until_validation_has_improved_it_is_plain_cross_entropy():
    ours = run(None, method=LIVE, training=training(epochs=1), validation=Validation(TEST))
    plain = run(None, method=Supervised(), training=training(epochs=1))
    assert_equal(ours.student, plain.student, 1e-6)
    assert ours.history[0]["train/adaptive_smoothing"] == pytest.approx(
        plain.history[0]["train/cross_entropy"], rel=1e-5
    )
    assert 0 < ours.history[0]["train/alpha"] < 1


def test_flags_reach_label_smoothing_and_self_knowledge_alone():
    both = AdaptiveLabelSmoothing(prior="uniform", alpha=0.1)
    assert not both.needs(TASK).validation
    smoothed = run(None, method=Supervised(label_smoothing=0.1))
    assert_equal(run(None, method=both).student, smoothed.student, 1e-6)
    own = run(None, method=AdaptiveLabelSmoothing(alpha=0.3), validation=Validation(TEST))
    assert [record["train/alpha"] for record in own.history] == pytest.approx([0.3, 0.3])


def test_chapters_are_the_copy_in_memory(tmp_path):
    """Views replay and chapters are written where epochs end, so that both are one method."""
    how = training(epochs=3)
    live = run(None, method=LIVE, training=how, validation=Validation(TEST))
    chapters = run(tmp_path / "run", method=CHAPTER, training=how, validation=Validation(TEST))
    assert_equal(chapters.student, live.student, 1e-5)
    assert [r["train/alpha"] for r in chapters.history] == pytest.approx(
        [r["train/alpha"] for r in live.history], abs=1e-5
    )
    plain = run(None, method=Supervised(), training=how)
    assert not torch.allclose(*(weights(each.student)["layers.1.weight"] for each in (live, plain)), atol=1e-4)
    written = [record for record in chapters.history if "chapter_seconds" in record]
    improved = [max(r["val/accuracy"] for r in chapters.history[: n + 1]) for n in range(3)]
    assert len(written) == 1 + sum(improved[n] > improved[n - 1] for n in (1, 2))
    assert {record["chapter_forwards"] for record in written} == {len(TRAIN) * views().n_views}
    assert all(record["chapter_seconds"] > 0 for record in written)
    assert chapters.teacher_forwards == 0
    (*_, last) = sorted((tmp_path / "run" / "chapters").iterdir())
    assert Book(last).plan.teachers[0].name.startswith("student after epoch ")


@pytest.mark.parametrize("method", [CHAPTER, AdaptiveLabelSmoothing(mode="chapter", codec="top_k", k=4)])
def test_chapters_of_translation(tmp_path, method):
    how = Training(epochs=3, batch_size=8, optimizer="adamw", lr=0.01, accelerator="cpu", seed=1)
    ends = []
    for chosen, out in ((LIVE, None), (method, tmp_path / "run")):
        done = learn(
            translator(), PAIRS, AS_THEY_ARE, task=TRANSLATE, method=chosen, training=how, out=out,
            validation=Validation(HELD_OUT),
        )  # fmt: skip
        ends.append(torch.cat([p.detach().flatten() for p in done.student.parameters()]))
    apart = float((ends[0] - ends[1]).norm() / ends[0].norm())
    assert apart < (1e-4 if method is CHAPTER else 0.1)


def killed(monkeypatch, path, steps, **options):
    with monkeypatch.context() as patch:
        stopped_after(patch, steps)
        with pytest.raises(StopError):
            run(path, **options)


@pytest.mark.parametrize("method", [LIVE, CHAPTER], ids=["live", "chapter"])
@pytest.mark.parametrize("steps", [17, 24])
def test_a_run_that_was_killed_ends_alike(tmp_path, monkeypatch, method, steps):
    """Eight steps an epoch: stopped inside the third epoch, and at its end."""
    how = training(epochs=4, checkpoint_steps=3)
    options = {"method": method, "training": how, "validation": Validation(TEST)}
    whole = run(tmp_path / "whole", **options)
    killed(monkeypatch, tmp_path / "killed", steps, **options)
    resumed = run(tmp_path / "killed", **options)
    assert_equal(resumed.student, whole.student)
    assert without_seconds(resumed.history) == without_seconds(whole.history)


@pytest.mark.parametrize("when", ["in", "behind"])
def test_a_chapter_that_is_not_complete_is_never_read(tmp_path, monkeypatch, when):
    """Killed inside of the second chapter's writing, or behind it and before the checkpoint: the run goes on from the first."""
    how, real, calls = training(epochs=3), past.write_units, []
    options = {"method": CHAPTER, "training": how, "validation": _validation()}
    whole = run(tmp_path / "whole", **{**options, "validation": _validation()})

    def dying(writer, knowledge, replay, *more):
        calls.append(knowledge.teacher.digest)
        if len(calls) == 2 and when == "in":
            unit = writer.pending()[0]
            batch = replay.batch([Pick(row, unit.view) for row in range(unit.start, min(unit.stop, unit.start + 8))])
            writer.write_rows(unit.view, unit.start, past_say(knowledge, batch, unit.view, unit.start))
            raise StopError
        return real(writer, knowledge, replay, *more)

    def unsaved(path, state):
        if len(calls) == 2:
            raise StopError
        return save(path, state)

    from bookkd.knowledge.writing import say as past_say
    from bookkd.learning import loop

    save = loop.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(past, "write_units", dying)
        if when == "behind":
            patch.setattr(loop, "save_checkpoint", unsaved)
        with pytest.raises(StopError):
            run(tmp_path / "killed", **options)
    assert (tmp_path / "killed" / "chapters" / "epoch-0001").is_dir()
    resumed = run(tmp_path / "killed", **{**options, "validation": _validation(1)})
    assert_equal(resumed.student, whole.student)
    kept = sorted(each.name for each in (tmp_path / "killed" / "chapters").iterdir())
    assert kept == ["epoch-0002", "epoch-0003"]


def _validation(start=0):
    return Validation(TEST, metric="rising", also=_rising(start), lower_is_better=False)


def _rising(start=0):
    """A metric that improves every time that it is asked for."""
    count = [start]

    def measure(network):
        count[0] += 1
        return {"rising": float(count[0])}

    return measure


def test_a_chapter_that_is_gone_is_missed(tmp_path, monkeypatch):
    options = {"method": CHAPTER, "training": training(epochs=3), "validation": Validation(TEST)}
    killed(monkeypatch, tmp_path / "r", 17, **options)
    shutil.rmtree(tmp_path / "r" / "chapters")
    with pytest.raises(CheckpointError, match=r"`chapter` to be the book that the checkpoint reads, got 'nothing'"):
        run(tmp_path / "r", **options)
    again = run(tmp_path / "r", overwrite=True, **options)
    assert again.history[-1]["epoch"] == 3


def test_what_it_cannot_do_without_is_asked_for_first(tmp_path):
    with pytest.raises(ConfigError, match=r"`validation` to be given for method adaptive-label-smoothing, got None"):
        run(None, method=LIVE)
    with pytest.raises(ConfigError, match=r"`out` to be a folder, for the books of the student's past, got None"):
        run(None, method=CHAPTER, validation=Validation(TEST))
    with pytest.raises(ConfigError, match=r"knowledge of logits for method adaptive-label-smoothing, got none"):
        run(None, method=AdaptiveLabelSmoothing(mode="final"))


def test_a_given_book_is_a_variant(tmp_path):
    """Of a book, the loss is that of the equation with the book's distribution; a sparse one must promise temperature 1."""
    final = AdaptiveLabelSmoothing(mode="final")
    stored = StoredKnowledge(book(tmp_path / "b"))
    assert final.needs(TASK).fields == {"logits": (1.0,)}
    network = student(dropout=0.0)
    learned = run(None, method=final, knowledge=stored, network=network, training=training(epochs=1))
    assert learned.teacher_forwards == 0
    batch = Replay(TRAIN, views()).batch([Pick(row, 0) for row in range(8)])
    step, learner = (
        Step(final.objective(TASK), TASK, stored),
        Learner(network, TASK, preprocess=lambda x: x.float() / 255),
    )
    log_p = learner(batch)["logits"].double().log_softmax(-1)
    a = 1 + (log_p.exp() * log_p).sum(-1) / math.log(10)
    phi = stored.targets(batch)["logits"].logits.double().softmax(-1)
    wanted = (1 - a) * -log_p[torch.arange(8), batch["label"]] - a * (phi * log_p).sum(-1)
    assert float(step.loss(learner, batch, Clock()).loss.detach()) == pytest.approx(
        float(wanted.detach().mean()), rel=1e-5
    )
    other = book(tmp_path / "sparse", codec=TopK(3, (4.0,)), temperatures=(4.0,))
    with pytest.raises(Exception, match="honour temperature 1 for method adaptive-label-smoothing"):
        run(None, method=final, knowledge=StoredKnowledge(other))


def test_another_metric_may_decide():
    """Accuracy rises while the calibration error does too: which one counts decides what the student's past is."""
    assert Validation(TEST, metric="nll").score({"accuracy": 0.5, "nll": 2.0}, TASK) == -2.0
    with pytest.raises(Exception, match=r"Unknown metric 'blue' \(validation\)\. Nearest: bleu"):
        run(
            None,
            method=LIVE,
            validation=Validation(TEST, metric="blue", also=lambda network: {"bleu": 1.0}, lower_is_better=False),
        )
    falling = iter([5.0, 4.0, 3.0])
    chosen = run(
        None, method=LIVE, training=training(epochs=3, patience=3),
        validation=Validation(TEST, metric="bleu", also=lambda network: {"bleu": next(falling)}),
    )  # fmt: skip
    assert chosen.epoch == 1
    assert [record["val/bleu"] for record in chosen.history] == [5.0, 4.0, 3.0]


def test_chapters_know_which_they_read():
    chapters = SelfChapters(TASK, before="labels", codec=TopK(3, (1.0,)))
    chapters.load_state_dict({"chapter": 7})
    assert chapters.state_dict() == {"chapter": 7}


def test_an_error_of_ones_own_is_better_when_lower():
    """Which way is better is said, never guessed."""
    rates = iter([0.5, 0.7, 0.9])
    chosen = run(
        None, method=LIVE, training=training(epochs=3, patience=3),
        validation=Validation(TEST, metric="ter", also=lambda network: {"ter": next(rates)}, lower_is_better=True),
    )  # fmt: skip
    assert chosen.epoch == 1
    with pytest.raises(ConfigError, match=r"`lower_is_better` to be True or False for metric ter, got None"):
        Validation(TEST, metric="ter", also=lambda network: {"ter": 1.0})
    with pytest.raises(ConfigError, match=r"`lower_is_better` to be True for metric wer, got False"):
        Validation(TEST, metric="wer", also=lambda network: {"wer": 1.0}, lower_is_better=False)
    with pytest.raises(ConfigError, match=r"`also` to be a function that returns metrics, got None"):
        run(None, method=LIVE, validation=Validation(TEST, metric="nll", also=lambda network: None))


def test_a_metric_that_nothing_measures_is_refused_before_anything_is_learnt(monkeypatch):
    monkeypatch.setattr(Run, "optimizer_step", None)
    with pytest.raises(UnknownNameError, match=r"Unknown metric 'acuracy'.* Nearest: accuracy"):
        Validation(TEST, metric="acuracy")
    with pytest.raises(UnknownNameError, match=r"Unknown metric 'wer' \(validation, task classification\)"):
        run(None, method=LIVE, validation=Validation(TEST, metric="wer"))
