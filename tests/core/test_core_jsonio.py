"""JSON: what is written is read again as it was, and everything else is refused without a crash."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from bookkd.core.errors import BookFormatError
from bookkd.core.jsonio import MAX_DEPTH, canonical, digest, parse, pretty, read

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=5)


@given(OBJECTS)
def test_both_spellings_are_read_again(value: dict):
    for data in (canonical(value), pretty(value)):
        assert parse(data, "x.json") == value
        assert data.isascii()
    assert canonical(parse(pretty(value), "x.json")) == canonical(value)


@given(OBJECTS)
def test_the_order_of_keys_does_not_count(value: dict):
    turned = dict(reversed(value.items()))
    assert canonical(turned) == canonical(value)
    assert digest(turned) == xxhash.xxh3_128(canonical(value)).hexdigest()


def test_the_spelling_is_fixed():
    value = {"b": [1, -0.5, None, True], "a": "\u00e4\n\U0001f600", "c": {}}
    assert canonical(value) == b'{"a":"\\u00e4\\n\\ud83d\\ude00","b":[1,-0.5,null,true],"c":{}}'
    assert pretty({"b": 1, "a": [2]}) == b'{\n "a": [\n  2\n ],\n "b": 1\n}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_spelling_is_not_written(value: float):
    for spell in (canonical, pretty):
        with pytest.raises(ValueError, match="not JSON compliant"):
            spell({"a": [value]})


def nested(levels: int, kind: str) -> bytes:
    opening, closing = {"list": ("[", "]"), "object": ('{"a":', "}")}[kind]
    return f'{{"a":{opening * (levels - 2)}{"[]"}{closing * (levels - 2)}}}'.encode()


@pytest.mark.parametrize("kind", ["list", "object"])
def test_depth_is_bounded(kind: str):
    assert MAX_DEPTH == 32
    parse(nested(32, kind), "x.json")
    with pytest.raises(BookFormatError, match=r"Expected x\.json to nest at most 32 levels"):
        parse(nested(33, kind), "x.json")
    for depth in (5_000, 1_000_000):
        with pytest.raises(BookFormatError, match=r"x\.json"):
            parse(nested(depth, kind), "x.json")


def test_length_is_bounded_before_anything_is_read(tmp_path: Path):
    data = b'{"a": 1}'
    assert parse(data, "x.json", limit=8) == {"a": 1}
    with pytest.raises(BookFormatError, match=r"Expected x\.json to be at most 7 bytes, got 8"):
        parse(data, "x.json", limit=7)
    path = tmp_path / "y.json"
    path.write_bytes(data)
    assert read(path) == {"a": 1}
    with pytest.raises(BookFormatError, match=r"Expected y\.json to be at most 7 bytes, got 8"):
        read(path, limit=7)
    with pytest.raises(BookFormatError, match=r"Expected the plan to be at most"):
        read(path, "the plan", limit=7)
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: takes no place on the disk, and would take all memory
    with pytest.raises(BookFormatError, match=f"got {2**40}"):
        read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "valid JSON"),
        (b"{", "valid JSON"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "a key stands twice in one object"),
        (b'{"a": 1, "\\u0061": 2}', "a key stands twice in one object"),
        (b'{"a": NaN}', "NaN is not allowed"),
        (b'{"a": [Infinity]}', "Infinity is not allowed"),
        (b'{"a": -Infinity}', "-Infinity is not allowed"),
        (b'{"a": 1e999}', "1e999 is too large for a number"),
        (b'{"a": -1e999}', "-1e999 is too large for a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "valid JSON, got: .*digits"),
        (b'{"a": "\xff"}', "valid JSON, got: 'utf-8' codec"),
        ('{"a": 1}'.encode("utf-16"), "valid JSON, got: 'utf-8' codec"),
        (b'\xef\xbb\xbf{"a": 1}', "valid JSON"),
        (b"[1]", "a JSON object, got list"),
        (b"null", "a JSON object, got NoneType"),
        (b"1", "a JSON object, got int"),
    ],
    ids=str,
)
def test_everything_else_is_refused(data: bytes, message: str):
    with pytest.raises(BookFormatError, match=message) as caught:
        parse(data, "x.json")
    assert "x.json" in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes):
    try:
        found = parse(data, "x.json")
    except BookFormatError:
        return
    assert found == json.loads(data)


@given(OBJECTS, st.data())
def test_a_cut_file_is_no_file(value: dict, data: st.DataObject):
    whole = canonical(value)
    with pytest.raises(BookFormatError):
        parse(whole[: data.draw(st.integers(0, len(whole) - 1))], "x.json")


def test_values_are_counted_before_they_are_made():
    """Three bytes of text take seventy of memory: a limit on the text alone bounds little."""
    most = 3 * 2**20 // (192 + 90)
    assert len(parse(b'{"a": [' + b"{}," * (most - 10) + b"0]}", "x.json", limit=2**20)["a"]) == most - 9
    with pytest.raises(BookFormatError, match="more values than a file of this length may have"):
        parse(b'{"a": [' + b"{}," * (most + 10) + b"0]}", "x.json", limit=2**20)


@pytest.mark.parametrize("key", ['"{:x}":0', '"\\"{:x}" : 0', '"\\\\{:x}"\n:0'])
def test_different_keys_are_counted(key):
    def text(count):
        return ("{" + ",".join(key.format(number) for number in range(count)) + "}").encode()

    assert len(parse(text(65536), "x.json")) == 65536
    with pytest.raises(BookFormatError, match="more than 65536 different keys"):
        parse(text(65537), "x.json")
    again = b'{"a": [' + b",".join([b'{"b":1,"c":2}'] * 70_000) + b"]}"
    assert len(parse(again, "x.json")["a"]) == 70_000
