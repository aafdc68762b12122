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
from torch.utils.data import IterableDataset

from bookkd.book import Book, Positions, RaggedArray
from bookkd.core.check import between
from bookkd.core.errors import BookMismatchError, ConfigError, ViewMismatchError, expected
from bookkd.core.fields import COUNTS, LENGTH, PROBE_HASH, PROBE_PROJECTIONS, PROBE_TAKEN, SAMPLE, WEIGHT
from bookkd.core.names import require
from bookkd.core.rng import draw64
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge, check_needs
from bookkd.learning._hugging_face_rows import NUMBER, Collator, Numbered, Rows, batch_of, proof_of, tokens_of
from bookkd.learning.configuration import check_task
from bookkd.methods import LLMKD, BaseMethod, Method
from bookkd.tasks import CausalLM
from bookkd.views import probe
from bookkd.zoo import tokenizer_digest

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
    trainer's own loss on labels. Before it starts, 64 rows are held against the probes of the book; while it trains, a share of what the
    collator made of them.
    """

    def open_book(
        self, book: Any, method: Method | None, probe_share: float, args: Any, options: Mapping[str, Any]
    ) -> None:
        """Open the book and check that it serves the method; to be called before the trainer is built."""
        self.knowledge = book if isinstance(book, StoredKnowledge) else StoredKnowledge(book)
        self.probe_share = between(probe_share, 0, 1, "probe_share", where="BookTrainer")
        method, plan = method or LLMKD(), self.knowledge.book.plan
        _check_book(plan, str(self.knowledge.book.path))
        self.task = CausalLM(int(plan.data["vocabulary"]), masked=tuple(plan.masked_classes))
        check_task(method, self.task, "BookTrainer")
        self.objective = method.objective(self.task)
        _check_method(method, self.objective, args)
        check_needs(method.needs(self.task), self.knowledge, method.name)
        _check_options(args, options)
        # The loss is divided over the accumulated batch here.
        self.loss_is_scaled_for_ga = True

    def numbered(self, dataset: Any, rows: Any) -> Numbered:
        """Return the rows with their numbers, after proof that the book is of them."""
        found = Numbered(dataset, _rows_of(self.knowledge.book.plan, dataset, rows, str(self.knowledge.book.path)))
        proof = proof_of(found.dataset, found.rows, _PROVEN)
        try:
            self.knowledge.check(proof)
        except ViewMismatchError as error:
            raise ViewMismatchError(f"{error}{_cut(self.knowledge.book, proof)}") from error
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
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = batch_of(inputs["input_ids"], rows)
        outputs = model(**{key: value for key, value in inputs.items() if key not in self._left_out(inputs)})
        said = self.task.fields(outputs, batch)
        seen = self.task.batch(batch)
        # What the book is asked by stays on the processor.
        asked = {**batch, COUNTS: self.task.counts({LENGTH: rows.lengths}), **self._probes(rows)}
        targets = self.knowledge.targets(asked, tuple(self.objective.needs()))
        sums = self.objective.sums(said, targets, seen, seen[WEIGHT], self._clock())
        totals = self.objective.totals(seen, seen[WEIGHT])
        if num_items_in_batch is not None:
            totals = torch.ones_like(totals) * torch.as_tensor(num_items_in_batch).to(totals)
        loss = self.objective.loss(sums, totals, self._clock())
        if num_items_in_batch is not None and self._over_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over devices
        loss = loss + self._of_experts(outputs)
        return (loss, outputs) if return_outputs else loss

    def _left_out(self, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the inputs that are none of the model's, after proof that it sees of a row what the teacher saw.

        Beside a mask Transformers takes position_ids for those of one document; as rows are padded at the end, none is needed.
        """
        modes = [teacher.mode for teacher in self.knowledge.teachers if "documents apart" in teacher.mode]
        if not modes:
            return ("labels", "shift_labels")
        if "position_ids" not in inputs:
            do = "Let the collator give them (bookkd.zoo.positions_within), or make the book with separator=None."
            where = f"BookTrainer, whose book's teacher saw {modes[0].removeprefix('eval, ')}"
            raise ConfigError(expected("position_ids", "in the batch", "none", where=where, do=do))
        return ("labels", "shift_labels", "attention_mask")

    def _of_experts(self, outputs: Any) -> Tensor | float:
        """Return the auxiliary loss that spreads tokens over experts, which a model adds to its own loss alone."""
        found = getattr(outputs, "aux_loss", None)
        if not isinstance(found, Tensor):
            return 0.0
        weight = getattr(self.accelerator.unwrap_model(self.model).config, "router_aux_loss_coef", 0.0)
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
        ConfigError: for a book of another task or of several views, a method that wants more than the book or this door has, or an
            option of the `Trainer` that would have no effect.
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
        plan, where = self.knowledge.book.plan, str(self.knowledge.book.path)
        check_model(plan, model, options.get("processing_class"), where)
        dataset = options.pop("train_dataset", None)
        dataset = None if dataset is None else self.numbered(dataset, rows)
        super().__init__(model, args, train_dataset=dataset, **options)
        self.data_collator: Any = Collator(self.data_collator)


