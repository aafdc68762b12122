"""Encoder-decoder networks and what they write: padding, what is remembered, beams against brute force, Transformers' own."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.zoo.pairs import BEGIN, END, V, translator

from bookkd.core.errors import ConfigError, DataError, WeightsError
from bookkd.zoo import TranslationTransformer, create_seq2seq, decode, load_seq2seq

SOURCE, LENGTHS = torch.tensor([[3, 4, 5, 2], [6, 2, 0, 0]]), torch.tensor([4, 2])
PREFIX = torch.tensor([[1, 7, 8], [1, 9, 1]])
WORDS = {"begin": BEGIN, "end": END}
KINDS = {
    "t5": {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8, "dropout_rate": 0.0},
    "bart": {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 20,
    },
}  # fmt: skip


def sharp(network, by=3.0):
    """A network that is sure of something, so that what it writes has turns in it."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(by)
    return network.eval()


def written(found):
    return [[each.tokens for each in one] for one in found]


@pytest.mark.parametrize("options", [{}, {"positions": "learnt", "most_positions": 9, "tied": "all"}, {"tied": "none"}])
def test_padding_and_what_comes_later_change_nothing(options):
    network = translator(**options).eval()
    whole = network(SOURCE, LENGTHS, PREFIX)
    alone = network(SOURCE[1:, :2], LENGTHS[1:], PREFIX[1:, :2])
    torch.testing.assert_close(whole[1:, :2], alone, rtol=1e-5, atol=1e-5)
    other = network(SOURCE.masked_fill(SOURCE == 0, 9), LENGTHS, PREFIX)
    torch.testing.assert_close(other, whole, rtol=0, atol=0)
    assert not torch.allclose(network(SOURCE, torch.tensor([4, 3]), PREFIX)[1], whole[1])


def test_what_it_remembers_is_what_it_says():
    network = translator(layers=2).eval()
    memory = network.start(SOURCE, LENGTHS)
    steps = torch.stack([network.step(tokens, memory) for tokens in PREFIX.T], 1)
    torch.testing.assert_close(steps, network(SOURCE, LENGTHS, PREFIX), rtol=1e-5, atol=1e-5)


def test_its_attention_is_torchs():
    """One encoder layer against `nn.TransformerEncoderLayer` with the same weights."""
    ours = translator(positions="learnt", most_positions=8).encoder[0].eval()
    theirs = torch.nn.TransformerEncoderLayer(16, 2, 64, 0.0, batch_first=True, norm_first=True).eval()
    state = {
        "self_attn.in_proj_weight": torch.cat([ours.inside.query.weight, ours.inside.both.weight]),
        "self_attn.in_proj_bias": torch.cat([ours.inside.query.bias, ours.inside.both.bias]),
        "self_attn.out_proj.weight": ours.inside.out.weight, "self_attn.out_proj.bias": ours.inside.out.bias,
        "linear1.weight": ours.feed[0].weight, "linear1.bias": ours.feed[0].bias,
        "linear2.weight": ours.feed[3].weight, "linear2.bias": ours.feed[3].bias,
        "norm1.weight": ours.inside_norm.weight, "norm1.bias": ours.inside_norm.bias,
        "norm2.weight": ours.forward_norm.weight, "norm2.bias": ours.forward_norm.bias,
    }  # fmt: skip
    theirs.load_state_dict(state)
    x, there = torch.randn(2, 4, 16), torch.arange(4) < LENGTHS[:, None]
    found, wanted = ours(x, there[:, None, None]), theirs(x, src_key_padding_mask=~there)
    torch.testing.assert_close(found[there], wanted[there], rtol=1e-5, atol=1e-5)


