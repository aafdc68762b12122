"""Sweeps of texts, speech and translations: options of the task, masked tokens, teachers in books of the test split, BLEU and chrF."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tests.pipelines import sequence_parts
from tests.pipelines.compare_books import QUICK

from bookkd.book import Dense, TopK
from bookkd.core.errors import BookKDError, MissingExtraError
from bookkd.evaluation import measure_translations
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import measure_sequences
from bookkd.learning.measuring import measure_network
from bookkd.making import make
from bookkd.pipelines import ViewOptions
from bookkd.pipelines import task as tasks_of_pipelines
from bookkd.pipelines.compare import run_sweep, sweep_of
from bookkd.pipelines.compare.teacher_predictions import measure_stored
from bookkd.report import find_runs
from bookkd.tasks import CTC, CausalLM
from bookkd.zoo import TokenDataset, load_weights, save_weights

PARTS = "tests.pipelines.sequence_parts"
VIEWS = ViewOptions("none", 1).build()
TEST, V = sequence_parts.counting("test"), 12


def teacher(seed):
    return Teacher(sequence_parts.tiny(V, width=16, seed=seed), name=f"t{seed}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Books of two teachers of a text, of both its splits, one that masks a token and one that keeps a few; and their weights."""
    folder, train = tmp_path_factory.mktemp("texts"), sequence_parts.counting()
    for seed in (0, 1):
        save_weights(teacher(seed).network, folder / f"w{seed}")
        make(folder / f"train{seed}", teacher(seed), train, VIEWS, task=CausalLM(V), codec=TopK(4, (1.0,)))
        make(folder / f"test{seed}", teacher(seed), TEST, VIEWS, task=CausalLM(V), codec=Dense(dtype="float32"))
    make(folder / "few", teacher(0), TEST, VIEWS, task=CausalLM(V), codec=TopK(4, (1.0,)))
    return folder


def live(made, *seeds):
    return [{"name": f"{PARTS}:tiny", "args": {"width": 16}, "weights": str(made / f"w{seed}")} for seed in seeds]


def document(**changes):
    found = {
        "data": {"name": f"{PARTS}:counting"},
        "students": f"{PARTS}:tiny",
        "methods": "llm-kd",
        "training": {**QUICK, "epochs": 1},
        "seeds": 1,
        "replicates": 0,
        "latency": False,
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def run(out, told=None, **changes):
    result = run_sweep(sweep_of(document(**changes)), out, say=(told if told is not None else []).append)
    assert result["failed"] == []
    return result, {each.record.arm.split(" / ")[-1]: each.record for each in find_runs([out])}


def test_a_book_of_the_test_split_stands_for_the_teacher(made, tmp_path):
    """Agreement with it and its perplexity are those of the live network, of the split that they were measured on."""
    given = {"one": {"paths": str(made / "train0"), "test": str(made / "test0")}}
    _, stored = run(tmp_path / "a", books=given)
    _, beside = run(tmp_path / "b", books={"one": str(made / "train0")}, teachers={"live": live(made, 0)})
    wanted = measure_sequences(teacher(0), TEST, CausalLM(V), replicates=0).metrics["perplexity"].value
    for record in (stored["one"], beside["one"]):
        (entry,) = record.teachers
        assert (entry["accuracy"], entry["split"]) == (pytest.approx(wanted, rel=1e-5), "test")
    for name in ("agreement", "acceptance", "teacher_kl"):
        assert stored["one"].metric(name) == pytest.approx(beside["one"].metric(name), rel=1e-4)


def test_a_teachers_perplexity_does_not_depend_on_the_order_of_arms(made, tmp_path):
    """A teacher of two that are asked together is known to the arm that runs before them; nobody knows another's."""
    books = {name: str(made / f"train{seed}") for name, seed in (("one", 0), ("two", 1))}
    told = []
    result, records = run(tmp_path, told, books=books, teachers={"both": live(made, 1, 0)})
    assert [row["source"] for row in result["arms"]] == ["one", "two", "both"]
    for seed, name in enumerate(books):
        wanted = measure_sequences(teacher(seed), TEST, CausalLM(V), replicates=0).metrics["perplexity"].value
        assert records[name].teachers[0]["accuracy"] == pytest.approx(wanted, rel=1e-5)
        assert records[name].teachers[0]["split"] == "test"
    # That agreement with two at once is not measured is said.
    assert "agreement" not in records["both"].metrics
    assert result["notes"] == [line for line in told if line.startswith("both: several teachers")] != []
    _, alone = run(tmp_path / "alone", books={"one": books["one"]})
    assert (alone["one"].teachers[0]["accuracy"], alone["one"].teachers[0]["split"]) == (None, "")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (["test1"], "`test books` to be by the teachers of the books"),
        (["train0"], "to be about this data"),
        (["test0", "test0"], "`test` to be one book by one teacher, for sequences, got 2 books"),
        (["few"], "`logits` to be every value of one teacher, got 'SparseTarget'"),
    ],
)
def test_a_book_that_is_none_of_the_test_split_is_refused(made, tmp_path, test, message):
    given = {"x": {"paths": str(made / "train0"), "test": [str(made / name) for name in test]}}
    refused(tmp_path, message, books=given)


