"""Translation from a book: alignment, prefixes, word-level and sequence-level distillation, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.pairs import BEGIN, END, V, reversed_digits, translator

from bookkd.book import Dense, Int8, Sampled, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, TeacherOutputError, ViewMismatchError
from bookkd.evaluation import measure_translations
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Training, Validation, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.making import decode_dataset, make
from bookkd.methods import LLMKD, AdaptiveLabelSmoothing, Supervised, VanillaKD
from bookkd.tasks import CausalLM, Seq2Seq, Tagging
from bookkd.views import Pick, Replay, Views, check_replay
from bookkd.zoo import PairDataset, SequenceDataset

TASK, VIEWS = Seq2Seq(V, begin=BEGIN), Views(None, n_views=1)
DATA, HELD_OUT = reversed_digits(60), reversed_digits(40, seed=1)


def batch(*rows, data=DATA):
    return Replay(data, VIEWS).batch([Pick(row, 0) for row in rows])


def training(**changes):
    options = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 0.01,
        "weight_decay": 0.0,
        "accelerator": "cpu",
    }
    return Training(**{**options, **changes})


def flat(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_position_u_describes_token_u_behind_the_tokens_before_it():
    rows = (3, 0, 7)
    found = batch(*rows)
    source, lengths, prefix = TASK.inputs(found)
    counts = [len(DATA[row][1]) for row in rows]
    assert lengths.tolist() == [len(DATA[row][0]) for row in rows]
    assert TASK.counts(found).tolist() == counts
    for place, row in enumerate(rows):
        target = DATA[row][1].tolist()
        assert source[place, : lengths[place]].tolist() == DATA[row][0].tolist()
        assert prefix[place].tolist()[: counts[place]] == [BEGIN, *target[:-1]]
        assert set(prefix[place, counts[place] :].tolist()) <= {BEGIN, END}
        assert target[-1] == END
    logits = translator()(source, lengths, prefix)
    said = TASK.fields(logits, found)["logits"]
    assert torch.equal(said, torch.cat([logits[place, :count] for place, count in enumerate(counts)]))
    seen = TASK.batch(found)
    assert torch.equal(seen["label"], torch.cat([DATA[row][1] for row in rows]))
    assert torch.equal(TASK.weights(seen), torch.ones(sum(counts)))


def test_the_task_of_a_data_set():
    assert Seq2Seq.of(DATA) == TASK
    with pytest.raises(ConfigError, match=r"`data` to be pairs of sequences, got 'list' \(seq2seq\)"):
        Seq2Seq.of([])
    with pytest.raises(ConfigError, match=r"pairs are of seq2seq"):
        CausalLM.of(DATA)


def test_an_output_layer_that_is_padded_is_cut():
    found = batch(0, 1)
    logits = torch.randn(2, int(found["label_length"].max()), V + 5)
    assert TASK.fields(logits, found)["logits"].shape == (int(found["label_length"].sum()), V)
    with pytest.raises(TeacherOutputError, match=rf"at least {V}\], got shape"):
        TASK.fields(logits[..., : V - 1], found)
    with pytest.raises(TeacherOutputError, match="says something at every position"):
        TASK.fields(logits[:, :-1], found)


def test_a_target_with_a_hole_is_refused():
    found = batch(0, 1, 2)
    row = int(found["label_length"].argmax())
    found["label"][row, 0] = -1
    with pytest.raises(
        DataError, match=rf"a token from 0 to 12 at every position, got -1 \(seq2seq, row {row} of a batch, position 0"
    ):
        TASK.inputs(found)
    found["label"][row, 0] = V
    with pytest.raises(DataError, match=rf"got {V} \(seq2seq"):
        TASK.inputs(found)
    with pytest.raises(
        DataError, match=r"`label` to be target tokens \[batch, length\], got torch\.int64 of shape \[2\]"
    ):
        TASK.inputs({"input": torch.ones(2, 3), "length": torch.tensor([3, 3]), "label": torch.tensor([0, 1])})


def test_targets_longer_than_their_sources_replay():
    """Padding of either side depends on the batch, and is no part of what is compared."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, (20, 2))
    data = PairDataset.of("x", *([rng.integers(3, V, n) for n in side] for side in sizes.T), vocabulary=V)
    check_replay(Replay(data, VIEWS))


