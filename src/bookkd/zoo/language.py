"""Causal language models of Transformers as networks that take tokens and give logits, and documents laid end to end for them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.zoo.fitting import check_room, embedding_rows, positions_of
from bookkd.zoo.sequences import TokenDataset, as_tokens
from bookkd.zoo.transformers_files import configured, loaded

__all__ = [
    "LanguageModel",
    "create_causal_lm",
    "documents_apart",
    "keeps_apart",
    "load_causal_lm",
    "pack",
    "positions_within",
    "separator_of",
    "takes",
]

_APART = "documents apart at token"
_TRIED = 8
"""Documents that another one is put behind, to see whether it notices."""


class LanguageModel(nn.Module):
    """A causal language model as a network: tokens [batch, length] in, logits [batch, length, outputs] out.

    Padding may stand at the end of a sequence: what a causal model says at a token depends on no later one, so that it needs no mask.

    Args:
        model: `model(input_ids=...)` gives an object with `.logits`, such as any `AutoModelForCausalLM`.
        separator: Token that begins each document where several stand in one sequence (`pack`). Positions are counted from it, and no
            document sees the one before it, which is tried out on two short ones; None where a sequence is one text.

    Raises:
        ConfigError: for a separator that is no token, or of a model that lets documents see one another.
    """

    def __init__(self, model: nn.Module, *, separator: int | None = None) -> None:
        super().__init__()
        self.model, self.separator = model, separator
        self._options = {"use_cache": False} if takes(model, "use_cache") else {}
        rows = embedding_rows(model)
        if separator is not None and not 0 <= separator < (separator + 1 if rows is None else rows):
            wish = "a token" if rows is None else f"a token of the model, from 0 to {rows - 1}"
            raise ConfigError(expected("separator", wish, separator, where="LanguageModel"))
        if separator is not None and not keeps_apart(model, separator):
            wish, got = "one that keeps documents apart by position_ids", type(model).__name__
            do = "Pass separator=None, so that documents see those before them."
            raise ConfigError(expected("model", wish, got, where="LanguageModel", do=do))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits at every token."""
        options: dict[str, Any] = dict(self._options)
        if self.separator is not None:
            options["position_ids"] = positions_within(tokens, self.separator)
        logits: Tensor = self.model(input_ids=tokens, **options).logits
        return logits

    @property
    def mode(self) -> str:
        """What a book notes of how it runs."""
        return "" if self.separator is None else f"{_APART} {self.separator}"

    def check_data(self, dataset: Any) -> None:
        """Refuse tokens and sequences that the model cannot take, or whose documents begin at another token than its separator.

        Raises:
            ConfigError: naming which.
        """
        theirs, where = getattr(dataset, "separator", None), str(getattr(dataset, "name", "data"))
        if None not in (theirs, self.separator) and theirs != self.separator:
            do = "Give the model the separator that pack was given, or None."
            raise ConfigError(
                expected("separator", f"{theirs}, as documents begin", self.separator, where=where, do=do)
            )
        check_room(self.model, dataset, where, positions=False)
        room = self.most_positions
        longest = 0 if room is None else _longest(dataset, self.separator)
        # The last token of a sequence is what the position before it describes; no network is given it.
        room = (room or 0) + (self.separator is None)
        if longest > room:
            do = "Cut the text shorter, or use a model of more positions."
            wish = f"sequences of at most {room} tokens, by the positions of the model"
            raise ConfigError(expected("data", wish, longest, where=where, do=do))

    def check_student(self) -> None:
        """Refuse a mixture of experts that expects its auxiliary loss to be added, which `learn` does not do.

        Raises:
            ConfigError: for such a one.
        """
        if getattr(getattr(self.model, "config", None), "output_router_logits", False):
            do = "Set it to False, or learn with bookkd.learning.hugging_face.BookTrainer, which adds the loss of experts."
            raise ConfigError(expected("output_router_logits", "False", True, where="learn", do=do))

    @property
    def most_positions(self) -> int | None:
        """Tokens of the longest text that the model has positions for; None where it does not say."""
        return positions_of(self.model)