def refused(tmp_path, message, **changes):
    with pytest.raises(BookKDError, match=re.escape(message)) as caught:
        run(tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def without(token, split="train"):
    plain = sequence_parts.counting(split)
    rows = [[each for each in plain[row][0].tolist() if each != token] + [1, 2] for row in range(len(plain))]
    return TokenDataset.of("without", rows, vocabulary=V, tokenizer="none")


def no_zeros(split="train"):
    return without(0, split)


def test_masked_tokens_of_a_book_are_those_of_the_sweep(made, tmp_path):
    data, masked = {"name": f"{__name__}:no_zeros"}, CausalLM(V, masked=(0,))
    for name, task in (("masked", masked), ("plain", CausalLM(V))):
        make(tmp_path / name, teacher(0), no_zeros(), VIEWS, task=task, codec=TopK(4, (1.0,)))
    book, plain = str(tmp_path / "masked"), str(tmp_path / "plain")
    _, records = run(tmp_path / "runs", data=data, books={"one": book}, methods=["llm-kd", "supervised"])
    # Labels alone are measured without these tokens too: figures compare.
    path = next((tmp_path / "runs").rglob("supervised*/seed-0/student.safetensors"))
    student = sequence_parts.tiny(V)
    load_weights(student, path)
    found = measure_network(student, no_zeros("test"), masked, replicates=0).metrics["perplexity"].value
    assert records["tests.pipelines.sequence_parts:tiny"].metric("perplexity") == pytest.approx(found, rel=1e-5)
    refused(tmp_path, "`masked tokens` to be [0], as the sweep's, got []", data=data, books={"a": book, "b": plain})
    given = {"name": "causal-lm", "args": {"masked": [0]}}
    refused(tmp_path, "`masked tokens` to be [0], as the sweep's, got []", data=data, books={"b": plain}, task=given)
    run(tmp_path / "given", data=data, books=None, methods="supervised", task=given)


def test_labels_of_tokens_are_not_hidden_by_sample(made, tmp_path):
    refused(tmp_path, "`label_fraction` to be 1", books=str(made / "train0"), label_fraction=0.5)


def test_a_text_says_which_task_it_is_of(tmp_path):
    refused(tmp_path, "got 'classification' (counting). Pass --task causal-lm.", methods="supervised")


def test_options_of_a_task(tmp_path):
    """A student of half the teacher's frames; without options it is no such student, with others the book is another's."""
    test, task = sequence_parts.heard("test"), CTC.of(sequence_parts.heard())
    listener = Teacher(sequence_parts.listener(5, seed=0), name="ear")
    for split in ("train", "test"):
        make(tmp_path / split, listener, sequence_parts.heard(split), VIEWS, task=task, codec=Dense(dtype="float32"))
    save_weights(listener.network, tmp_path / "w")
    options = {"subsampling": 4, "teacher_subsampling": 2}
    given = {
        "data": {"name": f"{PARTS}:heard"},
        "students": {"name": f"{PARTS}:listener", "args": {"subsampling": 4}},
        "methods": {"name": "ctc-kd", "form": "guided"},
        "books": {"one": str(tmp_path / "train")},
        "teachers": {"live": {"name": f"{PARTS}:listener", "weights": str(tmp_path / "w")}},
    }
    _, records = run(tmp_path / "runs", **given, task={"name": "ctc", "args": options})
    assert records["one"].configuration["task_args"] == options
    # The teacher is measured at its own frames, live or by what its book says.
    wanted = measure_sequences(listener, test, task, replicates=0).metrics
    assert [entry["accuracy"] for entry in records["one"].teachers] == [pytest.approx(wanted["wer"].value)]
    coarse = CTC.of(sequence_parts.heard())
    stored = measure_stored(
        CTC(coarse.class_names, coarse.blank, **options), StoredKnowledge(tmp_path / "test"), test
    ).metrics
    for name in ("wer", "cer", "nll", "blank_share"):
        assert stored[name].value == pytest.approx(wanted[name].value, rel=1e-5)
    wrong = {"name": "ctc", "args": {**options, "teacher_subsampling": 3}}
    refused(
        tmp_path, "give the task the `teacher_subsampling` of the book's", **{**given, "teachers": None}, task=wrong
    )
    refused(
        tmp_path, "Unknown option 'subsamplin' (task ctc)", **given, task={"name": "ctc", "args": {"subsamplin": 2}}
    )
    names = list(task.class_names)
    make(tmp_path / "other", listener, sequence_parts.heard(), VIEWS, task=task, codec=Dense())
    other = {**given, "books": {"one": str(tmp_path / "other")}, "teachers": None}
    blank = {"name": "ctc", "args": {**options, "blank": names.index("c")}}
    refused(tmp_path, "the blank is class 4, the book's is 0", **other, task=blank)


def test_translations_are_written_out_and_measured(tmp_path, monkeypatch):
    pytest.importorskip("sacrebleu")
    given = {
        "data": {"name": f"{PARTS}:pairs"},
        "students": f"{PARTS}:writer",
        "methods": "supervised",
        "task": "seq2seq",
    }
    result, records = run(tmp_path / "a", **given, beam=2)
    (record,), (row,) = records.values(), result["arms"]
    student = sequence_parts.writer(13)
    load_weights(student, next((tmp_path / "a").rglob("student.safetensors")))
    test = sequence_parts.pairs("test")
    found = measure_translations(student.eval(), test, beam=2, replicates=0)
    # By the words of the tokenizer, as sacreBLEU cuts them.
    assert "tok:13a" in found.signatures["bleu"]
    assert {word for line in found.texts for word in line.split()} <= set(sequence_parts.WORDS)
    for name in ("bleu", "chrf"):
        assert record.metric(name) == pytest.approx(found.measures.metrics[name].value)
        assert row[name]["mean"] == pytest.approx(record.metric(name))
    assert record.signatures == found.signatures
    assert result["signatures"] == {name: (said,) for name, said in found.signatures.items()}
    assert result["notes"] == []
    _, plain = run(tmp_path / "b", **given, beam=0)
    (unwritten,) = plain.values()
    assert "bleu" not in unwritten.metrics
    assert unwritten.signatures == {}
    assert np.isclose(unwritten.metric("perplexity"), record.metric("perplexity"))

    def missing(module, extra):
        raise MissingExtraError(f"This needs the package {module!r}.")

    monkeypatch.setattr(tasks_of_pipelines, "require", missing)
    told = []
    result, skipped = run(tmp_path / "c", told, **given)
    (unwritten,) = skipped.values()
    assert "bleu" not in unwritten.metrics
    assert result["notes"] == ["BLEU and chrF are not measured. This needs the package 'sacrebleu'."]
    assert result["notes"][0] in told
