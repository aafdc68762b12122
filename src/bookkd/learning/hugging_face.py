"""The door of Transformers: a `Trainer` that learns from a book, for scripts that have one already.

    from bookkd.learning.hugging_face import BookTrainer

    trainer = BookTrainer(model, arguments, train_dataset=dataset, book="books/teacher", processing_class=tokenizer)
    trainer.train()

Imports Transformers; no other module of this package does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, ViewMismatchError, expected
from bookkd.core.fields import COUNTS, INPUT, LENGTH, PROBE_HASH, PROBE_PROJECTIONS, PROBE_TAKEN, WEIGHT
from bookkd.core.names import require
from bookkd.core.rng import draw64
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge, check_needs
from bookkd.learning._hugging_face_checks import (
    check_book,
    check_fingerprint,
    check_method,
    check_model,
    check_options,
    check_positions,
    rows_of,
    why_other,
)
from bookkd.learning._hugging_face_rows import NUMBER, Collator, Numbered, Rows, batch_of, proof_of, tokens_of
from bookkd.learning.configuration import check_task
from bookkd.methods import LLMKD, Method
from bookkd.tasks import CausalLM
from bookkd.views import probe
from bookkd.zoo import (
    LanguageModel,
    documents_apart,
    keeps_apart,
    takes,
)

__all__ = ["BookLoss", "BookTrainer", "tokens_of"]

_PROVEN = 64
"""Rows that are compared with the book before anything starts."""

_Trainer: Any = require("transformers", "language").Trainer
_Mixed: Any = object
"""What `BookLoss` stands before is known where it is used."""


class BookLoss(_Mixed):  # type: ignore[misc]
    """What lets a trainer of Transformers learn from a book: stands before it among the bases, see `BookTrainer`.

    The loss is the sum over terms and positions, divided by the learnt tokens of the whole accumulated batch over all devices, so
    that it does not depend on how these are divided; of a mixture of experts, its auxiliary loss is added. Evaluation measures the
    trainer's own loss on labels, where the model must see documents as in training. Before it starts, 64 rows are held against the probes of the book; while it trains, a share of what the
    collator made of them.
    """

    def open_book(
        self, book: Any, method: Method | None, probe_share: float, args: Any, options: Mapping[str, Any]
    ) -> None:
        """Open the book and check that it serves the method; to be called before the trainer is built."""
        self.knowledge = book if isinstance(book, StoredKnowledge) else StoredKnowledge(book)
        self.probe_share = between(probe_share, 0, 1, "probe_share", where="BookTrainer")
        method, plan = method or LLMKD(), self.knowledge.book.plan
        check_book(plan, str(self.knowledge.book.path))
        self.task = CausalLM(int(plan.data["vocabulary"]), masked=tuple(plan.masked_classes))
        check_task(method, self.task, "BookTrainer")
        self.objective = method.objective(self.task)
        check_method(method, self.objective, args)
        check_needs(method.needs(self.task), self.knowledge, method.name)
        check_options(args, options)
        # The loss is divided over the accumulated batch here.
        self.loss_is_scaled_for_ga = True
        self._proven_positions = False

    def numbered(self, dataset: Any, rows: Any) -> Numbered:
        """Return the rows with their numbers, after proof that the book is of them."""
        found = Numbered(dataset, rows_of(self.knowledge.book.plan, dataset, rows, str(self.knowledge.book.path)))
        if not {PROBE_HASH, PROBE_PROJECTIONS} <= self.knowledge.book.fields.keys():
            check_fingerprint(self.knowledge.book.plan, dataset, rows, str(self.knowledge.book.path))
        proof = proof_of(found.dataset, found.rows, _PROVEN)
        try:
            self.knowledge.check(proof)
        except ViewMismatchError as error:
            raise ViewMismatchError(f"{error}{why_other(self.knowledge.book, proof)}") from error
        return found

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if NUMBER not in self._signature_columns:
            self._signature_columns += [NUMBER]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the batches of a step, and how many tokens are learnt in them on all devices."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or any(NUMBER not in batch for batch in batches):
            return batches, count
        # Counted here, since what Transformers counts has differed from version to version.
        learnt = [self.task.batch(batch_of(batch["input_ids"], batch[NUMBER]))[WEIGHT].sum() for batch in batches]
        total = torch.stack(learnt).sum().to(device)
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
        rows: Rows | None = inputs.pop(NUMBER, None)
        if rows is None or not model.training:
            return super().compute_loss(model, self._as_seen(model, inputs), return_outputs, num_items_in_batch)
        inputs = self._without_cache(model, inputs)
        batch = batch_of(inputs["input_ids"], rows)
        probes = self._probes(rows)
        left_out = ("labels", "shift_labels", *self._proven(inputs, rows, probes[PROBE_TAKEN]))
        outputs = model(**{key: value for key, value in inputs.items() if key not in left_out})
        # Transformers gives its models the last tokens, too, of which nothing is asked: as of a batch of one column more.
        said = self.task.fields(outputs, {**batch, INPUT: nn.functional.pad(batch[INPUT], (0, 1))})
        seen = self.task.batch(batch)
        # What the book is asked by stays on the processor.
        asked = {**batch, COUNTS: self.task.counts({LENGTH: rows.lengths}), **probes}
        objective = self.objective.at(self._clock())
        targets = self.knowledge.targets(asked, tuple(objective.needs()))
        sums = objective.sums(said, targets, seen, seen[WEIGHT], self._clock())
        totals = objective.totals(seen, seen[WEIGHT])
        if num_items_in_batch is not None:
            totals = torch.ones_like(totals) * torch.as_tensor(num_items_in_batch).to(totals)
        loss = objective.loss(sums, totals, self._clock())
        if num_items_in_batch is not None and self._over_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over devices
        loss = loss + self._of_experts(outputs)
        return (loss, outputs) if return_outputs else loss

    @property
    def _separator(self) -> int | None:
        """Token that begins each document, where the teachers of the book kept them apart."""
        return documents_apart((teacher.mode for teacher in self.knowledge.teachers), "BookTrainer")

    def check_student(self) -> None:
        """Refuse a model of fewer tokens than the book's, or one whose documents see one another where the teacher's did not."""
        model, separator = self.accelerator.unwrap_model(self.model), self._separator
        if isinstance(model, LanguageModel):
            do = "Pass its .model: a Trainer calls it by names."
            raise ConfigError(
                expected("model", "one of Transformers", "a LanguageModel around it", where="BookTrainer", do=do)
            )
        tokenizer = getattr(self, "processing_class", None)
        check_model(self.knowledge.book.plan, model, tokenizer, str(self.knowledge.book.path), separator=separator)
        if separator is not None and not keeps_apart(model, separator):
            do = "Make the book of a teacher with separator=None, or train another kind of model."
            wish = "one that keeps documents apart by position_ids"
            raise ConfigError(expected("model", wish, type(model).__name__, where=self._where, do=do))

    def _proven(self, inputs: Mapping[str, Any], rows: Rows, taken: Tensor) -> tuple[str, ...]:
        """Return `_left_out` of rows to learn from: of the first batch with position_ids all are proven, then those `taken`."""
        tokens = inputs["input_ids"]
        there = torch.arange(tokens.shape[1]) < rows.lengths[:, None]
        places = (taken if self._proven_positions else torch.ones_like(taken)).nonzero().flatten()
        left_out = self._left_out(inputs, there, places, rows.numbers)
        self._proven_positions |= inputs.get("position_ids") is not None
        return left_out

    def _as_seen(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of rows to evaluate on, after proof that the model sees in them what it does in training."""
        inputs = self._without_cache(model, inputs)
        if "input_ids" not in inputs:
            return inputs
        tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
        there = torch.ones_like(tokens, dtype=torch.bool) if mask is None or mask.dim() != 2 else mask.bool()
        if self._separator is not None and bool((there[:, 1:] & ~there[:, :-1]).any()):
            do = 'Set the tokenizer\'s padding_side to "right".'
            raise ConfigError(expected("padding", "at the end of each row", "elsewhere", where=self._where, do=do))
        left_out = self._left_out(inputs, there, torch.arange(len(tokens)), None)
        return {key: value for key, value in inputs.items() if key not in left_out}

    def _without_cache(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs without a cache, with which Transformers does not look at position_ids for where documents begin."""
        return {"use_cache": False, **inputs} if takes(self.accelerator.unwrap_model(model), "use_cache") else inputs

    @property
    def _where(self) -> str:
        separator = self._separator
        saw = "documents together" if separator is None else f"documents apart at token {separator}"
        return f"BookTrainer, whose book's teacher saw {saw}"

    def _left_out(
        self, inputs: Mapping[str, Any], there: Tensor, places: Tensor, numbers: Tensor | None
    ) -> tuple[str, ...]:
        """Return the inputs that a model is not given, after proof that it sees of some rows what the teacher saw.

        Beside a mask Transformers takes position_ids for those of one document; as rows are padded at the end, none is needed.

        Args:
            inputs: Of the batch.
            there: Where there are tokens that are no padding, [batch, length].
            places: Which rows are proven.
            numbers: Rows of the book; None of others.
        """
        separator, given = self._separator, inputs.get("position_ids")
        if separator is not None and given is None:
            do = "Let the collator give them (bookkd.zoo.positions_within), or make the book with separator=None."
            raise ConfigError(expected("position_ids", "in the batch", "none", where=self._where, do=do))
        if given is not None:
            check_positions(given, inputs["input_ids"], there, places, separator, self._where, numbers)
        return () if separator is None else ("attention_mask",)

    def _of_experts(self, outputs: Any) -> Tensor | float:
        """Return the auxiliary loss that spreads tokens over experts, which a model adds to its own loss alone."""
        found = getattr(outputs, "aux_loss", None)
        if not isinstance(found, Tensor):
            return 0.0
        config = self.accelerator.unwrap_model(self.model).config
        weight = getattr(config, "router_aux_loss_coef", None)
        if weight is None:
            do = "Set it in the configuration of the model, or output_router_logits to False."
            where = f"BookTrainer, a {type(config).__name__} that gives an auxiliary loss"
            raise ConfigError(expected("router_aux_loss_coef", "in the config", None, where=where, do=do))
        weighted: Tensor = found * weight / self.current_gradient_accumulation_steps
        return weighted

    def _clock(self) -> Clock:
        return Clock(self.state.global_step, float(self.state.epoch or 0.0), max(1, self.state.max_steps))

    def _probes(self, rows: Rows) -> dict[str, Tensor]:
        """Return the probes of some rows, chosen by their numbers and the step."""
        count = len(rows.numbers)
        steps = np.full(count, self.state.global_step)
        draws = draw64(int(self.args.seed), "probe share", rows.numbers.numpy(), steps)[:, 0]
        taken = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.probe_share
        hashes, projections = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 2, dtype=torch.float64)
        chosen = np.flatnonzero(taken).tolist()
        if chosen:
            hashes[chosen], projections[chosen] = probe([rows.tokens[row] for row in chosen])
        return {PROBE_TAKEN: torch.from_numpy(taken), PROBE_HASH: hashes, PROBE_PROJECTIONS: projections}


class BookTrainer(BookLoss, _Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` whose loss is a method's, with a book in place of the teacher.

    See `BookLoss` for its loss, and for what is proven before it trains.

    Args:
        model: A causal language model.
        args: `TrainingArguments`, as for a `Trainer`.
        book: Folder or address of the book, or knowledge that was opened before.
        method: What to minimise; `LLMKD()` where None.
        rows: Row of the book of each row of `train_dataset`, where that is a part or another order of what the book was made of; None
            where they are the same.
        probe_share: Share of the rows of a batch whose tokens are compared with those that the teacher saw, 0 to 1.
        **options: Of `transformers.Trainer`. The rows of `train_dataset` are those of `tokens_of`; they may be shuffled, sharded and
            padded at the end while training as the script likes.

    Raises:
        ConfigError: for a book of another task or of several views, a method that wants more than the book or this door has, an option
            of the `Trainer` that would have no effect, or a model or positions that show it other documents than the teacher saw.
        BookMismatchError: for another tokenizer, another number of rows, or a smaller vocabulary of the model.
        ViewMismatchError: for rows in another order, or cut elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any = None,
        *,
        book: Any,
        method: Method | None = None,
        rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
        probe_share: float = 0.02,
        **options: Any,
    ) -> None:
        self.open_book(book, method, probe_share, args, options)
        dataset = options.pop("train_dataset", None)
        dataset = None if dataset is None else self.numbered(dataset, rows)
        super().__init__(model, args, train_dataset=dataset, **options)
        self.check_student()
        self.data_collator: Any = Collator(self.data_collator)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Return loss, logits and labels of rows to evaluate on; those without labels too are seen as in training."""
        names = self.label_names
        if not (all(inputs.get(name) is not None for name in names) if names else self.can_return_loss):
            # A trainer asks the model itself, past `compute_loss`.
            inputs = self._as_seen(model, {key: value for key, value in inputs.items() if key != NUMBER})
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
