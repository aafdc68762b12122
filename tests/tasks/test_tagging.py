"""Sequence labelling: steps and their labels, padding, hidden labels, the methods that serve it, and its measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score
from torch import nn

from bookkd.book import Dense, Sampled, TopK
from bookkd.core.errors import ConfigError, DataError
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, WEIGHT
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Cohort, Learner, Step, Training, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.making import make
from bookkd.methods import DIL, DML, LLMKD, BookKD, Supervised, VanillaKD, build_method
from bookkd.tasks import Tagging
from bookkd.views import Replay, Views
from bookkd.zoo import GRUTagger, SequenceDataset

NAMES = ("a", "b", "c")
TASK, VIEWS = Tagging(NAMES), Views(None, n_views=1)


def sequences(count=24, seed=0, hidden=0.0):
    """Two numbers a step; the label is where their running sum stands."""
    rng, inputs, labels = np.random.default_rng(seed), [], []
    for _ in range(count):
        steps = rng.normal(size=(int(rng.integers(1, 8)), 2)).astype(np.float32)
        sums = np.cumsum(steps.sum(1))
        inputs.append(steps)
        labels.append(np.where(rng.random(len(steps)) < hidden, IGNORE_LABEL, np.digitize(sums, (-0.5, 0.5))))
    return SequenceDataset.of("sums", inputs, labels, class_names=NAMES)


DATA = sequences()


def tagger(seed, width=8, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GRUTagger(3, features=2, width=width, **options)


def batch(*rows, data=DATA):
    return Replay(data, VIEWS).batch([(row, 0) for row in rows])


def training(**changes):
    return Training(**{"epochs": 2, "batch_size": 8, "lr": 0.1, "accelerator": "cpu", **changes})


def flat(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_a_step_has_the_label_beside_it():
    found = batch(3, 0, 7)
    assert found["length"].tolist() == found["label_length"].tolist() == [len(DATA[row][0]) for row in (3, 0, 7)]
    seen, network = TASK.batch(found), tagger(0)
    assert torch.equal(seen[LABEL], torch.cat([DATA[row][1] for row in (3, 0, 7)]))
    said = TASK.fields(network(*TASK.inputs(found)), found)["logits"]
    alone = torch.cat([network(DATA[row][0][None])[0] for row in (3, 0, 7)])
    torch.testing.assert_close(said, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [Supervised(), DML(), DIL(assistants=2)])
def test_padding_changes_no_loss_and_no_gradient(method):
    """Appended steps, of any value, reach neither a peer's loss nor another's gradient."""

    found = batch(3, 0, 7)
    more = {**found, INPUT: F.pad(found[INPUT], (0, 0, 0, 3), value=9.0), LABEL: F.pad(found[LABEL], (0, 3), value=-1)}
    peers = [tagger(seed) for seed in range(method.cohort)]
    learner = Learner(Cohort(peers) if len(peers) > 1 else peers[0], TASK)
    ends = []
    for given in (found, more):
        loss = Step(method.objective(TASK), TASK).loss(learner, given, Clock()).loss
        ends.append((loss, *torch.autograd.grad(loss, list(learner.parameters()))))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_mutual_learning_is_that_of_the_steps():
    """The worked peers of card online-mutual as two steps of two sequences, one of them padded, a third of weight 0."""
    z1, z2 = [2.0, 1.0, 0.0], [1.0, 1.5, -0.5]
    found = {
        INPUT: torch.zeros(3, 2, 2),
        "length": torch.tensor([2, 1, 2]),
        LABEL: torch.tensor([[0, 0], [0, -1], [2, 2]]),
        WEIGHT: torch.tensor([1.0, 1.0, 0.0]),
    }
    padded = torch.full((3, 2, 3), 50.0)
    peers = [padded.clone(), padded.clone()]
    for peer, z in zip(peers, (z1, z2), strict=True):
        peer[0], peer[1, 0] = torch.tensor(z), torch.tensor(z)
    fields = {f"peers/{i}/{name}": x for i, peer in enumerate(peers) for name, x in TASK.fields(peer, found).items()}
    objective, seen = DML().objective(TASK), TASK.batch(found)
    weights = TASK.weights(seen)
    means = objective.sums(fields, {}, seen, weights, Clock()) / objective.totals(seen, weights)
    assert dict(zip([term.name for term in objective.terms], means.tolist(), strict=True)) == {
        "cross_entropy_0": pytest.approx(0.407606, abs=1e-6),
        "peer_1_to_0": pytest.approx(0.252642, abs=1e-6),
        "cross_entropy_1": pytest.approx(1.054957, abs=1e-6),
        "peer_0_to_1": pytest.approx(0.235243, abs=1e-6),
    }


@pytest.fixture(scope="module")
def teacher():
    network = tagger(5, width=16)
    data = sequences(120, 1)
    learn(network, data, VIEWS, task=TASK, method=Supervised(), training=training(epochs=6, lr=0.3))
    return Teacher(network, name="sums")


@pytest.mark.parametrize(
    ("codec", "method"),
    [
        (Dense("float32"), VanillaKD()),
        (Dense("float32"), BookKD()),
        (TopK(2, (2.0,)), LLMKD(temperature=2.0, divergence="jsd")),
        (Sampled(16), LLMKD()),
    ],
)
def test_a_student_learns_from_a_book_as_from_the_teacher(teacher, tmp_path, codec, method):
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK, codec=codec, batch_size=7)
    assert (book.plan.task, book.plan.class_names, book.fields["logits"].positions) == ("tagging", NAMES, 7)
    ends = []
    for knowledge in (StoredKnowledge(book), LiveKnowledge(teacher, TASK)):
        student = tagger(9)
        learned = learn(student, DATA, VIEWS, task=TASK, knowledge=knowledge, method=method, training=training())
        ends.append(flat(learned.student))
    apart = float((ends[0] - ends[1]).norm() / ends[1].norm())
    assert apart < {"dense": 1e-5, "top_k": 0.1, "sampled": 0.3}[codec.name]


def test_a_step_without_a_label_is_taught_by_the_teacher(teacher):
    """Hidden labels change what is learnt from labels, and nothing of what is learnt from a teacher."""
    soft = VanillaKD(ce_weight=0.0)
    ends = []
    for data in (DATA, sequences(hidden=0.5), sequences(hidden=1.0)):
        student = tagger(9)
        learn(student, data, VIEWS, task=TASK, knowledge=LiveKnowledge(teacher, TASK), method=soft, training=training())
        ends.append(flat(student))
    assert torch.equal(ends[1], ends[0])
    assert torch.equal(ends[2], ends[0])

    class Unlabelled(SequenceDataset):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], None

    student, data = tagger(9), Unlabelled(DATA.name, DATA.inputs, DATA.step_labels, DATA.ends, NAMES)
    learn(student, data, VIEWS, task=TASK, knowledge=LiveKnowledge(teacher, TASK), method=soft, training=training())
    assert torch.equal(flat(student), ends[0])


def test_cohorts_learn_tags():
    for method in (DML(), DIL(assistants=2), build_method("dil-seq2seq", "mutual")):
        cohort = Cohort([tagger(seed) for seed in range(method.cohort)])
        learned = learn(
            cohort,
            DATA,
            VIEWS,
            task=TASK,
            method=method,
            training=training(epochs=8, lr=0.3),
            validation=sequences(20, 3),
        )
        assert learned.metrics["accuracy"] > 0.5


def test_measures_are_those_of_sklearn(teacher):
    held_out = sequences(60, 7, hidden=0.2)
    found = measure_sequences(teacher, held_out, TASK, batch_size=7, replicates=20)
    with torch.no_grad():
        said = torch.cat([teacher.network(held_out[row][0][None])[0] for row in range(len(held_out))])
    known = held_out.step_labels != IGNORE_LABEL
    truth, guess = held_out.step_labels[known], said.argmax(-1).numpy()[known]
    value = {name: each.value for name, each in found.metrics.items()}
    assert value["accuracy"] == pytest.approx((truth == guess).mean())
    assert value["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))
    assert value["nll"] == pytest.approx(float(F.cross_entropy(said[known], torch.from_numpy(truth))), rel=1e-5)
    assert [each.value for each in found.per_class["recall"]] == pytest.approx(recall_score(truth, guess, average=None))
    assert [each.value for each in found.per_class["precision"]] == pytest.approx(
        precision_score(truth, guess, average=None)
    )
    assert found.metrics["accuracy"].low < value["accuracy"] < found.metrics["accuracy"].high
    assert (found.class_names, found.n) == (NAMES, 60)


def test_labels_of_another_number_are_refused():
    class Short:
        pad_value, most_positions, class_names = 0, 3, NAMES

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(3, 2), torch.zeros(3 - index, dtype=torch.int64)

    with pytest.raises(DataError, match=r"`label` to be 3, one a step, got 2 \(sample 1\)\. Give each step one label"):
        TASK.batch(batch(0, 1, data=Short()))
    with pytest.raises(DataError, match=r"`label` to be \[batch, \d\], one a step, got shape \[2\] \(task tagging\)"):
        TASK.batch({**batch(0, 1), LABEL: torch.tensor([1, 2]), "label_length": None})
    with pytest.raises(DataError, match=r"one a step, got .*Use task classification for one class a sequence"):
        TASK.check_labels(np.zeros(3), "mine")
    with pytest.raises(ConfigError, match="at least two names"):
        Tagging(("a",))


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ([[1, 2], []], [[0, 1], []], r"`inputs` to be at least one step .* \(x, sequence 1\)"),
        (
            [[1, 2], [3]],
            [[0, 1], [0, 1]],
            r"`labels` to be 1, one a step, got shape \[2\] \(x, sequence 1\)\. Give each",
        ),
        (
            [[1, 2], [3]],
            [[0, 1], [3]],
            r"`label` to be from 0 to 2, or -1 where it is not known, got 3 \(x, sequence 1, step 0",
        ),
        ([[1, -2], [3]], [[0, 1], [1]], r"`input` to be a token, at least 0, got -2 \(x, sequence 0, step 1"),
        ([[[1.0], [float("nan")]]], [[0, 1]], r"`input` to be finite, got \[nan\] \(x, sequence 0, step 1"),
        ([[1.0, 2.0]], [[0, 1]], r"`inputs` to be whole numbers \[steps\] or numbers \[steps, features\], got float64"),
        ([[1, 2]], [[0.0, 1.0]], r"`step_labels` to be 2 whole numbers, one a step, got float64"),
        ([], [], r"as many of both, at least one, got 0 sequences and 0 of labels"),
    ],
)
def test_sequences_that_cannot_be_tagged_are_refused(inputs, labels, message):
    with pytest.raises(DataError, match=message):
        SequenceDataset.of(
            "x", [np.array(each) for each in inputs], [np.array(each) for each in labels], class_names=NAMES
        )


def test_ends_that_divide_nothing_are_refused():
    for ends in ([2, 2, 3], [2], []):
        with pytest.raises(DataError, match=r"`ends` to be sequences of at least one step that end with the last"):
            SequenceDataset("x", np.array([1, 2, 3]), np.array([0, 0, 1]), np.array(ends, np.int64), NAMES)


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, True), (2, False)])
def test_the_tagger_never_sees_padding(layers, bidirectional):
    network = GRUTagger(4, tokens=6, width=5, layers=layers, bidirectional=bidirectional).eval()
    tokens = torch.randint(0, 6, (3, 7))
    lengths = torch.tensor([7, 3, 1])
    first = network(tokens, lengths)
    assert first.shape == (3, 7, 4)
    changed = tokens.clone()
    changed[1, 3:], changed[2, 1:] = 5, 0
    second = network(changed, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(first[row, :length], second[row, :length])
        torch.testing.assert_close(first[row, :length], network(tokens[row : row + 1, :length])[0])
    with pytest.raises(ConfigError, match=r"`tokens and features` to be one of the two, got None and None"):
        GRUTagger(2)
    assert isinstance(network.enter, nn.Embedding)
