"""Speech recognition: word and character errors, likelihood, calibration of symbols, and likeness to a teacher, by utterance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import LABEL, LABEL_LENGTH, LOGITS
from bookkd.core.names import require
from bookkd.evaluation._sums import SequenceSums
from bookkd.evaluation.decoding import beam_decode, greedy_decode
from bookkd.evaluation.intervals import Floats
from bookkd.evaluation.measures import Measures, bin_of, measured
from bookkd.losses import ctc_loss
from bookkd.losses.ctc import frames_needed

__all__ = ["TranscriptSums"]

_CHUNK_VALUES = 2**22


class TranscriptSums(SequenceSums):
    r"""Measures what a model says of utterances against their transcripts, and compares its frames with a teacher's.

        wer = (substitutions + deletions + insertions) / words of the transcripts        cer = the same by characters
        accuracy = share of utterances without a word error       nll = mean CTC loss of an utterance, nats, of those
            with frames enough for their transcript
        ece over equal bins of the confidence of each symbol that is decoded: its largest probability within its run of frames, against
            whether it stands in the transcript where the two are aligned with least errors
        blank_share = share of frames whose likeliest class is the blank
        agreement = share of frames with the teacher's likeliest class        teacher_kl = mean over frames of KL(p || q)

    Errors are counted by utterance, so that intervals are bootstrapped over whole utterances. Utterances without a transcript count for
    the figures of frames alone.

    Args:
        class_names: What each class stands for.
        blank: The class that stands for no symbol.
        separator: What stands between symbols in text.
        word_mark: What begins a word within symbols, such as "▁" of word pieces; a space takes its place.
        text: From the names of symbols to text, in place of both, such as the decoder of a tokenizer.
        beam: Transcripts that the decoder follows; 1 takes the likeliest path.
        bins: Bins of the calibration error.

    >>> sums = TranscriptSums(("-", "a", "b"), blank=0)
    >>> said = {"logits": 9 * torch.eye(3)[[1, 0, 1]]}
    >>> sums.add(said, {"label": torch.tensor([[1, 2]]), "label_length": torch.tensor([2])}, torch.tensor([3]))
    >>> {name: each.value for name, each in sums.measures(replicates=0).metrics.items() if name in ("wer", "cer")}
    {'wer': 1.0, 'cer': 0.5}

    Source: errors are counted by the package jiwer.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        blank: int,
        separator: str = "",
        word_mark: str = "",
        text: Callable[[Sequence[str]], str] | None = None,
        beam: int = 1,
        bins: int = 15,
    ) -> None:
        super().__init__(bins)
        self.class_names, self.blank, self.separator = tuple(class_names), blank, separator
        self.word_mark, self.text = word_mark, text
        self.beam = at_least(beam, 1, "beam", where="TranscriptSums")

    def add(
        self,
        said: Mapping[str, Tensor],
        seen: Mapping[str, Any],
        counts: Tensor,
        teacher: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take in some utterances.

        Args:
            said: The student's `logits` of all frames, one utterance behind another, [frames, classes].
            seen: The batch; its `label` are the symbols, int64 [utterances, most symbols], and `label_length` how many of them count.
            counts: Frames of each utterance, int64 [utterances].
            teacher: The teacher's `logits` of the same frames.

        Raises:
            DataError: for logits that are not finite.
            TeacherOutputError: if the teacher's logits have another shape; if it is there for some batches and for others not.
        """
        logits = said[LOGITS].detach()
        if not bool(torch.isfinite(logits).all()):
            raise DataError(expected("logits", "finite", "NaN or infinity", where="evaluation of utterances"))
        self._compare(logits, None if teacher is None else teacher[LOGITS])
        theirs = None if teacher is None else teacher[LOGITS].detach()
        for utterances, frames in _pieces(counts, logits.shape[-1]):
            log_q, kept = logits[frames].double().log_softmax(-1), counts[utterances]
            found = {"frames": kept.double().cpu().numpy()}
            found |= self._frames(log_q, kept, None if theirs is None else theirs[frames])
            part = {name: seen[name][utterances] for name in (LABEL, LABEL_LENGTH) if seen.get(name) is not None}
            for name, values in (found | self._transcripts(log_q, part, kept)).items():
                self._gather(name, values)

    def measures(self, *, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> Measures:
        """Return all metrics of what was taken in.

        Args:
            replicates: Bootstrap replicates over utterances; 0 for values alone.
            seed: Of the bootstrap.
            level: Share of the replicates inside an interval.

        Raises:
            DataError: if no utterance had a transcript.
        """
        sums = self._gathered()
        if not sums or not sums["known"].sum():
            raise DataError(expected("utterances", "at least one with a transcript", "none", where="evaluation"))
        return measured(
            _Statistic(sums),
            len(sums["known"]),
            class_names=(),
            replicates=replicates,
            seed=seed,
            level=level,
            absolute=("ece",) if sums["decoded"].any() else (),
        )

    def _frames(self, log_q: Tensor, counts: Tensor, teacher: Tensor | None) -> dict[str, Floats]:
        likeliest = log_q.argmax(-1)
        each = {"blank_share": (likeliest == self.blank).double()}
        if teacher is not None:
            log_p = teacher.to(log_q.device).double().log_softmax(-1)
            p = log_p.exp()
            each["agreement"] = (likeliest == log_p.argmax(-1)).double()
            each["teacher_kl"] = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
        parts = counts.tolist()
        return {
            name: np.array([float(part.sum()) for part in torch.split(value, parts)]) for name, value in each.items()
        }

    def _transcripts(self, log_q: Tensor, seen: Mapping[str, Any], counts: Tensor) -> dict[str, Floats]:
        """Return figures of each utterance, 0 where its transcript is not known."""
        lengths = seen.get(LABEL_LENGTH)
        known = torch.zeros(len(counts), dtype=torch.bool) if lengths is None else lengths.cpu() > 0
        names = ("words", "word_errors", "characters", "character_errors", "wrong", "spelt", "nll", "decoded")
        found = {name: np.zeros(len(counts)) for name in names}
        found |= {name: np.zeros((len(counts), self.bins)) for name in ("bin_confidence", "bin_right")}
        found["known"] = known.double().numpy()
        places = known.nonzero().flatten().tolist()
        if lengths is None or not places:
            return found
        wanted = [seen[LABEL][place][: int(lengths[place])].tolist() for place in places]
        frames = [each for each, keep in zip(torch.split(log_q, counts.tolist()), known.tolist(), strict=True) if keep]
        flat, kept = torch.cat(frames), counts.cpu()[known]
        if self.beam == 1:
            heard = greedy_decode(flat, kept, blank=self.blank)
        else:
            heard = beam_decode(flat, kept, blank=self.blank, width=self.beam)
        jiwer = require("jiwer", "speech")
        texts = [[self._text(each) for each in side] for side in (wanted, heard)]
        for kind, process in (("word", jiwer.process_words), ("character", jiwer.process_characters)):
            result = process(*texts)
            found[f"{kind}s"][places] = [len(each) for each in result.references]
            found[f"{kind}_errors"][places] = [_errors(each) for each in result.alignments]
        found["wrong"][places] = found["word_errors"][places] > 0
        found["nll"][places], found["spelt"][places] = self._nll(flat, seen, known, kept)
        symbols = jiwer.process_words(*[[" ".join(map(str, each)) for each in side] for side in (wanted, heard)])
        for place, path, line, said in zip(places, frames, symbols.alignments, heard, strict=True):
            confidence = _confidences(path, self.blank) if self.beam == 1 else np.zeros(0)
            if len(confidence):
                right = np.zeros(len(said))
                for chunk in line:
                    right[chunk.hyp_start_idx : chunk.hyp_end_idx] = chunk.type == "equal"
                bins = bin_of(confidence, self.bins)
                np.add.at(found["bin_confidence"][place], bins, confidence)
                np.add.at(found["bin_right"][place], bins, right)
                found["decoded"][place] = len(said)
        return found

    def _nll(self, flat: Tensor, seen: Mapping[str, Any], known: Tensor, counts: Tensor) -> tuple[Floats, Floats]:
        """Return the CTC loss of each utterance, and whether it has one: 0 where it has fewer frames than its transcript takes."""
        labels, lengths = (seen[name][known.to(seen[name].device)].to(flat.device) for name in (LABEL, LABEL_LENGTH))
        counts = counts.to(flat.device)
        spelt = frames_needed(labels, lengths) <= counts
        shares = ctc_loss(flat, labels, lengths * spelt, counts, blank=self.blank)
        each = [float(share.sum()) for share in torch.split(shares, counts.tolist())]
        return np.array(each), spelt.double().cpu().numpy()

    def _text(self, symbols: Sequence[int]) -> str:
        names = [self.class_names[symbol] for symbol in symbols]
        if self.text is not None:
            return self.text(names)
        joined = self.separator.join(names)
        return joined.replace(self.word_mark, " ").strip() if self.word_mark else joined


def _pieces(counts: Tensor, classes: int) -> Iterator[tuple[slice, slice]]:
    """Yield utterances and their frames in parts of at most 2^22 logits, or of one utterance: in float64 a whole pass takes twice its memory.

    >>> list(_pieces(torch.tensor([2, 1, 1]), 2**21))
    [(slice(0, 1, None), slice(0, 2, None)), (slice(1, 3, None), slice(2, 4, None))]
    """
    begin = start = end = 0
    for place, count in enumerate(counts.tolist()):
        if place > begin and (end + count - start) * classes > _CHUNK_VALUES:
            yield slice(begin, place), slice(start, end)
            begin, start = place, end
        end += count
    if len(counts):
        yield slice(begin, len(counts)), slice(start, end)


def _errors(alignment: Sequence[Any]) -> int:
    """Return substitutions, deletions and insertions of an utterance."""
    return sum(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in alignment
        if chunk.type != "equal"
    )


def _confidences(log_q: Tensor, blank: int) -> Floats:
    """Return the largest probability in each run of frames that says a symbol, float64 [symbols]."""
    top, path = log_q.max(-1)
    classes, runs = torch.unique_consecutive(path, return_counts=True)
    return np.array(
        [
            float(run.max().exp())
            for run, symbol in zip(torch.split(top, runs.tolist()), classes.tolist(), strict=True)
            if symbol != blank
        ]
    )


class _Statistic:
    """Counts of utterances [r, n] -> every metric; NaN where nothing was there to count."""

    def __init__(self, sums: dict[str, Floats]) -> None:
        self.sums = sums

    def __call__(self, counts: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        total = {name: counts @ values for name, values in self.sums.items()}

        def share(name: str, of: str) -> Floats:
            out = np.full(len(counts), np.nan)
            found: Floats = np.divide(total[name], total[of], out=out, where=total[of] > 0)
            return found

        found = {
            "wer": share("word_errors", "words"),
            "cer": share("character_errors", "characters"),
            "accuracy": 1 - share("wrong", "known"),
            "nll": share("nll", "spelt"),
        }
        total["apart"] = np.abs(total["bin_confidence"] - total["bin_right"]).sum(axis=1)
        found["ece"] = share("apart", "decoded")
        if self.sums["decoded"].any():  # a replicate in which nothing was decoded is not wrong about anything
            found["ece"] = np.nan_to_num(found["ece"])
        for name in ("blank_share", "agreement", "teacher_kl"):
            if name in total:
                found[name] = share(name, "frames")
        return found, {}
