"""From a path in words to chains of networks: all paths of a set, generations, or an assistant chosen by its accuracy."""

from __future__ import annotations

from typing import Any

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.pipelines.chain import Chain, all_paths, nearest_to_mean, run_chain

__all__ = ["chain_of", "networks_of"]


def networks_of(path: str) -> tuple[str, ...]:
    """Return the networks of a path in words; a number is the CIFAR ResNet of that depth.

    >>> networks_of("56, 20,digits-small")
    ('resnet56', 'resnet20', 'digits-small')
    """
    words = [word.strip() for word in path.split(",")]
    if not all(words):
        do = "Write the networks with commas between, teacher first: --path 56,20,8."
        raise ConfigError(expected("path", "networks with commas between", path, where="chain", do=do))
    return tuple(f"resnet{word}" if word.isdigit() else word for word in words)


def chain_of(
    chain: Chain, path: str, *, every: bool = False, candidates: str = "", generations: int = 1
) -> dict[str, Any]:
    """Run the chains that a path in words stands for.

    Args:
        chain: What the links share.
        path: Networks, teacher first.
        every: Run every path from the first to the last network.
        candidates: Networks of which one becomes the assistant between the first and the last of `path`.
        generations: How often the last network stands in a row, at least 1.

    Returns:
        What `run_chain` gives; with candidates also `chosen` and their `alone` accuracies.

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
        return _chosen(chain, networks, networks_of(candidates))
    if every:
        return run_chain(chain, all_paths(networks))
    return run_chain(chain, [(*networks, *networks[-1:] * (generations - 1))])


def _chosen(chain: Chain, networks: tuple[str, ...], candidates: tuple[str, ...]) -> dict[str, Any]:
    """Train candidates and student on labels alone, take the assistant that the rule names, and run its path."""
    if len(networks) != 2:
        do = "The candidates stand between the two."
        raise ConfigError(
            expected("path", "a teacher and a student, with candidates", list(networks), where="chain", do=do)
        )
    teacher, student = networks
    alone = {name: chain.alone(name)["accuracy"] for name in (*candidates, student)}
    least = chain.grow((teacher,))["accuracy"]
    chosen = nearest_to_mean(least, alone[student], {name: alone[name] for name in candidates})
    chain.say(
        f"assistant: {chosen}, {alone[chosen]:.4f} on labels alone; teacher {least:.4f}, student {alone[student]:.4f}"
    )
    result = run_chain(chain, [(teacher, student), (teacher, chosen, student)])
    said = f"the assistant was chosen by its accuracy on split {chain.test}, so that what is measured there flatters; choose by another: --test SPLIT."
    return {**result, "chosen": chosen, "alone": alone, "notes": [*result["notes"], said]}
