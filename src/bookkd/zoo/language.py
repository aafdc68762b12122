"""Language models and tokenizers of Transformers, from local files alone, as networks that take tokens and give logits."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor, nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, WeightsError, expected
from bookkd.core.jsonio import canonical
from bookkd.core.names import require
from bookkd.zoo.sequences import TokenDataset

__all__ = [
    "LanguageModel",
    "create_causal_lm",
    "load_causal_lm",
    "load_tokenizer",
    "pack",
    "positions_within",
    "special_tokens",
    "tokenizer_digest",
]

_EXTRA = "language"


class LanguageModel(nn.Module):
    """A causal language model as a network: tokens [batch, length] in, logits [batch, length, outputs] out.

    Padding may stand at the end of a sequence: what a causal model says at a token depends on no later one, so that it needs no mask.

    Args:
        model: `model(input_ids=...)` gives an object with `.logits`, such as any `AutoModelForCausalLM`.
        separator: Token that begins each document where several stand in one sequence (`pack`). Positions are counted from it, and no
            document sees the one before it, which is tried out on two short ones; None where a sequence is one text.

    Raises:
        ConfigError: for a separator of a model that lets documents see one another.
    """

    def __init__(self, model: nn.Module, *, separator: int | None = None) -> None:
        super().__init__()
        self.model, self.separator = model, separator
        takes = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in takes else {}
        if separator is not None and ("position_ids" not in takes or not self._keeps_apart(separator)):
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
        return "" if self.separator is None else f"documents apart at token {self.separator}"

    def _keeps_apart(self, separator: int) -> bool:
        """Find out whether a document says the same alone and behind another: no signature tells.

        Learnt positions, convolutions and recurrent states take `position_ids` and still carry one document into the next.
        """
        weights = next(self.model.parameters(), None)
        if weights is None or weights.device.type == "meta":
            return True
        size = int(getattr(getattr(self.model, "config", None), "vocab_size", 5))
        a, b, c, d = (token % size if token % size != separator else (token + 1) % size for token in range(1, 5))
        first, second = [separator, a, b], [separator, c, d]
        both = torch.tensor([first + second, second + first], device=weights.device)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                packed = self(both)[0, len(first) :].float()
                alone = self(both[:1, len(first) :])[0].float()
        finally:
            self.model.train(was_training)
        rounding = 2e-5 if weights.dtype in (torch.float32, torch.float64) else 0.05
        return bool((packed - alone).abs().max() <= rounding * alone.abs().max())


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


def loaded(auto: str, folder: str | Path, what: str, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a model of Transformers by the name of its `Auto` class, from files on this machine.

    Raises:
        MissingExtraError: if Transformers is not installed.
        WeightsError: if there is no such folder, or no model of that kind in it.
    """
    path, transformers = _folder(folder, "config.json"), require("transformers", _EXTRA)
    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        model: nn.Module = getattr(transformers, auto).from_pretrained(path, dtype=dtype or "auto", **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(_unreadable(what, error, path)) from error
    return model


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


def configured(auto: str, config: Mapping[str, Any], vocabulary: int, where: str, **fixed: Any) -> nn.Module:
    """Build a model of Transformers by the name of its `Auto` class, from its configuration; `fixed` options stand over its own.

    Raises:
        MissingExtraError: if Transformers is not installed.
        ConfigError: for a kind or an option that Transformers does not know.
    """
    transformers, given = require("transformers", _EXTRA), dict(config)
    kind = given.pop("model_type", None)
    known = getattr(transformers, "CONFIG_MAPPING", {})
    if kind not in known:
        do = "Name a model of Transformers, such as gpt2 or llama."
        raise ConfigError(expected("model_type", "one that Transformers knows", kind, where=where, do=do))
    takes = known[kind]().to_dict()
    for option in given:
        if option not in takes:
            near = ", ".join(sorted(takes, key=lambda each: (not each.startswith(option[:3]), each))[:5])
            raise ConfigError(expected(option, f"an option of {kind}, such as {near}", option, where=where))
    ends = {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id") if takes.get(key) is not None}
    try:
        model: nn.Module = getattr(transformers, auto).from_config(
            known[kind](**{**ends, **given, "vocab_size": vocabulary, **fixed})
        )
    except (ValueError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(expected("config", f"that of a {kind}", text, where=where)) from error
    return model


def load_tokenizer(folder: str | Path, file: str = "tokenizer.json") -> Any:
    """Load the tokenizer of a folder on this machine: a `tokenizers.Tokenizer` from `tokenizer.json` (or another `file`), which is data alone.

    Raises:
        MissingExtraError: if the package tokenizers is not installed.
        WeightsError: if there is none.
    """
    path, tokenizers = _folder(folder, file), require("tokenizers", _EXTRA)
    try:
        return tokenizers.Tokenizer.from_file(str(path / file))
    except Exception as error:  # the package raises plain Exception
        raise WeightsError(_unreadable("a tokenizer", error, path)) from error


def tokenizer_digest(tokenizer: Any) -> str:
    """Return blake3 of what makes tokens of text: vocabulary with the order of its tokens, merges and normalisation.

    Which tokens are special, and which of them were added behind the vocabulary (a pad token, for instance), is a matter of use: the
    same file has one digest whoever opens it.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of Transformers.
    """
    found = json.loads(inner_tokenizer(tokenizer).to_str())
    # How a batch is cut and filled up is not what a token is.
    for entry in ("padding", "truncation"):
        found.pop(entry, None)
    after = found.get("post_processor")
    if after is not None and after.get("type") == "TemplateProcessing" and not after.get("special_tokens"):
        found["post_processor"] = None  # adds nothing; Transformers sets it where there was none
    known = found.get("model", {}).get("vocab", {})
    known = set(known) if isinstance(known, dict) else {each[0] for each in known}
    added = found.get("added_tokens") or []
    found["added_tokens"] = [
        [each["id"], each["content"]] for each in added if not each.get("special") and each["content"] not in known
    ]
    return blake3(canonical(found)).hexdigest()


def special_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens of a tokenizer, rising: begin and end of a text, of a turn, of a call, padding, mask.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of Transformers.
    """
    added = json.loads(inner_tokenizer(tokenizer).to_str()).get("added_tokens") or []
    return tuple(sorted(entry["id"] for entry in added if entry.get("special")))


def inner_tokenizer(tokenizer: Any) -> Any:
    """Return the `tokenizers.Tokenizer` itself, or that of a fast tokenizer of Transformers."""
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(inner, "to_str"):
        do = "Use a fast tokenizer, which has a tokenizer.json."
        raise ConfigError(expected("tokenizer", "one of the package tokenizers", type(tokenizer).__name__, do=do))
    return inner


def pack(
    name: str,
    documents: Iterable[Sequence[int]],
    *,
    length: int,
    separator: int,
    vocabulary: int,
    tokenizer: str = "",
    drop_last: bool = True,
) -> TokenDataset:
    """Lay documents end to end, each behind a separator, and cut them into sequences of one length.

    The separator itself is not learnt: nothing before it says that a document ends there and which comes next. A document that is cut
    goes on in the next sequence, without what stood before.

    Args:
        name: Name of the set.
        documents: Tokens of each.
        length: Tokens of a sequence, at least 2.
        separator: Token in front of each document.
        vocabulary: Tokens that there are.
        tokenizer: Digest of the tokenizer.
        drop_last: Leave out the shorter rest at the end; else it is a sequence of its own.

    >>> data = pack("mine", [[1, 2], [3, 4, 5]], length=4, separator=0, vocabulary=6)
    >>> [row.tolist() for row in data[0]]
    [[0, 1, 2, 0], [-1, 1, 2, -1]]
    """
    at_least(length, 2, "length", where="pack")
    flat = np.concatenate(
        [np.array([separator, *document], dtype=np.int32) for document in documents] or [np.empty(0, np.int32)]
    )
    count, rest = divmod(len(flat), length)
    ends = np.arange(1, count + 1, dtype=np.int64) * length
    if rest >= 2 and not drop_last:
        ends = np.append(ends, len(flat))
    flat = flat[: int(ends[-1]) if len(ends) else 0]
    return TokenDataset(
        name, flat, ends, vocabulary, tokenizer=tokenizer, learnt=flat != separator, pad_value=separator
    )


def _folder(folder: str | Path, file: str) -> Path:
    path = Path(folder)
    if not (path / file).is_file():
        do = "Fetch the model elsewhere, and pass the folder; nothing is fetched here."
        raise WeightsError(expected("folder", f"one with {file}", str(path), where="language model", do=do))
    return path


def _unreadable(what: str, error: Exception, path: Path) -> str:
    return expected("folder", f"one of {what}", " ".join(str(error).split())[:200], where=str(path))
