"""From frame distributions to symbols: the likeliest path, or the likeliest transcript by a beam."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bookkd.core.check import at_least, between
from bookkd.core.names import require

__all__ = ["beam_decode", "greedy_decode"]

_FIRST = 0x4E00
"""Of a stretch of 20,000 letters, one for each class: the library writes transcripts as text."""


def greedy_decode(logits: Tensor, counts: Tensor, *, blank: int) -> list[list[int]]:
    """Return the symbols of the likeliest path of each utterance: repeats joined, then blanks left out.

    Args:
        logits: Of all frames, one utterance behind another, [frames, classes].
        counts: Frames of each, int64 [utterances].
        blank: The class that stands for no symbol.

    >>> greedy_decode(torch.eye(3)[[1, 1, 0, 1, 2]], torch.tensor([3, 2]), blank=0)
    [[1], [1, 2]]
    """
    between(blank, 0, logits.shape[1] - 1, "blank", where="greedy_decode")
    best = logits.argmax(-1).cpu()
    return [
        [symbol for symbol in torch.unique_consecutive(path).tolist() if symbol != blank]
        for path in torch.split(best, counts.tolist())
    ]


def beam_decode(logits: Tensor, counts: Tensor, *, blank: int, width: int = 8, least: float = 0.0) -> list[list[int]]:
    """Return the symbols of the transcript that a beam search finds likeliest for each utterance, over all of its paths.

    Args:
        logits: Of all frames, one utterance behind another, [frames, classes].
        counts: Frames of each, int64 [utterances].
        blank: The class that stands for no symbol.
        width: Transcripts that are followed at once.
        least: Probability below which a symbol is not looked at; 0 looks at all.

    Raises:
        MissingExtraError: if fast-ctc-decode is not installed.

    >>> beam_decode(torch.eye(3)[[1, 1, 0, 1, 2]] * 9, torch.tensor([3, 2]), blank=0)
    [[1], [1, 2]]

    Source: Graves, "Supervised Sequence Labelling with Recurrent Neural Networks", 2012, section 7.5; by the package fast-ctc-decode.
    """
    library = require("fast_ctc_decode", "speech")
    at_least(width, 1, "width", where="beam_decode")
    classes = logits.shape[1]
    between(blank, 0, classes - 1, "blank", where="beam_decode")
    # The library wants the blank first.
    order = [blank, *(each for each in range(classes) if each != blank)]
    alphabet = "".join(chr(_FIRST + place) for place in range(classes))
    likely = logits.detach().float().softmax(-1)[:, order].cpu().numpy()
    found = []
    for frames in np.split(likely, np.cumsum(counts.cpu().numpy())[:-1]):
        text, _ = library.beam_search(np.ascontiguousarray(frames), alphabet, beam_size=width, beam_cut_threshold=least)
        found.append([order[ord(letter) - _FIRST] for letter in text])
    return found
