"""Knowledge that needs no teacher: an average of the student's own past, and a teacher that only the labels make up.

A method that needs one says so in `own_knowledge`; fields of such a knowledge begin with `own/`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bookkd.core.check import below, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, OWN, PARTNER_LABEL, RATIO, SAMPLE, WEIGHT, FieldInfo
from bookkd.core.names import choose
from bookkd.core.rng import generator
from bookkd.knowledge.base import Teacherless
from bookkd.losses import DenseTarget, beta_targets

__all__ = ["BetaSmoothing", "SelfKnowledge", "VirtualKnowledge"]


class SelfKnowledge(Teacherless):
    """An exponential moving average of the student, asked about the same batch; also the event handler that moves it.

    theta_average <- m theta_average + (1 - m) theta after every optimizer step, m = min(1 - 1 / (step + 1), momentum), so
    that the first steps are not held back by the initial values.

    Args:
        learner: What is averaged: a module from batch to fields; copied.
        fields: What it says, by name; given out as `own/NAME`.
        momentum: Largest m, 0 to below 1; at 1 the average would never move.
        mode: "train" keeps the copy in training mode, with the batch's own statistics in BatchNorm, and averages parameters
            alone, as the released code of Beta smoothing does; "eval" copies the buffers too and evaluates.

    Raises:
        ConfigError: if the momentum or the mode is another.
    """

    def __init__(
        self,
        learner: nn.Module,
        fields: Mapping[str, FieldInfo],
        *,
        momentum: float,
        mode: Literal["train", "eval"],
    ) -> None:
        super().__init__({OWN + name: info for name, info in fields.items()})
        self.momentum = below(momentum, 0, 1, "momentum", where="average of the student")
        self.mode = choose(mode, ("train", "eval"), "mode", where="average of the student")
        self.network = copy.deepcopy(learner).requires_grad_(False).train(mode == "train")

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what the average says about the batch, without gradient."""
        with torch.no_grad():
            said = self.network(batch)
        wanted = list(self._fields) if fields is None else fields
        return {name: DenseTarget(said[name.removeprefix(OWN)]) for name in wanted}

    def on(self, event: str, run: Any) -> None:
        """Move the average after each optimizer step."""
        if event == "step_end":
            self.update(run.learner, run.steps)

    def update(self, learner: nn.Module, step: int) -> None:
        """Move towards the student.

        Args:
            learner: The student as it is after optimizer step `step`.
            step: From 1.
        """
        momentum = min(1 - 1 / (step + 1), self.momentum)
        with torch.no_grad():
            for average, now in zip(self.network.parameters(), learner.parameters(), strict=True):
                average.lerp_(now, 1 - momentum)
            if self.mode == "eval":
                for held, new in zip(self.network.buffers(), learner.buffers(), strict=True):
                    held.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, for a checkpoint."""
        return {"average": dict(self.network.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.network.load_state_dict(state["average"])


class BetaSmoothing(Teacherless):
    """Instance-specific smoothing of labels: the surer a confidence is within its batch, the less its label is smoothed.

    Gives the field `own/beta`: draws b ~ Beta(a, 1), sorted, stand on the true classes in the order of the confidences
    c_i = softmax(speaker's logits)_y, and (1 - b) / (K - 1) on every other class. A position without a known label, or that
    only fills up the batch, says nothing.

    Args:
        speaker: Says how sure it is: a `SelfKnowledge`, or a book.
        field: Its field of logits.
        shape: Of that field.
        concentration: a, above 0; the mean of b is a / (a + 1).
        seed: Of the draws, which are a function of seed, step and the first sample of the batch.
    """

    def __init__(self, speaker: Any, field: str, shape: tuple[int, ...], *, concentration: float, seed: int) -> None:
        super().__init__({f"{OWN}beta": FieldInfo(shape)})
        self.speaker = speaker
        self.field = field
        self.concentration = concentration
        self.seed = seed
        self.step = 0

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the smoothed labels as log-probabilities."""
        if batch.get(PARTNER_LABEL) is not None:
            do = "Learn from views that are not mixed."
            raise ConfigError(expected("views", "not mixed, for Beta smoothing", "mixed views", do=do))
        labels: Tensor = batch[LABEL]
        said = self.speaker.targets(batch, [self.field])[self.field].log_probabilities(1.0)
        counted = (labels != IGNORE_LABEL) & (batch[WEIGHT] > 0)
        # The first sample tells the micro-batches and ranks of one step apart.
        first = int(batch[SAMPLE][0]) if len(batch.get(SAMPLE, ())) else 0
        draws = generator(self.seed, "beta smoothing", self.step, first).beta(self.concentration, 1.0, size=len(labels))
        target = torch.full_like(said, -torch.inf)
        rows = counted.nonzero().squeeze(-1)
        smoothed = beta_targets(said[rows], labels[rows], torch.from_numpy(draws[: len(rows)]).to(said))
        target[rows] = smoothed.log()
        return {f"{OWN}beta": DenseTarget(target)}

    def on(self, event: str, run: Any) -> None:
        """Count steps, and let the speaker follow the student."""
        if event in ("run_start", "step_end"):
            self.step = run.steps
        if isinstance(self.speaker, SelfKnowledge):
            self.speaker.on(event, run)

    def state_dict(self) -> dict[str, Any]:
        """Return the speaker's state."""
        return self.speaker.state_dict() if isinstance(self.speaker, SelfKnowledge) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        if isinstance(self.speaker, SelfKnowledge):
            self.speaker.load_state_dict(state)


class VirtualKnowledge(Teacherless):
    """A teacher made of labels: the probability `confidence` on the true class, the rest in equal parts on the others.

    Gives the field `own/virtual`, whose *logits* are these probabilities, as the published virtual teacher has it: softened
    at temperature T it says softmax(p / T). A hidden label makes a uniform teacher: mask such terms by `labelled`.

    Args:
        n_classes: Number of classes.
        confidence: a, 1 / n_classes to 1.

    >>> virtual = VirtualKnowledge(3, confidence=0.98)
    >>> virtual.targets({"label": torch.tensor([1])})["own/virtual"].logits
    tensor([[0.0100, 0.9800, 0.0100]])
    """

    def __init__(self, n_classes: int, *, confidence: float) -> None:
        super().__init__({f"{OWN}virtual": FieldInfo((n_classes,))})
        self.n_classes = n_classes
        self.confidence = between(confidence, 1 / n_classes, 1, "confidence", where="virtual teacher")

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the made-up probabilities of the batch's labels; of a mixed view, in the ratio of its two labels."""
        made = self._of(batch[LABEL])
        if batch.get(PARTNER_LABEL) is not None:
            ratio = batch[RATIO].to(made.dtype).unsqueeze(-1)
            made = ratio * made + (1 - ratio) * self._of(batch[PARTNER_LABEL])
        return {f"{OWN}virtual": DenseTarget(made.to(batch[INPUT].device) if INPUT in batch else made)}

    def _of(self, labels: Tensor) -> Tensor:
        known = (labels != IGNORE_LABEL).unsqueeze(-1)
        rest = (1 - self.confidence) / (self.n_classes - 1)
        made = torch.full((*labels.shape, self.n_classes), rest, device=labels.device)
        made.scatter_(-1, labels.clamp_min(0).unsqueeze(-1), self.confidence)
        return torch.where(known, made, 1 / self.n_classes)
