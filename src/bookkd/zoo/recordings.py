"""Spoken digits joined into strings: clips `{digit}_{speaker}_{k}.wav` of the Free Spoken Digit Dataset."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose
from bookkd.core.rng import generator
from bookkd.core.subsampling import Subsampling
from bookkd.zoo.sounds import wave_files
from bookkd.zoo.speech import SpeechDataset, Utterance, read_speech

_HELD_OUT = ("theo", "yweweler")

__all__ = ["DIGITS", "LETTERS", "WORDS", "join_clips", "spoken_digits"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = ("<blank>", " ", *sorted(set("".join(DIGITS))))
"""Symbols of the digits' names, letter by letter."""
WORDS = ("<blank>", *DIGITS)
"""Symbols of the digits' names, word by word."""


def join_clips(
    clips: list[tuple[int, npt.NDArray[np.float32]]],
    *,
    n_strings: int,
    seed: int,
    speaker: str = "",
    shortest: int = 2,
    longest: int = 6,
) -> list[Utterance]:
    """Join clips of one speaker into strings of digits, drawn with replacement.

    Args:
        clips: Digit, and samples.
        n_strings: Strings.
        seed: Of the draws.
        speaker: Who speaks.
        shortest: Least digits of a string.
        longest: Most digits of a string.
    """
    at_least(n_strings, 1, "n_strings", where="join_clips")
    at_least(longest, at_least(shortest, 1, "shortest", where="join_clips"), "longest", where="join_clips")
    draws = generator(seed, f"strings of {speaker}")
    found = []
    for _ in range(n_strings):
        chosen = draws.integers(len(clips), size=int(draws.integers(shortest, longest + 1)))
        wave = np.concatenate([clips[int(place)][1] for place in chosen])
        found.append(Utterance(wave, " ".join(DIGITS[clips[int(place)][0]] for place in chosen), speaker))
    return found


def spoken_digits(
    root: str | Path,
    *,
    split: Literal["train", "test"] = "train",
    held_out: Collection[str] = _HELD_OUT,
    n_strings: int = 1200,
    shortest: int = 2,
    longest: int = 6,
    symbols: Literal["letters", "words"] = "letters",
    seed: int = 0,
    subsampling: Subsampling = 1,
    drop: bool = True,
    n_mels: int = 40,
) -> SpeechDataset:
    """Open the Free Spoken Digit Dataset as strings of digits, each of one speaker.

    Args:
        root: Folder with `recordings/{digit}_{speaker}_{k}.wav`, or a zip of it.
        split: "train" has the speakers that are not held out, "test" the others.
        held_out: Speakers of the test split; of one the name alone will do.
        n_strings: Strings in all, divided evenly over the speakers.
        shortest: Least digits of a string.
        longest: Most digits of a string.
        symbols: Spell the digits in "letters", or take "words" for symbols.
        seed: Of the strings.
        subsampling: Frames of the features to one of the network.
        drop: Leave out strings spoken too fast for their symbols.
        n_mels: Bands of the features.

    Raises:
        MissingExtraError: if soundfile is not installed.
        DataError: for files of another name or rate, or speakers that are not there.

    Source: Z. Jackson and others, "Free Spoken Digit Dataset", https://github.com/Jakobovski/free-spoken-digit-dataset.
    """
    choose(split, ("train", "test"), "split", where="spoken digits")
    choose(symbols, ("letters", "words"), "symbols", where="spoken digits")
    clips: dict[str, list[tuple[int, npt.NDArray[np.float32]]]] = {}
    rates = set()
    for name, wave, rate in wave_files(root, "recordings"):
        digit, _, rest = name.partition("_")
        speaker = rest.rpartition("_")[0]
        if digit not in map(str, range(10)) or not speaker:
            raise DataError(expected("file", "{digit}_{speaker}_{k}.wav", f"{name}.wav", where=str(root)))
        clips.setdefault(speaker, []).append((int(digit), wave))
        rates.add(rate)
    held_out = (held_out,) if isinstance(held_out, str) else held_out
    missing = sorted(set(held_out) - set(clips))
    if missing:
        got = f"{missing[0]}, which is held out where nothing is said" if held_out == _HELD_OUT else missing[0]
        do = f"""Name those of the test split: --data.args '{{"held_out": ["{max(clips)}"]}}'."""
        raise DataError(
            expected("held_out", f"among the speakers {', '.join(sorted(clips))}", got, where=str(root), do=do)
        )
    if len(rates) != 1:
        raise DataError(expected("rate", "one for all files", sorted(rates), where=str(root)))
    speakers = [each for each in sorted(clips) if (each in held_out) == (split == "test")]
    if not speakers:
        raise DataError(expected("speakers", f"at least one in split {split}", "none", where="spoken digits"))
    if n_strings < len(speakers):
        wish = f"at least one for each of {len(speakers)} speakers"
        raise ConfigError(expected("n_strings", wish, n_strings, where="spoken digits"))
    found = [
        utterance
        for place, speaker in enumerate(speakers)
        for utterance in join_clips(
            clips[speaker],
            n_strings=n_strings // len(speakers) + (place < n_strings % len(speakers)),
            seed=seed,
            speaker=speaker,
            shortest=shortest,
            longest=longest,
        )
    ]
    names, separator = (LETTERS, "") if symbols == "letters" else (WORDS, " ")
    return read_speech(
        f"spoken digits {split}",
        found,
        rates.pop(),
        names,
        separator=separator,
        subsampling=subsampling,
        drop=drop,
        n_mels=n_mels,
    )
