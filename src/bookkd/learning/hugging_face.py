"""The door of Transformers: a `Trainer` that learns from a book, for scripts that have one already.

    from bookkd.learning.hugging_face import BookTrainer

    trainer = BookTrainer(model, arguments, train_dataset=dataset, book="books/teacher", processing_class=tokenizer)
    trainer.train()

Imports Transformers; no other module of this package does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bookkd.book import Positions, RaggedArray
from bookkd.core.check import between
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, ViewMismatchError, expected
from bookkd.core.fields import (
    IGNORE_LABEL,
    INPUT,
    LABEL,
    LENGTH,
    PROBE_HASH,
    PROBE_PROJECTIONS,
    PROBE_TAKEN,
    SAMPLE,
    VIEW,
    WEIGHT,
)
from bookkd.core.names import require
from bookkd.core.rng import draw64
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge, check_needs
from bookkd.methods import LLMKD, Method
from bookkd.tasks import CausalLM
from bookkd.views import probe
from bookkd.zoo import TokenDataset, tokenizer_digest

__all__ = ["BookLoss", "BookTrainer", "tokens_of"]

_IGNORED = -100
"""What Transformers calls a label that is not to be learnt."""

_CHECKED = 64
"""Rows whose tokens are compared before training."""

_Trainer: Any = require("transformers", "language").Trainer
_Mixed: Any = object
"""What `BookLoss` stands before is known where it is used."""


def tokens_of(dataset: Any, *, vocabulary: int, tokenizer: Any = None, name: str = "tokens") -> TokenDataset:
    """Return a data set of Transformers as one that a book is made of: the same rows under the same numbers.

    Args:
        dataset: `dataset[i]` is a mapping with `input_ids` and, if not every token is to be learnt, `labels`.
        vocabulary: Tokens that there are.
        tokenizer: What made them, for the fingerprint; None where nobody knows.
        name: Name of the set.

    Raises:
        DataError: for rows without tokens, or labels of another length.

    >>> rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9]}]
    >>> tokens_of(rows, vocabulary=10)[0]
    (tensor([5, 6, 7]), tensor([-1,  6,  7]))
    """
    tokens, learnt = [], []
    for number in range(len(dataset)):
        row = dataset[number]
        ids = np.asarray(row.get("input_ids", []), dtype=np.int64)
        labels = np.asarray(row.get("labels", ids), dtype=np.int64)
        if labels.shape != ids.shape:
            where = f"{name}, sample {number}"
            raise DataError(expected("labels", f"one for each of {len(ids)} tokens", labels.shape, where=where))
        tokens.append(ids)
        learnt.append(labels != _IGNORED)
    digest = "" if tokenizer is None else tokenizer_digest(tokenizer)
    flat = np.concatenate(learnt) if learnt else np.empty(0, bool)
    given = None if flat.all() else flat
    return TokenDataset.of(name, tokens, vocabulary=vocabulary, tokenizer=digest, learnt=given)


class _Numbered(Dataset[dict[str, Any]]):
    """A data set whose rows say their number, by which the book is read in whatever order they come."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], SAMPLE: int(index)}


class _Collator:
    """The collator of the script, and the numbers of the rows beside what it makes."""

    def __init__(self, inner: Callable[[list[Any]], Any]) -> None:
        self.inner = inner

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        numbers = [row.get(SAMPLE) for row in rows]
        batch = dict(self.inner([{key: row[key] for key in row if key != SAMPLE} for row in rows]))
        if all(number is not None for number in numbers):
            batch[SAMPLE] = torch.tensor(numbers)
        return batch


