"""Word errors by utterance against jiwer on the whole, decoders against every path, calibration of symbols, and refusals."""

from __future__ import annotations

import itertools

import jiwer
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError
from bookkd.evaluation import TranscriptSums, beam_decode, greedy_decode, lower_is_better, transcripts

NAMES = ("-", " ", "a", "b", "c")


def spelled(text, frames=2):
    """Logits whose likeliest path says a text, each symbol for some frames and a blank behind it."""
    path = [place for letter in text for place in [NAMES.index(letter)] * frames + [0]] or [0, 0]
    return 8 * F.one_hot(torch.tensor(path), len(NAMES)).double()


def batch_of(texts):
    symbols = [[NAMES.index(letter) for letter in text] for text in texts]
    most = max(map(len, symbols))
    labels = torch.tensor([each + [-1] * (most - len(each)) for each in symbols])
    return {"label": labels, "label_length": torch.tensor([len(each) for each in symbols])}


HEARD = ["ab c", "a", "b b", "", "abc a"]
WANTED = ["ab c", "a b", "bb", "c", "ab ca b"]


def sums_of(heard=HEARD, wanted=WANTED, **options):
    sums = TranscriptSums(NAMES, blank=0, **options)
    for start in range(0, len(heard), 2):
        # A text too long for its frames has no likelihood: more of the same frames.
        said = [
            spelled(text, 2 * len(want))
            for text, want in zip(heard[start : start + 2], wanted[start : start + 2], strict=True)
        ]
        said = [
            each if len(each) > 2 * len(want) else each.repeat(8, 1)[: 2 * len(want) + 1]
            for each, want in zip(said, wanted[start : start + 2], strict=True)
        ]
        counts = torch.tensor([len(each) for each in said])
        sums.add({"logits": torch.cat(said)}, batch_of(wanted[start : start + 2]), counts)
    return sums


def test_a_pass_is_looked_at_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 6, 5, generator=generator)
    counts, texts, found = torch.tensor([1, 3, 2]), ["a", "b", "a"], []
    for most in (2**22, 20, 1):
        monkeypatch.setattr(transcripts, "_CHUNK_VALUES", most)
        sums = TranscriptSums(NAMES, blank=0)
        sums.add({"logits": one}, batch_of(texts), counts, {"logits": other})
        found.append({name: each.value for name, each in sums.measures(replicates=0).metrics.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert found[2] == pytest.approx(found[0], rel=1e-12)
    assert [utterances for utterances, _ in transcripts._pieces(counts, 20)] == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("beam", [1, 4])
def test_errors_are_those_of_the_whole_by_jiwer(beam):
    found = sums_of(beam=beam).measures(replicates=50).metrics
    assert found["wer"].value == pytest.approx(jiwer.wer(WANTED, HEARD), abs=1e-12)
    assert found["cer"].value == pytest.approx(jiwer.cer(WANTED, HEARD), abs=1e-12)
    assert found["accuracy"].value == pytest.approx(1 / 5)
    assert found["wer"].low < found["wer"].value < found["wer"].high
    assert ("ece" in found) == (beam == 1)


def test_intervals_are_over_utterances():
    """Bootstrap of the ratio of errors to words, drawn by hand."""
    errors = np.array([0, 1, 2, 1, 3])
    assert errors.sum() / np.array([2, 2, 1, 1, 3]).sum() == pytest.approx(jiwer.wer(WANTED, HEARD))
    found = sums_of().measures(replicates=4000, seed=1).metrics["wer"]
    draws = np.random.default_rng(0).integers(0, 5, (4000, 5))
    ratios = errors[draws].sum(1) / np.array([2, 2, 1, 1, 3])[draws].sum(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, (0.025, 0.975))), abs=0.06)


def test_directions():
    assert lower_is_better("wer")
    assert lower_is_better("cer")


