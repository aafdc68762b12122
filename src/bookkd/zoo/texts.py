"""Texts with one class each: tokens as a data set, and encoders of Transformers, from local files alone, as networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bookkd.core.check import at_least, between
from bookkd.core.errors import BookFormatError, ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.jsonio import read
from bookkd.core.names import choose
from bookkd.zoo.fitting import check_classes, check_room
from bookkd.zoo.padding import check_padding, filled, mask_of
from bookkd.zoo.sequences import FlatSequences, check_tokens, piece
from bookkd.zoo.transformers_files import configured, loaded, plain_tokenizer, tokenizer_digest

__all__ = [
    "EncoderModel",
    "TextClassifier",
    "TextDataset",
    "create_text_classifier",
    "is_classifier",
    "load_text_classifier",
]


@dataclass(frozen=True, eq=False)
class TextDataset(FlatSequences):
    """Texts as tokens, each with one class.

    Args:
        name: Name of the set.
        tokens: All texts, one after another, int [tokens].
        ends: Where each ends, rising, the last at the number of tokens, int [texts].
        labels: Class of each text, int [texts]; `IGNORE_LABEL` where nobody knows.
        class_names: Names of the classes, in the order of their numbers.
        vocabulary: Tokens that there are.
        tokenizer: Digest of what made tokens of text; it belongs to the fingerprint.
        pad_value: Token that shorter texts of a batch are filled up with; networks are told the lengths.
        max_length: Tokens that were kept of a text; it belongs to the fingerprint. None where texts were not cut.

    Raises:
        DataError: for ends that divide nothing, empty texts, tokens outside of the vocabulary, or labels that are no class.

    >>> data = TextDataset("mine", np.array([4, 2, 3]), np.array([1, 3]), np.array([0, 1]), ("no", "yes"), vocabulary=5)
    >>> data[1], data.most_positions
    ((tensor([2, 3]), 1), 2)
    """

    name: str
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    vocabulary: int
    tokenizer: str = ""
    pad_value: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", check_tokens(self.tokens, self.ends, 1, self.vocabulary, self.name))
        labels = np.asarray(self.labels)
        if labels.shape != self.ends.shape or labels.dtype.kind not in "ui":
            got = f"{labels.dtype} of shape {labels.shape}"
            raise DataError(expected("labels", f"one class for each of {len(self.ends)} texts", got, where=self.name))
        wrong = np.flatnonzero((labels != IGNORE_LABEL) & ((labels < 0) | (labels >= len(self.class_names))))
        if len(wrong):
            where = f"{self.name}, text {int(wrong[0])}"
            wish = f"from 0 to {len(self.class_names) - 1}"
            raise DataError(expected("label", wish, int(labels[wrong[0]]), where=where))
        object.__setattr__(self, "labels", labels.astype(np.int64))

    @classmethod
    def of(
        cls,
        name: str,
        texts: Iterable[str],
        labels: Sequence[int] | npt.NDArray[np.int64],
        class_names: Sequence[str],
        *,
        tokenizer: Any,
        max_length: int,
    ) -> TextDataset:
        """Make tokens of texts, with the special tokens of the tokenizer around each.

        Args:
            name: Name of the set.
            texts: One a sample.
            labels: Class of each.
            class_names: Names of the classes.
            tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of Transformers.
            max_length: Tokens that are kept of a text, its special tokens included. It belongs to what a book is about, whether or
                not a text is longer.

        Raises:
            DataError: for a text without a single token.
        """
        digest = tokenizer_digest(tokenizer)
        inner = plain_tokenizer(tokenizer)
        inner.enable_truncation(at_least(max_length, 1, "max_length", where=name))
        rows = [np.array(each.ids, dtype=np.int32) for each in inner.encode_batch(list(texts))]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        flat = np.concatenate(rows) if rows else np.empty(0, np.int32)
        padding = inner.token_to_id("[PAD]") or inner.token_to_id("<pad>") or 0
        size = inner.get_vocab_size()
        return cls(name, flat, ends, np.asarray(labels), tuple(class_names), size, digest, padding, max_length)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the tokens of a text, int64 [tokens], and its class."""
        return torch.from_numpy(piece(self.tokens, self.ends, index).astype(np.int64)), int(self.labels[index])


