"""Texts that a model writes: the likeliest by hand, prompts kept apart, resumed to the same, and who wrote them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from bookkd.book import Dense, TopK
from bookkd.core.errors import BookFormatError, BookMismatchError, ConfigError, DataError, FidelityError
from bookkd.knowledge import StoredKnowledge, Teacher, lineage_of_weights
from bookkd.learning import Training, learn, measure_sequences
from bookkd.making import make, open_texts, write_texts
from bookkd.tasks import CausalLM
from bookkd.views import Views
from bookkd.zoo import Decoding, TokenDataset, continued, create_causal_lm, fingerprint

V, END = 20, 0
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32,
    "max_position_embeddings": 24,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 24}


def network(config=GPT2, seed=0, outputs=V + 3, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = create_causal_lm(config, vocabulary=outputs, **options)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter *= 4  # sure of something
        return made


def prompts(count=11):
    rng = np.random.default_rng(0)
    tokens, learnt = [], []
    for _ in range(count):
        before, behind = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        tokens.append(rng.integers(1, V, before + behind))
        learnt.append(np.arange(before + behind) >= before)
    return TokenDataset.of("asked", tokens, vocabulary=V, learnt=np.concatenate(learnt), tokenizer="none")


def by_hand(model, prompt, tokens):
    """The likeliest token, one after another, without cache or padding."""
    found = list(prompt)
    model.eval()
    for _ in range(tokens):
        with torch.no_grad():
            found.append(int(model(torch.tensor([found]))[0, -1, :V].argmax()))
        if found[-1] == END:
            break
    return found[len(prompt) :]


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_greedy_text_is_the_likeliest_token_after_another(tmp_path, config):
    asked, model = prompts(), network(config)
    found = write_texts(tmp_path / "t", Teacher(model, name="writer"), asked, Decoding(8, end=END), batch_size=4)
    assert len(found) == len(asked)
    for row in range(len(asked)):
        before = asked.prompt(row).tolist()
        tokens, labels = found[row]
        assert tokens.tolist() == before + by_hand(model, before, 8)
        assert labels.tolist() == [-1] * len(before) + tokens.tolist()[len(before) :]
    assert (found.vocabulary, found.tokenizer, found.written_by.name) == (V, "none", "writer")


def test_draws_are_the_models_distribution():
    """Of one position the shares of many draws are those of the softmax, within five deviations; what is left out never comes."""
    model = network(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter /= 4
    p = model.eval()(torch.tensor([[5, 9]]))[0, -1, :V].softmax(-1).detach().double().numpy()
    count, how = 4000, Decoding(1, strategy="sample", never=(7,))
    drawn = np.concatenate(continued(model, [[5, 9]] * count, how, vocabulary=V, seed=1))
    p[7] = 0
    p /= p.sum()
    shares = np.bincount(drawn, minlength=V) / count
    assert (np.abs(shares - p) <= 5 * np.sqrt(p * (1 - p) / count) + 1e-12).all()
    again = continued(model, [[5, 9]] * count, how, vocabulary=V, seed=1)
    other = continued(model, [[5, 9]] * count, how, vocabulary=V, seed=2)
    assert np.array_equal(np.concatenate(again), drawn)
    assert not np.array_equal(np.concatenate(other), drawn)


def test_writing_leaves_the_model_and_the_generators_as_they_were():
    model = network().train()
    own = model.model.generation_config
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    continued(model, [[3]], Decoding(4, strategy="sample"), vocabulary=V, seed=1)
    assert torch.equal(torch.rand(3), wanted)
    assert model.training
    assert model.model.generation_config is own


def assert_same(first, second):
    return np.array_equal(first.tokens, second.tokens) and np.array_equal(first.ends, second.ends)


def test_an_interrupted_folder_is_gone_on_with(tmp_path):
    asked, how = prompts(), Decoding(6, strategy="sample", top_p=0.9, end=END)
    whole = write_texts(tmp_path / "a", Teacher(network()), asked, how, seed=3, batch_size=3)

    class StopError(Exception):
        pass

    def stop(done, total):
        if done > 3:
            raise StopError

    with pytest.raises(StopError):
        write_texts(tmp_path / "b", Teacher(network()), asked, how, seed=3, batch_size=3, progress=stop)
    with pytest.raises(BookFormatError, match=r"one with texts\.json, got .*Let write_texts finish it"):
        open_texts(tmp_path / "b")
    (tmp_path / "b" / "batch-000001.safetensors").write_bytes(b"half a file")
    done = []
    again = write_texts(
        tmp_path / "b", Teacher(network()), asked, how, seed=3, batch_size=3, progress=lambda *at: done.append(at)
    )
    assert assert_same(again, whole)
    assert done[-1] == (11, 11)
    assert assert_same(open_texts(tmp_path / "b"), whole)
    assert not assert_same(write_texts(tmp_path / "c", Teacher(network()), asked, how, seed=4, batch_size=3), whole)


def test_a_prompt_that_no_fingerprint_looks_at_is_seen(tmp_path):
    """Of 600 prompts a fingerprint looks at 256: another second one has the same, and other texts."""
    rows, other = [[1, 2]] * 600, [[1, 2]] * 600
    other[1] = [5, 6]
    first, second = (TokenDataset.of("p", each, vocabulary=V, learnt=[False] * 1200) for each in (rows, other))
    assert fingerprint(first) == fingerprint(second)
    write_texts(tmp_path / "t", Teacher(network()), first, Decoding(1), batch_size=300)
    with pytest.raises(BookMismatchError, match="got other prompts"):
        write_texts(tmp_path / "t", Teacher(network()), second, Decoding(1), batch_size=300)
    learnt = np.arange(1200) % 2 == 1  # the prompts are half as long
    third = TokenDataset.of("p", rows, vocabulary=V, learnt=learnt)
    assert len({first.content, second.content, third.content}) == 3
    assert (
        TokenDataset.of("p", rows, vocabulary=V, learnt=[True] * 1200).content
        == TokenDataset.of("q", rows, vocabulary=9).content
    )


def test_folders_of_other_texts_or_changed_files_are_refused(tmp_path):
    asked, how = prompts(), Decoding(4)
    write_texts(tmp_path / "t", Teacher(network()), asked, how)
    for teacher, given, decoding, name in (
        (network(seed=1), asked, how, "teacher"),
        (network(), prompts(10), how, "prompts"),
        (network(), asked, Decoding(5), "decoding"),
    ):
        with pytest.raises(BookMismatchError, match=rf"the same teacher, prompts and decoding, got other {name}"):
            write_texts(tmp_path / "t", Teacher(teacher), given, decoding)
    file = tmp_path / "t" / "batch-000000.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(BookFormatError, match="`batch` to be as it was written"):
        open_texts(tmp_path / "t")
    file.write_bytes(kept)
    notes = json.loads((tmp_path / "t" / "texts.json").read_text())
    (tmp_path / "t" / "texts.json").write_text(json.dumps({**notes, "version": 9}))
    with pytest.raises(BookFormatError, match="`format` to be bookkd-texts 1, got bookkd-texts 9"):
        open_texts(tmp_path / "t")
    (tmp_path / "t" / "texts.json").write_text("{}")
    with pytest.raises(BookFormatError, match="what write_texts writes"):
        open_texts(tmp_path / "t")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Decoding(0), ConfigError, "`tokens` to be a whole number of at least 1, got 0"),
        (lambda: Decoding(4, strategy="best"), LookupError, "Unknown strategy 'best'"),
        (lambda: Decoding(4, top_p=0.0), ConfigError, "`top_p` to be a number above 0"),
        (lambda: Decoding(4, beams=3), ConfigError, '`beams` to be left out with the strategy greedy, got 3.*Pass strategy="beam"'),
        (lambda: Decoding(4, strategy="beam", top_p=0.5), ConfigError, '`top_p` to be left out with .* beam, got 0.5.*strategy="sample"'),
        (lambda: continued(network(), [[1]], Decoding(24), vocabulary=V, seed=0), ConfigError, "`tokens` to be at most 23: .* 24 positions"),
        (lambda: Decoding(4, end=3, never=(3,)), ConfigError, "`end` to be a token that may be written, got 3"),
        (lambda: continued(network(), [[1] * 22], Decoding(4), vocabulary=V, seed=0), ConfigError, "at most 20 tokens, for 4 more"),
        (lambda: continued(network(), [[]], Decoding(4), vocabulary=V, seed=0), DataError, "`prompt` to be at least one token"),
        (lambda: continued(torch.nn.Linear(1, 1), [[1]], Decoding(4), vocabulary=V, seed=0), ConfigError, "that can write, got 'Linear'"),
        (
            lambda: continued(network(separator=2), [[2, 5, 2, 6]], Decoding(4), vocabulary=V, seed=0),
            DataError,
            "`prompt` to be one document, got 'several'",
        ),
        (lambda: continued(network(outputs=10), [[1]], Decoding(4), vocabulary=V, seed=0), ConfigError, "at least 20 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_documents_end_at_the_separator():
    model = network(separator=2, seed=4)
    written = continued(
        model, [[2, row] for row in range(3, 20)], Decoding(20, strategy="sample"), vocabulary=V, seed=0
    )
    ended = [2 in row for row in written]
    assert any(ended)
    assert all(row.tolist().index(2) == len(row) - 1 for row, end in zip(written, ended, strict=True) if end)


def test_a_student_learns_what_was_written_and_names_the_writer(tmp_path):
    model = network()
    teacher = Teacher(model, name="writer")
    texts = write_texts(tmp_path / "t", teacher, prompts(24), Decoding(8, end=END))
    student = network({**GPT2, "n_embd": 8}, seed=7)
    how = Training(epochs=30, batch_size=8, optimizer="adamw", lr=0.01, accelerator="cpu")
    learned = learn(
        student, texts, Views(None, n_views=1), task=CausalLM(V), training=how, validation=texts, out=tmp_path / "run"
    )
    assert learned.history[-1]["val/nll"] < 0.5 * learned.history[0]["val/nll"]
    found = lineage_of_weights(tmp_path / "run" / "student.safetensors")
    assert found["parents"] == [teacher.digest]
    assert found["ancestors"][0]["name"] == "writer"


@pytest.mark.parametrize(
    ("separator", "data", "message"),
    [
        (None, [[1] * 30] * 4, r"at most 25 tokens, by the positions of the model, got 30 \(given\)"),
        (7, [[0, 1, 2, 0, 3, 4]] * 4, r"`separator` to be 0, as documents begin, got 7 \(given\)"),
    ],
)
def test_networks_refuse_sequences_that_they_cannot_take(tmp_path, separator, data, message):
    """Before anything is made, learnt or measured."""
    task, views = CausalLM(V), Views(None, n_views=1)
    model = network(outputs=V, separator=separator)
    data = TokenDataset.of("given", data, vocabulary=V, separator=0)
    for call in (
        lambda: make(tmp_path / "b", Teacher(network(outputs=V, separator=separator)), data, views, task=task),
        lambda: learn(model, data, views, task=task),
        lambda: learn(model, prompts(), views, task=task, validation=data),
        lambda: measure_sequences(model, data, task, replicates=0),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    assert not (tmp_path / "b").exists()


def test_a_student_is_compared_with_a_book_as_with_its_teacher(tmp_path):
    task, asked = CausalLM(V), prompts(9)
    model, student = network(), network({**GPT2, "n_embd": 8}, seed=7).eval()
    made = make(tmp_path / "b", Teacher(model), asked, Views(None, n_views=1), task=task, codec=Dense("float32"))
    live, stored = (
        measure_sequences(student, asked, task, replicates=0, batch_size=4, **beside).metrics
        for beside in ({"teacher": model.eval()}, {"book": StoredKnowledge(made)})
    )
    assert {"agreement", "acceptance", "teacher_kl"} <= stored.keys() == live.keys()
    for name, value in live.items():
        assert stored[name].value == pytest.approx(value.value, rel=1e-4, abs=1e-6)
    with pytest.raises(ConfigError, match=r"`teacher` to be none beside a book, got 'both' \(evaluation\)"):
        measure_sequences(student, asked, task, teacher=model, book=StoredKnowledge(made))
    with pytest.raises(ConfigError, match=r"`batch_size` to be a whole number of at least 1, got 0 \(evaluation\)"):
        measure_sequences(student, asked, task, batch_size=0)
    few = make(tmp_path / "few", Teacher(model), asked, Views(None, n_views=1), task=task, codec=TopK(3))
    with pytest.raises(FidelityError, match="`logits` to be every value of one teacher"):
        measure_sequences(student, asked, task, replicates=0, book=StoredKnowledge(few))
