"""Deep interactive learning: assistants teach a student as an ensemble, and the student teaches back.

What it does: with assistants k = 1..K of logits a_k, student's logits s, labels y, soft(z) = softmax(z / tau), at every position

    q    = sum_k w_k soft(a_k), or softmax of the mean of logits over tau,
    L_s  = (1 - alpha) CE(y, s) + alpha tau^2 KL(q || soft(s)),
    L_k  = (1 - beta) CE(y, a_k) + beta tau^2 KL(soft(s) || soft(a_k)),

each side without gradient where it teaches. This class is the live loop: pass `learn` a `Cohort` of the student and then the
assistants, best after a warm-up on labels; all step at once, from the weights before the step. By rounds, with one network in memory and
every target in a book, it is `bookkd.pipelines.rounds`, which takes `taught` and `fed_back` from here.
When to use: sequence labelling, or any task of classes, where several networks are to be trained and a small one is to be kept.
Parameters: `assistants` 3, `temperature` 2, `alpha` and `beta` 0.5 (the card's defaults to test; the paper's are not known);
`ensemble` averages probabilities; `weights` of the assistants, on the simplex. `ramp_epochs` E weighs the feedback by
exp(-5 (1 - min(e, E) / E)^2) in epoch e, since a weak student that teaches early lowers its assistants. `convex` False leaves the
labels at weight 1; preset `mutual`, one assistant at tau 1 with alpha = beta = 1, is `dml` of two networks.
What it costs: K + 1 passes and updates a step; at deployment the student alone.
What it clashes with: diversity. Feedback makes the assistants alike, and then the ensemble is worth no more than one of them; rounds
record it and stop the feedback below a bound. With alpha = beta = 1 nobody sees a label, and all agree on anything. Speech
(task ctc) is not served: frames have no labels by which rounds could measure assistants and their diversity; `dml` serves it live.
Source: reconstructed. Lin, Wei, Lin, Liu, Liao, "Learning from Music to Visual Storytelling of Shots: A Deep Interactive Learning
Mechanism", ACM Multimedia 2020, doi 10.1145/3394171.3413985, of which only the abstract was read: it names assistants, their
ensemble, soft targets and the feedback, and no formula. The equations are those of Hinton et al. and DML; none of the paper's results
are claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from bookkd.core.check import at_least, between, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.schedules import Complement, GaussianRamp, Schedule
from bookkd.losses import soft_target_kl
from bookkd.methods._parts import check_idle, check_temperatures
from bookkd.methods.base import BaseMethod, Card, Method
from bookkd.methods.bookkd import BookKD
from bookkd.methods.dml import peer_logits
from bookkd.methods.supervised import Supervised
from bookkd.methods.vanilla_kd import VanillaKD
from bookkd.objectives import Combine, Objective, Term, bind, transformed
from bookkd.tasks import Task

__all__ = ["DIL"]


@dataclass(frozen=True)
class DIL(BaseMethod):
    """Train a student and its assistants together; pass `learn` a `bookkd.learning.Cohort` of the student, then the assistants.

    Args:
        assistants: K, at least 1.
        temperature: tau, above 0, of both directions.
        alpha: Weight of the ensemble's word for the student, above 0 to 1.
        beta: Weight of the student's word for each assistant, 0 to 1; with 0 assistants learn from labels alone.
        ensemble: Average the assistants' "probability" or "logit".
        weights: Of the assistants: "uniform", or one number each, not negative, brought to sum 1.
        ramp_epochs: Epochs in which beta rises to its value; 0 has it there from the start.
        convex: Give the labels what alpha and beta leave; False gives them weight 1.

    Raises:
        ConfigError: for values out of range, or another number of weights than of assistants.
    """

    assistants: int = 3
    temperature: float = 2.0
    alpha: float = 0.5
    beta: float = 0.5
    ensemble: Literal["probability", "logit"] = "probability"
    weights: Literal["uniform"] | tuple[float, ...] = "uniform"
    ramp_epochs: int = 0
    convex: bool = True

    name: ClassVar[str] = "dil-seq2seq"
    tasks: ClassVar[tuple[str, ...]] = (
        "causal-lm",
        "classification",
        "multi-label",
        "segmentation",
        "seq2seq",
        "tagging",
    )
    card: ClassVar[Card] = Card(
        "Assistants teach a student, which teaches back",
        "Lin et al., ACM Multimedia 2020, doi 10.1145/3394171.3413985 (abstract only)",
        "labels; several networks, live or by rounds of books",
        "reconstructed",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mutual": {"assistants": 1, "temperature": 1.0, "alpha": 1.0, "beta": 1.0, "convex": False},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        at_least(self.assistants, 1, "assistants", where=where)
        check_temperatures(self, "temperature")
        positive(between(self.alpha, 0, 1, "alpha", where=where), "alpha", where=where)
        between(self.beta, 0, 1, "beta", where=where)
        at_least(self.ramp_epochs, 0, "ramp_epochs", where=where)
        check_idle(self)
        given: object = self.weights
        if isinstance(given, str) and given != "uniform":
            do = "Give numbers: nobody measures peers while they learn."
            raise ConfigError(expected("weights", "uniform or numbers", given, where=where, do=do))
        weights = Combine(self.ensemble, self.weights).weights
        if not isinstance(weights, str) and len(weights) != self.assistants:
            wish = f"one for each of {self.assistants} assistants"
            raise ConfigError(expected("weights", wish, list(weights), where=where))
        object.__setattr__(self, "weights", weights)

    def idle(self) -> Mapping[str, str]:
        """Return the options that play no part beside others."""
        return {"ramp_epochs": "beta 0"} if self.beta == 0 else {}

    @property
    def cohort(self) -> int:
        """The student and its assistants."""
        return 1 + self.assistants

    def objective(self, task: Task) -> Objective:
        """Return the student's terms, then those of each assistant; terms of weight 0 are left out."""
        return Objective(tuple(self._terms(task)))

    def taught(self) -> BookKD:
        """Return how the student of a round learns from a book of its assistants: plain distillation of several teachers."""
        return BookKD(
            temperature=self.temperature,
            kd_weight=self.alpha,
            ce_weight=1 - self.alpha if self.convex else 1.0,
            label_smoothing=0.0,
            ensemble=self.ensemble,
            weights=self.weights,
            learn_scale=False,
        )

    def fed_back(self, share: float = 1.0) -> Method:
        """Return how an assistant learns from a book of the student, its weight beta times `share`; with 0 from labels alone."""
        beta = self.beta * share
        if beta == 0:
            return Supervised()
        return VanillaKD(temperature=self.temperature, kd_weight=beta, ce_weight=1 - beta if self.convex else 1.0)

    def _terms(self, task: Task) -> Iterator[Term]:
        places = range(1, 1 + self.assistants)
        yield from self._labels(task, 0, 1 - self.alpha if self.convex else 1.0)
        first, *others = (peer_logits(place) for place in places)
        yield self._soft(0, first, self.alpha, "ensemble_to_0", tuple(others))
        beta: float | Schedule = GaussianRamp(self.beta, self.ramp_epochs) if self.ramp_epochs else self.beta
        rest: float | Schedule = Complement(beta) if callable(beta) else 1 - beta
        for place in places:
            yield from self._labels(task, place, rest if self.convex else 1.0)
            if self.beta > 0:
                yield self._soft(place, peer_logits(0), beta, f"peer_0_to_{place}")

    def _labels(self, task: Task, peer: int, weight: float | Schedule) -> Iterator[Term]:
        if weight != 0:
            labels = task.label_term(weight=weight, label_smoothing=0.0)
            yield replace(labels, field=labels.field.replace(LOGITS, peer_logits(peer)), name=f"{labels.name}_{peer}")

    def _soft(self, peer: int, teacher: str, weight: float | Schedule, name: str, beside: tuple[str, ...] = ()) -> Term:
        hyper: dict[str, Any] = {"temperature": self.temperature, "t_squared": True, "class_reduction": "sum"}
        own: dict[str, Any] = {"teacher": teacher, "own": True, "beside": beside}
        term = bind(soft_target_kl, peer_logits(peer), weight=weight, name=name, **own, **hyper)
        combine = Combine(self.ensemble, self.weights)
        # Equal parts of probabilities are what an ensemble is anyway.
        return transformed(term, combine) if beside and combine != Combine() else term
