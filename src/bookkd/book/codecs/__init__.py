"""Codecs: how a field becomes bytes. The table is literal; `docs/book-format.md` has one section for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from bookkd.book.codecs.argmax import Argmax
from bookkd.book.codecs.base import (
    ClassArray,
    Codec,
    Decoded,
    Parts,
    RowIds,
    SampledArray,
    SparseArray,
    UnfitRowError,
    UnreadableRowError,
)
from bookkd.book.codecs.dense import Dense
from bookkd.book.codecs.int8 import Int8
from bookkd.book.codecs.pooled import Pooled
from bookkd.book.codecs.raw import Raw
from bookkd.book.codecs.sampled import Sampled
from bookkd.book.codecs.top_k import TopK
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose

__all__ = [
    "CODECS",
    "Argmax",
    "ClassArray",
    "Codec",
    "Decoded",
    "Dense",
    "Int8",
    "Parts",
    "Pooled",
    "Raw",
    "RowIds",
    "Sampled",
    "SampledArray",
    "SparseArray",
    "TopK",
    "UnfitRowError",
    "UnreadableRowError",
    "codec_from_config",
    "codec_text",
    "codec_to_config",
]

CODECS: dict[str, type[Codec]] = {
    "argmax": Argmax,
    "dense": Dense,
    "int8": Int8,
    "pooled": Pooled,
    "raw": Raw,
    "sampled": Sampled,
    "top_k": TopK,
}
"""Codec name -> class. One line a codec; a test holds this table equal to the cases."""


def codec_to_config(codec: Codec) -> dict[str, Any]:
    """Return `codec` as JSON values.

    >>> codec_to_config(TopK(k=8, temperatures=(1.0, 4.0)))
    {'name': 'top_k', 'configuration': {'k': 8, 'temperatures': [1.0, 4.0]}}
    """
    values = asdict(codec)  # type: ignore[call-overload]
    # An option that lists nothing is left out: books from before it was there say the same.
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value != ()}
    return {"name": codec.name, "configuration": said}


def codec_text(codec: Codec) -> str:
    """Return `codec` for a person: its name, and its options where it has some.

    >>> codec_text(TopK(k=8)), codec_text(Int8())
    ("top_k {'k': 8, 'temperatures': [1.0]}", 'int8')
    """
    found = codec_to_config(codec)
    return f"{found['name']} {found['configuration']}" if found["configuration"] else str(found["name"])


def codec_from_config(config: Mapping[str, Any]) -> Codec:
    """Return the codec that `codec_to_config` wrote down.

    Args:
        config: {"name": ..., "configuration": {...}}; options left out take their defaults.

    Raises:
        UnknownNameError: for a codec that is not in `CODECS`.
        ConfigError: for an unknown or missing option, or a value out of range.

    >>> codec_from_config({"name": "dense", "configuration": {"dtype": "float32"}})
    Dense(dtype='float32')
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise ConfigError(expected("codec", "a mapping with a `name`", config))
    kind = CODECS[choose(config["name"], CODECS, "codec")]
    options = config.get("configuration", {})
    if not isinstance(options, Mapping):
        raise ConfigError(expected("configuration", "a mapping", options, where=f"codec {kind.name}"))
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        choose(option, known, "option", where=f"codec {kind.name}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            expected("configuration", "complete", f"{options}: {error}", where=f"codec {kind.name}")
        ) from error
