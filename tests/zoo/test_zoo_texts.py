"""Texts with classes: what a data set keeps and refuses, encoders that padding does not change, and a book of one end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.core.errors import BookMismatchError, ConfigError, DataError, WeightsError
from bookkd.evaluation import evaluate
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, Validation, learn
from bookkd.making import make
from bookkd.methods import Supervised, VanillaKD
from bookkd.tasks import Classification, predict
from bookkd.views import Views
from bookkd.zoo import TextClassifier, TextDataset, create_text_classifier, fingerprint, load_text_classifier
from bookkd.zoo.text_files import text_classes

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["red", "green", "blue", "one", "two", "three", "four", "five"]]
BERT = {
    "model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip
NAMES, VIEWS = ("colour", "number"), Views(None, n_views=1)
TASK = Classification(NAMES)


def tokenizer(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def texts(count=64, seed=0, **options):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    words = [WORDS[4:7], WORDS[7:]]
    made = [" ".join(rng.choice(words[label], size=rng.integers(1, 6))) for label in labels]
    return TextDataset.of("mine", made, labels, NAMES, **{"tokenizer": tokenizer(), "max_length": 8, **options})


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network(width=16):
    return create_text_classifier({**BERT, "hidden_size": width}, vocabulary=len(WORDS), n_classes=2)


def test_special_tokens_and_cuts():
    data = TextDataset.of(
        "two", ["red one", "one two three four five"], [0, 1], NAMES, tokenizer=tokenizer(), max_length=5
    )
    assert [row.tolist() for row, _ in (data[0], data[1])] == [[2, 4, 7, 3], [2, 7, 8, 9, 3]]
    assert (data.most_positions, data.vocabulary, data.pad_value) == (5, len(WORDS), 0)


def test_the_fingerprint_knows_tokenizer_cut_and_labels():
    plain, seen = fingerprint(texts()), set()
    others = [
        texts(tokenizer=tokenizer([*WORDS[:4], *reversed(WORDS[4:])])),
        texts(max_length=4),
        TextDataset.of("mine", ["red"] * 64, np.arange(64) % 2, NAMES, tokenizer=tokenizer(), max_length=8),
    ]
    for other in map(fingerprint, others):
        assert other != plain
        seen.add(str(other))
    assert len(seen) == 3
    assert (plain["max_length"], fingerprint(texts(max_length=9))["max_length"]) == (
        8,
        9,
    )  # no text is longer than either


def test_folders_of_texts_that_would_be_read_amiss_are_refused(tmp_path):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    for name in ("ham", "spam"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.txt").write_text("red one")
    assert text_classes(tmp_path, "train").max_length == 128
    (tmp_path / "train" / "old").mkdir()
    with pytest.raises(DataError, match=r"a folder with at least one \*\.txt, got 'none' \(.*old\)"):
        text_classes(tmp_path, "train")
    (tmp_path / "train" / "old").rmdir()
    (tmp_path / "train" / "spam" / "1.txt").write_text("\n")
    with pytest.raises(DataError, match=r"an empty file \(.*1\.txt\)\. Delete the file"):
        text_classes(tmp_path, "train")


def test_padding_changes_no_result():
    data = texts()
    for pooling in ("mean", "first"):
        made = create_text_classifier(BERT, vocabulary=len(WORDS), n_classes=2, pooling=pooling).eval()
        one, many = (predict(made, data, TASK, batch_size=size).fields["logits"] for size in (1, 64))
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)


def test_an_encoder_comes_back_from_its_folder(tmp_path):
    made = network().eval()
    made.encoder.save_pretrained(tmp_path / "encoder")
    found = load_text_classifier(tmp_path / "encoder", 2).eval()
    found.head.load_state_dict(made.head.state_dict())
    tokens, lengths = torch.tensor([[2, 4, 5, 3], [2, 7, 3, 0]]), torch.tensor([4, 3])
    torch.testing.assert_close(found(tokens, lengths), made(tokens, lengths))


def test_a_student_of_a_book_of_texts(tmp_path):
    """The whole way: a teacher learns from labels, speaks once, and a smaller student without labels comes to its accuracy."""
    data, held_out = texts(), texts(seed=1)
    training = Training(epochs=6, batch_size=16, optimizer="adamw", lr=1e-2, accelerator="cpu")
    taught = learn(network(), data, VIEWS, task=TASK, method=Supervised(), training=training)
    book = make(tmp_path / "book", Teacher(taught.student), data, VIEWS, task=TASK)
    method = VanillaKD(temperature=2.0, ce_weight=0.0)
    learned = learn(
        network(8), data, VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=method, training=training,
        validation=Validation(held_out),
    )  # fmt: skip
    said = predict(learned.student.eval(), held_out, TASK)
    assert learned.metrics["accuracy"] > 0.9
    assert (
        evaluate(said.fields["logits"], said.labels, replicates=0).metrics["accuracy"].value
        == learned.metrics["accuracy"]
    )
    with pytest.raises(BookMismatchError, match="tokenizer"):
        learn(
            network(8), texts(tokenizer=tokenizer([*WORDS[:4], *reversed(WORDS[4:])])), VIEWS, task=TASK,
            knowledge=StoredKnowledge(book), method=method, training=training,
        )  # fmt: skip
    with pytest.raises(BookMismatchError):
        learn(
            network(8), texts(max_length=4), VIEWS, task=TASK, knowledge=StoredKnowledge(book), method=method,
            training=training,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": np.array([0, 3])}, "at least one token that end with the last, got 0 tokens in sequence 0"),
        ({"tokens": np.array([1, 9, 2])}, r"from 0 to 4, got 9 \(mine, sequence 1\)"),
        ({"labels": np.array([0, 2])}, r"from 0 to 1, got 2 \(mine, text 1\)"),
        ({"labels": np.array([0])}, "one class for each of 2 texts"),
        ({"labels": np.array([0.0, 1.0])}, "one class for each of 2 texts"),
    ],
)
def test_what_is_no_set_of_texts_is_refused(change, message):
    given = {"tokens": np.array([1, 4, 2]), "ends": np.array([1, 3]), "labels": np.array([0, 1])}
    with pytest.raises(DataError, match=message):
        TextDataset("mine", **{**given, **change}, class_names=NAMES, vocabulary=5)


def test_other_encoders_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_text_classifier(tmp_path, 2)
    with pytest.raises(ConfigError, match="one that Transformers knows"):
        create_text_classifier({"model_type": "berd"}, vocabulary=5, n_classes=2)
    with pytest.raises(ConfigError, match="one whose config has hidden_size"):
        TextClassifier(torch.nn.Linear(2, 2), 2)
