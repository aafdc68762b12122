"""Chains: each network learns from the book of the one before and writes the next, with no teacher in memory.

Teacher assistants (56 -> 20 -> 8) and generations of self-distillation (8 -> 8 -> 8) are the same pipeline; all paths of a set
share what they have in common, so that a network with the same teachers behind it is trained once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bookkd.book import Codec
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import pretty
from bookkd.evaluation import diversity, evaluate
from bookkd.learning import Learner, Training, find_device, predictions_of
from bookkd.methods import Method, Supervised
from bookkd.pipelines.learn_student import learn_student
from bookkd.pipelines.make_book import make_book
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.tasks import Classification

__all__ = ["Chain", "all_paths", "nearest_to_mean", "run_chain"]

Say = Callable[[str], None]
Path_ = tuple[str, ...]


def all_paths(sizes: Sequence[str]) -> list[Path_]:
    """Return every path from the first to the last of `sizes` that keeps their order: 2^(n - 2) of them, shortest first.

    >>> all_paths(["56", "20", "8"])
    [('56', '8'), ('56', '20', '8')]
    """
    first, *between, last = sizes
    chosen = (some for n in range(len(between) + 1) for some in itertools.combinations(between, n))
    return [(first, *some, last) for some in chosen]


def nearest_to_mean(teacher: float, student: float, candidates: dict[str, float]) -> str:
    """Return the candidate whose accuracy, trained on labels alone, is nearest to the mean of teacher's and student's.

    Args:
        teacher: Accuracy of the teacher.
        student: Accuracy of the student, trained on labels alone.
        candidates: Accuracy of each possible assistant, trained on labels alone; of equally near ones the first.

    >>> nearest_to_mean(0.90, 0.70, {"resnet44": 0.89, "resnet20": 0.86, "resnet14": 0.79})
    'resnet14'

    Source: Mirzadeh et al., AAAI 2020 (arXiv 1902.03393), recalled, not read again: the mean of accuracies is a better guide
    than the mean of sizes.
    """
    return min(candidates, key=lambda name: abs(candidates[name] - (teacher + student) / 2))


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What all links of a chain share.

    Args:
        out: Folder; each network has a folder of its own in it, named by the path behind it.
        data: The samples.
        views: The augmentation, the same for every link.
        method: How each network learns from the one before.
        training: How each is trained.
        first: The first network where its weights are given; else it is trained on labels alone.
        codec: How logits become bytes.
        test: Split on which every network is measured.
        say: Called with a line of progress.
    """

    out: Path
    data: DataOptions
    views: ViewOptions
    method: Method
    training: Training
    first: NetworkOptions = field(default_factory=NetworkOptions)
    codec: Codec | None = None
    test: str = "test"
    say: Say = print

    def weights(self, path: Path_) -> Path:
        """Return where the weights of the network at the end of `path` are."""
        if len(path) == 1 and self.first.weights is not None:
            return Path(self.first.weights)
        return self.folder(path) / "run" / "student.safetensors"

    def folder(self, path: Path_) -> Path:
        """Return the folder of the network at the end of `path`."""
        return self.out / "-".join(path)

    def network(self, path: Path_) -> NetworkOptions:
        """Return the network at the end of `path` with the weights that it has learnt."""
        shared = self.first if len(path) == 1 else NetworkOptions()
        return replace(shared, name=path[-1], weights=str(self.weights(path)))

    def seed(self, path: Path_) -> int:
        """Return the seed of a network: that of the training, and another for each earlier one of its architecture.

        A generation that started from its teacher's initial values would not be a new one.
        """
        return self.training.seed + 7919 * path[:-1].count(path[-1])

    def grow(self, path: Path_) -> dict[str, Any]:
        """Train the network at the end of `path`, and all before it, where they are not there yet; return its record."""
        if len(path) > 1:
            self.grow(path[:-1])
        shared: dict[str, Any] = {"data": self.data, "views": self.views, "validate_on": "", "loggers": ()}
        made: dict[str, Any] = {}
        learned: dict[str, Any] = {}
        training = replace(self.training, seed=self.seed(path))
        student, out = NetworkOptions(path[-1]), str(self.folder(path) / "run")
        if len(path) > 1:
            book = str(self.folder(path[:-1]) / "book")
            self.say(f"{' -> '.join(path)}: book of {path[-2]}, then {path[-1]} learns from it")
            made = make_book(
                book,
                data=self.data,
                teacher=self.network(path[:-1]),
                views=self.views,
                codec=self.codec,
                held_out=self.test,
                accelerator=self.training.accelerator,
            )
            learned = learn_student(out, student=student, method=self.method, book=book, training=training, **shared)
        elif self.first.weights is None:
            self.say(f"{path[0]}: learns from labels alone")
            learned = learn_student(out, student=student, method=Supervised(), training=training, **shared)
        return {**self._measured(path), **_costs(made, learned)}

    def alone(self, name: str) -> dict[str, Any]:
        """Train a network on labels alone, in a folder `alone/`, and return its record."""
        return replace(self, out=self.out / "alone", first=NetworkOptions()).grow((name,))

    def _measured(self, path: Path_) -> dict[str, Any]:
        dataset = self.data.other(self.test).open()
        task = Classification(dataset.class_names)
        network, preprocess = self.network(path).build(task.n_classes, role="student")
        learner = Learner(network, task, preprocess=preprocess).to(find_device(self.training.accelerator))
        said = predictions_of(learner, dataset)
        metrics = evaluate(said.fields[LOGITS], said.labels, replicates=0).metrics
        return {
            "path": list(path),
            "network": path[-1],
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "weights": str(self.weights(path)),
            "split": self.test,
            **{name: metrics[name].value for name in ("accuracy", "nll", "ece")},
            **diversity(said.fields[LOGITS], said.labels).to_json(),
        }


