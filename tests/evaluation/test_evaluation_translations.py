"""BLEU and chrF: sacreBLEU's own values and signature, and intervals over sentences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.pairs import reversed_digits, translator

from bookkd.core.errors import ConfigError, DataError
from bookkd.evaluation import likeness, measure_translations, score_translations
from bookkd.zoo import TokenDataset

metrics = pytest.importorskip("sacrebleu.metrics")
WORDS = ["the", "a", "cat", "dog", "house", "sat", "ran", "on", "under", "mat", "hill", ",", "."]


def some(count=60):
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(WORDS, rng.integers(5, 12))) for _ in range(count)]
    texts = [" ".join(w if rng.random() < 0.8 else rng.choice(WORDS) for w in r.split()) for r in references]
    return texts, references


def test_values_and_signatures_are_those_of_sacrebleu():
    texts, references = some()
    found = score_translations(texts, references, replicates=20)
    for name, scorer in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        wanted = scorer.corpus_score(texts, [references])
        assert found.measures.metrics[name].value == pytest.approx(wanted.score, abs=1e-9)
        assert found.signatures[name] == str(scorer.get_signature())
    assert found.measures.metrics["length_ratio"].value == pytest.approx(1.0)
    assert found.to_json()["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


def test_intervals_are_about_as_wide_as_sacrebleus_own():
    texts, references = some()
    found = score_translations(texts, references, replicates=500).measures
    wanted = metrics.BLEU().corpus_score(texts, [references], n_bootstrap=500)
    bleu = found.metrics["bleu"]
    assert bleu.low < bleu.value < bleu.high
    assert (bleu.high - bleu.low) / 2 == pytest.approx(wanted._ci, rel=0.15)
    assert (found.n, found.replicates) == (60, 500)


def test_a_network_is_measured_by_what_it_writes():
    data = reversed_digits(12)

    class Right(torch.nn.Module):
        """Says each target, but ends the third too early."""

        def forward(self, source, lengths, prefix):
            logits = torch.zeros(*prefix.shape, 13)
            for row, tokens in enumerate(source):
                place = next(i for i in range(12) if data[i][0].tolist() == tokens[: lengths[row]].tolist())
                target = data[place][1][: 1 if place == 2 else None].tolist() + [2] * 20
                logits[row, torch.arange(prefix.shape[1]), torch.tensor(target[: prefix.shape[1]])] = 9.0
            return logits

    found = measure_translations(Right(), data, replicates=0, batch_size=5)
    texts = [" ".join(map(str, data[row][1][:-1].tolist())) for row in range(12)]
    wanted = [text.split(" ")[0] if row == 2 else text for row, text in enumerate(texts)]
    assert list(found.texts) == wanted
    whole = metrics.BLEU(tokenize="none", force=True).corpus_score(wanted, [texts])
    assert found.measures.metrics["bleu"].value == pytest.approx(whole.score)
    assert "tok:none" in found.signatures["bleu"]


def test_text_of_the_tokenizer_and_of_the_data():
    names = dict(enumerate(["pad", "bos", "eos", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]))
    plain = reversed_digits(8)

    def measured(data):
        network, text = translator().eval(), lambda tokens: " ".join(names[each] for each in tokens)
        return measure_translations(network, data, text=text, most=6, replicates=0)

    found = measured(plain)
    rows = range(len(plain))
    whole = metrics.CHRF().corpus_score(
        list(found.texts), [[" ".join(names[each] for each in plain[row][1].tolist()[:-1]) for row in rows]]
    )
    assert any(found.texts)
    assert found.measures.metrics["chrf"].value == pytest.approx(whole.score)
    # Text that the data bring stands before that of the tokenizer.
    own = measured(reversed_digits(8, texts=[f"{text} indeed" for text in found.texts]))
    assert own.texts == found.texts
    whole = metrics.CHRF().corpus_score(list(found.texts), [[f"{text} indeed" for text in found.texts]])
    assert own.measures.metrics["chrf"].value == pytest.approx(whole.score)
    assert own.measures.metrics["chrf"].value > found.measures.metrics["chrf"].value + 10
    assert "tok:13a" in found.signatures["bleu"]


def test_no_more_is_written_than_there_are_positions():
    data = reversed_digits(8)
    network = translator(positions="learnt", most_positions=data.most_positions).eval()
    assert data.most_positions + data.most_positions // 2 + 10 > network.most_positions
    found = measure_translations(network, data, replicates=0)
    assert max(len(text.split()) for text in found.texts) < network.most_positions


def test_other_data_than_pairs_are_refused():
    tokens = TokenDataset.of("tokens", [[1, 2, 3]], vocabulary=5)
    with pytest.raises(ConfigError, match=r"`dataset` to be pairs of sequences, got .?TokenDataset"):
        measure_translations(translator(), tokens)


def test_likeness_of_one_sentence():
    assert likeness("bleu", words=True)("the cat sat on a mat", "the cat sat on the mat") == pytest.approx(
        metrics.BLEU(effective_order=True).sentence_score("the cat sat on a mat", ["the cat sat on the mat"]).score
    )
    assert likeness("bleu", words=False)("3 4", "3 4") == pytest.approx(100)
    with pytest.raises(LookupError, match="Unknown metric 'ter'"):
        likeness("ter", words=True)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"`texts` to be one for each of 2 references, got 1"):
        score_translations(["a"], ["a", "b"])
    with pytest.raises(DataError, match=r"one for each of 0 references"):
        score_translations([], [])
