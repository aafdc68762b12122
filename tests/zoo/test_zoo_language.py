"""Models and tokenizers of Transformers from local files: what they say, documents kept apart, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.core.errors import ConfigError, WeightsError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.zoo import create_causal_lm, load_causal_lm, load_tokenizer, pack, tokenizer_digest

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


OPT = {
    "model_type": "opt", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "ffn_dim": 32,
    "word_embed_proj_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip
LFM2 = {
    "model_type": "lfm2", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 16,
    "intermediate_size": 32, "layer_types": ["conv", "full_attention"], "max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize("config", [OPT, LFM2], ids=["opt", "lfm2"])
def test_a_model_whose_documents_would_see_one_another_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"one that keeps documents apart by position_ids, got '(OPT|Lfm2)ForCausalLM'"
    ):
        create_causal_lm(config, vocabulary=50, separator=0)
    create_causal_lm(config, vocabulary=50)
    with pytest.raises(ConfigError, match="one of the package tokenizers, got 'object'"):
        tokenizer_digest(object())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt3"}, "`model_type` to be one that Transformers knows, got 'gpt3'"),
        ({"n_layer": 2}, "`model_type` to be one that Transformers knows, got None"),
        ({"model_type": "gpt2", "n_layers": 2}, "`n_layers` to be an option of gpt2, such as n_"),
    ],
)
def test_a_model_that_cannot_be_built(config, message):
    with pytest.raises(ConfigError, match=message):
        create_causal_lm(config, vocabulary=9)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(WeightsError, match=r"one with config\.json.*nothing is fetched here"):
        load_causal_lm(tmp_path)
    with pytest.raises(WeightsError, match=r"one with config\.json"):
        load_causal_lm("gpt2")  # the name of a model on a hub
    with pytest.raises(WeightsError, match=r"one with tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match="one of a causal language model of Transformers, got"):
        load_causal_lm(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="one of a causal language model"):
        load_causal_lm(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="one of a tokenizer"):
        load_tokenizer(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path):
    made = create_causal_lm(GPT2, vocabulary=50)
    made.model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(made.model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        load_causal_lm(tmp_path / "m")
