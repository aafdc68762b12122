"""The student's own past as its teacher: the checkpoint that did best in validation, in memory or written down as a book."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bookkd.book import Book, BookWriter, Codec
from bookkd.core.errors import BookMismatchError, CheckpointError, ConfigError, expected
from bookkd.core.fields import LABEL, LOGITS, OWN, PARTNER_LABEL, RATIO
from bookkd.core.names import choose
from bookkd.knowledge.base import Teacherless
from bookkd.knowledge.live import LiveKnowledge
from bookkd.knowledge.stored import StoredKnowledge
from bookkd.knowledge.teacher import Teacher
from bookkd.knowledge.writing import plan_book, write_units
from bookkd.losses import DenseTarget
from bookkd.tasks import Task
from bookkd.views import Replay, Views
from bookkd.zoo import weights_digest

__all__ = ["PastSelf", "PriorKnowledge", "SelfChapters", "Surroundings"]

_FIELD = OWN + LOGITS
_CHAPTERS = "chapters"


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What a run learns from, and where: for handlers that write books of their own.

    Args:
        dataset: The samples.
        views: How they are seen.
        folder: Of the run; None where nothing is kept.
        whole: Whether every sample is learnt from, in its own row.
    """

    dataset: Any
    views: Views
    folder: Path | None
    whole: bool = True


