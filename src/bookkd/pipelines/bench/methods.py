"""`bookkd bench methods`: an epoch of every method from the book, over an epoch of labels alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bookkd.knowledge import StoredKnowledge
from bookkd.making import make
from bookkd.methods import METHODS, Supervised, method_class
from bookkd.pipelines.bench.arm import BATCH, Arm, random_images
from bookkd.pipelines.bench.learn import untrained_teacher
from bookkd.pipelines.bench.measure import Goal, paired
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.shaping import GateTree
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Replay

__all__ = ["bench_methods"]

ONE_PASS, TWO_PASSES = 1.10, 2.10
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
    dataset = random_images((2 if quick else 16) * BATCH)
    task, views = (
        Classification(dataset.class_names),
        ViewOptions("crop-flip", 4, args={"size": 32, "padding": 4}).build(),
    )
    cached = CachedViews(Replay(dataset, views, probe_share=0.02), max_bytes=2**30)
    with tempfile.TemporaryDirectory(prefix="bookkd-bench-") as folder:
        teacher = untrained_teacher("resnet20", task, dataset.images)
        knowledge = StoredKnowledge(make(Path(folder) / "book", teacher, dataset, views, task=task, batch_size=BATCH))
        labels = Arm(cached, Supervised(), None, task)
        served = [name for name in METHODS if task.name in method_class(name).tasks and name != "supervised"]
        return [_goal(name, cached, knowledge, labels, task, pairs) for name in served]


def _goal(
    name: str, cached: CachedViews, knowledge: StoredKnowledge, labels: Arm, task: Classification, pairs: int
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
    return Goal.of(words, paired(arm.epoch, labels.epoch, pairs), limit)
