"""What the doors of Transformers refuse before they train: rows, models, methods and options that a book does not serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from bookkd.book import Book, Positions, RaggedArray
from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.fields import LENGTH, PROBE_HASH, SAMPLE
from bookkd.learning._hugging_face_rows import tokens_of
from bookkd.methods import BaseMethod, Method
from bookkd.tasks import CausalLM
from bookkd.zoo import fingerprint, positions_of, positions_within, tokenizer_digest

__all__ = [
    "check_book",
    "check_fingerprint",
    "check_method",
    "check_model",
    "check_options",
    "check_positions",
    "rows_of",
    "why_other",
]


def check_positions(
    given: Tensor,
    tokens: Tensor,
    there: Tensor,
    places: Tensor,
    separator: int | None,
    where: str,
    numbers: Tensor | None,
) -> None:
    """Refuse position_ids that show a model other documents than the teacher saw: their shape always, their values at some rows.

    Transformers lays those of one row on all rows of a batch. Where no row is looked at, nothing waits for the device.

    Args:
        given: The position_ids.
        tokens: The input_ids, [batch, length].
        there: Where these are no padding, [batch, length].
        places: Rows that are looked at.
        separator: Token that begins each document; None where the teacher saw documents together.
        where: For the error.
        numbers: Row of the book of each; None where they are rows of none.
    """
    count, length = tokens.shape
    if tuple(given.shape) not in {(count, length), (1, length), (length,)}:
        wish = f"of shape [{count}, {length}], or [1, {length}] for all rows alike"
        raise ConfigError(expected("position_ids", wish, f"shape {list(given.shape)}", where=where))
    if not len(places):
        return
    here = places.to(tokens.device)
    given, tokens, there = (
        given.expand(count, length)[here],
        tokens[here],
        there[places.to(there.device)].to(tokens.device),
    )
    if separator is None:
        wrong = (given[:, 1:] - given[:, :-1] != 1) & there[:, 1:] & there[:, :-1]
        wish = "counted on through each row"
    else:
        wrong, wish = (given != positions_within(tokens, separator)) & there, "counted from each separator"
    found = wrong.nonzero()[:1].tolist()
    if found:
        row, place = found[0][0], found[0][1] + int(separator is None)
        do = "Let the collator leave them out." if separator is None else "Use bookkd.zoo.positions_within."
        at = int(places[row]) if numbers is None else int(numbers[places[row]])
        of = f"row {at} of the batch" if numbers is None else f"row {at}"
        raise ConfigError(
            expected("position_ids", wish, f"{int(given[row, place])} at token {place} of {of}", where=where, do=do)
        )


def why_other(book: Book, batch: Mapping[str, Any]) -> str:
    """Return why rows are not those of the book, as far as it can be told; empty where not."""
    return _moved(book, batch) or _cut(book, batch)


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


def check_fingerprint(plan: Any, dataset: Any, rows: Any, where: str) -> None:
    """Refuse rows of a book without probes, unless they are all of them and have its fingerprint."""
    known = plan.data.get("samples")
    mine = None if rows is not None else fingerprint(tokens_of(dataset, vocabulary=plan.data["vocabulary"]))["samples"]
    if known is None or mine != known:
        do = "Pass the rows that the book was made of, all and in their order, or make a book with probes."
        wish = f"those of {where}, which has no probes but a fingerprint {known}"
        raise BookMismatchError(expected("rows", wish, mine or "a part of them", do=do))


def check_book(plan: Any, where: str) -> None:
    """Refuse a book of another task, or of several views."""
    if plan.task != CausalLM.name or "vocabulary" not in plan.data:
        do = "Make it with the task causal-lm, of the rows that tokens_of gives."
        raise ConfigError(expected("book", "one of a causal language model", plan.task, where=where, do=do))
    if plan.n_views != 1:
        do = "Learn with bookkd.learning.learn, which replays views."
        raise ConfigError(expected("n_views", "1: rows are seen as they are", plan.n_views, where=where, do=do))


def check_method(method: Method, objective: Any, args: Any) -> None:
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


def check_options(args: Any, options: Mapping[str, Any]) -> None:
    """Refuse options of a `Trainer` that would have no effect, or split sequences over devices."""
    given = {
        "compute_loss_func": options.get("compute_loss_func"),
        **{name: getattr(args, name, None) for name in ("label_smoothing_factor", "parallelism_config")},
    }
    for name, value in given.items():
        if value:
            do = "The loss is the method's: leave it out."
            raise ConfigError(expected(name, "absent", value, where="BookTrainer", do=do))


def rows_of(plan: Any, dataset: Any, rows: Any, where: str) -> npt.NDArray[np.int64]:
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
