"""The beginning of a run: what a method adds to step and run is put together here, for every door and for benchmarks."""

from __future__ import annotations

from typing import cast

from bookkd.knowledge import Negatives, SideBySide, Surroundings
from bookkd.learning.data import Groups
from bookkd.learning.learner import Learner
from bookkd.learning.on_policy import OnPolicy
from bookkd.learning.run import Run
from bookkd.learning.step import Step
from bookkd.learning.training import Training
from bookkd.methods import Handler, Method

__all__ = ["begin_run"]


def begin_run(
    learner: Learner,
    step: Step,
    method: Method,
    training: Training,
    groups: Groups,
    surroundings: Surroundings | None = None,
    on_policy: OnPolicy | None = None,
) -> Run:
    """Return the run of a method before its first step.

    The method's own knowledge, such as an average of the student, answers beside the given one, and is told of events where it
    listens to them.

    Args:
        learner: The student with the connectors of the method's objective, on its device.
        step: With the book or teacher.
        method: Whose handlers and own knowledge take part.
        training: Plain values.
        groups: The batches.
        surroundings: Data set, views and folder, for methods that write books of their own.
        on_policy: Which samples the student writes itself; None for none.
    """
    handlers = method.handlers()
    own = method.own_knowledge(learner, learner.task, step.knowledge, training.seed)
    for source in own:
        if isinstance(source, Negatives):
            source.among(*groups.seen())
    if own:
        sources = own if step.knowledge is None else (step.knowledge, *own)
        step = Step(step.objective, step.task, SideBySide(sources))
        handlers += tuple(cast(Handler, source) for source in own if hasattr(source, "on"))
    return Run(
        learner,
        step,
        training,
        groups.sampler,
        steps_per_epoch=len(groups),
        handlers=handlers,
        surroundings=surroundings,
        on_policy=on_policy,
    )
