"""Training all networks of some paths, and what came of it as one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import pretty
from bookkd.pipelines.chain.links import Chain, NetworkPath, prefixes
from bookkd.pipelines.chain.trainer import ChainTrainer

__all__ = ["run_chain", "train_paths"]


def run_chain(chain: Chain, paths: Sequence[NetworkPath]) -> dict[str, Any]:
    """Train all networks of `paths`; what is done already is not done again.

    Args:
        chain: What the links share.
        paths: Names of networks, teacher first, each path at least one long; all from one first network.

    Returns:
        `networks`: a record for each network, parents first; `paths`: one for each path, with the accuracy at its end and what
        it costs in all; `notes`; `method`; `train_samples`: how many each network learned from. Also written to `chain.json`.

    Raises:
        ConfigError: if paths begin with different networks, are empty or repeated, or two would share a folder.
        UnknownNameError: if a network or split is not known.
    """
    return train_paths(ChainTrainer(chain), paths)


def train_paths(
    trainer: ChainTrainer,
    paths: Sequence[NetworkPath],
    more: Mapping[str, Any] | None = None,
    *,
    beside: Mapping[NetworkPath, Sequence[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Do what `run_chain` does with what was opened and trained before.

    Args:
        trainer: What was opened and trained before.
        paths: As for `run_chain`.
        more: What else the result says; its `notes` are added to those of the paths.
        beside: By path, the records of networks that were trained to choose it, and count to its cost.
    """
    if not paths or any(not path for path in paths) or len({path[0] for path in paths}) != 1:
        got = [list(path) for path in paths]
        raise ConfigError(expected("path", "networks from one teacher on", got, where="chain"))
    if len(set(paths)) < len(paths):
        raise ConfigError(expected("path", "without repeats", [list(path) for path in paths], where="chain"))
    notes = trainer.check(paths)
    known = {path: trainer.trained(path) for path in prefixes(paths)}
    others = dict(more or {})
    result = {
        "networks": list(known.values()),
        "paths": [_whole(path, known, (beside or {}).get(path, ())) for path in paths],
        "method": trainer.chain.method.name,
        "train_samples": len(trainer.samples.kept),
        **others,
        "notes": [*notes, *others.get("notes", ())],
    }
    write_atomic(trainer.chain.out / "chain.json", pretty(result))
    return result


def _whole(
    path: NetworkPath, known: dict[NetworkPath, dict[str, Any]], beside: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    links = [known[path[:end]] for end in range(1, len(path) + 1)]
    last, every = links[-1], [*links, *beside]
    return {
        "path": list(path),
        **{name: last[name] for name in ("accuracy", "nll", "ece", "parameters", "weights")},
        "seconds": sum(link["seconds"] + link["book_seconds"] for link in every),
        "trainings": sum(link["epochs"] > 0 for link in every),
        "teacher_forwards": sum(link["teacher_forwards"] for link in links),
    }
