"""Causal language models from a book: alignment, lengths, prompts, and the same student as with the teacher in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bookkd.book import Dense, Int8, Sampled, TopK
from bookkd.core.errors import (
    BookMismatchError,
    BookMissingError,
    ConfigError,
    DataError,
    TeacherOutputError,
    ViewMismatchError,
)
from bookkd.core.fields import IGNORE_LABEL
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Training, learn, measure_sequences
from bookkd.losses import DenseTarget
from bookkd.making import make
from bookkd.methods import LLMKD, Supervised, VanillaKD
from bookkd.tasks import CausalLM
from bookkd.views import Replay, Views
from bookkd.zoo import SubsetDataset, TokenDataset

V = 12


class Tiny(nn.Module):
    """An embedding and a GRU: what it says at a token depends on the tokens before it alone."""

    def __init__(self, seed: int, width: int = 16, outputs: int = V) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed, self.cell = nn.Embedding(V, width), nn.GRU(width, width, batch_first=True)
            self.head = nn.Linear(width, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.embed(tokens))[0])


def text(count: int = 40, seed: int = 0) -> TokenDataset:
    """Counting upwards from a random token, now and then interrupted."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(rng.integers(2, 15))
        steps = np.where(rng.random(length) < 0.9, 1, 5)
        found.append((rng.integers(V) + np.cumsum(steps)) % V)
    return TokenDataset.of("counting", found, vocabulary=V, tokenizer="none")


TASK, DATA, VIEWS = CausalLM(V), text(), Views(None, n_views=1)


def batch(*rows: int, data=DATA):
    return Replay(data, VIEWS).batch([(row, 0) for row in rows])


def test_positions_are_those_that_describe_a_token():
    found = batch(3, 0, 7)
    lengths = [len(DATA[row][0]) for row in (3, 0, 7)]
    assert found["length"].tolist() == lengths
    assert found["input"].shape == (3, max(lengths))
    logits = Tiny(0)(*TASK.inputs(found))
    said = TASK.fields(logits, found)["logits"]
    wanted = torch.cat([logits[row, : length - 1] for row, length in enumerate(lengths)])
    assert torch.equal(said, wanted)
    seen = TASK.batch(found)
    assert torch.equal(seen["label"], torch.cat([DATA[row][0][1:] for row in (3, 0, 7)]))
    assert TASK.counts(found).tolist() == [length - 1 for length in lengths]
    assert torch.equal(TASK.weights(seen), torch.ones(sum(lengths) - 3))


def test_padding_is_never_seen():
    """What stands behind a sequence changes neither fields nor labels of it."""
    alone, padded = batch(3), batch(3, 0, 7)
    network = Tiny(1)
    count = int(alone["length"]) - 1
    first = TASK.fields(network(*TASK.inputs(padded)), padded)["logits"][:count]
    torch.testing.assert_close(first, TASK.fields(network(*TASK.inputs(alone)), alone)["logits"])
    assert torch.equal(TASK.batch(padded)["label"][:count], TASK.batch(alone)["label"])


def test_tokens_of_a_prompt_weigh_nothing():
    learnt = np.ones(len(DATA.tokens), dtype=bool)
    learnt[:3] = False  # the first three tokens of the first sequence
    data = TokenDataset("prompted", DATA.tokens, DATA.ends, V, learnt=learnt)
    seen = TASK.batch(batch(0, 1, data=data))
    assert seen["label"][:2].tolist() == [IGNORE_LABEL] * 2
    assert seen["weight"][:2].tolist() == [0.0, 0.0]
    assert seen["weight"][2:].min() == 1.0


def test_an_output_layer_that_is_padded_is_cut():
    found = batch(0, 1)
    wide = Tiny(0, outputs=V + 4)
    assert TASK.fields(wide(*TASK.inputs(found)), found)["logits"].shape[1] == V
    with pytest.raises(TeacherOutputError, match=r"at least 12\], got shape \(2, \d+, 9\)"):
        TASK.fields(Tiny(0, outputs=9)(*TASK.inputs(found)), found)
    with pytest.raises(TeacherOutputError, match="of the data's tokens"):
        TASK.fields(wide(*TASK.inputs(found))[:, :-1], found)


