"""Whether the links of a chain can be trained; asked before the first of them is."""

from __future__ import annotations

from dataclasses import replace

from bookkd.book import Codec, Dense
from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import FieldInfo
from bookkd.knowledge import check_fields, check_views
from bookkd.learning import Training, check_batches
from bookkd.learning.configuration import check_task
from bookkd.methods import Method
from bookkd.tasks import Task

__all__ = ["check_link", "check_unvalidated"]

_WHERE = "chain"


def check_unvalidated(training: Training) -> None:
    """Refuse options that steer training by validation samples; the networks of a chain have none.

    Raises:
        ConfigError: for early stopping or the plateau schedule.

    >>> check_unvalidated(Training(schedule="plateau"))
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `training.schedule` to be another than plateau, got 'plateau' (chain). \
No network of a chain is validated while it learns: pass --training.schedule cosine.
    """
    why = "No network of a chain is validated while it learns"
    if training.patience is not None:
        do = f"{why}: leave --training.patience out."
        raise ConfigError(expected("training.patience", "absent", training.patience, where=_WHERE, do=do))
    if training.schedule == "plateau":
        do = f"{why}: pass --training.schedule cosine."
        raise ConfigError(expected("training.schedule", "another than plateau", "plateau", where=_WHERE, do=do))


def check_link(
    method: Method, task: Task, *, codec: Codec | None, n_views: int, training: Training, samples: int
) -> None:
    """Refuse a method that cannot learn from the books of a chain.

    Args:
        method: How each network learns from the one before.
        task: Its fields are those of the books.
        codec: How they become bytes; dense where None.
        n_views: Views of a sample in each book.
        training: How each network is trained.
        samples: Samples that each learns from.

    Raises:
        ConfigError: if the method learns from no book, wants more views, or cannot learn from such batches.
        FidelityError: if the codec cannot honour a temperature or a loss of the method.
    """
    check_task(method, task, where=_WHERE)
    needs = method.needs(task)
    if not needs.fields or needs.live_teacher or method.cohort > 1:
        got = f"{method.name}, which learns from {_from(method, live=needs.live_teacher)}"
        do = "Use takd, vanilla-kd or another method that learns from one book: --method takd."
        raise ConfigError(expected("method", "one that learns from a book", got, where=_WHERE, do=do))
    used = codec or Dense()
    fields = {}
    for name, info in task.field_infos.items():
        used.parts(info.shape)  # refuses a record that the codec cannot hold
        fields[name] = replace(info, sparse=used.sparse, temperatures=used.promised, linear=used.linear, hard=used.hard)
    # What is read inside of a teacher is kept in its book; of which shape it is, each teacher says.
    fields |= {name: FieldInfo(()) for name in needs.fields if is_feature(name)}
    check_fields(needs, fields, method.name, where=_WHERE)
    check_views(needs, n_views, method.name, where=_WHERE)
    whole = method.objective(task).relational
    check_batches(training, samples=samples, views_per_sample=needs.views_per_sample, whole=whole, where=_WHERE)


def _from(method: Method, *, live: bool) -> str:
    if live:
        return "a live teacher"
    return "its own peers" if method.cohort > 1 else "labels alone"
