"""`bookkd bench methods`: an epoch of every method from the book, over an epoch of labels alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.making import make
from bookkd.methods import METHODS, Supervised, method_class
from bookkd.methods._features import STAGES
from bookkd.pipelines.bench.arm import BATCH, Arm, random_images
from bookkd.pipelines.bench.learn import untrained_teacher
from bookkd.pipelines.bench.measure import Goal, paired
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.shaping import GateTree
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Pick, Replay

__all__ = ["bench_methods"]

ONE_PASS, TWO_PASSES = 1.10, 2.10
FEATURES, LARGE_FEATURES = 1.25, 1.60
"""Of methods that look inside; of `crd`, which reads negatives too, and `reviewkd`, whose fusion is as large as a small student."""
_LARGE = ("crd", "reviewkd")
_SECOND_PASS = {
    "adaptive-label-smoothing": "its own past is passed too",
    "beta-smoothing": "an averaged student is passed too",
    "mlkd": "two views of each sample",
}


def bench_methods(*, pairs: int, quick: bool) -> list[Goal]:
    """Measure every method that serves classification, with its defaults: ResNet-8, random 32x32 images, views in memory.

    Args:
        pairs: Interleaved pairs of each ratio.
        quick: A smaller set.

    Returns:
        One goal a method.
    """
    # Whole batches, since methods that relate rows leave an incomplete one out and would seem faster.
    dataset = random_images((1 if quick else 16) * BATCH)
    task, views = (
        Classification(dataset.class_names),
        ViewOptions("crop-flip", 4, args={"size": 32, "padding": 4}).build(),
    )
    cached = CachedViews(Replay(dataset, views, probe_share=0.02), max_bytes=2**30)
    with tempfile.TemporaryDirectory(prefix="bookkd-bench-") as folder:
        teacher = untrained_teacher("resnet20", task, dataset.images)
        served = [name for name in METHODS if task.name in method_class(name).tasks and name != "supervised"]
        inside = {
            name: [each for each in method_class(name)().needs(task).fields if is_feature(each)] for name in served
        }
        book = make(
            Path(folder) / "book", teacher, dataset, views, task=task, batch_size=BATCH,
            serve=[name for name in served if inside[name]],
        )  # fmt: skip
        knowledge = StoredKnowledge(book)
        labels = Arm(cached, Supervised(), None, task)
        goals = [_capturing(teacher, task, cached, pairs)]
        for name in served:
            goals.append(_goal(name, cached, knowledge, labels, task, pairs, bool(inside[name])))
            if inside[name] and name != "crd":  # which draws its negatives from a book
                goals.append(_against_live(name, cached, knowledge, teacher, task, 1 if quick else min(pairs, 5)))
        return goals


def _capturing(teacher: Teacher, task: Classification, cached: CachedViews, pairs: int) -> Goal:
    """Compare passes of the teacher that take channel means of its stages with passes that do not."""
    batch = cached.__getitems__([Pick(sample, 0) for sample in range(BATCH)])
    names = [f"features/{stage}/mean" for stage in STAGES]
    plain, taking = LiveKnowledge(teacher, task), LiveKnowledge(teacher, task)
    taking.offer(names, batch)

    def passes(knowledge: LiveKnowledge, fields: list[str]) -> None:
        for _ in range(4):
            knowledge.targets(batch, fields)

    ratios = paired(lambda: passes(taking, [LOGITS, *names]), lambda: passes(plain, [LOGITS]), pairs)
    return Goal.of("teacher's pass with channel means of its stages / logits only", ratios, 1.05)


def _against_live(
    name: str, cached: CachedViews, knowledge: StoredKnowledge, teacher: Teacher, task: Classification, pairs: int
) -> Goal:
    method = method_class(name)()
    stored, live = (Arm(cached, method, each, task) for each in (knowledge, LiveKnowledge(teacher, task)))
    return Goal.of(
        f"epoch of {name} from the book / with ResNet-20 live", paired(stored.epoch, live.epoch, pairs), None
    )


def _goal(
    name: str,
    cached: CachedViews,
    knowledge: StoredKnowledge,
    labels: Arm,
    task: Classification,
    pairs: int,
    inside: bool,
) -> Goal:
    method = method_class(name)()
    given = knowledge if method.needs(task).fields else None
    if name == "kdexplainer":
        _, prepare = NetworkOptions("resnet8").build(task.n_classes, role="student")
        # The network is another, so that labels alone are learnt by it too.
        arm, labels = (
            Arm(cached, each, told, task, network=GateTree(task.n_classes), preprocess=prepare)
            for each, told in ((method, given), (Supervised(), None))
        )
    else:
        arm = Arm(cached, method, given, task)
    if method.needs(task).validation:
        arm.run.fire("validation_improved")
    why = _SECOND_PASS.get(name, f"{method.cohort} networks" if method.cohort > 1 else None)
    student = " (both of its tree)" if name == "kdexplainer" else ""
    words = f"epoch of {name} / labels only" + (f" ({why})" if why else student)
    # One network more is one pass and one update more.
    limit = TWO_PASSES + max(0, method.cohort - 2) if why else ONE_PASS
    if inside:
        limit = LARGE_FEATURES if name in _LARGE else FEATURES
    return Goal.of(words, paired(arm.epoch, labels.epoch, pairs), limit)
