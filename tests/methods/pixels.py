"""Worked maps of the methods of segmentation, card detection-segmentation-kd, and a book of shapes to learn from."""

from __future__ import annotations

import numpy as np
import torch

from bookkd.book import Dense
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.losses import DenseTarget
from bookkd.making import make
from bookkd.tasks import Segmentation
from bookkd.views import Views
from bookkd.zoo import create_network, create_preprocess, open_dataset

PIXELS = ("cwd", "skd")
"""Methods of pixels alone."""
TWO_CLASSES = Segmentation(("a", "b"))
# The maps of channel-wise distillation: 2 channels, 4 positions; here the logits of two classes at 1 x 4 pixels.
F_S = np.array([[0, 0.5, 1, 2], [0.5, 1, 0.5, 0]])
F_T = np.array([[0, 1, 2, 3], [1, 1, 0, -1]])
# Those of pair-wise similarity: 2 channels, 3 regions.
NODES_S, NODES_T = np.array([[1, 1, 0], [0, 1, 1]], dtype=float), np.array([[1, 0, 1], [0, 1, 1]], dtype=float)


def _log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(0))


CE = -_log_softmax(F_S)[0].mean()
"""Every pixel is of the first class."""
SOFT = -(np.exp(_log_softmax(F_T)) * _log_softmax(F_S)).sum(0).mean()
DEFAULTS = {
    "cwd": {"weight": 3.0, "temperature": 4.0, "ce_weight": 1.0, "positions": "known"},
    # "weight 10", "weight 1", "gives a 2 x 2 grid".
    "skd": {"weight": 1.0, "pixel_weight": 10.0, "ce_weight": 1.0, "regions": 2, "layer": "last"},
}
NEEDS = {
    "cwd": ({"logits": (4.0,)}, ("logits",)),
    "skd": ({"logits": (1.0,), "features/last/max2": ()}, ("features/last/max2",)),
}
TOTALS = {"cwd": CE + 3 * 0.110261, "skd": CE + 10 * SOFT + 0.222222}
REFUSED = [
    ("cwd", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0 \(method cwd\)"),
    ("cwd", "weight", 0.0, r"`weight` to be above 0, got 0 "),
    ("cwd", "positions", "some", r"`positions` to be known or all, got 'some' \(method cwd\)"),
    ("skd", "regions", 1, r"`regions` to be a whole number of at least 2, got 1 \(method skd\)"),
    ("skd", "pixel_weight", -1.0, r"`pixel_weight` to be at least 0, got -1\.0 \(method skd\)"),
]


def pixel_total(method, labels=(0, 0, 0, 0), teacher=F_T):
    """The loss of one image of four pixels."""
    batch = {
        "input": torch.zeros(1, 3, 1, 4),
        "label": torch.tensor(labels).reshape(1, 1, 4),
        "weight": torch.ones(1, dtype=torch.float64),
    }
    seen = {**TWO_CLASSES.batch(batch), SAMPLE_WEIGHT: batch["weight"]}

    def pixels(maps):
        return torch.tensor(maps.T, dtype=torch.float64).reshape(1, 1, 4, 2)

    student = {**TWO_CLASSES.student({"logits": pixels(F_S)}), "features/last/max2": torch.tensor(NODES_S)[None]}
    targets = {"logits": DenseTarget(pixels(teacher)), "features/last/max2": torch.tensor(NODES_T)[None]}
    objective = method.objective(TWO_CLASSES)
    sums = objective.sums(student, targets, seen, TWO_CLASSES.weights(seen), Clock())
    return objective.loss(sums, objective.totals(seen, TWO_CLASSES.divisors(seen)), Clock())


def learn_shapes(method, folder):
    """A student of shapes after one epoch from a book, and that its parameters have moved."""
    train = open_dataset("shapes", args={"n": 16, "height": 16, "width": 24})
    task, views = Segmentation(train.class_names, stride=2), Views(None, n_views=1)

    def network(name, width, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return create_network(name, n_classes=len(train.class_names), args={"width": width, "stages": 2})

    teacher = Teacher(network("unet-large", 6, 0), create_preprocess("unet-large"))
    inside = [name for name in method.needs(task).fields if name.startswith("features/")]
    book = make(folder / "book", teacher, train, views, task=task, codec=Dense("float32"), features=inside)
    student = network("unet-small", 4, 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    learned = learn(
        student, train, views, task=task, method=method, knowledge=StoredKnowledge(book), preprocess=create_preprocess("unet-small"),
        training=Training(epochs=1, batch_size=8, accelerator="cpu", lr=0.05), validation=train,
    )  # fmt: skip
    assert learned.teacher_forwards == 0
    assert any(not torch.equal(value, before[name]) for name, value in learned.student.state_dict().items())
    return learned
