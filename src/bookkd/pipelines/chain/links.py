"""What the links of a chain share, and where each network of it lies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from bookkd.book import Codec
from bookkd.core.errors import ConfigError, expected
from bookkd.learning import Training
from bookkd.methods import Method
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions

__all__ = ["Chain", "NetworkPath", "all_paths", "folder_name", "prefixes", "refuse_shared_folders"]

Say = Callable[[str], None]
NetworkPath = tuple[str, ...]

ALONE = "alone"
"""Folder of the networks that are trained on labels alone, for the choice of an assistant."""


def all_paths(sizes: Sequence[str]) -> list[NetworkPath]:
    """Return every path from the first to the last of `sizes` that keeps their order, shortest first.

    They are 2^(n - 2), and fewer where neighbours are equal.

    >>> all_paths(["56", "20", "8"])
    [('56', '8'), ('56', '20', '8')]
    """
    first, *between, last = sizes
    chosen = (some for n in range(len(between) + 1) for some in itertools.combinations(between, n))
    return list(dict.fromkeys((first, *some, last) for some in chosen))


def prefixes(paths: Iterable[NetworkPath]) -> list[NetworkPath]:
    """Return the path to every network on `paths`, each once, parents first.

    >>> prefixes([("56", "20"), ("56", "8")])
    [('56',), ('56', '20'), ('56', '8')]
    """
    found = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    return sorted(found, key=lambda path: (len(path), path))


def folder_name(path: Sequence[str]) -> str:
    """Return the name of the folder of the network at the end of `path`: the networks, joined with "+".

    Letters, digits and `_ . - ~` of a name stay; all else, such as the colon of `package.module:Name`, is written as in a
    web address, so that no name holds a "+" and the path can be read back.

    >>> folder_name(["resnet56", "digits-small"]), folder_name(["my.nets:Large", "resnet8"])
    ('resnet56+digits-small', 'my.nets%3ALarge+resnet8')
    """
    return "+".join(quote(name, safe="") for name in path)


def refuse_shared_folders(paths: Iterable[NetworkPath]) -> None:
    """Refuse paths whose folders would be one: where a disk tells no capitals from small letters, or beside `alone`.

    Raises:
        ConfigError: naming the two.
    """
    taken = {ALONE: "networks on labels alone"}
    for path in paths:
        words = " -> ".join(path)
        other = taken.setdefault(folder_name(path).casefold(), words)
        if other != words:
            do = "Give one of the networks another name, or the paths another --out each."
            got = f"{words} beside {other}"
            raise ConfigError(expected("path", "one with a folder of its own", got, where="chain", do=do))


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What all links of a chain share.

    Args:
        out: Folder; each network has a folder of its own in it, named by the path behind it, see `folder_name`.
        data: The samples. Books are about all of them.
        views: The augmentation, the same for every link.
        method: How each network learns from the one before.
        training: How each is trained.
        first: The first network where its weights are given; else it is trained on labels alone.
        codec: How logits become bytes.
        test: Split on which every network is measured.
        held_out: Share of the samples that no network learns from, the same ones for all, 0 to 0.5.
        say: Called with a line of progress.

    Raises:
        ConfigError: if networks would be measured on the split that they learn from.
    """

    out: Path
    data: DataOptions
    views: ViewOptions
    method: Method
    training: Training
    first: NetworkOptions = field(default_factory=NetworkOptions)
    codec: Codec | None = None
    test: str = "test"
    held_out: float = 0.0
    say: Say = print

    def __post_init__(self) -> None:
        if self.test == self.data.split:
            do = "Networks learn from it: measure them on another with --test SPLIT."
            raise ConfigError(expected("test", "another split than the data's", self.test, where="chain", do=do))

    def folder(self, path: NetworkPath) -> Path:
        """Return the folder of the network at the end of `path`."""
        return self.out / folder_name(path)

    def weights(self, path: NetworkPath) -> Path:
        """Return where the weights of the network at the end of `path` are."""
        if len(path) == 1 and self.first.weights is not None:
            return Path(self.first.weights)
        return self.folder(path) / "run" / "student.safetensors"

    def untrained(self, path: NetworkPath) -> NetworkOptions:
        """Return the network at the end of `path` with initial values; arguments are of the first one's own."""
        return replace(self.first if len(path) == 1 else NetworkOptions(), name=path[-1], weights=None)

    def network(self, path: NetworkPath) -> NetworkOptions:
        """Return the network at the end of `path` with the weights that it has learnt."""
        return replace(self.untrained(path), weights=str(self.weights(path)))

    def seed(self, path: NetworkPath) -> int:
        """Return the seed of a network: that of the training, and another for each earlier one of its architecture.

        A generation that started from its teacher's initial values would not be a new one.
        """
        return self.training.seed + 7919 * path[:-1].count(path[-1])

    def alone(self) -> Chain:
        """Return the same for networks that learn from labels alone, in a folder of their own."""
        return replace(self, out=self.out / ALONE, first=NetworkOptions())
