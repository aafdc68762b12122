"""What it cost: making once, learning for each student, and what the same students would cost with the teacher online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bookkd.report.arms import Arm, Spread, spread_of
from bookkd.report.books import BookCost, digests_of, read_through
from bookkd.report.runs import FoundRun, number

__all__ = ["ArmCost", "Ledger", "ledger_of"]


@dataclass(frozen=True)
class ArmCost:
    """What the students of one arm cost.

    Args:
        arm: Its name.
        source: "book", "teacher" (asked at each step) or "labels".
        students: Number of runs that ended.
        seconds: Of learning, for each student.
        teacher_forwards: Records that the teacher was asked about while learning, all students together.
        making_seconds: Of making the books it learns from, once; None for other sources or where unknown.
        online_seconds: What one student would take with the teacher asked at each step; None where that cannot be said.
        online_from: "measured, ARM", or "estimated" from the making cost of a record; empty where it cannot be said.
        break_even: Making over what one student saves: with more students than this the book is cheaper; None where a
            student from the book saves nothing, or it cannot be said.
    """

    arm: str
    source: str
    students: int
    seconds: Spread | None
    teacher_forwards: float | None
    making_seconds: float | None
    online_seconds: float | None
    online_from: str
    break_even: float | None


@dataclass(frozen=True)
class Ledger:
    """The sums.

    Args:
        books: Each book once.
        arms: In the order of the arms.
        making_seconds: Of all books, once, also of those that others were merged or baked from; None where a book does not say.
        making_forwards: Records that teachers were asked about for it.
        book_bytes: Of all books.
        learning_seconds: Of all runs that ended.
        learning_forwards: Records that teachers were asked about while learning.
        book_students: Number of runs that learned from books.
        book_seconds: Of learning, of those runs.
        online_seconds: What those runs would take with the teacher asked at each step.
        break_even: Making of all books over what one such student saves on average; None where nothing is saved.
    """

    books: tuple[BookCost, ...]
    arms: tuple[ArmCost, ...]
    making_seconds: float | None
    making_forwards: float | None
    book_bytes: float | None
    learning_seconds: float | None
    learning_forwards: float | None
    book_students: int
    book_seconds: float | None
    online_seconds: float | None
    break_even: float | None


def ledger_of(arms: Sequence[Arm], books: Mapping[str, BookCost]) -> Ledger:
    """Return what making and learning cost; runs that failed are not in it.

    online = book seconds + (online - book seconds an epoch) * epochs, where an arm with the same student and teachers asked
    them at each step; else online = book seconds + making seconds a record * samples * epochs, summed over the books.
    """
    costs = tuple(_arm_cost(arm, arms, books) for arm in arms if arm.done)
    from_books = [cost for cost in costs if cost.source == "book"]
    making = _total([book.own_seconds for book in books.values()])
    learned = _total([_times(cost.seconds, cost.students) for cost in from_books])
    online = _total(
        [None if cost.online_seconds is None else cost.online_seconds * cost.students for cost in from_books]
    )
    students = sum(cost.students for cost in from_books)
    saved = None if online is None or learned is None or not students else (online - learned) / students
    return Ledger(
        books=tuple(books.values()),
        arms=costs,
        making_seconds=making,
        making_forwards=_total([book.own_forwards for book in books.values()]),
        book_bytes=_total([book.bytes for book in books.values()]),
        learning_seconds=_total([_times(cost.seconds, cost.students) for cost in costs]),
        learning_forwards=_total([cost.teacher_forwards for cost in costs]),
        book_students=students,
        book_seconds=learned,
        online_seconds=online,
        break_even=_break_even(making, saved),
    )


def _arm_cost(arm: Arm, arms: Sequence[Arm], books: Mapping[str, BookCost]) -> ArmCost:
    source = _source(arm)
    seconds = arm.spread(lambda run: number(run, run.record.learning, "seconds"))
    making = online = None
    online_from = ""
    if source == "book":
        making = _total([books[key].own_seconds for key in read_through(digests_of(arm.first), books)])
        online, online_from = _online(arm, arms, books)
    saved = None if online is None or seconds is None else online - seconds.mean
    return ArmCost(
        arm=arm.name,
        source=source,
        students=len(arm.done),
        seconds=seconds,
        teacher_forwards=_total([number(run, run.record.learning, "teacher_forwards") for run in arm.done]),
        making_seconds=making,
        online_seconds=online,
        online_from=online_from,
        break_even=_break_even(making, saved),
    )


def _source(arm: Arm) -> str:
    if arm.first.record.books:
        return "book"
    return "teacher" if arm.first.record.teachers else "labels"


def _online(arm: Arm, arms: Sequence[Arm], books: Mapping[str, BookCost]) -> tuple[float | None, str]:
    """Return seconds of one student with the teacher asked at each step, and how they are known."""
    seconds = arm.spread(lambda run: number(run, run.record.learning, "seconds"))
    epoch, epochs = arm.spread(_epoch_seconds), arm.spread(lambda run: number(run, run.record.learning, "epochs"))
    if seconds is None or epochs is None:
        return None, ""
    live = _live_twin(arm, arms)
    live_epoch = None if live is None else live.spread(_epoch_seconds)
    if live is not None and live_epoch is not None and epoch is not None:
        return seconds.mean + (live_epoch.mean - epoch.mean) * epochs.mean, f"measured, {live.name}"
    samples = spread_of([number(run, run.record.data, "train_samples") for run in arm.done])
    record = _total([books[key].seconds_per_record for key in dict.fromkeys(digests_of(arm.first))])
    if samples is None or record is None:
        return None, ""
    return seconds.mean + record * samples.mean * epochs.mean, "estimated"


def _live_twin(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that asked the same teachers at each step for the same student; best one of the same method."""
    found = [
        other
        for other in arms
        if other.done
        and _source(other) == "teacher"
        and (other.student, other.measured_on, _taught_by(other)) == (arm.student, arm.measured_on, _taught_by(arm))
    ]
    return next((other for other in found if other.method == arm.method), found[0] if found else None)


def _taught_by(arm: Arm) -> frozenset[str]:
    return frozenset(str(teacher.get("digest") or teacher.get("name")) for teacher in arm.first.record.teachers)


def _epoch_seconds(run: FoundRun) -> float | None:
    told = number(run, run.record.learning, "seconds_per_epoch")
    seconds, epochs = number(run, run.record.learning, "seconds"), number(run, run.record.learning, "epochs")
    return told if told is not None or seconds is None or not epochs else seconds / epochs


def _break_even(making: float | None, saved: float | None) -> float | None:
    return None if making is None or saved is None or saved <= 0 else making / saved


def _times(spread: Spread | None, count: int) -> float | None:
    return None if spread is None else spread.mean * count


def _total(values: Sequence[float | None]) -> float | None:
    """Return the sum; None if there is nothing to add, or one is unknown."""
    present = [value for value in values if value is not None]
    return sum(present) if present and len(present) == len(values) else None
