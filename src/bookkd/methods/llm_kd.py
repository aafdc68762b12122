"""Distillation of language models: the student's next token is like the teacher's, by a divergence of one's choice.

What it does: at every position, with teacher distribution p and student distribution q, both at temperature T,

    L = ce_weight CE(y, q) + kd_weight T^2 D(p, q)

where D is `forward-kl` KL(p || q); `reverse-kl` KL(q || p); `jsd`, the generalised Jensen-Shannon divergence
b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q; `skew-kl` KL(p || a p + (1 - a) q); or `skew-reverse-kl`
KL(q || (1 - a) p + a q). The mean is over the positions that count: no padding, no prompt.
When to use: for causal language models, for translation (word-level distillation, Kim and Rush), and wherever there are many classes. `forward-kl` from a book of draws (codec `sampled`) is
unbiased at some 36 bytes a token; from a top-k book all divergences are over the kept tokens and one tail bucket.
Parameters: `divergence` forward-kl, `temperature` 1, `kd_weight` 1, `ce_weight` 0; `beta` 0.5 of `jsd` (GKD; 0 and 1 stand for the
forward and the reverse divergence, the limits after division), `alpha` 0.1 of the skewed ones (DistiLLM's code).
Presets: `gkd`, `distillm`, `distillm-reverse`, `minillm`. The last is the divergence of MiniLLM on given text, position by
position; its policy gradient on text that the student writes needs a live teacher, and is not here.
What it costs: one pass of the student and one read of the book; the loss is worked out a few positions at a time, in one tensor of
the size of the student's logits.
What it clashes with: draws and every divergence but `forward-kl`, which they bias; sparse books at temperatures they do not
promise (both refused).
Source: Kim and Rush 2016 (arXiv 1606.07947), word level; Agarwal et al. 2024 (arXiv 2306.13649), Ko et al. 2024 (arXiv
2402.03898), Gu et al. 2024 (arXiv 2306.08543); draws and tail bucket, Anshumann et al. 2025 (arXiv 2503.16870).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.schedules import Schedule
from bookkd.losses import Loss, generalised_jsd, reverse_kl, skew_kl, skew_reverse_kl, soft_target_kl
from bookkd.methods._parts import check_idle, check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind
from bookkd.tasks import Task

__all__ = ["LLMKD"]

Divergence = Literal["forward-kl", "jsd", "reverse-kl", "skew-kl", "skew-reverse-kl"]

_LOSSES: dict[str, Loss] = {
    "forward-kl": soft_target_kl,
    "jsd": generalised_jsd,
    "reverse-kl": reverse_kl,
    "skew-kl": skew_kl,
    "skew-reverse-kl": skew_reverse_kl,
}


@dataclass(frozen=True)
class LLMKD(BaseMethod):
    """Match the teacher's next token, by a divergence of one's choice.

    Args:
        divergence: See above.
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the divergence, above 0.
        ce_weight: Weight of cross-entropy with the text, at least 0; 0 leaves it out.
        beta: Weight of the teacher in the mixture of `jsd`, 0 to 1.
        alpha: Share of the other side in the skewed divergences, 0 to below 1.
        t_squared: Multiply the divergence by T^2.
    """

    divergence: Divergence = "forward-kl"
    temperature: float | Schedule = 1.0
    kd_weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 0.0
    beta: float = 0.5
    alpha: float = 0.1
    t_squared: bool = True

    name: ClassVar[str] = "llm-kd"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm", "classification", "segmentation", "seq2seq", "tagging")
    card: ClassVar[Card] = Card(
        "Divergences on the next token",
        "Kim and Rush, arXiv 1606.07947 (2016); Agarwal et al., arXiv 2306.13649 (2024)",
        "logits of one view",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gkd": {"divergence": "jsd", "beta": 0.5},
        "distillm": {"divergence": "skew-kl", "alpha": 0.1},
        "distillm-reverse": {"divergence": "skew-reverse-kl", "alpha": 0.1},
        "minillm": {"divergence": "reverse-kl"},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        if self.divergence not in _LOSSES:
            raise ConfigError(expected("divergence", f"one of {', '.join(_LOSSES)}", self.divergence, where=where))
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight")
        between(self.beta, 0, 1, "beta", where=where)
        if between(self.alpha, 0, 1, "alpha", where=where) == 1:
            raise ConfigError(expected("alpha", "below 1, where nothing is left to learn", self.alpha, where=where))
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """`beta` and `alpha` play a part in their divergences alone."""
        beside = f"divergence {self.divergence}"
        found = {} if self.divergence == "jsd" else {"beta": beside}
        return found if self.divergence.startswith("skew") else {**found, "alpha": beside}

    def objective(self, task: Task) -> Objective:
        """Return the divergence, and cross-entropy with the text unless its weight is the number 0."""
        hyper: dict[str, Any] = {"temperature": self.temperature, "t_squared": self.t_squared}
        if self.divergence == "forward-kl":
            hyper["class_reduction"] = "sum"
        elif self.divergence == "jsd":
            hyper["beta"] = self.beta
        elif self.divergence.startswith("skew"):
            hyper["alpha"] = self.alpha
        loss = _LOSSES[self.divergence]
        soft = bind(loss, LOGITS, teacher=LOGITS, weight=self.kd_weight, name="divergence", **hyper)
        return Objective(with_labels(task, (soft,), weight=self.ce_weight))
