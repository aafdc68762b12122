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
from bookkd.zoo import (
    LanguageModel,
    documents_apart,
    fingerprint,
    keeps_apart,
    positions_of,
    positions_within,
    takes,
    tokenizer_digest,
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
        self._proven_positions = False

    def numbered(self, dataset: Any, rows: Any) -> Numbered:
        """Return the rows with their numbers, after proof that the book is of them."""
        found = Numbered(dataset, _rows_of(self.knowledge.book.plan, dataset, rows, str(self.knowledge.book.path)))
        if not {PROBE_HASH, PROBE_PROJECTIONS} <= self.knowledge.book.fields.keys():
            _check_fingerprint(self.knowledge.book.plan, dataset, rows, str(self.knowledge.book.path))
        proof = proof_of(found.dataset, found.rows, _PROVEN)
        try:
            self.knowledge.check(proof)
        except ViewMismatchError as error:
            why = _moved(self.knowledge.book, proof) or _cut(self.knowledge.book, proof)
            raise ViewMismatchError(f"{error}{why}") from error
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
        if takes(self.accelerator.unwrap_model(model), "use_cache"):
            # With a cache Transformers does not look at position_ids for where documents begin.
            inputs = {"use_cache": False, **inputs}
        if rows is None or not model.training:
            return super().compute_loss(model, self._kept_apart(inputs), return_outputs, num_items_in_batch)
        batch = batch_of(inputs["input_ids"], rows)
        probes = self._probes(rows)
        left_out = self._left_out(inputs, rows, probes[PROBE_TAKEN])
        outputs = model(**{key: value for key, value in inputs.items() if key not in left_out})
        said = self.task.fields(outputs, batch)
        seen = self.task.batch(batch)
        # What the book is asked by stays on the processor.
        asked = {**batch, COUNTS: self.task.counts({LENGTH: rows.lengths}), **probes}
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
                expected("model", "one of Transformers", type(model).__name__, where="BookTrainer", do=do)
            )
        tokenizer = getattr(self, "processing_class", None)
        check_model(self.knowledge.book.plan, model, tokenizer, str(self.knowledge.book.path), separator=separator)
        if separator is not None and not keeps_apart(model, separator):
            do = "Make the book of a teacher with separator=None, or train another kind of model."
            where = f"BookTrainer, whose book's teacher saw documents apart at token {separator}"
            wish = "one that keeps documents apart by position_ids"
            raise ConfigError(expected("model", wish, type(model).__name__, where=where, do=do))

    def _left_out(self, inputs: Mapping[str, Any], rows: Rows, taken: Tensor) -> tuple[str, ...]:
        """Return the inputs that are none of the model's, after proof that it sees of the rows `taken` what the teacher saw.

        Of the first batch all rows are proven. Beside a mask Transformers takes position_ids for those of one document; as rows are
        padded at the end, none is needed.
        """
        separator, given = self._separator, inputs.get("position_ids")
        saw = "documents together" if separator is None else f"documents apart at token {separator}"
        where = f"BookTrainer, whose book's teacher saw {saw}"
        if separator is not None and given is None:
            do = "Let the collator give them (bookkd.zoo.positions_within), or make the book with separator=None."
            raise ConfigError(expected("position_ids", "in the batch", "none", where=where, do=do))
        if given is not None:
            places = (taken if self._proven_positions else torch.ones_like(taken)).nonzero().flatten()
            _check_positions(given, inputs["input_ids"], rows, places, separator, where)
            self._proven_positions = True
        return ("labels", "shift_labels") if separator is None else ("labels", "shift_labels", "attention_mask")

    def _kept_apart(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of rows to evaluate on: without a mask where documents are kept apart and padding is at the end.

        Beside a mask Transformers would let documents see one another; nothing that is learnt sees what stands behind it.
        """
        mask = inputs.get("attention_mask")
        if self._separator is None or mask is None or "position_ids" not in inputs or mask.dim() != 2:
            return inputs
        at_the_end = bool((mask[:, 1:] <= mask[:, :-1]).all())
        return {key: value for key, value in inputs.items() if key != "attention_mask"} if at_the_end else inputs

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


def _check_positions(
    given: Tensor, tokens: Tensor, rows: Rows, places: Tensor, separator: int | None, where: str
) -> None:
    """Refuse position_ids that show a model other documents than the teacher saw: their shape always, their values at some rows.

    Transformers lays those of one row on all rows of a batch. Where no row is looked at, nothing waits for the device.
    """
    count, length = tokens.shape
    if tuple(given.shape) not in {(count, length), (1, length), (length,)}:
        wish = f"of shape [{count}, {length}], or [1, {length}] for all rows alike"
        raise ConfigError(expected("position_ids", wish, f"shape {list(given.shape)}", where=where))
    if not len(places):
        return
    here = places.to(tokens.device)
    given, tokens = given.expand(count, length)[here], tokens[here]
    there = torch.arange(length, device=tokens.device) < rows.lengths[places].to(tokens.device)[:, None]
    if separator is None:
        wrong, wish = (given[:, 1:] - given[:, :-1] != 1) & there[:, 1:], "counted on through each row"
    else:
        wrong, wish = (given != positions_within(tokens, separator)) & there, "counted from each separator"
    found = wrong.nonzero()[:1].tolist()
    if found:
        row, place = found[0][0], found[0][1] + int(separator is None)
        do = "Let the collator leave them out." if separator is None else "Use bookkd.zoo.positions_within."
        got = f"{int(given[row, place])} at token {place} of row {int(rows.numbers[places[row]])}"
        raise ConfigError(expected("position_ids", wish, got, where=where, do=do))


def _moved(book: Book, batch: Mapping[str, Any]) -> str:
    """Return where in the book a row stands that is another one there; empty where it is nowhere."""
    places = np.arange(book.n_samples)
    known = np.asarray(book.read(places, np.zeros_like(places), [PROBE_HASH])[PROBE_HASH])
    mine = batch[PROBE_HASH].numpy().view(np.uint64)
    for row, each in zip(batch[SAMPLE].tolist(), mine, strict=True):
        if known[row] != each and len(found := np.flatnonzero(known == each)):
            do = "give the rows in the book's order, or say which they are: rows=."
            return f" Row {row} here is row {int(found[0])} of the book: the rows stand in another order; {do}"
    return ""


def _cut(book: Book, batch: Mapping[str, Any]) -> str:
    """Return, of rows that are not the book's, whether they were cut at another length; empty where not."""
    names = [name for name, plan in book.fields.items() if plan.positions is not None][:1]
    for row, length in zip(batch[SAMPLE].tolist(), batch[LENGTH].tolist(), strict=True) if names else ():
        said = book.read(np.array([row]), np.array([0]), names)[names[0]]  # one at a time: it may be of every token
        kept = int(said.counts[0]) + 1 if isinstance(said, RaggedArray | Positions) else length
        if kept != length:
            return f" Row {row} has {length} tokens, the book's {kept}: one of them was cut at another length."
    return ""


def _check_fingerprint(plan: Any, dataset: Any, rows: Any, where: str) -> None:
    """Refuse rows of a book without probes, unless they are all of them and have its fingerprint."""
    known = plan.data.get("samples")
    mine = None if rows is not None else fingerprint(tokens_of(dataset, vocabulary=plan.data["vocabulary"]))["samples"]
    if known is None or mine != known:
        do = "Pass the rows that the book was made of, all and in their order, or make a book with probes."
        wish = f"those of {where}, which has no probes but a fingerprint {known}"
        raise BookMismatchError(expected("rows", wish, mine or "a part of them", do=do))


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
        ("a student of another shape", getattr(type(method), "shape", None) is not BaseMethod.shape),
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
    wish = f"one row of the book, below {plan.n_samples}, for each of {len(dataset)}"
    if found.shape != (len(dataset),) or (found.dtype.kind not in "ui" and len(found)):
        raise ConfigError(expected("rows", wish, f"{found.dtype} {found.shape}", where="BookTrainer"))
    wrong = np.flatnonzero((found < 0) | (found >= plan.n_samples))
    if len(wrong):
        got = f"{int(found[wrong[0]])} for row {int(wrong[0])}"
        raise ConfigError(expected("rows", wish, got, where="BookTrainer"))
    return found.astype(np.int64)


def check_model(plan: Any, model: nn.Module, tokenizer: Any, where: str, *, separator: int | None = None) -> None:
    """Refuse another tokenizer, or a model of fewer tokens than the book's, or of fewer positions where these are counted through a sequence."""
    outputs = getattr(getattr(model, "config", None), "vocab_size", None)
    if isinstance(outputs, int) and outputs < plan.data["vocabulary"]:
        wish = f"at least {plan.data['vocabulary']}, the vocabulary of {where}"
        raise BookMismatchError(expected("vocabulary of the model", wish, outputs, do="Use the teacher's tokenizer."))
    room, longest = positions_of(model), max((field.positions or 0 for field in plan.fields.values()), default=0)
    if room is not None and longest + 1 > room and separator is None:
        wish = f"at least {longest + 1}, the longest sequence of {where}"
        raise BookMismatchError(expected("positions of the model", wish, room, do="Use a model of more positions."))
    made = plan.data.get("tokenizer")
    if tokenizer is not None and made and hasattr(tokenizer, "backend_tokenizer"):
        mine = tokenizer_digest(tokenizer)
        if mine != made:
            do = "Use the tokenizer that the book's tokens were made by."
            raise BookMismatchError(expected("tokenizer", f"{made[:12]}, as {where} has", mine[:12], do=do))
