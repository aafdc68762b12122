"""Knowledge that was written down once: a book, read without any teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.book import (
    Book,
    ClassArray,
    Decoded,
    FieldPlan,
    Plan,
    Positions,
    RaggedArray,
    Said,
    SampledArray,
    SparseArray,
    TeacherInfo,
)
from bookkd.core.check import unique
from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import (
    COUNTS,
    INPUT,
    LOGITS,
    PROBE_HASH,
    PROBE_PROJECTIONS,
    PROBE_TAKEN,
    SAMPLE,
    VIEW,
    FieldInfo,
)
from bookkd.core.names import choose
from bookkd.core.protocols import Knowledge
from bookkd.knowledge.base import Teacherless
from bookkd.losses import BakedTarget, ClassTarget, CombinedTarget, DenseTarget, SampledTarget, SparseTarget, Target
from bookkd.views import check_probes

__all__ = ["StoredKnowledge", "as_knowledge", "member_fields"]

_PROBES = (PROBE_HASH, PROBE_PROJECTIONS)
_COUNTS_DIFFER = (
    "Was it padded, or cut at another length? Of speech, give the task the `teacher_subsampling` of the book's teacher."
)


class StoredKnowledge(Teacherless):
    """Look up what a book says about each batch: one vectorised gather, addressed by (sample, view).

    Where a batch carries probes of its views, they are compared with the book's, so that a record is never used for an
    input that the teacher did not see. A book of several teachers (`members/<i>/logits`) also answers for `logits`: all of
    its teachers as one `CombinedTarget`. Its fields are the book's, without the probes.

    Args:
        book: An open book, its path or its address.
        teachers: Names or places of the teachers to read, of a book that keeps each one's logits; None for all. One alone is read
            as if the book were its own.

    Raises:
        ConfigError: for a place or name that the book has not, or has twice; or if it keeps its teachers' word together.
    """

    def __init__(self, book: Book | str | Path, teachers: Sequence[str | int] | None = None) -> None:
        self.book = book if isinstance(book, Book) else Book(book)
        members = member_fields(self.book.plan)
        chosen = _places(self.book, members, teachers)
        left_out = [name for place, name in enumerate(members) if place not in chosen]
        self.teachers: tuple[TeacherInfo, ...] = tuple(self.book.plan.teachers[place] for place in chosen)
        """Who is read, in the order of `teachers`."""
        fields = {
            name: _info(plan, self.book.fidelity.get(name))
            for name, plan in self.book.fields.items()
            if name not in (*_PROBES, *left_out)
        }
        self._probed = all(name in self.book.fields for name in _PROBES)
        self.members = [members[place] for place in chosen] if members else []
        if self.members and LOGITS not in fields:
            fields[LOGITS] = _joint([fields[name] for name in self.members])
        super().__init__(fields)

    @property
    def constants(self) -> dict[str, Tensor]:
        """What the book keeps of the teacher once and for all, by name; of several teachers where one alone is read."""
        found = dict(self.book.constants)
        if len(self.teachers) == 1:
            mine = f"members/{self.book.plan.teachers.index(self.teachers[0])}/"
            found |= {name.removeprefix(mine): array for name, array in found.items() if name.startswith(mine)}
        return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Read the records of the whole batch.

        Args:
            batch: Needs `sample` and `view`, int64 [batch], best kept on the CPU; probes in it are checked.
            fields: The fields wanted; None for all.

        Returns:
            Field name -> float32 tensor for `features/...`; else `DenseTarget` in the stored precision, or the `SparseTarget`, `SampledTarget` or `ClassTarget` that
            its codec left, where `input` is (else on the CPU).

        Raises:
            ViewMismatchError: if a view in the batch is not the one that the teacher saw.
            BookMismatchError: if the batch has `counts`, and a sequence in it has more or fewer positions than the teacher saw.
            UnknownNameError: if the book has no such field.
        """
        wanted = list(self._fields) if fields is None else [choose(name, self._fields, "field") for name in fields]
        samples, views = batch[SAMPLE].cpu().numpy(), batch[VIEW].cpu().numpy()
        self.check(batch)
        combined = LOGITS in wanted and LOGITS not in self.book.fields
        read = self.book.read(samples, views, self._stored(wanted))
        if batch.get(COUNTS) is not None:
            self._check_counts(read, np.asarray(batch[COUNTS]), samples)
        device = batch[INPUT].device if INPUT in batch else torch.device("cpu")
        said: dict[str, Any] = {
            name: _features(read[name], device) if is_feature(name) else self._target(name, read[name], device)
            for name in read
        }
        if combined:
            accuracies = [teacher.accuracy for teacher in self.teachers]
            each = [said[name] for name in self.members]
            said[LOGITS] = each[0] if len(each) == 1 else CombinedTarget.of(each, accuracies)
        return {name: said[name] for name in wanted}

    def read_of(self, fields: Sequence[str]) -> list[str]:
        """Return what is read of the book where `fields` are asked for: theirs, and the probes; names it has not are left out."""
        names = self._stored([name for name in fields if name in self._fields])
        return [*names, *(name for name in _PROBES if self._probed)]

    def _stored(self, wanted: Sequence[str]) -> list[str]:
        """Return the fields of the book behind those that are wanted: `logits` may be those of all its teachers."""
        stored = [name for name in wanted if name in self.book.fields]
        combined = LOGITS in wanted and LOGITS not in self.book.fields
        return stored + ([name for name in self.members if name not in stored] if combined else [])

    def _target(self, name: str, read: Said, device: torch.device) -> Target:
        # Of positions, those of all records, one after another, as tasks of sequences present the student's.
        flat = read.values if isinstance(read, RaggedArray | Positions) else read
        target = _target(flat, device, self.book.fidelity.get(name))
        baked = self.book.fields[name].baked
        if baked is None or isinstance(target, SampledTarget | ClassTarget):
            return target
        only = float(baked["temperature"])
        return target.promising(only) if isinstance(target, SparseTarget) else BakedTarget(target, only)

    def _check_counts(
        self, read: Mapping[str, Said], counts: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]
    ) -> None:
        """Refuse sequences that have another number of positions than the teacher saw, before they are laid end to end."""
        for said in read.values():
            if not isinstance(said, RaggedArray | Positions):
                continue
            wrong = np.flatnonzero(said.counts != counts)
            if len(wrong):
                row = int(wrong[0])
                where, do = f"{self.book.path}, sample {int(samples[row])}", _COUNTS_DIFFER
                wish = f"{int(said.counts[row])}, as the book has"
                raise BookMismatchError(expected("positions", wish, int(counts[row]), where=where, do=do))

    def check(self, batch: Mapping[str, Any]) -> None:
        """Compare the probes that the batch carries with the book's; a batch or book without probes passes."""
        taken = batch.get(PROBE_TAKEN)
        if taken is None or not self._probed or not bool(taken.any()):
            return
        rows = taken.cpu().numpy().nonzero()[0]
        keys = [key for key in (SAMPLE, VIEW, PROBE_TAKEN, PROBE_HASH, PROBE_PROJECTIONS, INPUT) if key in batch]
        # The view goes along, since its dtype sets how exact the comparison is.
        probed = {key: batch[key][rows].cpu() for key in keys}
        stored = self.book.read(probed[SAMPLE].numpy(), probed[VIEW].numpy(), _PROBES)
        versions = self.book.plan.views.get("versions", {})
        check_probes(
            probed,
            np.asarray(stored[PROBE_HASH]),
            np.asarray(stored[PROBE_PROJECTIONS]),
            recipe_versions=versions,
            where=str(self.book.path),
        )


