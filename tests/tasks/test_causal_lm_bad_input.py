"""What goes wrong with language models: masked tokens, texts cut elsewhere or moved by one, positions that teach nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tasks.test_causal_lm import DATA, VIEWS, Tiny, V, batch, training

from bookkd.book import Dense, Int8, Sampled, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, TeacherOutputError, ViewMismatchError
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import learn
from bookkd.learning.learner import Learner
from bookkd.learning.measuring import measure_sequences
from bookkd.learning.step import Step
from bookkd.making import make
from bookkd.methods import LLMKD, Supervised
from bookkd.tasks import CausalLM
from bookkd.zoo import TokenDataset

RESERVED = (0, 7)
TASK, MASKED = CausalLM(V), CausalLM(V, masked=RESERVED)
ROWS = [[*(token for token in DATA[row][0].tolist() if token not in RESERVED), 1, 2] for row in range(12)]
WITHOUT = TokenDataset.of("plain", ROWS, vocabulary=V)


class Ruling(Tiny):
    """Says -inf of some tokens."""

    def __init__(self, seed, ruled):
        super().__init__(seed)
        self.ruled = list(ruled)

    def forward(self, tokens):
        return super().forward(tokens).index_fill(2, torch.tensor(self.ruled), -torch.inf)


def flat(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def test_infinity_outside_of_masked_tokens_is_refused_on_making(tmp_path):
    for place, (ruled, task) in enumerate([((3,), TASK), ((0, 3), MASKED)]):
        with pytest.raises(
            TeacherOutputError, match=r"`logits` to be finite, got '-inf' \(sample 0.*position 0\).*CausalLM\(masked="
        ):
            make(tmp_path / f"{place}", Teacher(Ruling(1, ruled)), WITHOUT, VIEWS, task=task)
    for place, value in enumerate((np.nan, np.inf)):
        broken = Tiny(1)
        with torch.no_grad():
            broken.head.bias[2] = value
        with pytest.raises(TeacherOutputError, match=f"`logits` to be finite, got '{value}'"):
            make(tmp_path / f"broken-{place}", Teacher(broken), WITHOUT, VIEWS, task=MASKED)


@pytest.mark.parametrize(
    "codec", [Dense(), Int8(), TopK(4, (1.0,)), TopK(V, (1.0,)), TopK(5, (1.0,), always=(7,)), Sampled(30)]
)
def test_masked_tokens_make_no_nan(tmp_path, codec):
    """Whether the teacher says -inf of them itself or not: nobody says them, and every loss and gradient is a number."""
    book = make(tmp_path / "b", Teacher(Ruling(1, RESERVED)), WITHOUT, VIEWS, task=MASKED, codec=codec)
    same = make(tmp_path / "c", Teacher(Tiny(1)), WITHOUT, VIEWS, task=MASKED, codec=codec)
    assert book.plan.masked_classes == same.plan.masked_classes == RESERVED
    names = ("forward-kl",) if codec.linear else ("forward-kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl")
    for name in names:
        student, method = Tiny(9), LLMKD(divergence=name, ce_weight=0.5)
        learned = learn(
            student, WITHOUT, VIEWS, task=MASKED, knowledge=StoredKnowledge(book), method=method,
            training=training(epochs=1), validation=WITHOUT,
        )  # fmt: skip
        assert np.isfinite(learned.history[-1]["train/loss"])
        assert torch.isfinite(flat(student)).all()
        assert np.isfinite(learned.metrics["perplexity"])
    said = MASKED.fields(student(*MASKED.inputs(batch(0, data=WITHOUT))), batch(0, data=WITHOUT))["logits"]
    assert (said.softmax(-1)[:, list(RESERVED)] == 0).all()


def test_masked_tokens_are_measured():
    found = measure_sequences(Tiny(2), WITHOUT, MASKED, teacher=Tiny(1), replicates=0).metrics
    assert all(np.isfinite(found[name].value) for name in ("nll", "acceptance", "teacher_kl", "entropy"))


@pytest.mark.parametrize("name", ["reverse-kl", "jsd"])
def test_the_teacher_itself_is_at_zero_with_masked_tokens(tmp_path, name):
    book = make(tmp_path / "b", Teacher(Tiny(1)), WITHOUT, VIEWS, task=MASKED, codec=Dense("float32"))
    step = Step(LLMKD(divergence=name).objective(MASKED), MASKED, StoredKnowledge(book))
    student = Tiny(1)
    loss = step.loss(Learner(student, MASKED), batch(0, 5, data=WITHOUT), Clock()).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert max(float(parameter.grad.abs().max()) for parameter in student.parameters()) < 1e-5


def test_masks_that_contradict_are_refused(tmp_path):
    book = make(tmp_path / "b", Teacher(Tiny(1)), WITHOUT, VIEWS, task=MASKED)
    with pytest.raises(BookMismatchError, match=r"masked classes are none, the book's are 0, 7"):
        learn(Tiny(9), WITHOUT, VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=LLMKD(), training=training())
    with pytest.raises(DataError, match=r"`label` to be none of the masked tokens, got \d.*hide its label"):
        learn(Tiny(9), DATA, VIEWS, task=MASKED, training=training())
    with pytest.raises(ConfigError, match=r"`masked` to be below the 12 tokens, got 12"):
        CausalLM(V, masked=(12,))
    with pytest.raises(ConfigError, match="`masked` to be without repeats, got 3 twice"):
        CausalLM(V, masked=(3, 3))
    with pytest.raises(ConfigError, match=r"`label_smoothing` to be 0 with masked tokens, got 0\.1"):
        learn(Tiny(9), WITHOUT, VIEWS, task=MASKED, method=Supervised(label_smoothing=0.1), training=training())
    with pytest.raises(ConfigError, match="`masked` to be some tokens, not all"):
        CausalLM(2, masked=(0, 1))


def cut(length):
    return TokenDataset.of(
        "counting", [DATA[row][0][:length] for row in range(len(DATA))], vocabulary=V, tokenizer="none"
    )


def moved():
    """Each text without its first token: every position of the book is one too far."""
    rows = [row for row in range(len(DATA)) if len(DATA[row][0]) > 2]
    return TokenDataset.of("counting", [DATA[row][0][1:] for row in rows], vocabulary=V, tokenizer="none"), rows


def test_texts_cut_at_another_length_or_moved_by_one_are_refused(tmp_path):
    book = StoredKnowledge(make(tmp_path / "b", Teacher(Tiny(1)), cut(12), VIEWS, task=TASK))

    def run(data, **more):
        learn(Tiny(9), data, VIEWS, task=TASK, knowledge=book, method=LLMKD(), training=training(epochs=1), **more)

    with pytest.raises(
        BookMismatchError, match=r"the longest sequence has 7 positions, the book's 11, as if cut at another"
    ) as said:
        run(cut(8))
    assert "\n" not in str(said.value)
    with pytest.raises(ViewMismatchError):
        run(cut(8), rows=list(range(len(DATA))))
    data, rows = moved()
    with pytest.raises(ViewMismatchError, match="sample"):
        run(data, rows=rows)


def test_positions_that_teach_nothing():
    """A text of hidden labels alone adds neither loss nor gradient, and a batch of such texts gives exactly 0."""
    hidden = TokenDataset("hidden", DATA.tokens, DATA.ends, V, learnt=np.zeros(len(DATA.tokens), bool))
    task, method = TASK, LLMKD(ce_weight=1.0)
    student = Tiny(3)
    seen = batch(0, 1, data=hidden)
    loss = (
        Step(method.objective(task), task, LiveKnowledge(Teacher(Tiny(1)), task))
        .loss(Learner(student, task), seen, Clock())
        .loss
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in student.parameters())


class Knowing(torch.nn.Module):
    """Says what comes next in a text that counts, or what stands there already."""

    def __init__(self, ahead):
        super().__init__()
        self.ahead, self.weight = ahead, torch.nn.Parameter(torch.ones(1))

    def forward(self, tokens):
        return 6 * torch.nn.functional.one_hot((tokens + self.ahead) % V, V) * self.weight


def test_logits_that_are_moved_by_one_are_warned_of(tmp_path):
    counting = TokenDataset.of("counting", [np.arange(start, start + 9) % V for start in range(8)], vocabulary=V)
    make(tmp_path / "right", Teacher(Knowing(1)), counting, VIEWS, task=TASK)
    with pytest.warns(UserWarning, match=r"`logits` to be likelier at the next token .* \(nll 0\.0\d\), got nll 6"):
        make(tmp_path / "moved", Teacher(Knowing(0)), counting, VIEWS, task=TASK)
