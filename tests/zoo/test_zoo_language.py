"""Models and tokenizers of Transformers from local files: what they say, documents kept apart, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bookkd.core.errors import ConfigError, DataError, WeightsError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.zoo import (
    LanguageModel,
    PairedTokens,
    TokenDataset,
    create_causal_lm,
    keeps_apart,
    load_causal_lm,
    load_text_classifier,
    load_tokenizer,
    pack,
    read_pairs,
    separator_of,
    tokenizer_digest,
)
from bookkd.zoo.text_files import text, text_classes

transformers = pytest.importorskip("transformers")

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32,
    "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tokenizer(words=("red", "green", "blue")):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_model_comes_back_from_its_folder(tmp_path, config):
    made = create_causal_lm(config, vocabulary=50).eval()
    made.model.save_pretrained(tmp_path / "model")
    tokens = torch.randint(0, 50, (2, 9))
    found = load_causal_lm(tmp_path / "model").eval()
    torch.testing.assert_close(found(tokens), made(tokens))
    assert found(tokens).shape == (2, 9, 50)
    # What comes later, and so padding, changes nothing before it.
    longer = torch.cat([tokens, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(found(longer)[:, :9], found(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_documents_of_one_sequence_do_not_see_one_another(config):
    made = create_causal_lm(config, vocabulary=50, separator=0).eval()
    first, second = torch.tensor([[0, 5, 6, 7]]), torch.tensor([[0, 8, 9]])
    both = torch.cat([first, second], dim=1)
    torch.testing.assert_close(made(both)[:, :4], made(first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made(both)[:, 4:], made(second), rtol=1e-5, atol=1e-5)
    together = create_causal_lm(config, vocabulary=50).eval()
    together.load_state_dict(made.state_dict())
    assert (together(both)[:, 4:] - together(second)).abs().max() > 1e-3


def test_packing():
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [1]]
    data = pack("x", documents, length=4, separator=0, vocabulary=10)
    assert len(data) == 3
    flat = [0, 1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 9]
    assert np.concatenate([data[i][0] for i in range(3)]).tolist() == flat
    labels = np.concatenate([data[i][1] for i in range(3)]).tolist()
    assert labels == [IGNORE_LABEL if token == 0 else token for token in flat]
    assert data.separator == 0
    ended = pack("x", documents, length=4, separator=0, end=9, vocabulary=10)
    assert np.concatenate([ended[i][0] for i in range(4)]).tolist() == [0, 1, 2, 3, 9, 0, 4, 9, 0, 5, 6, 7, 8, 9, 9, 0]
    assert np.concatenate([ended[i][1] for i in range(4)]).tolist().count(9) == 4
    with pytest.raises(ConfigError, match="`end` to be another token than the separator, got 0"):
        pack("x", documents, length=4, separator=0, end=0, vocabulary=10)
    whole = pack("x", documents, length=4, separator=0, vocabulary=10, drop_last=False)
    assert (len(whole), whole[3][0].tolist()) == (4, [0, 1])


def test_the_digest_of_a_tokenizer_is_that_of_what_it_does(tmp_path):
    made = tokenizer()
    made.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    assert tokenizer_digest(again) == tokenizer_digest(made)
    again.enable_padding(length=7)
    again.enable_truncation(3)
    assert tokenizer_digest(again) == tokenizer_digest(made)
    assert tokenizer_digest(tokenizer(("green", "red", "blue"))) != tokenizer_digest(
        made
    )  # the order of the vocabulary
    # Special tokens, of the vocabulary or added behind it, make no other tokens of a text; others that are added do.
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="red")
    assert tokenizer_digest(fast) == tokenizer_digest(made)
    fast.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer_digest(fast) == tokenizer_digest(made)
    fast.add_tokens(["yellow"])
    assert tokenizer_digest(fast) != tokenizer_digest(made)


def test_a_tokenizer_that_cuts_and_fills_up_does_neither_to_texts(tmp_path):
    """Many files of tokenizers say so, as those of sentence encoders; of a book every token counts."""
    made = tokenizer(("red", "green", "blue", "<doc>", "<s>", "</s>", "<pad>", "[PAD]"))
    made.add_special_tokens(["</s>", "<doc>"])
    made.enable_truncation(4)
    made.enable_padding(length=4, pad_id=8, pad_token="[PAD]")
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "train.txt").write_text("red green blue red green blue\nred")
    data = text(tmp_path, "train", length=10, end="</s>")
    assert data[0][0].tolist() == [4, 1, 2, 3, 1, 2, 3, 6, 4, 1]
    assert data.control == (4, 6)  # what steers is in the fingerprint
    sides = PairedTokens.of_texts("t", ["red green blue red green blue", "red red"], student=made, teacher=made)
    assert sides.student.lengths.tolist() == [6, 2]
    (tmp_path / "a").write_text("red green blue red green\nred\n")
    pairs = read_pairs("p", tmp_path / "a", tmp_path / "a", load_tokenizer(tmp_path))
    assert [len(pairs[row][1]) for row in range(2)] == [6, 2]
    assert made.truncation is not None  # the caller's stays as it is


OPT = {
    "model_type": "opt", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "ffn_dim": 32,
    "word_embed_proj_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip
LFM2 = {
    "model_type": "lfm2", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 32,
    "intermediate_size": 64, "layer_types": ["conv", "full_attention"], "max_position_embeddings": 32,
}  # fmt: skip


XGLM = {
    "model_type": "xglm", "num_layers": 2, "attention_heads": 2, "d_model": 32, "ffn_dim": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
HALF = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("config", [OPT, LFM2, XGLM], ids=["opt", "lfm2", "xglm"])
def test_a_model_whose_documents_would_see_one_another_is_refused(config, dtype):
    """In half precision too, where what leaks is less than what rounding changes between batches of other shapes."""
    made = create_causal_lm(config, vocabulary=50)
    with pytest.raises(
        ConfigError, match=r"one that keeps documents apart by position_ids, got '(OPT|Lfm2|XGLM)ForCausalLM'"
    ):
        LanguageModel(made.model.to(dtype), separator=0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_model_that_keeps_documents_apart_is_taken_in_any_precision(config, dtype):
    made = create_causal_lm(config, vocabulary=50).train()
    assert keeps_apart(made.model.to(dtype), 49)
    assert made.model.training


def test_what_a_book_notes_of_documents_is_read_again():
    assert separator_of(f"eval, {create_causal_lm(GPT2, vocabulary=50, separator=7).mode}, shifted by 3") == 7
    assert separator_of(f"eval{create_causal_lm(GPT2, vocabulary=50).mode}") is None


def test_sequences_that_a_model_cannot_take_are_refused():
    packed = pack("long", [[1, 2, 3, 4, 5]] * 12, length=36, separator=0, vocabulary=10)
    create_causal_lm(GPT2, vocabulary=10, separator=0).check_data(packed)  # its documents are short
    with pytest.raises(ConfigError, match=r"at most 33 tokens, by the positions of the model, got 36 \(long\)"):
        create_causal_lm(GPT2, vocabulary=10).check_data(packed)
    whole = pack("one", [[1] * 40], length=41, separator=0, vocabulary=10)
    with pytest.raises(ConfigError, match=r"at most 32 tokens.* got 41 \(one\)"):
        create_causal_lm(LLAMA, vocabulary=10, separator=0).check_data(whole)
    with pytest.raises(ConfigError, match=r"`separator` to be 0, as documents begin, got 3 \(long\)"):
        create_causal_lm(GPT2, vocabulary=10, separator=3).check_data(packed)


def test_only_a_tokenizer_of_the_package_has_a_digest():
    with pytest.raises(ConfigError, match="one of the package tokenizers, got 'object'"):
        tokenizer_digest(object())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt3"}, "`model_type` to be one that Transformers knows, got 'gpt3'"),
        ({"n_layer": 2}, "`model_type` to be one that Transformers knows, got None"),
        ({"model_type": "gpt2", "n_layers": 2}, "`n_layers` to be an option of gpt2, such as n_"),
        ({"model_type": "gpt2", "vocab_size": 60}, "`vocab_size` to be 9, the vocabulary, got 60"),
    ],
)
def test_a_model_that_cannot_be_built(config, message):
    with pytest.raises(ConfigError, match=message):
        create_causal_lm(config, vocabulary=9)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(WeightsError, match=r"one with config\.json.*nothing is fetched here"):
        load_causal_lm(tmp_path)
    with pytest.raises(WeightsError, match=r"one that is there, with config\.json"):
        load_causal_lm("gpt2")  # the name of a model on a hub
    with pytest.raises(WeightsError, match=r"one with tokenizer\.json, .* \(a tokenizer\)\. Put the file there"):
        load_tokenizer(tmp_path)
    for reader in (text, text_classes):
        with pytest.raises(DataError, match=r"`data\.root` to be a folder with the texts and tokenizer\.json"):
            reader(tmp_path / "none", "train")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match="one of a causal language model of Transformers, got"):
        load_causal_lm(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="one of a causal language model"):
        load_causal_lm(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="one of a tokenizer"):
        load_tokenizer(tmp_path)


def test_loading_says_in_one_line_what_is_missing_and_nothing_else(tmp_path, capfd):
    """No bar and no table of Transformers; weights that no file has are not passed over."""
    made = create_causal_lm(GPT2, vocabulary=50)
    made.model.save_pretrained(tmp_path / "m")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_causal_lm(tmp_path / "m")
        load_text_classifier(tmp_path / "m", 2)  # the head of the language model is left out
    assert capfd.readouterr() == ("", "")
    made.model.transformer.save_pretrained(tmp_path / "part")
    file = tmp_path / "part" / "model.safetensors"
    kept = load_file(file)
    del kept["ln_f.weight"]
    save_file(kept, file, {"format": "pt"})
    with pytest.warns(
        UserWarning, match=r"Expected `weights` to be in the files of the model, got none for 1: .*ln_f\.weight"
    ):
        load_causal_lm(tmp_path / "part")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pack("x", ["hello"], length=4, separator=0, vocabulary=9), DataError, "document 0.*Make tokens of texts first"),
        (lambda: pack("x", [[1, 2], [[3]]], length=4, separator=0, vocabulary=9), DataError, "a row of whole numbers.*document 1"),
        (lambda: pack("x", [[1, 2]], length=4, separator=None, vocabulary=9), ConfigError, "`separator` to be the number of a token, got None"),
        (lambda: TokenDataset.of("x", [{"input_ids": [1, 2]}], vocabulary=9), DataError, "got 'a dict'|got a dict.*tokens_of"),
        (lambda: TokenDataset.of("x", [[0.5, 1.0]], vocabulary=9), DataError, "a row of whole numbers, its tokens"),
        (
            lambda: TokenDataset.of("x", [[1, 2], [3, 4]], vocabulary=9, learnt=[[True, False], [True]]),
            DataError,
            r"`learnt` to be 2 for sequence 1, got 1",
        ),
        (lambda: TokenDataset.of("x", [[1, 2]], vocabulary=9, learnt=[True]), DataError, r"one for each of 2 tokens, got shape \(1,\)"),
    ],
)  # fmt: skip
def test_what_is_no_tokens_is_refused_in_words(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_is_learnt_may_be_a_list_for_each_sequence():
    lists, row = [[False, True], [False, True, True]], [False, True, False, True, True]
    ones = [TokenDataset.of("x", [[1, 2], [3, 4, 5]], vocabulary=9, learnt=each) for each in (lists, row)]
    assert ones[0].content == ones[1].content


def test_pickled_weights_are_not_opened(tmp_path):
    made = create_causal_lm(GPT2, vocabulary=50)
    made.model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(made.model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        load_causal_lm(tmp_path / "m")
