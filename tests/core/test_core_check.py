"""Checks return what they took, and refuse the rest in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookkd.core.check import at_least, below, between, finite, positive, unique
from bookkd.core.errors import ConfigError, expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: finite(-1.5, "x"),
        lambda: finite(0, "x"),
        lambda: positive(5e-324, "x"),
        lambda: positive(10**300, "x"),
        lambda: finite(np.float64(0.5), "x"),
        lambda: between(0, 0, 1, "x"),
        lambda: between(1.0, 0, 1, "x"),
        lambda: below(0, 0, 1, "x"),
        lambda: below(math.nextafter(1, 0), 0, 1, "x"),
        lambda: at_least(1, 1, "x"),
        lambda: at_least(2**70, 1, "x"),
    ],
)
def test_what_is_accepted_comes_back(call):
    assert isinstance(call(), int | float)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: finite(math.nan, "x"), "Expected `x` to be a finite number, got nan."),
        (lambda: finite(-math.inf, "x"), "Expected `x` to be a finite number, got -inf."),
        (lambda: finite("1", "x"), "Expected `x` to be a finite number, got '1'."),
        (lambda: finite(True, "x"), "Expected `x` to be a finite number, got True."),
        (lambda: finite(None, "x"), "Expected `x` to be a finite number, got None."),
        (lambda: positive(0.0, "x"), "Expected `x` to be a number above 0, got 0.0."),
        (lambda: positive(-1, "x"), "Expected `x` to be a number above 0, got -1."),
        (lambda: positive(math.inf, "x"), "Expected `x` to be a number above 0, got inf."),
        (lambda: positive(math.nan, "x"), "Expected `x` to be a number above 0, got nan."),
        (lambda: positive(10**400, "x"), "Expected `x` to be a number above 0, got 1" + "0" * 196 + "...."),
        (lambda: finite(-(10**400), "x"), "Expected `x` to be a finite number, got -1" + "0" * 195 + "...."),
        (lambda: positive(True, "x"), "Expected `x` to be a number above 0, got True."),
        (lambda: between(1.1, 0, 1, "x"), "Expected `x` to be between 0 and 1, got 1.1."),
        (lambda: between(math.nan, 0, 1, "x"), "Expected `x` to be between 0 and 1, got nan."),
        (lambda: between(False, 0, 1, "x"), "Expected `x` to be between 0 and 1, got False."),
        (lambda: below(1, 0, 1, "x"), "Expected `x` to be from 0 to below 1, got 1."),
        (lambda: below(-0.1, 0, 1, "x"), "Expected `x` to be from 0 to below 1, got -0.1."),
        (lambda: below(math.nan, 0, 1, "x"), "Expected `x` to be from 0 to below 1, got nan."),
        (lambda: below(False, 0, 1, "x"), "Expected `x` to be from 0 to below 1, got False."),
        (lambda: at_least(0, 1, "x"), "Expected `x` to be a whole number of at least 1, got 0."),
        (lambda: at_least(1.0, 1, "x"), "Expected `x` to be a whole number of at least 1, got 1.0."),
        (lambda: at_least(True, 1, "x"), "Expected `x` to be a whole number of at least 1, got True."),
        (lambda: unique([1, 2, 1.0], "x"), "Expected `x` to be without repeats, got 1.0 twice."),
    ],
)
def test_what_is_refused_is_said(call, message: str):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("check", [finite, positive])
def test_where_and_what_to_do_stand_in_the_message(check):
    with pytest.raises(ConfigError, match=r"got nan \(views\)\. Do this\.$"):
        check(math.nan, "x", where="views", do="Do this.")


@given(st.lists(st.integers(0, 20), max_size=8))
def test_unique_is_what_a_set_says(values: list[int]):
    if len(set(values)) == len(values):
        unique(values, "x")
    else:
        with pytest.raises(ConfigError, match="without repeats"):
            unique(values, "x")


@given(st.text(), st.text(max_size=300), st.text())
def test_a_message_is_one_line(what: str, got: str, where: str):
    message = expected(what, "right", got, where=where)
    assert message == " ".join(message.split())
    assert len(message) <= 250 + len(what) + len(where)
