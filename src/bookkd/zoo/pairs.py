"""Pairs of token sequences, such as sentences and their translations, as a data set."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import canonical
from bookkd.zoo.sequences import check_tokens, piece
from bookkd.zoo.transformers_files import plain_tokenizer, tokenizer_digest

__all__ = ["PairDataset", "read_pairs"]

_ARRAYS = ("sources", "source_ends", "targets", "target_ends")


@dataclass(frozen=True, eq=False)
class PairDataset:
    """Source sequences, and the target sequence of each.

    `dataset[i]` is (source tokens, target tokens and `end`). A network is fed the source, and as prefix `begin` and the target shifted
    by one (teacher forcing by the gold prefix), so that a book of what it says is of these targets alone: the fingerprint says so.

    Args:
        name: Name of the set.
        sources: Tokens of all sources, one after another, int [tokens].
        source_ends: Where each ends, rising, int [pairs].
        targets: Tokens of all targets, without `begin` and `end`, int [tokens].
        target_ends: Where each ends, int [pairs].
        vocabulary: Target tokens that there are, special ones too.
        source_vocabulary: Source tokens that there are; that of the targets where None.
        begin: Target token that begins a prefix.
        end: Target token that ends a target.
        pad_value: Source token that shorter sources of a batch are filled up with; no network that heeds lengths sees it.
        tokenizer: Digests of what made tokens of text, source and target; empty where the tokens are what there is.
        texts: The targets as text, which translations are measured against; None where they are made of the tokens.
        dropped: Why how many pairs were left out when the set was made.
        decode: From target tokens to text, where it is known, such as that of the tokenizer; no file keeps it.
        lineage: Of targets that a teacher decoded (`bookkd.making.decode_dataset`): who, and how; None of given ones.

    Raises:
        DataError: for an empty side, tokens outside of the vocabulary, `begin` or `end` inside of a target, or another number of targets
            than of sources.

    >>> data = PairDataset.of("mine", [[4, 5, 2], [6, 2]], [[3, 4], [5]], vocabulary=7, begin=1, end=2)
    >>> data[0], len(data), data.most_positions
    ((tensor([4, 5, 2]), tensor([3, 4, 2])), 2, 3)
    """

    name: str
    sources: npt.NDArray[Any]
    source_ends: npt.NDArray[np.int64]
    targets: npt.NDArray[Any]
    target_ends: npt.NDArray[np.int64]
    vocabulary: int
    source_vocabulary: int | None = None
    begin: int = 1
    end: int = 2
    pad_value: int = 0
    tokenizer: tuple[str, str] = ("", "")
    texts: tuple[str, ...] | None = field(default=None, repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)
    lineage: Mapping[str, Any] | None = None
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False)

    label_is_input = True
    """The target is part of what a network is fed."""

    def __post_init__(self) -> None:
        if self.source_vocabulary is None:
            object.__setattr__(self, "source_vocabulary", self.vocabulary)
        sides = (("source", self.source_vocabulary), ("target", self.vocabulary))
        for side, count in sides:
            tokens, ends = getattr(self, f"{side}s"), getattr(self, f"{side}_ends")
            object.__setattr__(self, f"{side}_ends", check_tokens(tokens, ends, 1, count or 0, f"{self.name}, {side}s"))
        for what, vocabulary in (("begin", self.vocabulary), ("end", self.vocabulary), ("pad_value", sides[0][1])):
            if not 0 <= getattr(self, what) < (vocabulary or 0):
                wish = f"a token from 0 to {(vocabulary or 0) - 1}"
                raise DataError(expected(what, wish, getattr(self, what), where=self.name))
        if len(self.source_ends) != len(self.target_ends):
            got = f"{len(self.source_ends)} and {len(self.target_ends)}"
            raise DataError(expected("sources and targets", "as many of one as of the other", got, where=self.name))
        special = np.flatnonzero((self.targets == self.begin) | (self.targets == self.end))
        if len(special):
            pair = int(np.searchsorted(self.target_ends, special[0], side="right"))
            do = "They are added here: encode targets without special tokens."
            wish, token = "other than begin and end", int(self.targets[special[0]])
            raise DataError(expected("target token", wish, token, where=f"{self.name}, pair {pair}", do=do))
        if self.texts is not None and len(self.texts) != len(self):
            raise DataError(expected("texts", f"one for each of {len(self)} pairs", len(self.texts), where=self.name))

    @classmethod
    def of(
        cls,
        name: str,
        sources: Iterable[npt.ArrayLike],
        targets: Iterable[npt.ArrayLike],
        *,
        most: int | None = None,
        drop: bool = False,
        texts: Sequence[str] | None = None,
        **options: Any,
    ) -> PairDataset:
        """Return the data set of some lists of tokens.

        Args:
            name: Name of the set.
            sources: Tokens of each source, an end token of its own included.
            targets: Tokens of each target, without special ones.
            most: Most tokens of a source, and of a target with its end; None for any.
            drop: Leave out pairs with an empty side or one that is too long, and count them in `dropped`; else they are refused.
            texts: Text of each target.
            options: Those of the class.

        Raises:
            DataError: naming the first pair that is refused.
        """
        pairs = [
            (np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64))
            for source, target in zip(sources, targets, strict=True)
        ]
        faults = [_fault(source, target, most) for source, target in pairs]
        wrong = next((place for place, fault in enumerate(faults) if fault), None)
        if wrong is not None and not drop:
            what, got = faults[wrong] or ("", "")
            wish = f"1 to {most} tokens" if most else "at least one token"
            do = "Correct it, or pass drop=True, which leaves such pairs out and counts them."
            raise DataError(expected(what.split()[-1], wish, got, where=f"{name}, pair {wrong}", do=do))
        kept = [place for place, fault in enumerate(faults) if fault is None]
        counts: dict[str, int] = dict(options.pop("dropped", {}))
        for fault in faults:
            if fault is not None:
                counts[fault[0]] = counts.get(fault[0], 0) + 1
        if not kept:
            raise DataError(expected("pairs", "at least one that is kept", f"none of {len(pairs)}", where=name))
        laid: list[npt.NDArray[Any]] = []
        for side in (0, 1):
            found = [pairs[place][side] for place in kept]
            laid += [np.concatenate(found).astype(np.int32), np.cumsum([len(each) for each in found], dtype=np.int64)]
        some = None if texts is None else tuple(texts[place] for place in kept)
        return cls(name, laid[0], laid[1], laid[2], laid[3], texts=some, dropped=counts, **options)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: tokens have no names here."""
        return ()

    @property
    def prefix(self) -> str:
        """What stands before each target token when a network is fed: part of the fingerprint of the data, and so of a book."""
        return f"gold, begun by {self.begin}, ended by {self.end}"

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Positions of each target: its tokens and the end."""
        return np.diff(self.target_ends, prepend=0) + 1

    @property
    def most_positions(self) -> int:
        """Positions of the longest target."""
        return int(self.lengths.max())

    @property
    def most_source_positions(self) -> int:
        """Tokens of the longest source."""
        return int(np.diff(self.source_ends, prepend=0).max())

    def __len__(self) -> int:
        return len(self.source_ends)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the source, int64 [tokens], and the target with its end, int64 [positions]."""
        source, target = self._tokens(index)
        return torch.from_numpy(source), torch.from_numpy(np.append(target, self.end))

    def part(self, rows: Sequence[int]) -> PairDataset:
        """Return some of the pairs as a data set of their own, in the order given."""
        kept = [self._tokens(int(row)) for row in rows]
        texts = None if self.texts is None else [self.texts[int(row)] for row in rows]
        options = {key: getattr(self, key) for key in (*_NOTES, "decode") if key not in ("name", "texts")}
        return PairDataset.of(self.name, [one for one, _ in kept], [other for _, other in kept], texts=texts, **options)

    def _tokens(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        source, target = (piece(self.sources, self.source_ends, index), piece(self.targets, self.target_ends, index))
        return source.astype(np.int64), target.astype(np.int64)

    def text(self, index: int, decode: Any = None) -> str:
        """Return a target as text: that of `texts`, or by `decode` of its tokens; their numbers where there is neither."""
        if self.texts is not None:
            return self.texts[index]
        tokens = self._tokens(index)[1].tolist()
        return str(decode(tokens)) if decode is not None else " ".join(map(str, tokens))

    def save(self, path: str | Path) -> None:
        """Write the set as one safetensors file, with all that it says of itself."""
        notes = {key: getattr(self, key) for key in _NOTES}
        arrays = {key: np.ascontiguousarray(getattr(self, key)) for key in _ARRAYS}
        write_atomic(Path(path), save(arrays, metadata={"pairs": canonical(notes).decode()}))

    @classmethod
    def load(cls, path: str | Path) -> PairDataset:
        """Read what `save` wrote.

        Raises:
            DataError: if it is no such file.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                notes = json.loads((file.metadata() or {})["pairs"])
                arrays = {key: file.get_tensor(key) for key in _ARRAYS}
            notes["tokenizer"] = tuple(notes["tokenizer"])
            notes["texts"] = None if notes["texts"] is None else tuple(notes["texts"])
            return cls(**arrays, **{key: notes[key] for key in _NOTES})
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            got = " ".join(str(error).split())[:200]
            raise DataError(expected("pairs", "a file that PairDataset.save wrote", got, where=str(path))) from error


_NOTES = tuple(each for each in PairDataset.__dataclass_fields__ if each not in (*_ARRAYS, "decode"))


def read_pairs(
    name: str,
    sources: str | Path,
    targets: str | Path,
    tokenizer: Any,
    target_tokenizer: Any = None,
    *,
    begin: str = "<s>",
    end: str = "</s>",
    pad: str = "<pad>",
    limit: int | None = None,
    most: int | None = None,
    drop: bool = False,
) -> PairDataset:
    """Read two text files of as many lines, of which each is the translation of the other's.

    Args:
        name: Name of the set.
        sources: Text file, or one packed by gzip (`.gz`), in UTF-8.
        targets: Likewise.
        tokenizer: A `tokenizers.Tokenizer` of the sources, see `load_tokenizer`; `end` is put behind each.
        target_tokenizer: Of the targets; the same where None.
        begin: Token of the targets' vocabulary that begins a prefix.
        end: Token of both that ends a sequence.
        pad: Token of the sources that they are filled up with.
        limit: Read so many lines; None for all.
        most: See `PairDataset.of`.
        drop: See `PairDataset.of`.

    Raises:
        DataError: for files of different lengths, text that is no UTF-8, or pairs that `PairDataset.of` refuses.
        ConfigError: for a special token that a tokenizer has not.
    """
    sides = [_lines(sources, limit), _lines(targets, limit)]
    if len(sides[0]) != len(sides[1]):
        got = f"{len(sides[0])} and {len(sides[1])}"
        raise DataError(expected("files", "of as many lines", got, where=f"{sources}, {targets}"))
    coders = (tokenizer, target_tokenizer or tokenizer)
    encoded = [
        [
            each.ids
            for each in plain_tokenizer(coder).encode_batch([line.strip() for line in lines], add_special_tokens=False)
        ]
        for coder, lines in zip(coders, sides, strict=True)
    ]
    close = _token(coders[0], end)
    return PairDataset.of(
        name,
        [[*tokens, close] if tokens else [] for tokens in encoded[0]],
        encoded[1],
        most=most,
        drop=drop,
        texts=[line.strip() for line in sides[1]],
        vocabulary=coders[1].get_vocab_size(),
        source_vocabulary=coders[0].get_vocab_size(),
        begin=_token(coders[1], begin),
        end=_token(coders[1], end),
        pad_value=_token(coders[0], pad),
        tokenizer=(tokenizer_digest(coders[0]), tokenizer_digest(coders[1])),
        decode=coders[1].decode,
    )


def _token(tokenizer: Any, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        do = "Train the tokenizer with it as a special token, or name the one that it has."
        raise ConfigError(expected("token", "one of the tokenizer's vocabulary", token, where="read_pairs", do=do))
    return int(found)


def _lines(path: str | Path, limit: int | None) -> list[str]:
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
        # Not splitlines, which divides at characters that may stand inside of a sentence.
        found = raw.decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, EOFError) as error:
        raise DataError(expected("file", "one of text", " ".join(str(error).split()), where=str(path))) from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(expected("text", "UTF-8", f"other bytes in line {line}", where=str(path))) from error
    return found[:limit]


def _fault(source: npt.NDArray[Any], target: npt.NDArray[Any], most: int | None) -> tuple[str, str] | None:
    """Return what is wrong with a pair, in two words, and what was found; None where nothing is."""
    for side, count, limit in (("source", len(source), most), ("target", len(target), most and most - 1)):
        if count == 0:
            return f"empty {side}", "an empty one"
        if limit is not None and count > limit:
            return f"long {side}", f"{count} tokens"
    return None