def _costs(made: dict[str, Any], learned: dict[str, Any]) -> dict[str, Any]:
    cost = made.get("cost", {})
    return {
        # Of the epochs and not of the clock: a network that is there already costs what it cost.
        "seconds": learned.get("epochs", 0) * learned.get("seconds_per_epoch", 0.0),
        "epochs": learned.get("epochs", 0),
        "book": None if not made else {key: made[key] for key in ("path", "bytes", "records", "content_digest")},
        "book_seconds": cost.get("seconds", 0.0),
        "teacher_forwards": cost.get("teacher_forwards", 0),
    }


def run_chain(chain: Chain, paths: Sequence[Path_]) -> dict[str, Any]:
    """Train all networks of `paths`; what is done already is not done again.

    Args:
        chain: What the links share.
        paths: Names of networks, teacher first, each path at least one long; all from one first network.

    Returns:
        `networks`: a record for each network, parents first; `paths`: one for each path, with the accuracy at its end and what
        it costs in all; `notes`. Also written to `chain.json`.

    Raises:
        ConfigError: if paths begin with different networks, or are empty.
    """
    if not paths or any(not path for path in paths) or len({path[0] for path in paths}) != 1:
        raise ConfigError(
            expected("path", "networks from one teacher on", [list(path) for path in paths], where="chain")
        )
    wanted = sorted(
        {path[:end] for path in paths for end in range(1, len(path) + 1)}, key=lambda path: (len(path), path)
    )
    known = {path: chain.grow(path) for path in wanted}
    result = {
        "networks": list(known.values()),
        "paths": [_whole(path, known) for path in paths],
        "notes": _notes(known),
        "method": chain.method.name,
    }
    write_atomic(chain.out / "chain.json", pretty(result))
    return result


def _whole(path: Path_, known: dict[Path_, dict[str, Any]]) -> dict[str, Any]:
    links = [known[path[:end]] for end in range(1, len(path) + 1)]
    last = links[-1]
    return {
        "path": list(path),
        **{name: last[name] for name in ("accuracy", "nll", "ece", "parameters", "weights")},
        "seconds": sum(link["seconds"] + link["book_seconds"] for link in links),
        "trainings": sum(link["epochs"] > 0 for link in links),
        "teacher_forwards": sum(link["teacher_forwards"] for link in links),
    }


def _notes(known: dict[Path_, dict[str, Any]]) -> list[str]:
    found = []
    for path, record in known.items():
        before = known.get(path[:-1])
        if before is not None and record["parameters"] > before["parameters"]:
            sizes = f"{record['parameters']:,} parameters against {before['parameters']:,}"
            found.append(
                f"{path[-1]} is larger than its teacher {path[-2]} ({sizes}): a chain usually goes down in size."
            )
    return found
