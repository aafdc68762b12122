"""Schedules: their values at the edges of a run, and one error for each way to write them wrongly."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookkd.core.errors import ConfigError
from bookkd.core.schedules import Clock, Cosine, Linear, Ramp, Schedule, Steps, parse_schedule, resolve

NUMBERS = st.floats(-1e6, 1e6)


def test_progress_stays_between_0_and_1():
    assert [Clock(step, 0.0, 4).progress for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert Clock(step=3, total_steps=0).progress == 1.0
    assert Clock().progress == 0.0


@given(NUMBERS, NUMBERS, st.integers(0, 1000))
def test_linear_is_the_straight_line(start: float, end: float, step: int):
    exact = Fraction(start) + (Fraction(end) - Fraction(start)) * Fraction(step, 1000)
    found = Linear(start, end)(Clock(step=step, total_steps=1000))
    assert found == pytest.approx(float(exact), abs=1e-9 * max(abs(start), abs(end)))


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_the_run_starts_and_ends_at_the_given_numbers(kind: type):
    moving = kind(4.0, 1.0)
    assert moving(Clock(0, 0.0, 10)) == 4.0
    assert moving(Clock(10, 0.0, 10)) == moving(Clock(11, 0.0, 10)) == 1.0


@given(st.integers(0, 999))
def test_cosine_falls_and_is_symmetric(step: int):
    moving = Cosine(4.0, 1.0)
    here, then = (moving(Clock(each, 0.0, 1000)) for each in (step, step + 1))
    assert here > then
    assert here + moving(Clock(1000 - step, 0.0, 1000)) == pytest.approx(5.0)
    # Another form of the same curve: the squared cosine of half the angle.
    assert here == pytest.approx(1.0 + 3.0 * math.cos(math.pi * step / 2000) ** 2)


def test_steps_change_at_their_epoch_and_not_before():
    moving = Steps((4.0, 2.0, 1.0), (30, 60))
    at = [0.0, 29.999, 30.0, 59.999, 60.0, 1e9]
    assert [moving(Clock(epoch=epoch)) for epoch in at] == [4.0, 4.0, 2.0, 2.0, 1.0, 1.0]
    assert Steps((3.0,), ())(Clock(epoch=5)) == 3.0
    assert Steps((3.0, 7.0), (0,))(Clock()) == 7.0


def test_a_ramp_climbs_by_whole_epochs_whatever_the_length_of_the_run():
    at = [0.0, 0.999, 1.0, 18.5, 19.0, 20.0, 1e9]
    assert [Ramp(20)(Clock(epoch=epoch, total_steps=3)) for epoch in at] == [0.05, 0.05, 0.1, 0.95, 1.0, 1.0, 1.0]
    # One epoch is no ramp at all.
    assert Ramp(1)(Clock()) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(0), r"`epochs` to be a whole number of at least 1, got 0 \(Ramp schedule\)"),
        (lambda: Ramp(1.5), r"`epochs` to be a whole number of at least 1, got 1\.5"),
        (lambda: Steps((1.0,), (3,)), r"`values` to be one more than the 1 epochs, got 1 \(Steps schedule\)"),
        (lambda: Steps((1.0, 2.0), (-1,)), r"`epochs` to be a whole number of at least 0, got -1"),
        (lambda: Steps((1.0, 2.0), (1.5,)), r"`epochs` to be a whole number of at least 0, got 1.5"),
        (lambda: Steps((1.0, 2.0, 3.0), (4, 4)), r"`epochs` to be increasing, got \(4, 4\)"),
        (lambda: Steps((1.0, 2.0, 3.0), (5, 4)), r"`epochs` to be increasing, got \(5, 4\)"),
        (lambda: Steps((1.0, math.nan), (4,)), r"`values` to be a finite number, got nan \(Steps schedule\)"),
        (lambda: Linear(math.inf, 0.0), r"`start` to be a finite number, got inf \(Linear schedule\)"),
        (lambda: Linear(0.0, "1"), r"`end` to be a finite number, got '1' \(Linear schedule\)"),
        (lambda: Cosine(math.nan, 0.0), r"`start` to be a finite number, got nan \(Cosine schedule\)"),
        (lambda: Cosine(0.0, True), r"`end` to be a finite number, got True \(Cosine schedule\)"),
    ],
)
def test_what_is_no_schedule_is_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("-2.5e-1", -0.25),
        (4, 4),
        ("linear:4:1", Linear(4.0, 1.0)),
        ("cosine:4:-1", Cosine(4.0, -1.0)),
        ("steps:4", Steps((4.0,), ())),
        ("steps:4,30=2,60=1", Steps((4.0, 2.0, 1.0), (30, 60))),
    ],
)
def test_text_is_read(text: str | float, value: object):
    assert parse_schedule(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "four", ":", "linear", "linear:", "linear:4", "linear:4:1:0", "linear:a:b", "line:4:1", "cosine:4,1"),
        *("steps:", "steps:4,30", "steps:4,30=2=1", "steps:4,3.5=2", "steps:4,x=2", "steps:4,30=x", "Linear:4:1"),
    ],
)
def test_other_text_is_refused_with_the_forms(text: str):
    with pytest.raises(ConfigError, match=r"a number, linear:START:END, cosine:START:END or steps:FIRST,EPOCH=VALUE"):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["nan", "inf", "linear:nan:1", "cosine:1:inf", "steps:4,30=nan", "steps:-inf"])
def test_what_is_not_finite_is_refused(text: str):
    with pytest.raises(ConfigError, match="to be a finite number"):
        parse_schedule(text)


def test_resolve_takes_numbers_and_anything_that_is_called_with_a_clock():
    assert resolve(3, Clock()) == 3.0
    assert isinstance(resolve(3, Clock()), float)
    assert resolve(lambda clock: clock.step * 2, Clock(step=4)) == 8.0
    assert all(isinstance(each, Schedule) for each in (Linear(0, 1), Cosine(0, 1), Steps((1,), ()), Ramp(1)))
