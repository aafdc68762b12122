"""Knowledge of a teacher that runs again for every batch: the baseline that every report shows, and the source of books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bookkd.core.features import is_feature
from bookkd.core.fields import INPUT, LOGITS, FieldInfo
from bookkd.core.names import choose
from bookkd.knowledge.capture import Capture, shapes_of
from bookkd.knowledge.teacher import Teacher
from bookkd.losses import DenseTarget
from bookkd.tasks import Task, width_of

__all__ = ["LiveKnowledge"]


class LiveKnowledge:
    """Ask a teacher about each batch.

    Args:
        teacher: The network, ready to speak.
        task: Turns its output into fields; the student's will do.

    Fields inside of the network (`features/...`) are among what it says once `offer` has found their shapes.
    """

    def __init__(self, teacher: Teacher, task: Task) -> None:
        self.teacher = teacher
        self.task = task.of_teacher()
        self._inside: dict[str, FieldInfo] = {}
        self._captures: dict[tuple[str, ...], tuple[Teacher, Capture]] = {}
        self._forwards = 0
        self.width: int | None = None
        """Outputs of the network at a position, of which a task may keep fewer; None before it has spoken."""

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """What the task's networks say, and what was offered; every temperature can be honoured."""
        return {**self.task.field_infos, **self._inside}

    def offer(self, names: Sequence[str], batch: Mapping[str, Any]) -> None:
        """Say fields inside of the network, too.

        Args:
            names: Such as `features/stage3/mean`; others than `features/...` are passed over.
            batch: Of at least one sample, by which shapes are found.

        Raises:
            ConfigError: for a layer that the network has not, or that does not run.
        """
        inside = [name for name in dict.fromkeys(names) if is_feature(name) and name not in self._inside]
        if inside:
            capture, inputs = self._capture(inside), self.task.inputs(batch)
            shapes = shapes_of(capture, lambda: self.teacher(*inputs), self.task.given(batch))
            self._inside |= {name: FieldInfo(shape) for name, shape in shapes.items()}

    @property
    def constants(self) -> Mapping[str, torch.Tensor]:
        """What is known of the teacher once and for all, by name."""
        return self.teacher.constants

    def _capture(self, names: Sequence[str]) -> Capture:
        """Return what takes these fields, built once for each teacher that it is of: one that `knowing` has changed is another."""
        kept = self._captures.get(tuple(names))
        if kept is None or kept[0] is not self.teacher:
            teacher = self.teacher
            how: dict[str, Any] = {"layers": teacher.layers, "constants": teacher.constants, "role": "teacher"}
            kept = teacher, Capture(teacher.network, names, **how)
            self._captures[tuple(names)] = kept
        return kept[1]

    @property
    def teacher_forwards(self) -> int:
        """Samples passed through the teacher so far."""
        return self._forwards

    @property
    def cut(self) -> dict[str, int]:
        """What a book notes where the network says more than is kept, as an output layer that is padded does: `said` and `kept`."""
        info = self.fields.get(LOGITS)
        if info is None or not info.by_position or not info.shape or self.width is None or self.width <= info.shape[0]:
            return {}
        return {"said": self.width, "kept": info.shape[0]}

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the teacher on the batch's views.

        Args:
            batch: Needs `input`, and what else the task gives its networks.
            fields: The fields wanted; None for all.

        Returns:
            Field name -> `DenseTarget` in float32 (float64 stays), where `input` is; of `features/...` the tensor itself.
        """
        wanted = list(self.fields) if fields is None else [choose(name, self.fields, "field") for name in fields]
        # no_grad and not inference mode: the targets enter the graph of the student's loss.
        with torch.no_grad():
            output, inside = self._run(batch, [name for name in wanted if name in self._inside])
            said, self.width = self.task.fields(output, batch), width_of(output)
        self._forwards += len(batch[INPUT])
        # The student may be on another device than the teacher.
        device = batch[INPUT].device
        return {
            name: _full(inside[name]).to(device) if name in inside else DenseTarget(_full(said[name]).to(device))
            for name in wanted
        }

    def _run(self, batch: Mapping[str, Any], inside: Sequence[str]) -> tuple[Any, dict[str, torch.Tensor]]:
        inputs = self.task.inputs(batch)
        if not inside:
            return self.teacher(*inputs), {}
        return self._capture(inside)(lambda: self.teacher(*inputs), self.task.given(batch))


def _full(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
