"""Acoustic models for connectionist temporal classification: recurrent in both directions, blind to padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected

__all__ = ["AcousticModel"]


class AcousticModel(nn.Module):
    """Features [batch, frames, features] and their lengths in; logits [batch, ceil(frames / subsampling), classes] out.

    `subsampling` frames that follow one another are laid side by side, projected, and run through layers of gated recurrent units in
    both directions. Sequences are packed: what a model says of an utterance does not depend on what it is padded with.

    Args:
        n_features: Features of a frame.
        n_classes: Classes, the blank among them.
        width: Units of a layer and direction.
        layers: Recurrent layers.
        subsampling: Frames to one of the output.
        dropout: Share of the units dropped behind the projection and behind each layer, 0 to below 1.
        heads: Layers (from 0, not the last) that say logits too; the output is then a mapping with `logits` and `heads/<i>`, i
            counting up from 0.

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
        self.read = nn.Linear(subsampling * n_features, width)
        sizes = [width] + [2 * width] * (layers - 1)
        self.layers = nn.ModuleList(nn.GRU(size, width, batch_first=True, bidirectional=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.head_layers = tuple(heads)
        self.heads = nn.ModuleList(nn.Linear(2 * width, n_classes) for _ in heads)
        self.say = nn.Linear(2 * width, n_classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Any:
        """Return the logits, padded with zeros; a mapping where there are heads.

        Args:
            features: Floating [batch, frames, features].
            lengths: Frames of each that are no padding, int64 [batch].
        """
        frames = features.shape[1]
        there = torch.arange(frames, device=features.device) < lengths.to(features.device)[:, None]
        features = features.masked_fill(~there[..., None], 0)
        rest = -frames % self.subsampling
        stacked = nn.functional.pad(features, (0, 0, 0, rest)).unflatten(1, (-1, self.subsampling)).flatten(2)
        counts = -(-lengths // self.subsampling)
        hidden = self.dropout(torch.relu(self.read(stacked)))
        said = {}
        for place, layer in enumerate(self.layers):
            packed = pack_padded_sequence(hidden, counts.cpu(), batch_first=True, enforce_sorted=False)
            hidden, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=stacked.shape[1])
            hidden = self.dropout(hidden)
            if place in self.head_layers:
                number = self.head_layers.index(place)
                said[f"heads/{number}"] = self.heads[number](hidden)
        logits: Tensor = self.say(hidden)
        return {"logits": logits, **said} if said else logits
