"""Augmentation of token sequences, by name; it draws from the generators that a view seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, DataError, expected

__all__ = ["TokenMask", "token_mask"]


@dataclass(frozen=True)
class TokenMask:
    """Replace each token by a mask token, with a probability of its own draw; made by `token_mask`.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...>
    >>> token_mask(mask=9, share=0.5, never=(0,))(torch.tensor([0, 1, 2, 3, 4, 0]))
    tensor([0, 1, 9, 9, 9, 0])
    """

    mask: int
    share: float
    never: tuple[int, ...]

    def check_data(self, dataset: Any) -> None:
        """Refuse a data set that has no such token.

        Raises:
            ConfigError: naming the mask.
        """
        count = getattr(dataset, "vocabulary", None)
        if isinstance(count, int) and self.mask >= count:
            do = "Use a token of the tokenizer, such as its [MASK]."
            wish = f"a token of the data, from 0 to {count - 1}"
            raise ConfigError(expected("mask", wish, self.mask, where="transform token-mask", do=do))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the tokens, int [tokens], some of them replaced."""
        if tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            got = f"{tokens.dtype} of shape {list(tokens.shape)}"
            raise DataError(expected("view", "whole numbers in one row", got, where="transform token-mask"))
        # One draw a token, whatever it is, so that what is spared does not move the draws of the others.
        chosen = torch.rand(len(tokens)) < self.share
        if self.never:
            chosen &= ~torch.isin(tokens, torch.tensor(self.never, dtype=tokens.dtype))
        return torch.where(chosen, self.mask, tokens)


def token_mask(*, mask: int, share: float = 0.15, never: Sequence[int] = ()) -> TokenMask:
    """Replace a share of the tokens of a sequence by a mask token: the same text, with some words missing.

    A batch is filled up behind it, so that padding is never replaced; labels of tokens stay those of the text.

    Args:
        mask: The token that stands for a missing one.
        share: Probability of each token to be replaced, 0 to 1.
        never: Tokens that stay: special ones, such as those of `bookkd.zoo.special_tokens`.

    Source: Devlin, Chang, Lee, Toutanova, "BERT", 2018, section 3.1, the share; https://arxiv.org/abs/1810.04805.
    """
    where = "transform token-mask"
    for token in (mask, *never):
        at_least(token, 0, "token", where=where)
    return TokenMask(mask, between(share, 0, 1, "share", where=where), tuple(never))
