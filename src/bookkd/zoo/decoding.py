"""Writing out what an encoder-decoder network says: the likeliest token at a time, or a beam of sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.check import at_least, finite
from bookkd.core.errors import ConfigError, DataError, expected

__all__ = ["Hypothesis", "decode"]


@dataclass(frozen=True)
class Hypothesis:
    """A sequence that a network wrote.

    Args:
        tokens: Without begin and end.
        score: Its log-probability with its end, divided by a power of its length.
    """

    tokens: tuple[int, ...]
    score: float


def decode(
    network: Callable[..., Any],
    source: Tensor,
    lengths: Tensor,
    *,
    begin: int,
    end: int,
    most: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    vocabulary: int | None = None,
) -> list[list[Hypothesis]]:
    r"""Write the target of each source: greedily, or by beam search.

    A hypothesis y of n tokens, its end among them, has the score log p(y) / n^length_penalty. A beam keeps the likeliest `beam`
    prefixes; one that ends while it is among them is finished, and a source is done with `beam` finished ones. At token `most` a
    prefix can only end. Beam 1 is greedy decoding; a beam of all sequences finds the best there is.

    Args:
        network: With `generate` (`Seq2SeqModel`), that of Transformers decodes, by these arguments alone; with `start` and `step` (`TranslationTransformer`) each
            token costs one position; any other `network(source, lengths, prefix)` -> logits reads the prefix again for every token. In
            evaluation mode.
        source: Tokens, int64 [batch, source length], where the network is.
        lengths: Of the sources, int64 [batch].
        begin: Token that a prefix begins with.
        end: Token that ends a target.
        most: Most tokens of a target, its end among them.
        beam: Prefixes that are kept of each source.
        length_penalty: Power of the length; 0 favours short sequences, 1 is the mean log-probability of a token.
        vocabulary: Tokens that there are, where the output layer is padded to more.

    Returns:
        For each source its hypotheses, the best first: one to `beam` of them.

    Raises:
        ConfigError: if a number is out of range.
        DataError: if there is no source, or the network says NaN, or rules `end` out.

    >>> class Counts(torch.nn.Module):
    ...     def forward(self, source, lengths, prefix):  # the next token is the last and one
    ...         return torch.nn.functional.one_hot(prefix + 1, 6).float() * 9
    >>> [[each.tokens for each in found] for found in decode(
    ...     Counts(), torch.tensor([[1]]), torch.tensor([1]), begin=1, end=5, most=9)]
    [[(2, 3, 4)]]
    """
    at_least(beam, 1, "beam", where="decode")
    at_least(most, 1, "most", where="decode")
    finite(length_penalty, "length_penalty", where="decode")
    if not len(source):
        raise DataError(expected("source", "at least one sequence", 0, where="decode"))
    if vocabulary is not None:
        for name, token in (("begin", begin), ("end", end)):
            if not 0 <= token < vocabulary:
                raise ConfigError(expected(name, f"a token from 0 to {vocabulary - 1}", token, where="decode"))
    options: dict[str, Any] = {"begin": begin, "end": end, "most": most, "beam": beam, "length_penalty": length_penalty}
    with torch.inference_mode():
        if hasattr(network, "generate"):
            found: list[list[Hypothesis]] = network.generate(source, lengths, vocabulary=vocabulary, **options)
            return found
        writer: Any = network if hasattr(network, "start") and hasattr(network, "step") else _Rereading(network)
        return _searched(writer, source, lengths, vocabulary=vocabulary, **options)


def _searched(
    writer: Any,
    source: Tensor,
    lengths: Tensor,
    *,
    begin: int,
    end: int,
    most: int,
    beam: int,
    length_penalty: float,
    vocabulary: int | None,
) -> list[list[Hypothesis]]:
    count, device = len(source), source.device
    finished: list[list[Hypothesis]] = [[] for _ in range(count)]
    memory = writer.start(source, lengths)
    alive = torch.arange(count, device=device)  # the source of each group of prefixes
    prefixes = torch.full((count, 1), begin, dtype=torch.int64, device=device)
    scores = torch.zeros(count, 1, device=device)  # [sources alive, prefixes of each]
    for length in range(1, most + 1):
        logits = writer.step(prefixes[:, -1], memory)[:, :vocabulary].float()
        if bool(logits.isnan().any()):
            raise DataError(expected("logits", "numbers", "NaN", where="decode", do="Check the network's weights."))
        said = logits.log_softmax(-1)
        width, classes = scores.shape[1], said.shape[-1]
        if not 0 <= end < classes:
            raise ConfigError(expected("end", f"a token from 0 to {classes - 1}", end, where="decode"))
        if length == most:
            said = torch.full_like(said, -torch.inf).index_copy_(
                -1, torch.tensor([end], device=device), said[:, end : end + 1]
            )
        totals = (scores[..., None] + said.unflatten(0, (-1, width))).flatten(1)
        values, places = totals.topk(min(2 * beam, totals.shape[1]))
        tokens, parents = places % classes, places // classes
        ends = (tokens == end) & (values > -torch.inf)
        _finish(finished, alive, prefixes, ends[:, :beam], parents, values / length**length_penalty, width)
        if length == most:
            break
        # Of what does not end, the best `beam` live on, in their order.
        order = torch.where(tokens == end, torch.inf, torch.arange(tokens.shape[1], device=device)).argsort(dim=1)
        order = order[:, : min(beam, int((tokens != end).sum(1).min()))]
        going = torch.tensor([len(finished[at]) < beam for at in alive.tolist()], device=device)
        if not bool(going.any()) or not order.shape[1]:
            break
        rows = parents.gather(1, order) + torch.arange(len(alive), device=device)[:, None] * width
        chosen, scores = rows[going].flatten(), values.gather(1, order)[going]
        prefixes = torch.cat([prefixes[chosen], tokens.gather(1, order)[going].flatten()[:, None]], 1)
        alive = alive[going]
        if len(chosen) != count or bool((chosen != torch.arange(len(chosen), device=device)).any()):
            memory = memory.rows(chosen)
        count = len(chosen)
    if not all(finished):
        do = "The network rules the end out: give it that of its vocabulary."
        raise DataError(expected("target", "one that can end", f"none by token {end}", where="decode", do=do))
    return [sorted(each, key=lambda one: -one.score)[:beam] for each in finished]


def _finish(
    finished: list[list[Hypothesis]],
    alive: Tensor,
    prefixes: Tensor,
    ends: Tensor,
    parents: Tensor,
    values: Tensor,
    width: int,
) -> None:
    for place, candidate in ends.nonzero().tolist():
        row = place * width + int(parents[place, candidate])
        tokens = tuple(prefixes[row, 1:].tolist())
        finished[int(alive[place])].append(Hypothesis(tokens, float(values[place, candidate])))


class _Rereading:
    """Gives any network `start` and `step`, at the price of the whole prefix for every token."""

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network

    def start(self, source: Tensor, lengths: Tensor) -> _Prefixes:
        return _Prefixes(source, lengths, source.new_empty(len(source), 0))

    def step(self, tokens: Tensor, memory: _Prefixes) -> Tensor:
        memory.prefix = torch.cat([memory.prefix, tokens[:, None]], 1)
        output = self.network(memory.source, memory.lengths, memory.prefix)
        logits: Tensor = getattr(output, "logits", output)[:, -1]
        return logits


@dataclass
class _Prefixes:
    source: Tensor
    lengths: Tensor
    prefix: Tensor

    def rows(self, index: Tensor) -> _Prefixes:
        return _Prefixes(self.source[index], self.lengths[index], self.prefix[index])
