"""The door of TRL: an `SFTTrainer` that learns from a book, for scripts that have one already.

    from bookkd.learning.sft import BookSFTTrainer, sft_rows

    rows = sft_rows(dataset, arguments, tokenizer)
    make("book", teacher, tokens_of(rows, vocabulary=V, tokenizer=tokenizer), Views(None, n_views=1), task=CausalLM(V), codec=TopK(50))
    BookSFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer, book="book").train()

Imports TRL; no other module of this package does.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from bookkd.core.errors import ConfigError, MissingExtraError, expected
from bookkd.core.names import require
from bookkd.learning._hugging_face_rows import Collator
from bookkd.learning.hugging_face import BookLoss
from bookkd.methods import Method

__all__ = ["BookSFTTrainer", "sft_rows"]

try:
    trl: Any = importlib.import_module("trl")
except ModuleNotFoundError as error:  # no extra brings it: it is for those who have it
    raise MissingExtraError(
        "This needs the package 'trl', which is not installed. Run: pip install 'bookkd[language]' trl"
    ) from error

_SFTTrainer: Any = trl.SFTTrainer


class BookSFTTrainer(BookLoss, _SFTTrainer):  # type: ignore[misc]
    """A `trl.SFTTrainer` whose loss is a method's, with a book in place of the teacher.

    Rows are what TRL makes of the script's data: text, prompt and completion, or messages, through the script's own tokenizer,
    template, truncation and masks (`completion_only_loss`, `assistant_only_loss`). The book is made of the same rows (`sft_rows`); 64 of
    them are held against it before training. Evaluation measures TRL's own loss.

    Args:
        model: A causal language model.
        args: `trl.SFTConfig`.
        book: Folder or address of the book, or knowledge that was opened before.
        method: What to minimise; `LLMKD()` where None.
        rows: Row of the book of each row that TRL makes, where those are a part or another order of them; None where they are the same.
        probe_share: Share of the rows whose tokens are compared with those that the teacher saw, 0 to 1.
        **options: Of `trl.SFTTrainer`.

    Raises:
        ConfigError: for packing and padding-free batches, for streamed data, or a method that wants more than the book has.
        BookMismatchError: for rows that the book is not about.
        ViewMismatchError: for other tokens.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        book: Any,
        method: Method | None = None,
        rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
        probe_share: float = 0.02,
        **options: Any,
    ) -> None:
        _check(args)
        self.open_book(book, method, probe_share, args, options)
        super().__init__(model, args, **options)
        _check(self.args)
        self.check_student()
        self.train_dataset: Any = self.numbered(self.train_dataset, rows)
        self.data_collator: Any = Collator(self.data_collator)


def sft_rows(dataset: Any, args: Any, processing_class: Any, **options: Any) -> Any:
    """Return the rows that TRL makes of a data set, as `BookSFTTrainer` will see them: what the book is to be made of.

    Args:
        dataset: As for `trl.SFTTrainer`.
        args: The script's `trl.SFTConfig`.
        processing_class: The script's tokenizer.
        **options: Others of `trl.SFTTrainer` that touch the rows, such as `formatting_func`.

    Returns:
        A `datasets.Dataset` with `input_ids` and `labels`; pass it through `bookkd.learning.hugging_face.tokens_of`.

    Raises:
        ConfigError: for packing and padding-free batches.
    """
    _check(args)
    trainer = _SFTTrainer(
        _small_model(processing_class),
        copy.deepcopy(args),
        train_dataset=dataset,
        processing_class=processing_class,
        **options,
    )
    return trainer.train_dataset


def _check(args: Any) -> None:
    """Refuse what makes other rows, or rows that stand in one another."""
    where = "BookSFTTrainer"
    for option in ("packing", "padding_free"):
        if getattr(args, option, False):
            do = "Leave it out, or lay documents end to end with bookkd.zoo.pack and use BookTrainer."
            wish = "False: a row of the book is one row of the data"
            raise ConfigError(expected(option, wish, True, where=where, do=do))
    if getattr(args, "loss_type", "nll") not in ("nll", None):
        do = "The loss is that of `method`."
        raise ConfigError(expected("loss_type", "left out", args.loss_type, where=where, do=do))


def _small_model(processing_class: Any) -> nn.Module:
    """Return a model of no size: TRL asks for one to make rows, which depend on the tokenizer alone."""
    transformers = require("transformers", "language")
    config = transformers.GPT2Config(vocab_size=len(processing_class), n_embd=2, n_layer=1, n_head=1, n_positions=2)
    found: nn.Module = transformers.GPT2LMHeadModel(config)
    return found
