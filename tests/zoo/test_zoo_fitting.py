"""Networks and the data that they cannot take: masks in place of lengths, tokens, positions, features, classes, begin and end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.zoo.pairs import BEGIN, END, V
from torch import nn

from bookkd.core.called import check_called
from bookkd.core.errors import ConfigError, TeacherOutputError
from bookkd.knowledge import Teacher
from bookkd.learning import Learner, learn, measure_network
from bookkd.making import make
from bookkd.methods import Supervised
from bookkd.tasks import CTC, CausalLM, Classification, Seq2Seq, Tagging, predict
from bookkd.views import Replay, Views
from bookkd.zoo import (
    AcousticModel,
    EncoderModel,
    GRUTagger,
    PairDataset,
    SequenceDataset,
    TextDataset,
    TokenDataset,
    TranslationTransformer,
    brings_weights,
    check_takes,
    create_causal_lm,
    create_network,
    create_preprocess,
    create_seq2seq,
    create_text_classifier,
    create_transform,
    load_text_classifier,
    positions_of,
)
from bookkd.zoo.fitting import check_features

transformers = pytest.importorskip("transformers")

VIEWS, NAMES = Views(None, n_views=1), ("no", "yes")
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
T5 = {"model_type": "t5", "d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8}
GPT = {"model_type": "gpt2", "n_head": 2, "n_layer": 1, "n_embd": 16, "n_positions": 8}
TEXTS = TextDataset(
    "texts", np.array([3, 4, 5, 6, 7, 8, 9, 3, 5]), np.array([1, 3, 9]), np.array([0, 1, 0]), NAMES, vocabulary=10
)
TASK = Classification(NAMES)
TOKENS = TokenDataset.of("tokens", [[1, 2, 3], [4, 5, 6, 7, 8, 9]], vocabulary=10)
PAIRS = PairDataset.of("pairs", [[3, 4, 2], [5, 2]], [[6], [7, 8, 9]], vocabulary=V, begin=BEGIN, end=END)
STEPS = SequenceDataset.of("steps", [[1, 2, 9], [3]], [[0, 1, 0], [1]], class_names=NAMES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def classifier(**options):
    config = transformers.BertConfig(
        **{**SMALL, "vocab_size": 10, "max_position_embeddings": 16, "id2label": dict(enumerate(NAMES)), **options}
    )
    return sharp(transformers.BertForSequenceClassification(config))


def sharp(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network.eval()


def t5():
    return sharp(create_seq2seq(T5, vocabulary=V, begin=BEGIN, end=END).model)


def test_a_mask_in_the_place_of_lengths_is_refused_everywhere(tmp_path):
    raw, message = (
        classifier(),
        r"sequences and their lengths, got one that takes attention_mask \(a Bert.*EncoderModel",
    )
    for ask in (
        lambda: make(tmp_path / "b", Teacher(raw), TEXTS, VIEWS, task=TASK),
        lambda: learn(classifier(), TEXTS, VIEWS, task=TASK, method=Supervised()),
        lambda: measure_network(raw, TEXTS, TASK),
        lambda: predict(Learner(raw, TASK).compute, TEXTS, TASK),
        lambda: predict(Teacher(raw), TEXTS, TASK),
    ):
        with pytest.raises(ConfigError, match=message):
            ask()
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="sources, their lengths and prefixes, got one that takes attention_mask"):
        measure_network(t5(), PAIRS, Seq2Seq.of(PAIRS))
    with pytest.raises(ConfigError, match="attention_mask"):
        check_called(
            transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**{**GPT, "vocab_size": 4})), [0, 0]
        )


def test_whole_models_say_what_transformers_says_with_the_right_mask(tmp_path):
    raw = classifier()
    book = make(tmp_path / "b", Teacher(EncoderModel(raw)), TEXTS, VIEWS, task=TASK)
    with torch.no_grad():
        alone = [
            raw(input_ids=TEXTS[i][0][None], attention_mask=torch.ones_like(TEXTS[i][0][None])).logits[0]
            for i in range(3)
        ]
        words = sharp(
            transformers.BertForTokenClassification(transformers.BertConfig(**SMALL, vocab_size=10, num_labels=2))
        )
        each = [words(input_ids=STEPS[i][0][None]).logits[0] for i in range(2)]
        clips = transformers.Wav2Vec2Config(
            **{**SMALL, "vocab_size": 3, "conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (2,), "num_feat_extract_layers": 1,
               "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
        )  # fmt: skip
        heard, waves = sharp(transformers.Wav2Vec2ForCTC(clips)), torch.randn(2, 30)
        mask = (torch.arange(30) < torch.tensor([[30], [20]])).long()
        wanted, got = heard(waves, attention_mask=mask).logits, EncoderModel(heard)(waves, torch.tensor([30, 20]))
    torch.testing.assert_close(
        torch.from_numpy(np.asarray(book.read(range(3), 0)["logits"])).float(), torch.stack(alone), atol=2e-3, rtol=2e-3
    )
    batch = Replay(STEPS, VIEWS).batch([(0, 0), (1, 0)])
    torch.testing.assert_close(
        EncoderModel(words)(batch["input"], batch["length"])[1, :1], each[1], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(got, wanted)


def test_a_classifier_of_the_decoders_kind_finds_the_end():
    """Its last token is found by its own padding, whatever the data set pads with."""
    config = transformers.GPT2Config(**{**GPT, "vocab_size": 10, "num_labels": 2, "pad_token_id": 0})
    raw = sharp(transformers.GPT2ForSequenceClassification(config))
    batch = {"input": torch.tensor([[3, 4, 5], [6, 9, 9]]), "length": torch.tensor([3, 1])}
    with torch.no_grad():
        found, wanted = EncoderModel(raw)(batch["input"], batch["length"]), raw(input_ids=torch.tensor([[6]])).logits
    torch.testing.assert_close(found[1:], wanted)


def test_a_fine_tuned_classifier_is_loaded_whole(tmp_path):
    raw, folder = classifier(), str(tmp_path / "c")
    raw.save_pretrained(folder)
    name = f"text-classifier:{folder}"
    found = create_network(name, n_classes=2).eval()
    batch = Replay(TEXTS, VIEWS).batch([(i, 0) for i in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(
            found(batch["input"], batch["length"]), EncoderModel(raw)(batch["input"], batch["length"])
        )
    assert brings_weights(name, {})
    assert not brings_weights(name, {"head": "new"})
    assert type(create_network(name, n_classes=5, args={"head": "new"})).__name__ == "TextClassifier"
    with pytest.raises(ConfigError, match=r"`n_classes` to be 2, those of the model, got 3 .*head"):
        create_network(name, n_classes=3)
    raw.bert.save_pretrained(tmp_path / "e")
    assert not brings_weights(f"text-classifier:{tmp_path / 'e'}", {})
    with pytest.raises(ConfigError, match=r"`head` to be new, as the model has none"):
        load_text_classifier(tmp_path / "e", 2, head="own")
    assert callable(create_preprocess(name))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("yes", "no"),
            r"`class_names` to be yes, no, as the model has them, got no, yes \(texts\). Give the data set",
        ),
        (
            ("YES", "No"),
            r"to be YES, No, as the model has them, got no, yes \(texts\). Give the data set the model's order",
        ),
        (
            ("ham", "spam"),
            r"to be ham, spam, .* got no, yes \(texts\). If they mean the same in this order, pass them as",
        ),
    ],
)
def test_classes_of_another_order_or_other_names_are_refused(names, message, tmp_path):
    model = classifier(id2label=dict(enumerate(names)))
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "b", Teacher(EncoderModel(model)), TEXTS, VIEWS, task=TASK)
    check_takes(EncoderModel(model, class_names=NAMES), TEXTS)  # whoever made it says what it means


def test_names_that_differ_in_case_alone_are_one():
    for names in (NAMES, ("NO", "Yes")):
        check_takes(EncoderModel(classifier(id2label=dict(enumerate(names)))), TEXTS)
    apart = EncoderModel(classifier(), class_names=("A", "a"))
    with pytest.raises(ConfigError, match="to be A, a, as the model has them, got a, A"):
        check_takes(apart, replace(TEXTS, class_names=("a", "A")))


def test_a_model_without_names_of_classes_is_warned_of_once(tmp_path):
    raw, folder = classifier(id2label=None, num_labels=2), str(tmp_path / "c")
    raw.save_pretrained(folder)
    network = EncoderModel(raw)
    with pytest.warns(UserWarning, match=r"LABEL_0, LABEL_1, by which the order of classes cannot be .* as no, yes"):
        check_takes(network, TEXTS)
    check_takes(network, TEXTS)
    name, said = f"text-classifier:{folder}", {"class_names": list(NAMES)}
    assert brings_weights(name, said)
    check_takes(create_network(name, n_classes=2, args=said), TEXTS)
    with pytest.raises(ConfigError, match="`class_names` to be absent"):
        create_network(name, n_classes=2, args={**said, "head": "new"})
    with pytest.raises(ConfigError, match="one name for each of 2 outputs, got no, yes, or"):
        EncoderModel(raw, class_names=("no", "yes", "or"))


BERT = {"model_type": "bert", **SMALL}
FEW, SHORT = r"at least (10|13), those of the data, got 5", r"at most 3 tokens, the positions of the model, got \d"


@pytest.mark.parametrize(
    ("network", "dataset", "message"),
    [
        (lambda: create_causal_lm(GPT, vocabulary=5), TOKENS, FEW),
        (lambda: create_causal_lm(GPT, vocabulary=5).model, TOKENS, FEW),
        (lambda: create_text_classifier(BERT, vocabulary=5, n_classes=2), TEXTS, FEW),
        (lambda: EncoderModel(classifier(vocab_size=5)), TEXTS, FEW),
        (lambda: create_seq2seq(T5, vocabulary=5, begin=BEGIN, end=END), PAIRS, f"`source tokens of the network` to be {FEW}"),
        (lambda: TranslationTransformer(5, V, width=8, heads=2), PAIRS, f"`target tokens of the network` to be {FEW}"),
        (lambda: TranslationTransformer(V, 5, width=8, heads=2), PAIRS, f"`source tokens of the network` to be {FEW}"),
        (lambda: GRUTagger(2, tokens=5), STEPS, FEW),
        (lambda: create_causal_lm({**GPT, "n_positions": 3}, vocabulary=10).model, TOKENS, SHORT),
        (lambda: create_text_classifier({**BERT, "max_position_embeddings": 3}, vocabulary=10, n_classes=2), TEXTS, SHORT),
        (lambda: TranslationTransformer(V, width=8, heads=2, positions="learnt", most_positions=3), PAIRS, SHORT),
        (lambda: GRUTagger(2, features=3), STEPS, "`features of the network` to be tokens, no features, got 3"),
    ],
)  # fmt: skip
def test_tokens_positions_and_features_that_a_network_has_not(network, dataset, message):
    with pytest.raises(ConfigError, match=message):
        check_takes(network(), dataset)


def test_what_fits_is_taken():
    for network, dataset in (
        (create_causal_lm(GPT, vocabulary=10), TOKENS), (create_seq2seq(T5, vocabulary=V, begin=BEGIN, end=END), PAIRS),
        (TranslationTransformer(V, width=8, heads=2, positions="learnt", most_positions=4), PAIRS), (GRUTagger(2, tokens=10), STEPS),
        (create_text_classifier({**BERT, "max_position_embeddings": 6}, vocabulary=10, n_classes=2), TEXTS), (nn.Linear(2, 2), TOKENS),
    ):  # fmt: skip
        check_takes(network, dataset)


def test_features_of_speech():
    class Speech:
        n_features = 40

    with pytest.raises(ConfigError, match="`features of the network` to be 40, those of the data, got 20"):
        check_takes(AcousticModel(20, 3), Speech())
    check_features(Speech(), 40, "speech")


def test_positions_of_roberta_begin_behind_its_padding():
    config = transformers.RobertaConfig(**SMALL, vocab_size=10, max_position_embeddings=8, pad_token_id=1)
    model = transformers.RobertaModel(config).eval()
    most = positions_of(model)
    assert most == 6
    model(torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, most + 1), 5))


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [
        (0, 1, r"`begin` to be 0, the decoder_start_token_id of the model, got 1 \(pairs\)"),
        (BEGIN, 7, r"`end` to be 7, the eos_token_id of the model, got 2"),
    ],
)
def test_targets_that_begin_or_end_otherwise_than_the_model_knows(begin, end, message, tmp_path):
    network = create_network(
        f"seq2seq:{T5['model_type']}",
        n_classes=V,
        args={**{k: v for k, v in T5.items() if k != "model_type"}, "begin": begin, "end": end},
    )
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "b", Teacher(network), PAIRS, VIEWS, task=Seq2Seq.of(PAIRS))
    network.model.config.decoder_start_token_id, network.model.config.eos_token_id = None, [END, 5]
    check_takes(network, PAIRS)


def test_networks_of_another_task_are_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"called with sources, their lengths and prefixes, got .*a LanguageModel, task seq2seq"
    ):
        measure_network(create_causal_lm(GPT, vocabulary=V), PAIRS, Seq2Seq.of(PAIRS))
    with pytest.raises(ConfigError, match=r"called with a view alone, got .*lengths.*a TextClassifier, task causal-lm"):
        measure_network(create_text_classifier(BERT, vocabulary=10, n_classes=2), TOKENS, CausalLM(10))


def test_separators_and_masks_are_tokens():
    with pytest.raises(ConfigError, match="`separator` to be a token of the model, from 0 to 9, got 999"):
        create_causal_lm(GPT, vocabulary=10, separator=999)
    mask = Views(create_transform("token-mask", {"mask": 999}), n_views=1, name="token-mask", args={"mask": 999})
    with pytest.raises(ConfigError, match="`mask` to be a token of the data, from 0 to 9, got 999"):
        Replay(TOKENS, mask)


def test_a_vocabulary_that_is_not_the_datas(tmp_path):
    with pytest.raises(ConfigError, match=r"`vocabulary` to be 10, as the data's, got 12"):
        make(tmp_path / "b", Teacher(create_causal_lm(GPT, vocabulary=12)), TOKENS, VIEWS, task=CausalLM(12))


def test_more_classes_than_names_are_not_cut():
    batch = Replay(STEPS, VIEWS).batch([(0, 0), (1, 0)])
    with pytest.raises(TeacherOutputError, match=r"`logits` to be \[2, 3, 2\], got shape \(2, 3, 3\)"):
        Tagging(NAMES).fields(torch.zeros(2, 3, 3), batch)
    with pytest.raises(TeacherOutputError, match=r"\[2, 3, 2\], by subsampling 1, got"):
        CTC(("-", "a")).fields(torch.zeros(2, 3, 3), batch)
