"""The program on texts: a language model and a text classifier, each from labels to a book, a student and its measures."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from bookkd.book import Book, TopK
from bookkd.cli import main
from bookkd.evaluation import measure_translations
from bookkd.knowledge import Teacher
from bookkd.making import make
from bookkd.pipelines.options import ViewOptions
from bookkd.tasks import CausalLM
from bookkd.zoo import TranslationTransformer, create_causal_lm, load_weights, save_weights
from bookkd.zoo.text_files import pairs, text

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<unk>", "<doc>", *(f"w{i}" for i in range(30))]
GPT = {"n_layer": 1, "n_head": 2, "n_positions": 16}
BERT = {
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
    "vocabulary": len(WORDS),
}  # fmt: skip
TRAINING = [
    "--training.accelerator",
    "cpu",
    "--training.optimizer",
    "adamw",
    "--training.lr",
    "0.01",
    "--training.batch_size",
    "8",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("texts")
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        lines = [" ".join(f"w{(start + step) % 30}" for step in range(12)) for start in rng.integers(0, 30, count)]
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
        for place in range(count):
            kind = ("high", "low")[place % 2]
            words = rng.integers(0, 15, rng.integers(1, 8)) + (15 if kind == "high" else 0)
            path = folder / split / kind / f"{place}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(" ".join(f"w{word}" for word in words), encoding="utf-8")
    return folder


def run(capsys, *arguments):
    status = main([*map(str, arguments), "--json"])
    out = capsys.readouterr()
    assert status in (0, None), out.err
    return json.loads(out.out)


def test_a_language_model_by_commands(tmp_path, root, capsys):
    data = ["--data", "text", "--data.root", root, "--data.args", json.dumps({"length": 16})]

    def gpt(role, width):
        args = json.dumps({**GPT, "n_embd": width})  # documents are kept apart as the data set has them
        return [f"--{role}", "causal-lm:gpt2", f"--{role}.args", args]

    taught = run(
        capsys, "learn", "--method", "supervised", *gpt("student", 16), *data, "--task", "causal-lm", "--out", tmp_path / "t",
        "--training.epochs", 4, *TRAINING,
    )  # fmt: skip
    assert taught["metrics"]["perplexity"] < 25
    weights = taught["weights"]
    made = run(
        capsys, "make", *gpt("teacher", 16), "--teacher.weights", weights, *data, "--task", "causal-lm",
        "--codec", "sampled", "--codec.draws", 20, "--out", tmp_path / "book", "--held_out", "test", "--accelerator", "cpu",
    )  # fmt: skip
    assert made["records"] == made["samples"] == Book(tmp_path / "book").n_samples
    assert Book(tmp_path / "book").plan.teachers[0].accuracy == pytest.approx(taught["metrics"]["accuracy"], rel=1e-4)
    learned = run(
        capsys, "learn", tmp_path / "book", *gpt("student", 8), *data, "--out", tmp_path / "s", "--training.epochs", 2, *TRAINING,
    )  # fmt: skip
    assert learned["teacher_forwards"] == 0
    assert learned["method"] == "llm-kd"
    assert "apart at token 1" in Book(tmp_path / "book").plan.teachers[0].mode
    measured = run(
        capsys, "evaluate", *gpt("student", 8), "--student.weights", learned["weights"], *data, "--task", "causal-lm",
        *gpt("teacher", 16), "--teacher.weights", weights, "--accelerator", "cpu",
    )  # fmt: skip
    assert measured["metrics"]["perplexity"]["value"] == pytest.approx(learned["metrics"]["perplexity"], rel=1e-4)
    assert 0 < measured["metrics"]["acceptance"]["value"] <= 1
    assert measured["cost"]["macs"] > 0
    beside = [
        "make", *gpt("teacher", 16), "--teacher.weights", weights, *data, "--data.split", "test", "--task", "causal-lm",
        "--codec", "dense", "--codec.dtype", "float32", "--out", tmp_path / "beside", "--accelerator", "cpu",
    ]  # fmt: skip
    assert main(list(map(str, beside))) in (0, None)
    told = """--student NAME --data text --data.root FOLDER --data.args '{"length": 16}' --method llm-kd"""
    assert told in capsys.readouterr().out
    stored = run(
        capsys, "evaluate", *gpt("student", 8), "--student.weights", learned["weights"], *data, "--book", tmp_path / "beside",
        "--accelerator", "cpu",
    )  # fmt: skip
    for name in ("agreement", "acceptance", "teacher_kl"):
        assert stored["metrics"][name]["value"] == pytest.approx(measured["metrics"][name]["value"], rel=1e-3)


def test_what_is_missing_is_asked_for(tmp_path, root, capsys):
    def refused(*arguments):
        assert main([*map(str, arguments)]) == 2
        return capsys.readouterr().err

    gpt = ["--task", "causal-lm", "--teacher", "causal-lm:gpt2", "--out", tmp_path / "b"]
    assert (
        "Expected `root` to be the folder that holds the files, got None (data set text). Pass --data.root"
        in refused("make", "--data", "text", *gpt)
    )
    apart = ["--teacher.args", json.dumps({**GPT, "n_embd": 8, "separator": None}), "--teacher.weights", tmp_path / "w"]
    made = create_causal_lm({"model_type": "gpt2", **GPT, "n_embd": 8}, vocabulary=len(WORDS))
    save_weights(made, tmp_path / "w")
    data = ["--data", "text", "--data.root", root, "--data.args", json.dumps({"length": 16})]
    run(capsys, "make", *data, *gpt, *apart, "--accelerator", "cpu")
    student = ["--student", "causal-lm:gpt2", "--student.args", json.dumps({**GPT, "n_embd": 8})]
    line = refused("learn", tmp_path / "b", *data, *student, "--out", tmp_path / "s", *TRAINING)
    assert "`separator` to be None: the teacher saw documents together, got 1 (learn, the student)" in line


def test_masked_tokens_of_a_book_are_those_of_its_student(tmp_path, root, capsys):
    words = text(root, "train", length=16)
    args = {**GPT, "n_embd": 8}
    torch.manual_seed(0)
    teacher = Teacher(create_causal_lm({"model_type": "gpt2", **args}, vocabulary=words.vocabulary, separator=1))
    task = CausalLM(words.vocabulary, masked=(0,))
    make(tmp_path / "masked", teacher, words, ViewOptions(transform="none").build(), task=task, codec=TopK(4))
    student = ["--student", "causal-lm:gpt2", "--student.args", json.dumps({**args, "separator": 1})]
    data = ["--data", "text", "--data.root", root, "--data.args", json.dumps({"length": 16})]
    learned = run(
        capsys, "learn", tmp_path / "masked", *student, *data, "--method", "llm-kd", "--out", tmp_path / "s",
        "--training.epochs", 1, *TRAINING,
    )  # fmt: skip
    assert np.isfinite(learned["metrics"]["perplexity"])


def test_a_text_classifier_by_commands(tmp_path, root, capsys):
    data = ["--data", "text-classes", "--data.root", root, "--data.args", json.dumps({"max_length": 12})]

    def bert(role, width):
        return [f"--{role}", "text-classifier:bert", f"--{role}.args", json.dumps({**BERT, "hidden_size": width})]

    taught = run(
        capsys, "learn", "--method", "supervised", *bert("student", 16), *data, "--out", tmp_path / "t",
        "--training.epochs", 8, *TRAINING,
    )  # fmt: skip
    assert taught["metrics"]["accuracy"] >= 0.9
    run(
        capsys, "make", *bert("teacher", 16), "--teacher.weights", taught["weights"], *data, "--out", tmp_path / "book",
        "--held_out", "test", "--accelerator", "cpu",
    )  # fmt: skip
    learned = run(
        capsys, "learn", tmp_path / "book", *bert("student", 8), *data, "--out", tmp_path / "s", "--training.epochs", 6,
        "--method.ce_weight", 0.5, *TRAINING,
    )  # fmt: skip
    measured = run(
        capsys, "evaluate", *bert("student", 8), "--student.weights", learned["weights"], *data, "--accelerator", "cpu",
    )  # fmt: skip
    assert measured["metrics"]["accuracy"]["value"] == pytest.approx(learned["metrics"]["accuracy"])
    assert measured["class_names"] == ["high", "low"]


def test_a_translator_by_commands(tmp_path, capsys):
    """Words of one language are those of the other, in reverse order."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(6)), *(f"v{i}" for i in range(6))]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        words = [rng.integers(0, 6, rng.integers(2, 6)).tolist() for _ in range(count)]
        lines = {
            "en": [" ".join(f"w{i}" for i in row) for row in words],
            "de": [" ".join(f"v{i}" for i in row[::-1]) for row in words],
        }
        for side, texts in lines.items():
            (tmp_path / f"{split}.{side}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    data = ["--data", "pairs", "--data.root", tmp_path, "--data.args", '{"source": "en", "target": "de"}']

    def network(role, width):
        return [
            f"--{role}",
            "seq2seq:transformer",
            f"--{role}.args",
            json.dumps({"width": width, "layers": 1, "heads": 2}),
        ]

    taught = run(
        capsys, "learn", "--method", "supervised", *network("student", 32), *data, "--task", "seq2seq", "--out", tmp_path / "t",
        "--training.epochs", 3, *TRAINING,
    )  # fmt: skip
    run(
        capsys, "make", *network("teacher", 32), "--teacher.weights", taught["weights"], *data, "--task", "seq2seq",
        "--codec", "top_k", "--codec.k", 4, "--codec.temperatures", "[1.0]", "--out", tmp_path / "book", "--accelerator", "cpu",
    )  # fmt: skip
    learned = run(
        capsys, "learn", tmp_path / "book", *network("student", 16), *data, "--method", "llm-kd", "--out", tmp_path / "s",
        "--training.epochs", 2, *TRAINING,
    )  # fmt: skip
    measured = run(
        capsys, "evaluate", *network("student", 16), "--student.weights", learned["weights"], *data, "--task", "seq2seq",
        *network("teacher", 32), "--teacher.weights", taught["weights"], "--accelerator", "cpu",
    )  # fmt: skip
    assert measured["metrics"]["perplexity"]["value"] == pytest.approx(learned["metrics"]["perplexity"], rel=1e-4)
    assert measured["cost"]["macs"] > 0
    if importlib.util.find_spec("sacrebleu") is None:
        assert "BLEU and chrF are not measured" in measured["notes"][0]
        return
    # Of the words of the tokenizer, by the weights that were kept.
    student = TranslationTransformer(len(names), width=16, layers=1, heads=2)
    load_weights(student, learned["weights"])
    found = measure_translations(student.eval(), pairs(tmp_path, "test", source="en", target="de"), replicates=0)
    assert measured["metrics"]["chrf"]["value"] == pytest.approx(found.measures.metrics["chrf"].value)
    assert measured["signatures"] == found.signatures
    assert measured["metrics"]["bleu"]["low"] <= measured["metrics"]["bleu"]["value"]
    plain = run(
        capsys, "evaluate", *network("student", 16), "--student.weights", learned["weights"], *data, "--task", "seq2seq",
        "--beam", 0, "--accelerator", "cpu", "--latency", "false", "--replicates", 0,
    )  # fmt: skip
    assert "bleu" not in plain["metrics"]


def test_a_codec_of_every_token_is_told_before_it_is_written(root):
    from bookkd.book import Auto, Dense, Sampled
    from bookkd.pipelines.make_book import _of_every_token

    data = text(root, "train", length=16)
    large = CausalLM(1000)
    told = _of_every_token(None, large, data, 2)
    whole = 2000 * 15 * len(data) * 2 / 2**20
    assert told.startswith(f"Codec dense keeps all 1,000 tokens at each position: 2,000 bytes, {whole:.1f} MiB in all")
    assert "--codec sampled" in told
    for codec, task in ((Sampled(50), large), (Auto(), large), (Dense(), CausalLM(len(WORDS)))):
        assert _of_every_token(codec, task, data, 2) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "digits", "--task", "causal-lm"], "Expected `data` to be sequences of tokens"),
        (["--data.split", "nothing"], r"documents: lines of nothing\.txt, or files nothing/\*\.txt"),
        (["--data.args", '{"length": 16, "separator": "<s>"}'], "Unknown separator '<s>'"),
        (["--teacher", "causal-lm:gpt9"], "`model_type` to be one that Transformers knows"),
        (["--teacher.args", '{"n_layers": 1}'], "an option of gpt2, such as n_layer"),
        (["--teacher", "causal-lm:no/folder", "--teacher.args", "{}"], r"with config\.json"),
        (["--teacher", "text-classifier:bert"], "with a vocabulary"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, root, capsys, change, message):
    given = {
        "--data": "text",
        "--data.root": str(root),
        "--teacher": "causal-lm:gpt2",
        "--teacher.weights": str(tmp_path / "w"),
    }
    given |= dict(zip(change[::2], change[1::2], strict=True))
    if given["--data"] == "digits":
        del given["--data.root"]
    if "/" in given["--teacher"]:
        del given["--teacher.weights"]
    words = [word for pair in given.items() for word in pair]
    status = main(["make", *words, "--task", given.get("--task", "causal-lm"), "--out", str(tmp_path / "b")])
    err = capsys.readouterr().err
    assert status not in (0, None)
    import re

    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not (tmp_path / "b").exists()


