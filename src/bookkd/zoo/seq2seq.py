"""Encoder-decoder models of Transformers, from local files alone, called like our own: source, its lengths, and prefix in; logits out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import require
from bookkd.zoo.decoding import Hypothesis
from bookkd.zoo.fitting import check_room, positions_of
from bookkd.zoo.transformers_files import configured, loaded

__all__ = ["Seq2SeqModel", "create_seq2seq", "load_seq2seq"]

_AUTO = "AutoModelForSeq2SeqLM"


class Seq2SeqModel(nn.Module):
    """An encoder-decoder model as a network: `network(source, source_lengths, prefix)` -> logits [batch, prefix length, outputs].

    Args:
        model: `model(input_ids=..., attention_mask=..., decoder_input_ids=...)` gives an object with `.logits`, such as any
            `AutoModelForSeq2SeqLM`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.most_positions: int | None = positions_of(model)
        """Longest sequence that the model has positions for; None for any."""
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, source: Tensor, lengths: Tensor, prefix: Tensor) -> Tensor:
        """Return the logits at every position of the prefix.

        Raises:
            DataError: for a sequence that is longer than the model's positions.
        """
        most, longest = self.most_positions, max(source.shape[1], prefix.shape[1])
        if most is not None and longest > most:
            do = "Leave out longer pairs (PairDataset.of, `most`), or use a model of more positions."
            wish = f"at most the {most} positions of the model"
            raise DataError(expected("tokens", wish, longest, where="Seq2SeqModel", do=do))
        said = self.model(
            input_ids=source, attention_mask=_mask(source, lengths), decoder_input_ids=prefix, **self._options
        )
        logits: Tensor = said.logits
        return logits

    def check_data(self, dataset: Any) -> None:
        """Refuse pairs whose tokens or lengths the model cannot take, or whose targets begin or end by other tokens than it knows.

        Raises:
            ConfigError: naming which.
        """
        where = str(getattr(dataset, "name", "data"))
        check_room(self.model, dataset, where)
        config = getattr(self.model, "config", None)
        for what, name in (("begin", "decoder_start_token_id"), ("end", "eos_token_id")):
            mine, theirs = getattr(config, name, None), getattr(dataset, what, None)
            known = mine if isinstance(mine, list | tuple) else [mine]
            if None not in known and theirs is not None and theirs not in known:
                do = f"Make the pairs with that token as `{what}`, or build the model with `{what}`={theirs}."
                wish = f"{', '.join(map(str, known))}, the {name} of the model"
                raise ConfigError(expected(what, wish, theirs, where=where, do=do))

    def generate(
        self,
        source: Tensor,
        lengths: Tensor,
        *,
        begin: int,
        end: int,
        most: int,
        beam: int,
        length_penalty: float,
        vocabulary: int | None = None,
    ) -> list[list[Hypothesis]]:
        """Write targets by Transformers' own decoding; arguments and result as `decode`. The model's own generation config plays no part.

        Scores are those of beam search, in which an end that is forced at token `most` costs nothing; NaN of greedy decoding, which
        keeps none.
        """
        transformers, model = require("transformers", "language"), cast(Any, self.model)
        outputs = int(getattr(getattr(model, "config", None), "vocab_size", vocabulary or 0))
        config = transformers.GenerationConfig(
            max_new_tokens=most,
            num_beams=beam,
            num_return_sequences=beam,
            do_sample=False,
            decoder_start_token_id=begin,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
            forced_bos_token_id=None,
            forced_eos_token_id=end,
            min_length=0,
            return_dict_in_generate=True,
            output_scores=beam > 1,
            suppress_tokens=list(range(vocabulary or outputs, outputs)) or None,  # what the output layer is padded with
            renormalize_logits=True,  # over what is left
            **({"early_stopping": True, "length_penalty": length_penalty} if beam > 1 else {}),
        )
        own = model.generation_config
        try:
            # Its options would be taken where ours are silent.
            model.generation_config = transformers.GenerationConfig()
            made = model.generate(input_ids=source, attention_mask=_mask(source, lengths), generation_config=config)
        finally:
            model.generation_config = own
        scores = made.sequences_scores.tolist() if beam > 1 else [float("nan")] * len(source)
        found = [
            Hypothesis(_until(row[1:], end), score) for row, score in zip(made.sequences.tolist(), scores, strict=True)
        ]
        return [found[place : place + beam] for place in range(0, len(found), beam)]


def load_seq2seq(folder: str | Path, *, dtype: torch.dtype | None = None) -> Seq2SeqModel:
    """Load an encoder-decoder model of Transformers from a folder on this machine.

    Weights are read from safetensors alone; nothing is fetched, unpickled or run that the folder brings.

    Args:
        folder: As `save_pretrained` writes it: `config.json` and `*.safetensors`.
        dtype: Of the weights; None for that of the files.

    Raises:
        MissingExtraError: if Transformers is not installed.
        WeightsError: if there is no such folder, or no model of a kind that Transformers knows in it.
    """
    return Seq2SeqModel(loaded(_AUTO, folder, "an encoder-decoder model of Transformers", dtype))


def create_seq2seq(
    config: Mapping[str, Any], *, vocabulary: int, begin: int = 1, end: int = 2, pad: int = 0
) -> Seq2SeqModel:
    """Build an encoder-decoder model from its configuration, with initial values of torch's global generator.

    Args:
        config: `model_type`, such as "t5", "bart" or "marian", and its options, such as `d_model`.
        vocabulary: Tokens that there are, of both sides.
        begin: Token that begins a prefix.
        end: Token that ends a target.
        pad: Token of padding.

    Raises:
        MissingExtraError: if Transformers is not installed.
        ConfigError: for a kind or an option that Transformers does not know.
    """
    special = {"decoder_start_token_id": begin, "bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad}
    return Seq2SeqModel(configured(_AUTO, config, vocabulary, "create_seq2seq", **special))


def _mask(source: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(source.shape[1], device=source.device) < lengths.to(source.device)[:, None]).long()


def _until(tokens: list[int], end: int) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)
