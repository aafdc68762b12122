"""A term: a loss that knows the names of its inputs and carries its hyper-parameters; the one place that resolves schedules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from bookkd.core.check import finite
from bookkd.core.errors import ConfigError, DataError, UnknownNameError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, LOGITS, OWN, PARTNER_LABEL, STUDENT, check_field_name
from bookkd.core.names import choose, nearest
from bookkd.core.schedules import Clock, Schedule, resolve
from bookkd.losses import Claims, CombinedTarget, FullTarget, Loss, Target, as_target, claims_of

__all__ = ["Hyper", "Mask", "Term", "bind", "labelled", "masked", "scheduled", "selected", "weighted"]

Hyper = float | str | bool | Schedule
"""A hyper-parameter of a loss; a `Schedule` is resolved at every step."""

Mask = Callable[[Mapping[str, Any]], Tensor]
"""From a batch to a boolean tensor of its positions: where the term counts."""

Selection = Callable[[Target, Mapping[str, Any]], Tensor]
"""From (target, batch) to a boolean tensor of the positions: where the values of a term count; its denominator stays that of all."""

_TEACHER = "teacher"

Transform = Callable[[Tensor, Target, Mapping[str, Any]], tuple[Tensor, Target]]
"""From (student's logits, target, batch) to both as the loss is to see them."""


@dataclass(frozen=True)
class _Signature:
    positional: tuple[str, ...]
    required: int
    hyper: tuple[str, ...]
    required_hyper: tuple[str, ...]

    @property
    def takes_teacher(self) -> bool:
        return len(self.positional) > 1 and self.positional[1].startswith(_TEACHER)


@lru_cache(maxsize=256)
def _signature(loss: Loss) -> _Signature:
    kinds, named = inspect.Parameter, "a function whose every parameter has a name"
    try:
        parameters = inspect.signature(loss).parameters.values()
    except ValueError as error:
        do = "Wrap it in a function of your own."
        raise ConfigError(expected("loss", named, "no signature", where=_loss_name(loss), do=do)) from error
    for parameter in parameters:
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            raise ConfigError(expected("loss", named, str(parameter), where=_loss_name(loss)))
    positional = [p for p in parameters if p.kind is not kinds.KEYWORD_ONLY]
    hyper = [p for p in parameters if p.kind is kinds.KEYWORD_ONLY]
    return _Signature(
        tuple(p.name for p in positional),
        sum(p.default is kinds.empty for p in positional),
        tuple(p.name for p in hyper),
        tuple(p.name for p in hyper if p.default is kinds.empty),
    )


def _loss_name(loss: Loss) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


@dataclass(frozen=True)
class Term:
    """A loss bound to the fields and batch entries it reads; made by `bind`, which gives the defaults.

    Args:
        name: What logs call it.
        loss: `loss(student[, teacher], *batch entries, **hyper)`, see `bookkd.losses`.
        field: The student's field.
        teacher: The teacher's field; None for a loss whose second parameter is not named `teacher...`.
        batch: Keys of the batch, passed in this order behind the fields; an absent optional one gives None. One that begins with `own/`
            is a field of the method's own knowledge, which a connector has to read too; one that begins with `student/` is another field
            of the student's own, with its gradient.
        weight: Factor of the term in the objective.
        hyper: Hyper-parameters of the loss, each a value or a `Schedule`.
        mask: Where the term counts; None for every position of positive weight.
        transforms: Applied to both sides before the loss, in this order; see `objectives.transforms`.
        own: Whether `teacher` is a field of the student's own, as peers teach one another; taken without gradient.
        gradient: Whether one of the student's own is handed to the loss with its gradient after all, as two passes that are to agree.
        only: Where the values count, which are 0 elsewhere; unlike `mask` it leaves the denominator as it is, and looks at the target.
        beside: Further fields of the student's own: with `teacher` they are the members of one `CombinedTarget`, in equal parts
            unless a transform (`Combine`) says otherwise.
        over: Key of the batch with the weights of the term's own positions, where these are others than the task's, as the pixels of
            labels are beside the coarser grid that a teacher is matched on; None for the task's.
    """

    name: str
    loss: Loss
    field: str
    teacher: str | None
    batch: tuple[str, ...]
    weight: float | Schedule
    hyper: Mapping[str, Hyper]
    mask: Mask | None = None
    transforms: tuple[Transform, ...] = ()
    own: bool = False
    gradient: bool = False
    only: Selection | None = None
    beside: tuple[str, ...] = ()
    over: str | None = None

    def __post_init__(self) -> None:
        check_field_name(self.field)
        if self.teacher is not None:
            check_field_name(self.teacher)
        if not callable(self.weight):
            finite(self.weight, "weight", where=f"term {self.name}")
        for name in self.beside:
            check_field_name(name)
        if self.beside and (not self.own or self.gradient):
            wish, got = (
                "True, and `gradient` False, with fields beside the teacher's",
                f"{self.own} and {self.gradient}",
            )
            raise ConfigError(expected("own", wish, got, where=f"term {self.name}"))
        self._check_positional()
        self._check_hyper()
        if self.only is not None and self.claims.scope == "batch":
            do = "Use a loss that gives one value per position."
            where = f"term {self.name} relates the rows of a batch"
            raise ConfigError(expected("only", "no selection", type(self.only).__name__, where=where, do=do))
        if (self.transforms or self.own or self.only) and self.teacher is None:
            where = f"term {self.name} with transforms or own=True or a selection"
            raise ConfigError(expected(_TEACHER, "a field", None, where=where))
        if self.gradient and not self.own:
            do = "A teacher's fields have no gradient."
            raise ConfigError(expected("own", "True with gradient=True", False, where=f"term {self.name}", do=do))
        zeros = [type(each).__name__ for each in self.transforms if getattr(each, "leaves_zeros", False)]
        if zeros and self.claims.wants_full_support(self.hyper):
            got, where = f"{zeros[0]}, which leaves classes without any", f"term {self.name}"
            do = f"{_loss_name(self.loss)} is infinite there: take a share below 1 with rank 1, or another loss."
            raise ConfigError(
                expected("transforms", "ones that leave every class some probability", got, where=where, do=do)
            )

    @property
    def further(self) -> tuple[str, ...]:
        """The student's own fields that the loss reads beside its two sides."""
        return tuple(key.removeprefix(STUDENT) for key in self.batch if key.startswith(STUDENT))

    @property
    def claims(self) -> Claims:
        """What the loss declares."""
        return claims_of(self.loss)

    def _check_positional(self) -> None:
        signature, where = _signature(self.loss), f"term {self.name}"
        if signature.takes_teacher and self.teacher is None:
            do = 'Pass teacher="logits" or another field of the teacher.'
            raise ConfigError(expected(_TEACHER, "a field, since the loss takes one", None, where=where, do=do))
        if self.teacher is not None and not signature.takes_teacher:
            do = f"Leave it out, or name the loss's second parameter `{_TEACHER}`."
            raise ConfigError(expected(_TEACHER, "None, since the loss takes none", self.teacher, where=where, do=do))
        fields = 1 + signature.takes_teacher
        low, high = max(0, signature.required - fields), len(signature.positional) - fields
        if not low <= len(self.batch) <= high:
            names = ", ".join(signature.positional[fields:]) or "none"
            count = str(low) if low == high else f"{low} to {high}"
            raise ConfigError(expected("batch", f"{count} keys for the parameters {names}", self.batch, where=where))

    def _check_hyper(self) -> None:
        signature, where = _signature(self.loss), f"term {self.name}, loss {_loss_name(self.loss)}"
        for name in self.hyper:
            choose(name, signature.hyper, "hyper-parameter", where=where)
        absent = [name for name in signature.required_hyper if name not in self.hyper]
        if absent:
            raise ConfigError(expected("hyper", f"complete, with {', '.join(absent)}", sorted(self.hyper), where=where))

    def value(
        self,
        student_fields: Mapping[str, Tensor],
        targets: Mapping[str, Target | Tensor],
        batch: Mapping[str, Any],
        clock: Clock,
    ) -> Tensor:
        """Return the unweighted values of the loss: one per position, or one scalar where the scope is "batch".

        0 at positions where the target is silent; losses of scope "batch" take such rows as the target gives them.

        Args:
            student_fields: Fields of the student, by name.
            targets: Targets of the teacher, by field name.
            batch: The batch, see `core/fields.py`.
            clock: Where training is; schedules are resolved here.

        Raises:
            ConfigError: if a field is missing.
            DataError: if the batch lacks an entry that the loss cannot do without.
        """
        inputs: list[Any] = [self._look_up(self.field, student_fields, "student")]
        if self.teacher is not None:
            target = self._own(student_fields) if self.own else self._look_up(self.teacher, targets, _TEACHER)
            for transform in self.transforms:
                inputs[0], target = transform(inputs[0], as_target(target), batch)
            inputs.append(target)
        signature = _signature(self.loss)
        for key in self.batch:
            if key.startswith(STUDENT):
                given = self._look_up(key.removeprefix(STUDENT), student_fields, "student")
            else:
                given = targets.get(key) if key.startswith(OWN) else batch.get(key)
            if given is None and len(inputs) < signature.required:
                found = ", ".join(sorted(batch))
                raise DataError(expected("batch", f"one with `{key}`", f"the keys {found}", where=f"term {self.name}"))
            inputs.append(given)
        hyper = {name: resolve(given, clock) if callable(given) else given for name, given in self.hyper.items()}
        silent = inputs[1].silent() if self.teacher is not None and isinstance(inputs[1], FullTarget) else None
        if silent is None or self.claims.scope == "batch":
            return self.loss(*inputs, **hyper)
        return self.loss(*inputs, **hyper).masked_fill(silent, 0)

    def left_out(
        self, student_fields: Mapping[str, Tensor], targets: Mapping[str, Target | Tensor], batch: Mapping[str, Any]
    ) -> Tensor | None:
        """Return the positions whose values are set to 0, bool; None for none."""
        if self.only is None or self.teacher is None:
            return None
        target = self._own(student_fields) if self.own else self._look_up(self.teacher, targets, _TEACHER)
        return ~self.only(as_target(target.detach() if isinstance(target, Tensor) else target), batch)

    def _own(self, student_fields: Mapping[str, Tensor]) -> Target | Tensor:
        """Return what the student's own fields teach."""
        names = (self.teacher or "", *self.beside)
        said: list[Tensor] = [self._look_up(name, student_fields, _TEACHER) for name in names]
        said = said if self.gradient else [each.detach() for each in said]
        return said[0] if len(said) == 1 else CombinedTarget.of([as_target(each) for each in said])

    def _look_up(self, name: str, fields: Mapping[str, Any], side: str) -> Any:
        if name in fields:
            return fields[name]
        near = ", ".join(nearest(name, fields)[:5]) or "none"
        raise UnknownNameError(f"Unknown {side} field {name!r} (term {self.name}). Nearest: {near}.")


def bind(
    loss: Loss,
    field: str = LOGITS,
    *,
    teacher: str | None = None,
    batch: tuple[str, ...] = (),
    weight: float | Schedule = 1.0,
    name: str | None = None,
    mask: Mask | None = None,
    own: bool = False,
    gradient: bool = False,
    beside: tuple[str, ...] = (),
    over: str | None = None,
    **hyper: Hyper,
) -> Term:
    """Bind a loss to the names of its inputs, and check the names against the loss's own signature.

    Args:
        loss: See `Term`.
        field: The student's field.
        teacher: The teacher's field.
        batch: Keys of the batch.
        weight: Factor in the objective.
        name: What logs call it; the name of the loss by default.
        mask: Where the term counts.
        own: Whether `teacher` names a field of the student's own.
        gradient: Whether that field is taken with gradient.
        beside: Further ones, which teach together with it.
        over: Weights of the term's own positions, by key of the batch.
        **hyper: Hyper-parameters of the loss: every required one, and no other.

    Raises:
        UnknownNameError: if the loss has no such hyper-parameter; the nearest names are listed.
        ConfigError: if a required one is missing, or inputs and signature do not fit.

    >>> from bookkd.losses import cross_entropy
    >>> bind(cross_entropy, batch=("label",), mask=labelled, label_smoothing=0.1).name
    'cross_entropy'
    >>> bind(cross_entropy, batch=("label",), smoothing=0.1)
    Traceback (most recent call last):
    ...
    bookkd.core.errors.UnknownNameError: Unknown hyper-parameter 'smoothing' (term cross_entropy, loss cross_entropy). Nearest: smoothing_over, label_smoothing.
    """
    given, called = tuple(batch), name or _loss_name(loss)
    sides: dict[str, Any] = {"own": own, "gradient": gradient, "beside": beside, "over": over}
    return Term(called, loss, field, teacher, given, weight, dict(hyper), mask, **sides)


def weighted(term: Term, weight: float | Schedule) -> Term:
    """Return `term` with `weight` in place of its own.

    >>> from bookkd.core.schedules import Linear
    >>> from bookkd.losses import cross_entropy
    >>> weighted(bind(cross_entropy, batch=("label",), label_smoothing=0.0), Linear(0.0, 1.0)).weight
    Linear(start=0.0, end=1.0)
    """
    return replace(term, weight=weight)


def scheduled(term: Term, **hyper: Schedule) -> Term:
    """Return `term` with schedules in place of some of its hyper-parameters.

    >>> from bookkd.core.schedules import Linear
    >>> from bookkd.losses import cross_entropy
    >>> term = bind(cross_entropy, batch=("label",), label_smoothing=0.0)
    >>> scheduled(term, label_smoothing=Linear(0.1, 0.0)).hyper
    {'label_smoothing': Linear(start=0.1, end=0.0)}
    """
    return replace(term, hyper={**term.hyper, **hyper})


def masked(term: Term, mask: Mask) -> Term:
    """Return `term` counting only where `mask(batch)` is True, and where its own mask is.

    >>> from bookkd.losses import cross_entropy
    >>> term = masked(bind(cross_entropy, batch=("label",), label_smoothing=0.0), labelled)
    >>> term.mask is labelled
    True
    """
    return replace(term, mask=mask if term.mask is None else _Both(term.mask, mask))


def selected(term: Term, selection: Selection) -> Term:
    """Return `term` with the values 0 wherever `selection(target, batch)` is False, or its own is, and the same denominator.

    >>> from bookkd.losses import soft_target_kl
    >>> term = bind(soft_target_kl, teacher="logits", temperature=1.0, t_squared=True, class_reduction="sum")
    >>> selected(term, lambda target, batch: target.log_probabilities(1.0)[..., 0] < -0.7).only is None
    False
    """
    return replace(term, only=selection if term.only is None else _Both(term.only, selection))


@dataclass(frozen=True)
class _Both:
    """Two masks, or selections, at once; a class, since a nested function could not be pickled."""

    first: Callable[..., Tensor]
    second: Callable[..., Tensor]

    def __call__(self, *given: Any) -> Tensor:
        return self.first(*given) & self.second(*given)


def labelled(batch: Mapping[str, Any]) -> Tensor:
    """Return where the label is known: the mask of terms on labels, bool, of the labels' shape.

    Unknown is `IGNORE_LABEL` among classes and NaN among floating labels. A mixed view counts only if the partner's label is
    known too, as in `losses.cross_entropy`.

    >>> import torch
    >>> labelled({"label": torch.tensor([3, -1])})
    tensor([ True, False])
    """
    if batch.get(LABEL) is None:
        raise DataError(expected("batch", f"one with `{LABEL}`", f"the keys {', '.join(sorted(batch))}"))
    partner = batch.get(PARTNER_LABEL)
    return _known(batch[LABEL]) if partner is None else _known(batch[LABEL]) & _known(partner)


def _known(labels: Tensor) -> Tensor:
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE_LABEL
