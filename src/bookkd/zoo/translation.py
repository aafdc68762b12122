"""A small encoder-decoder transformer, which reads a sequence and says another; it remembers what it has read while it decodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bookkd.core.check import at_least, below
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose
from bookkd.zoo.fitting import check_positions, check_tokens_of

__all__ = ["Memory", "TranslationTransformer"]

_Pair = tuple[Tensor, Tensor]


@dataclass
class Memory:
    """What decoding goes on from: of each layer, keys and values of the source and of the prefix so far.

    Args:
        source: One (keys, values) a layer, [rows, heads, source length, width of a head].
        there: Which source positions are no padding, bool [rows, 1, 1, source length].
        prefix: One a layer, [rows, heads, positions so far, width of a head].
    """

    source: list[_Pair]
    there: Tensor
    prefix: list[_Pair]

    @property
    def positions(self) -> int:
        """Tokens of the prefix so far."""
        return self.prefix[0][0].shape[2]

    def rows(self, index: Tensor) -> Memory:
        """Return some rows, in another order or several times."""
        source = [(keys[index], values[index]) for keys, values in self.source]
        prefix = [(keys[index], values[index]) for keys, values in self.prefix]
        return Memory(source, self.there[index], prefix)


class TranslationTransformer(nn.Module):
    """Pre-norm transformer: `network(source, source_lengths, prefix)` -> logits [batch, prefix length, vocabulary].

    Position u of the logits describes target token u, of which the prefix holds those before; padding of sources is never looked at,
    and what stands behind a prefix position changes nothing at it.

    Args:
        vocabulary: Target tokens.
        source_vocabulary: Source tokens; as many as targets where None.
        width: Of all layers, a multiple of twice the heads.
        heads: Of attention.
        layers: Of the encoder, and of the decoder; a number for both, or two.
        hidden: Units between the two maps of a feed-forward layer; 4 widths where None.
        dropout: 0 to below 1.
        positions: "sinusoidal", for sequences of any length, or "learnt", up to `most_positions`.
        most_positions: Longest sequence with learnt positions.
        tied: "none"; "target" shares the target's embedding with the output layer; "all" shares it with the source's too.

    Raises:
        ConfigError: if options do not fit together.

    >>> network = TranslationTransformer(20, width=8, heads=2, layers=1)
    >>> network(torch.tensor([[3, 4, 0]]), torch.tensor([2]), torch.tensor([[1, 5]])).shape
    torch.Size([1, 2, 20])
    """

    def __init__(
        self,
        vocabulary: int,
        source_vocabulary: int | None = None,
        *,
        width: int = 128,
        heads: int = 4,
        layers: int | tuple[int, int] = 2,
        hidden: int | None = None,
        dropout: float = 0.1,
        positions: Literal["sinusoidal", "learnt"] = "sinusoidal",
        most_positions: int = 512,
        tied: Literal["none", "target", "all"] = "target",
    ) -> None:
        super().__init__()
        where = "TranslationTransformer"
        for name, value in (("vocabulary", vocabulary), ("width", width), ("heads", heads)):
            at_least(value, 1, name, where=where)
        below(dropout, 0, 1, "dropout", where=where)
        choose(positions, ("sinusoidal", "learnt"), "positions", where=where)
        choose(tied, ("none", "target", "all"), "tied", where=where)
        if width % (2 * heads):
            raise ConfigError(expected("width", f"a multiple of twice the heads, {2 * heads}", width, where=where))
        if tied == "all" and source_vocabulary not in (None, vocabulary):
            raise ConfigError(expected("tied", "target or none for two vocabularies", tied, where=where))
        encoder, decoder = (layers, layers) if isinstance(layers, int) else layers
        self.width, self.vocabulary = width, vocabulary
        self.most_positions = None if positions == "sinusoidal" else at_least(most_positions, 1, "most_positions")
        self.target = _embedding(vocabulary, width)
        self.source = self.target if tied == "all" else _embedding(source_vocabulary or vocabulary, width)
        self.places = None if self.most_positions is None else _embedding(self.most_positions, width)
        inner = hidden or 4 * width
        self.encoder = nn.ModuleList(_Layer(width, heads, inner, dropout, looks=False) for _ in range(encoder))
        self.decoder = nn.ModuleList(_Layer(width, heads, inner, dropout, looks=True) for _ in range(decoder))
        self.source_norm, self.target_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied != "none":
            self.head.weight = self.target.weight

    def forward(self, source: Tensor, lengths: Tensor, prefix: Tensor) -> Tensor:
        """Return the logits at every position of the prefix.

        Args:
            source: Tokens, int64 [batch, source length].
            lengths: Of the sources, int64 [batch].
            prefix: `begin` and the target tokens so far, int64 [batch, prefix length].

        Raises:
            DataError: for a sequence that is longer than the learnt positions.
        """
        memory = self.start(source, lengths)
        logits: Tensor = self.head(self._decoded(prefix, memory))
        return logits

    def check_data(self, dataset: Any) -> None:
        """Refuse pairs of more tokens than are embedded, or that are longer than the learnt positions.

        Raises:
            ConfigError: naming which.
        """
        where = str(getattr(dataset, "name", "data"))
        check_tokens_of(dataset, self.source.num_embeddings, where, side="source")
        check_tokens_of(dataset, self.target.num_embeddings, where, side="target")
        if self.most_positions is not None:
            check_positions(dataset, self.most_positions, where)

    def start(self, source: Tensor, lengths: Tensor) -> Memory:
        """Read the sources, and return what decoding begins with."""
        there = torch.arange(source.shape[1], device=source.device) < lengths.to(source.device)[:, None]
        there = there[:, None, None, :]
        x = self._embedded(self.source, source, 0)
        for layer in self.encoder:
            x = layer(x, there)
        x = self.source_norm(x)
        empty = x.new_empty(len(x), 0, self.width)
        pairs = [(layer.across.keys(x), layer.inside.keys(empty)) for layer in self._looking]
        return Memory([one for one, _ in pairs], there, [other for _, other in pairs])

    def step(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Add one token to each prefix, and return the logits of the next, [rows, vocabulary]; the memory moves on.

        Args:
            tokens: int64 [rows].
            memory: From `start`; changed.
        """
        logits: Tensor = self.head(self._decoded(tokens[:, None], memory)[:, 0])
        return logits

    @property
    def _looking(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.decoder))

    def _decoded(self, tokens: Tensor, memory: Memory) -> Tensor:
        before, new = memory.positions, tokens.shape[1]
        seen = None
        if new > 1:
            seen = torch.ones(new, before + new, dtype=torch.bool, device=tokens.device).tril(before)
        x = self._embedded(self.target, tokens, before)
        for place, layer in enumerate(self._looking):
            x, memory.prefix[place] = layer.decode(x, seen, memory.prefix[place], memory.source[place], memory.there)
        found: Tensor = self.target_norm(x)
        return found

    def _embedded(self, table: nn.Embedding, tokens: Tensor, first: int) -> Tensor:
        length = tokens.shape[1]
        if self.places is None:
            places = _waves(first, length, self.width, table.weight)
        elif first + length <= self.places.num_embeddings:
            places = self.places.weight[first : first + length] * math.sqrt(self.width)
        else:
            do = "Leave out longer pairs (PairDataset.of, `most`), or learn more positions."
            wish = f"at most the {self.places.num_embeddings} positions that are learnt"
            raise DataError(expected("tokens", wish, first + length, where="TranslationTransformer", do=do))
        # Table entries have variance 1 / width, so that the tied output layer begins well; here they are scaled back.
        embedded: Tensor = self.dropout(table(tokens) * math.sqrt(self.width) + places)
        return embedded