class Shifted(Tiny):
    """Puts a token of its own in front, so that what it says at a position is one token behind."""

    def forward(self, tokens):
        return super().forward(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1))


def test_a_network_that_says_one_position_more_is_refused(tmp_path):
    with pytest.raises(TeacherOutputError, match=r"`logits` to be \[\d+, \d+, at least 12\], got shape"):
        make(tmp_path / "book", Teacher(Shifted(0), name="shifted"), DATA, VIEWS, task=TASK)
    with pytest.raises(TeacherOutputError, match=r"`logits` to be \[\d+, \d+, at least 12\], got shape"):
        learn(Shifted(0), DATA, VIEWS, task=TASK, method=Supervised(), training=training(epochs=1))


class Viewing(Tiny):
    """Takes its tokens apart by `view`, as scripts do."""

    def forward(self, tokens):
        return super().forward(tokens.view(-1).view(tokens.shape))


def test_a_network_is_not_given_the_last_column():
    """Of sequences of one length and of several; where all are as long, no logit is copied."""
    network = Viewing(0)
    for samples in ((0, 1), (0, 0)):
        found = batch(*samples)
        (given,) = TASK.inputs(found)
        assert torch.equal(given, found["input"][:, :-1])
        logits = network(given)
        taken = TASK.fields(logits, found)["logits"]
        full = network(found["input"])
        wanted = [full[row, : length - 1] for row, length in enumerate(found["length"].tolist())]
        torch.testing.assert_close(taken, torch.cat(wanted))
        same = taken.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
        assert same == (len(set(samples)) == 1)


def test_features_are_of_the_columns_that_a_network_is_given(tmp_path):
    """A mean over the tokens but the last, whoever else is in the batch, from a book as from a live teacher."""
    network, name, rows = Tiny(2), "features/cell/mean", (3, 0, 7)
    teacher = Teacher(network, name="tiny")
    live = LiveKnowledge(teacher, TASK)
    live.offer([name], batch(3))
    said = live.targets(batch(*rows), [name])[name]
    for place, row in enumerate(rows):
        tokens = DATA[row][0][:-1]
        torch.testing.assert_close(said[place], network.cell(network.embed(tokens[None]))[0][0].mean(0))
    book = make(
        tmp_path / "book",
        teacher,
        DATA,
        VIEWS,
        task=TASK,
        features=[name],
        feature_codec=Dense("float32"),
        batch_size=5,
    )
    torch.testing.assert_close(StoredKnowledge(book).targets(batch(*rows), [name])[name], said)


@pytest.fixture(scope="module")
def teacher():
    network = Tiny(5, width=24)
    learn(network, text(200, 1), VIEWS, task=TASK, method=Supervised(), training=training(epochs=6))
    return Teacher(network, name="counter")


def training(**changes):
    return Training(**{"batch_size": 16, "lr": 0.3, "momentum": 0.9, "epochs": 2, "accelerator": "cpu", **changes})


def test_a_book_says_what_the_teacher_says(teacher, tmp_path):
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=Dense("float32"), batch_size=7)
    assert (book.plan.task, book.plan.data["tokenizer"], book.plan.data["vocabulary"]) == ("causal-lm", "none", V)
    assert book.fields["logits"].positions == int(DATA.lengths.max()) - 1
    found = batch(5, 2, 11)
    mine = StoredKnowledge(book).targets(found)["logits"].logits
    theirs = LiveKnowledge(teacher, TASK).targets(found)["logits"].logits
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert StoredKnowledge(book).fields["logits"].by_position


