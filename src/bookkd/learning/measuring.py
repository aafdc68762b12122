"""What a network scores on a data set, by the metrics of its task: whole where it fits, batch by batch where records are sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bookkd.book import Book
from bookkd.core.called import check_called
from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.core.fields import LOGITS, MEAN, VARIANCE
from bookkd.evaluation import (
    Evaluation,
    Measures,
    PixelSums,
    TokenSums,
    TranscriptSums,
    evaluate,
    evaluate_multi_label,
    evaluate_regression,
    measure_translations,
)
from bookkd.knowledge import StoredKnowledge
from bookkd.learning.learner import Learner
from bookkd.learning.step import asked_of_book, to_device
from bookkd.losses import DenseTarget
from bookkd.tasks import Predictions, Task, predict
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import check_takes

__all__ = [
    "MEASURED",
    "Gatherer",
    "gatherer_of",
    "measure",
    "measure_network",
    "measure_sequences",
    "predictions_of",
    "samples_of_pass",
]


def measure(
    task: Task, said: Predictions, *, teacher: Mapping[str, Tensor] | None = None, **options: Any
) -> Evaluation | Measures:
    """Measure what a network says against the labels, with the metrics of its task.

    Args:
        task: Whose `primary_metric` is among the metrics.
        said: Of the network, see `predict`.
        teacher: A teacher's fields on the same samples, to be compared with.
        options: `replicates`, `seed`, `level`, and `bins` of tasks with classes, see `bookkd.evaluation`.

    Raises:
        ConfigError: for a task that has no metrics.
    """
    theirs, names = teacher or {}, task.class_names
    if task.name == "classification":
        given = theirs.get(LOGITS)
        return evaluate(said.fields[LOGITS], said.labels, teacher_logits=given, class_names=names, **options)
    if task.name == "multi-label":
        given = theirs.get(LOGITS)
        return evaluate_multi_label(
            said.fields[LOGITS], said.labels, teacher_logits=given, class_names=names, **options
        )
    if task.name == "regression":
        return evaluate_regression(
            said.fields[MEAN],
            said.labels,
            variance=said.fields.get(VARIANCE),
            teacher_mean=theirs.get(MEAN),
            teacher_variance=theirs.get(VARIANCE),
            output_names=names,
            **options,
        )
    raise ConfigError(expected("task", "one that has metrics", task.name, where="validation"))


_MOST_WRITTEN = 64
"""Most sources that are translated together."""
_MOST = 2**26
"""Logits of a pass: what a language model says at each token of many sequences would fill the memory."""


def samples_of_pass(task: Task, dataset: Any, most: int, *, networks: int = 1, teacher: bool = False) -> int:
    """Return how many samples go through together: at most `most`, and so many that all networks together say at most 2^26 logits.

    Args:
        task: Of the networks.
        dataset: Of the samples.
        most: At least 1.
        networks: How many speak.
        teacher: Whether a teacher, or a book of one, speaks beside them, of as many positions as the task says.
    """

    def logits(of: Task) -> int:
        return (of.most_positions(dataset) or 1) * of.n_outputs

    each = networks * logits(task) + (logits(task.of_teacher()) if teacher else 0)
    return max(1, min(at_least(most, 1, "batch_size", where="evaluation"), _MOST // each))


_OF_TOKENS = ("nll", "perplexity", "accuracy", "entropy", "ece")
MEASURED: Mapping[str, tuple[str, ...]] = {
    "causal-lm": _OF_TOKENS,
    "classification": ("accuracy", "top5", "nll", "brier", "ece", "balanced_accuracy", "macro_f1"),
    "ctc": ("wer", "cer", "accuracy", "nll", "ece", "blank_share"),
    "multi-label": ("map", "auroc", "micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "nll", "brier", "ece"),
    "regression": ("rmse", "mae", "r2", "correlation", "nll"),
    "segmentation": ("miou", "accuracy", "balanced_accuracy", "boundary_f1", "nll", "ece"),
    "seq2seq": _OF_TOKENS,
    "tagging": (*_OF_TOKENS, "balanced_accuracy"),
}
"""Task name -> metrics that a validation may be decided by."""


class Gatherer(Protocol):
    """Takes in what a network says of some sequences after another, and gives the metrics of all."""

    def add(
        self,
        said: Mapping[str, Tensor],
        seen: Mapping[str, Any],
        counts: Tensor,
        teacher: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take in the fields of a network, the batch as losses see it, the positions of each sequence, and a teacher's fields."""
        ...

    def measures(self, *, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> Measures:
        """Return all metrics of what was taken in."""
        ...


_GATHERERS: Mapping[str, Callable[[Any], Gatherer]] = {
    "causal-lm": lambda task: TokenSums(),
    "ctc": lambda task: TranscriptSums(
        task.class_names, blank=task.blank, separator=task.separator, word_mark=task.word_mark
    ),
    "segmentation": lambda task: PixelSums(task.class_names),
    "seq2seq": lambda task: TokenSums(),
    "tagging": lambda task: TokenSums(class_names=task.class_names),
}
"""Task name -> what gathers the metrics of its sequences, made for a task."""


def gatherer_of(task: Task) -> Gatherer:
    """Return what gathers the metrics of a task whose records are sequences."""
    return _GATHERERS[task.name](task)


def measure_sequences(
    network: Callable[..., Any],
    dataset: Sized,
    task: Task,
    *,
    teacher: Callable[..., Any] | None = None,
    book: StoredKnowledge | Book | str | Path | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    gatherer: Gatherer | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Measures:
    """Measure a model of sequences, batch by batch, since what it says of all of them would fill the memory.

    Args:
        network: Takes what the task gives its networks, its own preprocessing included. Put it in evaluation mode first.
        dataset: Of sequences, such as `bookkd.zoo.TokenDataset`.
        task: One whose records are sequences.
        teacher: Another network to be compared with, on the same device.
        book: A book of these samples as they are, or its path, of codec dense or int8, to be compared with in place of a teacher.
        transform: Deterministic transform of a view; None where the data set gives tensors.
        gatherer: What gathers the metrics, such as a `TranscriptSums` that decodes by a beam; None for that of the task.
        batch_size: Most sequences a pass; fewer where these are long, or the classes many, so that network and teacher together say
            at most 2^26 logits a pass.
        device: Where the views go.
        replicates: Bootstrap replicates over sequences; 0 for values alone.
        seed: Of the bootstrap.
        level: Share of the replicates inside an interval.

    Raises:
        ConfigError: for a task whose records are no sequences, data that it would misread, a network that cannot take it, or a teacher
            and a book.
        FidelityError: for a book that keeps less than every value.
    """
    if task.name not in _GATHERERS:
        wish = f"one whose records are sequences: {', '.join(sorted(_GATHERERS))}"
        raise ConfigError(expected("task", wish, task.name, where="evaluation"))
    task.check_data(dataset)
    for each in (network, getattr(teacher, "network", teacher)):
        check_takes(each, dataset)
    book = StoredKnowledge(book) if isinstance(book, Book | str | Path) else book
    if teacher is not None and book is not None:
        do = "Compare with one of them at a time."
        raise ConfigError(expected("teacher", "none beside a book", "both", where="evaluation", do=do))
    if hasattr(dataset, "of_book") and (teacher is not None or book is not None):
        do = "Measure the student on labels alone, or on the teacher's tokens with a student of these."
        where = "evaluation of a text in two kinds of tokens"
        name, why = (
            ("book", "it speaks of other tokens")
            if teacher is None
            else ("teacher", "it would be fed the student's tokens")
        )
        raise ConfigError(expected(name, f"none: {why}", "one", where=where, do=do))
    sums = _GATHERERS[task.name](task) if gatherer is None else gatherer
    replay = Replay(dataset, Views(transform, n_views=1), probe_share=0 if book is None else 1)
    compared = teacher is not None or book is not None
    batch_size = samples_of_pass(task, dataset, batch_size, teacher=compared)
    with torch.inference_mode():
        for start in range(0, len(replay), batch_size):
            picks = [Pick(row, 0) for row in range(start, min(start + batch_size, len(replay)))]
            batch = to_device(replay.batch(picks), torch.device(device))
            inputs, counts = task.inputs(batch), cast(Tensor, task.counts(batch))
            check_called(network, inputs, task.name)
            said, seen = task.fields(network(*inputs), batch), task.batch(batch)
            theirs = None if teacher is None else task.of_teacher().fields(teacher(*inputs), batch)
            if theirs is not None:
                shown = task.targets({name: DenseTarget(value) for name, value in theirs.items()}, batch)
                theirs = {name: target.logits for name, target in shown.items()}
            elif book is not None:
                theirs = _of_book(book, task, batch)
            sums.add(task.student(said), seen, counts, theirs)
    return sums.measures(replicates=replicates, seed=seed, level=level)


def _of_book(book: StoredKnowledge, task: Task, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a book says at every position of a batch."""
    said = task.targets(book.targets(asked_of_book(task, batch), tuple(task.field_infos)), batch)
    for name, target in said.items():
        if not isinstance(target, DenseTarget):
            do = "Compare with a book of codec dense or int8, by one teacher."
            where = str(book.book.path)
            raise FidelityError(expected(name, "every value of one teacher", type(target).__name__, where=where, do=do))
    return {name: target.logits.float() for name, target in said.items()}


def measure_network(
    network: Callable[..., Any],
    dataset: Sized,
    task: Task,
    *,
    teacher: Callable[..., Any] | None = None,
    book: StoredKnowledge | None = None,
    beam: int = 0,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Evaluation | Measures:
    """Measure a network on a data set, with the metrics of its task, beside a teacher if one is given.

    Args:
        network: Takes what the task gives its networks, its own preprocessing included. Put it in evaluation mode first.
        dataset: `dataset[i] -> (view, label)`.
        task: Turns the output into fields.
        teacher: Another network, of the same task, on the same device.
        book: In place of a teacher, of sequences alone, see `measure_sequences`.
        beam: Hypotheses that are followed where translations are written out, for BLEU and chrF beside what is measured of gold
            prefixes (task `seq2seq`, see `measure_translations`); 0 writes none.
        device: Where the views go.
        options: `replicates`, `seed` and `level`, see `bookkd.evaluation`.
    """
    if task.name in _GATHERERS:
        found = measure_sequences(
            network, dataset, task, teacher=teacher, book=book, batch_size=batch_size, device=device, **options
        )
        if beam and task.name == "seq2seq":
            size = min(batch_size, _MOST_WRITTEN)
            written = measure_translations(network, dataset, beam=beam, batch_size=size, device=device, **options)
            metrics = {**found.metrics, **written.measures.metrics}
            return replace(found, metrics=metrics, signatures=written.signatures)
        return found
    said = predict(network, dataset, task, batch_size=batch_size, device=device)
    theirs = None
    if teacher is not None:
        theirs = predict(teacher, dataset, task.of_teacher(), batch_size=batch_size, device=device).fields
    return measure(task, said, teacher=theirs, **options)


def predictions_of(
    learner: Learner,
    dataset: Sized,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Predictions:
    """Run a learner over a data set in evaluation mode, and put it back into the mode it was in."""
    was_training = learner.training
    device = next(learner.parameters()).device
    learner.eval()
    try:
        return predict(
            learner.compute,
            dataset,
            learner.task,
            transform=transform,
            batch_size=batch_size,
            device=device,
            workers=workers,
        )
    finally:
        learner.train(was_training)
