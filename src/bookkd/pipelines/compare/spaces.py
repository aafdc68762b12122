"""What a search may change of an arm, and in which ranges."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import nearest, require
from bookkd.learning import Training
from bookkd.methods import BaseMethod, method_class
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.values import typed

__all__ = ["Space", "check_spaces", "distribution", "fitting", "spaces_of", "with_values"]

_FORMS = "OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=A,B,C"
_ROOTS = {"method": "an option of the method", "training": "a field of the training"}


@dataclass(frozen=True)
class Space:
    """Where values of one option are looked for.

    Args:
        option: Its name, such as "method.temperature" or "training.lr".
        low: Least value of a range; None for a list of values.
        high: Greatest value of a range.
        log: Whether the range is searched by factors.
        choices: Values of a list, as text; empty for a range.
    """

    option: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """What it belongs to: "method" or "training"."""
        return self.option.partition(".")[0]

    @property
    def key(self) -> str:
        """The field."""
        return self.option.partition(".")[2]


def spaces_of(text: str) -> tuple[Space, ...]:
    """Read spaces from text, with blanks between.

    Raises:
        ConfigError: for another form, an empty range or an option twice.

    >>> [space.choices or (space.low, space.high, space.log) for space in spaces_of("method.temperature=1:20 training.lr=0.01:1:log")]
    [(1.0, 20.0, False), (0.01, 1.0, True)]
    >>> spaces_of("method.temperature=1,4,8")[0].choices
    ('1', '4', '8')
    """
    found = tuple(_space(word) for word in text.split())
    for place, space in enumerate(found):
        if space.option in [other.option for other in found[:place]]:
            raise ConfigError(expected("tune", "without repeats", f"{space.option} twice", where="compare"))
    return found


def _space(word: str) -> Space:
    option, equals, values = word.partition("=")
    root, dot, key = option.partition(".")
    if not equals or not dot or not key or root not in _ROOTS:
        do = "Name method.OPTION or training.FIELD, with blanks between several."
        raise ConfigError(expected("tune", _FORMS, word, where="compare", do=do))
    if key == "seed" and root == "training":
        raise ConfigError(expected("tune", "anything but the seed", word, where="compare"))
    if ":" not in values:
        choices = tuple(part for part in values.split(",") if part)
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise ConfigError(expected("tune", "at least two different values", word, where="compare"))
        return Space(option, choices=choices)
    low, high, *rest = values.split(":")
    try:
        space = Space(option, float(low), float(high), rest == ["log"])
    except ValueError:
        raise ConfigError(expected("tune", _FORMS, word, where="compare")) from None
    if rest not in ([], ["log"]):
        raise ConfigError(expected("tune", _FORMS, word, where="compare"))
    least = 0.0 if space.log else float("-inf")
    if not least < float(low) < float(high) < float("inf"):
        wish = "a range from a lower to a higher number" + (", above 0 for log" if space.log else "")
        raise ConfigError(expected("tune", wish, word, where="compare"))
    return space


def fitting(arm: Arm, spaces: Sequence[Space]) -> tuple[Space, ...]:
    """Return the spaces whose option the arm has, and in which it plays a part.

    >>> from bookkd.pipelines.compare.document import sweep_of
    >>> from bookkd.pipelines.compare.arms import expand
    >>> from bookkd.tasks import Classification
    >>> arm, = expand(sweep_of({"students": "resnet8", "methods": "supervised"}), Classification(("a", "b")))
    >>> [space.option for space in fitting(arm, spaces_of("method.temperature=1:20 training.lr=0.01:1:log"))]
    ['training.lr']
    """
    method = arm.method.build()
    idle: Mapping[str, str] = method.idle() if isinstance(method, BaseMethod) else {}
    return tuple(
        space
        for space in spaces
        if space.key in _hints(arm, space) and not (space.root == "method" and space.key in idle)
    )


def check_spaces(arms: Sequence[Arm], spaces: Sequence[Space]) -> None:
    """Refuse a space that no arm has, or with a value that an arm which has it does not take; before anything starts.

    Raises:
        ConfigError: naming the option.
        MissingExtraError: without optuna.
    """
    if not spaces:
        return
    optuna = require("optuna", "tune")
    for space in spaces:
        having = [arm for arm in arms if fitting(arm, [space])]
        for arm in having or arms[:1]:
            distribution(optuna, arm, space)


def distribution(optuna: Any, arm: Arm, space: Space) -> Any:
    """Return a space as optuna's.

    Raises:
        ConfigError: if the arm has no such option, or an end of the range is none of its values.
    """
    hints = _hints(arm, space)
    if space.key not in hints:
        near = ", ".join(nearest(space.key, hints)[:4])
        raise ConfigError(f"Unknown option {space.option} to tune for {arm.name}. Nearest: {near or 'none'}.")
    kinds = {hints[space.key], *typing.get_args(hints[space.key])}
    if space.choices:
        choices = [_typed(arm, {space.option: text})[space.option] for text in space.choices]
        return optuna.distributions.CategoricalDistribution(choices)
    low, high = space.low or 0.0, space.high or 0.0
    if float in kinds:
        (
            with_values(arm, {space.option: low}),
            with_values(arm, {space.option: high}),
        )  # their own checks, before anything starts
        return optuna.distributions.FloatDistribution(low, high, log=space.log)
    if int not in kinds or not (low.is_integer() and high.is_integer()):
        wish = "whole numbers" if int in kinds else "values with commas between, since it is no number"
        raise ConfigError(expected(space.option, wish, f"{low:g}:{high:g}", where="tune"))
    with_values(arm, {space.option: int(low)}), with_values(arm, {space.option: int(high)})
    return optuna.distributions.IntDistribution(int(low), int(high), log=space.log)


def _hints(arm: Arm, space: Space) -> dict[str, Any]:
    """Return the fields of what a space belongs to, with their types."""
    found = method_class(arm.method.name) if space.root == "method" else Training
    hints = typing.get_type_hints(found)
    return {entry.name: hints[entry.name] for entry in fields(found)}  # type: ignore[arg-type]


def _typed(arm: Arm, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for root, kind in (("method", method_class(arm.method.name)), ("training", Training)):
        mine = {option.partition(".")[2]: value for option, value in values.items() if option.startswith(f"{root}.")}
        found |= {f"{root}.{key}": value for key, value in typed(kind, mine, root).items()}
    return found


def with_values(arm: Arm, values: Mapping[str, Any]) -> Arm:
    """Return the arm with other values.

    Args:
        arm: The arm.
        values: Option, such as "method.temperature" -> value.

    Raises:
        ConfigError: if its method or training refuses one of them.
    """
    found = _typed(arm, values)
    parts = {
        root: {option.partition(".")[2]: value for option, value in found.items() if option.startswith(f"{root}.")}
        for root in _ROOTS
    }
    method = replace(arm.method, options={**arm.method.options, **parts["method"]})
    method.build()
    return replace(arm, method=method, training=replace(arm.training, **parts["training"]))
