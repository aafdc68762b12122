"""The student of KDExplainer: a tree of blocks in which gates say which blocks a class reads, for seeing and not for accuracy.

Layers have few blocks, then more, then one head a class. Each child reads a mixture of its parents,

    x_j = sum over i of alpha_ji h_i,  alpha = softmax over i of 2 a_ji / t,

with trained gates a, uniform on [0, 1] at the start, and a temperature t that falls from epoch to epoch (10 / epoch), so that gates sharpen.
In the second stage each child reads its likeliest parent alone, `hardened`, in a network with fresh weights.

Source: Xue et al., "KDExplainer: A Task-oriented Attention Model for Explaining Knowledge Distillation", IJCAI 2021, arXiv
2105.04181, and its released code. Blocks that no class reads are left out of a hardened tree; the code computes them for nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.shaping.base import ParameterGroup, Shaped
from bookkd.shaping.gates import GateTable, gate_record, gate_shares, table_of

__all__ = ["GateTree", "ShapedTree"]

Paths = Sequence[Sequence[int]]


class GateTree(nn.Module):
    """A tree of convolutional blocks with one head a class.

    Args:
        n_classes: C, the heads; at least 2.
        in_channels: Channels of the image.
        blocks: Blocks a layer, from the image on.
        channels: Channels that each layer's blocks give.
        pool: Side of the map that a head sees, after adaptive average pooling.
        hidden: Width of the two hidden layers of a head.
        dropout: In the heads.
        head: "ce" has one logit a class, "nce" two, of which the larger counts.
        paths: Of a hardened tree: for each layer but the first the parent of each child, from 0, the classes last; None for
            trained gates.

    >>> tree = GateTree(10, in_channels=1, channels=(8, 8, 4), pool=1, hidden=8)
    >>> tree(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    >>> [tuple(gates.shape) for gates in tree.gates]
    [(4, 2), (8, 4), (10, 8)]
    """

    def __init__(
        self,
        n_classes: int,
        *,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (2, 4, 8),
        channels: tuple[int, ...] = (64, 64, 32),
        pool: int = 7,
        hidden: int = 128,
        dropout: float = 0.15,
        head: Literal["ce", "nce"] = "ce",
        paths: Paths | None = None,
    ) -> None:
        super().__init__()
        where = "tree of gates"
        for what, counts in (
            ("n_classes", (n_classes,)),
            ("blocks", blocks),
            ("channels", (in_channels, *channels)),
            ("pool", (pool,)),
            ("hidden", (hidden,)),
        ):
            for count in counts:
                at_least(count, 2 if what == "n_classes" else 1, what, where=where)
        if len(blocks) != len(channels) or not blocks:
            raise ConfigError(expected("channels", f"one number a layer, {len(blocks)}", channels, where=where))
        between(dropout, 0, 1, "dropout", where=where)
        choose(head, ("ce", "nce"), "head", where=where)
        self.options = {
            "in_channels": in_channels,
            "blocks": tuple(blocks),
            "channels": tuple(channels),
            "pool": pool,
            "hidden": hidden,
            "dropout": dropout,
            "head": head,
        }
        self.n_classes, self.logits_per_class = n_classes, 1 if head == "ce" else 2
        sizes = (*blocks, n_classes)
        self.paths = None if paths is None else _checked(paths, sizes)
        used = [range(size) for size in sizes] if self.paths is None else _used(self.paths, sizes)
        self.layers = nn.ModuleList(
            nn.ModuleDict({str(i): _block(inputs, outputs) for i in some})
            for some, inputs, outputs in zip(used, (in_channels, *channels), channels, strict=False)
        )
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.heads = _heads(n_classes, channels[-1] * pool * pool, hidden, self.logits_per_class, dropout)
        pairs = [] if self.paths is not None else zip(sizes[1:], sizes[:-1], strict=True)
        self.gates = nn.ParameterList(nn.Parameter(torch.rand(children, parents)) for children, parents in pairs)
        self.register_buffer("temperature", torch.tensor(10.0))
        self.register_buffer("moving", torch.tensor(1.0))

    @property
    def hard(self) -> bool:
        """Whether each child reads one parent alone."""
        return self.paths is not None

    def shares(self) -> list[Tensor]:
        """Return alpha of each layer but the first, [children, parents]; with gradient where gates are trained."""
        if self.paths is not None:
            sizes = cast(Any, self.options["blocks"])
            return [
                nn.functional.one_hot(torch.tensor(path), size).float()
                for path, size in zip(self.paths, sizes, strict=True)
            ]
        # Gates that do not move yet still have a gradient, of 0, as training on several devices wants it.
        moving, temperature = cast(Tensor, self.moving), cast(Tensor, self.temperature)
        held = [a.detach() + moving * (a - a.detach()) for a in self.gates]
        return [gate_shares(a, temperature / 2) for a in held]

    def forward(self, x: Tensor) -> Tensor:
        if self.paths is not None:
            return self._heads(self._followed(x, self.paths))
        shares = self.shares()
        said = torch.stack([block(x) for block in self._layer(0).values()])
        for place, alpha in enumerate(shares[:-1], 1):
            children = torch.einsum("jk,kbchw->jbchw", alpha, said)
            said = torch.stack(
                [block(child) for block, child in zip(self._layer(place).values(), children, strict=True)]
            )
        # Pooling is linear: pooled once a block, and not once a class.
        pooled = self.pool(said.flatten(0, 1)).flatten(1).unflatten(0, said.shape[:2])
        return self._heads(torch.einsum("jk,kbf->bjf", shares[-1], pooled))

    def hardened(self) -> GateTree:
        """Return the tree of the second stage: each child reads its likeliest parent, and all weights are drawn anew.

        They come from torch's global generator: seed it before, for a run that can be repeated.

        Raises:
            ConfigError: for a tree that is hardened already.
        """
        if self.paths is not None:
            raise ConfigError(expected("tree", "one with trained gates", "a hardened one", where="hardened"))
        paths = [gates.detach().argmax(1).tolist() for gates in self.gates]
        return GateTree(self.n_classes, paths=paths, **cast(dict[str, Any], self.options))

    def set_epoch(self, epoch: int, temperature: float = 10.0, start: int = 0) -> None:
        """Set the gates as the released code has them in an epoch: t = temperature / (epoch + 1), and moving from epoch `start` on.

        Args:
            epoch: Epochs done, from 0.
            temperature: t of the first epoch.
            start: Epochs before the gates move.
        """
        cast(Tensor, self.temperature).fill_(temperature / (epoch + 1))
        cast(Tensor, self.moving).fill_(float(epoch >= start))

    def tables(self, class_names: Sequence[str] = ()) -> tuple[GateTable, ...]:
        """Return the gates as plain numbers: each layer's own, then for each layer what each class reads of it along all paths.

        Args:
            class_names: Of the heads; numbers where empty.
        """
        return tuple(self._tables(list(class_names) or None))

    def _tables(self, class_names: list[str] | None) -> Iterator[GateTable]:
        shares = [alpha.detach().double().cpu() for alpha in self.shares()]
        last = len(shares)
        for place, alpha in enumerate(shares, 1):
            classes = place == last
            yield table_of(f"layer {place}", alpha, rows=class_names if classes else None, of_classes=classes)
        reads = shares[-1]
        for place in range(last - 1, 0, -1):
            reads = reads @ shares[place - 1]
            yield table_of(f"layer {place} by class", reads, rows=class_names, of_classes=True, derived=True)

    def _layer(self, place: int) -> Mapping[str, nn.Module]:
        return cast(Mapping[str, nn.Module], self.layers[place])

    def _followed(self, x: Tensor, paths: tuple[tuple[int, ...], ...]) -> Tensor:
        """Return what each head reads in a hardened tree, [batch, classes, features]."""
        said = {name: block(x) for name, block in self._layer(0).items()}
        for place, path in enumerate(paths[:-1], 1):
            said = {name: block(said[str(path[int(name)])]) for name, block in self._layer(place).items()}
        pooled = {name: self.pool(each).flatten(1) for name, each in said.items()}
        return torch.stack([pooled[str(parent)] for parent in paths[-1]], 1)

    def _heads(self, features: Tensor) -> Tensor:
        logits: Tensor = self.heads(features.flatten(1).unsqueeze(-1))
        return logits.view(-1, self.n_classes, self.logits_per_class).amax(-1)


class ShapedTree(Shaped):
    """A tree while it learns: its gates have a learning rate of their own, and their tables are remembered.

    Args:
        tree: The student.
        lr: Peak learning rate of the gates; None for the student's.
        class_names: Of the heads.

    Raises:
        ConfigError: for another student.
    """

    def __init__(self, tree: nn.Module, *, lr: float | None = None, class_names: Sequence[str] = ()) -> None:
        super().__init__(tree)
        if not isinstance(tree, GateTree):
            do = "Pass bookkd.shaping:GateTree as the student, or use method vam for any convolutional network."
            raise ConfigError(
                expected("student", "a tree of gates", type(tree).__name__, where="method kdexplainer", do=do)
            )
        self.tree, self.lr, self.class_names = tree, lr, tuple(class_names)

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the gates; none of a hardened tree."""
        return (ParameterGroup(tuple(self.tree.gates), self.lr),) if len(self.tree.gates) else ()

    def logged(self) -> dict[str, float]:
        """Return how spread the gates of each layer are, 0 to 1, and their temperature; nothing of a hardened tree."""
        if self.tree.hard:
            return {}
        said = {f"gates/{table.layer}": table.spread for table in self.tree.tables() if not table.derived}
        return {**said, "gates/temperature": float(cast(Tensor, self.tree.temperature))}

    def finish(self) -> dict[str, Any]:
        """Return the tables of the gates; the tree stays what it is."""
        return gate_record("tree", self.tree.tables(self.class_names))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    # Rounding up, so that small images survive several halvings.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
    )


def _heads(classes: int, features: int, hidden: int, logits: int, dropout: float) -> nn.Sequential:
    """Return the fully connected layers of all classes side by side: a convolution of length 1 with a group for each class."""
    widths = (features, hidden, hidden, logits)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers.append(nn.Conv1d(classes * inputs, classes * outputs, 1, groups=classes))
        layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def _checked(paths: Paths, sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    found = tuple(tuple(int(parent) for parent in path) for path in paths)
    wanted = tuple(sizes[1:])
    inside = all(0 <= parent < size for path, size in zip(found, sizes, strict=False) for parent in path)
    if tuple(map(len, found)) != wanted or not inside:
        wish = f"the parent of each child of layers of {', '.join(map(str, wanted))}"
        raise ConfigError(expected("paths", wish, found, where="tree of gates"))
    return found


def _used(paths: tuple[tuple[int, ...], ...], sizes: Sequence[int]) -> list[list[int]]:
    """Return the blocks of each layer that some class reads, the classes last."""
    used = [list(range(sizes[-1]))]
    for path in reversed(paths):
        used.insert(0, sorted({path[child] for child in used[0]}))
    return used