@pytest.fixture(scope="module")
def taught():
    network = translator(5, width=32)
    learn(
        network, reversed_digits(300, seed=2), VIEWS, task=TASK, method=Supervised(label_smoothing=0.05),
        training=training(epochs=8),
    )  # fmt: skip
    return Teacher(network, name="reverser")


def test_the_teacher_has_learnt_to_translate(taught):
    found = measure_translations(taught.network, HELD_OUT, beam=2, replicates=0)
    assert found.measures.metrics["bleu"].value > 25
    assert measure_sequences(taught, HELD_OUT, TASK, replicates=0).metrics["perplexity"].value < 3


def test_a_book_says_what_the_teacher_says(taught, tmp_path):
    book = make(tmp_path / "b", taught, DATA, VIEWS, task=TASK, codec=Dense("float32"), batch_size=7)
    told = book.plan.data
    assert (book.plan.task, told["vocabulary"], told["prefix"]) == (
        "seq2seq",
        V,
        f"gold, begun by {BEGIN}, ended by {END}",
    )
    assert book.fields["logits"].positions == DATA.most_positions
    found = batch(5, 2, 11)
    mine = StoredKnowledge(book).targets(found)["logits"].logits
    theirs = LiveKnowledge(taught, TASK).targets(found)["logits"].logits
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "codec", "apart"),
    [
        (VanillaKD(temperature=1.0), Dense("float32"), 1e-4),
        (VanillaKD(temperature=1.0), Int8(), 0.05),
        (LLMKD(ce_weight=0.5), TopK(V - 1, (1.0,)), 0.05),
        (LLMKD(), Sampled(64), 0.03),  # labels alone end 0.066 apart
        (LLMKD(divergence="jsd"), Dense("float32"), 1e-4),
    ],
)
def test_a_student_learns_from_a_book_as_from_the_teacher(taught, tmp_path, method, codec, apart):
    book = make(tmp_path / "b", taught, DATA, VIEWS, task=TASK, codec=codec)
    students = []
    for knowledge in (StoredKnowledge(book), LiveKnowledge(taught, TASK)):
        done = learn(translator(9), DATA, VIEWS, task=TASK, knowledge=knowledge, method=method, training=training())
        students.append(flat(done.student))
    assert float((students[0] - students[1]).norm() / students[1].norm()) < apart


@pytest.mark.parametrize("method", [LLMKD(ce_weight=0.5), AdaptiveLabelSmoothing(mode="final")], ids=["llm-kd", "als"])
def test_the_loss_does_not_depend_on_how_a_batch_is_split(taught, tmp_path, method):
    book = make(tmp_path / "b", taught, DATA, VIEWS, task=TASK, codec=TopK(6, (1.0,)))
    ends = []
    for size, accumulate in ((20, 1), (5, 4), (1, 20)):
        student = translator(9).double()
        how = training(batch_size=size, accumulate=accumulate, epochs=1, optimizer="sgd", lr=0.1)
        learn(student, DATA, VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=method, training=how)
        ends.append(flat(student))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-6, atol=1e-6)


def test_sequence_level_distillation_learns_from_what_the_teacher_wrote(taught):
    written = decode_dataset(taught, reversed_digits(300, seed=2), beam=2)
    done = learn(
        translator(9), written, VIEWS, task=TASK, method=Supervised(), training=training(epochs=10, lr=0.01),
        validation=Validation(HELD_OUT),
    )  # fmt: skip
    assert done.metrics["perplexity"] < 0.7 * V
    again = decode_dataset(taught, HELD_OUT, beam=2)
    like = measure_translations(done.student, again, replicates=0).measures.metrics["chrf"].value
    fresh = measure_translations(translator(9).eval(), again, replicates=0).measures.metrics["chrf"].value
    assert like > fresh + 10


