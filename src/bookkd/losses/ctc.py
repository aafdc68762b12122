"""Connectionist temporal classification: transcripts without alignment, and losses that speech students learn from beside it.

Frames of all utterances stand one after another, [frames, classes]; `counts` says how many of them each utterance has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bookkd.core.check import between, positive
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.losses._pair import check_student, dense_only, kl
from bookkd.losses._picked import log_probabilities_of
from bookkd.losses.claims import claims
from bookkd.losses.drawn import SampledTarget
from bookkd.losses.targets import DenseTarget, Target, as_target, computing_dtype, likeliest

__all__ = ["check_transcripts", "consistency", "ctc_loss", "frames_needed", "guided_ctc", "view_consistency"]


def frames_needed(labels: Tensor, label_lengths: Tensor) -> Tensor:
    """Return the fewest frames that spell each transcript: one a symbol, and one between two that are equal.

    >>> frames_needed(torch.tensor([[1, 1, 2], [1, 2, 2]]), torch.tensor([3, 2]))
    tensor([4, 2])
    """
    there = torch.arange(labels.shape[1], device=labels.device) < label_lengths[:, None]
    return label_lengths + (there[:, 1:] & (labels[:, 1:] == labels[:, :-1])).sum(1)


def check_transcripts(
    labels: Tensor, label_lengths: Tensor, counts: Tensor, *, blank: int, n_classes: int, names: Tensor | None = None
) -> None:
    """Refuse transcripts that no path of their utterance's frames spells; those of length 0 are not known, and pass.

    Args:
        labels: Symbols, padded, int64 [utterances, most symbols].
        label_lengths: Symbols of each, int64 [utterances].
        counts: Frames of each, int64 [utterances].
        blank: The class that stands for no symbol.
        n_classes: Number of classes, the blank among them.
        names: Number of each utterance, for the error; its place where None.

    Raises:
        ConfigError: for a length above the width of the labels.
        DataError: naming the first utterance whose symbols are no classes, or are the blank; or that has fewer frames than symbols,
            with one more for each symbol that repeats the one before it.

    >>> check_transcripts(torch.tensor([[1, 1]]), torch.tensor([2]), torch.tensor([2]), blank=0, n_classes=3)
    Traceback (most recent call last):
    ...
    bookkd.core.errors.DataError: Expected `frames` to be at least 3, for 2 symbols and 1 repeats, got 2 (utterance 0). \
