"""Which frames of speech a student is matched at: blank frames are many, and say little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.fields import FRAMES
from bookkd.core.names import choose
from bookkd.losses import Target
from bookkd.losses.targets import likeliest

__all__ = ["Frames"]


@dataclass(frozen=True)
class Frames:
    """Choose frames by the teacher's likeliest class; for `objectives.selected`.

    Args:
        blank: The class that stands for no symbol.
        which: "all", "non-blank" (frames whose likeliest class is a symbol), or "spikes" (these, and `around` frames before and behind
            each, inside of the utterance).
        around: n of "spikes", at least 0.

    >>> from bookkd.losses import DenseTarget
    >>> said, batch = DenseTarget(torch.eye(2)[[0, 0, 1, 0, 0]]), {"frames": torch.tensor([4, 1])}
    >>> Frames(0, "non-blank")(said, batch).int().tolist(), Frames(0, "spikes", 1)(said, batch).int().tolist()
    ([0, 0, 1, 0, 0], [0, 1, 1, 1, 0])

    Source: non-blank frames alone and blanks kept around spikes, Hilmes et al. 2025 (arXiv 2506.01503), as its card tells it.
    """

    blank: int
    which: Literal["all", "non-blank", "spikes"] = "all"
    around: int = 0

    def __post_init__(self) -> None:
        at_least(self.blank, 0, "blank", where="frames")
        choose(self.which, ("all", "non-blank", "spikes"), "which", where="frames")
        at_least(self.around, 0, "around", where="frames")

    def __call__(self, target: Target, batch: Mapping[str, Any]) -> Tensor:
        """Return which frames count, bool [frames]."""
        spikes = likeliest(target) != self.blank
        if self.which == "all":
            return torch.ones_like(spikes)
        if self.which == "non-blank":
            return spikes
        counts = batch[FRAMES].to(spikes.device)
        utterance = torch.arange(len(counts), device=spikes.device).repeat_interleave(counts)
        kept = spikes
        for step in range(1, min(self.around, len(spikes) - 1) + 1):
            same = utterance[step:] == utterance[:-step]
            kept = kept | F.pad(spikes[:-step] & same, (step, 0)) | F.pad(spikes[step:] & same, (0, step))
        return kept
