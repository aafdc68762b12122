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

from bookkd.core.check import between
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, expected
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

__all__ = ["BookTrainer", "tokens_of"]

_IGNORED = -100
"""What Transformers calls a label that is not to be learnt."""

_Trainer: Any = require("transformers", "language").Trainer


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


class BookTrainer(_Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` whose loss is a method's, with a book in place of the teacher.

    The loss is the sum over terms and positions, divided by the learnt tokens of the whole accumulated batch over all devices, so
    that it does not depend on how these are divided. Evaluation measures the model's own loss on labels. A share of the rows has its
    tokens held against the probes of the book.

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
        self.knowledge = book if isinstance(book, StoredKnowledge) else StoredKnowledge(book)
        self.probe_share = between(probe_share, 0, 1, "probe_share", where="BookTrainer")
        method = method or LLMKD()
        plan = self.knowledge.book.plan
        _check_book(plan, str(self.knowledge.book.path))
        self.task = CausalLM(int(plan.data["vocabulary"]))
        self.objective = method.objective(self.task)
        check_needs(method.needs(self.task), self.knowledge, method.name)
        if method.needs(self.task).validation:
            do = "Learn by bookkd.learning.learn, or with mode final from a book of an earlier run."
            wish = "one that needs no validations of ours"
            raise ConfigError(expected("method", wish, method.name, where="BookTrainer", do=do))
        dataset = options.pop("train_dataset", None)
        _check_same(plan, model, dataset, options.get("processing_class"), str(self.knowledge.book.path))
        super().__init__(model, args, train_dataset=None if dataset is None else _Numbered(dataset), **options)
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
                    expected("padding", "at the end of each row", "elsewhere", where="BookTrainer", do=do)
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