@pytest.mark.parametrize("codec", [Dense("float32"), TopK(V - 1, (1.0,)), Int8(), TopK(3, (1.0,)), Sampled(64)])
def test_a_student_learns_from_a_book_as_from_the_teacher(teacher, tmp_path, codec):
    method = VanillaKD(temperature=1.0)
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=codec)
    students = []
    for knowledge in (StoredKnowledge(book), LiveKnowledge(teacher, TASK)):
        student = Tiny(9)
        learned = learn(student, DATA, VIEWS, task=TASK, knowledge=knowledge, method=method, training=training())
        students.append(torch.cat([parameter.detach().flatten() for parameter in learned.student.parameters()]))
    apart = float((students[0] - students[1]).norm() / students[1].norm())
    assert apart < (1e-6 if codec.name == "dense" else 0.005)


def test_a_book_that_is_off_by_one_teaches_something_else(teacher, tmp_path):
    """The limit above tells: the same book read one position too late is more than it away."""
    students = []
    for shift in (0, 1):
        book = StoredKnowledge(make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=Dense("float32")))
        student, said = Tiny(9), book.targets

        def shifted(batch, fields=None, said=said, shift=shift):
            return {name: DenseTarget(each.logits.roll(shift, 0)) for name, each in said(batch, fields).items()}

        book.targets = shifted
        learned = learn(
            student, DATA, VIEWS, task=TASK, knowledge=book, method=VanillaKD(temperature=1.0), training=training()
        )
        students.append(torch.cat([parameter.detach().flatten() for parameter in learned.student.parameters()]))
    assert float((students[0] - students[1]).norm() / students[0].norm()) > 0.03


def test_the_loss_does_not_depend_on_how_positions_are_split(teacher, tmp_path):
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=TopK(4, (1.0,)))
    weights = []
    for size, accumulate in ((20, 1), (5, 4), (1, 20)):
        student = Tiny(9).double()
        how = training(batch_size=size, accumulate=accumulate, epochs=1)
        learn(
            student,
            DATA,
            VIEWS,
            task=TASK,
            knowledge=StoredKnowledge(book),
            method=VanillaKD(temperature=1.0),
            training=how,
        )
        weights.append(torch.cat([parameter.detach().flatten() for parameter in student.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-6, atol=1e-6)


def test_draws_and_labels_do_not_depend_on_how_positions_are_split(teacher, tmp_path):
    """Of the method of language models, where each position weighs the same whatever its batch, and where draws differ in number."""
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=Sampled(20))
    weights = []
    for size, accumulate in ((20, 1), (5, 4), (1, 20)):
        student, method = Tiny(9).double(), LLMKD(ce_weight=0.3)
        how = training(batch_size=size, accumulate=accumulate, epochs=1)
        learn(student, DATA, VIEWS, task=TASK, knowledge=book.path, method=method, training=how)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in student.parameters()]))
    assert float((weights[0] - torch.cat([p.detach().flatten() for p in Tiny(9).parameters()])).norm()) > 0.1
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-6, atol=1e-6)


def test_what_is_no_knowledge_and_no_validation_is_refused(teacher):
    with pytest.raises(ConfigError, match="`knowledge` to be a book or a live teacher, got a Tiny"):
        learn(Tiny(9), DATA, VIEWS, task=TASK, knowledge=Tiny(0), method=LLMKD(), training=training())
    with pytest.raises(BookMissingError):
        learn(Tiny(9), DATA, VIEWS, task=TASK, knowledge="no/book", method=LLMKD(), training=training())
    with pytest.raises(DataError, match=r"`validation` to be of pairs, got a int \(sample 0\)"):
        learn(Tiny(9), DATA, VIEWS, task=TASK, method=Supervised(), training=training(), validation=[1, 2])


def test_a_book_notes_what_it_cuts_of_a_padded_output_layer(tmp_path):
    wide = make(tmp_path / "w", Teacher(Tiny(0, outputs=V + 4)), DATA, VIEWS, task=TASK, codec=TopK(3, (1.0,)))
    assert wide.cost["outputs"] == {"said": V + 4, "kept": V}
    assert "outputs" not in make(tmp_path / "b", Teacher(Tiny(0)), DATA, VIEWS, task=TASK, codec=TopK(3, (1.0,))).cost


