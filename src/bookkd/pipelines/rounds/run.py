"""Running the rounds: every network and book is made once, in a folder of its round; what lies there finished is taken as it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bookkd.book import Book, Dense
from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.files import make_folder, write_atomic
from bookkd.core.jsonio import parse, pretty, read
from bookkd.knowledge import StoredKnowledge
from bookkd.learning.folder import plain
from bookkd.methods import Supervised
from bookkd.pipelines.rounds.measured import MEASURES, better
from bookkd.pipelines.rounds.networks import Networks, Record
from bookkd.pipelines.rounds.settings import Rounds, name_of
from bookkd.zoo import fingerprint, weights_digest

__all__ = ["RoundsResult", "run_rounds", "student_again"]

_WHERE = "rounds"


@dataclass(frozen=True, eq=False)
class RoundsResult:
    """What the rounds came to; without the network it is also in `rounds.json`.

    Args:
        student: The student of the chosen round, in evaluation mode.
        chosen: Its round, by validation.
        rounds: The record of each round, the warm-up (0) first, as in its `round.json`.
        best: By name, the record of the best version of `student` and of each assistant by validation; under `ensemble` the round in
            which the assistants were best together, and their `members`.
        folder: Where everything is; paths in records are relative to it.
    """

    student: nn.Module = field(repr=False)
    chosen: int
    rounds: tuple[Record, ...] = field(repr=False)
    best: Mapping[str, Record] = field(repr=False)
    folder: Path


def run_rounds(settings: Rounds) -> RoundsResult:
    """Let assistants and student teach one another, round by round.

    Round 0: each assistant learns from labels. Round r: (a) the assistants' logits become a book, each a member of it; (b) the student goes on
    from where it was and learns from the book and labels; (c) its logits become a book; (d) each assistant that the feedback reaches goes
    on and learns from that book and labels; (e) all are measured on the validation samples. Interrupted, the run goes on to the
    same weights; without feedback it is plain distillation of several teachers to the bit.

    Args:
        settings: What the rounds are made of.

    Raises:
        ConfigError: if the folder holds rounds of other settings; if the task has not one class a sample or position.
        BookLockedError: if another process is at work in the folder.
    """
    runner = _Runner(settings)
    records = [runner.done(0) or runner.warm_up()]
    for number in range(1, settings.rounds + 1):
        records.append(runner.done(number) or runner.round(number, records))
        settings.say(_line(records[-1]))
    return runner.result(records)


def student_again(settings: Rounds, number: int) -> nn.Module:
    """Return the student of a finished round, learnt again from the round's stored book and the weights that it started from.

    With `keep_best`, of a round in which learning made it no better, it is the student that was kept, loaded: that of the record.

    Args:
        settings: Those of the rounds.
        number: The round, from 1.

    Raises:
        ConfigError: if the round is not finished.
    """
    runner = _Runner(settings)
    record = runner.done(at_least(number, 1, "round", where=_WHERE))
    if record is None:
        raise ConfigError(expected("round", "a finished one", number, where=str(settings.out)))
    if record["student"]["round"] != number:
        return runner.networks.load(0, record["student"]).eval()
    before = runner.done(number - 1) or {}
    book = StoredKnowledge(settings.out / record["book"]["path"])
    method, parent = settings.method.taught(), before.get("student")
    learned, _ = runner.networks.learnt(number, 0, parent, method, book, keep=False)
    return learned.student


class _Runner:
    """What one call makes, each network, book and record once."""

    def __init__(self, settings: Rounds) -> None:
        self.settings = settings
        self.out = settings.out
        self.networks = Networks(settings)
        starts = {}
        for place in (0, *settings.places):
            network = settings.network(place)
            starts[name_of(place)] = weights_digest(network)
            self.networks.check(network)  # before anything is trained
        self._check_folder(starts)

    def _check_folder(self, starts: Mapping[str, str]) -> None:
        """Note what the rounds are made of, or refuse a folder that says something else; `starts` are digests of initial values."""
        path, mine = self.out / "config.json", parse(pretty(self._config(starts)), _WHERE)
        if path.exists():
            theirs = read(path, str(path))
            other = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
            if other:
                do = "Give these rounds a folder of their own."
                got = f"one of another {', '.join(other)}"
                raise ConfigError(expected("out", "the folder of the same rounds", got, where=str(self.out), do=do))
        else:
            make_folder(self.out)
            write_atomic(path, pretty(mine))

    def _config(self, starts: Mapping[str, str]) -> dict[str, Any]:
        it, codec = self.settings, self.settings.codec or Dense()
        return {
            **{key: plain(getattr(it, key)) for key in ("by", "feedback", "keep_best", "preprocess", "training")},
            "codec": {"name": codec.name, **plain(codec)},
            "data": fingerprint(it.data),
            "feedback_training": plain(it.training_of(1, 1)),
            "method": plain(it.method),
            "rounds": it.rounds if it.feedback.ramp else None,
            "start": dict(starts),
            "task": {"name": it.task.name, **plain(it.task)},
            "validation": fingerprint(it.validated.dataset),
            "views": it.views.recipe(len(it.data)),
            "warm_up": plain(it.training_of(0, 1)),
        }

    def done(self, number: int) -> Record | None:
        """Return the record of a round that is finished."""
        path = self.settings.folder(number) / "round.json"
        return read(path, str(path)) if path.exists() else None

    def warm_up(self) -> Record:
        """Train the assistants on labels."""
        it = self.settings
        found = []
        for place in it.places:
            it.say(f"warm-up: {name_of(place)} learns from labels")
            found.append(self.networks.learnt(0, place, None, Supervised(), None)[1])
        return self._noted({"round": 0, "assistants": found, **self.networks.together(found)})

    def round(self, number: int, records: list[Record]) -> Record:
        """Do one round."""
        it, before = self.settings, records[-1]
        book = self._book_of_assistants(number, records)
        it.say(f"round {number}: student learns from the book of {len(it.places)} assistants")
        with closing(Book(self.out / book["path"])) as opened:
            parent = before.get("student")
            _, student = self.networks.learnt(number, 0, parent, it.method.taught(), StoredKnowledge(opened))
        student = self._kept(student, parent)
        refused = [self._why_not(number, student, assistant, records) for assistant in before["assistants"]]
        told: Record = {"round": number, "book": book, "student": student, "student_book": None}
        assistants, together = before["assistants"], {key: before[key] for key in ("ensemble", "gain", "diversity")}
        share = it.feedback.share(number, it.rounds)
        if not all(refused):
            told["student_book"] = self.networks.book(it.folder(number) / "student-book", {0: student})
            assistants = [
                before["assistants"][place - 1]
                if refused[place - 1]
                else self._fed_back(number, place, before["assistants"][place - 1], told["student_book"], share)
                for place in it.places
            ]
            together = self.networks.together(assistants)
        feedback = [
            {"to": name_of(place), "beta": 0.0 if why else it.method.beta * share, "why_not": why or None}
            for place, why in zip(it.places, refused, strict=True)
        ]
        return self._noted({**told, "assistants": assistants, "feedback": feedback, **together})

    def _fed_back(self, number: int, place: int, parent: Record, book: Record, share: float) -> Record:
        self.settings.say(f"round {number}: {name_of(place)} learns from the student's book")
        with closing(Book(self.out / book["path"])) as opened:
            _, found = self.networks.learnt(
                number, place, parent, self.settings.method.fed_back(share), StoredKnowledge(opened)
            )
        return self._kept(found, parent)

    def _why_not(self, number: int, student: Record, assistant: Record, records: list[Record]) -> str:
        """Return why the student does not teach an assistant; empty where it does."""
        it = self.settings.feedback
        if not it.on:
            return "feedback is off"
        if number < it.first_round:
            return f"feedback begins in round {it.first_round}"
        for record in records:
            apart, least = record["diversity"], it.least_diversity
            if least is not None and apart is not None and apart < least:
                return f"assistants were {apart:.4g} nats apart after round {record['round']}, less than {least:g}"
        by, sign = self.settings.by, 1 if self.settings.by == "accuracy" else -1
        if it.margin is not None and sign * student[by] < sign * assistant[by] - it.margin:
            return f"the student's {by} {student[by]:.4f} is worse than {assistant[by]:.4f} by more than {it.margin:g}"
        return ""

    def _kept(self, learnt: Record, parent: Record | None) -> Record:
        """Return the record that the next round goes on from: with `keep_best` the parent's, where learning made it no better."""
        if not self.settings.keep_best or parent is None or better(learnt, parent, self.settings.by):
            return learnt
        tried = {key: learnt[key] for key in ("weights", "round", "digest", "parent", "taught_by", *MEASURES)}
        return {**parent, "tried": tried}

    def _book_of_assistants(self, number: int, records: list[Record]) -> Record:
        """Make the book of a round, or return the one before where no assistant has moved since."""
        assistants = records[-1]["assistants"]
        digests = [assistant["digest"] for assistant in assistants]
        if number > 1 and digests == [assistant["digest"] for assistant in records[-2]["assistants"]]:
            found: Record = records[-1]["book"]
            return found
        return self.networks.book(self.settings.folder(number) / "book", dict(enumerate(assistants, 1)))

    def _noted(self, record: Record) -> Record:
        """Write the record of a round, which finishes it."""
        write_atomic(self.settings.folder(record["round"]) / "round.json", pretty(record))
        return record

    def result(self, records: list[Record]) -> RoundsResult:
        """Choose by validation, and load the student of the round chosen."""
        by = self.settings.by
        students = {record["round"]: record["student"] for record in records[1:]}
        chosen = _best(students, by)
        best: dict[str, Record] = {name_of(0): students[chosen]}
        for place in self.settings.places:
            versions = {record["round"]: record["assistants"][place - 1] for record in records}
            best[name_of(place)] = versions[_best(versions, by)]
        number = _best({record["round"]: record["ensemble"] for record in records}, by)
        members = [assistant["weights"] for assistant in records[number]["assistants"]]
        best["ensemble"] = {"round": number, "members": members, **records[number]["ensemble"]}
        summary = {"chosen": chosen, "by": by, "best": best, "rounds": records, "method": self.settings.method.name}
        write_atomic(self.out / "rounds.json", pretty(summary))
        return RoundsResult(self.networks.load(0, students[chosen]).eval(), chosen, tuple(records), best, self.out)


def _best(found: Mapping[int, Record], by: str) -> int:
    """Return the number of the best record; of equal ones the first."""
    best = min(found)
    for number in sorted(found):
        best = number if better(found[number], found[best], by) else best
    return best


def _line(record: Record) -> str:
    each = " ".join(f"{assistant['accuracy']:.4f}" for assistant in record["assistants"])
    apart = "" if record["diversity"] is None else f", {record['diversity']:.4g} nats apart"
    return (
        f"round {record['round']}: student {record['student']['accuracy']:.4f}, assistants {each}, "
        f"together {record['ensemble']['accuracy']:.4f}{apart}"
    )
