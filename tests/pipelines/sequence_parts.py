"""Sequences that sweeps of the tests name: a counting text, tones and a tiny translation, with the networks of each."""

from __future__ import annotations

from tests.tasks.test_causal_lm import Tiny, text
from tests.zoo.pairs import reversed_digits, translator
from tests.zoo.tones import model, tones

SEEDS = {"train": 0, "test": 1, "val": 2}
WORDS = ["pad", "bos", "eos", *(f"word{digit}" for digit in range(10))]


def counting(split: str = "train"):
    return text(24 if split == "train" else 12, SEEDS[split])


def tiny(n_classes: int, *, width: int = 8, seed: int = 5):
    return Tiny(seed, width, n_classes)


def heard(split: str = "train"):
    return tones(12 if split == "train" else 6, SEEDS[split])


def listener(n_classes: int, *, subsampling: int = 2, seed: int = 5):
    return model(8, seed, subsampling=subsampling)


def pairs(split: str = "train"):
    """Their tokenizer knows words, and the text of the targets is these words."""
    plain = reversed_digits(24 if split == "train" else 12, SEEDS[split])
    texts = [said(plain[row][1][:-1].tolist()) for row in range(len(plain))]
    return reversed_digits(len(plain), SEEDS[split], texts=texts, decode=said)


def said(tokens: list[int]) -> str:
    return " ".join(WORDS[token] for token in tokens)


def writer(n_classes: int, *, seed: int = 5):
    return translator(seed)
