"""Sounds from wav files, and their power in bands of the mel scale, one row a frame."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import require

__all__ = ["log_mel", "wave_files"]

_FLOOR = 1e-6


def _floating(wave: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return samples from -1 to 1, of whole numbers by the room of their type.

    >>> _floating(np.array([-32768, 16384], np.int16)), _floating(np.array([0, 192], np.uint8))
    (array([-1. ,  0.5], dtype=float32), array([-1. ,  0.5], dtype=float32))
    """
    if wave.dtype.kind not in "iu":
        return wave.astype(np.float32)
    bits = np.iinfo(wave.dtype).bits
    if bits > 32:
        do = "Pass floating samples from -1 to 1, or those of the file with its own type, such as int16."
        raise DataError(
            expected("wave", "floating, or whole numbers of 8 to 32 bits", str(wave.dtype), where="log_mel", do=do)
        )
    half = 2 ** (bits - 1)
    found: npt.NDArray[np.float32] = (wave / half - (wave.dtype.kind == "u")).astype(np.float32)
    return found


def log_mel(
    wave: npt.NDArray[Any] | Tensor, rate: int, *, n_mels: int = 40, window: float = 0.025, hop: float = 0.010
) -> Tensor:
    """Return the logarithm of the power of sound in bands of equal width on the mel scale, one row a hop.

    Args:
        wave: Samples, shape [samples]: floating from -1 to 1, or whole numbers of 8 to 32 bits as wav files hold them, which are brought
            there by their type.
        rate: Samples a second.
        n_mels: Number of bands.
        window: Seconds of a frame, Hann-weighted.
        hop: Seconds from one frame to the next.

    Returns:
        float32 [frames, n_mels], frames = 1 + samples // (rate hop).

    >>> log_mel(np.zeros(800), 8000).shape
    torch.Size([11, 40])
    """
    at_least(n_mels, 1, "n_mels", where="log_mel")
    positive(window, "window", where="log_mel")
    positive(hop, "hop", where="log_mel")
    sound = torch.as_tensor(_floating(np.asarray(wave)))
    if sound.ndim != 1 or not len(sound):
        raise DataError(expected("wave", "samples in one row", f"shape {tuple(sound.shape)}", where="log_mel"))
    length, step = round(rate * window), round(rate * hop)
    for name, seconds, samples in (("window", window, length), ("hop", hop, step)):
        if samples < 1:
            wish = f"at least one sample of {rate} a second"
            raise ConfigError(expected(name, wish, seconds, where="log_mel"))
    size = 2 ** math.ceil(math.log2(length))
    if not bool((_mel_bands(rate, size, n_mels).amax(0) > 0).all()):
        do = "Take fewer bands, or a longer window."
        wish = f"so few that each band holds one of the {size // 2 + 1} frequencies of a window"
        raise ConfigError(expected("n_mels", wish, n_mels, where="log_mel", do=do))
    spectrum = torch.stft(
        sound, size, step, length, torch.hann_window(length), center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.abs().square().T
    return (power @ _mel_bands(rate, size, n_mels) + _FLOOR).log()


@lru_cache(maxsize=8)
def _mel_bands(rate: int, size: int, n_mels: int) -> Tensor:
    """Return triangles of height 1 that overlap by half, float32 [size / 2 + 1, n_mels]: the scale of O'Shaughnessy, 1987."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    points = torch.linspace(mel(0), mel(rate / 2), n_mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (points / 2595) - 1)
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


def wave_files(root: str | Path, folder: str) -> Iterator[tuple[str, npt.NDArray[Any], int]]:
    """Yield name without ending, samples and samples a second of the wav files of a folder, in order of their names.

    Args:
        root: A folder, or a zip of one.
        folder: Where the files are in it.

    Raises:
        MissingExtraError: if soundfile is not installed.
        DataError: if there are none, or one is no sound of one channel.
    """
    soundfile, path = require("soundfile", "speech"), Path(root)
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            names = sorted(each for each in packed.namelist() if each.endswith(".wav") and f"/{folder}/" in f"/{each}")
            for each in names:
                yield Path(each).stem, *_sound(soundfile, io.BytesIO(packed.read(each)), each)
    else:
        names = sorted(str(each) for each in (path / folder).glob("*.wav"))
        for each in names:
            yield Path(each).stem, *_sound(soundfile, each, each)
    if not names:
        do = "Pass the folder, or a zip of it."
        raise DataError(expected("root", f"one with {folder}/*.wav", str(root), where="speech", do=do))


def _sound(soundfile: Any, file: Any, name: str) -> tuple[npt.NDArray[Any], int]:
    try:
        wave, rate = soundfile.read(file, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise DataError(expected("file", "a sound", str(error), where=name)) from error
    if wave.ndim != 1:
        raise DataError(expected("file", "of one channel", f"{wave.shape[1]} channels", where=name))
    return wave, int(rate)