def test_validation_is_perplexity_by_the_equation(taught):
    done = learn(translator(9), DATA, VIEWS, task=TASK, training=training(), validation=HELD_OUT)
    total = count = 0.0
    with torch.no_grad():
        for row in range(len(HELD_OUT)):
            source, target = HELD_OUT[row]
            prefix = torch.cat([torch.tensor([BEGIN]), target[:-1]])
            logits = done.student(source[None], torch.tensor([len(source)]), prefix[None])[0]
            total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
            count += len(target)
    assert done.metrics["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)
    found = measure_sequences(done.student, HELD_OUT, TASK, teacher=taught, batch_size=7, replicates=20)
    assert {"nll", "ece", "accuracy", "agreement", "teacher_kl"} <= set(found.metrics)
    assert found.n == len(HELD_OUT)


def test_a_metric_of_what_is_written_may_decide():
    def bleu(network):
        found = measure_translations(network, HELD_OUT, replicates=0).measures.metrics
        return {name: found[name].value for name in ("bleu", "chrf")}

    pytest.importorskip("sacrebleu")
    done = learn(
        translator(9), DATA, VIEWS, task=TASK, training=training(epochs=3, patience=3),
        validation=Validation(HELD_OUT, metric="chrf", also=bleu),
    )  # fmt: skip
    assert done.metrics["chrf"] == max(record["val/chrf"] for record in done.history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": ("one", "other")}, "data tokenizer"),
        ({"begin": 0}, "data prefix"),
        ({"seed": 4}, "data content"),
        ({"most": 5}, "data samples|data content"),
        ({"count": 50}, "data samples"),
    ],
)
def test_another_book_is_refused(taught, tmp_path, change, message):
    book = make(tmp_path / "b", taught, DATA, VIEWS, task=TASK, codec=Dense())
    other = reversed_digits(**{"count": 60, **change})
    task = Seq2Seq(V, begin=other.begin)
    with pytest.raises(BookMismatchError, match=message):
        learn(
            translator(), other, VIEWS, task=task, knowledge=StoredKnowledge(book), method=LLMKD(), training=training()
        )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Seq2Seq(V, begin=0), "`begin` to be 1, as the data's, got 0"),
        (Seq2Seq(V + 2, begin=BEGIN), f"`vocabulary` to be {V}, as the data's, got {V + 2}"),
        (Tagging(("a", "b")), "`data` to be sequences with one class a step, got pairs of sequences"),
    ],
)
def test_a_task_that_reads_the_pairs_otherwise_is_refused(taught, tmp_path, task, message):
    asks = [
        lambda: make(tmp_path / "b", taught, DATA, VIEWS, task=task),
        lambda: learn(translator(), DATA, VIEWS, task=task, training=training()),
        lambda: measure_sequences(translator(), DATA, task),
    ]
    for ask in asks:
        with pytest.raises(ConfigError, match=message):
            ask()
    # Of validation too, before anything is learnt.
    with pytest.raises(ConfigError, match="`begin` to be 0, as the data's, got 1"):
        learn(translator(), DATA, VIEWS, task=TASK, training=training(), validation=reversed_digits(9, begin=0))


def test_sequences_with_classes_are_no_pairs():
    tagged = SequenceDataset.of("tags", [[1, 2]], [[0, 1]], class_names=("a", "b"))
    with pytest.raises(ConfigError, match="`data` to be pairs of sequences, got sequences with classes"):
        measure_sequences(translator(), tagged, TASK)


def test_a_target_that_was_changed_is_seen_by_the_probe(taught, tmp_path):
    """The teacher was fed the target: with another one its word is of no use, though the source is the same."""
    book = make(tmp_path / "b", taught, DATA, VIEWS, task=TASK, codec=Dense())
    changed = reversed_digits(60)
    changed.targets[0] = 3 + (changed.targets[0] - 2) % 10
    with pytest.raises(ViewMismatchError):
        StoredKnowledge(book).targets(batch(0, 1, data=changed))


def test_models_of_transformers_teach(tmp_path):
    pytest.importorskip("transformers")
    from bookkd.zoo import create_seq2seq

    config = {"model_type": "t5", "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    teacher = Teacher(create_seq2seq(config, vocabulary=V + 3), name="t5")  # its output layer is padded
    book = make(tmp_path / "b", teacher, DATA, VIEWS, task=TASK)
    done = learn(
        create_seq2seq(config, vocabulary=V), DATA, VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=LLMKD(),
        training=training(epochs=1), validation=HELD_OUT,
    )  # fmt: skip
    assert done.metrics["perplexity"] < 100