def _cut(book: Book, batch: Mapping[str, Any]) -> str:
    """Return, of rows that are not the book's, whether they were cut at another length; empty where not."""
    names = [name for name, plan in book.fields.items() if plan.positions is not None][:1]
    for row, length in zip(batch[SAMPLE].tolist(), batch[LENGTH].tolist(), strict=True) if names else ():
        said = book.read(np.array([row]), np.array([0]), names)[names[0]]  # one at a time: it may be of every token
        kept = int(said.counts[0]) + 1 if isinstance(said, RaggedArray | Positions) else length
        if kept != length:
            return f" Row {row} has {length} tokens, the book's {kept}: one of them was cut at another length."
    return ""


def _check_book(plan: Any, where: str) -> None:
    if plan.task != CausalLM.name or "vocabulary" not in plan.data:
        do = "Make it with the task causal-lm, of the rows that tokens_of gives."
        raise ConfigError(expected("book", "one of a causal language model", plan.task, where=where, do=do))
    if plan.n_views != 1:
        do = "Learn with bookkd.learning.learn, which replays views."
        raise ConfigError(expected("n_views", "1: rows are seen as they are", plan.n_views, where=where, do=do))


def _check_method(method: Method, objective: Any, args: Any) -> None:
    """Refuse what needs a loop of ours: events, several students or passes, parts that are trained beside the student."""
    do = "Learn with bookkd.learning.learn."
    own = getattr(type(method), "own_knowledge", None) is not BaseMethod.own_knowledge
    for what, asked in (
        ("connectors", bool(objective.connectors)),
        ("events of a run", bool(method.handlers()) or own),
        ("several students", method.cohort > 1),
        ("several passes", method.passes > 1),
    ):
        if asked:
            raise ConfigError(expected("method", f"one without {what}", method.name, where="BookTrainer", do=do))
    accumulate, processes = getattr(args, "gradient_accumulation_steps", 1), getattr(args, "world_size", 1)
    objective.refuse_split(int(accumulate) * int(processes))


def _check_options(args: Any, options: Mapping[str, Any]) -> None:
    """Refuse options of a `Trainer` that would have no effect, or split sequences over devices."""
    given = {
        "compute_loss_func": options.get("compute_loss_func"),
        **{name: getattr(args, name, None) for name in ("label_smoothing_factor", "parallelism_config")},
    }
    for name, value in given.items():
        if value:
            do = "The loss is the method's: leave it out."
            raise ConfigError(expected(name, "absent", value, where="BookTrainer", do=do))


def _rows_of(plan: Any, dataset: Any, rows: Any, where: str) -> npt.NDArray[np.int64]:
    """Return the row of the book of each row of the data set."""
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not indexed or isinstance(dataset, IterableDataset):
        do = "Rows are found by their number: pass a data set with a length."
        raise ConfigError(expected("train_dataset", "one that is indexed", type(dataset).__name__, do=do))
    if rows is None:
        if len(dataset) != plan.n_samples:
            do = "Pass the rows that the book was made of, in their order, or say which they are: rows=."
            raise BookMismatchError(expected("rows", f"{plan.n_samples}, as {where} has", len(dataset), do=do))
        return np.arange(plan.n_samples, dtype=np.int64)
    found = np.asarray(rows)
    fits = found.shape == (len(dataset),) and found.dtype.kind in "ui"
    if not fits or (len(found) and not 0 <= int(found.min()) <= int(found.max()) < plan.n_samples):
        wish = f"one row of the book, below {plan.n_samples}, for each of {len(dataset)}"
        raise ConfigError(expected("rows", wish, f"{found.dtype} {found.shape}", where="BookTrainer"))
    return found.astype(np.int64)


def check_model(plan: Any, model: nn.Module, tokenizer: Any, where: str) -> None:
    """Refuse another tokenizer, or a model of fewer tokens than the book's."""
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