Leave it out (the option `drop` of the speech readers), or use a network that keeps more frames.
    """
    there = torch.arange(labels.shape[1], device=labels.device) < label_lengths[:, None]
    wrong = there & ((labels < 0) | (labels >= n_classes) | (labels == blank))
    needed = frames_needed(labels, label_lengths)
    short = counts.to(labels.device) < needed
    too_long = label_lengths > labels.shape[1]
    bad = wrong.any(1) | (short & (label_lengths > 0)) | too_long
    # One wait for the device for all of them: a symbol out of range would end the process there without a message.
    if not bool(bad.any()):
        return
    place = int(bad.nonzero()[0])
    where = _named(names, place)
    if bool(too_long[place]):
        wish = f"at most {labels.shape[1]}, the width of the labels"
        raise ConfigError(expected("label_lengths", wish, int(label_lengths[place]), where=where))
    if bool(wrong[place].any()):
        symbol = int(labels[place][wrong[place]][0])
        wish = f"from 0 to {n_classes - 1}, and not the blank {blank}"
        do = "Check the symbols and the blank of the task."
        raise DataError(expected("symbol", wish, symbol, where=where, do=do))
    symbols = int(label_lengths[place])
    again = int(needed[place]) - symbols
    do = "Leave it out (the option `drop` of the speech readers), or use a network that keeps more frames."
    wish = f"at least {symbols + again}, for {symbols} symbols and {again} repeats"
    raise DataError(expected("frames", wish, int(counts[place]), where=where, do=do))


@claims(scope="sequence", zero_at_teacher=False, why_not="it looks at transcripts, not at a teacher")
def ctc_loss(
    student: Tensor,
    labels: Tensor,
    label_lengths: Tensor,
    counts: Tensor,
    samples: Tensor | None = None,
    *,
    blank: int,
) -> Tensor:
    r"""Negative log-likelihood of transcripts, over all ways to lay their symbols on the frames.

    L_u = -log sum over the paths that collapse to y of prod_t q_t(path_t), with q = softmax(student); a path collapses by joining
    repeats and then leaving out blanks. Each of the T frames of the utterance is given L_u / T, so that the values of an utterance add
    up to L_u, and a mean over frames is the sum of all L_u by all frames.

    Args:
        student: Logits of all frames, shape [frames, classes].
        labels: Symbols, padded, int64 [utterances, most symbols].
        label_lengths: Symbols of each, int64 [utterances]; 0 where the transcript is not known.
        counts: Frames of each, int64 [utterances].
        samples: Number of each utterance, int64 [utterances], for errors; its place where None.
        blank: The class that stands for no symbol.

    Returns:
        One value per frame, shape [frames]; 0 where the transcript is not known.

    Raises:
        DataError: for a transcript that does not fit, see `check_transcripts`, or logits of -inf.
        ConfigError: if shapes do not match or the blank is no class.

    >>> frames = torch.tensor([[0.0, 1.0, -0.5], [1.5, 0.0, -0.5]])
    >>> ctc_loss(frames, torch.tensor([[1]]), torch.tensor([1]), torch.tensor([2]), blank=0)
    tensor([0.2522, 0.2522])

    Source: Graves et al., "Connectionist Temporal Classification", ICML 2006; by `torch.nn.functional.ctc_loss`.
    """
    n_classes = _check_frames(student, counts, blank, "ctc_loss")
    if labels.ndim != 2 or labels.shape[:1] != counts.shape or label_lengths.shape != counts.shape:
        got = f"shapes {list(labels.shape)} and {list(label_lengths.shape)}"
        wish = f"[{len(counts)}, most symbols], and one length each"
        raise ConfigError(expected("labels", wish, got, where="ctc_loss"))
    if not len(counts):
        return student.sum(-1)
    check_transcripts(labels, label_lengths, counts, blank=blank, n_classes=n_classes, names=samples)
    counts = counts.to(student.device)
    # What a network says where no transcript is known is nobody's business, infinite or not.
    student = student.masked_fill(~(label_lengths.to(counts.device) > 0).repeat_interleave(counts)[:, None], 0)
    _refuse_minus_infinity(student, counts, samples)
    log_q = student.to(computing_dtype(student.dtype)).log_softmax(-1)
    there = torch.arange(int(counts.max()), device=student.device) < counts[:, None]
    padded = log_q.new_zeros((*there.shape, n_classes)).masked_scatter(there[..., None], log_q).transpose(0, 1)
    known = label_lengths > 0
    value = F.ctc_loss(
        padded, labels.clamp_min(0), counts, label_lengths, blank=blank, reduction="none", zero_infinity=False
    )
    share = value.masked_fill(~known, 0) / counts
    return share[:, None].expand(there.shape)[there]


@claims(
    scope="position", sparse=True, hard=True, zero_at_teacher=False,
    why_not="it is minus a probability, which the teacher's own is not 1",
)  # fmt: skip
def guided_ctc(student: Tensor, teacher: Target | Tensor, *, blank: int) -> Tensor:
    r"""Minus the probability that the student gives to the teacher's symbol, at frames where the teacher says one.

    L_t = -q_t(argmax p_t) where argmax p_t is not the blank, else 0: the probability, not its logarithm. Only the teacher's likeliest
    class is looked at, so that a book of the codec argmax, one byte a frame, will do.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes: dense, sparse, or its likeliest classes alone.
        blank: The class that stands for no symbol.

    Returns:
        One value per position, shape [...], between -1 and 0.

    Raises:
        FidelityError: for draws, whose most frequent class need not be the likeliest.
        ConfigError: if shapes do not match or the blank is no class.

    >>> guided_ctc(torch.tensor([[0.0, 1.0, -0.5], [1.5, 0.0, -0.5]]), torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0]]), blank=0)
    tensor([-0.6285, -0.0000])

    Source: Kurata and Audhkhasi, "Guiding CTC Posterior Spike Timings for Improved Posterior Fusion and Knowledge Distillation",
    Interspeech 2019; the form as a reimplementation quotes it.
    """
    target = as_target(teacher)
    if isinstance(target, SampledTarget):
        raise target.refuse("guided_ctc")
    check_student(student, target, "guided_ctc")
    between(blank, 0, target.n_classes - 1, "blank", where="guided_ctc")
    classes = likeliest(target)
    log_q = log_probabilities_of(student, classes.unsqueeze(-1), 1.0, computing_dtype(student.dtype)).squeeze(-1)
    return -log_q.exp().masked_fill(classes == blank, 0)


@claims(t_squared=True, full_support=True, mutual=True)
def consistency(student: Tensor, teacher: Target | Tensor, *, temperature: float, t_squared: bool) -> Tensor:
    r"""How far two passes of one student are apart, both ways, with gradient through both.

    T^2 1/2 (KL(p || q) + KL(q || p)), with p = softmax(teacher / T) and q = softmax(student / T).

    Args:
        student: Logits of one pass, shape [..., K].
        teacher: Logits of the other, of the same shape. No teacher's: bind it with `own=True, gradient=True`.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: for a target other than dense.
        ConfigError: if shapes do not match or the temperature is out of range.

    >>> one, two = torch.tensor([[0.0, 1.0, -0.5], [1.5, 0.0, -0.5]]), torch.tensor([[0.2, 0.8, -0.4], [1.2, 0.3, -0.6]])
    >>> consistency(one, two, temperature=1.0, t_squared=False).sum()
    tensor(0.0453)

    Source: Wu et al., "R-Drop", NeurIPS 2021, arXiv 2106.14448.
    """
    if not isinstance(teacher, Tensor):
        # Logits that stand in a target are logits all the same; anything else is refused.
        target = dense_only(teacher, "consistency", "both sides are the student's own")
        teacher = target.logits if isinstance(target, DenseTarget) else target.log_probabilities(1.0)
    positive(temperature, "temperature", where="consistency")
    check_student(student, as_target(teacher.detach()), "consistency")
    dtype = computing_dtype(student.dtype, teacher.dtype)
    log_q, log_p = ((side.to(dtype) / temperature).log_softmax(-1) for side in (student, teacher))
    value = (kl(log_p, log_q) + kl(log_q, log_p)) / 2
    return value * temperature**2 if t_squared else value


@claims(scope="sequence", zero_at_teacher=False, why_not="it looks at another view, not at a teacher")
def view_consistency(student: Tensor, counts: Tensor, samples: Tensor) -> Tensor:
    r"""How far each view of a sample is from its other view, which stands next to it in the batch and is not moved.

    At a frame t of a view with probabilities q_t, of which the other view's are p_t: KL(sg p_t || q_t), sg for no gradient.

    Args:
        student: Logits of all frames, shape [frames, classes].
        counts: Frames of each view, int64 [views]; those of one sample equal.
        samples: Sample of each view, int64 [views]: two and two the same.

    Returns:
        One value per frame, shape [frames].

    Raises:
        DataError: for a batch in which views do not stand in pairs, or of pairs with other numbers of frames.
        ConfigError: if shapes do not match.

    >>> frames = torch.tensor([[0.0, 1.0, -0.5], [0.2, 0.8, -0.4]])
    >>> view_consistency(frames, torch.tensor([1, 1]), torch.tensor([7, 7]))
    tensor([0.0167, 0.0163])

    Source: Yao et al., "CR-CTC", ICLR 2025, arXiv 2410.05101.
    """
    where = "view_consistency"
    _check_frames(student, counts, 0, where)
    if samples.shape != counts.shape:
        wish = f"[{len(counts)}], one for each view"
        raise ConfigError(expected("samples", wish, f"shape {list(samples.shape)}", where=where))
    first, second = slice(0, None, 2), slice(1, None, 2)
    if len(counts) % 2 or not torch.equal(samples[first], samples[second]):
        do = "Use a sampler with views_per_sample=2 and an even batch size."
        raise DataError(expected("batch", "two views of each sample, next to each other", "others", where=where, do=do))
    apart = (counts[first] != counts[second]).nonzero().flatten().tolist()
    if apart:
        place = 2 * apart[0]
        got = f"{int(counts[place])} and {int(counts[place + 1])}"
        do = "Use views that mask, without changes of speed."
        place_of = f"{where}, sample {int(samples[place])}"
        raise DataError(expected("frames", "the same in both views of a sample", got, where=place_of, do=do))
    log_q = student.to(computing_dtype(student.dtype)).log_softmax(-1)
    each = torch.split(log_q, counts.tolist())
    other = [each[place ^ 1] for place in range(len(each))]
    return kl(torch.cat(other).detach(), log_q) if each else student.sum(-1)


def _check_frames(student: Tensor, counts: Tensor, blank: int, loss: str) -> int:
    """Refuse frames that are not divided by `counts`, and a blank that is no class; return the number of classes."""
    if student.ndim != 2 or not student.is_floating_point():
        got = f"{student.dtype} of shape {list(student.shape)}"
        raise ConfigError(expected("student", "floating logits [frames, classes]", got, where=loss))
    if counts.ndim != 1 or int(counts.sum()) != len(student):
        got = f"shape {list(counts.shape)} with sum {int(counts.sum())}"
        raise ConfigError(expected("counts", f"[utterances], adding up to {len(student)} frames", got, where=loss))
    if bool((counts < 1).any()):
        place = int((counts < 1).nonzero()[0])
        raise DataError(expected("frames", "at least 1", int(counts[place]), where=f"{loss}, utterance {place}"))
    between(blank, 0, student.shape[1] - 1, "blank", where=loss)
    return int(student.shape[1])


def _named(samples: Tensor | None, place: int) -> str:
    return f"utterance {place}" if samples is None else f"sample {int(samples[place])}"


def _refuse_minus_infinity(student: Tensor, counts: Tensor, samples: Tensor | None) -> None:
    wrong = (student == -torch.inf).any(-1).nonzero().flatten()
    if len(wrong):
        ends = counts.cumsum(0).cpu()
        place = int(torch.searchsorted(ends, wrong[:1].cpu(), right=True))
        do = "A symbol that is ruled out leaves no path: use a finite, low logit."
        where = f"ctc_loss, {_named(samples, place)}"
        raise DataError(expected("logits", "above -inf", "-inf", where=where, do=do))