def collapsed(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def test_decoders_against_every_path():
    generator = torch.Generator().manual_seed(5)
    logits = 1.5 * torch.randn(4 * 30, 3, generator=generator)
    counts = torch.full((30,), 4)
    greedy, beam = greedy_decode(logits, counts, blank=0), beam_decode(logits, counts, blank=0, width=50)
    different = 0
    for place in range(30):
        q = logits[4 * place : 4 * place + 4].softmax(-1).numpy()
        totals: dict[tuple[int, ...], float] = {}
        for path in itertools.product(range(3), repeat=4):
            said = collapsed(path)
            totals[said] = totals.get(said, 0.0) + float(np.prod(q[np.arange(4), list(path)]))
        assert greedy[place] == list(collapsed(q.argmax(-1).tolist()))
        assert totals[tuple(beam[place])] == pytest.approx(max(totals.values()), rel=1e-5)
        different += beam[place] != greedy[place]
    assert different > 0


def test_a_blank_that_is_not_the_first_class():
    logits = 9.0 * F.one_hot(torch.tensor([2, 2, 1, 1, 0, 1]), 3)
    for decode in (greedy_decode, beam_decode):
        assert decode(logits, torch.tensor([4, 2]), blank=1) == [[2], [0]]
    with pytest.raises(ConfigError, match="`blank` to be between 0 and 2, got 3"):
        greedy_decode(logits, torch.tensor([6]), blank=3)


def test_likelihood_and_calibration_by_hand():
    """Two symbols are decoded, at confidences 0.9 and 0.6; the first alone stands in the transcript."""
    rows = [[0.05, 0.02, 0.9, 0.02, 0.01], [0.9, 0.02, 0.04, 0.03, 0.01], [0.2, 0.05, 0.1, 0.6, 0.05]]
    q = torch.tensor(rows, dtype=torch.float64)
    sums = TranscriptSums(NAMES, blank=0, bins=10)
    given = batch_of(["ac"])
    sums.add({"logits": q.log()}, given, torch.tensor([3]))
    found = sums.measures(replicates=0).metrics
    total = sum(
        float(np.prod(q.numpy()[np.arange(3), list(path)]))
        for path in itertools.product(range(5), repeat=3)
        if collapsed(path) == (2, 4)
    )
    assert found["nll"].value == pytest.approx(-np.log(total), rel=1e-9)
    assert found["ece"].value == pytest.approx((abs(0.9 - 1) + abs(0.6 - 0)) / 2, abs=1e-9)
    assert found["blank_share"].value == pytest.approx(1 / 3)


def test_a_teacher_is_compared_by_frame():
    one, other = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = TranscriptSums(NAMES, blank=0)
    sums.add({"logits": one}, batch_of(["a", "b"]), torch.tensor([4, 2]), {"logits": other})
    found = sums.measures(replicates=0).metrics
    wanted = F.kl_div(one.log_softmax(-1), other.log_softmax(-1), log_target=True, reduction="sum") / 6
    assert found["teacher_kl"].value == pytest.approx(float(wanted), rel=1e-9)
    assert found["agreement"].value == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).double().mean()))
    with pytest.raises(TeacherOutputError, match="given for all batches or for none"):
        sums.add({"logits": one}, batch_of(["a", "b"]), torch.tensor([4, 2]))
    with pytest.raises(TeacherOutputError, match=r"`teacher` to be of shape \(6, 5\)"):
        sums.add({"logits": one}, batch_of(["a", "b"]), torch.tensor([4, 2]), {"logits": other[:5]})


def test_words_for_symbols_are_set_apart_in_text():
    names = ("-", "one", "two")
    sums = TranscriptSums(names, blank=0, separator=" ")
    said = 9.0 * F.one_hot(torch.tensor([1, 0, 2, 2]), 3)
    sums.add({"logits": said}, {"label": torch.tensor([[1, 1]]), "label_length": torch.tensor([2])}, torch.tensor([4]))
    found = sums.measures(replicates=0).metrics
    assert (found["wer"].value, found["cer"].value) == (1 / 2, jiwer.cer("one one", "one two"))


def test_utterances_without_transcript_count_for_frames_alone():
    sums = TranscriptSums(NAMES, blank=0)
    given = batch_of(["a", "b"])
    given["label_length"][1] = 0
    sums.add({"logits": torch.cat([spelled("a"), spelled("c")])}, given, torch.tensor([3, 3]))
    found = sums.measures(replicates=0).metrics
    assert (found["wer"].value, found["accuracy"].value, found["blank_share"].value) == (0.0, 1.0, pytest.approx(1 / 3))


def test_what_cannot_be_measured_is_refused():
    sums = TranscriptSums(NAMES, blank=0)
    with pytest.raises(DataError, match="at least one with a transcript"):
        sums.measures()
    broken = spelled("a")
    broken[0, 0] = torch.nan
    with pytest.raises(DataError, match="`logits` to be finite, got NaN or infinity"):
        sums.add({"logits": broken}, batch_of(["a"]), torch.tensor([3]))
    with pytest.raises(ConfigError, match="`beam` to be a whole number of at least 1"):
        TranscriptSums(NAMES, blank=0, beam=0)


def test_an_utterance_too_fast_for_its_frames_has_word_errors_and_no_likelihood():
    fits, short = spelled("ab"), spelled("ab")[:1]
    alone, both = TranscriptSums(NAMES, blank=0), TranscriptSums(NAMES, blank=0)
    alone.add({"logits": fits}, batch_of(["ab"]), torch.tensor([len(fits)]))
    both.add({"logits": torch.cat([fits, short])}, batch_of(["ab", "ab"]), torch.tensor([len(fits), 1]))
    one, two = (each.measures(replicates=0).metrics for each in (alone, both))
    assert two["nll"].value == pytest.approx(one["nll"].value)
    assert (one["wer"].value, two["wer"].value, two["cer"].value) == (0, 0.5, 0.25)


@pytest.mark.parametrize(
    "options", [{"word_mark": "▁"}, {"text": lambda names: "".join(names).replace("▁", " ").strip()}]
)
def test_words_of_word_pieces(options):
    """Said: zero one one; heard: zero one."""
    pieces = ("-", "▁ze", "ro", "▁one")
    sums = TranscriptSums(pieces, blank=0, **options)
    label = {"label": torch.tensor([[1, 2, 3, 3]]), "label_length": torch.tensor([4])}
    sums.add({"logits": 9 * torch.eye(4)[[1, 2, 3, 0, 0]]}, label, torch.tensor([5]))
    found = sums.measures(replicates=0).metrics
    assert (found["wer"].value, found["cer"].value) == (pytest.approx(1 / 3), pytest.approx(4 / 12))
