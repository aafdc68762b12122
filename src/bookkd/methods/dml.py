"""Deep mutual learning: peers that learn together and teach one another, without a trained teacher.

What it does: with p_m = softmax(z_m) of peer m among M peers and label y, peer m minimises

    L_m = CE(z_m, y) + 1 / (M - 1) sum_{l != m} KL(p_l || p_m),

p_l without gradient. All losses are of the weights before the step, and all peers step at once.
When to use: without a teacher, or to train several networks anyway. No book and no teacher is asked for.
Parameters: `peers` 2; `average` True is the paper's 1 / (M - 1), False the plain sum of the released code (preset `code`); with two
peers they are one. The temperature is 1.
What it costs: M passes and M updates a step, so a fair comparison is with M trainings alone, or one of M times the length; choosing
the best peer on the test set flatters it.
What it clashes with: peers of very different size: the small one is served badly. Peers say little of use in the first epochs, and no
warm-up is part of the method; peers of speech draw each other to blanks first, and to one alignment of the symbols after it. Gradient clipping is over all peers together. The network that is kept as the student is the
first peer; the others are in `Learned.peers` and in files beside it.
Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384, and its released code; certain. The paper
updates peers in turn, with logits computed again after each; ours is the simultaneous form, which no order of peers changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bookkd.core.check import at_least
from bookkd.core.fields import LOGITS
from bookkd.losses import soft_target_kl
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Term, bind
from bookkd.tasks import Task

__all__ = ["DML", "peer_logits"]


@dataclass(frozen=True)
class DML(BaseMethod):
    """Train peers that teach one another; pass `learn` a `bookkd.learning.Cohort` of as many networks.

    Args:
        peers: M, at least 2.
        average: Average over the other peers, as the paper does; False adds them up.
    """

    peers: int = 2
    average: bool = True

    name: ClassVar[str] = "dml"
    tasks: ClassVar[tuple[str, ...]] = (
        "causal-lm",
        "classification",
        "ctc",
        "multi-label",
        "segmentation",
        "seq2seq",
        "tagging",
    )
    card: ClassVar[Card] = Card(
        "Peers that teach one another",
        "Zhang et al., CVPR 2018, arXiv 1706.00384",
        "labels; several students",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"code": {"average": False}}

    def __post_init__(self) -> None:
        do = "One network alone is method supervised."
        at_least(self.peers, 2, "peers", where=f"method {self.name}", do=do)

    @property
    def cohort(self) -> int:
        """The peers."""
        return self.peers

    def objective(self, task: Task) -> Objective:
        """Return for each peer its label term and one term for each other peer."""
        return Objective(tuple(term for peer in range(self.peers) for term in self._terms(task, peer)))

    def _terms(self, task: Task, peer: int) -> Iterator[Term]:
        labels = task.label_term(weight=1.0, label_smoothing=0.0)
        yield replace(labels, field=labels.field.replace(LOGITS, peer_logits(peer)), name=f"{labels.name}_{peer}")
        for other in range(self.peers):
            if other != peer:
                yield bind(
                    soft_target_kl,
                    peer_logits(peer),
                    teacher=peer_logits(other),
                    own=True,
                    weight=1 / (self.peers - 1) if self.average else 1.0,
                    name=f"peer_{other}_to_{peer}",
                    temperature=1.0,
                    t_squared=False,
                    class_reduction="sum",
                )


def peer_logits(peer: int) -> str:
    """Return the field of a peer's logits."""
    return f"peers/{peer}/logits"
