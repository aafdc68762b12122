"""Acoustic models for connectionist temporal classification: recurrent in both directions, blind to padding."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.zoo.fitting import check_features

__all__ = ["AcousticModel"]


class AcousticModel(nn.Module):
    """Features [batch, frames, features] and their lengths in; logits [batch, ceil(frames / subsampling), classes] out.

    `subsampling` frames that follow one another are laid side by side, projected, and run through recurrent layers in both directions.
    The way back begins at the last frame of each utterance: what a model says of it does not depend on what it is padded with.

    Args:
        n_features: Features of a frame.
        n_classes: Classes, the blank among them.
        width: Units of a layer and direction.
        layers: Recurrent layers.
        subsampling: Frames to one of the output.
        dropout: Share of the units dropped behind the projection and behind each layer, 0 to below 1.
        heads: Layers (from 0, not the last) that say logits too; the output is then a mapping with `logits` and `heads/<i>`, i
            counting up from 0.
        cell: Gated recurrent units, "gru", or long short-term memory, "lstm", which is faster on a processor.

    >>> model = AcousticModel(4, 3, width=8, subsampling=2).eval()
    >>> model(torch.zeros(2, 5, 4), torch.tensor([5, 3])).shape
    torch.Size([2, 3, 3])
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        width: int = 64,
        layers: int = 2,
        subsampling: int = 1,
        dropout: float = 0.1,
        heads: tuple[int, ...] = (),
        cell: Literal["gru", "lstm"] = "gru",
    ) -> None:
        super().__init__()
        where = "AcousticModel"
        for name, value, least in (("n_features", n_features, 1), ("n_classes", n_classes, 2), ("width", width, 1)):
            at_least(value, least, name, where=where)
        at_least(layers, 1, "layers", where=where)
        self.subsampling = at_least(subsampling, 1, "subsampling", where=where)
        if between(dropout, 0, 1, "dropout", where=where) == 1:
            raise ConfigError(expected("dropout", "below 1", dropout, where=where))
        if any(not 0 <= layer < layers - 1 for layer in heads):
            raise ConfigError(expected("heads", f"layers from 0 to {layers - 2}", heads, where=where))
        self.n_features = n_features
        self.read = nn.Linear(subsampling * n_features, width)
        sizes = [width] + [2 * width] * (layers - 1)
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[choose(cell, ("gru", "lstm"), "cell", where=where)]
        self.layers = nn.ModuleList(
            nn.ModuleList(kind(size, width, batch_first=True) for _ in range(2)) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)
        self.head_layers = tuple(heads)
        self.heads = nn.ModuleList(nn.Linear(2 * width, n_classes) for _ in heads)
        self.say = nn.Linear(2 * width, n_classes)

    def check_data(self, dataset: Any) -> None:
        """Refuse speech of other features.

        Raises:
            ConfigError: naming how many.
        """
        check_features(dataset, self.n_features, str(getattr(dataset, "name", "data")))

    def forward(self, features: Tensor, lengths: Tensor) -> Any:
        """Return the logits, any where an utterance is padded; a mapping where there are heads.

        Args:
            features: Floating [batch, frames, features].
            lengths: Frames of each that are no padding, int64 [batch].
        """
        there = _there(features.shape[1], lengths.to(features.device))
        features = features.masked_fill(~there[..., None], 0)
        rest = -features.shape[1] % self.subsampling
        stacked = nn.functional.pad(features, (0, 0, 0, rest)).reshape(
            len(features), -1, self.subsampling * features.shape[2]
        )
        counts = -(-lengths.to(features.device) // self.subsampling)
        kept, turned = _there(stacked.shape[1], counts)[..., None], _turned(stacked.shape[1], counts)[..., None]
        hidden = self.dropout(torch.relu(self.read(stacked)))
        said = {}
        for place, layer in enumerate(self.layers):
            ahead, back = cast(nn.ModuleList, layer)
            # Packed sequences say the same, and take several times as long on a processor.
            reverse = back(hidden.gather(1, turned.expand_as(hidden)))[0]
            both = torch.cat([ahead(hidden)[0], reverse.gather(1, turned.expand_as(reverse))], -1)
            hidden = self.dropout(both) * kept
            if place in self.head_layers:
                number = self.head_layers.index(place)
                said[f"heads/{number}"] = self.heads[number](hidden)
        logits: Tensor = self.say(hidden)
        return {"logits": logits, **said} if said else logits


def _there(frames: int, lengths: Tensor) -> Tensor:
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def _turned(frames: int, lengths: Tensor) -> Tensor:
    """Return the places of each sequence back to front, those of its padding as they are, int64 [batch, frames].

    >>> _turned(4, torch.tensor([3, 4]))
    tensor([[2, 1, 0, 3],
            [3, 2, 1, 0]])
    """
    places = torch.arange(frames, device=lengths.device).expand(len(lengths), frames)
    return torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