def test_language_models_are_compared_and_reported(tmp_path, root, capsys):
    """Arms over seeds, a live teacher and its book, and a page: perplexity of the students and of the teacher, not its share."""
    import yaml

    big, small = ({**GPT, "n_embd": width, "separator": 1} for width in (16, 8))
    data = ["--data", "text", "--data.root", root, "--data.args", json.dumps({"length": 16}), "--task", "causal-lm"]
    taught = run(
        capsys, "learn", "--method", "supervised", "--student", "causal-lm:gpt2", "--student.args", json.dumps(big), *data,
        "--out", tmp_path / "t", "--training.epochs", 3, *TRAINING,
    )  # fmt: skip
    run(
        capsys, "make", "--teacher", "causal-lm:gpt2", "--teacher.args", json.dumps(big), "--teacher.weights", taught["weights"],
        *data, "--codec", "top_k", "--codec.k", 8, "--codec.temperatures", "[1.0]", "--out", tmp_path / "book",
    )  # fmt: skip
    sweep = {
        "data": {"name": "text", "root": str(root), "args": {"length": 16}},
        "students": [{"name": "causal-lm:gpt2", "args": small}],
        "teachers": [{"name": "causal-lm:gpt2", "args": big, "weights": taught["weights"]}],
        "books": [str(tmp_path / "book")],
        "methods": ["supervised", "llm-kd"],
        "seeds": 1,
        "training": {"epochs": 1, "batch_size": 8, "accelerator": "cpu", "optimizer": "adamw", "lr": 0.01},
        "latency": False,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    assert main(["compare", "--config", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "sweep")]) in (0, None)
    capsys.readouterr()
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").rglob("record.json"))]
    assert len(records) == 3
    for record in records:
        assert record["status"] == "done"
        assert record["metrics"]["perplexity"]["value"] > 1
        for teacher in record["teachers"]:
            assert teacher["accuracy"] == pytest.approx(taught["metrics"]["perplexity"], rel=1e-4)
            assert 0 < record["metrics"]["acceptance"]["value"] <= 1
    assert sum(bool(record["teachers"]) for record in records) == 2
    page = tmp_path / "page.md"
    assert main(["report", str(tmp_path / "sweep"), "--out", str(page)]) in (0, None)
    capsys.readouterr()
    assert f"{taught['metrics']['perplexity']:.3f}" in page.read_text()
