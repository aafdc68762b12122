"""Pairs of sequences: from lists and from text files, refused or left out, saved and named by what they hold."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from tests.zoo.pairs import reversed_digits

from bookkd.core.errors import ConfigError, DataError
from bookkd.zoo import PairDataset, SubsetDataset, fingerprint, read_pairs, tokenizer_digest

tokenizers = pytest.importorskip("tokenizers")


def words(*known):
    table = {word: place for place, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *known))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


ENGLISH, GERMAN = words("a", "cat", "sat"), words("eine", "katze", "sitzt", "da")


@pytest.fixture
def files(tmp_path):
    def write(english, german):
        paths = tmp_path / "t.en", tmp_path / "t.de.gz"
        paths[0].write_text(english, encoding="utf-8")
        paths[1].write_bytes(gzip.compress(german.encode()))
        return paths

    return write


def test_two_text_files_are_read(files):
    data = read_pairs("cats", *files("a cat\na cat sat\n", "eine katze\neine katze sitzt da\n"), ENGLISH, GERMAN)
    assert [each.tolist() for each in data[1]] == [[4, 5, 6, 2], [4, 5, 6, 7, 2]]
    assert (data.vocabulary, data.source_vocabulary, data.begin, data.end, data.pad_value) == (8, 7, 1, 2, 0)
    assert data.tokenizer == (tokenizer_digest(ENGLISH), tokenizer_digest(GERMAN))
    assert data.texts == ("eine katze", "eine katze sitzt da")
    assert (data.most_positions, data.most_source_positions, data.lengths.tolist()) == (5, 4, [3, 5])
    assert len(read_pairs("cats", *files("a\na\n", "da\nda\n"), ENGLISH, GERMAN, limit=1)) == 1


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        ("a\n", "da\nda\n", r"`files` to be of as many lines, got 1 and 2"),
        (
            "a\n \n",
            "da\nda\n",
            r"`source` to be at least one token, got an empty one \(x, pair 1\)\. Correct it, or pass drop",
        ),
        ("a\na\n", "da\n\nda", r"as many lines"),
        ("a\na\n", "da\n\n", r"`target` to be at least one token, got an empty one \(x, pair 1\)"),
    ],
)
def test_files_that_are_no_translation_of_one_another_are_refused(files, english, german, message):
    with pytest.raises(DataError, match=message):
        read_pairs("x", *files(english, german), ENGLISH, GERMAN)


def test_what_cannot_be_read_is_refused(tmp_path, files):
    english, german = files("a\n", "da\n")
    with pytest.raises(DataError, match=r"`file` to be one of text, got .*No such file"):
        read_pairs("x", tmp_path / "none", german, ENGLISH, GERMAN)
    english.write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"`text` to be UTF-8, got other bytes in line 2"):
        read_pairs("x", english, german, ENGLISH, GERMAN)
    with pytest.raises(ConfigError, match=r"`token` to be one of the tokenizer's vocabulary, got '<bos>'"):
        read_pairs("x", *files("a\n", "da\n"), ENGLISH, GERMAN, begin="<bos>")


def test_pairs_that_are_left_out_are_counted(files):
    english, german = "a\n\na a a\na\n", "da\nda\nda\nda da da\n"
    with pytest.raises(DataError, match=r"`source` to be 1 to 3 tokens, got an empty one"):
        read_pairs("x", *files(english, german), ENGLISH, GERMAN, most=3)
    data = read_pairs("x", *files(english, german), ENGLISH, GERMAN, most=3, drop=True)
    assert len(data) == 1
    assert dict(data.dropped) == {"empty source": 1, "long source": 1, "long target": 1}
    assert data.texts == ("da",)
    with pytest.raises(DataError, match=r"`target` to be 1 to 3 tokens, got 3 tokens \(x, pair 0\)"):  # and its end
        PairDataset.of("x", [[3]], [[3, 3, 3]], vocabulary=5, most=3)


@pytest.mark.parametrize(
    ("sources", "targets", "options", "message"),
    [
        ([[3], [5]], [[3], [3]], {}, r"`token` to be from 0 to 4, got 5 \(x, sources, sequence 1\)"),
        ([[3]], [[7]], {"source_vocabulary": 9}, r"got 7 \(x, targets, sequence 0\)\. Check the tokenizer"),
        ([[3]], [[3, 2]], {}, r"`target token` to be other than begin and end, got 2 \(x, pair 0\)"),
        ([[3]], [[3]], {"end": 5}, r"`end` to be a token from 0 to 4, got 5"),
        ([[3]], [[3]], {"pad_value": -1}, r"`pad_value` to be a token from 0 to 4, got -1"),
        ([[]], [[3]], {"drop": True}, r"`pairs` to be at least one that is kept, got none of 1"),
    ],
)
def test_tokens_that_are_none_are_refused(sources, targets, options, message):
    with pytest.raises(DataError, match=message):
        PairDataset.of("x", sources, targets, vocabulary=5, **options)


def test_saved_and_read_again(tmp_path):
    data = reversed_digits(9, texts=[str(i) for i in range(9)], lineage={"teacher": "t", "beam": 4})
    data.save(tmp_path / "pairs.safetensors")
    again = PairDataset.load(tmp_path / "pairs.safetensors")
    assert fingerprint(again) == fingerprint(data)
    assert (again.texts, again.lineage) == (data.texts, {"teacher": "t", "beam": 4})
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"`pairs` to be a file that PairDataset\.save wrote"):
        PairDataset.load(tmp_path / "other")


def test_a_part_is_of_its_pairs():
    data = reversed_digits(9, texts=[str(i) for i in range(9)])
    part, subset = data.part([7, 2]), SubsetDataset(data, np.array([7, 2]))
    assert part.texts == ("7", "2")
    assert all(torch.equal(a, b) for one, two in ((0, 7), (1, 2)) for a, b in zip(part[one], data[two], strict=True))
    assert (subset.label_is_input, subset.prefix, subset.end) == (True, data.prefix, 2)


def test_the_fingerprint_knows_what_a_network_is_fed():
    plain = fingerprint(reversed_digits())
    assert plain["prefix"] == "gold, begun by 1, ended by 2"
    assert "lineage" not in plain
    for changed in ({"begin": 0}, {"tokenizer": ("a", "b")}, {"source_vocabulary": 14}, {"lineage": {"teacher": "t"}}):
        assert fingerprint(reversed_digits(**changed)) != plain
