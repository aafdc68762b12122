"""Whether the parts of a run fit together, and what its folder remembers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor, nn

from bookkd.book import TeacherInfo
from bookkd.core.called import check_called
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, LABEL_LENGTH
from bookkd.core.names import choose
from bookkd.core.protocols import Knowledge, Needs
from bookkd.core.schedules import Clock, resolve
from bookkd.knowledge import StoredKnowledge, books_of, keys_of, teachers_of
from bookkd.learning.cohort import Cohort
from bookkd.learning.folder import plain
from bookkd.learning.learner import Learner
from bookkd.learning.training import Training
from bookkd.learning.validation import Validation
from bookkd.methods import METHODS, Method, method_class
from bookkd.objectives import Objective, labelled
from bookkd.tasks import Task
from bookkd.views import CachedViews, Pick, Replay, Views, differences, label_rows
from bookkd.zoo import LanguageModel, count_parameters, documents_apart, fingerprint

__all__ = [
    "check_cached",
    "check_data",
    "check_documents",
    "check_heads",
    "check_inputs",
    "check_labels",
    "check_options",
    "check_task",
    "check_tokens",
    "check_utterances",
    "check_validation",
    "find_rows",
    "run_config",
    "silent_labels",
]


def check_validation(needs: Needs, validation: Validation | None, method: str) -> None:
    """Refuse a method that acts on validations where there are none."""
    if needs.validation and validation is None:
        do = "Pass a data set to validate on, which is not that of the test: the method chooses by it."
        raise ConfigError(expected("validation", f"given for method {method}", None, where="learn", do=do))


def check_options(training: Training, validation: Validation | None, door: str, extras: Sequence[Any]) -> None:
    """Refuse options that contradict each other; `extras` are Lightning's loggers and callbacks."""
    choose(door, ("plain", "lightning"), "door")
    if door == "plain" and (training.devices > 1 or extras or training.precision != "32-true"):
        wish = "lightning for several devices, loggers, callbacks or another precision than 32-true"
        raise ConfigError(expected("door", wish, door, do="Pass door='lightning'."))
    if validation is not None and len(validation.dataset) == 0:
        do = "Pass None to train without validation."
        raise ConfigError(expected("validation", "at least one sample", 0, where="learn", do=do))
    if validation is None and (training.patience is not None or training.schedule == "plateau"):
        wish = "given for early stopping and the plateau schedule"
        raise ConfigError(expected("validation", wish, None, where="training", do="Pass a data set to validate on."))


_SOFTENING = ("temperature", "t_squared", "class_reduction")
"""Options of soft targets that mean nothing to numbers."""


def check_task(method: Method, task: Task, where: str = "learn") -> None:
    """Refuse what is no method, one that means nothing for the task, or options of it; `where` is who asks."""
    if isinstance(method, str | type) or not hasattr(method, "objective"):
        do = "Pass one with its options, such as LLMKD(), or build_method('llm-kd')."
        raise ConfigError(expected("method", "a method", method, where=where, do=do))
    if task.name not in method.tasks:
        others = [name for name in METHODS if task.name in method_class(name).tasks]
        do = f"Use one of {', '.join(others)}." if others else ""
        wish = f"one that method {method.name} serves ({', '.join(method.tasks)})"
        raise ConfigError(expected("task", wish, task.name, where=where, do=do))
    if getattr(task, "softened", True):  # tasks of users need not say it
        return
    for name in _SOFTENING:
        default = getattr(type(method), name, None)
        value = getattr(method, name, default)
        if value != default:
            do, place = "Leave it out: it softens distributions.", f"{where}, task {task.name}"
            raise ConfigError(expected(name, f"{default} for numbers", value, where=place, do=do))


def check_data(task: Task, dataset: Any, validation: Validation | None) -> None:
    """Refuse data to learn from, or to validate on, that the task would misread."""
    task.check_data(dataset)
    if validation is not None:
        task.check_data(validation.dataset)
        validation.check(task)


def check_inputs(student: nn.Module, task: Task, dataset: Any, views: Views, rows: Sequence[int] | None) -> None:
    """Refuse a student of sequences that is not called with what the task gives; its peers too, of a cohort.

    Raises:
        ConfigError: naming what it is called with.
    """
    if getattr(dataset, "pad_value", None) is None or not len(dataset):
        return
    replay = Replay(dataset, views, rows=rows, probe_share=0.0)
    inputs = task.inputs(replay.batch([Pick(int(replay.rows[0]), 0)]))
    for network in student.peers if isinstance(student, Cohort) else [student]:
        check_called(network, inputs, task.name)


