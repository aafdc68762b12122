"""What networks say on validation samples: some samples at a time, so that neither two networks nor all that they say are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LABEL, LOGITS
from bookkd.evaluation import TokenSums, pairwise_kl
from bookkd.learning import Learner, find_device, to_device
from bookkd.learning.measuring import samples_of_pass
from bookkd.learning.validation import Validation
from bookkd.losses import CombinedTarget, DenseTarget
from bookkd.methods import DIL
from bookkd.objectives import Combine
from bookkd.views import Pick, Replay, Views

__all__ = ["MEASURES", "Said", "better", "ensemble_of", "measures_of", "said_on", "spread_of"]

MEASURES = ("accuracy", "nll", "ece")


@dataclass(frozen=True, eq=False)
class Said:
    """What one network, or several together, say at all positions of some samples.

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
        return _measures(_gathered(TokenSums(), self))


def said_on(learner: Learner, validation: Validation, accelerator: str = "cpu", *, rows: range | None = None) -> Said:
    """Run a network over a data set, or some rows of it, in evaluation mode.

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
        rows, step = rows or range(len(replay)), samples_of_pass(task, validation.dataset, validation.batch_size)
        for start in range(0, len(rows), step):
            picks = [Pick(row, 0) for row in rows[start : start + step]]
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


def measures_of(learner: Learner, validation: Validation, accelerator: str = "cpu") -> dict[str, float]:
    """Return the measures of one network, batch by batch."""
    sums = TokenSums()
    for rows in _parts(learner.task, validation, 1):
        _gathered(sums, said_on(learner, validation, accelerator, rows=rows))
    return _measures(sums)


def spread_of(
    loads: Sequence[Callable[[], Learner]], validation: Validation, method: DIL, accelerator: str = "cpu"
) -> dict[str, Any]:
    """Return the measures of the assistants together, what they gain over the best of them, and how different they are.

    Args:
        loads: Each gives one of them; all are asked about some samples, one after another, and then about the next.
        validation: The samples.
        method: How they are combined.
        accelerator: Where they run.
    """
    alone, together, apart, positions = [TokenSums() for _ in loads], TokenSums(), 0.0, 0
    for rows in _parts(loads[0]().task, validation, len(loads)):
        members = [said_on(load(), validation, accelerator, rows=rows) for load in loads]
        for sums, member in zip(alone, members, strict=True):
            _gathered(sums, member)
        _gathered(together, ensemble_of(members, method))
        if len(members) > 1:
            count = len(members[0].logits)
            apart, positions = apart + count * pairwise_kl([member.logits for member in members]), positions + count
    found, best = _measures(together), max(_measures(sums)["accuracy"] for sums in alone)
    return {
        "ensemble": found,
        "gain": found["accuracy"] - best,
        "diversity": apart / positions if positions else None,
    }


def _parts(task: Any, validation: Validation, networks: int) -> Iterator[range]:
    """Yield the rows of the data set in parts, of which so many networks' logits fit into memory."""
    count = len(validation.dataset)
    step = samples_of_pass(task, validation.dataset, count, networks=networks) if count else 1
    for start in range(0, count, step):
        yield range(start, min(start + step, count))


def _gathered(sums: TokenSums, said: Said) -> TokenSums:
    sums.add({LOGITS: said.logits}, {LABEL: said.labels}, said.counts)
    return sums


def _measures(sums: TokenSums) -> dict[str, float]:
    found = sums.measures(replicates=0).metrics
    return {name: found[name].value for name in MEASURES}


def better(mine: dict[str, Any], theirs: dict[str, Any], by: str) -> bool:
    """Say whether measures are better than others; equal ones are not."""
    one, other = float(mine[by]), float(theirs[by])
    return one > other if by == "accuracy" else one < other
