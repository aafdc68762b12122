"""Sequences on their way through a step: padding and labels of their own length, several passes, terms between two of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bookkd.core.errors import ConfigError
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Learner, Step, Training, Validation, learn
from bookkd.losses import claims, soft_target_kl
from bookkd.making import make
from bookkd.methods import LLMKD, VanillaKD
from bookkd.objectives import Objective, bind
from bookkd.tasks import CausalLM, Classification, predict
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import TokenDataset, create_causal_lm, pack

VIEWS = Views(None, n_views=1)
THREE = Classification(("a", "b", "c"))


class Sequences:
    """Token sequences with one class each, or with a label of another length."""

    pad_value = 0

    def __init__(self, labels="class", label_is_input=False):
        rng = np.random.default_rng(0)
        self.tokens = [torch.from_numpy(rng.integers(1, 6, length)) for length in (3, 5, 2, 4, 6, 3, 2, 7)]
        self.kinds = torch.arange(8) % 3
        self.texts = [torch.from_numpy(rng.integers(1, 4, length)) for length in (2, 1, 4, 3, 2, 2, 1, 5)]
        self.with_texts, self.label_is_input = labels == "text", label_is_input
        self.lengths = [len(each) for each in self.tokens]

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.tokens[index], self.texts[index] if self.with_texts else int(self.kinds[index])


class Encoder(nn.Module):
    """The mean of the embeddings of the tokens that are there, and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(6, 8), nn.Dropout(dropout), nn.Linear(8, 3)

    def forward(self, tokens, lengths):
        there = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])[..., None]
        return self.head(self.drop((self.embed(tokens) * there).sum(1) / lengths[:, None]))


def test_labels_are_padded_to_their_own_longest():
    batch = Replay(Sequences("text"), VIEWS).batch([Pick(0, 0), Pick(2, 0)])
    assert batch["input"].shape == (2, 3)
    assert batch["length"].tolist() == [3, 2]
    assert batch["label"].shape == (2, 4)
    assert batch["label_length"].tolist() == [2, 4]
    assert batch["label"][0, 2:].tolist() == [-1, -1]


def test_floating_labels_are_padded_with_nan():
    class Numbers(Sequences):
        def __getitem__(self, index):
            return self.tokens[index], self.texts[index].float()

    batch = Replay(Numbers(), VIEWS).batch([Pick(0, 0), Pick(2, 0)])
    assert batch["label"][0].isnan().tolist() == [False, False, True, True]


def test_probes_cover_labels_that_a_network_is_given():
    plain, forced = Sequences("text"), Sequences("text", label_is_input=True)

    def hashes(data):
        return Replay(data, VIEWS).batch([Pick(i, 0) for i in range(8)])["probe/hash"]

    before = hashes(plain), hashes(forced)
    assert not torch.equal(*before)
    for data in (plain, forced):
        data.texts[3] = data.texts[3].roll(1)
    assert torch.equal(hashes(plain), before[0])
    assert (hashes(forced) != before[1]).nonzero().flatten().tolist() == [3]


def test_a_token_moved_over_the_border_of_view_and_label_is_seen():
    data = Sequences("text", label_is_input=True)
    first = Replay(data, VIEWS).batch([Pick(0, 0)])["probe/hash"]
    joined = torch.cat([data.tokens[0], data.texts[0]])
    data.tokens[0], data.texts[0] = joined[:4], joined[4:]
    assert Replay(data, VIEWS).batch([Pick(0, 0)])["probe/hash"] != first


@pytest.mark.parametrize("accumulate", [1, 2])
def test_classes_of_sequences_from_a_book_and_live(tmp_path, accumulate):
    """Text classification is classification: the network is given lengths, in making, learning and measuring alike."""
    data = Sequences()
    torch.manual_seed(0)
    teacher = Teacher(Encoder())
    book = make(tmp_path / "book", teacher, data, VIEWS, task=THREE)
    ends = []
    for knowledge in (_stored(book), LiveKnowledge(teacher, THREE)):
        torch.manual_seed(1)
        done = learn(
            Encoder(),
            data,
            VIEWS,
            task=THREE,
            knowledge=knowledge,
            method=VanillaKD(),
            training=Training(epochs=2, batch_size=4, accumulate=accumulate, accelerator="cpu"),
            validation=Validation(data, batch_size=3),
        )
        ends.append([p.detach() for p in done.student.parameters()])
        assert 0 <= done.metrics["accuracy"] <= 1
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*ends, strict=True))


def test_padding_changes_no_prediction():
    data, network = Sequences(), Encoder().eval()
    one, many = (predict(network, data, THREE, batch_size=size).fields["logits"] for size in (1, 8))
    assert torch.allclose(one, many, atol=1e-6)


def _stored(book):
    from bookkd.knowledge import StoredKnowledge

    return StoredKnowledge(book)


