"""What methods on soft targets share: checks of their numbers, and the label term beside the soft ones."""

from __future__ import annotations

from bookkd.core.check import between, finite, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.schedules import Schedule
from bookkd.methods.base import BaseMethod
from bookkd.objectives import Term
from bookkd.tasks import Task

__all__ = ["check_idle", "check_smoothing", "check_some_weight", "check_temperatures", "check_weights", "with_labels"]


def check_temperatures(method: BaseMethod, *names: str) -> None:
    """Refuse a temperature that is no number above 0; schedules are checked where they are resolved."""
    for name in names:
        value = getattr(method, name)
        if not callable(value):
            positive(value, name, where=f"method {method.name}", do=f"Pass --method.{name} 4.")


def check_weights(method: BaseMethod, *names: str, soft: str = "kd_weight") -> None:
    """Refuse a weight below 0, and a soft term of weight 0.

    Args:
        method: Has the weights as attributes.
        names: Weights besides `soft`.
        soft: The weight that makes the method what it is.
    """
    where = f"method {method.name}"
    for name in (soft, *names):
        weight = getattr(method, name)
        if not callable(weight) and finite(weight, name, where=where) < 0:
            raise ConfigError(expected(name, "at least 0", weight, where=where))
    if getattr(method, soft) == 0:
        raise ConfigError(expected(soft, "above 0", 0, where=where, do="Without a soft term use method supervised."))


def check_some_weight(
    method: BaseMethod,
    *soft: str,
    beside: str = "ce_weight",
    do: str = "Without a soft term use method supervised.",
) -> None:
    """Refuse a weight below 0, that of the term `beside` too, and `soft` terms that all have weight 0; `do` says what else to do."""
    where = f"method {method.name}"
    for name in (*soft, beside):
        weight = getattr(method, name)
        if not callable(weight) and finite(weight, name, where=where) < 0:
            raise ConfigError(expected(name, "at least 0", weight, where=where))
    if all(getattr(method, name) == 0 for name in soft):
        raise ConfigError(expected(soft[0], f"above 0, or {' or '.join(soft[1:])}", 0, where=where, do=do))


def check_idle(method: BaseMethod) -> None:
    """Refuse an option that `method.idle` says plays no part, where it is not its default."""
    for name, beside in method.idle().items():
        default, value = getattr(type(method), name), getattr(method, name)
        if value != default:
            do = f"It changes nothing there: leave out {name}, or change the other."
            raise ConfigError(expected(name, f"{default} with {beside}", value, where=f"method {method.name}", do=do))


def check_smoothing(method: BaseMethod) -> None:
    """Refuse a `label_smoothing` outside 0 to 1, and one of labels that are unused; 0 and the default are no choice."""
    name, labels, where = "label_smoothing", "ce_weight", f"method {method.name}"
    smoothing = between(getattr(method, name), 0, 1, name, where=where)
    if getattr(method, labels) == 0 and smoothing not in (0, getattr(type(method), name)):
        do = "Labels of weight 0 are unused: leave out one of the two."
        raise ConfigError(expected(name, f"0 with {labels} 0", smoothing, where=where, do=do))


def with_labels(
    task: Task, soft: tuple[Term, ...], *, weight: float | Schedule, label_smoothing: float = 0.0
) -> tuple[Term, ...]:
    """Return the task's label term before the soft terms; without it where its weight is the number 0."""
    if weight == 0:
        return soft
    return (task.label_term(weight=weight, label_smoothing=label_smoothing), *soft)