def test_other_tokens_are_refused(teacher, tmp_path):
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=Dense())
    student, method = Tiny(0), VanillaKD(temperature=1.0)

    def run(data):
        learn(student, data, VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=method, training=training())

    shifted = TokenDataset.of(
        "counting", [np.roll(DATA[i][0], 1) for i in range(len(DATA))], vocabulary=V, tokenizer="none"
    )
    with pytest.raises(BookMismatchError, match="data content"):
        run(shifted)
    with pytest.raises(BookMismatchError, match="tokenizer"):
        run(TokenDataset(DATA.name, DATA.tokens, DATA.ends, V, tokenizer="another"))
    hidden = Replay(shifted, VIEWS).batch([(0, 0), (1, 0)])
    with pytest.raises(ViewMismatchError):
        StoredKnowledge(book).targets(hidden)


def test_one_token_that_differs_is_seen_by_the_probe(teacher, tmp_path):
    """Projections of large token numbers move by less than rounding: the hash alone counts."""
    big = TokenDataset.of("big", [np.arange(29_000, 31_000)] * 3, vocabulary=40_000)
    items = Replay(big, VIEWS).__getitems__([(0, 0)])
    from bookkd.views import check_probes, probe

    hashes, projections = probe([items[0]["input"]])
    changed = items[0]["input"].clone()
    changed[7] += 1
    taken, there = torch.tensor([True]), probe([changed])
    seen = {"probe_taken": taken, "probe/hash": there[0], "probe/projections": there[1], "input": changed[None]}
    with pytest.raises(ViewMismatchError):
        check_probes(seen, hashes.numpy().view(np.uint64), projections.numpy().astype(np.float32), recipe_versions={})


@pytest.mark.parametrize(
    ("make_data", "message"),
    [
        (lambda: TokenDataset.of("x", [[1, 2], [3]], vocabulary=5), "1 tokens in sequence 1"),
        (lambda: TokenDataset.of("x", [[1, 2], []], vocabulary=5), "0 tokens in sequence 1"),
        (
            lambda: TokenDataset.of("x", [[1, 2], [1, 5]], vocabulary=5),
            r"`token` to be from 0 to 4, got 5 \(x, sequence 1",
        ),
        (lambda: TokenDataset.of("x", [], vocabulary=5), "at least two tokens"),
        (lambda: TokenDataset("x", np.zeros(3, np.int64), np.array([2]), 5), "end with the last"),
        (lambda: TokenDataset("x", np.zeros(3), np.array([3]), 5), "whole numbers in one row"),
    ],
)
def test_sequences_that_describe_nothing_are_refused(make_data, message):
    with pytest.raises(DataError, match=message):
        make_data()


def test_part_of_the_data_finds_its_records(teacher, tmp_path):
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=Dense("float32"))
    rows = np.array([30, 3, 17, 9])
    part = SubsetDataset(DATA, rows)
    student = Tiny(1)
    learn(
        student, part, VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=VanillaKD(temperature=1.0),
        rows=rows.tolist(), training=training(epochs=1, batch_size=2, probe_share=1.0),
    )  # fmt: skip


def test_validation_is_perplexity_by_the_equation(teacher):
    held_out = text(30, 7)
    student = Tiny(9)
    learned = learn(student, DATA, VIEWS, task=TASK, method=Supervised(), training=training(), validation=held_out)
    total, count = 0.0, 0
    with torch.no_grad():
        for tokens, _ in (held_out[i] for i in range(len(held_out))):
            total += float(
                nn.functional.cross_entropy(learned.student(tokens[None])[0, :-1], tokens[1:], reduction="sum")
            )
            count += len(tokens) - 1
    assert learned.metrics["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)
    found = measure_sequences(learned.student, held_out, TASK, teacher=teacher, batch_size=7, replicates=10)
    assert found.metrics["perplexity"].value == pytest.approx(np.exp(total / count), rel=1e-5)
    assert 0 < found.metrics["agreement"].value <= 1
    assert found.n == 30