class TestPasses:
    def test_each_has_masks_of_its_own_and_evaluation_has_one(self):
        batch = Replay(Sequences(), VIEWS).batch([Pick(i, 0) for i in range(8)])
        learner = Learner(Encoder(dropout=0.5), THREE, passes=2)
        said = learner(batch)
        assert set(said) == {"logits", "passes/0/logits", "passes/1/logits"}
        assert torch.equal(said["logits"], said["passes/0/logits"])
        assert not torch.equal(said["logits"], said["passes/1/logits"])
        assert set(learner.eval()(batch)) == {"logits"}

    def test_without_dropout_they_agree_position_by_position(self):
        batch = Replay(Sequences(), VIEWS).batch([Pick(i, 0) for i in range(8)])
        task, network = CausalLM(6), nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
        said = Learner(network, task, passes=3)(batch)
        assert len(said["logits"]) == int(task.counts(batch).sum())
        for i in range(3):
            assert torch.equal(said[f"passes/{i}/logits"], task.fields(network(*task.inputs(batch)), batch)["logits"])

    @pytest.mark.parametrize("gradient", [False, True])
    def test_a_term_between_them_sends_gradient_where_it_is_asked(self, gradient):
        fields = {name: torch.randn(4, 3, requires_grad=True) for name in ("passes/0/logits", "passes/1/logits")}
        names = {"teacher": "passes/1/logits", "own": True, "gradient": gradient}

        @claims()
        def gap(student, teacher):
            return (student - teacher).square().sum(-1)

        objective = Objective((bind(gap, "passes/0/logits", **names),))
        weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
        sums = objective.sums(fields, {}, {}, weights, Clock())
        slopes = torch.autograd.grad(sums.sum(), list(fields.values()), allow_unused=True)
        assert slopes[0].abs().sum() > 0
        assert (slopes[1] is not None) == gradient
        if gradient:
            assert slopes[1].abs().sum() > 0
            assert not slopes[1][1].any()

    def test_gradient_of_a_teacher_is_refused(self):
        hyper = {"temperature": 1.0, "t_squared": False, "class_reduction": "sum"}
        with pytest.raises(ConfigError, match="Expected `own` to be True with gradient=True"):
            bind(soft_target_kl, teacher="logits", gradient=True, **hyper)


def test_a_loss_of_sequences_is_never_cut():
    """Half of each value is that of the position behind it: chunks of positions would change it."""

    @claims(scope="sequence", zero_at_teacher=False, why_not="an example")
    def neighbours(student):
        return student.logsumexp(-1) + student.logsumexp(-1).roll(-1)

    logits = torch.randn(300, 70_000)
    objective = Objective((bind(neighbours),))
    found = objective.sums({"logits": logits}, {}, {}, torch.ones(300), Clock())
    assert float(found) == pytest.approx(2 * float(logits.logsumexp(-1).sum()), rel=1e-5)


def test_divisors_of_a_task_divide():
    class Halved(type(THREE)):
        def divisors(self, batch):
            return self.weights(batch) / 2

    batch = Replay(Sequences(), VIEWS).batch([Pick(i, 0) for i in range(8)])
    network = Encoder()
    losses = []
    for task in (THREE, Halved(("a", "b", "c"))):
        step = Step(Objective((task.label_term(weight=1.0, label_smoothing=0.0),)), task)
        losses.append(float(step.loss(Learner(network, task), batch, Clock()).loss.detach()))
    plain, halved = losses
    assert halved == pytest.approx(2 * plain, rel=1e-6)


def test_validation_of_a_large_vocabulary_takes_few_sequences_at_a_time():
    """256 sequences of 40 positions over 60,000 tokens would be 2.3 GiB of logits."""
    rows = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, tokens):
            rows.append(len(tokens))
            return self.weight.expand(*tokens.shape, 60_000)

    tokens = np.tile(np.arange(1, 41), (60, 1))
    data = TokenDataset.of("long", tokens, vocabulary=60_000)
    metrics = Validation(data)(Learner(Counting(), CausalLM(60_000)))
    assert metrics["perplexity"] == pytest.approx(60_000, rel=1e-4)
    assert max(rows) * 39 * 60_000 <= 2**26
    assert sum(rows) == 60


def test_documents_are_seen_as_the_teacher_saw_them(tmp_path):
    pytest.importorskip("transformers")
    shape = {"model_type": "gpt2", "n_head": 2, "n_layer": 1, "n_embd": 8, "n_positions": 16}
    text, task = pack("text", [[1, 2, 3, 4]] * 8, length=8, separator=0, vocabulary=5), CausalLM(5)
    models = {kind: create_causal_lm(shape, vocabulary=5, separator=kind) for kind in (0, None)}
    for kind, other in ((0, None), (None, 0)):
        teacher = Teacher(create_causal_lm(shape, vocabulary=5, separator=kind))
        known = StoredKnowledge(make(tmp_path / f"{kind}", teacher, text, VIEWS, task=task))
        for knowledge in (known, LiveKnowledge(teacher, task)):
            with pytest.raises(ConfigError, match=rf"`separator` to be {kind}.*, got {other} \(learn, the student\)"):
                learn(models[other], text, VIEWS, task=task, knowledge=knowledge, method=LLMKD())
    with pytest.raises(ConfigError, match="`separator` to be 0, as the teacher saw documents"):
        learn(models[None].model, text, VIEWS, task=task, knowledge=StoredKnowledge(tmp_path / "0"), method=LLMKD())
    few = Training(epochs=1, batch_size=4, accelerator="cpu")
    learn(models[0], text, VIEWS, task=task, knowledge=StoredKnowledge(tmp_path / "0"), method=LLMKD(), training=few)
