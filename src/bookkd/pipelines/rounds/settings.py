"""What rounds of interactive learning are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bookkd.book import Codec
from bookkd.core.check import at_least, finite
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.core.rng import draw64
from bookkd.core.schedules import Clock, GaussianRamp
from bookkd.learning import Training
from bookkd.learning.configuration import check_task
from bookkd.learning.validation import Validation
from bookkd.methods import DIL
from bookkd.tasks import Task
from bookkd.views import Views

__all__ = ["Feedback", "Rounds", "name_of"]

_WHERE = "rounds"


@dataclass(frozen=True)
class Feedback:
    """When the student teaches its assistants. What is decided is decided on validation samples, and stands in `round.json`.

    Args:
        on: False never: assistants do not move after their warm-up, which is plain distillation of several teachers.
        first_round: The first round with feedback, from 1.
        margin: Only to an assistant whose score is at most the student's plus this; None asks for no score.
        ramp: Weigh round r of R by exp(-5 (1 - r / R)^2).
        least_diversity: Stop for good where the mean pairwise KL of the assistants, in nats, is below; None never stops.
    """

    on: bool = True
    first_round: int = 1
    margin: float | None = None
    ramp: bool = False
    least_diversity: float | None = None

    def __post_init__(self) -> None:
        at_least(self.first_round, 1, "first_round", where="feedback")
        for name in ("margin", "least_diversity"):
            value = getattr(self, name)
            if value is not None and finite(value, name, where="feedback") < 0:
                raise ConfigError(expected(name, "at least 0, or None", value, where="feedback"))

    def share(self, number: int, rounds: int) -> float:
        """Return what beta is multiplied by in round `number` of `rounds`.

        >>> [round(Feedback(ramp=True).share(number, 3), 4) for number in (1, 2, 3)]
        [0.1084, 0.5738, 1.0]
        """
        return GaussianRamp(1.0, rounds)(Clock(epoch=number)) if self.ramp else 1.0


def name_of(place: int) -> str:
    """Return the name of a network: the student is 0, the assistants are counted from 1."""
    return f"assistant-{place}" if place else "student"


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """All that `run_rounds` needs.

    Args:
        out: Folder; a run that was interrupted goes on in it.
        student: Makes the student with initial values; called with torch's generator seeded, so that it is the same each time.
        assistants: The same for each assistant, as many as the method's; they differ in seed, and may in anything else.
        data: Data set to learn from, `dataset[i] -> (input, label)`.
        validation: Data set, or `Validation`, on which feedback, the round and the best of each network are decided. Report on another.
        task: One whose networks say one distribution a sample or position.
        training: Of the student, in each round; each starts from the student of the round before.
        method: Weights, temperature, and how assistants are combined.
        warm_up: How assistants learn from labels, before the first round; `training` where None.
        feedback_training: How assistants learn from the student, in each round; `training` where None.
        views: Replayable augmentation, of which the books are.
        rounds: R, at least 1. A finished run may go on to more of them, unless feedback is ramped.
        feedback: When the student teaches back.
        by: What "better" means: the validation "accuracy", or "nll"; early stopping and the plateau schedule heed it too.
        keep_best: Let each round start from the best version of a network so far, in place of the latest.
        codec: How logits become bytes; float16 where None.
        preprocess: Of all networks, on a view.
        say: Called with a line of progress.

    Raises:
        ConfigError: if the method does not serve the task; if there are not as many assistants as the method has; its `ramp_epochs` is of the live loop
            alone; for a sparse codec beside several assistants; if the validation's own metric is another than `by`.
    """

    out: Path
    student: Callable[[], nn.Module]
    assistants: Sequence[Callable[[], nn.Module]]
    data: Any
    validation: Any
    task: Task
    training: Training
    method: DIL = field(default_factory=DIL)
    warm_up: Training | None = None
    feedback_training: Training | None = None
    views: Views = field(default_factory=lambda: Views(None, n_views=1))
    rounds: int = 3
    feedback: Feedback = field(default_factory=Feedback)
    by: Literal["accuracy", "nll"] = "accuracy"
    keep_best: bool = False
    codec: Codec | None = None
    preprocess: Callable[[Tensor], Tensor] | None = None
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        at_least(self.rounds, 1, "rounds", where=_WHERE)
        for name, make in (
            ("student", self.student),
            *((f"assistants[{i}]", each) for i, each in enumerate(self.assistants)),
        ):
            if isinstance(make, nn.Module) or not callable(make):
                do = "Pass what makes it, such as lambda: Network(...): rounds draw its initial values, and begin again from them."
                raise ConfigError(
                    expected(name, "a callable that makes a network", f"a {type(make).__name__}", where=_WHERE, do=do)
                )
        check_task(self.method, self.task, where=_WHERE)
        choose(self.by, ("accuracy", "nll"), "by", where=_WHERE)
        if len(self.assistants) != self.method.assistants:
            do = f"Pass method=DIL(assistants={len(self.assistants)})."
            wish = f"{self.method.assistants}, as the method's"
            raise ConfigError(expected("assistants", wish, len(self.assistants), where=_WHERE, do=do))
        if self.validated.metric not in (None, self.by):
            do = "Pass by alone: all is decided on it."
            raise ConfigError(expected("metric", f"{self.by}, as by", self.validated.metric, where=_WHERE, do=do))
        if self.codec is not None and self.codec.sparse and len(self.assistants) > 1:
            wish, do = "one that keeps every value", "Several assistants make one book: use Dense or Int8."
            raise ConfigError(expected("codec", wish, self.codec.name, where=_WHERE, do=do))
        if self.method.ramp_epochs:
            do = "Pass feedback=Feedback(ramp=True)."
            raise ConfigError(expected("ramp_epochs", "0 by rounds", self.method.ramp_epochs, where=_WHERE, do=do))
        object.__setattr__(self, "out", Path(self.out))

    @property
    def places(self) -> range:
        """The places of the assistants."""
        return range(1, 1 + len(self.assistants))

    @property
    def validated(self) -> Validation:
        """The samples that everything is decided on."""
        return self.validation if isinstance(self.validation, Validation) else Validation(self.validation)

    def folder(self, number: int) -> Path:
        """Return the folder of a round; round 0 is the warm-up."""
        return self.out / f"round-{number}"

    def network(self, place: int) -> nn.Module:
        """Return a network with its initial values."""
        make = self.assistants[place - 1] if place else self.student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed(0, place))
            return make()

    def seed(self, number: int, place: int) -> int:
        """Return the seed of a network's initial values (round 0), order of samples and dropout in a round."""
        # As a run's own draws: networks of one round, of two, and of neighbouring seeds share nothing.
        return int(draw64(self.training.seed, "rounds", [number], [place])[0, 0] >> 1)

    def training_of(self, number: int, place: int) -> Training:
        """Return how a network is trained in a round."""
        chosen = (self.warm_up if number == 0 else self.feedback_training) if place else self.training
        return replace(chosen or self.training, seed=self.seed(number, place))
