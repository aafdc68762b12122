"""Whether a network can take the samples of a data set: its tokens, how many there are in a sequence, and its classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from bookkd.core.errors import ConfigError, expected

__all__ = [
    "check_classes",
    "check_features",
    "check_positions",
    "check_room",
    "check_takes",
    "check_tokens_of",
    "embedding_rows",
    "positions_of",
]


def check_takes(network: Any, dataset: Any) -> None:
    """Let a network refuse samples that it cannot take: by its own `check_data(dataset)`, or a model of Transformers by its configuration.

    Raises:
        ConfigError: naming what it cannot take.
    """
    check = getattr(network, "check_data", None)
    if check is not None:
        check(dataset)
    elif hasattr(network, "get_input_embeddings"):
        check_room(network, dataset, type(network).__name__)


def check_room(model: nn.Module, dataset: Any, where: str, *, positions: bool = True) -> None:
    """Refuse a data set of more tokens than a model of Transformers embeds, or of longer sequences than it has positions for.

    Args:
        model: Of Transformers.
        dataset: Of tokens, with or without classes, or of pairs.
        where: Who is asked, for the error.
        positions: Whether sequences are held against the positions too.

    Raises:
        ConfigError: naming which.
    """
    pairs = getattr(dataset, "label_is_input", False)
    check_tokens_of(dataset, embedding_rows(model), where, side="source" if pairs else "")
    decoder = _decoder(model) if pairs else None
    if decoder is not None:
        check_tokens_of(dataset, embedding_rows(decoder), where, side="target")
    room = positions_of(model) if positions else None
    if room is not None:
        check_positions(dataset, room, where)
    padding, tokens = _counted_from(model), getattr(dataset, "tokens", None)
    if padding is not None and tokens is not None and bool(np.any(np.asarray(tokens) == padding)):
        do = "Name one that no text has in the model's configuration: positions are counted from it."
        raise ConfigError(expected("pad_token_id", "a token of no text", padding, where=where, do=do))


def check_classes(names: Sequence[str], dataset: Any, where: str) -> bool:
    """Refuse a data set whose classes stand in another order than a model's outputs, or have other names.

    Names are one where they differ in case alone. A data set of more or fewer classes is none of this: its logits do not fit.

    Args:
        names: What the outputs of the model are called, in their order; empty where nobody knows.
        dataset: With or without `class_names`.
        where: Who is asked, for the error.

    Returns:
        Whether the order is known: not where the names of the model are its numbers alone (`LABEL_0`).

    Raises:
        ConfigError: saying both orders.
    """
    theirs = tuple(map(str, getattr(dataset, "class_names", ())))
    if not names or len(theirs) != len(names):
        return True
    mine, others = ([each.casefold() for each in some] for some in (names, theirs))
    if len(set(mine)) < len(mine) or len(set(others)) < len(others):
        mine, others = list(names), list(theirs)  # some differ in case alone
    if mine == others:
        return True
    if sorted(mine) != sorted(others) and all(
        re.fullmatch(rf"(label[ _]?)?{place}", each.casefold()) for place, each in enumerate(names)
    ):
        return False
    do = "Give the data set the model's order of classes (id2label)."
    if sorted(mine) != sorted(others):
        do = "If they mean the same in this order, pass them as class_names to EncoderModel or load_text_classifier."
    wish = f"{', '.join(names)}, as the model has them"
    raise ConfigError(expected("class_names", wish, ", ".join(theirs), where=where, do=do))


def check_positions(dataset: Any, room: int, where: str) -> None:
    """Refuse a data set of longer sequences, on either side of a pair, than `room`.

    Raises:
        ConfigError: naming the longest.
    """
    longest = max(_whole(dataset, "most_positions"), _whole(dataset, "most_source_positions"))
    if longest > room:
        do = "Cut the text shorter, or use a model of more positions."
        wish = f"sequences of at most {room} tokens, the positions of the model"
        raise ConfigError(expected("data", wish, longest, where=where, do=do))


def check_tokens_of(dataset: Any, rows: int | None, where: str, *, side: str = "") -> None:
    """Refuse a data set of more tokens than a network embeds.

    Args:
        dataset: Says how many by `vocabulary` (sources of pairs by `source_vocabulary`), or has whole numbers as `inputs`.
        rows: Tokens that the network embeds; None where nobody knows.
        where: Who is asked, for the error.
        side: "source" or "target" of pairs.

    Raises:
        ConfigError: for one.
    """
    if rows is None:
        return
    count = _whole(dataset, "source_vocabulary" if side == "source" else "vocabulary")
    inputs = None if count or side else getattr(dataset, "inputs", None)
    if inputs is not None and inputs.dtype.kind in "iu" and inputs.size:
        count = int(np.max(inputs)) + 1
    if count > rows:
        do = "Use a network of the data's tokens, or the tokenizer that the network was made for."
        what = f"{side} tokens of the network".strip()
        raise ConfigError(expected(what, f"at least {count}, those of the data", rows, where=where, do=do))


def check_features(dataset: Any, features: int | None, where: str) -> None:
    """Refuse a data set of other features a step than a network reads.

    Args:
        dataset: Says how many by `n_features`.
        features: Features that the network reads; None of one that reads tokens.
        where: Who is asked, for the error.

    Raises:
        ConfigError: for one, or for features where tokens are read, and the other way.
    """
    found = getattr(dataset, "n_features", None)
    given = found if isinstance(found, int) else None
    unknown = given is None and getattr(dataset, "inputs", None) is None
    if not unknown and given != features:
        wish = "tokens, no features" if given is None else f"{given}, those of the data"
        got = "of tokens" if features is None else features
        raise ConfigError(expected("features of the network", wish, got, where=where))


def embedding_rows(model: nn.Module) -> int | None:
    """Return the tokens that a model of Transformers embeds; None where it embeds none, or does not say."""
    try:
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    found = getattr(table, "num_embeddings", None)
    return found if isinstance(found, int) else None


def positions_of(model: Any) -> int | None:
    """Return the tokens of the longest sequence that a model of Transformers has positions for; None where it does not say."""
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    table = _counting(model)
    return found if table is None else int(table.num_embeddings - table.padding_idx - 1)


def _counting(model: Any) -> Any:
    """Return the table of positions of a model that counts them on from its padding, as RoBERTa does; None of others."""
    for name, part in model.named_modules() if isinstance(model, nn.Module) else ():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part
    return None


def _counted_from(model: Any) -> int | None:
    table = _counting(model)
    return None if table is None else int(table.padding_idx)


def _decoder(model: Any) -> Any:
    try:
        return model.get_decoder()
    except (AttributeError, NotImplementedError):
        return None


def _whole(dataset: Any, name: str) -> int:
    found = getattr(dataset, name, None)
    return int(found) if isinstance(found, int | np.integer) else 0
