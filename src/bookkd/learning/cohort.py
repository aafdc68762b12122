"""Several students as one network, so that every training door trains them together: peers that teach one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bookkd.core.called import check_called
from bookkd.core.errors import ConfigError, expected

__all__ = ["Cohort"]


class Cohort(nn.Module):
    """Peers that see the same batch; called as one network it is the first of them, which is the student that is kept.

    Args:
        peers: At least two networks, each with parameters of its own.

    >>> cohort = Cohort([nn.Linear(2, 2), nn.Linear(2, 2)])
    >>> len(cohort.peers)
    2
    """

    def __init__(self, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(peers) < 2 or len({id(peer) for peer in peers}) != len(peers):
            got = f"{len({id(peer) for peer in peers})} networks"
            raise ConfigError(expected("peers", "at least two different networks", got, where="cohort"))
        self.peers = nn.ModuleList(peers)

    def forward(self, *inputs: Any) -> object:
        """Return what the first peer says."""
        return self.peers[0](*inputs)

    def every(self, *inputs: Any) -> list[object]:
        """Return what each peer says, in order."""
        for peer in self.peers:
            check_called(peer, inputs)
        return [peer(*inputs) for peer in self.peers]
