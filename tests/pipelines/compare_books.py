"""Two small books of the digits and the weights of their teachers, and a sweep over them that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions, make_book
from bookkd.zoo import create_network, save_weights

LIMIT = 120
DATA = {"name": "digits", "limit": LIMIT}
QUICK = {"epochs": 2, "batch_size": 16, "lr": 0.05, "accelerator": "cpu", "probe_share": 0.2}


def books(folder: Path) -> dict[str, Path]:
    """Make books "one" and "two" by two untrained teachers; return label -> path."""
    found = {}
    for seed, label in enumerate(("one", "two")):
        weights = folder / f"{label}.safetensors"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            save_weights(create_network("digits-large", n_classes=10), weights)
        teacher, data = NetworkOptions("digits-large", weights=str(weights)), DataOptions(**DATA)
        views, out = ViewOptions("digits", 2), str(folder / label)
        make_book(out, data=data, teacher=teacher, views=views, batch_size=32, held_out="test", accelerator="cpu")
        found[label] = folder / label
    return found


def document(made: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """Return a sweep as YAML would say it."""
    found = {
        "data": DATA,
        "students": "digits-small",
        "methods": ["supervised", "vanilla-kd"],
        "books": {"one": str(made["one"])},
        "training": QUICK,
        "seeds": 2,
        "replicates": 20,
        "latency": False,
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


TARGETS = {"multi-label": ("digits-pairs", 10), "regression": ("digits-angle", 1)}
"""Task -> data set and number of classes or outputs."""


def target_books(folder: Path, task: str) -> dict[str, Path]:
    """Make books "one" and "two" of the training samples, "test" and "test-two" of the test split, by the same untrained teachers."""
    data, width = TARGETS[task]
    found = {}
    for seed, label in enumerate(("one", "two", "test", "test-two")):
        weights = folder / f"{label}.safetensors"
        with torch.random.fork_rng():
            torch.manual_seed(seed % 2)
            save_weights(create_network("digits-large", n_classes=width), weights)
        held = label.startswith("test")
        options = DataOptions(data, split="test" if held else "train", limit=None if held else LIMIT)
        teacher, views = NetworkOptions("digits-large", weights=str(weights)), ViewOptions("none", 1)
        make_book(
            str(folder / label), data=options, teacher=teacher, views=views, batch_size=64, task=task, accelerator="cpu"
        )
        found[label] = folder / label
    return found
