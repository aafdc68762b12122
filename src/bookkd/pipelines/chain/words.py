"""From a path in words to chains of networks: all paths of a set, generations, or an assistant chosen by its accuracy."""

from __future__ import annotations

from typing import Any

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.pipelines.chain.choice import run_with_assistant
from bookkd.pipelines.chain.links import Chain, all_paths
from bookkd.pipelines.chain.run import run_chain

__all__ = ["chain_of", "networks_of"]


def networks_of(path: str, what: str = "path") -> tuple[str, ...]:
    """Return the networks of a path in words; a number is the CIFAR ResNet of that depth.

    Args:
        path: Networks with commas between.
        what: The option, for errors.

    Raises:
        ConfigError: if there is nothing between two commas.

    >>> networks_of("56, 20,digits-small")
    ('resnet56', 'resnet20', 'digits-small')
    """
    words = [word.strip() for word in path.split(",")]
    if not all(words):
        do = f"Write the networks with commas between, such as --{what} 56,20,8."
        raise ConfigError(expected(what, "networks with commas between", path, where="chain", do=do))
    return tuple(f"resnet{word}" if word.isdigit() else word for word in words)


def chain_of(
    chain: Chain,
    path: str,
    *,
    every: bool = False,
    candidates: str = "",
    generations: int = 1,
    validation: str = "",
    validation_fraction: float | None = None,
) -> dict[str, Any]:
    """Run the chains that a path in words stands for.

    Args:
        chain: What the links share.
        path: Networks, teacher first.
        every: Run every path from the first to the last network.
        candidates: Networks of which one becomes the assistant between the first and the last of `path`.
        generations: How often the last network stands in a row, at least 1.
        validation: Split on which candidates are compared, see `run_with_assistant`.
        validation_fraction: In its place, share of the training samples.

    Returns:
        What `run_chain` gives; with candidates what `run_with_assistant` gives.

    Raises:
        ConfigError: if options contradict each other.
    """
    networks = networks_of(path)
    at_least(generations, 1, "generations", where="chain")
    if sum((every, bool(candidates), generations > 1)) > 1:
        do = "Give one of them."
        got = "several"
        raise ConfigError(expected("all_paths, candidates, generations", "one at most", got, where="chain", do=do))
    if (every or candidates) and len(networks) < 2:
        raise ConfigError(expected("path", "a teacher and a student at least", path, where="chain"))
    if candidates:
        return _with_assistant(chain, networks, candidates, validation, validation_fraction)
    for what, value in (("validation", validation or None), ("validation_fraction", validation_fraction)):
        if value is not None:
            do = "Only an assistant is chosen on them."
            raise ConfigError(expected(what, "absent without candidates", value, where="chain", do=do))
    if every:
        return run_chain(chain, all_paths(networks))
    return run_chain(chain, [(*networks, *networks[-1:] * (generations - 1))])


def _with_assistant(
    chain: Chain, networks: tuple[str, ...], candidates: str, validation: str, fraction: float | None
) -> dict[str, Any]:
    if len(networks) != 2:
        do = "The candidates stand between the two."
        raise ConfigError(
            expected("path", "a teacher and a student, with candidates", list(networks), where="chain", do=do)
        )
    chosen_on: dict[str, Any] = {"validation": validation, "validation_fraction": fraction}
    return run_with_assistant(chain, *networks, networks_of(candidates, "candidates"), **chosen_on)
