"""The networks of the rounds and the books of what they say: loaded, trained, measured and written, one in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bookkd.core.protocols import Knowledge
from bookkd.knowledge import Teacher, lineage_of_weights, teachers_behind
from bookkd.learning import Learned, Learner, find_device, learn
from bookkd.learning.folder import plain
from bookkd.making import make, make_several
from bookkd.methods import Method
from bookkd.pipelines.rounds.measured import measures_of, said_on, spread_of
from bookkd.pipelines.rounds.settings import Rounds, name_of
from bookkd.zoo import load_weights, weights_digest

__all__ = ["Networks", "Record"]

Record = dict[str, Any]
"""What is noted of a network, a book or a round: JSON values."""


class Networks:
    """Makes what a round is made of; what lies there finished is taken as it is.

    Args:
        settings: Those of the rounds.
    """

    def __init__(self, settings: Rounds) -> None:
        self.settings = settings

    def learnt(
        self, number: int, place: int, parent: Record | None, method: Method, knowledge: Knowledge | None,
        *, keep: bool = True,
    ) -> tuple[Learned, Record]:  # fmt: skip
        """Train one network in a round, from its parent's weights, and return it with its record."""
        it = self.settings
        knowledge = knowledge if method.needs(it.task).fields else None  # with beta 0 labels alone teach
        network, training = self.load(place, parent), it.training_of(number, place)
        start, path = weights_digest(network), it.folder(number) / name_of(place)
        steered = training.patience is not None or training.schedule == "plateau"
        learned = learn(
            network,
            it.data,
            it.views,
            task=it.task,
            knowledge=knowledge,
            method=method,
            preprocess=it.preprocess,
            training=training,
            validation=replace(it.validated, metric=it.by) if steered else None,
            out=path if keep else None,
            start=start,
        )
        record = {
            "weights": (path / "student.safetensors").relative_to(self.settings.out).as_posix(),
            "round": number,
            "digest": weights_digest(learned.student),
            "parent": start,
            "taught_by": [teacher.digest for teacher in teachers_behind(knowledge)],
            "method": {"name": method.name, **plain(method)},
            "epochs": len(learned.history),
            "seconds": len(learned.history) * learned.seconds_per_epoch,
            **measures_of(self.learner(learned.student), it.validated, it.training.accelerator),
        }
        return learned, record

    def load(self, place: int, record: Record | None) -> nn.Module:
        """Return a network with the weights of a record; with its initial values where there is none."""
        network = self.settings.network(place)
        if record is not None:
            load_weights(network, self.settings.out / record["weights"])
        return network

    def learner(self, network: nn.Module) -> Learner:
        """Return a network with the task and the preprocessing of all."""
        return Learner(network, self.settings.task, preprocess=self.settings.preprocess)

    def check(self, network: nn.Module) -> None:
        """Refuse a task or network that cannot be measured, by its word on one validation sample."""
        said_on(self.learner(network), self.settings.validated, self.settings.training.accelerator, rows=range(1))

    def together(self, assistants: list[Record]) -> Record:
        """Measure the assistants as an ensemble, one in memory at a time."""
        it, places = self.settings, zip(self.settings.places, assistants, strict=True)
        loads = [partial(self._loaded, place, record) for place, record in places]
        return spread_of(loads, it.validated, it.method, it.training.accelerator)

    def _loaded(self, place: int, record: Record) -> Learner:
        return self.learner(self.load(place, record))

    def book(self, path: Path, networks: Mapping[int, Record]) -> Record:
        """Make the book of some networks, by their places, and return what a record says of it."""
        it = self.settings
        loads = [partial(self._teacher, place, record) for place, record in networks.items()]
        at = tuple(dict.fromkeys((1.0, float(it.method.temperature))))
        options: dict[str, Any] = {"task": it.task, "codec": it.codec, "temperatures": at}
        if len(loads) == 1:
            book = make(path, loads[0](), it.data, it.views, **options)
        else:
            book = make_several(path, loads, it.data, it.views, **options)
        with closing(book):
            about = {"bytes": book.nbytes, "content_digest": book.content_digest}
            return {"path": path.relative_to(self.settings.out).as_posix(), **about}

    def _teacher(self, place: int, record: Record) -> Teacher:
        it, weights = self.settings, self.settings.out / record["weights"]
        options: dict[str, Any] = {} if it.preprocess is None else {"preprocess": it.preprocess}
        return Teacher(
            self.load(place, record),
            name=f"round-{record['round']}/{name_of(place)}",
            accuracy=record["accuracy"],
            split="validation",
            device=find_device(it.training.accelerator),
            lineage=lineage_of_weights(weights),
            **options,
        )