def check_documents(student: nn.Module, task: Task, dataset: Any, teachers: Sequence[TeacherInfo]) -> None:
    """Refuse a student that keeps documents of one sequence apart where its teachers did not, or the other way, or at another token.

    Asked of language models of ours and of Transformers; what other networks do with documents is not known. Of a text in two kinds of
    tokens each side has a separator of its own.

    Raises:
        ConfigError: naming both.
    """
    if task.name != "causal-lm" or not teachers or hasattr(dataset, "taught"):
        return
    theirs = documents_apart((teacher.mode for teacher in teachers), "learn")
    for network in student.peers if isinstance(student, Cohort) else [student]:
        if not isinstance(network, LanguageModel) and not hasattr(network, "get_input_embeddings"):
            continue
        mine = getattr(network, "separator", None)
        if mine != theirs:
            do = f"Give the student separator={theirs} (LanguageModel; --student.args), or make the book otherwise."
            wish = (
                f"{theirs}, as the teacher saw documents"
                if theirs is not None
                else "None: the teacher saw documents together"
            )
            raise ConfigError(expected("separator", wish, mine, where="learn, the student", do=do))


def check_tokens(objective: Objective, knowledge: Knowledge | None, dataset: Any) -> None:
    """Refuse losses that compare token by token, and live teachers, where the teacher has other tokens than the student.

    Raises:
        ConfigError: naming the loss, or the teacher.
    """
    if not hasattr(dataset, "taught"):
        return
    where = "a text in two kinds of tokens"
    for term in objective.terms:
        if term.teacher is not None and not term.own and not term.claims.other_classes:
            do = "Use method uld, or let the teacher write and learn its text by method supervised."
            wish = "one that compares distributions over different tokens"
            raise ConfigError(expected("loss", wish, term.name, where=where, do=do))
    if teachers_of(knowledge):
        do = "Make a book of the teacher's side: it would be fed the student's tokens."
        raise ConfigError(expected("knowledge", "a book", "a live teacher", where=where, do=do))


def find_rows(
    dataset: Any, knowledge: Knowledge | None, rows: Sequence[int] | None, keys: npt.ArrayLike | None
) -> Sequence[int] | None:
    """Return the book row of each sample: as given, or by the keys that are given or that the data set has.

    Raises:
        ConfigError: if both rows and keys are given, or keys without a book.
        DataError: if the book has no keys, or not one of these.
    """
    books = books_of(knowledge)
    if keys is not None and (rows is not None or not books):
        wish, got = "absent where rows are given or there is no book", f"{len(np.asarray(keys))} keys"
        raise ConfigError(expected("keys", wish, got, where="learn", do="Pass rows or keys, and a book that has keys."))
    if rows is not None or not books:
        return rows
    # Books read together have the same keys: an ensemble refuses others.
    if keys is None and books[0].book.keys is not None:
        keys = keys_of(dataset)
    if keys is None:
        return None
    found: list[int] = books[0].book.rows_of(keys).tolist()
    return found


def check_labels(
    objective: Objective, dataset: Any, labels: Any | None, rows: Sequence[int] | None, task: Task | None = None
) -> None:
    """Refuse given labels that are none of the task's, and an objective of label terms alone where the student may see no label."""
    if labels is not None:
        chosen = np.arange(len(dataset)) if rows is None else np.asarray(rows)
        labels = label_rows(labels, int(chosen.max(initial=-1)) + 1, "learn")[chosen]
        if task is not None and not _all_hidden(labels):
            task.check_labels(labels, "labels of learn")
    transcribed = labels is None and all(LABEL_LENGTH in term.batch for term in objective.terms)
    known = getattr(dataset, "known", None) if transcribed else None
    if known is not None and len(known) and not np.any(known):
        do = "Give some utterances their text, or learn from a book or a teacher."
        where = str(getattr(dataset, "name", "data"))
        raise DataError(expected("transcripts", "known of one utterance at least", "none of them", where=where, do=do))
    if not all(term.mask is labelled for term in objective.terms):
        return
    if labels is None:
        labels = getattr(dataset, "labels", None)
    if labels is not None and len(labels) and _all_hidden(np.asarray(labels)):
        do = "Show the student some labels, or learn from a book or a teacher."
        raise ConfigError(expected("labels", "known for one sample at least", "none of them", where="learn", do=do))


def silent_labels(method: Method, objective: Objective, epochs: int) -> str:
    """Return what to say of a run in which a method's labels never get any weight, as one that ends in its first part; empty otherwise.

    Args:
        method: Whose labels these are.
        objective: What it minimises.
        epochs: Of the run.
    """
    learnt = [
        term.weight
        for term in objective.terms
        if term.teacher is None and any(key.rpartition("/")[2] == LABEL for key in term.batch)
    ]
    clocks = [Clock(place, place / 2, 2 * epochs) for place in range(2 * epochs)]
    if not learnt or any(resolve(weight, clock) != 0 for weight in learnt for clock in clocks):
        return ""
    options = []
    if hasattr(method, "begin_epochs"):
        options.append(f"--method.begin_epochs below {epochs}")
    if "labels-from-the-start" in method.presets:
        options.append("--method.preset labels-from-the-start")
    do = f"Pass {' or '.join([*options, 'more --training.epochs'])}."
    return (
        f"method {method.name} gives labels no weight in any of the {epochs} epochs: the student learns no label. {do}"
    )


