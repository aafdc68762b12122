"""Codecs: the contract suite over the table, ranges, and their configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.book.cases import CASES, assert_bucket, assert_within_half_a_step

from bookkd.book import CODECS, Dense, FieldPlan, Int8, Raw, TopK, codec_from_config
from bookkd.book.codecs import UnfitRowError, UnreadableRowError
from bookkd.core.errors import ConfigError, FidelityError, TeacherOutputError, UnknownNameError
from bookkd.testing.codecs import CHECKS, CodecCase, check_codec, check_lost_mass_is_told


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case, check):
    check_codec(case, [check])


def test_every_codec_has_a_case_and_every_case_a_codec():
    assert {case.name.split("/")[0] for case in CASES} == set(CODECS)
    assert all(name == kind.name for name, kind in CODECS.items())
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_suite_catches_a_codec_that_breaks_its_word():
    wrong = CodecCase(
        "dense", Dense("float32"), (3,), lambda rng, rows: rng.normal(size=(rows, 3)), lambda a, b: None, 6
    )
    with pytest.raises(AssertionError):
        check_codec(wrong)


class WithoutTail(TopK):
    """What is never offered: the largest, as if there were no others."""

    name = "top_k"

    def decode(self, parts, shape):
        said = super().decode(parts, shape)
        return replace(said, log_tail_mass=np.full_like(said.log_tail_mass, -np.inf))


@dataclass(frozen=True)
class Renormalised(TopK):
    """The same as values of every class, where those left out have none."""

    name: ClassVar[str] = "top_k"
    sparse: ClassVar[bool] = True

    def decode(self, parts, shape):
        out = np.full((len(parts["values"]), *shape), -np.inf)
        np.put_along_axis(out, parts["indices"].astype(np.int64), parts["values"], axis=1)
        return out


@pytest.mark.parametrize(("codec", "message"), [(WithoutTail(3), "add up to 1"), (Renormalised(3), "a SparseArray as")])
def test_the_suite_catches_a_codec_that_loses_mass_without_saying_so(codec, message):
    case = CodecCase("top_k", codec, (10,), lambda rng, rows: rng.normal(size=(rows, 10)), lambda a, b: None, 16)
    with pytest.raises(AssertionError, match=message):
        check_codec(case, [check_lost_mass_is_told])


def test_no_registered_codec_loses_mass_without_saying_so():
    """Whoever leaves classes out has a tail at each promised temperature, counts that add up, or promises no distribution."""
    for case in CASES:
        check_lost_mass_is_told(case)
        assert not case.codec.hard or case.codec.sparse
        assert not case.codec.sparse or case.codec.hard or case.codec.promised
    # With no temperature there is no tail.
    with pytest.raises(ConfigError, match="Truncation without a tail is not offered"):
        TopK(3, ())


finite = st.floats(-60000, 60000, width=32)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.just(6)), elements=finite))
def test_int8_is_within_half_a_step_for_any_row(rows):
    codec = Int8()
    assert_within_half_a_step(rows, codec.decode(codec.encode(rows), (6,)))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.just(6)), elements=st.floats(-300, 300, width=32)),
    st.integers(1, 6),
)
def test_top_k_keeps_a_distribution_for_any_row(rows, k):
    codec = TopK(k, (1.0, 4.0))
    assert_bucket(rows, codec.decode(codec.encode(rows), (6,)))


def test_top_k_keeps_the_lower_of_equal_classes():
    kept = TopK(2).encode(np.array([[1.0, 3.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    np.testing.assert_array_equal(kept["indices"], [[1, 0], [0, 1]])


def test_top_k_worked_by_hand():
    # Probabilities 0.5, 0.25, 0.125, 0.125: at T = 1 the two left out have 0.25.
    codec = TopK(2, (1.0,))
    kept = codec.decode(codec.encode(np.log([[0.125, 0.5, 0.25, 0.125]])), (4,))
    np.testing.assert_array_equal(kept.indices, [[1, 2]])
    np.testing.assert_allclose(kept.values, [[0.0, -np.log(2)]], rtol=2**-11)
    np.testing.assert_allclose(kept.log_tail_mass, [[np.log(0.25)]], rtol=1e-6)
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("codec", "rows", "row"),
    [
        (Dense(), [[0.0, 1.0], [0.0, 65520.0]], 1),
        (Dense(), [[-70000.0, 1.0]], 0),
        (Int8(), [[0.0, 1.0], [-70000.0, 0.0]], 1),
        (Int8(), [[0.0, 3e38]], 0),
        (TopK(2), [[0.0, -70000.0]], 0),
        (Raw("uint8"), [[0, 1], [0, 256]], 1),
        (Raw("uint64"), [[-1, 0]], 0),
        (Raw("int64"), [[0.5, 1.0]], 0),
        (Raw("int64"), np.array([[2**63, 0]], dtype=np.uint64), 0),
        (Raw("float16"), [[1e6, 0.0]], 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_row(codec, rows, row):
    with pytest.raises(TeacherOutputError, match=f"Row {row} cannot be encoded"):
        codec.encode(np.asarray(rows))


def test_raw_takes_another_type_whose_values_fit():
    np.testing.assert_array_equal(Raw("uint8").encode(np.array([[255]]))["values"], np.array([[255]], dtype=np.uint8))


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("indices", 5, "a class is none of 5"),
        ("indices", 0, "a class stands in it twice"),
        ("values", np.nan, "its values do not fall"),
        ("values", 0.5, "its values do not fall"),
        ("log_tail_mass", np.nan, "the mass of its tail is not between 0 and 1"),
        ("log_tail_mass", 5.0, "the mass of its tail is not between 0 and 1"),
    ],
)
def test_a_record_that_top_k_does_not_write_is_refused(part, value, reason):
    codec = TopK(3, (1.0,))
    parts = codec.encode(np.arange(10.0).reshape(2, 5))
    parts["indices"][1, 2] = 1
    codec.decode(parts, (5,))
    if (part, value) == ("indices", 0):
        parts["indices"][1] = [4, 0, 0]
    else:
        parts[part][1, -1] = value
    with pytest.raises(UnreadableRowError, match=f"Row 1 cannot be decoded: {reason}") as caught:
        codec.decode(parts, (5,))
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense("float8"), UnknownNameError, "Unknown dtype 'float8'"),
        (lambda: Raw("object"), UnknownNameError, "Unknown dtype 'object'"),
        (lambda: TopK(0), ConfigError, "`k` to be a whole number of at least 1, got 0"),
        (lambda: TopK(2, always=(1, 3)), ConfigError, r"`always` to be fewer than k = 2, got 2 .*Raise k"),
        (lambda: TopK(3, always=(1, 1)), ConfigError, "`always` to be without repeats, got 1 twice"),
        (lambda: TopK(3, always=(-1,)), ConfigError, "`always` to be a whole number of at least 0, got -1"),
        (lambda: TopK(3, always=(12,)).parts((12,)), ConfigError, "`always` to be below the 12 classes, got 12"),
        (lambda: TopK(2, ()), ConfigError, "Truncation without a tail is not offered"),
        (lambda: TopK(2, (0.0,)), ConfigError, "`temperatures` to be a number above 0"),
        (lambda: TopK(2, (1.0, 1.0)), ConfigError, "1.0 twice"),
        (lambda: FieldPlan((3,), TopK(4)), ConfigError, "`k` to be at most the 3 classes, got 4"),
        (lambda: FieldPlan((3, 3), TopK(2)), ConfigError, r"\(n_classes,\) for codec top_k"),
        (lambda: FieldPlan((3,), "dense"), ConfigError, "`codec` to be a codec such as Dense"),
        (lambda: FieldPlan((0,), Dense()), ConfigError, "`shape` to be a whole number of at least 1"),
        (lambda: FieldPlan((2**20, 2**20), Dense()), ConfigError, r"at most 2\*\*31 values"),
        (lambda: FieldPlan((1,) * 9, Dense()), ConfigError, "at most 8 axes"),
        (lambda: codec_from_config({"name": "top-k"}), UnknownNameError, "Unknown codec 'top-k'. Nearest: top_k"),
        (lambda: codec_from_config({"name": "top_k"}), ConfigError, "`configuration` to be complete"),
        (
            lambda: codec_from_config({"name": "dense", "configuration": {"type": 1}}),
            UnknownNameError,
            "Unknown option",
        ),
        (lambda: codec_from_config({"name": "dense", "configuration": {"dtype": 1}}), ConfigError, "configuration"),
        (lambda: codec_from_config({"name": "dense", "configuration": 5}), ConfigError, "a mapping, got 5"),
        (lambda: codec_from_config({"codec": "dense"}), ConfigError, "a mapping with a `name`"),
        (lambda: TopK(2, (1.0, 2.0)).check_temperature(4.0), FidelityError, r"promises \(1, 2\), got 4"),
    ],
)
def test_configuration_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_top_k_names_the_row_that_float16_cannot_hold(monkeypatch):
    """Also where rows are worked on a few at a time."""
    monkeypatch.setattr("bookkd.book.codecs.heavy._CACHED", 8)
    rows = np.zeros((9, 4), dtype=np.float32)
    rows[7, 1] = -1e5
    with pytest.raises(UnfitRowError, match="Row 7 cannot be encoded"):
        TopK(4).encode(rows)