def takes(model: nn.Module, option: str) -> bool:
    """Whether a model of Transformers is called with some option by name, itself or the one that an adapter is around."""
    inside = getattr(model, "get_base_model", None)
    asked = [model] if inside is None else [model, inside()]
    return any(option in inspect.signature(each.forward).parameters for each in asked)


def keeps_apart(model: nn.Module, separator: int) -> bool:
    """Find out whether documents of one sequence, each begun by a separator, say the same whatever stands before them.

    No signature tells: learnt positions, convolutions and recurrent states take `position_ids` and still carry one document into the next.
    The same document stands behind several others in one batch, where every row is computed alike: it may differ by no more than it
    does behind one and the same, which in half precision is what the smallest leaks are seen by. Positions are held against those of
    the document alone, within rounding.

    Args:
        model: Of Transformers, `model(input_ids=..., position_ids=...)`.
        separator: Token that begins each document.
    """
    if not takes(model, "position_ids"):
        return False
    weights = next(model.parameters(), None)
    if weights is None or weights.device.type == "meta" or not weights.numel():
        return True
    size = int(getattr(getattr(model, "config", None), "vocab_size", 5))
    drawn = torch.randint(size - 1, (_TRIED + 1, 2), generator=torch.Generator().manual_seed(0))
    drawn += (drawn >= separator).long()
    drawn[_TRIED // 2] = drawn[_TRIED - 1] = drawn[0]
    begins = torch.full((_TRIED, 1), separator)
    tokens = torch.cat([begins, drawn[:-1], begins, drawn[-1:].expand(_TRIED, 2)], dim=1).to(weights.device)
    options = {"use_cache": False} if takes(model, "use_cache") else {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            behind, alone = (
                model(input_ids=ids, position_ids=positions_within(ids, separator), **options).logits[:, -3:].float()
                for ids in (tokens, tokens[:, 3:])
            )
    finally:
        model.train(was_training)
    most = alone.abs().max()
    leaks, same = (behind - behind[0]).abs(), (behind - behind[0])[[_TRIED // 2, _TRIED - 1]].abs()
    full = weights.dtype in (torch.float32, torch.float64)
    spread = 4 * same.max() + 5e-7 * most
    return bool(leaks.max() <= spread) and bool((behind - alone).abs().max() <= (2e-5 if full else 0.05) * most)


def separator_of(mode: str) -> int | None:
    """Return the separator that a book notes in the `mode` of its teacher; None where it saw documents together.

    >>> separator_of("eval, documents apart at token 7"), separator_of("eval")
    (7, None)
    """
    found = re.search(rf"{_APART} (\d+)", mode)
    return int(found[1]) if found else None


def documents_apart(modes: Iterable[str], where: str) -> int | None:
    """Return the separator of teachers by what books note of their `mode`; None where they saw documents together.

    Raises:
        ConfigError: for teachers that saw documents differently.
    """
    found = {separator_of(mode) for mode in modes}
    if len(found) > 1:
        do = "Learn from books whose teachers saw documents alike."
        raise ConfigError(expected("teachers", "of one separator", sorted(map(str, found)), where=where, do=do))
    return next(iter(found), None)


def _longest(dataset: Any, separator: int | None) -> int:
    """Return the tokens of the longest text of a data set whose positions are counted in one; 0 where it does not tell."""
    if separator is None:
        return int(getattr(dataset, "most_positions", 0))
    tokens, ends = getattr(dataset, "tokens", None), getattr(dataset, "ends", None)
    if tokens is None or ends is None:
        return 0
    starts = np.union1d(np.flatnonzero(np.asarray(tokens) == separator), np.concatenate([[0], ends]))
    return int(np.diff(starts).max(initial=0))


def positions_within(tokens: Tensor, separator: int) -> Tensor:
    """Return the position of each token inside of its document, int64 [batch, length], 0 at each `separator`.

    >>> positions_within(torch.tensor([[9, 4, 5, 9, 6]]), 9)
    tensor([[0, 1, 2, 0, 1]])
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.where(tokens == separator, places, 0).cummax(dim=1).values
    return places - begins


def load_causal_lm(
    folder: str | Path, *, separator: int | None = None, dtype: torch.dtype | None = None
) -> LanguageModel:
    """Load a causal language model of Transformers from a folder on this machine.

    Weights are read from safetensors alone; nothing is fetched, unpickled or run that the folder brings.

    Args:
        folder: As `save_pretrained` writes it: `config.json` and `*.safetensors`.
        separator: See `LanguageModel`.
        dtype: Of the weights; None for that of the files.

    Raises:
        MissingExtraError: if Transformers is not installed.
        WeightsError: if there is no such folder, or no model of a kind that Transformers knows in it.
    """
    model = loaded("AutoModelForCausalLM", folder, "a causal language model of Transformers", dtype)
    return LanguageModel(model, separator=separator)


def create_causal_lm(config: Mapping[str, Any], *, vocabulary: int, separator: int | None = None) -> LanguageModel:
    """Build a causal language model from its configuration, with initial values of torch's global generator.

    Args:
        config: `model_type`, such as "gpt2" or "llama", and its options, such as `n_layer`.
        vocabulary: Tokens that there are.
        separator: See `LanguageModel`.

    Raises:
        MissingExtraError: if Transformers is not installed.
        ConfigError: for a kind or an option that Transformers does not know.
    """
    model = configured("AutoModelForCausalLM", config, vocabulary, "create_causal_lm")
    return LanguageModel(model, separator=separator)


def pack(
    name: str,
    documents: Iterable[Sequence[int]],
    *,
    length: int,
    separator: int,
    vocabulary: int,
    end: int | None = None,
    tokenizer: str = "",
    drop_last: bool = True,
    control: tuple[int, ...] = (),
) -> TokenDataset:
    """Lay documents end to end, each behind a separator, and cut them into sequences of one length.

    The separator itself is not learnt: nothing before it says that a document ends there and which comes next. So a model of packed text
    does not learn to end, unless there is an `end` behind each document, which is. A document that is cut goes on in the next sequence,
    without what stood before.

    Args:
        name: Name of the set.
        documents: Tokens of each.
        length: Tokens of a sequence, at least 2.
        separator: Token in front of each document.
        vocabulary: Tokens that there are.
        end: Token behind each document, which is learnt; None for none. What a model ends by when it writes (`Decoding.end`).
        tokenizer: Digest of the tokenizer.
        drop_last: Leave out the shorter rest at the end; else it is a sequence of its own.
        control: See `TokenDataset`.

    Raises:
        ConfigError: for a sequence of fewer than two tokens, a separator that is no number, or an end that is the separator.
        DataError: for documents that are no tokens.

    >>> data = pack("mine", [[1, 2], [3, 4, 5]], length=4, separator=0, vocabulary=6)
    >>> [row.tolist() for row in data[0]]
    [[0, 1, 2, 0], [-1, 1, 2, -1]]
    """
    at_least(length, 2, "length", where="pack")
    if isinstance(separator, bool) or not isinstance(separator, int):
        do = "Pass one of the tokenizer's tokens; of texts that are no documents end to end, use TokenDataset.of."
        raise ConfigError(expected("separator", "the number of a token", separator, where="pack", do=do))
    if end is not None and end == separator:
        do = "Use a token of its own, such as the tokenizer's end of text."
        raise ConfigError(expected("end", "another token than the separator", end, where="pack", do=do))
    behind = [] if end is None else [end]
    flat = np.concatenate(
        [
            np.concatenate([[separator], as_tokens(document, f"{name}, document {place}"), behind]).astype(np.int32)
            for place, document in enumerate(documents)
        ]
        or [np.empty(0, np.int32)]
    )
    count, rest = divmod(len(flat), length)
    ends = np.arange(1, count + 1, dtype=np.int64) * length
    if rest >= 2 and not drop_last:
        ends = np.append(ends, len(flat))
    flat = flat[: int(ends[-1]) if len(ends) else 0]
    return TokenDataset(
        name,
        flat,
        ends,
        vocabulary,
        tokenizer=tokenizer,
        learnt=flat != separator,
        pad_value=separator,
        control=control,
        separator=separator,
    )
