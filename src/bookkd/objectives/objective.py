"""An objective: a weighted sum of terms whose value does not depend on how a batch is split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bookkd.core.check import unique
from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import PARTNER_LABEL, TEACHER
from bookkd.core.schedules import Clock, Steps, resolve
from bookkd.losses import LOSSES, ClassTarget, SampledTarget, SparseTarget, Target, cross_entropy
from bookkd.losses.targets import computing_dtype
from bookkd.objectives._chunks import by_chunks, part_of, rows_of_chunk
from bookkd.objectives.connectors import Connector
from bookkd.objectives.terms import Term

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    r"""loss = sum_t w_t (sum_i v_ti m_ti) / (sum_i m_ti), over terms t and positions i.

    v are the values of a term's loss, m the weights of the positions (0 outside the term's mask), w the weight of the
    term. Numerators and denominators are added up over micro-batches and ranks before the division: call `totals` for
    every part first, then `sums` for each part and `loss` with the added totals. A task whose denominators are others than the sum of
    the weights (utterances in place of frames) gives them to `totals`.

    Args:
        terms: At least one, with names that differ.
        connectors: Trained parts beside the student, whose output fields terms may bind; with names that differ.
    """

    terms: tuple[Term, ...]
    connectors: tuple[Connector, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError(expected("terms", "at least one", self.terms, where="objective"))
        unique([term.name for term in self.terms], "terms", where="objective", do="Give bind(..., name=...).")
        unique([connector.name for connector in self.connectors], "connectors", where="objective")
        made = [name for connector in self.connectors for name in connector.outputs]
        unique(made, "outputs of connectors", where="objective")

    @property
    def relational(self) -> bool:
        """Whether a term relates the rows of a batch, so that batches must be whole and unmasked."""
        return any(term.claims.scope == "batch" for term in self.terms)

    def needs(self) -> dict[str, tuple[float, ...]]:
        """Return the teacher's fields, each with the temperatures at which the losses will ask for it.

        A `Steps` schedule adds all of its values; any other takes values that nobody can list, see `dense_only`.
        """
        found: dict[str, set[float]] = {}
        for term in self.terms:
            if term.teacher is not None and not term.own:
                asked = found.setdefault(term.teacher, set())
                temperature = term.hyper.get("temperature")
                if isinstance(temperature, int | float):
                    asked.add(float(temperature))
                elif isinstance(temperature, Steps):
                    asked.update(map(float, temperature.values))
        for name in self._connected():
            found.setdefault(name, set())
        return {name: tuple(sorted(asked)) for name, asked in found.items()}

    def constants(self) -> tuple[str, ...]:
        """Return what connectors must know of the teacher once and for all."""
        return tuple(dict.fromkeys(name for connector in self.connectors for name in connector.constants))

    def _connected(self) -> list[str]:
        """Return the teacher's fields that connectors read."""
        read = [name for connector in self.connectors for name in connector.fields]
        return [name.removeprefix(TEACHER) for name in read if name.startswith(TEACHER)]

    def features(self) -> tuple[str, ...]:
        """Return the fields inside of the student that terms and connectors read, in the order in which they do."""
        made = {name for connector in self.connectors for name in connector.outputs}
        read = [name for connector in self.connectors for name in connector.fields]
        for term in self.terms:
            read += [term.field, *term.further, *((term.teacher or "", *term.beside) if term.own else ())]
        return tuple(dict.fromkeys(name for name in read if is_feature(name) and name not in made))

    def dense_only(self) -> tuple[str, ...]:
        """Return the teacher's fields that a term cannot read from a sparse target.

        That is where its loss or a transform wants every class, and where its temperature moves through more values than a
        target promises.
        """
        fields = {
            term.teacher
            for term in self.terms
            if term.teacher is not None
            and not term.own
            and (not term.claims.sparse or term.transforms or _moves(term.hyper.get("temperature")))
        } | set(self._connected())
        return tuple(sorted(fields))

    def nonlinear(self) -> tuple[str, ...]:
        """Return the teacher's fields that a term reads from a sparse target, but not linearly: draws would bias it."""
        found = {
            term.teacher
            for term in self.terms
            if term.teacher is not None and not term.own and (not term.claims.linear or term.only is not None)
        }
        return tuple(sorted(found - set(self.dense_only())))

    def hard(self) -> tuple[str, ...]:
        """Return the teacher's fields of which every term looks at the likeliest class alone."""
        read = [term for term in self.terms if term.teacher is not None and not term.own]
        whole = {term.teacher for term in read if not term.claims.hard or term.transforms}
        return tuple(sorted({term.teacher for term in read if term.teacher is not None} - whole))

    def at(self, clock: Clock) -> Objective:
        """Return the terms that weigh something now, and the connectors that they read; all of them where none does.

        What weighs nothing need not be read or worked out, and infinity times 0 is no number. A term of the number 0 is a figure for the
        log, and stays.
        """
        idle = [resolve(term.weight, clock) == 0 for term in self.terms]
        terms = tuple(term for term, no in zip(self.terms, idle, strict=True) if not no or not callable(term.weight))
        if all(idle) or len(terms) == len(self.terms):
            return self
        read = {name for term in terms for name in (term.field, term.teacher, *term.beside, *term.further) if name}
        connectors: list[Connector] = []
        for connector in reversed(self.connectors):  # one may read what another before it has made
            if read.intersection(connector.outputs):
                connectors.insert(0, connector)
                read.update(connector.fields)
        return replace(self, terms=terms, connectors=tuple(connectors))

    def refuse_split(self, parts: int) -> None:
        """Refuse to divide a batch over `parts` micro-batches or ranks where a term relates its rows.

        Raises:
            ConfigError: naming the term.
        """
        for term in self.terms:
            if parts > 1 and term.claims.scope == "batch":
                do = "Use one micro-batch on one rank, or a loss that gives one value per position."
                where = f"term {term.name} relates the rows of a batch"
                raise ConfigError(expected("parts", "1", parts, where=where, do=do))

    def totals(self, batch: Mapping[str, Any], weights: Tensor) -> Tensor:
        """Return sum_i m_ti of each term; needs no student, so that parts and ranks can add them up first.

        Args:
            batch: The batch, read by the masks of the terms.
            weights: Weight of each position, not negative, floating, shape [...]; of terms with `over` those are the batch's.

        Returns:
            Shape [terms].

        Raises:
            ConfigError: if a term of batch scope meets positions of unequal weight.
        """
        return torch.stack([self._weights(term, batch, weights).sum() for term in self.terms])

    def sums(
        self,
        student_fields: Mapping[str, Tensor],
        targets: Mapping[str, Target | Tensor],
        batch: Mapping[str, Any],
        weights: Tensor,
        clock: Clock,
    ) -> Tensor:
        """Return sum_i v_ti m_ti of each term, before its own weight; with gradient.

        Positions of weight 0 reach neither the value nor any gradient, even where they are infinite or NaN.

        Args:
            student_fields: Fields of the student, by name.
            targets: Targets of the teacher, by field name.
            batch: The batch.
            weights: As in `totals`.
            clock: Where training is.

        Returns:
            Shape [terms].
        """
        return torch.stack([self._sum(term, student_fields, targets, batch, weights, clock) for term in self.terms])

    def loss(self, sums: Tensor, totals: Tensor, clock: Clock) -> Tensor:
        """Return sum_t w_t sums_t / totals_t, a scalar; a term whose total is 0 contributes exactly 0.

        Args:
            sums: From `sums`, of one part or added over parts, shape [terms].
            totals: From `totals`, added over every part of the optimizer step, shape [terms].
            clock: Where training is; scheduled weights are resolved here.
        """
        means = sums / torch.where(totals > 0, totals, 1).to(sums.dtype)
        # Factors stay Python numbers: a tensor of them would wait for its copy to the device at every step.
        pairs = zip(means.unbind(), self.terms, strict=True)
        return torch.stack([mean * resolve(term.weight, clock) for mean, term in pairs]).sum()

    def _weights(self, term: Term, batch: Mapping[str, Any], weights: Tensor) -> Tensor:
        weights = weights if term.over is None else batch[term.over]
        kept = weights.to(computing_dtype(weights.dtype))
        if term.mask is not None:
            mask = term.mask(batch)
            if mask.shape != weights.shape:
                got = f"shape {list(mask.shape)}"
                raise ConfigError(expected("mask", f"of shape {list(weights.shape)}", got, where=f"term {term.name}"))
            kept = kept.masked_fill(~mask, 0)
        if term.claims.scope == "batch" and bool((kept != kept.flatten()[:1]).any() | (kept <= 0).any()):
            raise ConfigError(
                expected(
                    "weights",
                    "equal and above 0 at every position",
                    "a mask or unequal weights",
                    where=f"term {term.name} relates the rows of a batch",
                    do="Drop the last incomplete batch, and give this term no mask.",
                )
            )
        return kept

    def _sum(
        self,
        term: Term,
        student_fields: Mapping[str, Tensor],
        targets: Mapping[str, Target | Tensor],
        batch: Mapping[str, Any],
        weights: Tensor,
        clock: Clock,
    ) -> Tensor:
        kept = self._weights(term, batch, weights)
        if term.claims.scope == "batch":
            return term.value(student_fields, targets, batch, clock) * kept.sum()
        skipped, left_out = kept == 0, term.left_out(student_fields, targets, batch)
        silenced = skipped if left_out is None else skipped | left_out
        sides = [term.field, *term.further, *([term.teacher] if term.gradient and term.teacher else [])]
        student_fields = {
            **student_fields,
            **{name: _shielded(student_fields[name], silenced) for name in sides if name in student_fields},
        }
        value = _value(term, student_fields, targets, batch, clock)
        if value.shape != kept.shape:
            got = f"shape {list(value.shape)}"
            raise ConfigError(expected("loss", f"one value for each of {list(kept.shape)}", got, where=term.name))
        return (value.masked_fill(silenced, 0) * kept).sum()