class TextClassifier(nn.Module):
    """An encoder with a linear head: tokens [batch, length] and lengths [batch] in, logits [batch, classes] out.

    Padding is masked, so that it changes no result, which is tried out on a few short texts.

    Args:
        encoder: `encoder(input_ids=..., attention_mask=...)` gives an object with `last_hidden_state`, such as any `AutoModel`
            of an encoder.
        n_classes: Classes.
        pooling: "mean" of the tokens that are there, as sentence encoders have it, or "first" token, as BERT has it.
        dropout: Before the head, 0 to 1.

    Raises:
        ConfigError: for an encoder whose states padding changes.
    """

    def __init__(
        self, encoder: nn.Module, n_classes: int, *, pooling: Literal["mean", "first"] = "mean", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.pooling = choose(pooling, ("mean", "first"), "pooling", where="TextClassifier")
        width = getattr(getattr(encoder, "config", None), "hidden_size", None)
        if not isinstance(width, int):
            got = f"{type(encoder).__name__} without one"
            raise ConfigError(expected("encoder", "one whose config has hidden_size", got, where="TextClassifier"))
        self.encoder = encoder
        self.padding: int | None = getattr(encoder.config, "pad_token_id", None)
        self.dropout = nn.Dropout(between(dropout, 0, 1, "dropout", where="TextClassifier"))
        self.head = nn.Linear(width, at_least(n_classes, 2, "n_classes", where="TextClassifier"))
        check_padding(self, encoder)

    def check_data(self, dataset: Any) -> None:
        """Refuse texts of more tokens than the encoder embeds, or longer than its positions.

        Raises:
            ConfigError: naming which.
        """
        check_room(self.encoder, dataset, str(getattr(dataset, "name", "data")))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of each text."""
        there = mask_of(tokens, lengths)
        said = self.encoder(
            input_ids=filled(tokens, there, self.padding), attention_mask=there.long()
        ).last_hidden_state
        if self.pooling == "first":
            pooled = said[:, 0]
        else:
            pooled = (said * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


class EncoderModel(nn.Module):
    """A whole model of Transformers that gives logits, called as our networks are: inputs [batch, length, ...] and lengths [batch] in.

    Its mask is made of the lengths, so that padding changes no result, which is tried out on a few short texts where it reads tokens; it
    may give one distribution a sequence or one a step, as any `AutoModelForSequenceClassification`, `AutoModelForTokenClassification`
    or `AutoModelForCTC` does.

    Args:
        model: `model(inputs, attention_mask=...)` gives an object with `.logits`.
        class_names: What its outputs are called, in their order, as data sets call them; None for what its configuration says (`id2label`).

    Raises:
        ConfigError: for other names than it has outputs, a model whose outputs padding changes, or one that has to know its padding.
    """

    def __init__(self, model: nn.Module, *, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model = model
        config = getattr(model, "config", None)
        self.padding: int | None = getattr(config, "pad_token_id", None)
        """Token that a classifier of the decoder's kind looks for the end of a text by."""
        names = getattr(config, "id2label", None) or {}
        own = tuple(str(names[place]) for place in sorted(names))
        self.class_names = own if class_names is None else tuple(class_names)
        if own and len(self.class_names) != len(own):
            wish = f"one name for each of {len(own)} outputs"
            raise ConfigError(expected("class_names", wish, ", ".join(self.class_names), where=type(model).__name__))
        self._warned = False
        check_padding(self, model)

    def check_data(self, dataset: Any) -> None:
        """Refuse data of tokens or lengths that the model cannot take, or whose classes are not the model's in its order.

        Where the names of the model are its numbers alone (`LABEL_0`) nothing tells the order, of which there is one warning.

        Raises:
            ConfigError: naming which.
        """
        where = str(getattr(dataset, "name", "data"))
        check_room(self.model, dataset, where)
        if not check_classes(self.class_names, dataset, where) and not self._warned:
            self._warned = True
            do = f"They are taken as {', '.join(dataset.class_names)}: pass that as class_names if it is right."
            got = f"{', '.join(self.class_names)}, by which the order of classes cannot be checked"
            warnings.warn(expected("class_names", "names, of the model", got, where=where, do=do), stacklevel=2)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of each sequence, or of each step."""
        there = mask_of(inputs, lengths)
        logits: Tensor = self.model(filled(inputs, there, self.padding), attention_mask=there.long()).logits
        return logits


_WHOLE = "ForSequenceClassification"


def is_classifier(folder: str | Path) -> bool:
    """Whether the model in a folder is a whole classifier, fine-tuned by Transformers, by the `architectures` of its `config.json`."""
    path = Path(folder) / "config.json"
    try:
        found = read(path).get("architectures") if path.is_file() else None
    except (BookFormatError, OSError):
        return False
    return isinstance(found, list) and any(str(each).endswith(_WHOLE) for each in found)


def load_text_classifier(
    folder: str | Path,
    n_classes: int,
    *,
    head: Literal["own", "new"] | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> TextClassifier | EncoderModel:
    """Load a classifier of Transformers from a folder on this machine, or its encoder alone under a new head.

    A new head has initial values of torch's global generator, so that it has to be trained. Weights are read from safetensors alone; nothing is fetched, unpickled or run that the folder brings.

    Args:
        folder: As `save_pretrained` writes it: `config.json` and `*.safetensors`.
        n_classes: Classes.
        head: "own" for that of the folder, where the model is a classifier (`*ForSequenceClassification`); "new" for one over the
            encoder; None for its own where it has one and no `options` of a new one are given.
        class_names: See `EncoderModel`; of its own head alone.
        options: Of `TextClassifier`, of a new head.

    Raises:
        MissingExtraError: if Transformers is not installed.
        WeightsError: if there is no such folder, or no encoder of a kind that Transformers knows in it.
        ConfigError: for a classifier of other classes, none where its own head is asked for, or one that padding changes.
    """
    if head is None:
        head = "own" if is_classifier(folder) and not options else "new"
    if choose(head, ("own", "new"), "head", where="load_text_classifier") == "own":
        if options:
            do = "They are of a new head: pass head='new'."
            raise ConfigError(expected("options", "absent", options, where="load_text_classifier", do=do))
        if not is_classifier(folder):
            do = "Pass head='new', and train it."
            raise ConfigError(expected("head", "new, as the model has none", head, where=str(folder), do=do))
        model = loaded("AutoModelForSequenceClassification", folder, "a classifier of Transformers")
        theirs = int(getattr(model.config, "num_labels", 0))
        if theirs != n_classes:
            do = "Pass head='new' (args '{\"head\": \"new\"}') to train another head over its encoder."
            raise ConfigError(
                expected("n_classes", f"{theirs}, those of the model", n_classes, where=str(folder), do=do)
            )
        return EncoderModel(model, class_names=class_names)
    if class_names is not None:
        do = "A new head learns the order of the data: leave them out."
        raise ConfigError(expected("class_names", "absent", class_names, where="load_text_classifier", do=do))
    return TextClassifier(loaded("AutoModel", folder, "an encoder of Transformers"), n_classes, **options)


def create_text_classifier(
    config: Mapping[str, Any], *, vocabulary: int, n_classes: int, **options: Any
) -> TextClassifier:
    """Build an encoder and its head from a configuration, with initial values of torch's global generator.

    Args:
        config: `model_type`, such as "bert", and its options, such as `num_hidden_layers`.
        vocabulary: Tokens that there are.
        n_classes: Classes.
        options: Of `TextClassifier`.

    Raises:
        MissingExtraError: if Transformers is not installed.
        ConfigError: for a kind or an option that Transformers does not know.
    """
    encoder = configured("AutoModel", config, vocabulary, "create_text_classifier")
    return TextClassifier(encoder, n_classes, **options)
