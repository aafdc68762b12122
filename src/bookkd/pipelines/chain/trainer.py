"""The networks of a chain while they come into being: each is trained, measured and written down once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bookkd.core.features import is_feature
from bookkd.methods import Supervised
from bookkd.pipelines.chain.checks import check_link, check_unvalidated
from bookkd.pipelines.chain.links import Chain, NetworkPath, prefixes, refuse_shared_folders
from bookkd.pipelines.chain.measured import Measurer
from bookkd.pipelines.learn_student import learn_student
from bookkd.pipelines.make_book import make_book
from bookkd.pipelines.samples import Samples, open_samples
from bookkd.tasks import Classification
from bookkd.zoo import count_parameters

__all__ = ["ChainTrainer"]


class ChainTrainer:
    """What one call trains, each network and book once; what lies there finished is taken as it is.

    Args:
        chain: What the links share.
        samples: The data of the chain, opened; opened here where None.

    Raises:
        ConfigError: if there is no such split; if views are mixed where samples are held out.
        DataError: if files or labels are not what is needed.
    """

    def __init__(self, chain: Chain, samples: Samples | None = None) -> None:
        self.chain = replace(chain, views=chain.views.without_repeats())
        self.samples = samples or open_samples(
            chain.data, Classification.name, test=chain.test, held_out=chain.held_out, where="chain"
        )
        self.task = Classification(self.samples.task.class_names)
        do = "Pass --validation SPLIT, or views without mixing."
        self.samples.check_partners(self.chain.views.build(), where="chain", do=do)
        self.known: dict[NetworkPath, dict[str, Any]] = {}
        self._measure = self.measurer(on_test=True)
        self._books: dict[NetworkPath, dict[str, Any]] = {}
        self._parameters: dict[tuple[str, bool], int] = {}
        self._said: set[str] = set()

    def measurer(self, *, on_test: bool) -> Measurer:
        """Return what measures networks on the test split, or on the samples that are chosen on."""
        samples, accelerator = self.samples, self.chain.training.accelerator
        if on_test or samples.validation is None:
            return Measurer(samples.test, self.chain.test, self.task, accelerator)
        return Measurer(samples.validation, samples.validation_name, self.task, accelerator)

    def check(self, paths: Sequence[NetworkPath]) -> list[str]:
        """Refuse what cannot be trained, and say what is odd, before anything is trained.

        Returns:
            A note for each network that is larger than its teacher.

        Raises:
            ConfigError: if two paths would share a folder, training wants validation samples, or the method cannot learn from
                the books: it asks for no teacher, more views or other batches.
            FidelityError: if the codec cannot honour a temperature or a loss of the method.
            UnknownNameError: if a network is not known.
        """
        wanted = prefixes(paths)
        refuse_shared_folders(wanted)
        check_unvalidated(self.chain.training)
        if any(len(path) > 1 for path in wanted):
            self._check_link()
        notes = [note for path in wanted if (note := self._larger(path))]
        for note in notes:
            self.say_once(note)
        return notes

    def _check_link(self) -> None:
        chain = self.chain
        check_link(
            chain.method,
            self.task,
            codec=chain.codec,
            n_views=chain.views.n_views,
            training=chain.training,
            samples=len(self.samples.kept),
        )

    def say_once(self, note: str) -> None:
        """Say a note that has not been said yet."""
        if note not in self._said:
            self._said.add(note)
            self.chain.say(note)

    def trained(self, path: NetworkPath) -> dict[str, Any]:
        """Train the network at the end of `path`, and all before it, where they are not there yet; return its record."""
        if path not in self.known:
            made = self._book(path[:-1]) if len(path) > 1 else {}
            learned = self.train(path, made)
            measures = self._measure(self.chain.network(path), self.chain.folder(path))
            self.known[path] = {**self.about(path), **measures, **costs(made, learned)}
        return self.known[path]

    def about(self, path: NetworkPath) -> dict[str, Any]:
        """Return what the network at the end of `path` is, once it has learnt: a method may keep more than the student, as `simkd` does."""
        kept, _ = self.chain.network(path).build(self.task.n_classes, role="student")
        return {
            "path": list(path),
            "network": path[-1],
            "parameters": count_parameters(kept),
            "weights": str(self.chain.weights(path)),
        }

    def train(self, path: NetworkPath, made: dict[str, Any]) -> dict[str, Any]:
        """Train one network, from a book where one was made, and return what `learn_student` says; nothing if it was given."""
        chain = self.chain
        if len(path) == 1 and chain.first.weights is not None:
            return {}
        told = f"book of {path[-2]}, then {path[-1]} learns from it" if made else "learns from labels alone"
        chain.say(f"{' -> '.join(path)}: {told}")
        return learn_student(
            str(chain.folder(path) / "run"),
            student=chain.untrained(path),
            method=chain.method if made else Supervised(),
            book=made.get("path"),
            data=chain.data,
            part=None if self.samples.complete else self.samples.kept,
            views=chain.views,
            training=replace(chain.training, seed=chain.seed(path)),
            validate_on="",
            loggers=(),
        )

    def _book(self, path: NetworkPath) -> dict[str, Any]:
        """Make the book of the network at the end of `path`, or return what is known of it."""
        record, chain = self.trained(path), self.chain
        if path not in self._books:
            self._books[path] = make_book(
                str(chain.folder(path) / "book"),
                data=chain.data,
                teacher=chain.network(path),
                views=chain.views,
                codec=chain.codec,
                held_out=chain.test,
                accuracy=record["accuracy"],
                accelerator=chain.training.accelerator,
                serve=[chain.method] if any(map(is_feature, chain.method.needs(self.task).fields)) else (),
            )
        return self._books[path]

    def parameters(self, path: NetworkPath) -> int:
        """Return the number of parameters of the network at the end of `path` before it learns."""
        key = (path[-1], len(path) == 1)
        if key not in self._parameters:
            network, _ = self.chain.untrained(path).build(self.task.n_classes, role="student")
            self._parameters[key] = count_parameters(network)
        return self._parameters[key]

    def _larger(self, path: NetworkPath) -> str:
        """Return a note where a network is larger than its teacher; of all others their size is counted."""
        mine = self.parameters(path)
        if len(path) == 1 or mine <= (theirs := self.parameters(path[:-1])):
            return ""
        sizes = f"{mine:,} parameters against {theirs:,}"
        return f"{path[-1]} is larger than its teacher {path[-2]} ({sizes}): a chain usually goes down in size."


def costs(made: dict[str, Any], learned: dict[str, Any]) -> dict[str, Any]:
    """Return what a network and the book that it learnt from cost, however often they were found finished."""
    cost = made.get("cost", {})
    return {
        # Of the epochs and not of the clock: a network that is there already costs what it cost.
        "seconds": learned.get("epochs", 0) * learned.get("seconds_per_epoch", 0.0),
        "epochs": learned.get("epochs", 0),
        "book": None if not made else {key: made[key] for key in ("path", "bytes", "records", "content_digest")},
        "book_seconds": cost.get("seconds", 0.0),
        "teacher_forwards": cost.get("teacher_forwards", 0),
    }
