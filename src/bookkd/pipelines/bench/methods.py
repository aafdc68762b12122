"""`bookkd bench methods`: an epoch of every method from the book, over an epoch of labels alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.making import make
from bookkd.methods import METHODS, Method, Supervised, build_method, method_class
from bookkd.methods._features import STAGES, BeginningMethod
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
GATES = 1.02
_LARGE = ("crd", "reviewkd")
_USUAL, _SMALL = "resnet20", "resnet8"
"""Students of methods that look inside: the usual one of a ResNet-56, to which the goals are, and one of a third of its cost, of which
adapters and maps are as much work as itself: shown."""
_PRESETS = {"ccskd": "labels-from-the-start"}
"""Of methods that leave most of their terms out at first: nobody waits 60 epochs for them here."""
_NARROW = 32
"""Channels of ReviewKD's running map, half of what it is by default on these students."""
_SECOND_PASS = {
    "adaptive-label-smoothing": "its own past is passed too",
    "beta-smoothing": "an averaged student is passed too",
    "ccd": "two views of each sample",
    "mlkd": "two views of each sample",
}


def bench_methods(*, pairs: int, quick: bool) -> list[Goal]:
    """Measure every method that serves classification, with its defaults: ResNet-8, random 32x32 images, views in memory.

    Methods that look inside of both networks are held to their goals with a ResNet-20 of a ResNet-56, and shown with a ResNet-8.

    Args:
        pairs: Interleaved pairs of each ratio.
        quick: A smaller set and a smaller teacher, the small student alone, and one live teacher.

    Returns:
        One goal a method, and a student.
    """
    # Whole batches, since methods that relate rows leave an incomplete one out and would seem faster.
    dataset, batch_size, pairs = (random_images(32), 32, 1) if quick else (random_images(16 * BATCH), BATCH, pairs)
    task = Classification(dataset.class_names)
    views = ViewOptions("crop-flip", 4, args={"size": 32, "padding": 4}).build()
    cached = CachedViews(Replay(dataset, views, probe_share=0.02), max_bytes=2**30)
    served = [name for name in METHODS if task.name in method_class(name).tasks and name != "supervised"]
    inside = [name for name in served if any(map(is_feature, method_class(name)().needs(task).fields))]
    with tempfile.TemporaryDirectory(prefix="bookkd-bench-") as folder:
        teacher = untrained_teacher("resnet20" if quick else "resnet56", task, dataset.images)
        book = make(
            Path(folder) / "book", teacher, dataset, views, task=task, batch_size=batch_size, serve=inside
        )  # fmt: skip
        held = _Held(cached, StoredKnowledge(book), teacher, task, pairs, batch_size)
        goals = [held.capturing()]
        for student in (_SMALL,) if quick else (_SMALL, _USUAL):
            labels = held.arm(Supervised(), None, student)
            names = served if student == _SMALL else inside
            goals += [held.to_labels(name, labels, student, inside=name in inside) for name in names]
            goals += [held.narrow(labels, student), held.gating(student)]
        live = [name for name in inside if name != "crd"]  # it draws its negatives from a book
        return goals + [held.to_live(name) for name in (live[:1] if quick else live)]


@dataclass(frozen=True)
class _Held:
    """What every arm of this bench is made of."""

    cached: CachedViews
    book: StoredKnowledge
    teacher: Teacher
    task: Classification
    pairs: int
    batch_size: int

    def arm(
        self,
        method: Method,
        knowledge: Knowledge | None,
        student: str,
        network: nn.Module | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> Arm:
        how: dict[str, Any] = {"network": network, "preprocess": preprocess, "student": student}
        return Arm(self.cached, method, knowledge, self.task, batch_size=self.batch_size, **how)

    def capturing(self) -> Goal:
        """Compare passes of the teacher that take channel means of its stages with passes that do not."""
        batch = self.cached.__getitems__([Pick(sample, 0) for sample in range(self.batch_size)])
        names = [f"features/{stage}/mean" for stage in STAGES]
        plain, taking = LiveKnowledge(self.teacher, self.task), LiveKnowledge(self.teacher, self.task)
        taking.offer(names, batch)

        def passes(knowledge: LiveKnowledge, fields: list[str]) -> None:
            for _ in range(4):
                knowledge.targets(batch, fields)

        ratios = paired(lambda: passes(taking, [LOGITS, *names]), lambda: passes(plain, [LOGITS]), self.pairs)
        return Goal.of("teacher's pass with channel means of its stages / logits only", ratios, 1.05)

    def to_live(self, name: str) -> Goal:
        """Compare an epoch of a method from the book with one beside its teacher."""
        sources = (self.book, LiveKnowledge(self.teacher, self.task))
        stored, live = (self.arm(_measured(name), each, _USUAL) for each in sources)
        words = f"epoch of {name} from the book / with {self.teacher.name} live ({_USUAL})"
        return Goal.of(words, paired(stored.epoch, live.epoch, min(self.pairs, 3)), None)

    def gating(self, student: str) -> Goal:
        """Compare steps with virtual gates in the convolutions with steps without.

        A few percent are less than what epochs differ by: many short pairs, of as many steps together as the epochs of others.
        """
        arm, labels = (self.arm(each, None, student) for each in (build_method("vam", "labels"), Supervised()))
        words = f"two steps of labels with the virtual attention module / without ({student})"
        pairs = self.pairs * max(1, len(arm.groups) // 2)
        ratios = paired(lambda: arm.steps(2), lambda: labels.steps(2), pairs)
        return Goal.of(words, ratios, GATES if student == _USUAL else None)

    def narrow(self, labels: Arm, student: str) -> Goal:
        """Compare an epoch of ReviewKD with a narrow running map with one of labels alone: what its default costs."""
        arm = self.arm(build_method("reviewkd", width=_NARROW), self.book, student)
        words = f"epoch of reviewkd, width {_NARROW}, / labels only ({student})"
        return Goal.of(words, paired(arm.epoch, labels.epoch, self.pairs), None)

    def to_labels(self, name: str, labels: Arm, student: str, *, inside: bool) -> Goal:
        """Compare an epoch of a method from the book with one of labels alone."""
        method = _measured(name)
        given = self.book if method.needs(self.task).fields else None
        if name == "kdexplainer":
            # The network is another, so that labels alone are learnt by it too.
            _, prepare = NetworkOptions(student).build(self.task.n_classes, role="student")
            arm, labels = (
                self.arm(each, told, student, GateTree(self.task.n_classes), prepare)
                for each, told in ((method, given), (Supervised(), None))
            )
        else:
            arm = self.arm(method, given, student)
        if method.needs(self.task).validation:
            arm.run.fire("validation_improved")
        ratios = paired(arm.epoch, labels.epoch, self.pairs)
        words = f"epoch of {name}{f', {_PRESETS[name]},' if name in _PRESETS else ''} / labels only"
        if inside:
            limit = LARGE_FEATURES if name in _LARGE else FEATURES
            return Goal.of(f"{words} ({student})", ratios, limit if student == _USUAL else None)
        why = _SECOND_PASS.get(name, f"{method.cohort} networks" if method.cohort > 1 else None)
        words += f" ({why})" if why else " (both of its tree)" if name == "kdexplainer" else ""
        # One network more is one pass and one update more.
        return Goal.of(words, ratios, TWO_PASSES + max(0, method.cohort - 2) if why else ONE_PASS)


def _measured(name: str) -> Method:
    """Return a method as it is by default, those with a beginning in it for as long as they are measured."""
    method = build_method(name, _PRESETS.get(name))
    return replace(method, begin_epochs=10**6) if isinstance(method, BeginningMethod) else method
