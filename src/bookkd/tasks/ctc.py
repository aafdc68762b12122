"""Speech recognition by connectionist temporal classification: at every frame, the distribution of the symbol that is said, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, DataError, FidelityError, TeacherOutputError, expected
from bookkd.core.fields import FRAMES, IGNORE_LABEL, INPUT, LABEL, LABEL_LENGTH, LENGTH, SAMPLE, WEIGHT
from bookkd.core.names import choose
from bookkd.core.schedules import Schedule
from bookkd.core.subsampling import Subsampling, as_subsampling, frames_of
from bookkd.losses import DenseTarget, FullTarget, ctc_loss
from bookkd.objectives import Term, bind
from bookkd.tasks._positions import PositionTask

__all__ = ["CTC", "HEADS", "transcribed"]

HEADS = "heads/"
"""Begins the fields of intermediate layers that say logits of their own: `heads/0` and so on."""


def transcribed(batch: Mapping[str, Any]) -> Tensor:
    """Return the frames of utterances whose transcript is known: the mask of the label term, bool [frames].

    >>> transcribed({"label_length": torch.tensor([2, 0]), "frames": torch.tensor([1, 2])})
    tensor([ True, False, False])
    """
    known: Tensor = batch[LABEL_LENGTH] > 0
    return known.repeat_interleave(batch[FRAMES].to(known.device))


@dataclass(frozen=True)
class CTC(PositionTask):
    """Logits [batch, frames, classes] of a network that hears features [batch, input frames, ...] and their lengths.

    A record's frames are ceil(input frames / subsampling), or what `Convolutions` leave of them, in a book, in losses and in metrics
    alike; losses see the frames of all
    utterances of a batch one behind another, [frames, classes], and `frames`, how many each has. Labels are symbols, of as many as the
    transcript has; a transcript that begins with `IGNORE_LABEL`, or is none, is not known, and its utterance counts for no label term.

    A teacher that keeps another share of the frames is laid on the student's: of T teacher frames, student frame s of S reads frame
    floor((s + 1/2) T / S), or the mean of the probabilities of the two frames whose middles stand around (s + 1/2) T / S.

    Args:
        class_names: The symbols, the blank among them, in the order of the class axis.
        blank: The class that stands for no symbol.
        subsampling: Input frames to one of the network; or `Convolutions` that it begins with, also as a list of kernel, stride and
            padding of each.
        teacher_subsampling: Those of the teacher's network and book; None where it is the same.
        alignment: Of teacher frames where these differ: "nearest", or "average", which wants a dense target.
        reduction: What means are over, in every term: "utterances" (frames of one are added up), or "frames".
        separator: What stands between symbols in text: "" of letters, " " of words.
        word_mark: What begins a word within symbols, such as "▁" of word pieces; a space takes its place in text.

    >>> task = CTC(("-", "a", "b"), subsampling=2)
    >>> batch = {"input": torch.zeros(2, 5, 4), "length": torch.tensor([5, 2])}
    >>> task.counts(batch), task.fields(torch.zeros(2, 3, 3), batch)["logits"].shape
    (tensor([3, 1]), torch.Size([4, 3]))
    """

    class_names: tuple[str, ...]
    blank: int = 0
    subsampling: Subsampling = 1
    teacher_subsampling: Subsampling | None = None
    alignment: Literal["nearest", "average"] = "nearest"
    reduction: Literal["utterances", "frames"] = "utterances"
    separator: str = ""
    word_mark: str = ""

    name: ClassVar[str] = "ctc"
    primary_metric: ClassVar[str] = "wer"
    _hint: ClassVar[str] = (
        "Give the task the network's `subsampling` (a teacher's: `teacher_subsampling`) and its classes."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            wish = "at least two names that differ, the blank's among them"
            raise ConfigError(expected("class_names", wish, list(self.class_names), where=self.name))
        between(self.blank, 0, len(self.class_names) - 1, "blank", where=self.name)
        for name in ("subsampling", "teacher_subsampling"):
            rule = getattr(self, name)
            if rule is not None or name == "subsampling":
                object.__setattr__(self, name, as_subsampling(rule, name, where=self.name))
        choose(self.alignment, ("nearest", "average"), "alignment", where=self.name)
        choose(self.reduction, ("utterances", "frames"), "reduction", where=self.name)
        if self.alignment == "average" and self.teacher_subsampling not in (None, self.subsampling):
            object.__setattr__(self, "sparse", False)  # of two frames a sparse target knows different classes

    @classmethod
    def of(cls, dataset: Any) -> Self:
        """Return the task of the data set's symbols, blank and separator, and of the subsampling that it was made for.

        Raises:
            ConfigError: for a data set of something else.
        """
        known: dict[str, Any] = {
            name: getattr(dataset, name, None) for name in ("class_names", "blank", "separator", "subsampling")
        }
        if any(value is None for value in known.values()):
            do = "Use a data set such as bookkd.zoo.SpeechDataset."
            raise ConfigError(
                expected("data", "speech with transcripts", type(dataset).__name__, where=cls.name, do=do)
            )
        return cls(**known, word_mark=getattr(dataset, "word_mark", ""))

    @property
    def _n_outputs(self) -> int:
        return len(self.class_names)

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the frames of each utterance, int64 [batch]."""
        found: Tensor = frames_of(batch[LENGTH], self.subsampling)
        return found

    def most_positions(self, dataset: Any) -> int:
        """Return the most frames that an utterance of a data set has."""
        return int(frames_of(super().most_positions(dataset), self.subsampling))

    def fields(self, output: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the logits out of a network's output, frame by frame, and those of intermediate layers.

        Args:
            output: A tensor [batch, frames, classes], an object with `.logits`, or a mapping with `"logits"` and, where the network has
                them, `"heads/0"` and so on, of the same shape.
            batch: The batch that went in.

        Returns:
            `logits`, and `heads/<i>`, all [frames, classes].

        Raises:
            TeacherOutputError: if logits have another shape.
        """
        found = super().fields(output, batch)
        if isinstance(output, Mapping):
            heads = {name: value for name, value in output.items() if str(name).startswith(HEADS)}
            found |= {name: self._flat(value, batch, f"field {name}") for name, value in heads.items()}
        return found

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with one weight for each frame, transcripts as they are, and `frames`.

        Raises:
            DataError: naming the first utterance of which no frame is kept, or whose label is no transcript.
        """
        counts, given = self.counts(batch), batch.get(LABEL)
        least = int(counts.min())
        if least < 1:
            wish = f"at least 1, by {self.rule}"
            do = "Leave the utterance out, or use a network that keeps more frames."
            raise DataError(expected("frames", wish, least, where=_name(batch, int(counts.argmin())), do=do))
        if given is None or given.ndim == 1:
            _refuse_labels(given, batch)
            labels, lengths = counts.new_zeros((len(counts), 0)), counts.new_zeros(len(counts))
        else:
            labels, lengths = given, batch[LABEL_LENGTH]
            if bool((lengths < 1).any()):
                place = int((lengths < 1).nonzero()[0])
                do = "Leave the utterance out, or give its transcript as one IGNORE_LABEL where it is not known."
                raise DataError(expected("transcript", "at least one symbol", "none", where=_name(batch, place), do=do))
            lengths = lengths * (labels[:, 0] != IGNORE_LABEL)
        kept = self._kept(batch, int(counts.max()), counts.device)
        return {**batch, LABEL: labels, LABEL_LENGTH: lengths, WEIGHT: self._spread(batch, kept), FRAMES: counts}

    def divisors(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the weights, or of each frame its share of its utterance: what is added up is then the number of utterances."""
        weights, counts = self.weights(batch), batch[FRAMES].to(batch[WEIGHT].device)
        return weights if self.reduction == "frames" else weights / counts.repeat_interleave(counts)

    def targets(self, targets: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the teacher says at the student's frames.

        Raises:
            TeacherOutputError: if the teacher has another number of frames than `teacher_subsampling` says.
            FidelityError: for a target that is not dense, where frames are averaged.
        """
        theirs = self.of_teacher().counts(batch)
        total = int(theirs.sum())
        for name, target in targets.items():
            if tuple(target.positions) != (total,):
                got = int(target.positions[0]) if len(target.positions) == 1 else f"shape {list(target.positions)}"
                do = "Give the task the teacher's `teacher_subsampling`."
                wish = f"{total} in this batch, by {self.of_teacher().rule}"
                raise TeacherOutputError(expected(f"frames of {name}", wish, got, where="teacher", do=do))
        if self.teacher_subsampling in (None, self.subsampling):
            return targets
        laid = _laid(self.counts(batch), theirs, average=self.alignment == "average")
        return {name: self._at(target, laid, name) for name, target in targets.items()}

    def _at(self, target: Any, laid: tuple[Tensor, ...], name: str) -> Any:
        if len(laid) == 1:
            return target.rows(laid[0])
        if not isinstance(target, FullTarget):
            got = type(target).__name__
            do = 'Use alignment="nearest", or make the book with the codec dense or int8.'
            raise FidelityError(expected(name, "dense, to be averaged over frames", got, where=self.name, do=do))
        parts = [target.rows(rows).log_probabilities(1.0) for rows in laid]
        return DenseTarget(torch.logaddexp(*parts).log_softmax(-1))

    def of_teacher(self) -> Self:
        """Return the task with the teacher's share of frames."""
        if self.teacher_subsampling is None:
            return self
        return replace(self, subsampling=self.teacher_subsampling, teacher_subsampling=None)

    def label_term(self, *, weight: float | Schedule, label_smoothing: float) -> Term:
        """Return the likelihood of the transcripts, of utterances that have one.

        Raises:
            ConfigError: for label smoothing, which transcripts without alignment have none of.
        """
        if label_smoothing:
            raise ConfigError(expected("label_smoothing", "0", label_smoothing, where=f"task {self.name}"))
        names = (LABEL, LABEL_LENGTH, FRAMES, SAMPLE)
        return bind(ctc_loss, batch=names, weight=weight, name="ctc", mask=transcribed, blank=self.blank)

    def check_labels(self, labels: Any, where: str) -> None:
        """Refuse labels of utterances as wholes, unless all are hidden.

        Raises:
            DataError: for any other.
        """
        do = "Give the transcripts with the data set."
        raise DataError(expected("labels", "symbols", f"shape {list(labels.shape)}", where=where, do=do))

    def check_utterances(self, dataset: Any, transform: Any, *, transcripts: bool) -> None:
        """Refuse utterances that a view leaves too few frames of; of data sets and transforms that say their lengths.

        Args:
            dataset: Its `lengths` are frames of the input, and `needed` frames that the transcripts take.
            transform: Of the views; its `shortest` says how few frames it leaves.
            transcripts: Whether anybody reads these: one frame is enough where nobody does.

        Raises:
            DataError: naming the first such utterance.
        """
        lengths, shortest = getattr(dataset, "lengths", None), getattr(transform, "shortest", None)
        if lengths is None or (transform is not None and shortest is None):
            return
        heard = lengths if shortest is None else np.array([shortest(int(each)) for each in lengths])
        needed = getattr(dataset, "needed", None) if transcripts else None
        least = np.maximum(np.ones_like(heard), 0 if needed is None else needed)
        kept = frames_of(heard, self.subsampling)
        bad = np.flatnonzero(kept < least)
        if len(bad):
            row, told = int(bad[0]), "" if needed is None else " for its transcript"
            wish = f"at least {int(least[row])}{told} in every view, by {self.rule}"
            do = "Leave such utterances out, draw slower speeds, or use a network that keeps more frames."
            where = f"{getattr(dataset, 'name', 'data')}, sample {row}; {len(bad)} of {len(heard)}"
            raise DataError(expected("frames", wish, int(kept[row]), where=where, do=do))

    def _length(self, batch: Mapping[str, Any]) -> int:
        return int(frames_of(int(batch[INPUT].shape[1]), self.subsampling))

    @property
    def rule(self) -> str:
        """How many frames a network keeps, in words for an error."""
        return f"subsampling {self.subsampling}"

    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        raise NotImplementedError("frames have no labels of their own")


def _laid(counts: Tensor, theirs: Tensor, *, average: bool) -> tuple[Tensor, ...]:
    """Return the teacher's row for each of the student's frames, int64 [frames]; of an average, both rows.

    >>> _laid(torch.tensor([2, 1]), torch.tensor([4, 2]), average=False)
    (tensor([1, 3, 5]),)
    >>> _laid(torch.tensor([2, 1]), torch.tensor([4, 2]), average=True)
    (tensor([0, 2, 4]), tensor([1, 3, 5]))
    """
    first = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum()), device=counts.device) - first.repeat_interleave(counts)
    mine, other = counts.repeat_interleave(counts), theirs.repeat_interleave(counts)
    start = (theirs.cumsum(0) - theirs).repeat_interleave(counts)
    # In whole numbers: floor((s + 1/2) T / S), and the same moved by half a frame.
    middle = (2 * within + 1) * other
    if not average:
        return (start + torch.div(middle, 2 * mine, rounding_mode="floor"),)
    low = torch.div(middle - mine, 2 * mine, rounding_mode="floor")
    last = other - 1
    return start + low.clamp_min(0), start + torch.minimum(low + 1, last)


def _refuse_labels(given: Tensor | None, batch: Mapping[str, Any]) -> None:
    """Refuse one label an utterance, which is none of a transcript: `IGNORE_LABEL` stands where there is none."""
    if given is not None and bool((given != IGNORE_LABEL).any()):
        place = int((given != IGNORE_LABEL).nonzero()[0])
        do = "Give a tensor of symbols, or IGNORE_LABEL where the transcript is not known."
        raise DataError(expected("label", "a transcript", given[place].item(), where=_name(batch, place), do=do))


def _name(batch: Mapping[str, Any], place: int) -> str:
    return f"sample {int(batch[SAMPLE][place])}" if SAMPLE in batch else f"utterance {place}"
