"""Rows of the table of losses for speech, from card cons-kd-ctc: T = 2 frames, C = 3 classes with 0 the blank, transcript [1]."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.special import rel_entr, softmax

from bookkd.losses import ClassTarget, DenseTarget, SparseTarget, consistency, ctc_loss, guided_ctc, view_consistency
from bookkd.testing.losses import LossCase, SparseArrays, Worked

Z1 = ((0.0, 1.0, -0.5), (1.5, 0.0, -0.5))
Z2 = ((0.2, 0.8, -0.4), (1.2, 0.3, -0.6))
Q = torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05]], dtype=torch.float64)
CTC_SLOPE = ((0.168334, -0.308578, 0.140244), (-0.030032, -0.069591, 0.099624))
BOTH_SLOPE = ((-0.063403, 0.086285, -0.022882), (0.093576, -0.086747, -0.006829))
STOPPED_SLOPE = ((-0.032715, 0.043996, -0.011281), (0.049970, -0.047201, -0.002769))
TRANSCRIPT = torch.tensor([[1]]), torch.tensor([1]), torch.tensor([2])


def times(rows, factor):
    return tuple(tuple(factor * value for value in row) for row in rows)


def collapsed(path):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol]


def ref_ctc(student, labels, lengths, counts, *, blank):
    """The sum over every path, one by one; the blank is 0."""
    assert blank == 0
    q, found, start = softmax(student, axis=-1), [], 0
    for text, length, count in zip(labels, lengths, counts, strict=True):
        frames = q[start : start + count]
        start += count
        paths = itertools.product(range(q.shape[1]), repeat=int(count))
        total = sum(
            np.prod(frames[np.arange(count), list(path)]) for path in paths if collapsed(path) == list(text[:length])
        )
        found += [-np.log(total) / count if length else 0.0] * int(count)
    return np.array(found)


def ref_guided(student, teacher, *, blank):
    if isinstance(teacher, SparseArrays):
        best = np.take_along_axis(teacher.indices, teacher.values.argmax(-1)[:, None], axis=-1)[:, 0]
    else:
        best = teacher if teacher.ndim == 1 else teacher.argmax(-1)
    return np.where(best == blank, 0.0, -softmax(student, axis=-1)[np.arange(len(best)), best])


def ref_consistency(student, other, *, temperature, t_squared):
    q, p = softmax(student / temperature, axis=-1), softmax(other / temperature, axis=-1)
    factor = temperature**2 if t_squared else 1
    return factor * (rel_entr(p, q) + rel_entr(q, p)).sum(-1) / 2


def ref_views(student, counts, samples):
    q, ends = softmax(student, axis=-1), np.cumsum(counts)
    each = np.split(q, ends[:-1])
    return np.concatenate([rel_entr(each[place ^ 1], each[place]).sum(-1) for place in range(len(each))])


def make_transcripts(generator):
    student = 2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[4, 4, -1], [2, -1, -1], [-1, -1, -1]])
    return student, labels, torch.tensor([2, 1, 0]), torch.tensor([3, 2, 1])


def make_views(generator):
    student = 2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return student, torch.tensor([2, 2, 1, 1]), torch.tensor([4, 4, 9, 9])


def made(from_logits):
    def make(generator):
        student, teacher = 2 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
        return (student, *from_logits(teacher))

    return make


def classes(logits):
    return (ClassTarget(logits.argmax(-1), logits.shape[-1]),)


def dense(logits):
    return (DenseTarget(logits),)


def two_of(logits):
    return (SparseTarget.from_logits(logits, 2, (1.0,)),)


def bare(logits):
    return (logits,)


def guided(name, from_logits, *worked):
    why = "minus a probability falls on as that grows"
    return LossCase(
        name, guided_ctc, {"blank": 0}, made(from_logits), ref_guided, worked, from_logits, "moves", why
    )  # fmt: skip


SAID = Q.log()
SPEECH = (
    LossCase(
        "ctc_loss",
        ctc_loss,
        {"blank": 0},
        make_transcripts,
        ref_ctc,
        # Means over two frames of what the card says of the utterance.
        (
            Worked(Z1, TRANSCRIPT, {"blank": 0}, 0.504357 / 2, times(CTC_SLOPE, 1 / 2)),
            Worked(Z2, TRANSCRIPT, {"blank": 0}, 0.579058 / 2),
            Worked(tuple(map(tuple, SAID.tolist())), TRANSCRIPT, {"blank": 0}, 0.267879 / 2),
        ),
        at_teacher="moves",
        why="it looks at transcripts",
    ),
    guided(
        "guided_ctc",
        dense,
        Worked(Z1, (SAID,), {"blank": 0}, -0.628532 / 2),
        Worked(Z2, (SAID,), {"blank": 0}, -0.540539 / 2),
    ),
    guided("guided_ctc/sparse", two_of),
    guided("guided_ctc/classes", classes, Worked(Z1, classes(SAID), {"blank": 0}, -0.628532 / 2)),
    LossCase(
        "consistency",
        consistency,
        {"temperature": 2.0, "t_squared": True},
        made(bare),
        ref_consistency,
        (
            Worked(
                Z1,
                (torch.tensor(Z2, dtype=torch.float64),),
                {"temperature": 1.0, "t_squared": False},
                0.045345 / 2,
                times(BOTH_SLOPE, 1 / 2),
            ),
        ),
        bare,
    ),
    LossCase(
        "view_consistency",
        view_consistency,
        {},
        make_views,
        ref_views,
        # A mean over four frames, where the card has half the sum over pairs.
        (
            Worked(
                (*Z1, *Z2),
                (torch.tensor([2, 2]), torch.tensor([7, 7])),
                {},
                (0.043691 + 0.046999) / 4,
                (*times(STOPPED_SLOPE, 1 / 2), *times(STOPPED_SLOPE, -1 / 2)),
            ),
        ),
        at_teacher="moves",
        why="it looks at another view",
        stops=True,  # the other view; the card's gradient above stands for it
    ),
)
