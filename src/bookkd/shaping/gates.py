"""Gates: which parents each child reads, as shares that add up to 1; and what tables of them say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, expected

__all__ = ["GATE_ENTROPY", "GateTable", "gate_record", "gate_shares", "table_of"]

GATE_ENTROPY = "gates/entropy"
"""Field of a student with gates: the sum over its layers of the mean entropy of a child's gates."""


def gate_shares(logits: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Return the share that each child takes of each parent: alpha_ji = softmax_i(a_ji / tau).

    The released code of KDExplainer says softmax(log softmax(a / 0.5) / t), which is this with tau = t / 2, since the inner
    log-softmax only shifts.

    Args:
        logits: a, shape [..., children, parents].
        temperature: tau, above 0.

    Returns:
        Shape of the logits; each row adds up to 1.

    Raises:
        ConfigError: for a temperature that is a number and not above 0.

    >>> import torch
    >>> gate_shares(torch.tensor([0.2, 0.9, 0.5]), 0.5)
    tensor([0.1454, 0.5896, 0.2649])

    Source: Xue et al., "KDExplainer", IJCAI 2021, arXiv 2105.04181, and its released code.
    """
    if not isinstance(temperature, Tensor):
        positive(temperature, "temperature", where="gate_shares")
    return (logits / temperature).softmax(-1)


@dataclass(frozen=True)
class GateTable:
    """The gates of one layer, as plain numbers.

    Args:
        layer: Module path, or "layer 2".
        rows: Names of the children: blocks, or classes.
        columns: Names of the parents.
        shares: What each child takes of each parent; rows add up to 1.
        entropies: Entropy of each row, in nats.
        of_classes: Whether the rows are classes.
        derived: Whether it is worked out of the gates of several layers, and no layer's own.

    >>> GateTable("layer 1", ("a", "b"), ("1", "2"), ((0.5, 0.5), (1.0, 0.0)), (0.693147, 0.0)).spread
    0.5
    """

    layer: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    entropies: tuple[float, ...]
    of_classes: bool = False
    derived: bool = False

    @property
    def entropy(self) -> float:
        """Mean entropy of the rows, in nats: low where children specialise."""
        return sum(self.entropies) / len(self.entropies)

    @property
    def spread(self) -> float:
        """The same as a share of the most that it can be, log of the parents, so that layers compare; rounded to 6 digits."""
        return round(self.entropy / math.log(len(self.columns)), 6) if len(self.columns) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "layer": self.layer,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "shares": [list(row) for row in self.shares],
            "entropies": list(self.entropies),
            "entropy": self.entropy,
            "spread": self.spread,
            "of_classes": self.of_classes,
            "derived": self.derived,
        }


def table_of(
    layer: str,
    shares: Tensor,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    of_classes: bool = False,
    derived: bool = False,
) -> GateTable:
    """Return the table of a layer.

    Args:
        layer: Its name.
        shares: [children, parents], each row adding up to 1.
        rows: Names of the children; numbers from 1 where None.
        columns: Names of the parents; numbers from 1 where None.
        of_classes: Whether the rows are classes.
        derived: Whether the shares are no layer's own.

    Raises:
        ConfigError: if the names are not as many as there are children or parents.
    """
    found = shares.detach().double().cpu()
    entropies = torch.special.entr(found).sum(-1)  # a share of 0 has no part in it
    return GateTable(
        layer,
        _names(rows, found.shape[0]),
        _names(columns, found.shape[1]),
        tuple(tuple(row) for row in found.tolist()),
        tuple(entropies.tolist()),
        of_classes=of_classes,
        derived=derived,
    )


def gate_record(kind: str, tables: Sequence[GateTable]) -> dict[str, Any]:
    """Return what a run remembers of its gates.

    Args:
        kind: "tree" or "vam".
        tables: One a layer, first those nearest to the input.
    """
    return {"gates": {"kind": kind, "tables": [table.to_json() for table in tables]}}


def _names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if given is not None and len(given) != count:
        raise ConfigError(expected("names", f"{count}", len(given), where="table of gates"))
    return tuple(map(str, range(1, count + 1))) if given is None else tuple(given)
