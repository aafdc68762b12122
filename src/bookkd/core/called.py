"""Whether a network is called with what a task gives its networks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from bookkd.core.errors import ConfigError, expected

__all__ = ["check_called"]

_MASK = "attention_mask"
_GIVEN = {1: "a view alone", 2: "sequences and their lengths", 3: "sources, their lengths and prefixes"}


def check_called(network: Any, inputs: Sequence[Any], asked: str = "") -> None:
    """Refuse a network that is not called with what a task gives its networks, or would misread it.

    The second of these are the lengths of sequences. Models of Transformers take a mask in that place: they would read the lengths as
    one, and look at padding without a word.

    Args:
        network: One with a `forward`; anything else is taken as it is.
        inputs: What the task gives; their number counts.
        asked: Name of the task, for the error.

    Raises:
        ConfigError: for such a network.
    """
    forward = getattr(network, "forward", None)
    found = None if forward is None else _signature(getattr(forward, "__func__", forward))
    if found is None:
        return
    own = [None] if inspect.ismethod(forward) else []
    where = f"a {type(network).__name__}{f', task {asked}' if asked else ''}"
    given = _GIVEN.get(len(inputs), f"{len(inputs)} inputs")
    try:
        found.bind(*own, *inputs)
    except TypeError as error:
        wish, do = f"one that is called with {given}", "Use a network of the task's kind."
        raise ConfigError(expected("network", wish, str(error), where=where, do=do)) from error
    if len(inputs) > 1 and any(_masks(each) for each in (found, _inside(network)) if each is not None):
        do = "Put it into bookkd.zoo.EncoderModel or Seq2SeqModel, which make a mask of the lengths."
        wish = f"one that is called with {given}"
        raise ConfigError(expected("network", wish, f"one that takes {_MASK}", where=where, do=do))


def _masks(signature: inspect.Signature) -> bool:
    names = [name for name in signature.parameters if name != "self"]
    return _MASK in names and "length" not in names[1]


def _inside(network: Any) -> inspect.Signature | None:
    """Return how the model is called that an adapter is around."""
    inside = getattr(network, "get_base_model", None)
    return None if inside is None else _signature(type(inside()).forward)


@functools.lru_cache(maxsize=256)
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None
