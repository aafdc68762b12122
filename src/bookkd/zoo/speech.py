"""Speech as a data set: clips of sound with transcripts, turned once into log-mel features, one frame after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.subsampling import Subsampling, as_subsampling, frames_of
from bookkd.zoo.sequences import FlatSequences, piece
from bookkd.zoo.sounds import log_mel

__all__ = ["SpeechDataset", "Utterance", "read_speech", "symbols_of"]


@dataclass(frozen=True, eq=False)
class Utterance:
    """One clip with what is said in it.

    Args:
        wave: Samples, shape [samples]: floating from -1 to 1, or whole numbers as wav files hold them, see `log_mel`.
        text: What is said; None where nobody wrote it down.
        speaker: Who says it; for splits.
    """

    wave: npt.NDArray[Any]
    text: str | None
    speaker: str = ""


@dataclass(frozen=True, eq=False)
class SpeechDataset(FlatSequences):
    """Features of utterances, each with a number of frames of its own, and their transcripts as symbols.

    Args:
        name: Name of the set.
        frames: Features of all utterances, one after another, float32 [frames, features].
        ends: Where each ends, rising, the last at the number of frames, int [utterances].
        symbols: Symbols of all transcripts, one after another, int [symbols]; one `IGNORE_LABEL` for a transcript that is not known.
        symbol_ends: Where each ends.
        class_names: What each class stands for, the blank among them.
        blank: The class that stands for no symbol.
        speakers: Of each utterance; empty where not known.
        separator: What stands between symbols in text: "" of letters, " " of words.
        subsampling: Input frames to one of the networks that it is for; `tasks.CTC.of` takes it.
        pad_value: Feature that shorter utterances of a batch are filled up with.
        dropped: Why how many utterances were left out when the set was made.

    Raises:
        DataError: for ends that divide nothing, features that are not finite, utterances without frames or symbols, or symbols that
            are the blank or no class.

    >>> frames = np.zeros((5, 2), np.float32)
    >>> data = SpeechDataset("mine", frames, np.array([3, 5]), np.array([1, 2, 1]), np.array([2, 3]), ("", "a", "b"))
    >>> data[0][0].shape, data[0][1], data.texts
    (torch.Size([3, 2]), tensor([1, 2]), ('ab', 'a'))
    """

    name: str
    frames: npt.NDArray[np.float32]
    ends: npt.NDArray[np.int64]
    symbols: npt.NDArray[np.int64]
    symbol_ends: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    blank: int = 0
    speakers: tuple[str, ...] = ()
    separator: str = ""
    subsampling: Subsampling = 1
    pad_value: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.ndim != 2 or self.frames.dtype.kind != "f":
            got = f"{self.frames.dtype} of shape {self.frames.shape}"
            raise DataError(expected("frames", "floating [frames, features]", got, where=self.name))
        if not 0 <= self.blank < len(self.class_names):
            wish = f"from 0 to {len(self.class_names) - 1}"
            raise ConfigError(expected("blank", wish, self.blank, where=self.name))
        object.__setattr__(self, "subsampling", as_subsampling(self.subsampling, "subsampling", where=self.name))
        _check_ends(self.ends, len(self.frames), "frames", self.name)
        _check_ends(self.symbol_ends, len(self.symbols), "symbols", self.name)
        for what, given in (("transcripts", len(self.symbol_ends)), ("speakers", len(self.speakers))):
            if given not in (len(self.ends), *((0,) if what == "speakers" else ())):
                raise DataError(expected(what, f"one for each of {len(self.ends)} utterances", given, where=self.name))
        bad = np.flatnonzero(~np.isfinite(self.frames).all(axis=1))
        if len(bad):
            where = f"{self.name}, utterance {int(np.searchsorted(self.ends, bad[0], side='right'))}"
            raise DataError(expected("features", "finite", "NaN or infinity", where=where))
        wrong = (self.symbols < 0) | (self.symbols >= len(self.class_names)) | (self.symbols == self.blank)
        wrong[self.symbol_ends[~self.known] - 1] = False
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            where = f"{self.name}, utterance {int(np.searchsorted(self.symbol_ends, first, side='right'))}"
            wish = f"from 0 to {len(self.class_names) - 1}, and not the blank {self.blank}"
            raise DataError(expected("symbol", wish, int(self.symbols[first]), where=where))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Whether there is a transcript of each utterance."""
        alone = np.diff(self.symbol_ends, prepend=0) == 1
        found: npt.NDArray[np.bool_] = ~(alone & (self.symbols[self.symbol_ends - 1] == IGNORE_LABEL))
        return found

    @property
    def needed(self) -> npt.NDArray[np.int64]:
        """Frames that each transcript takes: one a symbol, and one between two that are equal; 0 where it is not known."""
        each = [_needed(self._symbols(index).tolist()) for index in range(len(self))]
        return np.array(each, dtype=np.int64) * self.known

    @property
    def n_features(self) -> int:
        """Features of a frame."""
        return int(self.frames.shape[1])

    @property
    def texts(self) -> tuple[str, ...]:
        """What is said in each utterance; empty where that is not known."""
        return tuple(
            self.separator.join(self.class_names[symbol] for symbol in self._symbols(index).tolist()) if known else ""
            for index, known in enumerate(self.known.tolist())
        )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the features of an utterance, float32 [frames, features], and its symbols, int64 [symbols]."""
        frames = torch.from_numpy(piece(self.frames, self.ends, index).astype(np.float32))
        return frames, torch.from_numpy(self._symbols(index).astype(np.int64))

    def _symbols(self, index: int) -> npt.NDArray[np.int64]:
        return piece(self.symbols, self.symbol_ends, index)


def _check_ends(ends: npt.NDArray[np.int64], total: int, what: str, name: str) -> None:
    counts = np.diff(np.asarray(ends, dtype=np.int64), prepend=0)
    if len(ends) and ends[-1] == total and (counts >= 1).all():
        return
    short = np.flatnonzero(counts < 1)
    got = f"{int(counts[short[0]])} in utterance {int(short[0])}" if len(short) else f"{len(ends)} ends for {total}"
    do = "Leave out utterances without sound or transcript."
    raise DataError(expected(what, "at least one in each utterance, the last at the end", got, where=name, do=do))


def _needed(symbols: Sequence[int]) -> int:
    return len(symbols) + sum(a == b for a, b in itertools.pairwise(symbols))


def symbols_of(text: str, class_names: Sequence[str], *, blank: int, separator: str = "", where: str = "") -> list[int]:
    """Return the symbols of a text.

    Args:
        text: What is said.
        class_names: What each class stands for.
        blank: The class that stands for no symbol.
        separator: What stands between symbols; "" takes every character for one.
        where: Whose text it is, for the error.

    Raises:
        DataError: for a text without symbols, or with one that is no class.

    >>> symbols_of("abba", ("", "a", "b"), blank=0)
    [1, 2, 2, 1]
    """
    known = {name: place for place, name in enumerate(class_names) if place != blank}
    parts = text.split(separator) if separator else list(text)
    if not text or not parts:
        raise DataError(expected("text", "at least one symbol", text, where=where, do="Leave the utterance out."))
    for part in parts:
        if part not in known:
            do = "Give it a class, or bring the text to the symbols that there are."
            raise DataError(expected("symbol", f"one of the {len(known)} classes", part, where=where, do=do))
    return [known[part] for part in parts]


def read_speech(
    name: str,
    utterances: Iterable[Utterance],
    rate: int,
    class_names: tuple[str, ...],
    *,
    blank: int = 0,
    separator: str = "",
    subsampling: Subsampling = 1,
    drop: bool = False,
    **features: Any,
) -> SpeechDataset:
    """Turn clips into a data set: log-mel features, of each utterance and band with mean 0 and standard deviation 1.

    Args:
        name: Name of the set.
        utterances: Clips and texts.
        rate: Samples a second, of all.
        class_names: What each class stands for, the blank among them.
        blank: The class that stands for no symbol.
        separator: What stands between symbols in text.
        subsampling: Frames of the features to one of the network.
        drop: Leave out utterances whose text has no path through so few frames; otherwise they are refused.
        features: Options of `log_mel`.

    Raises:
        DataError: naming the first utterance without text, with a symbol that is no class, or too short for its text.
    """
    frames, symbols, speakers, fast = [], [], [], 0
    rule = as_subsampling(subsampling, "subsampling", where=name)
    for place, each in enumerate(utterances):
        where = f"{name}, utterance {place}"
        said = [IGNORE_LABEL]
        if each.text is not None:
            said = symbols_of(each.text, class_names, blank=blank, separator=separator, where=where)
        found = log_mel(each.wave, rate, **features)
        needed = _needed(said)
        there = int(frames_of(len(found), rule))
        if there < needed:
            if drop:
                fast += 1
                continue
            do = "Pass drop=True to leave such utterances out."
            raise DataError(expected("frames", f"at least {needed} for its transcript", there, where=where, do=do))
        frames.append(((found - found.mean(0)) / (found.std(0, correction=0) + 1e-3)).numpy())
        symbols.append(said)
        speakers.append(each.speaker)
    if not frames:
        raise DataError(expected("utterances", "at least one that fits its transcript", "none", where=name))
    return SpeechDataset(
        name,
        np.concatenate(frames).astype(np.float32),
        np.cumsum([len(each) for each in frames], dtype=np.int64),
        np.concatenate([np.asarray(each, dtype=np.int64) for each in symbols]),
        np.cumsum([len(each) for each in symbols], dtype=np.int64),
        class_names,
        blank,
        tuple(speakers),
        separator,
        rule,
        dropped={"too fast": fast} if fast else {},
    )
