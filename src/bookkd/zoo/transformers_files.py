"""Models and tokenizers of Transformers by name or folder, from local files alone: nothing is fetched, unpickled or run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from bookkd.core.errors import ConfigError, WeightsError, expected
from bookkd.core.jsonio import canonical
from bookkd.core.names import require

__all__ = [
    "configured",
    "inner_tokenizer",
    "load_tokenizer",
    "loaded",
    "plain_tokenizer",
    "special_tokens",
    "tokenizer_digest",
]

_EXTRA = "language"


def loaded(auto: str, folder: str | Path, what: str, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a model of Transformers by the name of its `Auto` class, from files on this machine.

    Weights of the model that no file has are warned of, in one line; those of the files that it has no use for, such as another head,
    are left out.

    Raises:
        MissingExtraError: if Transformers is not installed.
        WeightsError: if there is no such folder, or no model of that kind in it.
    """
    path = _folder(
        folder, "config.json", what, "Fetch the model elsewhere, and pass the folder; nothing is fetched here."
    )
    transformers = require("transformers", _EXTRA)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    options |= {"dtype": dtype or "auto", "output_loading_info": True}
    try:
        with _quiet(transformers):
            model, found = getattr(transformers, auto).from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(_unreadable(what, error, path)) from error
    # No encoder's pooler is asked here: its last states are.
    if missing := sorted(key for key in found["missing_keys"] if auto != "AutoModel" or not key.startswith("pooler.")):
        shown = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        wish, do = "in the files of the model", "They have initial values: train them, or use another class of model."
        warnings.warn(
            expected("weights", wish, f"none for {len(missing)}: {shown}", where=str(path), do=do), stacklevel=3
        )
    whole: nn.Module = model
    return whole


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep bars and tables of Transformers out of what we print: what counts of them is told in one line."""
    told = transformers.utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def configured(auto: str, config: Mapping[str, Any], vocabulary: int, where: str, **fixed: Any) -> nn.Module:
    """Build a model of Transformers by the name of its `Auto` class, from its configuration; `fixed` options stand over its own.

    Special tokens are those that are given, and no others: by default they would be those of some vocabulary. Kinds that count positions
    from their padding, as RoBERTa does, keep it.

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
    if given.get("vocab_size", vocabulary) != vocabulary:
        do = "Leave it out: a model has as many tokens as the data."
        raise ConfigError(
            expected("vocab_size", f"{vocabulary}, the vocabulary", given["vocab_size"], where=where, do=do)
        )
    options = known[kind]().to_dict()
    for option in given:
        if option not in options:
            near = ", ".join(sorted(options, key=lambda each: (not each.startswith(option[:3]), each))[:5])
            raise ConfigError(expected(option, f"an option of {kind}, such as {near}", option, where=where))
    ends = {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id") if options.get(key) is not None}
    try:
        model = _built(transformers, auto, known[kind](**{**ends, **given, "vocab_size": vocabulary, **fixed}))
        if "pad_token_id" in ends.keys() - given.keys() - fixed.keys() and _counts_from_padding(model):
            del ends["pad_token_id"]
            model = _built(transformers, auto, known[kind](**{**ends, **given, "vocab_size": vocabulary, **fixed}))
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(expected("config", f"that of a {kind}", text, where=where)) from error
    return model


def _built(transformers: Any, auto: str, config: Any) -> nn.Module:
    model: nn.Module = getattr(transformers, auto).from_config(config)
    return model


def _counts_from_padding(model: nn.Module) -> bool:
    """Whether embeddings of a model, which was given no padding, would count positions from one."""
    return any(
        hasattr(part, "position_embeddings") and getattr(part, "padding_idx", "") is None for part in model.modules()
    )


def load_tokenizer(folder: str | Path, file: str = "tokenizer.json") -> Any:
    """Load the tokenizer of a folder on this machine: a `tokenizers.Tokenizer` from `tokenizer.json` (or another `file`), which is data alone.

    Raises:
        MissingExtraError: if the package tokenizers is not installed.
        WeightsError: if there is none.
    """
    path = _folder(folder, file, "a tokenizer", "Put the file there that the model's tokenizer is kept in.")
    tokenizers = require("tokenizers", _EXTRA)
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


def plain_tokenizer(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer that neither cuts texts nor fills them up, whatever its file says of that.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of Transformers; it stays as it is.
    """
    found = require("tokenizers", _EXTRA).Tokenizer.from_str(inner_tokenizer(tokenizer).to_str())
    found.no_padding()
    found.no_truncation()
    return found


def _folder(folder: str | Path, file: str, what: str, do: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise WeightsError(expected("folder", f"one that is there, with {file}", str(path), where=what, do=do))
    if not (path / file).is_file():
        raise WeightsError(expected("folder", f"one with {file}", str(path), where=what, do=do))
    return path


def _unreadable(what: str, error: Exception, path: Path) -> str:
    return expected("folder", f"one of {what}", " ".join(str(error).split())[:200], where=str(path))