def test_shared_embeddings_are_counted_once():
    sizes = [sum(p.numel() for p in translator(tied=tied).parameters()) for tied in ("all", "target", "none")]
    assert [size - sizes[0] for size in sizes] == [0, V * 16, 2 * V * 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18, "heads": 4}, r"`width` to be a multiple of twice the heads, 8, got 18"),
        ({"source_vocabulary": 7, "tied": "all"}, r"`tied` to be target or none for two vocabularies, got 'all'"),
        ({"dropout": 1.0}, r"`dropout` to be from 0 to below 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TranslationTransformer(V, **options)


def test_a_sequence_longer_than_learnt_positions_is_refused():
    with pytest.raises(DataError, match=r"`tokens` to be at most the 3 positions that are learnt, got 4"):
        translator(positions="learnt", most_positions=3)(SOURCE, LENGTHS, PREFIX)
    pytest.importorskip("transformers")
    with pytest.raises(DataError, match=r"at most the 20 positions of the model, got 21"):
        create_seq2seq({"model_type": "bart", **KINDS["bart"]}, vocabulary=V)(SOURCE, LENGTHS, PREFIX.repeat(1, 7))


@pytest.mark.parametrize("beam", [1, 3])
def test_what_is_written_depends_on_no_neighbour(beam):
    network = translator(1, layers=2, tied="none").eval()
    options = {**WORDS, "most": 8, "beam": beam}
    both = decode(network, SOURCE, LENGTHS, **options)
    alone = decode(network, SOURCE[1:, :2], LENGTHS[1:], **options)
    again = decode(lambda *given: network(*given), SOURCE, LENGTHS, **options)  # which knows no memory
    assert written(both[1:]) == written(alone)
    assert written(both) == written(again)
    for one, other in zip(both[1], alone[0], strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_a_beam_of_one_is_greedy():
    network = translator(1, layers=2, tied="none").eval()
    prefix, ended = torch.full((2, 1), BEGIN), torch.zeros(2, dtype=torch.bool)
    for _ in range(7):
        tokens = network(SOURCE, LENGTHS, prefix)[:, -1].argmax(-1)
        prefix = torch.cat([prefix, torch.where(ended, END, tokens)[:, None]], 1)
        ended |= tokens == END
    wanted = [tuple(itertools.takewhile(lambda token: token != END, row[1:].tolist())) for row in prefix]
    assert [found[0].tokens for found in decode(network, SOURCE, LENGTHS, **WORDS, most=8)] == wanted
    assert len(wanted[0]) > len(wanted[1]) > 1


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_of_everything_finds_the_best(length_penalty):
    """Three tokens besides the end, at most four in all: 40 targets, each worked out by itself."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = sharp(TranslationTransformer(4, 5, width=8, heads=2, layers=1, dropout=0.0), 2.0)
    source, lengths = torch.tensor([[3, 4], [1, 0]]), torch.tensor([2, 1])
    found = decode(network, source, lengths, begin=1, end=0, most=4, beam=64, length_penalty=length_penalty)
    texts = [text for n in range(4) for text in itertools.product((1, 2, 3), repeat=n)]
    for row in range(2):
        scores = {}
        for text in texts:
            said = network(source[row : row + 1], lengths[row : row + 1], torch.tensor([[1, *text]]))[0].log_softmax(-1)
            log_p = sum(float(said[place, token].detach()) for place, token in enumerate((*text, 0)))
            scores[text] = log_p / (len(text) + 1) ** length_penalty
        wanted = sorted(scores.items(), key=lambda pair: -pair[1])
        assert [each.tokens for each in found[row]] == [text for text, _ in wanted]
        assert [each.score for each in found[row]] == pytest.approx([score for _, score in wanted], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beam": 0}, ConfigError, "`beam` to be a whole number of at least 1"),
        ({"most": 0}, ConfigError, "`most` to be a whole number of at least 1"),
        ({"end": V}, ConfigError, f"`end` to be a token from 0 to {V - 1}, got {V}"),
        ({"begin": 99, "vocabulary": V}, ConfigError, f"`begin` to be a token from 0 to {V - 1}, got 99"),
        ({"length_penalty": float("nan")}, ConfigError, "`length_penalty` to be a finite number"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        decode(translator(), SOURCE, LENGTHS, **{**WORDS, "most": 3, **options})


def test_a_network_that_says_nothing_is_refused():
    with pytest.raises(DataError, match="`source` to be at least one sequence, got 0"):
        decode(translator(), SOURCE[:0], LENGTHS[:0], **WORDS, most=3)
    with pytest.raises(DataError, match="`logits` to be numbers, got"):
        decode(lambda s, n, p: torch.full((*p.shape, V), torch.nan), SOURCE, LENGTHS, **WORDS, most=3)
    ruled = torch.zeros(V).index_fill(0, torch.tensor([END]), -torch.inf)
    with pytest.raises(DataError, match="`target` to be one that can end"):
        decode(lambda s, n, p: ruled.expand(*p.shape, V), SOURCE, LENGTHS, **WORDS, most=3)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_are_called_and_decode_alike(kind, tmp_path):
    pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = sharp(create_seq2seq({"model_type": kind, **KINDS[kind]}, vocabulary=V), 4.0)
    made.model.save_pretrained(tmp_path / "model")
    found = load_seq2seq(tmp_path / "model").eval()
    logits = found(SOURCE, LENGTHS, PREFIX)
    torch.testing.assert_close(logits, made(SOURCE, LENGTHS, PREFIX))
    torch.testing.assert_close(found(SOURCE[1:, :2], LENGTHS[1:], PREFIX[1:, :2]), logits[1:, :2], rtol=1e-4, atol=1e-4)
    for beam in (1, 3):
        options = {**WORDS, "most": 7, "beam": beam}
        ours = decode(lambda *given: found(*given), SOURCE, LENGTHS, **options)
        theirs = decode(found, SOURCE, LENGTHS, **options)
        assert [each[0].tokens for each in theirs] == [each[0].tokens for each in ours]


@pytest.mark.parametrize("beam", [1, 3])
def test_models_of_transformers_write_no_padding_and_heed_no_config_of_their_own(beam):
    pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        made = sharp(create_seq2seq({"model_type": "t5", **KINDS["t5"]}, vocabulary=V + 3), 4.0)
    options = {**WORDS, "most": 12, "beam": beam, "vocabulary": 6}
    ours = decode(lambda *given: made(*given), SOURCE, LENGTHS, **options)
    own = made.model.generation_config
    own.no_repeat_ngram_size, own.repetition_penalty, own.min_new_tokens = 1, 9.0, 6
    theirs = decode(made, SOURCE, LENGTHS, **options)
    assert [each[0].tokens for each in theirs] == [each[0].tokens for each in ours]
    assert made.model.generation_config is own
    free = decode(made, SOURCE, LENGTHS, **{**options, "vocabulary": None})
    assert any(token >= 6 for each in free for token in each[0].tokens)


def test_what_is_no_such_model_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match=r"`folder` to be one with config\.json"):
        load_seq2seq(tmp_path)
    create_seq2seq({"model_type": "t5", **KINDS["t5"]}, vocabulary=V).model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="an encoder-decoder model of Transformers"):
        load_seq2seq(tmp_path)
    with pytest.raises(ConfigError, match=r"`d_modell` to be an option of t5, such as d_"):
        create_seq2seq({"model_type": "t5", "d_modell": 3}, vocabulary=V)
