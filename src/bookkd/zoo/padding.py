"""Masks of lengths, and proof that what stands behind a text changes nothing of what a network says about it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, expected
from bookkd.zoo.fitting import embedding_rows, positions_of

__all__ = ["check_padding", "filled", "mask_of"]

_TEXTS, _LENGTH, _BEHIND = 8, 3, 2
"""Texts that are tried, their tokens, and the tokens of padding behind each."""


def mask_of(inputs: Tensor, lengths: Tensor) -> Tensor:
    """Return where each sequence of a padded batch is, bool [batch, length].

    >>> mask_of(torch.zeros(2, 3), torch.tensor([1, 3])).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(inputs.shape[1], device=inputs.device) < lengths.to(inputs.device)[:, None]


def filled(inputs: Tensor, there: Tensor, padding: int | None) -> Tensor:
    """Return tokens with a model's own padding behind each sequence, whatever the data set pads with; other inputs as they are.

    >>> filled(torch.tensor([[5, 0]]), torch.tensor([[True, False]]), 3)
    tensor([[5, 3]])
    """
    if padding is None or inputs.dim() != 2 or inputs.is_floating_point():
        return inputs
    return inputs.masked_fill(~there, padding)


def check_padding(network: nn.Module, model: nn.Module) -> None:
    """Refuse a network that says something else of a text when padding stands behind it, although it is told the lengths.

    No signature tells: some take a mask and summarise the last token all the same, or mix all tokens. A few short texts are tried, alone
    and padded, within rounding. What reads no tokens, has no weights yet or too few positions is not tried.

    Args:
        network: Called with tokens and lengths; says something of each text, or of each token.
        model: Of Transformers, inside of it.

    Raises:
        ConfigError: naming the kind of model, or the padding that it has to know.
    """
    rows, weights, room = embedding_rows(model), next(model.parameters(), None), positions_of(model)
    if rows is None or weights is None or weights.device.type == "meta" or not weights.numel():
        return
    config = getattr(model, "config", None)
    padding, end = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
    if isinstance(padding, int) and not 0 <= padding < rows:
        wish = f"a token of the model, from 0 to {rows - 1}"
        raise ConfigError(expected("pad_token_id", wish, padding, where=type(model).__name__))
    plain = torch.arange(rows)
    plain = plain[(plain != (-1 if padding is None else padding)) & (plain != (end if isinstance(end, int) else -1))]
    if not len(plain) or (room is not None and room < _LENGTH + _BEHIND):
        return
    drawn = torch.randint(len(plain), (_TEXTS, _LENGTH + _BEHIND), generator=torch.Generator().manual_seed(0))
    tokens = plain[drawn]
    if isinstance(end, int) and 0 <= end < rows and end != padding:
        tokens[:, _LENGTH - 1] = end  # some read what they say where a text ends
    tokens, lengths = tokens.to(weights.device), torch.full((_TEXTS,), _LENGTH, device=weights.device)
    named = "Some kinds have to know their pad_token_id, and this one is given none." if padding is None else ""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            alone, padded = (network(each, lengths).float() for each in (tokens[:, :_LENGTH], tokens))
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        if padding is None and "pad" in str(error):
            do = "Set it in the model's config (config.json) to the padding of its tokenizer, or to its eos_token_id."
            wish = "the token that texts are filled up with, which the model finds their end by"
            raise ConfigError(expected("pad_token_id", wish, None, where=type(model).__name__, do=do)) from error
        got = f"{type(model).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(expected("model", "one that takes tokens and an attention_mask", got, do=named)) from error
    finally:
        for part, mode in modes:
            part.training = mode
    if padded.dim() == 3:
        padded = padded[:, : alone.shape[1]]
    most, apart = alone.abs().max(), (padded - alone).abs().max()
    if apart > (1e-4 if weights.dtype in (torch.float32, torch.float64) else 0.05) * most:
        got = f"{type(model).__name__}, whose outputs it moves by up to {float(apart):.1g} of {float(most):.1g}"
        do = f"What it says of a text would depend on the batch: use another kind of model. {named}".strip()
        raise ConfigError(expected("model", "one that padding does not change", got, do=do))
