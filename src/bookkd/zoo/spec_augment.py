"""Views of speech: changes of speed, and masks over time and frequency, on features [frames, bands]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bookkd.core.check import at_least, between, positive
from bookkd.core.errors import ConfigError, DataError, expected

__all__ = ["SpecAugment"]


@dataclass(frozen=True)
class SpecAugment:
    """Change the speed, then set some stretches of time and some bands to one value.

    All is drawn from the generators that a view seeds, so that a view has the same speed and masks whenever it is drawn. A mask of
    time covers 0 to `time_width` frames, but no more than `time_share` of the utterance; a mask of frequency 0 to `band_width` bands.
    A factor of speed above 1 makes an utterance shorter, by linear interpolation between frames: the book then has another number of
    frames for each view.

    Args:
        time_masks: Masks over time.
        time_width: Most frames of one.
        time_share: Most of an utterance that one may cover, 0 to 1.
        band_masks: Masks over frequency.
        band_width: Most bands of one.
        speeds: Factors that one is drawn from; each above 0.
        value: What masks fill in; 0 is the mean of normalised features.

    >>> _ = torch.manual_seed(0)
    >>> SpecAugment(speeds=(0.5,))(torch.ones(10, 8)).shape
    torch.Size([20, 8])

    Source: Park et al., "SpecAugment", Interspeech 2019, arXiv 1904.08779, without its time warping; Ko et al., "Audio augmentation
    for speech recognition", Interspeech 2015, for speeds, there of the sound itself.
    """

    time_masks: int = 2
    time_width: int = 20
    time_share: float = 0.2
    band_masks: int = 2
    band_width: int = 6
    speeds: tuple[float, ...] = (1.0,)
    value: float = 0.0

    def __post_init__(self) -> None:
        where = "SpecAugment"
        for name in ("time_masks", "time_width", "band_masks", "band_width"):
            at_least(getattr(self, name), 0, name, where=where)
        between(self.time_share, 0, 1, "time_share", where=where)
        object.__setattr__(self, "speeds", tuple(self.speeds))
        if not self.speeds:
            raise ConfigError(expected("speeds", "at least one", self.speeds, where=where))
        for speed in self.speeds:
            positive(speed, "speeds", where=where)

    def longest(self, frames: int) -> int:
        """Return the most frames that a view of an utterance of `frames` has."""
        return max(_frames_at(frames, speed) for speed in self.speeds)

    def shortest(self, frames: int) -> int:
        """Return the fewest frames that a view of an utterance of `frames` has."""
        return min(_frames_at(frames, speed) for speed in self.speeds)

    def __call__(self, features: Tensor) -> Tensor:
        """Return a view of features [frames, bands]."""
        if features.ndim != 2 or not len(features):
            raise DataError(expected("features", "[frames, bands]", f"shape {tuple(features.shape)}", where="views"))
        speed = self.speeds[int(torch.randint(len(self.speeds), ()))]
        if speed != 1:
            frames = _frames_at(len(features), speed)
            wide = features.T[None].to(torch.promote_types(features.dtype, torch.float32))
            features = F.interpolate(wide, frames, mode="linear", align_corners=False)[0].T.to(features.dtype)
        out = features.clone()
        widest = min(self.time_width, math.floor(self.time_share * len(out)))
        for _ in range(self.time_masks):
            out[_stretch(len(out), widest)] = self.value
        for _ in range(self.band_masks):
            out[:, _stretch(out.shape[1], min(self.band_width, out.shape[1]))] = self.value
        return out


def _frames_at(frames: int, speed: float) -> int:
    return max(1, round(frames / speed))


def _stretch(length: int, widest: int) -> slice:
    """Draw a stretch of 0 to `widest` places of `length`."""
    width = int(torch.randint(widest + 1, ()))
    start = int(torch.randint(length - width + 1, ()))
    return slice(start, start + width)
