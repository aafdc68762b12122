"""A small book of the digits and students to learn from it, shared by the tests of learning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bookkd.book import Dense
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.learning.run import Run
from bookkd.making import make
from bookkd.methods import Handler, VanillaKD
from bookkd.tasks import Classification
from bookkd.views import Views
from bookkd.zoo import create_network, create_transform, open_dataset

TRAIN = open_dataset("digits", limit=60)
TEST = open_dataset("digits", split="test", limit=40)
TASK = Classification(TRAIN.class_names)


def to_float(view):
    return view.float() / 255 - 0.3


def views(n_views=2, seed=0, **changes):
    return Views(create_transform("digits", {}), n_views, seed, name="digits", **changes)


def teacher(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = create_network("digits-large", n_classes=10)
    return Teacher(network, to_float, name="teacher")


def book(path, **options):
    options = {"codec": Dense(), "batch_size": 16, "unit_rows": 32, **options}
    return make(path, options.pop("teacher", teacher()), TRAIN, options.pop("views", views()), task=TASK, **options)


class Dropping(nn.Module):
    """A student without BatchNorm, whose dropout makes every step depend on the generators."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(dropout), nn.Linear(24, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def student(name="dropping", seed=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Dropping(**options) if name == "dropping" else create_network(name, n_classes=10)


def training(**changes):
    options = {"epochs": 2, "batch_size": 8, "lr": 0.05, "accelerator": "cpu", "seed": 3, **changes}
    return Training(**options)


@dataclass
class Fired(Handler):
    """A handler that keeps what it was told; its state is in the checkpoint."""

    events: list[str]

    def on(self, event: str, run: Any) -> None:
        self.events.append(event)

    def state_dict(self) -> dict[str, Any]:
        return {"events": list(self.events)}

    def load_state_dict(self, state: Any) -> None:
        self.events[:] = state["events"]


def run(path: Path, *, method=None, network=None, knowledge_of: Path | None = None, **options):
    """Learn on the digits with everything small."""
    knowledge = None if knowledge_of is None else StoredKnowledge(knowledge_of)
    given = options.pop("knowledge", knowledge)
    return learn(
        student() if network is None else network,
        TRAIN,
        options.pop("views", views()),
        task=TASK,
        knowledge=given,
        method=method or (VanillaKD() if given is not None else None),
        preprocess=options.pop("preprocess", to_float),
        training=options.pop("training", training()),
        out=path,
        **options,
    )


class StopError(Exception):
    """Ends a run from inside."""


def stopped_after(monkeypatch, steps: int) -> None:
    """Make runs end inside the step after `steps`, as a crash would."""
    real = Run.optimizer_step

    def failing(self, *args, **kwargs):
        if self.steps == steps:
            raise StopError
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Run, "optimizer_step", failing)


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "chapter_seconds")} for record in history
    ]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance)
