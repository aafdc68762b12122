"""Padding behind a text: kinds that count positions from it or find the end by it, and those that it would change, which are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.core.errors import ConfigError
from bookkd.tasks import Classification, predict
from bookkd.zoo import (
    EncoderModel,
    TextDataset,
    check_takes,
    create_causal_lm,
    create_text_classifier,
    load_text_classifier,
)

transformers = pytest.importorskip("transformers")

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
GPT = {"n_head": 2, "n_layer": 1, "n_embd": 16, "n_positions": 8, "vocab_size": 10, "num_labels": 2}
NAMES = ("no", "yes")
TASK = Classification(NAMES)
TEXTS = TextDataset(
    "texts", np.array([3, 4, 5, 6, 7, 8, 9, 3, 5]), np.array([1, 3, 9]), np.array([0, 1, 0]), NAMES, vocabulary=10
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_kinds_that_count_positions_from_their_padding_keep_it(kind):
    made = create_text_classifier({"model_type": kind, **SMALL}, vocabulary=10, n_classes=2).eval()
    one, many = (predict(made, TEXTS, TASK, batch_size=size).fields["logits"] for size in (1, 3))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
    assert made.encoder.config.pad_token_id == 1
    padded = TextDataset("ones", np.array([3, 1]), np.array([2]), np.array([0]), NAMES, vocabulary=10)
    with pytest.raises(ConfigError, match=r"`pad_token_id` to be a token of no text, got 1 \(ones\)"):
        check_takes(made, padded)
    named = {"model_type": kind, **SMALL, "pad_token_id": 0}
    check_takes(create_text_classifier(named, vocabulary=10, n_classes=2), padded)


def test_other_kinds_have_no_special_tokens_but_those_given():
    """Else the first token of a vocabulary would be learnt by none of them."""
    bert = create_text_classifier({"model_type": "bert", **SMALL}, vocabulary=10, n_classes=2).encoder
    gemma = {"model_type": "gemma", **SMALL, "head_dim": 8, "num_key_value_heads": 1}
    for model in (bert, create_causal_lm(gemma, vocabulary=10).model):
        assert model.config.pad_token_id is model.get_input_embeddings().padding_idx is None


def test_a_model_that_finds_the_end_by_its_padding_has_to_know_it(tmp_path):
    transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT)).save_pretrained(tmp_path / "m")
    with pytest.raises(
        ConfigError, match=r"`pad_token_id` .* got None \(GPT2For.*\). Set it in the model's config"
    ) as told:
        load_text_classifier(tmp_path / "m", 2)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="`pad_token_id` to be a token of the model, from 0 to 9, got 50256"):
        EncoderModel(transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT, pad_token_id=50256)))
    EncoderModel(
        transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT, pad_token_id=9, eos_token_id=9))
    )


def test_models_that_padding_changes_are_refused(tmp_path):
    config = transformers.XLNetConfig(vocab_size=10, d_model=16, n_layer=1, n_head=2, d_inner=32, num_labels=2)
    transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path / "m")
    with pytest.raises(
        ConfigError, match="one that padding does not change, got XLNetForSequenceClassification, whose"
    ):
        load_text_classifier(tmp_path / "m", 2)
    fnet = {"model_type": "fnet", "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    with pytest.raises(ConfigError, match="one that padding does not change, got FNetModel"):
        create_text_classifier(fnet, vocabulary=10, n_classes=2)
    with pytest.raises(ConfigError, match="one that takes tokens and an attention_mask, got T5Model: You must specify"):
        create_text_classifier(
            {"model_type": "t5", "d_model": 16, "d_ff": 32, "num_layers": 1}, vocabulary=10, n_classes=2
        )


def test_trying_padding_out_leaves_a_model_and_the_random_numbers_as_they_were():
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, vocab_size=10)).train()
    model.bert.eval()
    before = {name: part.training for name, part in model.named_modules()}, torch.get_rng_state()
    EncoderModel(model)
    assert {name: part.training for name, part in model.named_modules()} == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
