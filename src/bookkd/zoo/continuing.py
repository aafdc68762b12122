"""How a causal language model writes on behind a prompt: `generate` of Transformers, with nothing left to the model's own defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bookkd.core.check import at_least, between, positive
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose, require
from bookkd.zoo.language import LanguageModel

__all__ = ["Decoding", "continued"]

_WHERE = "decoding"


@dataclass(frozen=True)
class Decoding:
    """How a text is gone on with.

    Args:
        tokens: Most new tokens.
        strategy: "greedy" takes the likeliest token, "beam" the likeliest of `beams` texts, "sample" draws.
        beams: Texts that are followed, with "beam".
        temperature: Of the draws, above 0, with "sample".
        top_k: Draw from so many likeliest tokens, with "sample"; 0 for all.
        top_p: Draw from the likeliest tokens that have this much mass together, above 0 to 1, with "sample".
        end: Token that ends a text, itself the last one; None for the separator of the model, if it has one, else for none. A model
            of packed text has learnt to say neither, unless `pack` was given an `end`: pass the same here.
        never: Tokens that are not written, such as masked ones.

    >>> Decoding(32, strategy="sample", top_p=0.9).temperature
    1.0
    """

    tokens: int
    strategy: Literal["greedy", "beam", "sample"] = "greedy"
    beams: int = 4
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    end: int | None = None
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least(self.tokens, 1, "tokens", where=_WHERE)
        choose(self.strategy, ("greedy", "beam", "sample"), "strategy", where=_WHERE)
        at_least(self.beams, 2, "beams", where=_WHERE, do="One beam is the strategy greedy.")
        positive(self.temperature, "temperature", where=_WHERE)
        at_least(self.top_k, 0, "top_k", where=_WHERE)
        positive(between(self.top_p, 0, 1, "top_p", where=_WHERE), "top_p", where=_WHERE)
        for token in self.never:
            at_least(token, 0, "never", where=_WHERE)
        of_strategy = {"beam": ("beams",), "sample": ("temperature", "top_k", "top_p")}
        for strategy, names in of_strategy.items():
            for name in names if strategy != self.strategy else ():
                given, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
                if given != usual:
                    wish, do = f"left out with the strategy {self.strategy}", f'Pass strategy="{strategy}".'
                    raise ConfigError(expected(name, wish, given, where=_WHERE, do=do))
        if self.end is not None and self.end in self.never:
            raise ConfigError(expected("end", "a token that may be written", self.end, where=_WHERE))

    def without(self, tokens: Iterable[int]) -> Decoding:
        """Return the same way to write, that never writes some further tokens, such as those that a task masks.

        >>> Decoding(8, never=(3,)).without([5, 4]).never
        (3, 4, 5)
        """
        return replace(self, never=tuple(sorted({*self.never, *tokens})))


def continued(
    network: nn.Module, prompts: Sequence[npt.ArrayLike | Tensor], decoding: Decoding, *, vocabulary: int, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Return what a model writes behind each prompt, without the prompt.

    The model is in evaluation mode while it writes, no gradient flows through its draws, and the global generators are as before.

    Args:
        network: A `LanguageModel`.
        prompts: Tokens of each, at least one.
        decoding: How.
        vocabulary: Tokens that there are; what an output layer is padded with is never written.
        seed: Of the draws.

    Raises:
        ConfigError: for a network without `generate`, or prompts that leave no room for the new tokens.
        DataError: for an empty prompt, or one of several documents where the model tells documents apart.
    """
    transformers = require("transformers", "language")
    model: Any = getattr(network, "model", None)
    if not isinstance(network, LanguageModel) or not hasattr(model, "generate"):
        do = "Use load_causal_lm or create_causal_lm."
        got = type(network if model is None else model).__name__
        raise ConfigError(
            expected("network", "a language model of Transformers that can write", got, where=_WHERE, do=do)
        )
    given = [torch.as_tensor(np.asarray(prompt), dtype=torch.int64) for prompt in prompts]
    longest = _longest(given, network, decoding)
    end = network.separator if decoding.end is None else decoding.end
    device = next(network.parameters()).device
    fill = 0 if end is None else end
    tokens = torch.stack([_filled(prompt, longest, fill) for prompt in given]).to(device)
    # Padding stands before the prompt, so that all go on at the same place; the mask hides it, and counts positions behind it.
    mask = torch.stack([_filled(torch.ones_like(prompt), longest, 0) for prompt in given]).to(device)
    config = _config(transformers, network, decoding, vocabulary, end, fill)
    was_training, own = network.training, model.generation_config
    network.eval()
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        model.generation_config = transformers.GenerationConfig()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            written = model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)[:, longest:].cpu()
    finally:
        model.generation_config = own
        network.train(was_training)
    return [_ended(row.numpy(), end) for row in written]


def _longest(prompts: Sequence[Tensor], network: LanguageModel, decoding: Decoding) -> int:
    for place, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not len(prompt):
            raise DataError(
                expected("prompt", "at least one token", list(prompt.shape), where=f"{_WHERE}, prompt {place}")
            )
        if network.separator is not None and bool((prompt[1:] == network.separator).any()):
            do = "Pass the last document alone, or a model without separator."
            raise DataError(expected("prompt", "one document", "several", where=f"{_WHERE}, prompt {place}", do=do))
    longest = max(len(prompt) for prompt in prompts)
    room = network.most_positions
    if room is not None and decoding.tokens >= room:
        wish = f"at most {room - 1}: the model has {room} positions, and one is the prompt's"
        raise ConfigError(expected("tokens", wish, decoding.tokens, where=_WHERE))
    if room is not None and longest + decoding.tokens > room:
        wish = (
            f"at most {room - decoding.tokens} tokens, for {decoding.tokens} more in the {room} positions of the model"
        )
        do = "Shorten the prompts, or write fewer tokens."
        raise ConfigError(expected("prompt", wish, longest, where=_WHERE, do=do))
    return longest


def _config(
    transformers: Any, network: LanguageModel, decoding: Decoding, vocabulary: int, end: int | None, fill: int
) -> Any:
    outputs = int(getattr(getattr(network.model, "config", None), "vocab_size", vocabulary))
    if outputs < vocabulary or not 0 <= fill < vocabulary:
        wish = f"one of at least {vocabulary} tokens, and an end among them"
        raise ConfigError(expected("network", wish, f"{outputs} tokens, end {end}", where=_WHERE))
    never = {*decoding.never, *range(vocabulary, outputs)}
    if network.separator not in (None, end):
        never.add(int(network.separator or 0))  # it would begin another document
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if decoding.strategy == "beam":
        options["num_beams"] = decoding.beams
    elif decoding.strategy == "sample":
        drawn = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
        options |= {"do_sample": True, **drawn}
    return transformers.GenerationConfig(
        max_new_tokens=decoding.tokens,
        eos_token_id=end,
        pad_token_id=fill,
        suppress_tokens=sorted(never) or None,
        **options,
    )


def _filled(row: Tensor, length: int, value: int) -> Tensor:
    return torch.cat([row.new_full((length - len(row),), value), row])


def _ended(row: npt.NDArray[np.int64], end: int | None) -> npt.NDArray[np.int64]:
    """Return a row up to its end, which belongs to it."""
    if end is None:
        return row
    found = np.flatnonzero(row == end)
    return row[: int(found[0]) + 1] if len(found) else row