class _Attention(nn.Module):
    """Scaled dot-product attention of several heads, whose keys and values can be kept."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.both, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        for part in (self.query, self.both, self.out):
            nn.init.xavier_uniform_(part.weight, gain=1 / math.sqrt(2) if part is self.both else 1.0)
            nn.init.zeros_(part.bias)

    def keys(self, x: Tensor) -> _Pair:
        """Return keys and values, [batch, heads, length, width of a head] each."""
        keys, values = self.both(x).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, x: Tensor, kept: _Pair, mask: Tensor | None) -> Tensor:
        drop = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(self._split(self.query(x)), *kept, attn_mask=mask, dropout_p=drop)
        joined: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class _Layer(nn.Module):
    """Self-attention, in a decoder a look at the source, and a feed-forward part; each behind a norm, beside what goes past it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, *, looks: bool) -> None:
        super().__init__()
        self.inside_norm, self.inside = nn.LayerNorm(width), _Attention(width, heads, dropout)
        if looks:
            self.across_norm, self.across = nn.LayerNorm(width), _Attention(width, heads, dropout)
        self.forward_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        normed = self.inside_norm(x)
        return self._fed(x + self.dropout(self.inside(normed, self.inside.keys(normed), there)))

    def decode(
        self, x: Tensor, seen: Tensor | None, prefix: _Pair, source: _Pair, there: Tensor
    ) -> tuple[Tensor, _Pair]:
        normed = self.inside_norm(x)
        keys, values = self.inside.keys(normed)
        kept = torch.cat([prefix[0], keys], 2), torch.cat([prefix[1], values], 2)
        x = x + self.dropout(self.inside(normed, kept, seen))
        x = x + self.dropout(self.across(self.across_norm(x), source, there))
        return self._fed(x), kept

    def _fed(self, x: Tensor) -> Tensor:
        fed: Tensor = x + self.feed(self.forward_norm(x))
        return fed


def _embedding(count: int, width: int) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


def _waves(first: int, length: int, width: int, like: Tensor) -> Tensor:
    """Return sinusoidal positions [length, width], Vaswani et al. 2017, section 3.5."""
    places = torch.arange(first, first + length, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    return torch.cat([(places * rates).sin(), (places * rates).cos()], dim=-1).to(like.dtype)
