"""Targets that a teacher wrote: the best of the beam or the likest, with who wrote them and how."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.zoo.pairs import BEGIN, END, V, reversed_digits, translator

from bookkd.core.errors import BookMismatchError, DataError
from bookkd.knowledge import Teacher
from bookkd.making import decode_dataset
from bookkd.zoo import decode, fingerprint

DATA = reversed_digits(12)


def teacher(seed=3, **options):
    return Teacher(translator(seed, layers=2, tied="none", **options), name="a teacher")


def targets(data):
    return [tuple(data[row][1].tolist()[:-1]) for row in range(len(data))]


@pytest.mark.parametrize("beam", [1, 3])
def test_students_are_given_what_the_beam_found(beam):
    made = decode_dataset(teacher(), DATA, beam=beam, most=9, batch_size=5)
    network, kept = teacher().network, []
    for row in range(len(DATA)):
        source = DATA[row][0][None]
        found = decode(network, source, torch.tensor([source.shape[1]]), begin=BEGIN, end=END, most=9, beam=beam)[0]
        plain = [tuple(token for token in each.tokens if token != BEGIN) for each in found]
        kept.append(next((each for each in plain if each), None))
    assert targets(made) == [each for each in kept if each]
    assert made.dropped.get("empty translation", 0) == kept.count(None)
    assert made.lineage["teacher"] == {"name": "a teacher", "digest": teacher().digest, "mode": "eval"}
    assert (made.lineage["beam"], made.lineage["length_penalty"], made.lineage["take"]) == (beam, 1.0, "best")
    assert fingerprint(made)["lineage"] == made.lineage
    assert (made.vocabulary, made.begin, made.end, made.pad_value) == (V, BEGIN, END, 0)


@pytest.mark.parametrize("take", ["bleu", "chrf"])
def test_interpolation_takes_the_likest_of_the_beam(take):
    metrics = pytest.importorskip("sacrebleu.metrics")
    data = DATA.part(range(6))
    made = decode_dataset(teacher(), data, beam=4, most=9, take=take)
    scorer = metrics.CHRF() if take == "chrf" else metrics.BLEU(tokenize="none", effective_order=True)
    for row in range(len(made)):
        source, gold = (each.tolist() for each in data[row])
        assert made[row][0].tolist() == source
        found = decode(
            teacher().network, data[row][0][None], torch.tensor([len(source)]), begin=BEGIN, end=END, most=9, beam=4
        )[0]
        texts = [" ".join(str(token) for token in each.tokens if token != BEGIN) for each in found]
        scores = [scorer.sentence_score(text, [" ".join(map(str, gold[:-1]))]).score for text in texts if text]
        chosen = " ".join(map(str, targets(made)[row]))
        assert scorer.sentence_score(chosen, [" ".join(map(str, gold[:-1]))]).score == max(scores)
    assert made.lineage["take"] == take


def test_text_comes_along():
    made = decode_dataset(teacher(), DATA, beam=1, most=5, text=lambda tokens: "-".join(map(str, tokens)))
    assert made.texts == tuple("-".join(map(str, each)) for each in targets(made))


def test_a_file_is_read_in_place_of_decoding_again(tmp_path, monkeypatch):
    path = tmp_path / "written.safetensors"
    made = decode_dataset(teacher(), DATA, path=path, beam=2, most=9)
    monkeypatch.setattr("bookkd.making.decoded.decode_all", None)
    again = decode_dataset(teacher(), DATA, path=path, beam=2, most=9)
    assert targets(again) == targets(made)
    renamed = replace(DATA, name="another name")
    assert targets(decode_dataset(teacher(), renamed, path=path, beam=2, most=9)) == targets(made)
    for other, options in ((teacher(7), {}), (teacher(), {"beam": 3}), (teacher(), {"length_penalty": 0.6})):
        with pytest.raises(BookMismatchError, match="to be of this teacher, data and decoding, got another: "):
            decode_dataset(other, DATA, path=path, **{"beam": 2, "most": 9, **options})
    with pytest.raises(BookMismatchError, match="targets"):
        decode_dataset(teacher(), reversed_digits(12, seed=1), path=path, beam=2, most=9)


def test_a_file_gives_the_text_that_is_asked_for(tmp_path):
    path = tmp_path / "written.safetensors"
    made = decode_dataset(teacher(), DATA, path=path, beam=1, most=5)
    assert made.texts is None
    dashed = decode_dataset(teacher(), DATA, path=path, beam=1, most=5, text=lambda tokens: "-".join(map(str, tokens)))
    assert dashed.texts == tuple("-".join(map(str, each)) for each in targets(made))
    assert decode_dataset(teacher(), DATA, path=path, beam=1, most=5).texts is None


def test_a_file_that_was_chosen_by_other_references_is_refused(tmp_path):
    pytest.importorskip("sacrebleu")
    path, data = tmp_path / "written.safetensors", replace(DATA, texts=("1 2",) * len(DATA))
    options = {"path": path, "beam": 2, "most": 9, "take": "chrf"}
    made = decode_dataset(teacher(), data, text=lambda tokens: " ".join(map(str, tokens)), **options)
    again = decode_dataset(teacher(), data, text=lambda tokens: " ".join(map(str, tokens)), **options)
    assert (targets(again), again.texts) == (targets(made), made.texts)
    for other, text in ((replace(data, texts=("3",) * len(DATA)), " ".join), (data, "-".join), (data, None)):
        with pytest.raises(BookMismatchError, match="got another: compared"):
            decode_dataset(
                teacher(), other, text=text and (lambda tokens, text=text: text(map(str, tokens))), **options
            )


def test_a_teacher_that_writes_nothing_is_refused():
    class Silent(torch.nn.Module):
        def forward(self, source, lengths, prefix):
            return torch.nn.functional.one_hot(torch.full_like(prefix, END), V).float() * 9

    with pytest.raises(DataError, match="`translations` to be at least one with a token, got 'none'"):
        decode_dataset(Teacher(Silent()), DATA, beam=1)
