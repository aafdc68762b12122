"""What the numbers say, in sentences: each holds the numbers that it rests on, and says so where they prove nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bookkd.evaluation import Difference
from bookkd.report.arms import Spread
from bookkd.report.columns import Column
from bookkd.report.figures import Row
from bookkd.report.formats import (
    bytes_text,
    count_text,
    joined,
    number_text,
    percent_text,
    points_text,
    seconds_text,
    signed_text,
)
from bookkd.report.numbers import Numbers
from bookkd.report.series import ENTROPIES

__all__ = ["difference_text", "seeds_text", "summary"]

_MOST_ARMS = 8
_MOST_TEACHERS = 3


def summary(numbers: Numbers) -> tuple[str, ...]:
    """Return the sentences to decide from, the most important first."""
    parts = (_scope, _best, _differences, _classes, _calibration, _distillation, _cost, _entropy, _gates, _left_out)
    return tuple(sentence for part in parts for sentence in part(numbers))


def seeds_text(count: int) -> str:
    """Return how many seeds.

    >>> seeds_text(1), seeds_text(3)
    ('1 seed', '3 seeds')
    """
    return _counted(count, "seed")


def difference_text(difference: Difference, *, share: bool = True) -> str:
    """Return a difference of shares, or of other figures, with its interval, without the verdict.

    >>> difference_text(Difference("a", 0.03, 0.005, 0.024, 0.036, 3, ""))
    '+3.00 points (95 % +2.40 to +3.60, 3 seeds)'
    """
    write = points_text if share else signed_text
    text, seeds = _gap_text(difference.mean, share), seeds_text(difference.n)
    if not difference.paired:
        seeds += " or more each"
    if difference.low is None or difference.high is None:
        return f"{text} ({seeds})"
    return f"{text} (95 % {write(difference.low)} to {write(difference.high)}, {seeds})"


def _gap_text(gap: float, share: bool) -> str:
    return f"{points_text(gap)} points" if share else signed_text(gap)


def _counted(count: int, word: str, several: str = "") -> str:
    return f"{count:,} {word if count == 1 else several or f'{word}s'}"


def _scope(numbers: Numbers) -> Iterator[str]:
    done = sum(len(row.seeds) for row in numbers.rows)
    failed = sum(row.failed for row in numbers.rows)
    found = dict.fromkeys(
        f"{each.values.get('name') or 'unnamed data'} ({each.values.get('split') or 'split unknown'}{_samples(each.values.get('samples'))})"
        for each in numbers.provenance.data
    )
    on = f" on {joined(found)}" if found else ""
    gone = f"; {_counted(failed, 'run')} failed" if failed else ""
    yield f"{_counted(done, 'run')} in {_counted(len(numbers.rows), 'arm')}{on}{gone}."


def _samples(count: object) -> str:
    return f", {count:,} samples" if isinstance(count, int | float) else ""


def _best(numbers: Numbers) -> Iterator[str]:
    first, classes = numbers.first, numbers.task == "classification"
    best = next((row for row in numbers.rows if row.figures[first.key] is not None), None)
    if best is None:
        yield "No run has an accuracy." if classes else f"No run has {first.title}."
        return
    head = "Most accurate" if classes else f"Best by {first.title}"
    text = f"{head} is {best.arm} with {_spread_text(best.figures[first.key], first)}"
    if best.teacher_quality is not None:
        gap = (best.figures[first.key] or best.teacher_quality).mean - best.teacher_quality.mean
        place = "above" if gap > 0 else "below"
        text += (
            f", {_size_text(abs(gap), first)} {place} {best.teacher} ({_value_text(best.teacher_quality.mean, first)})"
        )
    if best.terms is not None:
        text += f" with {_ratio(best.terms[0])} of its parameters"
    yield f"{text}."
    yield from _next_to(best, numbers.rows, first.key)


def _size_text(gap: float, column: Column) -> str:
    return f"{number_text(100 * gap, 2)} points" if column.share else number_text(gap)


def _value_text(value: float, column: Column) -> str:
    return percent_text(value) if column.share else number_text(value)


def _spread_text(spread: Spread | None, column: Column) -> str:
    if spread is None:
        return "nothing"
    if not column.share:
        sd = "" if spread.sd is None else f" ± {number_text(spread.sd)}"
        return f"{number_text(spread.mean)}{sd} ({seeds_text(spread.n)})"
    sd = "" if spread.sd is None else f" ± {number_text(100 * spread.sd, 2)}"
    return f"{number_text(100 * spread.mean, 2)}{sd} % ({seeds_text(spread.n)})"


def _ratio(ratio: float) -> str:
    """Return a ratio of sizes.

    >>> _ratio(0.0912), _ratio(0.5), _ratio(2.0)
    ('1/11', '0.50', '2.00')
    """
    return f"1/{round(1 / ratio)}" if 0 < ratio < 0.35 else number_text(ratio, 2)


def _next_to(best: Row, rows: Sequence[Row], key: str) -> Iterator[str]:
    """Say which arms are so near to the best that their seeds overlap."""
    mine = best.figures[key]
    near = []
    for row in rows:
        theirs = row.figures[key]
        if row is best or mine is None or theirs is None or mine.sd is None or theirs.sd is None:
            continue
        if abs(mine.mean - theirs.mean) <= math.hypot(mine.sd, theirs.sd):
            near.append(row.arm)
    if near:
        shown = [*near[:3], _counted(len(near) - 3, "more arm")] if len(near) > 3 else near
        verb = "is" if len(near) == 1 else "are"
        yield f"Within one standard deviation between seeds of it {verb} {joined(shown)}."


def _differences(numbers: Numbers) -> Iterator[str]:
    key = numbers.first.key
    told = [(row, row.differences[key]) for row in numbers.rows if key in row.differences]
    told.sort(key=lambda each: -abs(each[1].mean))
    for row, difference in told[:_MOST_ARMS]:
        yield _gain(row, difference, numbers.first)
    rest = [difference for _, difference in told[_MOST_ARMS:]]
    if rest:
        better, worse = (sum(each.better is way for each in rest) for way in (True, False))
        yield (
            f"Of {_counted(len(rest), 'more arm')}, {better} are better and {worse} worse by more than the noise between seeds."
        )


def _gain(row: Row, difference: Difference, column: Column) -> str:
    if difference.low is None:
        gap = _gap_text(difference.mean, column.share)
        return f"{row.arm} is {gap} against {difference.against} ({difference.verdict})."
    told = difference_text(difference, share=column.share)
    # Of a share, more is better without a word.
    way = "" if column.share or difference.better is None else "better, " if difference.better else "worse, "
    return f"{row.arm} is {told} against {difference.against}: {way}{difference.verdict}."


def _classes(numbers: Numbers) -> Iterator[str]:
    # A class has few samples: where all seeds differ by the same count, the interval is a point and proves nothing.
    known = [each for each in numbers.classes if _wide(each.difference)]
    losses = [each for each in known if each.difference.high is not None and each.difference.high < 0]
    worst = min(losses, key=lambda each: each.difference.mean, default=None)
    if worst is None:
        return
    text = f"{worst.measure} of class {worst.name} in {worst.arm} is {difference_text(worst.difference)} against {worst.difference.against}"
    by_chance = round(0.025 * len(known))
    luck = f", about {by_chance} of which chance alone would give" if by_chance else ""
    several = (
        f", the greatest of {len(losses)} in {_counted(len(known), 'comparison')}{luck}" if len(losses) > 1 else ""
    )
    yield f"The average hides a loss: {text}{several}."


def _wide(difference: Difference) -> bool:
    return difference.low is not None and difference.high is not None and difference.low < difference.high


def _calibration(numbers: Numbers) -> Iterator[str]:
    first = next(
        (each for each in numbers.calibration if None not in (each.ece, each.ece_after, each.temperature)), None
    )
    if first is None or first.ece is None or first.ece_after is None or first.temperature is None:
        return
    yield (
        f"Temperature scaling of {first.arm} (T = {number_text(first.temperature.mean, 2)}, fitted on "
        f"{first.fitted_on or 'other samples'}) takes the calibration error from {number_text(first.ece.mean)} to "
        f"{number_text(first.ece_after.mean)}."
    )


def _distillation(numbers: Numbers) -> Iterator[str]:
    """Say which arm has the lowest metric, for each teacher apart: against different teachers it cannot be compared."""
    scored = [(spread.mean, row) for row in numbers.rows if (spread := row.figures.get("ds_0.5")) is not None]
    teachers = list(dict.fromkeys(row.teacher for _, row in scored))
    for teacher in teachers[:_MOST_TEACHERS]:
        taught = sorted(
            ((value, row.arm, row) for value, row in scored if row.teacher == teacher), key=lambda each: each[:2]
        )
        value, name, _ = taught[0]
        by = f" of those that {teacher} taught" if len(teachers) > 1 else ""
        crossed = sorted((row.crossing_alpha, arm) for _, arm, row in taught if row.crossing_alpha is not None)
        yield (
            f"Lowest distillation metric at equal weight of size and accuracy{by}: {name} with {number_text(value)}"
            f"{_crossings(crossed)}."
        )


def _crossings(crossed: Sequence[tuple[float, str]]) -> str:
    below = [each for each in crossed if each[0] < 0.5]
    above = [each for each in crossed if each[0] > 0.5]
    text = f"; below a weight of size of {number_text(below[-1][0], 2)} {below[-1][1]} is better" if below else ""
    return f"{text}; above {number_text(above[0][0], 2)} {above[0][1]} is better" if above else text


def _cost(numbers: Numbers) -> Iterator[str]:
    ledger = numbers.ledger
    if not ledger.books:
        return
    made = "an unknown time" if ledger.making_seconds is None else seconds_text(ledger.making_seconds)
    asked = "" if ledger.making_forwards is None else f" and {count_text(ledger.making_forwards)} teacher passes"
    size = "" if ledger.book_bytes is None else f", {bytes_text(ledger.book_bytes)} on disk"
    yield f"Making {_counted(len(ledger.books), 'book')} took {made}{asked}, once{size}."
    if ledger.online_seconds is None or ledger.book_seconds is None:
        return
    ways = {cost.online_from.partition(",")[0] for cost in ledger.arms if cost.online_from}
    how = (
        "estimated from the making"
        if ways == {"estimated"}
        else "measured"
        if ways == {"measured"}
        else "partly estimated"
    )
    text = (
        f"{_counted(ledger.book_students, 'student')} learned from books in {seconds_text(ledger.book_seconds)}; with the "
        f"teachers asked at each step they would take {seconds_text(ledger.online_seconds)} ({how})"
    )
    if ledger.break_even is None:
        yield f"{text}: the books save no time."
    else:
        yield f"{text}: the books pay from student {max(1, math.ceil(ledger.break_even))} on."


def _gates(numbers: Numbers) -> Iterator[str]:
    """Say where a teacher, or smoothed labels, made gates sharper or flatter than labels alone did."""
    for arm in dict.fromkeys(each.arm for each in numbers.gates):
        own = [each.difference for each in numbers.gates if each.arm == arm and not each.derived]
        found = [difference for difference in own if difference is not None]
        if not found:
            continue
        mean = sum(difference.mean for difference in found) / len(found)
        sure = sum(difference.better is not None for difference in found)
        told = (
            f"more than the noise between seeds in {sure} of them"
            if sure
            else "inside the noise between seeds in all of them"
        )
        yield (
            f"Gates of {arm} are {'sharper' if mean < 0 else 'flatter'} than those of {found[0].against}: spread {signed_text(mean)} on "
            f"average over {len(found)} layers, {told}."
        )


def _entropy(numbers: Numbers) -> Iterator[str]:
    for series in numbers.entropies:
        if series.entry == ENTROPIES[0] and len(series.mean) > 1:
            first, last = (number_text(series.mean[place], 2) for place in (0, -1))
            yield f"The entropy scalar of {series.arm} went from {first} to {last} over {series.epochs[-1]} epochs."
            return


def _left_out(numbers: Numbers) -> Iterator[str]:
    """Say which parts of a report other tasks do not have."""
    if numbers.task != "classification":
        yield (
            f"The task is {numbers.task}: temperature scaling, confusion of classes and the distillation metric are those of one "
            "class for each sample, and are left out."
        )
