"""Distillation of speech recognisers: at every frame the student is like the teacher, beside the likelihood of the transcript.

What it does: with Q_t the teacher's distribution at frame t and P_t the student's, both at temperature T, for an utterance of transcript y

    L = ctc_weight L_CTC(P, y) + kd_weight sum_t D(Q_t, P_t)

where D is `kl` T^2 KL(Q_t || P_t); `l2` T^2 ||Q_t - P_t||^2, softmax-level distillation; or `guided` -P_t(argmax Q_t) where that is no
blank: minus the probability, so that the student's spikes stand where the teacher's do. The mean is over utterances, or over frames
where the task says so: one rule for all terms.
When to use: for connectionist temporal classification. `guided` learns from a book of the codec argmax, one byte a frame; `kl` from
dense or top-k books, `l2` from dense ones.
Parameters: `form` kl, `kd_weight` 1, `ctc_weight` 1, `temperature` 1. `frames` all: blank frames are many and say little, and two right
models differ by a frame in where a symbol stands; `non-blank` matches the frames of the teacher's symbols alone, `spikes` also
`around` 1 frames beside each. Left-out frames are 0, and the mean is over all. `heads` 0: of networks whose layers say logits of their
own (`heads/0` and so on), match these too: (1 - s) of the last layer and s, `heads_share` 0.25, of the mean over heads, for both
terms (preset `inter-kd`, with one head).
What it costs: one pass of the student and one read of the book.
What it clashes with: draws, for `l2` and `guided`; teachers whose frames are other than the task says; label smoothing.
Source: frame KL as in Hinton et al. 2015 (arXiv 1503.02531); guided, Kurata and Audhkhasi, Interspeech 2019, as a reimplementation
quotes it; l2, after the abstract of TutorNet (arXiv 2008.00671); heads, Inter-KD, SLT 2022 (arXiv 2211.15075), of which 0.25 is
reported by a survey and the mix is reconstructed; choice of frames, Hilmes et al. 2025 (arXiv 2506.01503).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.methods._frames import FrameMatching
from bookkd.methods._parts import check_weights
from bookkd.methods.base import Card
from bookkd.objectives import Objective
from bookkd.tasks import Task

__all__ = ["CTCKD"]


@dataclass(frozen=True)
class CTCKD(FrameMatching):
    """Match the teacher's frames.

    Args:
        form: "kl", "l2" or "guided", see above.
        kd_weight: Weight of the teacher's term, above 0.
        ctc_weight: Weight of the transcripts, at least 0; 0 leaves them unused.
        temperature: T, above 0, the same on both sides; a number or a schedule.
        t_squared: Multiply the teacher's term by T^2.
        frames: "all", "non-blank" or "spikes", see above.
        around: Frames beside each spike, at least 1.
        heads: Intermediate layers that are matched too.
        heads_share: Share of these in both terms, 0 to below 1.
    """

    name: ClassVar[str] = "ctc-kd"
    card: ClassVar[Card] = Card(
        "Frames of speech matched",
        "Kurata and Audhkhasi, Interspeech 2019; Yoon et al., arXiv 2211.15075 (2022)",
        "logits of one view, or the likeliest classes for form guided",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "guided": {"form": "guided"},
        "inter-kd": {"heads": 1, "heads_share": 0.25},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self, "ctc_weight")

    def objective(self, task: Task) -> Objective:
        """Return the likelihood of the transcripts and the match of frames, of each layer that takes part."""
        return Objective(tuple(self.matched(task)))
