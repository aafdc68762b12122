"""What networks say on validation samples, kept so that an ensemble is measured without two of them in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LABEL, LOGITS
from bookkd.evaluation import TokenSums, pairwise_kl
from bookkd.learning import Learner, find_device, to_device
from bookkd.learning.validation import Validation
from bookkd.losses import CombinedTarget, DenseTarget
from bookkd.methods import DIL
from bookkd.objectives import Combine
from bookkd.views import Pick, Replay, Views

__all__ = ["MEASURES", "Said", "better", "ensemble_of", "said_on", "spread_of"]

MEASURES = ("accuracy", "nll", "ece")


@dataclass(frozen=True, eq=False)
class Said:
    """What one network, or several together, say at all positions of a data set.

    Args:
        logits: [positions, classes], on the CPU.
        labels: int64 [positions]; -1 where not known.
        counts: Positions of each sample, int64 [samples].
    """

    logits: Tensor
    labels: Tensor
    counts: Tensor

    def measures(self) -> dict[str, float]:
        """Return accuracy, negative log-likelihood in nats and calibration error, over all positions whose label is known."""
        sums = TokenSums()
        sums.add({LOGITS: self.logits}, {LABEL: self.labels}, self.counts)
        found = sums.measures(replicates=0).metrics
        return {name: found[name].value for name in MEASURES}


def said_on(learner: Learner, validation: Validation, accelerator: str = "cpu", *, most: int | None = None) -> Said:
    """Run a network over a data set, or its first `most` samples, in evaluation mode.

    Raises:
        ConfigError: for a data set without samples, or a task that says another thing than one distribution a sample or position.
    """
    task, device = learner.task, find_device(accelerator)
    before = next(learner.parameters()).device
    learner.to(device).eval()
    replay = Replay(validation.dataset, Views(validation.transform, n_views=1), probe_share=0)
    said: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        if not len(replay):
            do = "Rounds are decided on validation samples."
            raise ConfigError(expected("validation", "at least one sample", 0, where="rounds", do=do))
        count = len(replay) if most is None else min(most, len(replay))
        for start in range(0, count, validation.batch_size):
            picks = [Pick(row, 0) for row in range(start, min(start + validation.batch_size, count))]
            batch = to_device(replay.batch(picks), device)
            logits, seen = task.student(learner(batch)).get(LOGITS), task.batch(batch)
            if logits is None or logits.ndim != 2 or seen[LABEL].shape != logits.shape[:1]:
                raise ConfigError(expected("task", "one of one class a sample or position", task.name, where="rounds"))
            counts = task.counts(batch)
            counts = torch.ones(len(picks), dtype=torch.int64) if counts is None else counts
            said.append((logits.float().cpu(), seen[LABEL].cpu(), counts.cpu()))
    learner.to(before)
    logits, labels, counts = (torch.cat(parts) for parts in zip(*said, strict=True))
    return Said(logits, labels, counts)


def ensemble_of(members: Sequence[Said], method: DIL) -> Said:
    """Return what several networks say together, at temperature 1, combined as the method combines its assistants."""
    target = CombinedTarget.of([DenseTarget(member.logits) for member in members])
    together = Combine(method.ensemble, method.weights).teacher(target, {})
    return Said(together.log_probabilities(1.0), members[0].labels, members[0].counts)


def spread_of(members: Sequence[Said], method: DIL) -> dict[str, Any]:
    """Return the measures of the assistants together, what they gain over the best of them, and how different they are."""
    together = ensemble_of(members, method).measures()
    best = max(member.measures()["accuracy"] for member in members)
    apart = pairwise_kl([member.logits for member in members]) if len(members) > 1 else None
    return {"ensemble": together, "gain": together["accuracy"] - best, "diversity": apart}


def better(mine: dict[str, Any], theirs: dict[str, Any], by: str) -> bool:
    """Say whether measures are better than others; equal ones are not."""
    one, other = float(mine[by]), float(theirs[by])
    return one > other if by == "accuracy" else one < other
