"""On-policy learning: rounds of books that go on after any interruption, and the live form, in which each batch is the student's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from tests.making.test_making_texts import END, GPT2, V, network, prompts

from bookkd.book import Book, Sampled, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, FidelityError
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import OnPolicy, Training, learn
from bookkd.learning.learner import Learner
from bookkd.learning.measuring import measure_sequences
from bookkd.making import make, open_texts
from bookkd.methods import LLMKD, build_method
from bookkd.pipelines.rollouts import Rollouts, learn_by_rollouts, mixed_texts
from bookkd.tasks import CausalLM
from bookkd.views import Replay, Views

TASK, VIEWS, DATA = CausalLM(V), Views(None, n_views=1), prompts(24)
HOW = Training(epochs=2, batch_size=8, optimizer="adamw", lr=0.02, accelerator="cpu", schedule="constant")


def sampling(tokens=6):
    from bookkd.zoo import Decoding

    return Decoding(tokens, strategy="sample", end=END)


def student():
    return network({**GPT2, "n_embd": 8}, seed=7, outputs=V)


def teacher():
    return Teacher(network(), name="teacher")


def rollouts(**changes):
    return Rollouts(**{"rounds": 2, "decoding": sampling(), "training": HOW, "codec": TopK(8, (1.0,)), **changes})


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_rounds_bring_the_student_nearer_to_the_teacher_on_its_own_text(tmp_path):
    loaded = []

    def load():
        loaded.append(1)
        return teacher()

    begun = student()
    how = rollouts(
        rounds=2, share=1.0, training=Training(epochs=5, batch_size=8, optimizer="adamw", lr=0.02, accelerator="cpu")
    )
    found = learn_by_rollouts(tmp_path / "r", begun, load, DATA, how, validation=DATA)
    own = open_texts(tmp_path / "r" / "round-000" / "texts")
    before, after = (
        measure_sequences(each, own, TASK, teacher=network().eval(), replicates=0).metrics["teacher_kl"].value
        for each in (student().eval(), found.student)
    )
    assert after < 0.8 * before
    assert len(loaded) == 2
    digests = [(record["parent"], record["student"]) for record in found.rounds]
    assert [parent for parent, _ in digests[1:]] == [after for _, after in digests[:-1]]
    assert [record["written"] for record in found.rounds] == [24] * 2
    # Each round's text is that of the student that it begins with.
    written = [open_texts(tmp_path / "r" / f"round-00{turn}" / "texts") for turn in range(2)]
    assert [each.written_by.digest for each in written] == [parent for parent, _ in digests]
    assert not np.array_equal(written[0].tokens, written[1].tokens)
    assert all(parameter.requires_grad for parameter in begun.parameters())


class KilledError(Exception):
    pass


SHORT = {"training": Training(**{**HOW.__dict__, "epochs": 1})}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return learn_by_rollouts(tmp_path_factory.mktemp("w") / "whole", student(), teacher, DATA, rollouts(**SHORT))


@pytest.mark.parametrize("stage", ["write_texts", "make", "learn", "write_atomic"])
def test_interrupted_rounds_go_on_to_the_same_student(tmp_path, monkeypatch, whole, stage):
    from bookkd.pipelines import rollouts as module

    calls, plain = [], getattr(module, stage)

    def stopping(*given, **options):
        result = plain(*given, **options)
        calls.append(1)
        if len(calls) == 2:
            raise KilledError
        return result

    monkeypatch.setattr(module, stage, stopping)
    with pytest.raises(KilledError):
        learn_by_rollouts(tmp_path / "parts", student(), teacher, DATA, rollouts(**SHORT))
    monkeypatch.setattr(module, stage, plain)
    again = learn_by_rollouts(tmp_path / "parts", student(), teacher, DATA, rollouts(**SHORT))
    assert torch.equal(flat(again.student), flat(whole.student))
    assert again.rounds == whole.rounds

    def never():
        raise AssertionError("the teacher was asked again")

    finished = learn_by_rollouts(tmp_path / "parts", student(), never, DATA, rollouts(**SHORT))
    assert torch.equal(flat(finished.student), flat(whole.student))
    if stage == "learn":
        more = learn_by_rollouts(tmp_path / "parts", student(), teacher, DATA, rollouts(rounds=3, **SHORT))
        assert more.rounds[:2] == whole.rounds


def test_the_share_is_lambda(tmp_path):
    texts = prompts(400)
    written = type(texts).of("w", [np.append(texts.prompt(row).numpy(), [19, 19]) for row in range(400)], vocabulary=V)
    for share in (0.0, 0.3, 1.0):
        mixed = mixed_texts(texts, written, share, seed=1)
        own = np.array([mixed[row][0].tolist() == written[row][0].tolist() for row in range(400)])
        assert abs(own.mean() - share) <= 3 * np.sqrt(share * (1 - share) / 400)
        assert all(torch.equal(mixed[row][0], texts[row][0]) for row in np.flatnonzero(~own))
    other = mixed_texts(texts, written, 0.3, seed=1, turn=1)
    assert not np.array_equal(mixed_texts(texts, written, 0.3, seed=1).tokens, other.tokens)


def test_other_rounds_and_changed_students_are_refused(tmp_path):
    learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts(rounds=1))
    for name, call in {
        "start": lambda: learn_by_rollouts(tmp_path / "r", network(outputs=V), teacher, DATA, rollouts()),
        "texts": lambda: learn_by_rollouts(tmp_path / "r", student(), teacher, prompts(20), rollouts()),
        "share": lambda: learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts(share=0.1)),
        "codec": lambda: learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts(codec=TopK(4))),
        "method": lambda: learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts(method=LLMKD())),
    }.items():
        with pytest.raises(BookMismatchError, match=f"the same start, texts and options, got '?other {name}"):
            call()
    with pytest.raises(BookMismatchError, match=r"got '?other masked"):
        learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts(), masked=(3,))
    rows = [DATA[row][0].tolist() for row in range(len(DATA))]
    with pytest.raises(BookMismatchError, match=r"got '?other texts"):
        learn_by_rollouts(tmp_path / "r", student(), teacher, type(DATA).of("asked", rows, vocabulary=V), rollouts())
    note = tmp_path / "r" / "round-000" / "round.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "student": "0" * 64}))
    with pytest.raises(BookMismatchError, match=r"`student` to be 0000.*Delete this round"):
        learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts())
    with pytest.raises(FidelityError, match="draws, which bias them"):
        learn_by_rollouts(tmp_path / "d", student(), teacher, DATA, rollouts(codec=Sampled(20)))
    with pytest.raises(ConfigError, match="`share` to be between 0 and 1, got 2"):
        rollouts(share=2)


def test_all_rounds_are_of_one_teacher(tmp_path, monkeypatch):
    """It is noted when it is loaded: the second round refuses another, also where the first was killed behind its book."""
    from bookkd.pipelines import rollouts as module

    def killed(*given, **options):
        raise KilledError

    plain = module.learn
    monkeypatch.setattr(module, "learn", killed)
    with pytest.raises(KilledError):
        learn_by_rollouts(tmp_path / "r", student(), teacher, DATA, rollouts(**SHORT))
    monkeypatch.setattr(module, "learn", plain)

    def other():
        return Teacher(network(seed=5), name="another")

    noted = json.loads((tmp_path / "r" / "rollouts.json").read_text())["teacher"]
    assert noted == {"digest": teacher().digest, "mode": "eval"}
    with pytest.raises(BookMismatchError, match=rf"that of the rounds before, {teacher().digest[:16]} \(eval\)"):
        learn_by_rollouts(tmp_path / "r", student(), other, DATA, rollouts(**SHORT))
    assert not (tmp_path / "r" / "round-001" / "book").exists()


def live(model, folder=None, share=0.5, training=HOW, data=DATA, knowledge=None, **more):
    return learn(
        model, data, VIEWS, task=TASK, knowledge=knowledge or LiveKnowledge(teacher(), TASK),
        method=build_method("llm-kd", preset="gkd"), training=training, out=folder,
        on_policy=OnPolicy(sampling(), share=share, seed=3), **more,
    )  # fmt: skip


def test_a_batch_is_the_students_own_text_behind_the_prompts():
    batch = Replay(DATA, VIEWS).batch([(row, 0) for row in range(8)])
    learner = Learner(student(), TASK)
    every = OnPolicy(sampling(), share=1.0).rewritten(batch, learner, step=4, part=0)
    again = OnPolicy(sampling(), share=1.0).rewritten(batch, learner, step=4, part=0)
    assert torch.equal(every["input"], again["input"])
    for row in range(8):
        before, length = DATA.prompt(row), int(every["length"][row])
        assert torch.equal(every["input"][row, : len(before)], before)
        assert (every["label"][row, : len(before)] == -1).all()
        assert torch.equal(every["label"][row, len(before) : length], every["input"][row, len(before) : length])
        assert (every["label"][row, length:] == -1).all()
    assert not every["probe_taken"].any()
    assert OnPolicy(sampling(), share=0.0).rewritten(batch, learner, step=4, part=0) is batch
    half = OnPolicy(sampling(), share=0.5).rewritten(batch, learner, step=4, part=0)
    kept = [row for row in range(8) if torch.equal(half["input"][row, : int(batch["length"][row])], DATA[row][0])]
    assert 0 < len(kept) < 8
    seen, plain = TASK.batch(half), TASK.batch(batch)
    assert int(seen["weight"].sum()) != int(plain["weight"].sum()) or len(kept) < 8


def test_masked_tokens_are_never_written():
    batch, masked = Replay(DATA, VIEWS).batch([(row, 0) for row in range(8)]), (3, 4, 5, 7, 11)
    learner = Learner(student(), CausalLM(V, masked=masked))
    written = OnPolicy(sampling(12), share=1.0).rewritten(batch, learner, step=0, part=0)
    new = written["label"][written["label"] >= 0]
    assert len(new) > 40
    assert not np.isin(new.numpy(), masked).any()
    plain = OnPolicy(sampling(12), share=1.0).rewritten(batch, Learner(student(), TASK), step=0, part=0)["label"]
    assert np.isin(plain.numpy(), masked).any()


def test_no_gradient_flows_through_the_draws():
    """The gradient is that of the same tokens as a given text."""
    batch = Replay(DATA, VIEWS).batch([(row, 0) for row in range(8)])
    from bookkd.core.schedules import Clock
    from bookkd.learning.step import Step

    gradients = []
    for given in (False, True):
        model = student()
        learner = Learner(model, TASK).train()
        step = Step(build_method("llm-kd", preset="gkd").objective(TASK), TASK, LiveKnowledge(teacher(), TASK))
        rewritten = dict(OnPolicy(sampling(), share=1.0).rewritten(batch, learner, step=0, part=0))
        if given:
            rewritten = {
                key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in rewritten.items()
            }
        torch.manual_seed(0)
        step.loss(learner, rewritten, Clock()).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        assert not rewritten["input"].requires_grad
    assert torch.equal(*gradients)


def test_the_live_form_learns_and_resumes(tmp_path, monkeypatch):
    whole = live(student())
    assert whole.history[-1]["train/divergence"] < whole.history[0]["train/divergence"]
    assert whole.teacher_forwards == 48
    how = Training(**{**HOW.__dict__, "checkpoint_steps": 1})
    from bookkd.learning.run import Run

    plain, calls = Run.optimizer_step, []

    def stopping(self, *given, **options):
        if len(calls) == 4:
            raise KilledError
        calls.append(1)
        plain(self, *given, **options)

    monkeypatch.setattr(Run, "optimizer_step", stopping)
    with pytest.raises(KilledError):
        live(student(), tmp_path / "run", training=how)
    monkeypatch.setattr(Run, "optimizer_step", plain)
    again = live(student(), tmp_path / "run", training=how)
    assert torch.equal(flat(again.student), flat(whole.student))
    with pytest.raises(ConfigError, match=r"got other on_policy\.share"):
        live(student(), tmp_path / "run", share=0.9, training=how)


def test_what_cannot_be_on_policy_is_refused(tmp_path):
    book = make(tmp_path / "b", teacher(), DATA, VIEWS, task=TASK, codec=TopK(5))
    with pytest.raises(ConfigError, match=r"`knowledge` to be a live teacher, got a book .*learn_by_rollouts"):
        live(student(), knowledge=StoredKnowledge(Book(book.path)))
    from tests.tasks.test_causal_lm import Tiny

    with pytest.raises(ConfigError, match=r"`student` to be a LanguageModel, which can write, got 'Tiny'"):
        live(Tiny(0, outputs=V))
    with pytest.raises(
        ConfigError, match=r"`teacher` to be a callable that loads one, got a Teacher .*Pass lambda: Teacher"
    ):
        learn_by_rollouts(tmp_path / "r", student(), teacher(), DATA, rollouts())
    with pytest.raises(ConfigError, match="`share` to be between 0 and 1"):
        OnPolicy(sampling(), share=-1)
