"""Learning on the student's own text, with the teacher in memory: each batch is written by the student of that step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, LABEL_LENGTH, LENGTH, PROBE_TAKEN, SAMPLE
from bookkd.core.protocols import Knowledge
from bookkd.core.rng import draw64
from bookkd.knowledge import books_of
from bookkd.learning.learner import Learner
from bookkd.tasks import CausalLM, Task
from bookkd.zoo import Decoding, LanguageModel, continued

__all__ = ["OnPolicy", "chosen_rows"]


@dataclass(frozen=True)
class OnPolicy:
    """Replace what is learnt of some samples by what the student itself writes behind their prompts, at every step.

    The loss is the same as on a given text: the student's own draws are taken as they are, and no gradient flows through them. A
    prompt is what stands before the first learnt token. Which samples are replaced and what is drawn depend on the seed, the step
    and the weights alone, so that an interrupted run goes on to the same student. A teacher is asked again for every batch; with
    books, one of which is made of each round, `bookkd.pipelines.learn_by_rollouts` needs none in memory.

    Args:
        decoding: How the student writes; "sample" is what the source does.
        share: Probability of each sample of a batch to be replaced, 0 to 1: GKD's lambda.
        seed: Of the choice and of the draws.

    Source: Agarwal et al. 2024, GKD (arXiv 2306.13649), algorithm 1.
    """

    decoding: Decoding
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        between(self.share, 0, 1, "share", where="on-policy")
        at_least(self.seed, 0, "seed", where="on-policy")

    def check(self, learner: Learner, task: Task, knowledge: Knowledge | None) -> None:
        """Refuse a student that cannot write, and books, which know nothing of what it will write.

        Raises:
            ConfigError: naming which.
        """
        where = "on-policy"
        if not isinstance(task, CausalLM):
            raise ConfigError(expected("task", "causal-lm", task.name, where=where))
        if not isinstance(learner.student, LanguageModel):
            do = "Use load_causal_lm or create_causal_lm."
            got = type(learner.student).__name__
            raise ConfigError(expected("student", "a LanguageModel, which can write", got, where=where, do=do))
        if books_of(knowledge):
            do = "Use bookkd.pipelines.learn_by_rollouts, which makes a book of each round of what the student wrote."
            raise ConfigError(expected("knowledge", "a live teacher", "a book", where=where, do=do))

    def rewritten(self, batch: Mapping[str, Any], learner: Learner, *, step: int, part: int) -> Mapping[str, Any]:
        """Return a batch of which some samples are the student's own text.

        Args:
            batch: On the student's device.
            learner: The student, as it is at this step.
            step: Optimizer steps done.
            part: Place of the batch among those of the step and of all ranks.
        """
        rows = np.flatnonzero(chosen_rows(batch[SAMPLE].cpu().numpy(), self.share, self.seed, step))
        if not len(rows):
            return batch
        student, task = learner.student, learner.task
        if not isinstance(student, LanguageModel) or not isinstance(task, CausalLM):
            raise TypeError(type(student).__name__)
        tokens, lengths = batch[INPUT], batch[LENGTH].tolist()
        labels = batch[LABEL] if batch[LABEL].ndim == 2 else tokens
        texts = [tokens[row, :length] for row, length in enumerate(lengths)]
        learnt = [labels[row, :length] for row, length in enumerate(lengths)]
        prompts = [texts[row][: _begin(learnt[row])] for row in rows]
        draws = int(draw64(self.seed, "on-policy text", [step], [part])[0, 0] >> np.uint64(1))
        decoding = self.decoding.without(task.masked)
        written = continued(
            student, [prompt.cpu() for prompt in prompts], decoding, vocabulary=task.vocabulary, seed=draws
        )
        for row, prompt, new in zip(rows, prompts, written, strict=True):
            behind = torch.from_numpy(new).to(prompt)
            texts[row] = torch.cat([prompt, behind])
            learnt[row] = torch.cat([torch.full_like(prompt, IGNORE_LABEL), behind])
        counts = torch.tensor([len(text) for text in texts], device=tokens.device)
        found = {**batch, INPUT: _padded(texts, 0), LABEL: _padded(learnt, IGNORE_LABEL), LENGTH: counts}
        found[LABEL_LENGTH] = counts
        if PROBE_TAKEN in found:
            found[PROBE_TAKEN] = torch.zeros_like(found[PROBE_TAKEN])  # there is no view that it could be held against
        return found


def chosen_rows(samples: np.ndarray[Any, Any], share: float, seed: int, turn: int) -> np.ndarray[Any, Any]:
    """Return which samples the student writes in a turn, bool [samples], each with probability `share`.

    >>> chosen_rows(np.arange(4), 1.0, 0, 0).tolist()
    [True, True, True, True]
    """
    draws = draw64(seed, "on-policy share", samples, np.full(len(samples), turn))[:, 0]
    chosen: np.ndarray[Any, Any] = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
    return chosen


def _begin(labels: Tensor) -> int:
    """Return where the first learnt token but the very first stands; the length where none does."""
    found = (labels[1:] != IGNORE_LABEL).nonzero()
    return 1 + int(found[0]) if len(found) else len(labels)


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