class PriorKnowledge(Teacherless):
    """What stands in for a teacher that is not there yet: the labels themselves, or nothing at all.

    Gives the field `own/logits`.

    Args:
        task: Owns the shapes.
        before: "labels" puts all on the known class, so that smoothing by it is none; "uniform" gives every class as much that may be said.
    """

    def __init__(self, task: Task, *, before: Literal["labels", "uniform"]) -> None:
        info = task.field_infos[LOGITS]
        super().__init__({_FIELD: info})
        self.task = task
        self.before = choose(before, ("labels", "uniform"), "before", where="prior of a student")
        self.n_classes = info.shape[-1]

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the prior of every position."""
        return {_FIELD: DenseTarget(self.prior(batch))}

    def prior(self, batch: Mapping[str, Any]) -> Tensor:
        """Return its logits, [positions, classes]; of a mixed view in the ratio of its two labels."""
        seen = self.task.batch(batch)
        labels: Tensor = seen[LABEL]
        if self.before == "uniform":
            row = torch.zeros(self.n_classes, device=labels.device)
            row[list(self.task.masked)] = -torch.inf
            return row.expand(*labels.shape, self.n_classes)
        shares = self._ones(labels)
        if seen.get(PARTNER_LABEL) is not None:
            ratio = seen[RATIO].to(shares.dtype).unsqueeze(-1)
            shares = ratio * shares + (1 - ratio) * self._ones(seen[PARTNER_LABEL])
        return shares.log()

    def _ones(self, labels: Tensor) -> Tensor:
        made = torch.zeros(*labels.shape, self.n_classes, device=labels.device)
        return made.scatter_(-1, labels.clamp_min(0).unsqueeze(-1), 1.0)


class PastSelf(PriorKnowledge):
    """A copy of the student as it was when validation was best, asked about the same batch without dropout.

    Until validation has improved once it is the prior.

    Args:
        learner: The student; copied when it first improves.
        task: Owns the shapes.
        before: See `PriorKnowledge`.
    """

    def __init__(self, learner: nn.Module, task: Task, *, before: Literal["labels", "uniform"]) -> None:
        super().__init__(task, before=before)
        self._learner = learner
        self.network: nn.Module | None = None

    @property
    def digest(self) -> str | None:
        """blake3 of the copy's weights; None before there is one."""
        return None if self.network is None else weights_digest(self.network)

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what the copy says about the batch, without gradient."""
        if self.network is None:
            return super().targets(batch, fields)
        with torch.no_grad():
            return {_FIELD: DenseTarget(self.network(batch)[LOGITS])}

    def on(self, event: str, run: Any) -> None:
        """Take the student as it is, where it has improved."""
        if event == "validation_improved":
            self.take(run.learner)

    def take(self, learner: nn.Module) -> None:
        """Become a copy of the student as it is now."""
        if self.network is None:
            self.network = copy.deepcopy(learner).requires_grad_(False).eval()
        else:
            self.network.load_state_dict(learner.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the copy."""
        return {"network": None if self.network is None else dict(self.network.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        if state["network"] is None:
            self.network = None
            return
        self.take(self._learner)
        if self.network is not None:
            self.network.load_state_dict(state["network"])


class SelfChapters(PriorKnowledge):
    """A book by the student as it was when validation was best, written anew each time that it improves; no copy in memory.

    Books stand in the folder of the run, `chapters/epoch-<n>`: the newest, and the one before it, which an older checkpoint may ask
    for. One that is not complete is never read: a run that was killed while it was written does the epoch again, and goes on with it.
    Until validation has improved once it is the prior. What a chapter costs stands in the record of its epoch, as `chapter_seconds`
    and `chapter_forwards`: a pass of the student, as the copy in memory makes at every step, is none of a teacher.

    Args:
        task: Owns the shapes.
        before: See `PriorKnowledge`.
        codec: How logits become bytes.
    """

    def __init__(self, task: Task, *, before: Literal["labels", "uniform"], codec: Codec) -> None:
        super().__init__(task, before=before)
        self.codec = codec
        self.chapter: int | None = None
        """Epoch after which the book was written; None before there is one."""
        self.book: StoredKnowledge | None = None
        self._logged: dict[str, float] = {}

    def logged(self) -> dict[str, float]:
        """Return what the chapter cost that was written since this was asked; nothing where none was."""
        found, self._logged = self._logged, {}
        return found

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Read what the book says about the batch."""
        if self.book is None:
            return super().targets(batch, fields)
        return {_FIELD: self.book.targets(batch, [LOGITS])[LOGITS]}

    def on(self, event: str, run: Any) -> None:
        """Refuse a run that keeps no books, open the chapter of one that is gone on with, and write the next after an improvement."""
        if event == "run_start":
            folder = self._folder(run)
            if self.chapter is not None:
                self.book = _opened(folder / _name(self.chapter))
        elif event == "validation_improved":
            self._write(run)

    def state_dict(self) -> dict[str, Any]:
        """Return which chapter is read."""
        return {"chapter": self.chapter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back; the book is opened when the run starts."""
        self.chapter = state["chapter"]

    def _folder(self, run: Any) -> Path:
        place: Surroundings | None = run.surroundings
        where, do = "mode chapter", "Pass out, a folder for the run, to `learn`; or use mode live."
        if place is None or place.folder is None:
            raise ConfigError(
                expected("out", "a folder, for the books of the student's past", None, where=where, do=do)
            )
        if not place.whole:
            raise ConfigError(expected("rows", "all of the data set's", "some of another book's", where=where, do=do))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            do = "Use mode live with several devices."
            raise ConfigError(expected("devices", "1", dist.get_world_size(), where=where, do=do))
        return place.folder / _CHAPTERS

    def _write(self, run: Any) -> None:
        place, folder, started = run.surroundings, self._folder(run), time.perf_counter()
        learner, epoch = run.learner, run.epoch
        options = {} if learner.preprocess is None else {"preprocess": learner.preprocess}
        device = next(learner.parameters()).device
        student = copy.deepcopy(learner.student)
        teacher = Teacher(student, name=f"student after epoch {epoch}", device=device, amp=False, **options)
        plan = plan_book(teacher, place.dataset, place.views, self.task, codec=self.codec, temperatures=(1.0,))
        plan = replace(plan, batch_size=run.training.batch_size)
        path, knowledge = folder / _name(epoch), LiveKnowledge(teacher, self.task)
        try:
            writer = BookWriter(path, plan)
        except BookMismatchError:  # begun by a run that was killed, which came to other weights in this epoch
            shutil.rmtree(path)
            writer = BookWriter(path, plan)
        with writer:
            written = write_units(writer, knowledge, Replay(place.dataset, place.views), run.training.batch_size, 0)
            seconds = round(time.perf_counter() - started, 3)
            cost = {"seconds": seconds, "teacher_forwards": knowledge.teacher_forwards, "records": written}
            writer.finish(cost)
        self._logged = {"chapter_seconds": seconds, "chapter_forwards": knowledge.teacher_forwards}
        # Only now: what is read is complete.
        before, self.chapter, self.book = self.chapter, epoch, _opened(path)
        for old in folder.iterdir():
            if old.is_dir() and old.name not in (_name(epoch), None if before is None else _name(before)):
                shutil.rmtree(old)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def _opened(path: Path) -> StoredKnowledge:
    if not path.exists():
        do = "Start again: delete the run's folder, or let `learn` do it with overwrite."
        raise CheckpointError(
            expected("chapter", "the book that the checkpoint reads", "nothing", where=str(path), do=do)
        )
    return StoredKnowledge(Book(path))