def as_knowledge(given: Any) -> Knowledge | None:
    """Return knowledge as it is, a book or its path or address as that of the book, and None as None.

    Raises:
        ConfigError: for what is none of these, such as a network.
    """
    if isinstance(given, Book | str | Path):
        return StoredKnowledge(given)
    if given is not None and not hasattr(given, "targets"):
        do = "Pass StoredKnowledge(book), a book or its path, or LiveKnowledge(teacher, task)."
        raise ConfigError(expected("knowledge", "a book or a live teacher", f"a {type(given).__name__}", do=do))
    return cast(Knowledge | None, given)


def member_fields(plan: Plan) -> list[str]:
    """Return the fields of a plan that hold each teacher's logits, in the order of its teachers; empty for one teacher."""
    names = [f"members/{place}/{LOGITS}" for place in range(len(plan.teachers))]
    return names if names and all(name in plan.fields for name in names) else []


def _places(book: Book, members: Sequence[str], wanted: Sequence[str | int] | None) -> list[int]:
    """Return the places of the teachers to read."""
    names, where = [teacher.name for teacher in book.plan.teachers], str(book.path)
    if wanted is None:
        return list(range(len(names)))
    found = [_place(each, names, where) for each in wanted]
    unique([str(place) for place in found], "teachers", where=where)
    if not found or (len(found) < len(names) and not members):
        wish = "at least one" if not found else "all of the book, which keeps what they say together"
        raise ConfigError(expected("teachers", wish, list(wanted), where=where, do="Leave them out to read all."))
    return found