def _all_hidden(labels: npt.NDArray[Any]) -> bool:
    return bool((np.isnan(labels) if labels.dtype.kind == "f" else labels == IGNORE_LABEL).all())


def check_utterances(objective: Objective, task: Task, dataset: Any, views: Views, labels: Any | None) -> None:
    """Refuse utterances that a view leaves too few frames of, where the task has such."""
    check = getattr(task, "check_utterances", None)
    if check is not None:
        transcripts = labels is None and any(LABEL_LENGTH in term.batch for term in objective.terms)
        check(dataset, views.transform, transcripts=transcripts)


def check_heads(objective: Objective, learner: Learner, replay: Replay, devices: int) -> None:
    """Refuse a network of speech without the intermediate layers that a method matches, or with others on several devices.

    It is asked about one utterance, without gradient.

    Raises:
        ConfigError: naming the layer.
    """
    if learner.task.name != "ctc":
        return
    wanted = {f"heads/{term.field.rpartition('heads/')[2]}" for term in objective.terms if "heads/" in term.field}
    if not wanted and devices == 1:
        return
    student, device, was_training = learner.student, next(learner.parameters()).device, learner.training
    batch = replay.batch([Pick(int(replay.rows[0]), 0)])
    learner.eval()
    try:
        with torch.no_grad():
            said = learner(
                {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            )
    finally:
        learner.train(was_training)
    found, where = {name for name in said if name.startswith("heads/")}, type(student).__name__
    missing, idle = sorted(wanted - found), sorted(found - wanted)
    if missing:
        do = "Use a network with such heads, as AcousticModel(heads=(0,)) has, or fewer `heads` of the method."
        got = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            expected("student", f"a network that says {missing[0]} beside its logits", got, where=where, do=do)
        )
    if idle and devices > 1:
        do = "Leave these out of the network, match them with `heads` of the method, or use one device."
        wish = "without parameters that no term reads, on several devices"
        raise ConfigError(expected("student", wish, ", ".join(idle), where=where, do=do))


def check_cached(cached: CachedViews | None, dataset: Any, views: Views, rows: Sequence[int] | None) -> None:
    """Refuse cached views of another recipe or other rows."""
    if cached is None:
        return
    n_samples = len(dataset)
    found = differences(cached.views.recipe(n_samples), views.recipe(n_samples), ignore=("n_views",))
    if not np.array_equal(cached.rows, np.arange(n_samples) if rows is None else np.asarray(rows)):
        found.append("rows of the data set")
    if found:
        do = "Cache the views that the student is to see."
        raise ConfigError(expected("cached", "of the same views", f"another {'; '.join(found)}", where="learn", do=do))


def run_config(
    learner: Learner,
    dataset: Any,
    views: Views,
    knowledge: Knowledge | None,
    method: Method,
    training: Training,
    validation: Validation | None,
    labels: npt.NDArray[Any] | None,
    rows: Sequence[int] | None,
    door: str,
    start: str | None,
) -> dict[str, Any]:
    """Return everything that the result depends on, as JSON values; the path of a book does not count, its content does."""
    known = [_of_book(book) for book in books_of(knowledge)]
    known += [{"teacher": live.teacher.name, "digest": live.teacher.digest} for live in teachers_of(knowledge)]
    parameters = count_parameters(learner.student)
    task, told = learner.task, {}
    if any(info.by_position for info in task.field_infos.values()):
        told = {"task": {"name": task.name, **plain(task)}}
    return {
        **told,
        "door": door,
        "method": {"name": method.name, **plain(method)},
        "training": plain(training),
        "knowledge": known[0] if len(known) == 1 else known or None,
        "data": fingerprint(dataset),
        "rows": _digest(rows),
        "labels": _digest(labels),
        "views": views.recipe(len(dataset)),
        "validation": None if validation is None else _of_validation(validation),
        "student": {
            "class": plain(type(learner.student)),
            "parameters": parameters,
            "start": start,
            "preprocess": plain(learner.preprocess),
            **(
                {}
                if learner.capture is None
                else {"inside": {name: learner.capture.path(name) for name in learner.capture.named}}
            ),
        },
    }


def _of_validation(validation: Validation) -> dict[str, Any]:
    found = fingerprint(validation.dataset)
    if validation.metric is not None:
        found = {**found, "metric": validation.metric}
    return found if validation.lower_is_better is None else {**found, "lower_is_better": validation.lower_is_better}


def _of_book(book: StoredKnowledge) -> dict[str, Any]:
    found: dict[str, Any] = {"book": book.book.content_digest}
    if len(book.teachers) < len(book.book.plan.teachers):
        found["teachers"] = [teacher.digest for teacher in book.teachers]
    return found


def _digest(values: Any) -> str | None:
    if values is None:
        return None
    array = np.asarray(values)
    return xxhash.xxh3_128_hexdigest(array.astype("<f8" if array.dtype.kind == "f" else "<i8").tobytes())