class BookLoss(_Mixed):  # type: ignore[misc]
    """What makes a trainer of Transformers learn from a book: put before it among the bases, see `BookTrainer`.

    The loss is the sum over terms and positions, divided by the learnt tokens of the whole accumulated batch over all devices, so
    that it does not depend on how these are divided. Evaluation measures the trainer's own loss on labels. Before training 64 rows,
    and in it a share of them, have their tokens held against the probes of the book.
    """

    def open_book(self, book: Any, method: Method | None, probe_share: float) -> None:
        """Open the book and check that it serves the method; to be called before the trainer is built."""
        self.knowledge = book if isinstance(book, StoredKnowledge) else StoredKnowledge(book)
        self.probe_share = between(probe_share, 0, 1, "probe_share", where=type(self).__name__)
        method, plan = method or LLMKD(), self.knowledge.book.plan
        _check_book(plan, self.where)
        self.task = CausalLM(int(plan.data["vocabulary"]), masked=tuple(plan.masked_classes))
        self.objective = method.objective(self.task)
        check_needs(method.needs(self.task), self.knowledge, method.name)

    @property
    def where(self) -> str:
        """Where the book is, for errors."""
        return str(self.knowledge.book.path)

    def check_rows(self, dataset: Any, model: Any, tokenizer: Any) -> None:
        """Refuse other rows than those that the book was made of.

        Raises:
            BookMismatchError: for another number of rows, rows cut at another length, another tokenizer or a smaller vocabulary.
            ViewMismatchError: for other tokens.
        """
        _check_same(self.knowledge.book.plan, model, dataset, tokenizer, self.where)
        if dataset is not None:
            _check_tokens(self.knowledge, dataset, self.where)

    def take_numbers(self) -> None:
        """Let batches say which rows they are of; to be called when the trainer is built."""
        self.data_collator: Any = _Collator(self.data_collator)
        # The loss is divided over the accumulated batch here; the second name is that of versions before there was the first.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if SAMPLE not in self._signature_columns:
            self._signature_columns += [SAMPLE]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the batches of a step, and how many tokens are learnt in them on all devices."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or any(SAMPLE not in batch for batch in batches):
            return batches, count
        # Counted here, since what Transformers counts has differed from version to version.
        learnt = torch.stack([self.task.batch(self._batch(batch, batch[SAMPLE]))[WEIGHT].sum() for batch in batches])
        total = learnt.sum().to(device)
        if self._over_devices:
            total = self.accelerator.gather(total).sum()
        return batches, total

    @property
    def _over_devices(self) -> bool:
        """Whether a step is one mean over all devices, and not a mean of the means of each."""
        return bool(getattr(self.args, "average_tokens_across_devices", True)) and self.args.world_size > 1

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the method's loss on rows of the book, the model's own on others."""
        samples = inputs.pop(SAMPLE, None)
        if samples is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = self._batch(inputs, samples)
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        said = self.task.fields(outputs, batch)
        seen = self.task.batch(batch)
        targets = self.knowledge.targets({**batch, **self._probes(batch)}, tuple(self.objective.needs()))
        sums = self.objective.sums(said, targets, seen, seen[WEIGHT], self._clock())
        totals = self.objective.totals(seen, seen[WEIGHT])
        if num_items_in_batch is not None:
            totals = torch.ones_like(totals) * torch.as_tensor(num_items_in_batch).to(totals)
        loss = self.objective.loss(sums, totals, self._clock())
        if num_items_in_batch is not None and self._over_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over devices
        return (loss, outputs) if return_outputs else loss

    def _clock(self) -> Clock:
        return Clock(self.state.global_step, float(self.state.epoch or 0.0), max(1, self.state.max_steps))

    def _batch(self, inputs: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        """Return what a collator of Transformers made, under the names of this package."""
        tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        if mask is not None and mask.ndim == 2:
            lengths = mask.sum(dim=1)
            if bool((mask != (torch.arange(tokens.shape[1], device=mask.device) < lengths[:, None])).any()):
                do = 'Set the tokenizer\'s padding_side to "right".'
                raise ConfigError(
                    expected("padding", "at the end of each row", "elsewhere", where=type(self).__name__, do=do)
                )
        labels = inputs.get("labels", tokens)
        return {
            INPUT: tokens,
            LENGTH: lengths,
            LABEL: labels.masked_fill(labels == _IGNORED, IGNORE_LABEL),
            WEIGHT: torch.ones(len(tokens), device=tokens.device),
            SAMPLE: samples.cpu(),
            VIEW: torch.zeros(len(tokens), dtype=torch.int64),
        }

    def _probes(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the probes of some rows, chosen by their numbers and the step."""
        samples = batch[SAMPLE].numpy()
        steps = np.full(len(samples), self.state.global_step)
        draws = draw64(int(self.args.seed), "probe share", samples, steps)[:, 0]
        taken = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.probe_share
        hashes = torch.zeros(len(taken), dtype=torch.int64)
        projections = torch.zeros(len(taken), 2, dtype=torch.float64)
        rows = np.flatnonzero(taken).tolist()
        if rows:
            views = [batch[INPUT][row, : int(batch[LENGTH][row])].cpu() for row in rows]
            hashes[rows], projections[rows] = probe(views)
        return {PROBE_TAKEN: torch.from_numpy(taken), PROBE_HASH: hashes, PROBE_PROJECTIONS: projections}


