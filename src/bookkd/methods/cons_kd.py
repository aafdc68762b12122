"""Cons-KD: a speech recogniser that agrees with its teacher, and with itself under another mask of dropout.

What it does: the student hears every utterance twice in one run, with dropout of its own each time, and says P1 and P2; with the
teacher's Q

    L = 1/2 sum_i ctc_weight L_CTC(P_i) + 1/2 sum_i kd_weight L_KD(Q, P_i)
        + consistency_weight 1/2 sum_t (KL(P1_t || P2_t) + KL(P2_t || P1_t)),

gradients through both passes. With `between` views the two are two augmented views of a sample, one pass each, and each is drawn to
the other where that stands (CR-CTC): the consistency is 1/2 sum_t (KL(sg P2_t || P1_t) + KL(sg P1_t || P2_t)), sg for no gradient.
When to use: for connectionist temporal classification, where dropout matters. The fair baseline is `consistency_weight` 0 (preset
`baseline`), also two passes: the mean of two divergences from the teacher contains a weak consistency already.
Parameters: `consistency_weight` 1, `kd_weight` 1, `ctc_weight` 1, `ramp_epochs` 1: the consistency grows to its full weight over so
many epochs, 1 is no ramp. `between` passes, or views (preset `cr-ctc`, weight 0.2 and no teacher; its released transducer recipe
has 0.02). Others as in `ctc-kd`: whether the divergence is KL, l2 or guided, and whether heads take part, the source's abstract does
not say.
What it costs: two passes of the student a step, so compare at half the epochs, or equal time; one read of the book, or one a view.
What it clashes with: students without dropout, where the passes agree from the start; for views, changes of speed, which leave no
frame opposite another (refused), books of one view (refused), and odd batch sizes.
Source: "Cons-KD: Dropout-Robust Knowledge Distillation for CTC-Based Automatic Speech Recognition", IEEE Access 2024, doi
10.1109/access.2024.3457859, of which the abstract alone was read: that distillation and consistency against dropout are added is
certain; equations, weights and schedule are reconstructed after R-Drop (arXiv 2106.14448), so that none of its numbers are claimed.
CR-CTC, ICLR 2025 (arXiv 2410.05101).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from bookkd.core.check import at_least
from bookkd.core.fields import FRAMES, LOGITS, SAMPLE
from bookkd.core.names import choose
from bookkd.core.protocols import Needs
from bookkd.core.schedules import Ramp, Schedule
from bookkd.losses import consistency, view_consistency
from bookkd.methods._frames import FrameMatching, scaled
from bookkd.methods._parts import check_some_weight
from bookkd.methods.base import Card
from bookkd.objectives import Objective, Term, bind
from bookkd.tasks import Task

__all__ = ["ConsKD"]


@dataclass(frozen=True)
class ConsKD(FrameMatching):
    """Match the teacher's frames in two passes, which are to agree.

    Args:
        form: "kl", "l2" or "guided", see `CTCKD`.
        kd_weight: Weight of the teacher's term, at least 0; 0 asks no teacher.
        ctc_weight: Weight of the transcripts, at least 0; 0 leaves them unused.
        temperature: T of the teacher's term, above 0, the same on both sides; a number or a schedule.
        t_squared: Multiply the teacher's term by T^2.
        frames: "all", "non-blank" or "spikes", see `CTCKD`.
        around: Frames beside each spike, at least 1.
        heads: Intermediate layers that are matched too; they take no part in the consistency.
        heads_share: Share of these in both terms, 0 to below 1.
        consistency_weight: Weight of the agreement, at least 0.
        ramp_epochs: Epochs until the agreement has its full weight, at least 1, which is no ramp.
        between: Two "passes" with dropout of their own, or two "views" of a sample.
    """

    consistency_weight: float | Schedule = 1.0
    ramp_epochs: int = 1
    between: Literal["passes", "views"] = "passes"

    name: ClassVar[str] = "cons-kd"
    card: ClassVar[Card] = Card(
        "Frames matched in two passes that agree",
        "Cons-KD, IEEE Access 2024, doi 10.1109/access.2024.3457859; CR-CTC, arXiv 2410.05101 (2025)",
        "logits of one view; two for CR-CTC",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "baseline": {"consistency_weight": 0.0},
        "cr-ctc": {"between": "views", "consistency_weight": 0.2, "kd_weight": 0.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"method {self.name}"
        do = "Agreement alone is reached by saying nothing."
        check_some_weight(self, "kd_weight", "ctc_weight", beside="consistency_weight", do=do)
        at_least(self.ramp_epochs, 1, "ramp_epochs", where=where)
        choose(self.between, ("passes", "views"), "between", where=where)

    def idle(self) -> Mapping[str, str]:
        """As in `ctc-kd`, and what belongs to a term that is left out."""
        found = dict(super().idle())
        if self.kd_weight == 0:
            found |= dict.fromkeys(("form", "temperature", "t_squared", "frames", "around"), "kd_weight 0")
        return found if self.consistency_weight != 0 else {**found, "ramp_epochs": "consistency_weight 0"}

    @property
    def passes(self) -> int:
        """Two, or one of each view."""
        return 2 if self.between == "passes" else 1

    def objective(self, task: Task) -> Objective:
        """Return the terms of both passes, and their agreement unless its weight is the number 0."""
        if self.between == "views":
            return Objective((*self.matched(task), *self._agreement()))
        each = (term for place in range(2) for term in self.matched(task, f"passes/{place}/", share=0.5))
        return Objective((*each, *self._agreement()))

    def _agreement(self) -> Iterator[Term]:
        if self.consistency_weight == 0:
            return
        ramped = self.ramp_epochs > 1
        weight = scaled(Ramp(self.ramp_epochs), self.consistency_weight) if ramped else self.consistency_weight
        if self.between == "views":
            yield bind(view_consistency, LOGITS, batch=(FRAMES, SAMPLE), weight=weight, name="consistency")
            return
        one, other = (f"passes/{place}/{LOGITS}" for place in range(2))
        yield bind(
            consistency,
            one,
            teacher=other,
            own=True,
            gradient=True,
            weight=weight,
            name="consistency",
            temperature=1.0,
            t_squared=False,
        )

    def needs(self, task: Task) -> Needs:
        """Return the teacher's logits, where one is asked, and two views of a sample in one batch where these are to agree."""
        return replace(super().needs(task), views_per_sample=2 if self.between == "views" else 1)
