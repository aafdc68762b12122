"""One student in training, an epoch at a time: what the benchmarks of learning time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bookkd.core.protocols import Knowledge
from bookkd.core.rng import generator
from bookkd.learning import Step, Training, begin_run, learner_for, make_groups, offer_needs, to_device
from bookkd.methods import Method
from bookkd.pipelines.options import NetworkOptions
from bookkd.tasks import Task
from bookkd.views import CachedViews, Replay
from bookkd.zoo import ArrayDataset

__all__ = ["BATCH", "Arm", "random_images"]

BATCH = 128


def random_images(n_samples: int) -> ArrayDataset:
    """Return 32x32 images of ten classes; speed does not depend on what they show."""
    draws = generator(0, "bench images")
    images = draws.integers(0, 256, size=(n_samples, 3, 32, 32), dtype=np.uint8)
    return ArrayDataset(
        images=torch.from_numpy(images),
        labels=draws.integers(0, 10, size=n_samples),
        class_names=tuple("0123456789"),
        name="random",
    )


class Arm:
    """A network that learns by a method.

    Args:
        replay: The views.
        method: What it minimises.
        knowledge: What it learns from; None for labels alone.
        task: The task.
        network: The student; None for one named `student` over the classes of the task.
        preprocess: Of a student that is given.
        batch_size: Samples of a batch.
        layers: Name -> module path of the student's layers, over those that it has by itself.
        student: Name of the network where none is given.
    """

    def __init__(
        self,
        replay: Replay | CachedViews,
        method: Method,
        knowledge: Knowledge | None,
        task: Task,
        *,
        network: nn.Module | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = BATCH,
        layers: Mapping[str, str] | None = None,
        student: str = "resnet8",
    ) -> None:
        # Of random images and an untrained teacher a usual rate diverges under weights that are meant for trained ones (fsp).
        training = Training(epochs=10**6, batch_size=batch_size, accelerator="cpu", schedule="constant", lr=1e-5)
        if network is None:
            network, preprocess = NetworkOptions(student).cohort(len(task.class_names), method.cohort, seed=0)
        objective = method.objective(task)
        offer_needs(method, task, knowledge, replay)
        learner = learner_for(
            network, task, method, replay=replay, knowledge=knowledge, preprocess=preprocess, layers=layers
        )
        learner.to(memory_format=torch.channels_last)
        self.groups = make_groups(
            replay,
            training,
            samples=len(replay),
            n_views=replay.views.n_views,
            views_per_sample=method.needs(task).views_per_sample,
            whole=objective.relational,
        )
        self.run = begin_run(learner, Step(objective, task, knowledge), method, training, self.groups)
        self._in_turn = self._forever()

    def epoch(self) -> None:
        """Train one epoch, as the plain loop does."""
        for group in self.groups:
            self._step(group)
        self.run.end_epoch()

    def steps(self, count: int) -> None:
        """Train so many steps, of one epoch after the other; of an arm whose epochs are not asked for."""
        for group in islice(self._in_turn, count):
            self._step(group)

    def _forever(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        while True:
            yield from self.groups
            self.run.end_epoch()

    def _step(self, group: Sequence[Mapping[str, Any]]) -> None:
        self.run.optimizer_step([to_device(batch, torch.device("cpu")) for batch in group])
