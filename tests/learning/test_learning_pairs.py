"""A teacher of another tokenizer: which positions belong together, what is proven of the teacher's side, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tasks.test_causal_lm import Tiny, training
from tokenizers import Tokenizer, models, pre_tokenizers

from bookkd.book import Dense, Sampled, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, FidelityError, ViewMismatchError
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import learn, measure_sequences
from bookkd.learning.learner import Learner
from bookkd.learning.step import Step
from bookkd.making import make
from bookkd.methods import LLMKD, ULD
from bookkd.tasks import CausalLM, paired_positions
from bookkd.views import Replay, Views
from bookkd.zoo import PairedTokens, SubsetDataset, TokenDataset

LETTERS, PAIRS = "abcdefghijkl", [a + b for a in "abcd" for b in "abcd"]


def tokenizer(words, width):
    """Cuts a text into pieces of `width` letters."""
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.Split(__import__("tokenizers").Regex("." * width), "isolated")
    return made


FINE, COARSE = tokenizer(list("abcd"), 1), tokenizer(PAIRS, 2)
VIEWS, V_S, V_T = Views(None, n_views=1), 4, 16


def texts(count=30, prompts=False):
    rng = np.random.default_rng(0)
    found = [
        "".join("abcd"[(start + step) % 4] for step in range(2 * int(rng.integers(3, 9)))) for start in range(count)
    ]
    return [(text[:4], text[4:]) for text in found] if prompts else found


def pairs(**options):
    return PairedTokens.of_texts("letters", texts(**options), student=FINE, teacher=COARSE)


class Small(Tiny):
    """`Tiny` over another vocabulary."""

    def __init__(self, seed, outputs):
        super().__init__(seed, outputs=outputs)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = torch.nn.Embedding(outputs, 16)


TEACHER = Small(3, V_T)
with torch.no_grad():
    TEACHER.head.weight *= 12  # sure of itself, so that there is something to learn


@pytest.fixture
def book(tmp_path):
    return make(tmp_path / "b", Teacher(TEACHER), pairs().teacher, VIEWS, task=CausalLM(V_T), codec=Dense("float32"))


@pytest.mark.parametrize("prompts", [False, True])
def test_both_sides_are_the_text(prompts):
    data = pairs(prompts=prompts)
    for row, text in enumerate(texts(prompts=prompts)):
        whole = "".join(text)
        assert "".join("abcd"[token] for token in data.student[row][0]) == whole
        assert "".join(PAIRS[token] for token in data.teacher[row][0]) == whole
        assert data.beside(row) == {"teacher_length": len(whole) // 2, "teacher_shift": -2 if prompts else 0}
    if prompts:
        assert (data.student[0][1][:4] == -1).all()
        assert (data.teacher[0][1][:2] == -1).all()


@pytest.mark.parametrize("prompts", [False, True])
def test_the_loss_is_that_of_positions_paired_by_hand(tmp_path, prompts):
    data = pairs(prompts=prompts)
    book = make(tmp_path / "b", Teacher(TEACHER), data.teacher, VIEWS, task=CausalLM(V_T), codec=Dense("float32"))
    task, student, method = CausalLM(V_S), Small(5, V_S), ULD(ce_weight=0.0)
    step = Step(method.objective(task), task, StoredKnowledge(book))
    batch = Replay(data, VIEWS).batch([(row, 0) for row in (4, 0, 9)])
    value = step.loss(Learner(student, task), batch, Clock()).loss
    apart = []
    for row in (4, 0, 9):
        q = student(data.student[row][0][None])[0, :-1].softmax(-1)
        p = TEACHER(data.teacher[row][0][None])[0, :-1].softmax(-1)
        if prompts:  # the first described by the answer: token 4 of the student's, token 2 of the teacher's
            q, p = q[3:], p[1:]
        for mine, theirs in zip(q, p, strict=False):
            mine = torch.cat([mine, torch.zeros(V_T - V_S)])
            apart.append((mine.sort(descending=True).values - theirs.sort(descending=True).values).abs().sum())
    assert len(apart) > 10
    torch.testing.assert_close(value, torch.stack(apart).mean(), rtol=1e-5, atol=1e-6)


def test_a_student_learns_and_the_teachers_tokens_are_proven(book):
    student = Small(5, V_S)
    learned = learn(
        student, pairs(), VIEWS, task=CausalLM(V_S), knowledge=StoredKnowledge(book), method=ULD(ce_weight=0.1),
        training=training(epochs=6, probe_share=1.0), validation=pairs().student,
    )  # fmt: skip
    losses = [record["train/sorted_distance"] for record in learned.history]
    assert losses[-1] < losses[0]
    assert np.isfinite(learned.metrics["perplexity"])


@pytest.mark.parametrize("codec", [TopK(5, (1.0,)), Dense()])
def test_sorted_probabilities_come_from_any_book_but_draws(tmp_path, codec):
    data, how = pairs(), {"task": CausalLM(V_S), "method": ULD(), "training": training(epochs=1)}
    book = make(tmp_path / "b", Teacher(TEACHER), data.teacher, VIEWS, task=CausalLM(V_T), codec=codec)
    learn(Small(5, V_S), data, VIEWS, knowledge=StoredKnowledge(book), **how)
    drawn = make(tmp_path / "d", Teacher(TEACHER), data.teacher, VIEWS, task=CausalLM(V_T), codec=Sampled(20))
    with pytest.raises(FidelityError, match="not linear in it, got draws, which bias them"):
        learn(Small(5, V_S), data, VIEWS, knowledge=StoredKnowledge(drawn), **how)


def test_a_part_of_the_texts_finds_its_records(book):
    rows = np.array([20, 3, 11])
    learn(
        Small(5, V_S), SubsetDataset(pairs(), rows), VIEWS, task=CausalLM(V_S), knowledge=StoredKnowledge(book),
        method=ULD(), rows=rows.tolist(), training=training(epochs=1, batch_size=3, probe_share=1.0),
    )  # fmt: skip


def test_what_is_not_that_text_is_refused(book, tmp_path):
    data, knowledge = pairs(), StoredKnowledge(book)

    def run(dataset, method=None, known=knowledge, **more):
        learn(
            Small(5, V_S), dataset, VIEWS, task=CausalLM(V_S), knowledge=known, method=method or ULD(),
            training=training(epochs=1, probe_share=1.0), **more,
        )  # fmt: skip

    with pytest.raises(
        ConfigError, match=r"different tokens, got 'divergence' .*Use method uld, or let the teacher write"
    ):
        run(data, LLMKD())
    with pytest.raises(ConfigError, match=r"`knowledge` to be a book, got a live teacher.*fed the student's tokens"):
        run(data, known=LiveKnowledge(Teacher(TEACHER), CausalLM(V_T)))
    with pytest.raises(BookMismatchError, match=r"data vocabulary is 4, the book's is 16"):
        run(data.student)
    moved = PairedTokens(data.student, TokenDataset.of("x", [data.teacher[i][0] for i in [1, 0, *range(2, 30)]], vocabulary=V_T, tokenizer=data.teacher.tokenizer))  # fmt: skip
    with pytest.raises(BookMismatchError, match="data content is"):
        run(moved)
    with pytest.raises(ViewMismatchError, match="sample"):
        run(moved, rows=list(range(30)))
    with pytest.raises(ConfigError, match=r"`transform` to be None where the teacher sees the text in other tokens"):
        Replay(data, Views(torch.clone, n_views=1))
    with pytest.raises(ConfigError, match=r"`dataset` to be one side of the pairs, got 'PairedTokens'.*its `teacher`"):
        make(tmp_path / "b", Teacher(TEACHER), data, VIEWS, task=CausalLM(V_T))
    with pytest.raises(ConfigError, match="`teacher` to be none: it would be fed the student's tokens"):
        measure_sequences(Small(5, V_S), data, CausalLM(V_S), teacher=TEACHER, replicates=0)
    with pytest.raises(ConfigError, match="`book` to be none: it speaks of other tokens"):
        measure_sequences(Small(5, V_S), data, CausalLM(V_S), book=knowledge, replicates=0)
    with pytest.raises(DataError, match=r"`texts` to be as many on both sides, got 30 and 29"):
        PairedTokens(data.student, pairs(count=29).teacher)


def test_a_book_of_other_lengths_is_refused_at_the_step(book):
    batch = Replay(pairs(), VIEWS, probe_share=0).batch([(0, 0), (1, 0)])
    said = StoredKnowledge(book).targets(batch)
    batch["teacher_length"] += 1
    with pytest.raises(
        BookMismatchError, match=r"`logits` to be at \d+ positions, got .*the teacher's side of the pairs"
    ):
        CausalLM(V_S).targets(said, batch)


def test_positions_without_a_partner():
    """A prompt that the student has more tokens of than the teacher in all: nothing belongs together."""
    batch = {"length": torch.tensor([5]), "teacher_length": torch.tensor([2]), "teacher_shift": torch.tensor([-9])}
    place, paired = paired_positions(batch)
    assert place.tolist() == [0] * 4
    assert not paired.any()
