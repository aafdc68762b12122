"""The worked sample of methods of speech, card cons-kd-ctc, and a book of tones to learn from."""

from __future__ import annotations

import functools

import torch
from tests.losses.speech_cases import SAID, Z1, Z2
from tests.zoo.tones import model, tones

from bookkd.book import Book, Dense
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.losses import DenseTarget
from bookkd.making import make
from bookkd.methods import Supervised
from bookkd.tasks import CTC
from bookkd.views import Views

TWO_FRAMES = CTC(("-", "a", "b"))
ONE, TWO = (torch.tensor(rows, dtype=torch.float64) for rows in (Z1, Z2))
VIEWS = Views(None, n_views=1)


def sample(views=1):
    """Utterances of two frames and the transcript [1], each as many times as there are views of it."""
    return {
        "input": torch.zeros(views, 2, 1),
        "length": torch.full((views,), 2),
        "label": torch.ones(views, 1, dtype=torch.int64),
        "label_length": torch.ones(views, dtype=torch.int64),
        "sample": torch.full((views,), 7),
        "weight": torch.ones(views, dtype=torch.float64),
    }


def speech_total(method, one=ONE, two=TWO, said=SAID, *, task=TWO_FRAMES, fields=None, clock=None):
    """The loss of one utterance whose passes, or whose views, say `one` and `two`; an intermediate layer says `two`."""
    views = method.needs(task).views_per_sample
    if fields is None:
        logits = one if views == 1 else torch.cat([one, two])
        fields = {"logits": logits, "passes/0/logits": one, "passes/1/logits": two, "heads/0": two}
    batch, objective, clock = sample(views), method.objective(task), clock or Clock()
    targets = {"logits": DenseTarget(torch.cat([said] * views))} if isinstance(said, torch.Tensor) else {"logits": said}
    seen = task.batch(batch)
    sums = objective.sums(fields, task.targets(targets, batch), seen, task.weights(seen), clock)
    return objective.loss(sums, objective.totals(seen, task.divisors(seen)), clock)


def training(**changes):
    options = {"epochs": 3, "batch_size": 8, "optimizer": "adamw", "lr": 0.02, "clip_norm": 1.0, "accelerator": "cpu"}
    return Training(**{**options, **changes})


@functools.cache
def taught():
    """A teacher of tones, its data set, and another one held out."""
    train, test = tones(160), tones(40, 1)
    network = model(width=32)
    learned = learn(
        network, train, VIEWS, task=CTC.of(train), method=Supervised(), training=training(), validation=test
    )
    assert learned.metrics["wer"] < 0.5
    return Teacher(network, name="tones"), train, test


def book(folder, codec=None, views=VIEWS):
    teacher, train, _ = taught()
    return make(folder / "book", teacher, train, views, task=CTC.of(train), codec=codec or Dense("float32"))


def learn_tones(method, knowledge, *, views=VIEWS, task=None, student=None, **changes):
    """A student of tones after one epoch, and that its parameters have moved."""
    _, train, test = taught()
    network = model(width=8, seed=3, dropout=0.2) if student is None else student
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learned = learn(
        network,
        train,
        views,
        task=task or CTC.of(train),
        method=method,
        knowledge=StoredKnowledge(knowledge) if isinstance(knowledge, Book) else knowledge,
        training=training(**{"epochs": 1, "batch_size": 16, **changes}),
        validation=test,
    )
    assert any(not torch.equal(value, before[name]) for name, value in learned.student.state_dict().items())
    return learned
