"""Which recipe of views makes a good book, from a few thousand passes of the teacher, before a whole book is paid for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import Book, Dense
from bookkd.core.check import at_least, between, unique
from bookkd.core.fields import IGNORE_LABEL, INPUT, LOGITS
from bookkd.core.rng import generator
from bookkd.evaluation import Interval, ViewScore, compare_views, score_views
from bookkd.knowledge import Teacher
from bookkd.learning import find_device
from bookkd.making import find_batch_size, make
from bookkd.pipelines.compare.document import read_document
from bookkd.pipelines.compare.values import mapped, typed
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.predict_cost import record_bytes
from bookkd.pipelines.task import build_task, check_dataset, teacher_for
from bookkd.tasks import Classification, Task
from bookkd.views import Pick, Replay, Views
from bookkd.views.mix import draw_partners
from bookkd.zoo import SubsetDataset

__all__ = ["PASSES", "RankedViews", "Ranking", "rank_views", "read_recipes"]

PASSES = 4096
"""Passes of the teacher for each recipe where nothing else is said."""
GROUP_ROWS = 64
_WARM = 64
_TYPICAL = "dense float16"


@dataclass(frozen=True, eq=False)
class RankedViews:
    """One recipe.

    Args:
        name: Of the recipe.
        views: The recipe.
        score: What the teacher says of its views.
        to_best: Its T. stddev less that of the first recipe, over the same samples; None for the first.
        shows_little: Whether the teacher knows less than half as many of its labels as of another recipe's; a low T. stddev then
            says that the views are empty, and the recipe stands last.
        records: Records of the whole book, each a pass of the teacher.
        codec_bytes: Codec -> bytes of the whole book.
        seconds: Of making it: drawing the views, the teacher's passes, and writing.
    """

    name: str
    views: ViewOptions
    score: ViewScore
    to_best: Interval | None
    shows_little: bool
    records: int
    codec_bytes: Mapping[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "views": dict(vars(self.views)),
            **self.score.to_json(),
            "to_best": None if self.to_best is None else self.to_best.to_json(),
            "shows_little": self.shows_little,
            "records": self.records,
            "teacher_forwards": self.records,
            "bytes": self.codec_bytes[_TYPICAL],
            "codec_bytes": dict(self.codec_bytes),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, eq=False)
class Ranking:
    """Recipes, the best first, and what it took to tell.

    Args:
        recipes: By T. stddev, lowest first; those that show little behind all others.
        teacher_forwards: Samples that were passed through the teacher for it.
        seconds: Of it all.
        notes: What is to be read beside the figures.
    """

    recipes: Sequence[RankedViews]
    teacher_forwards: int
    seconds: float
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "recipes": [each.to_json() for each in self.recipes],
            "teacher_forwards": self.teacher_forwards,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


def read_recipes(words: Sequence[str], given: ViewOptions) -> dict[str, ViewOptions]:
    """Return recipe by name: each word is a YAML file of view options, or the name of a transform.

    A file may also be one of `bookkd make`, whose options of views stand under `views`.

    Args:
        words: Files (.yaml, .yml) and names.
        given: What a recipe does not say.

    Raises:
        ConfigError: for a file that is no such recipe, or two of one name.
    """
    found = [_read(word, given) for word in words]
    unique([name for name, _ in found], "views", where="plan", do="Give the files other names.")
    return dict(found)


def _read(word: str, given: ViewOptions) -> tuple[str, ViewOptions]:
    path = Path(word)
    if path.suffix not in (".yaml", ".yml"):
        return word, replace(given, transform=word)
    document = read_document(path, "recipe of views")
    document = document.get("views", document)
    if isinstance(document, str):
        document = {"transform": document}
    where = f"views of {path.name}"
    return path.stem, replace(given, **typed(ViewOptions, mapped(document, "views", str(path)), where))


def rank_views(
    recipes: Mapping[str, ViewOptions],
    *,
    data: DataOptions,
    teacher: NetworkOptions,
    passes: int = PASSES,
    group_rows: int = GROUP_ROWS,
    temperatures: tuple[float, ...] = (1.0, 4.0),
    accelerator: str = "auto",
    seed: int = 0,
) -> Ranking:
    """Ask the teacher about some views of each recipe, and order the recipes by T. stddev.

    Every recipe is seen on the same samples in the same groups. A recipe is made into a small book, as the whole would be, so that
    what cannot be replayed is refused here, and the seconds are those of making.

    Args:
        recipes: By name.
        data: The samples.
        teacher: The teacher.
        passes: Samples passed through it for each recipe at most, beside 64 to warm up; of a smaller data set several views of each.
        group_rows: Rows of a group; scores of other sizes are not comparable.
        temperatures: That a sparse codec is to honour.
        accelerator: Where the teacher runs.
        seed: Of the choice and order of samples.

    Raises:
        ConfigError: if an option is out of range, or views cannot be replayed.
    """
    where = "plan --views"
    at_least(len(recipes), 1, "recipes", where=where)
    at_least(passes, 2, "passes", where=where)
    started = time.perf_counter()
    dataset = data.open()
    task = build_task("classification", dataset)
    check_dataset(task, dataset, data.name)
    n_views = -(-passes // len(dataset))
    rows = generator(seed, "views").permutation(len(dataset))[: passes // n_views]
    do = f"Two groups are needed at least, of {len(rows) * n_views} passes."
    between(group_rows, 1, len(rows) * n_views // 2, "group_rows", where=where, do=do)
    speaker = teacher_for(teacher, dataset, task, find_device(accelerator))
    sample = _Sample(SubsetDataset(dataset, rows), n_views, group_rows, seed)
    views = {name: options.without_repeats().build() for name, options in recipes.items()}
    asked = {name: sample.ask(speaker, task, each) for name, each in views.items()}
    little = _showing_little(asked)
    order = sorted(asked, key=lambda name: (name in little, asked[name].score.stddev.value))
    sizes = {codec: size for codec, (_, size) in record_bytes(task.of_teacher().n_outputs, temperatures).items()}
    ranked = []
    for name in order:
        records, best = len(dataset) * views[name].n_views, asked[order[0]]
        ranked.append(
            RankedViews(
                name,
                replace(recipes[name], n_views=views[name].n_views),
                asked[name].score,
                None if name == order[0] else compare_views(asked[name].score, best.score),
                name in little,
                records,
                {codec: size * records for codec, size in sizes.items()},
                asked[name].record_seconds * records,
            )
        )
    forwards = sum(each.forwards for each in asked.values())
    return Ranking(ranked, forwards, time.perf_counter() - started, _notes(ranked))


def _showing_little(asked: Mapping[str, _Asked]) -> list[str]:
    """Return the recipes of whose labels the teacher knows less than half as many as of the best-known one."""
    known = {name: each.score.agreement.value for name, each in asked.items() if each.score.agreement is not None}
    return [name for name, value in known.items() if value < max(known.values()) / 2]


@dataclass(frozen=True, eq=False)
class _Asked:
    score: ViewScore
    record_seconds: float
    forwards: int


@dataclass(frozen=True, eq=False)
class _Sample:
    """The samples that every recipe is seen on, in random order, and how many views of each."""

    dataset: SubsetDataset
    n_views: int
    group_rows: int
    seed: int

    def ask(self, teacher: Teacher, task: Task, views: Views) -> _Asked:
        """Make a small book of a recipe and score it."""
        seen = replace(views, n_views=self.n_views)
        if seen.mix is not None:
            seen = seen.with_pool(len(self.dataset))
        batch = find_batch_size(teacher, Replay(self.dataset, seen)[Pick(0, 0)][INPUT])
        warm = SubsetDataset(self.dataset, np.arange(min(_WARM, len(self.dataset))))
        options: dict[str, Any] = {"task": task, "codec": Dense("float32"), "batch_size": batch}
        with tempfile.TemporaryDirectory(prefix="bookkd-plan-") as folder:
            make(Path(folder) / "warm-up", teacher, warm, replace(views, n_views=1), **options)
            book = make(Path(folder) / "book", teacher, self.dataset, seen, **options)
            logits, labels, partners = self._read(book, seen, task)
        score = score_views(logits, group_rows=self.group_rows, labels=labels, partner_labels=partners, seed=self.seed)
        records = len(self.dataset) * self.n_views
        return _Asked(score, float(book.cost["seconds"]) / records, records + len(warm))

    def _read(
        self, book: Book, views: Views, task: Task
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """Return logits, labels and those of partners: each view in an order of its own, or groups would repeat."""
        n, known = len(self.dataset), _among_all(task, np.asarray(self.dataset.labels))
        logits, labels, partners = [], [], []
        for view in range(self.n_views):
            rows = generator(self.seed, "order of views", view).permutation(n)
            logits.append(np.asarray(book.read(rows, view, [LOGITS])[LOGITS]))
            labels.append(known[rows])
            if views.mix is not None:
                drawn = draw_partners(views.seed, rows.tolist(), [view] * n, pool=views.mix.pool or n)
                partners.append(known[drawn])
        return np.concatenate(logits), np.concatenate(labels), np.concatenate(partners) if partners else None


def _among_all(task: Task, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return labels as numbers among all classes of the teacher, which may know more than the data set has."""
    if not isinstance(task, Classification) or not task.whole:
        return labels
    return np.where(labels == IGNORE_LABEL, IGNORE_LABEL, np.asarray(task.places)[labels])


def _notes(ranked: Sequence[RankedViews]) -> list[str]:
    """Return what a reader of the order should know."""
    tied = [each.name for each in ranked if each.to_best and each.to_best.low <= 0 <= each.to_best.high]
    notes = []
    if tied:
        best = ranked[0].name
        notes.append(
            f"{', '.join(tied)} cannot be told from {best} by these passes: the interval of the difference holds 0."
        )
    notes += [
        f"of {each.name} the teacher knows {each.score.agreement.value:.0%} of the labels, less than half of what it knows of another: "
        "views that show little have a low T. stddev too, and teach little. It stands last."
        for each in ranked
        if each.shows_little and each.score.agreement is not None
    ]
    return notes
