"""Semantic segmentation: one class at every pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, TeacherOutputError, expected
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, LOGITS, PARTNER_LABEL, RATIO, SAMPLE, WEIGHT, FieldInfo
from bookkd.core.names import choose
from bookkd.core.schedules import Schedule
from bookkd.losses import DenseTarget, cross_entropy
from bookkd.objectives import Term, bind
from bookkd.tasks._outputs import found_logits
from bookkd.tasks.base import BaseTask
from bookkd.views import Pick, Replay, Views

__all__ = ["PIXELS", "Segmentation", "known_pixels"]

PIXELS = "pixels/"
"""Begins what losses see of every pixel, where the teacher is only asked about every stride-th: `pixels/logits`, `pixels/label`."""


def known_pixels(batch: Mapping[str, Any]) -> Tensor:
    """Return the pixels whose class is known, of mixed views the partner's too: the mask of terms on labels, bool [batch, height, width].

    >>> known_pixels({"pixels/label": torch.tensor([[[3, -1]]])})
    tensor([[[ True, False]]])
    """
    labels, partner = batch[PIXELS + LABEL], batch.get(PIXELS + PARTNER_LABEL)
    known: Tensor = labels != IGNORE_LABEL
    return known if partner is None else known & (partner != IGNORE_LABEL)


@dataclass(frozen=True)
class Segmentation(BaseTask):
    """Logits [batch, classes, height, width] of a network, and one class a pixel; void pixels (`IGNORE_LABEL`) weigh nothing.

    Losses see the class axis last. What the teacher says lies on a grid of one cell for `stride` x `stride` pixels (cells at the right
    and lower edge may be smaller), which is what a book keeps, at one `stride`-th squared of the bytes:

        logits [batch, ceil(height / stride), ceil(width / stride), classes]    on both sides; what the teacher is matched by
        pixels/logits [batch, height, width, classes]                           of the student; what labels are learnt by

    With `grid="mean"` a cell has the mean of its pixels' logits: every pixel takes part, and how they differ inside of a cell is lost,
    above all at the border of two objects. With "pick" it has the logits of its middle pixel, exactly, and the others are lost. The
    student's logits are brought to the grid in the same way, so that a student that says what the teacher says has no loss either way.

    A cell weighs the share of its pixels ("pick": of its middle pixel) whose class is known, so that void pixels teach nothing; an image
    of which nothing is known is taught by the teacher everywhere. `teach_void` lets the teacher speak of void pixels too.

    A network's output of another size (SegFormer's is a quarter) is brought to that of the view bilinearly.

    Args:
        class_names: Names of the classes, in the order of the class axis, at least two.
        stride: Pixels to one cell of the grid, along each axis.
        grid: "mean" of the logits of a cell, or "pick" of its middle pixel.
        teach_void: Whether the teacher is matched at pixels of no class.

    >>> task = Segmentation(("road", "sky"), stride=2)
    >>> batch = {"input": torch.zeros(1, 3, 4, 6), "label": torch.zeros(1, 4, 6, dtype=torch.long), "weight": torch.ones(1)}
    >>> seen = task.student(task.fields(torch.zeros(1, 2, 4, 6), batch))
    >>> {name: tuple(value.shape) for name, value in seen.items()}, task.counts(batch)
    ({'logits': (1, 2, 3, 2), 'pixels/logits': (1, 4, 6, 2)}, tensor([6]))
    """

    class_names: tuple[str, ...]
    stride: int = 1
    grid: Literal["mean", "pick"] = "mean"
    teach_void: bool = False

    name: ClassVar[str] = "segmentation"
    primary_metric: ClassVar[str] = "miou"

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        where = f"task {self.name}"
        if len(self.class_names) < 2:
            raise ConfigError(expected("class_names", "at least two names", list(self.class_names), where=where))
        at_least(self.stride, 1, "stride", where=where)
        choose(self.grid, ("mean", "pick"), "grid", where=where)

    @property
    def field_infos(self) -> Mapping[str, FieldInfo]:
        """One field, `logits`, of as many classes a cell of the grid."""
        return {LOGITS: FieldInfo((self.n_outputs,), by_position=True)}

    @property
    def noted(self) -> Mapping[str, Any]:
        """What a book notes beside its data: the grid that the teacher's word lies on."""
        return {"grid": {"stride": self.stride, "of": self.grid}}

    def as_noted(self, data: Mapping[str, Any], where: str) -> Self:
        """Return the task on the grid of a book.

        Args:
            data: What the book notes of its data.
            where: The book, for the error.

        Raises:
            ConfigError: for a grid other than the book's, where this task has one that is no default.
        """
        noted = data.get("grid")
        if not isinstance(noted, Mapping):
            return self
        theirs: dict[str, Any] = {"stride": int(noted["stride"]), "grid": str(noted["of"])}
        for name, value in theirs.items():
            if getattr(self, name) not in (value, getattr(type(self), name)):
                do = "Leave it out, or make a book of that grid."
                raise ConfigError(expected(name, f"{value}, as the book has", getattr(self, name), where=where, do=do))
        return replace(self, **theirs)

    def check_data(self, dataset: Any) -> None:
        """Refuse a data set whose first sample has a label that is no mask.

        Raises:
            ConfigError: for such a one.
        """
        first = dataset[0]
        label = first[1] if isinstance(first, tuple | list) and len(first) == 2 else None
        plain = IGNORE_LABEL if label is None else label
        if getattr(plain, "ndim", 0) != 2 and not (isinstance(plain, int) and plain == IGNORE_LABEL):
            got = f"a label of shape {list(plain.shape)}" if hasattr(plain, "shape") else f"label {label!r}"
            do = "Use a data set such as image-masks, whose labels are [height, width]."
            raise ConfigError(expected("data", "images with a mask each", got, where=f"task {self.name}", do=do))

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the cells of the grid of each image, int64 [batch]."""
        height, width = self._cells(batch)
        return torch.full((len(batch[INPUT]),), height * width, device=batch[INPUT].device)

    def most_positions(self, dataset: Any) -> int:
        """Return the cells of the grid of the largest view: that of the largest image, where the data set says `sizes`."""
        views: Views = getattr(dataset, "views", Views(None, 1))
        sizes = getattr(dataset, "sizes", None)
        largest = (
            0 if sizes is None else max(range(len(sizes)), key=lambda place: int(sizes[place][0] * sizes[place][1]))
        )
        whole = dataset.dataset if hasattr(dataset, "views") else dataset
        plain = Views(views.transform, views.n_views, views.seed)
        height, width = self._cells({INPUT: Replay(whole, plain, probe_share=0)[Pick(largest, 0)][INPUT]})
        return height * width

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the logits out of a network's output.

        Args:
            output: A tensor [batch, classes, height, width], an object with `.logits`, a mapping with `"logits"` or torchvision's
                `"out"`, or a tuple that begins with them.
            batch: The batch that went in.

        Returns:
            `logits` [batch, height, width, classes], of the view's size.

        Raises:
            TeacherOutputError: if the logits have another shape.
        """
        found, rows, classes = found_logits(output), len(batch[INPUT]), self.n_outputs
        if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[:2] != (rows, classes):
            got = (
                f"shape {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else f"a {type(output).__name__} without them"
            )
            do = "Build the network with the data set's number of classes."
            wish = f"[{rows}, {classes}, height, width]"
            raise TeacherOutputError(expected("logits", wish, got, where="output of a network", do=do))
        size = batch[INPUT].shape[-2:]
        if found.shape[-2:] != size:
            found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)
        return {LOGITS: found.permute(0, 2, 3, 1)}

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with labels and weights of the grid, and those of all pixels beside.

        A cell's label is that of its middle pixel.

        Raises:
            DataError: if a mask has another size than its view.
        """
        labels = self._labels(batch, LABEL)
        weights = batch[WEIGHT].to(labels.device)[:, None, None]
        found = {
            **batch,
            PIXELS + LABEL: labels,
            PIXELS + WEIGHT: weights.expand(labels.shape),
            LABEL: self._picked(labels),
        }
        known = labels != IGNORE_LABEL
        if PARTNER_LABEL in batch:
            partner = self._labels(batch, PARTNER_LABEL)
            found |= {PIXELS + PARTNER_LABEL: partner, PARTNER_LABEL: self._picked(partner)}
            known = known & (partner != IGNORE_LABEL)
        told = known | ~known.any(-1).any(-1)[:, None, None] | self.teach_void
        share = self._gridded(told.to(weights.dtype)[..., None])[..., 0]
        return {**found, WEIGHT: weights * share}

    def student(self, fields: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return logits on the grid, and those of all pixels beside."""
        found = dict(fields)
        for name, value in fields.items():
            if LOGITS in name.split("/"):
                found[name], found[PIXELS + name] = self._gridded(value), value
        return found

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the teacher says on the grid, [batch, cells, cells].

        Raises:
            TeacherOutputError: if the teacher says another number of cells than the grid has.
        """
        shape = (len(batch[INPUT]), *self._cells(batch))
        return {name: self._target(name, target, shape, batch) for name, target in targets.items()}

    def _target(self, name: str, target: Any, shape: tuple[int, int, int], batch: Mapping[str, Any]) -> Any:
        positions = tuple(target.positions)
        if positions == shape:
            return target
        if isinstance(target, DenseTarget) and positions == (shape[0], *batch[INPUT].shape[-2:]):
            return DenseTarget(self._gridded(target.logits))
        count = shape[0] * shape[1] * shape[2]
        if positions != (count,):
            do = "Give the task the `stride` that the book was made with, and the view its size."
            wish = f"{count} in this batch: {shape[1]} x {shape[2]} cells of stride {self.stride} an image"
            got = positions[0] if len(positions) == 1 else f"shape {list(positions)}"
            raise TeacherOutputError(expected(f"cells of {name}", wish, got, where="teacher", do=do))
        if isinstance(target, DenseTarget):
            return DenseTarget(target.logits.reshape(*shape, -1))
        return target.rows(torch.arange(count, device=batch[INPUT].device).reshape(shape))

    def of_teacher(self) -> Segmentation:
        """Return the task as a teacher's network answers for a book: the cells of all images, one after another."""
        return _Cells(**{each.name: getattr(self, each.name) for each in fields_of(self)})

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return cross-entropy at every pixel whose class is known."""
        return bind(
            cross_entropy,
            PIXELS + LOGITS,
            batch=(PIXELS + LABEL, PIXELS + PARTNER_LABEL, RATIO),
            weight=weight,
            name="cross_entropy",
            mask=known_pixels,
            over=PIXELS + WEIGHT,
            label_smoothing=label_smoothing,
        )

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of images as wholes.

        Raises:
            DataError: for any.
        """
        do = "Give a mask with each image, as the data set image-masks does."
        raise DataError(expected("labels", "one a pixel", f"shape {list(labels.shape)}", where=where, do=do))

    def _labels(self, batch: Mapping[str, Any], key: str) -> Tensor:
        given, size = batch.get(key), batch[INPUT].shape[-2:]
        wanted = (len(batch[INPUT]), *size)
        if given is None or (given.ndim == 1 and bool((given == IGNORE_LABEL).all())):
            return torch.full(wanted, IGNORE_LABEL, device=batch[INPUT].device)
        if tuple(given.shape) != wanted or given.is_floating_point():
            where = f"task {self.name}" + (f", sample {int(batch[SAMPLE][0])}" if SAMPLE in batch else "")
            got = f"{given.dtype} of shape {list(given.shape)}"
            do = "Return masks as torchvision.tv_tensors.Mask, so that a transform moves them with the image."
            raise DataError(expected(key, f"whole numbers [{', '.join(map(str, wanted))}]", got, where=where, do=do))
        return cast(Tensor, given)

    def _cells(self, batch: Mapping[str, Any]) -> tuple[int, int]:
        height, width = batch[INPUT].shape[-2:]
        return -(-height // self.stride), -(-width // self.stride)

    def _picked(self, values: Tensor) -> Tensor:
        """Return the middle pixel of each cell, of [batch, height, width, ...]."""
        if self.stride == 1:
            return values
        rows, columns = (
            (torch.arange(0, size, self.stride, device=values.device) + self.stride // 2).clamp_max(size - 1)
            for size in values.shape[1:3]
        )
        return values.index_select(1, rows).index_select(2, columns)

    def _gridded(self, values: Tensor) -> Tensor:
        """Return what a cell has, of [batch, height, width, channels]."""
        if self.stride == 1 or self.grid == "pick":
            return self._picked(values)
        pooled = F.avg_pool2d(values.permute(0, 3, 1, 2), self.stride, ceil_mode=True, count_include_pad=False)
        return pooled.permute(0, 2, 3, 1)


class _Cells(Segmentation):
    """What a teacher says for a book: `logits` [cells of all images, classes]."""

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {
            name: self._gridded(each).reshape(-1, self.n_outputs)
            for name, each in super().fields(output, batch).items()
        }

    def of_teacher(self) -> Self:
        return self
