"""An alphabet of tones: each letter a pitch for some time, a space silence; enough for a small network to learn in seconds."""

from __future__ import annotations

import numpy as np
import soundfile
import torch

from bookkd.zoo import AcousticModel, Utterance, read_speech

RATE, SYMBOLS = 2000, ("<blank>", " ", "a", "b", "c")
HOW = {"n_mels": 12, "window": 0.032, "hop": 0.016}
PITCH = {" ": 0.0, "a": 200.0, "b": 420.0, "c": 760.0}


def utterances(count, seed=0):
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = ["".join(draws.choice(list("abc"), draws.integers(1, 4))) for _ in range(draws.integers(1, 4))]
        text = " ".join(words)
        parts = []
        for letter in text:
            time = np.arange(int(RATE * draws.uniform(0.09, 0.16))) / RATE
            parts.append(
                0.5 * np.sin(2 * np.pi * PITCH[letter] * draws.uniform(0.95, 1.05) * time) * np.hanning(len(time))
            )
        wave = np.concatenate(parts)
        found.append(Utterance(wave + 0.02 * draws.standard_normal(len(wave)), text, f"s{len(found) % 2}"))
    return found


def tones(count=80, seed=0, *, subsampling=2, **options):
    given = {**HOW, "subsampling": subsampling, "drop": True, **options}
    return read_speech("tones", utterances(count, seed), RATE, SYMBOLS, **given)


def model(width=24, seed=0, *, subsampling=2, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AcousticModel(12, len(SYMBOLS), width=width, subsampling=subsampling, **{"layers": 1, **options})


def write_recordings(root):
    """Write files as the Free Spoken Digit Dataset has them: three speakers, two takes a digit, each digit a pitch."""
    (root / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for speaker in ("ann", "bob", "cy"):
        for digit in range(10):
            for take in range(2):
                time = np.arange(rng.integers(2400, 3200)) / 8000
                wave = 0.3 * np.sin(2 * np.pi * 200 * (digit + 1) * time) * np.hanning(len(time))
                soundfile.write(root / "recordings" / f"{digit}_{speaker}_{take}.wav", wave, 8000)
    return root
