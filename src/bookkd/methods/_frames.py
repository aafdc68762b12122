"""What methods of speech share: how frames are matched to the teacher's, at which of them, and by which layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.names import choose
from bookkd.core.schedules import Schedule, resolve
from bookkd.losses import guided_ctc, soft_target_kl, softened_mse
from bookkd.methods._parts import check_idle, check_temperatures
from bookkd.methods.base import BaseMethod
from bookkd.objectives import Frames, Term, bind, selected
from bookkd.tasks import CTC, Task
from bookkd.tasks.ctc import HEADS

__all__ = ["FrameMatching", "scaled"]

Form = Literal["kl", "l2", "guided"]


@dataclass(frozen=True)
class FrameMatching(BaseMethod):
    """Base of methods that match frames; see `CTCKD` for the meaning of each option."""

    form: Form = "kl"
    kd_weight: float | Schedule = 1.0
    ctc_weight: float | Schedule = 1.0
    temperature: float | Schedule = 1.0
    t_squared: bool = True
    frames: Literal["all", "non-blank", "spikes"] = "all"
    around: int = 1
    heads: int = 0
    heads_share: float = 0.25

    tasks = ("ctc",)

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        if self.form not in ("kl", "l2", "guided"):
            raise ConfigError(expected("form", "one of kl, l2, guided", self.form, where=where))
        check_temperatures(self, "temperature")
        choose(self.frames, ("all", "non-blank", "spikes"), "frames", where=where)
        at_least(self.around, 1, "around", where=where)
        at_least(self.heads, 0, "heads", where=where)
        if self.heads and self.heads_share == 0:
            do = "With no share they learn nothing: leave `heads` 0."
            raise ConfigError(expected("heads_share", "above 0 with heads", 0, where=where, do=do))
        if between(self.heads_share, 0, 1, "heads_share", where=where) == 1:
            raise ConfigError(expected("heads_share", "below 1, where the last layer learns nothing", 1, where=where))
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """The guided form has neither temperature nor a choice of frames; `around` and `heads_share` play a part beside theirs alone."""
        found = {} if self.heads else {"heads_share": "heads 0"}
        if self.frames != "spikes":
            found["around"] = f"frames {self.frames}"
        if self.form == "guided":
            found |= dict.fromkeys(("temperature", "t_squared", "frames"), "form guided")
        return found

    def matched(self, task: Task, prefix: str = "", *, share: float = 1.0) -> Iterator[Term]:
        """Yield the label terms and those of the teacher of one run of the student, without those of weight 0.

        Args:
            task: The task.
            prefix: In front of the student's fields, such as `passes/0/`.
            share: Factor of all weights.
        """
        for field, part in self._layers():
            name = f"{prefix}{field}".replace("/", "_").removesuffix(f"_{LOGITS}").removesuffix(LOGITS)
            ending = f"_{name}" if name else ""
            if self.ctc_weight != 0:
                labels = task.label_term(weight=scaled(self.ctc_weight, share * part), label_smoothing=0.0)
                yield replace(labels, field=prefix + field, name=f"ctc{ending}")
            if self.kd_weight != 0:
                yield self._soft(task, prefix + field, scaled(self.kd_weight, share * part), f"{self.form}{ending}")

    def _layers(self) -> list[tuple[str, float]]:
        """Return the student's fields and the share of each."""
        if not self.heads:
            return [(LOGITS, 1.0)]
        each = self.heads_share / self.heads
        return [(LOGITS, 1 - self.heads_share), *((f"{HEADS}{head}", each) for head in range(self.heads))]

    def _soft(self, task: Task, field: str, weight: float | Schedule, name: str) -> Term:
        blank = cast(CTC, task).blank
        given: dict[str, Any] = {"teacher": LOGITS, "weight": weight, "name": name}
        if self.form == "guided":
            return bind(guided_ctc, field, **given, blank=blank)
        hyper: dict[str, Any] = {"temperature": self.temperature, "t_squared": self.t_squared, "class_reduction": "sum"}
        term = bind(soft_target_kl if self.form == "kl" else softened_mse, field, **given, **hyper)
        return term if self.frames == "all" else selected(term, Frames(blank, self.frames, self.around))


@dataclass(frozen=True)
class _Scaled:
    """One number or schedule times another."""

    weight: float | Schedule
    factor: float | Schedule

    def __call__(self, clock: Any) -> float:
        return resolve(self.factor, clock) * resolve(self.weight, clock)


def scaled(weight: float | Schedule, factor: float | Schedule) -> float | Schedule:
    """Return a weight times a number, or times a schedule.

    >>> scaled(0.5, 0.5)
    0.25
    """
    if factor == 1:
        return weight
    if callable(weight) or callable(factor):
        return _Scaled(weight, factor)
    return weight * factor