def _value(
    term: Term,
    student_fields: Mapping[str, Tensor],
    targets: Mapping[str, Target | Tensor],
    batch: Mapping[str, Any],
    clock: Clock,
) -> Tensor:
    """Return the values of a pointwise term; where it has many positions of many classes, a few at a time."""
    student = student_fields.get(term.field)
    alone = not (term.gradient or term.further) and term.over is None
    whole = term.claims.scope != "position" or not alone or _picks(term, targets, batch)
    rows = None if student is None or whole else rows_of_chunk(student)
    if student is None or rows is None:
        return term.value(student_fields, targets, batch, clock)
    count = len(student)
    own = (term.teacher, *term.beside) if term.own else ()
    others = {name: value for name, value in student_fields.items() if name in own}
    read = batch if term.transforms else {name: batch[name] for name in term.batch if name in batch}

    def evaluate(piece: Tensor, part: slice) -> Tensor:
        fields = {**part_of(others, part, count), term.field: piece}
        return term.value(fields, part_of(targets, part, count), part_of(read, part, count), clock)

    return by_chunks(evaluate, student, rows)


def _picks(term: Term, targets: Mapping[str, Target | Tensor], batch: Mapping[str, Any]) -> bool:
    """Say whether a loss takes a few classes of the logits alone: it goes by positions itself, in one pass each way.

    That is so of the package's own losses, see `losses/_picked.py`, unless the few are all that there are; and of plain labels.
    """
    if term.loss is cross_entropy:
        return term.hyper.get("label_smoothing") == 0 and batch.get(PARTNER_LABEL) is None
    target = None if term.teacher is None or term.own or term.transforms else targets.get(term.teacher)
    few = (
        isinstance(target, SampledTarget | ClassTarget)
        or term.claims.hard
        or (isinstance(target, SparseTarget) and target.k < target.n_classes)
    )
    return few and term.claims.sparse and term.loss in LOSSES.values()


def _moves(temperature: object) -> bool:
    return callable(temperature) and not isinstance(temperature, Steps)


def _shielded(student: Tensor, skipped: Tensor) -> Tensor:
    """Return `student` with the gradient of skipped positions set to 0 on its way back.

    Masking the loss is not enough: inside it 0 times infinity is NaN on the way back.
    """
    if not student.requires_grad or student.shape[: skipped.ndim] != skipped.shape:
        return student
    if skipped.device.type == "cpu" and not skipped.any():  # elsewhere it would wait for the device to know
        return student
    spread = skipped.reshape((*skipped.shape, *[1] * (student.ndim - skipped.ndim)))
    view = student.view_as(student)
    view.register_hook(lambda gradient: gradient.masked_fill(spread, 0))  # type: ignore[no-untyped-call]
    return view