def _place(wanted: str | int, names: Sequence[str], where: str) -> int:
    if isinstance(wanted, int):
        if not 0 <= wanted < len(names):
            raise ConfigError(expected("teachers", f"places from 0 to {len(names) - 1}", wanted, where=where))
        return wanted
    choose(wanted, names, "teacher", where=where)
    if names.count(wanted) > 1:
        places = [place for place, name in enumerate(names) if name == wanted]
        raise ConfigError(expected("teachers", f"places where a name is there twice, {places}", wanted, where=where))
    return names.index(wanted)


def _joint(infos: Sequence[FieldInfo]) -> FieldInfo:
    """Return what several teachers' logits can be together: no more than each of them can."""
    if len(infos) == 1:
        return infos[0]
    promised = [set(info.temperatures) for info in infos if info.temperatures]
    return FieldInfo(
        infos[0].shape,
        any(info.sparse for info in infos),
        tuple(sorted(set.intersection(*promised))) if promised else (),
        linear=any(info.linear for info in infos),
        hard=any(info.hard for info in infos),
        by_position=infos[0].by_position,
    )


def _info(plan: FieldPlan, measured: Any) -> FieldInfo:
    codec = plan.codec
    return FieldInfo(
        codec.decoded_shape(plan.shape),
        codec.sparse,
        tuple(plan.promised),
        linear=codec.linear,
        hard=codec.hard,
        measured=measured if isinstance(measured, Mapping) else {},
        by_position=plan.positions is not None,
    )


def _target(
    read: Decoded, device: torch.device, measured: Any
) -> DenseTarget | SparseTarget | SampledTarget | ClassTarget:
    def tensor(array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    if isinstance(read, SparseArray):
        indices = tensor(read.indices.astype(np.int64))
        values, mass = tensor(read.values), tensor(read.log_tail_mass)
        kept = _numbers(measured, "unpromised", "kept_mass")
        return SparseTarget(values, indices, mass, read.temperatures, read.n_classes, kept)
    if isinstance(read, SampledArray):
        weights = read.counts.to_padded(fill=0).astype(np.float32) / np.float32(read.draws)
        noise = _numbers(measured, "temperatures", "gradient_error").get(read.temperature)
        classes = tensor(read.classes.to_padded(fill=0))
        return SampledTarget(classes, tensor(weights), read.temperature, read.n_classes, noise)
    if isinstance(read, ClassArray):
        return ClassTarget(tensor(read.classes.astype(np.int64)), read.n_classes)
    return DenseTarget(tensor(read))


def _features(read: Any, device: torch.device) -> Tensor:
    """Return what was taken inside of the teacher, as live knowledge gives it."""
    return torch.from_numpy(np.ascontiguousarray(read, dtype=np.float32)).to(device, non_blocking=True)


def _numbers(measured: Any, group: str, figure: str) -> dict[float, float]:
    """Return temperature -> a figure of an edition, which may hold anything there."""
    try:
        return {float(at): float(entry[figure]) for at, entry in measured[group].items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}
