"""A learner as a method wants it: the student as it shapes it, what is taken inside of it, and the connectors in the shapes of both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import Feature, is_feature
from bookkd.core.fields import TEACHER
from bookkd.core.protocols import Knowledge
from bookkd.core.rng import generator
from bookkd.core.schedules import Clock, resolve
from bookkd.knowledge import books_of, constants_of, layers_of, teachers_of
from bookkd.knowledge.writing import offer
from bookkd.learning.cohort import Cohort
from bookkd.learning.learner import Learner
from bookkd.methods import Method
from bookkd.objectives import Objective
from bookkd.shaping import Known
from bookkd.tasks import Task
from bookkd.views import CachedViews, Pick, Replay, collate

__all__ = ["for_networks", "learner_for", "offer_needs"]


def for_networks(
    method: Method, student: nn.Module, knowledge: Knowledge | None, layers: Mapping[str, str] | None = None
) -> Method:
    """Return the method with the layers that its options leave open: those that the student and all who teach name.

    Args:
        method: Looks inside, or not.
        student: The network; of several students nothing is read inside.
        knowledge: Books, which name what they hold, and live teachers.
        layers: Name -> module path of the student's layers, over those that it has by itself.
    """
    if isinstance(student, Cohort):
        return method
    books = [{Feature.of(name).layer for name in book.fields if is_feature(name)} for book in books_of(knowledge)]
    live = [{*layers_of(each.teacher.network), *each.teacher.layers} for each in teachers_of(knowledge)]
    mine = {**layers_of(student), **(layers or {})}
    return method.looking_at([name for name in mine if all(name in named for named in (*books, *live))])


def offer_needs(method: Method, task: Task, knowledge: Knowledge | None, replay: Replay | CachedViews) -> None:
    """Let live teachers say what a method reads inside of them and knows of them; to be asked before `check_needs`.

    Raises:
        ConfigError: for a layer that a teacher has not, or that does not run.
    """
    needs = method.needs(task)
    offer(knowledge, needs.fields, replay, constants=needs.constants)


def learner_for(
    student: nn.Module,
    task: Task,
    method: Method,
    *,
    replay: Replay | CachedViews,
    knowledge: Knowledge | None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    layers: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Learner:
    """Return the student as a method shapes it, with what it trains beside it.

    Where a method looks inside of the student, one sample is passed through it, without gradient and in evaluation mode, to see the
    shapes.

    Args:
        student: The network.
        task: Owns the shapes.
        method: Shapes the student, and says what is read inside of it, and which connectors there are.
        replay: Views of the samples.
        knowledge: Who answers for the teacher, after `offer_needs`.
        preprocess: The student's own.
        layers: Name -> module path of the student's layers, over those that it has by itself.
        seed: Of the first values of what is trained beside the student: the same whatever was drawn before.

    Raises:
        ConfigError: for a layer that the student has not or that does not run; for several students where something is read inside.
    """
    objective = method.objective(task)
    inside = objective.features()
    if inside and isinstance(student, Cohort):
        do = "Take a method of one student."
        raise ConfigError(
            expected("students", f"one, to read {inside[0]} of it", len(student.peers), where=method.name, do=do)
        )
    constants = constants_of(knowledge)
    shapes = {f"{TEACHER}{name}": info.shape for name, info in ({} if knowledge is None else knowledge.fields).items()}
    shapes |= {name: info.shape for name, info in task.field_infos.items()}

    def looked_into(network: nn.Module) -> dict[str, tuple[int, ...]]:
        alone = Learner(network, task, preprocess=preprocess, features=inside, layers=layers, constants=constants)
        return {**shapes, **(_shapes(alone, replay) if inside else {})}

    shapes = looked_into(student)
    named = {} if isinstance(student, Cohort) else {**layers_of(student), **(layers or {})}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator(seed, "connectors").integers(2**63)))
        shaping = method.shape(student, task, Known(shapes, constants, named))
        if shaping.student is not student:
            layers = shaping.layers(named)
            shapes = looked_into(shaping.student)
        _check_alike(objective, shapes, method.name)
        return Learner(
            shaping.student, task, preprocess=preprocess, connectors=objective.connectors, passes=method.passes, features=inside,
            layers=layers, shapes=shapes, shaping=shaping, constants=constants,
        )  # fmt: skip


def _check_alike(objective: Objective, shapes: Mapping[str, tuple[int, ...]], method: str) -> None:
    """Let losses that compare both sides without a connector refuse shapes that do not fit, before the first batch.

    They are asked about four records of zeros, since some take other channels or positions and some do not.

    Raises:
        ConfigError: naming method, field and both shapes.
    """
    for term in objective.terms:
        mine, theirs = shapes.get(term.field), shapes.get(f"{TEACHER}{term.teacher}")
        asked = is_feature(term.field) and not term.own and not term.batch and not term.transforms
        if not asked or mine is None or theirs is None or mine == theirs:
            continue
        hyper = {name: resolve(given, Clock()) if callable(given) else given for name, given in term.hyper.items()}
        try:
            with torch.no_grad():
                term.loss(torch.zeros(4, *mine), torch.zeros(4, *theirs), **hyper)
        except (ConfigError, RuntimeError) as error:
            wish = f"of a shape that fits the teacher's {list(theirs)}"
            do = "Name layers of one shape on both sides, or take a method with a connector, such as fitnets."
            where = f"method {method}, term {term.name}"
            raise ConfigError(expected(term.field, wish, f"{list(mine)} of the student", where=where, do=do)) from error


def _shapes(learner: Learner, replay: Replay | CachedViews) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is taken inside of the student."""
    device, was_training = next(learner.parameters()).device, learner.training
    batch: Mapping[str, Any] = collate([replay[Pick(int(replay.rows[0]), 0)]])
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    learner.eval()
    try:
        with torch.no_grad():
            said = learner.said(moved)
    finally:
        learner.train(was_training)
    return {name: tuple(values.shape[1:]) for name, values in said.items() if is_feature(name)}
