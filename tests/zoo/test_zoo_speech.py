"""Speech: features against numpy, data sets, digit strings from files, views that replay, and networks blind to padding."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import soundfile
import torch
from tests.zoo.tones import HOW, RATE, SYMBOLS, model, tones, utterances, write_recordings

from bookkd.core.errors import ConfigError, DataError
from bookkd.tasks import CTC
from bookkd.views import Replay, Views
from bookkd.zoo import (
    AcousticModel,
    SpecAugment,
    SpeechDataset,
    SubsetDataset,
    fingerprint,
    log_mel,
    open_dataset,
    read_speech,
    spoken_digits,
)
from bookkd.zoo.speech import symbols_of

NAMES = ("-", "a", "b")


def test_features_by_numpys_fourier_transform():
    rng = np.random.default_rng(0)
    wave, rate = rng.standard_normal(1600), 8000
    found = log_mel(wave, rate, n_mels=8)
    window, hop, size = 200, 80, 256
    hann = np.zeros(size)
    hann[(size - window) // 2 : (size + window) // 2] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(wave, size // 2)
    power = [np.abs(np.fft.rfft(padded[place * hop : place * hop + size] * hann)) ** 2 for place in range(21)]
    mel = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, mel, 10) / 2595) - 1)
    bins = np.linspace(0, rate / 2, size // 2 + 1)
    bands = [np.interp(bins, edges[place : place + 3], [0, 1, 0], left=0, right=0) for place in range(8)]
    wanted = np.log(np.array(power) @ np.array(bands).T + 1e-6)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-3)


def test_a_pitch_is_heard_in_its_band():
    time = np.arange(4000) / 8000
    loudest = [int(log_mel(np.sin(2 * np.pi * pitch * time), 8000)[20].argmax()) for pitch in (200, 600, 1500, 3000)]
    assert loudest == sorted(loudest)
    assert len(set(loudest)) == 4


def test_whole_numbers_are_the_sound_that_their_type_holds():
    wave = 0.9 * np.sin(np.arange(2000) / 5)
    wanted = log_mel(wave, 8000, n_mels=12)
    for held in ((wave * 32768).round().astype(np.int16), (wave * 2**31).astype(np.int32)):
        torch.testing.assert_close(log_mel(held, 8000, n_mels=12), wanted, rtol=0, atol=0.3)  # the floor is near
    coarse = log_mel((wave * 128 + 128).round().astype(np.uint8), 8000, n_mels=12)
    # Between the tones is the noise of 8 bits.
    torch.testing.assert_close(coarse.amax(1), wanted.amax(1), rtol=0, atol=0.05)
    with pytest.raises(DataError, match="floating, or whole numbers of 8 to 32 bits, got 'int64'"):
        log_mel((wave * 32768).astype(np.int64), 8000, n_mels=12)


def test_a_data_set_of_speech():
    data = tones(20)
    assert len(data) == len(data.texts) == len(data.speakers) == 20
    features, symbols = data[3]
    assert features.dtype == torch.float32
    assert symbols.tolist() == symbols_of(data.texts[3], SYMBOLS, blank=0)
    assert features.mean(0).abs().max() < 1e-4
    assert (data.most_positions, data.n_features) == (int(data.lengths.max()), 12)
    assert fingerprint(data)["length"] == 20
    assert fingerprint(data)["samples"] != fingerprint(tones(20, 5))["samples"]
    batch = Replay(data, Views(None, n_views=1)).batch([(row, 0) for row in (3, 7)])
    assert batch["label_length"].tolist() == [len(data[3][1]), len(data[7][1])]
    assert batch["length"].tolist() == data.lengths[[3, 7]].tolist()
    part = SubsetDataset(data, np.array([3, 7]))
    assert (CTC.of(part), part.most_positions) == (CTC.of(data), data.most_positions)


def dataset(frames=((0, 0), (1, 1), (2, 2)), ends=(2, 3), symbols=(1, 2), symbol_ends=(1, 2), **options):
    return SpeechDataset(
        "mine", np.array(frames, np.float32), np.array(ends), np.array(symbols), np.array(symbol_ends), NAMES, **options
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ends": (2, 2)}, r"`frames` to be at least one in each utterance, .*, got 0 in utterance 1 \(mine\)"),
        ({"ends": (1, 2)}, "2 ends for 3"),
        ({"symbol_ends": (0, 2)}, r"`symbols` to be at least one in each utterance.*0 in utterance 0"),
        ({"symbol_ends": (2,)}, "`transcripts` to be one for each of 2 utterances, got 1"),
        ({"symbols": (1, 0)}, r"`symbol` to be from 0 to 2, and not the blank 0, got 0 \(mine, utterance 1\)"),
        ({"symbols": (1, 3)}, "got 3"),
        ({"frames": ((0, 0), (1, np.nan), (2, 2))}, r"`features` to be finite.*utterance 0"),
        ({"speakers": ("x",)}, "`speakers` to be one for each of 2"),
        ({"frames": (0, 1, 2)}, r"floating \[frames, features\]"),
        ({"blank": 3}, "`blank` to be from 0 to 2, got 3"),
        ({"subsampling": 0}, "`subsampling` to be a whole number of at least 1"),
    ],
)
def test_data_sets_that_make_no_sense_are_refused(options, message):
    with pytest.raises((DataError, ConfigError), match=message):
        dataset(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "`text` to be at least one symbol, got ''"), ("ab!", "`symbol` to be one of the 2 classes, got '!'")],
)
def test_texts_that_cannot_be_spelled_are_refused(text, message):
    with pytest.raises(DataError, match=message):
        symbols_of(text, NAMES, blank=0, where="mine")


def test_utterances_too_fast_are_refused_or_left_out():
    said, how = utterances(30), {"n_mels": 12, "window": 0.032, "hop": 0.016, "subsampling": 9}
    with pytest.raises(
        DataError,
        match=r"`frames` to be at least \d+ for its transcript, got \d+ \(x, utterance \d+\)\. Pass drop=True",
    ):
        read_speech("x", said, RATE, SYMBOLS, **how)
    kept = read_speech("x", said, RATE, SYMBOLS, drop=True, **how)
    assert 0 < len(kept) < 30
    for row in range(len(kept)):
        symbols = kept[row][1]
        assert -(-kept.lengths[row] // 9) >= len(symbols) + int((symbols[1:] == symbols[:-1]).sum())
    with pytest.raises(DataError, match="at least one that fits"):
        read_speech(
            "x", [each for each in said if len(each.text) > 1], RATE, SYMBOLS, drop=True, **{**how, "subsampling": 400}
        )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = write_recordings(tmp_path_factory.mktemp("digits"))
    with zipfile.ZipFile(root / "digits.zip", "w") as packed:
        for file in sorted((root / "recordings").iterdir()):
            packed.write(file, f"recordings/{file.name}")
    return root


def test_digits_are_joined_and_speakers_held_out(recordings):
    how = {"held_out": ("cy",), "n_strings": 30}
    train, test = (spoken_digits(recordings, split=split, **how) for split in ("train", "test"))
    assert (set(train.speakers), set(test.speakers)) == ({"ann", "bob"}, {"cy"})
    assert all(2 <= len(text.split(" ")) <= 6 for text in train.texts)
    zipped = spoken_digits(recordings / "digits.zip", **how)
    assert fingerprint(zipped)["samples"] == fingerprint(train)["samples"]
    again = open_dataset("spoken-digits", root=recordings, split="test", args=how)
    assert again.texts == test.texts
    words = spoken_digits(recordings, symbols="words", **how)
    assert words.texts == train.texts
    assert words[0][1].max() <= 10
    assert spoken_digits(recordings, seed=1, **how).texts != train.texts


def test_files_that_are_no_digits_are_refused(recordings, tmp_path):
    with pytest.raises(DataError, match="`held_out` to be among the speakers ann, bob, cy, got 'dan'"):
        spoken_digits(recordings, held_out=("dan",))
    with pytest.raises(
        DataError, match=r"got theo, which is held out where nothing is said .*'\{\"held_out\": \[\"cy\"\]\}'"
    ):
        spoken_digits(recordings)
    with pytest.raises(DataError, match=r"one with recordings/\*\.wav"):
        spoken_digits(tmp_path)
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings" / "hello.wav", np.zeros(800), 8000)
    with pytest.raises(DataError, match=r"\{digit\}_\{speaker\}_\{k\}\.wav, got 'hello\.wav'"):
        spoken_digits(tmp_path)
    (tmp_path / "recordings" / "hello.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match="`file` to be a sound"):
        spoken_digits(tmp_path)
    soundfile.write(tmp_path / "recordings" / "hello.wav", np.zeros((800, 2)), 8000)
    with pytest.raises(DataError, match="of one channel, got 2 channels"):
        spoken_digits(tmp_path)


def test_views_replay_and_have_a_speed_of_their_own():
    data, views = tones(10), Views(SpecAugment(speeds=(0.8, 1.0, 1.25)), n_views=4)
    replay = Replay(data, views)
    one = [replay.batch([(row, view)])["input"] for row in range(10) for view in range(4)]
    other = [replay.batch([(row, view)])["input"] for row in reversed(range(10)) for view in range(4)]
    assert all(torch.equal(one[4 * row + view], other[4 * (9 - row) + view]) for row in range(10) for view in range(4))
    lengths = np.array([each.shape[1] for each in one]).reshape(10, 4)
    assert {round(float(ratio), 1) for ratio in (lengths / data.lengths[:, None]).ravel()} <= {0.8, 1.0, 1.2, 1.3}
    assert len(set(lengths[0])) > 1
    assert max(map(len, (each[0] for each in one))) <= SpecAugment(speeds=(0.8, 1.0, 1.25)).longest(data.most_positions)


def test_masks_are_stretches_of_time_and_bands():
    plain = torch.ones(50, 20)
    masked = SpecAugment(time_masks=1, time_width=10, time_share=0.1, band_masks=1, band_width=4, value=-7.0)
    widths = set()
    for seed in range(40):
        torch.manual_seed(seed)
        found = masked(plain) == -7
        rows, columns = found.all(1), found.all(0)
        assert torch.equal(found, rows[:, None] | columns)
        for line, most in ((rows, 5), (columns, 4)):
            places = line.nonzero().flatten()
            assert len(places) <= most
            assert not len(places) or int(places[-1] - places[0]) == len(places) - 1
        widths.add((int(rows.sum()), int(columns.sum())))
    assert {rows for rows, _ in widths} == set(range(6))
    assert torch.equal(plain, torch.ones(50, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speeds": ()}, "`speeds` to be at least one"),
        ({"speeds": (0.0,)}, "`speeds` to be a number above 0"),
        ({"time_masks": -1}, "`time_masks` to be a whole number of at least 0"),
        ({"time_share": 1.5}, "`time_share` to be between 0 and 1"),
    ],
)
def test_views_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SpecAugment(**options)
    with pytest.raises(DataError, match=r"\[frames, bands\]"):
        SpecAugment()(torch.ones(3))


@pytest.mark.parametrize(
    "options", [{}, {"cell": "lstm", "layers": 2}, {"layers": 3, "heads": (0, 1)}, {"subsampling": 3}]
)
def test_padding_never_changes_what_is_said(options):
    network = model(width=8, **options).double().eval()
    features = torch.randn(3, 11, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lengths = torch.tensor([11, 4, 7])
    longer = torch.cat([features, torch.full((3, 6, 12), 99.0, dtype=torch.float64)], 1)

    def said(features, lengths):
        found = network(features, lengths)
        return list(found.values()) if isinstance(found, dict) else [found]

    for place, length in enumerate(lengths.tolist()):
        alone = said(features[place : place + 1, :length], lengths[place : place + 1])
        for whole in (said(features, lengths), said(longer, lengths)):
            for one, other in zip(alone, whole, strict=True):
                torch.testing.assert_close(one[0], other[place, : one.shape[1]], rtol=0, atol=1e-12)


def test_both_directions_are_torchs():
    """One layer, and no padding: the bidirectional unit of torch with the same weights."""
    network = AcousticModel(4, 3, width=5, layers=1, dropout=0.0).eval()
    wanted = torch.nn.GRU(5, 5, batch_first=True, bidirectional=True)
    ahead, back = network.layers[0]
    for name, value in ahead.named_parameters():
        getattr(wanted, name).data = value.data
        getattr(wanted, f"{name}_reverse").data = dict(back.named_parameters())[name].data
    features = torch.randn(2, 7, 4)
    hidden = torch.relu(network.read(features))
    torch.testing.assert_close(network(features, torch.tensor([7, 7])), network.say(wanted(hidden)[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (1,)}, r"`heads` to be layers from 0 to 0, got \(1,\)"),
        ({"dropout": 1.0}, "`dropout` to be below 1"),
        ({"width": 0}, "`width` to be a whole number of at least 1"),
        ({"cell": "rnn"}, "Unknown cell 'rnn'"),
    ],
)
def test_networks_that_cannot_be_are_refused(options, message):
    with pytest.raises((ConfigError, LookupError), match=message):
        AcousticModel(4, 3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 0.0001}, r"`hop` to be at least one sample of 2000 a second, got 0\.0001"),
        ({"window": 0.0001}, "`window` to be at least one sample of 2000 a second"),
        ({"n_mels": 80}, "`n_mels` to be so few that each band holds one of the 33 frequencies of a window, got 80"),
    ],
)
def test_features_that_hold_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        log_mel(np.zeros(400), 2000, **{"n_mels": 12, **options})


def test_one_speaker_is_held_out_by_name_and_each_has_strings(recordings):
    how = {"n_strings": 6, "drop": False}
    assert set(spoken_digits(recordings, split="test", held_out="cy", **how).speakers) == {"cy"}
    with pytest.raises(ConfigError, match="`n_strings` to be at least one for each of 2 speakers, got 1"):
        spoken_digits(recordings, held_out="cy", n_strings=1)


def test_how_many_were_left_out_is_told():
    said = utterances(40)
    kept = read_speech("some", said, RATE, SYMBOLS, **{**HOW, "subsampling": 9}, drop=True)
    assert 0 < kept.dropped["too fast"] == len(said) - len(kept)
    assert tones(4).dropped == {}
    assert SpecAugment(speeds=(0.8, 1.25)).shortest(10) == 8