class BookTrainer(BookLoss, _Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` whose loss is a method's, with a book in place of the teacher.

    See `BookLoss` for what its loss is.

    Args:
        model: A causal language model.
        args: `TrainingArguments`, as for a `Trainer`.
        book: Folder or address of the book, or knowledge that was opened before.
        method: What to minimise; `LLMKD()` where None.
        probe_share: Share of the rows whose tokens are compared with those that the teacher saw, 0 to 1.
        **options: Of `transformers.Trainer`. The rows of `train_dataset` are those that the book was made of, in the same order (see
            `tokens_of`); they may be shuffled, sharded and padded at the end as the script likes.

    Raises:
        ConfigError: for a book of another task or of several views, or a method that wants more than the book has.
        BookMismatchError: for another tokenizer, another number of rows, or a smaller vocabulary of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any = None,
        *,
        book: Any,
        method: Method | None = None,
        probe_share: float = 0.02,
        **options: Any,
    ) -> None:
        self.open_book(book, method, probe_share)
        dataset = options.pop("train_dataset", None)
        self.check_rows(dataset, model, options.get("processing_class"))
        super().__init__(model, args, train_dataset=None if dataset is None else _Numbered(dataset), **options)
        self.take_numbers()


def _check_book(plan: Any, where: str) -> None:
    if plan.task != CausalLM.name or "vocabulary" not in plan.data:
        do = "Make it with the task causal-lm, of the rows that tokens_of gives."
        raise ConfigError(expected("book", "one of a causal language model", plan.task, where=where, do=do))
    if plan.n_views != 1:
        do = "Learn with bookkd.learning.learn, which replays views."
        raise ConfigError(expected("n_views", "1: rows are seen as they are", plan.n_views, where=where, do=do))


def _check_same(plan: Any, model: nn.Module, dataset: Any, tokenizer: Any, where: str) -> None:
    """Refuse other rows, another tokenizer, or a model of fewer tokens than the book's."""
    if dataset is not None and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        do = "Rows are found by their number: pass a data set with a length."
        raise ConfigError(expected("train_dataset", "one that is indexed", type(dataset).__name__, do=do))
    if dataset is not None and len(dataset) != plan.n_samples:
        do = "Pass the rows that the book was made of, in their order."
        raise BookMismatchError(expected("rows", f"{plan.n_samples}, as {where} has", len(dataset), do=do))
    outputs = getattr(getattr(model, "config", None), "vocab_size", None)
    if isinstance(outputs, int) and outputs < plan.data["vocabulary"]:
        wish = f"at least {plan.data['vocabulary']}, the vocabulary of {where}"
        raise BookMismatchError(expected("vocabulary of the model", wish, outputs, do="Use the teacher's tokenizer."))
    made = plan.data.get("tokenizer")
    if tokenizer is not None and made and hasattr(tokenizer, "backend_tokenizer"):
        mine = tokenizer_digest(tokenizer)
        if mine != made:
            do = "Use the tokenizer that the book's tokens were made by."
            raise BookMismatchError(expected("tokenizer", f"{made[:12]}, as {where} has", mine[:12], do=do))


def _check_tokens(knowledge: StoredKnowledge, dataset: Any, where: str) -> None:
    """Hold the tokens of some rows against what the teacher saw."""
    places = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _CHECKED)).round().astype(np.int64))
    found = [dataset[int(place)] for place in places]
    if not len(found) or any("input_ids" not in row for row in found):
        return  # the collator makes tokens of them: the probes of training will tell
    tokens = [torch.as_tensor(np.asarray(row["input_ids"], dtype=np.int64)) for row in found]
    hashes, projections = probe(tokens)
    try:
        knowledge.check(
            {
                SAMPLE: torch.from_numpy(places),
                VIEW: torch.zeros(len(places), dtype=torch.int64),
                PROBE_TAKEN: torch.ones(len(places), dtype=torch.bool),
                PROBE_HASH: hashes,
                PROBE_PROJECTIONS: projections,
            }
        )
    except ViewMismatchError as error:
        for place, row in zip(places.tolist(), tokens, strict=True):
            kept = _tokens_of_record(knowledge, place)
            if kept not in (None, len(row)):
                do = "Cut the rows at the length that they had when the book was made."
                wish = f"of {kept} tokens, as {where} has it"
                raise BookMismatchError(expected(f"row {place}", wish, len(row), do=do)) from error
        raise


def _tokens_of_record(knowledge: StoredKnowledge, place: int) -> int | None:
    """Return how many tokens the teacher saw of a row; None where no field is of positions."""
    book = knowledge.book
    fields = [name for name, plan in book.fields.items() if plan.positions is not None][:1]
    said = book.read(np.array([place]), np.array([0]), fields)[fields[0]] if fields else None
    return int(said.offsets[-1]) + 1 if isinstance(said, RaggedArray | Positions) else None
