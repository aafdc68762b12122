"""Ragged parts: rows that vary in number of items, through every mixture of shards, and with every kind of damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.book.test_reader import find, move, rechain, with_header

from bookkd.book import CODECS, Book, BookWriter, Codec, Dense, FieldPlan, Plan, RaggedArray, Raw, _container, verify
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookKDError,
    ConfigError,
    TeacherOutputError,
)

N, V, W, BLOCK = 150, 2, 6, 16


@dataclass(frozen=True)
class Present(Codec):
    """The values of a record that are not 0, with their places: two ragged parts beside one that is not."""

    name: ClassVar[str] = "present"
    most: int = W

    @property
    def ragged(self):
        return ("values", "places")

    def most_items(self, shape):
        return self.most

    def parts(self, shape):
        half, byte = np.dtype(np.float16), np.dtype(np.uint8)
        return {"values": (half, ()), "places": (byte, (3,)), "total": (np.dtype(np.float32), ())}

    def encode(self, array, ids=None):
        values = np.asarray(array)
        rows, places = np.nonzero(values)
        offsets = np.append(0, np.cumsum((values != 0).sum(axis=1)))
        spelled = np.stack([places, places + 1, places + 2], axis=1).astype(np.uint8)
        kept = values[rows, places].astype(np.float16)
        total = values.sum(axis=1).astype(np.float32)
        return {"values": RaggedArray(kept, offsets), "places": RaggedArray(spelled, offsets), "total": total}

    def decode(self, parts, shape):
        out = np.zeros((len(parts["total"]), *shape), dtype=np.float16)
        rows = np.repeat(np.arange(len(out)), parts["values"].counts)
        out[rows, parts["places"].values[:, 0]] = parts["values"].values
        return out


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(CODECS, "present", Present)


def said(view):
    """Rows of 0 to W values, some blocks of them all empty."""
    rng = np.random.default_rng(view)
    values = rng.integers(1, 100, size=(N, W)) * (rng.random((N, W)) < rng.random((N, 1)))
    values[32:48] = 0
    return values.astype(np.float16)


TRUTH = np.stack([said(view) for view in range(V)])


def plan(**changes):
    fields = {"features/boxes": FieldPlan((W,), Present()), "probe/hash": FieldPlan((), Raw("uint64"))}
    return Plan(**{"n_samples": N, "n_views": V, "fields": fields, "unit_rows": 64, "block_rows": BLOCK, **changes})


def write(path, the_plan=None, step=None):
    """Write the book, in pieces of `step` rows where it is given."""
    with BookWriter(path, the_plan or plan()) as writer:
        for unit in writer.pending():
            for start in range(unit.start, unit.stop, step or N):
                rows = slice(start, min(start + (step or N), unit.stop))
                arrays = {"features/boxes": TRUTH[unit.view][rows], "probe/hash": np.arange(rows.start, rows.stop)}
                writer.write_rows(unit.view, start, arrays)
        return writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    CODECS["present"] = Present
    path = tmp_path_factory.mktemp("ragged") / "b"
    write(path)
    del CODECS["present"]
    return path


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "b")
    return tmp_path / "b"


pairs = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, V - 1)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs, st.sampled_from(["touched", "never"]), st.integers(1, 3))
def test_a_batch_is_what_was_said_of_each_pair(made, batch, mode, max_open):
    samples, views = map(np.array, zip(*batch, strict=True))
    book = Book(made, verify=mode, max_open=max_open)
    np.testing.assert_array_equal(book.read(samples, views)["features/boxes"], TRUTH[views, samples])


def test_gather_gives_rows_of_items(made):
    found = Book(made).gather([3, 100, 40], [0, 1, 0], "features/boxes")
    assert set(found) == {"features/boxes/values", "features/boxes/places", "features/boxes/total"}
    values = found["features/boxes/values"]
    for row, (view, sample) in enumerate([(0, 3), (1, 100), (0, 40)]):
        true = TRUTH[view, sample]
        np.testing.assert_array_equal(values.take([row]).values, true[true != 0])
    assert values.counts[2] == 0
    none = Book(made).gather([], [])["features/boxes/places"]
    assert (len(none), none.values.shape, none.values.dtype) == (0, (0, 3), np.uint8)


@pytest.mark.parametrize("step", [1, 7, 16, 33])
def test_pieces_of_any_size_give_the_same_book(made, tmp_path, step):
    assert write(tmp_path / "b", step=step).content_digest == Book(made).content_digest
    for path in sorted(made.rglob("*.safetensors")):
        assert (tmp_path / "b" / path.relative_to(made)).read_bytes() == path.read_bytes()


def test_merging_shards_keeps_the_content_digest(made, tmp_path):
    few = write(tmp_path / "b", plan(unit_rows=N))
    assert [view.content for view in few._edition.views] == [view.content for view in Book(made)._edition.views]
    assert len(list(few.path.rglob("*.safetensors"))) == V
    assert verify(few.path) == []


def test_a_shard_without_any_item(tmp_path):
    one = Plan(4, 1, {"features/boxes": FieldPlan((W,), Present())})
    with BookWriter(tmp_path / "b", one) as writer:
        writer.write_rows(0, 0, {"features/boxes": np.zeros((4, W))})
        book = writer.finish()
    assert verify(book.path) == []
    assert not book.read([0, 3], 0)["features/boxes"].any()


def test_copied_records_are_the_same_book(made, tmp_path):
    book = Book(made)
    with BookWriter(tmp_path / "b", plan()) as writer:
        for unit in writer.pending():
            writer.copy(unit, book.gather(np.arange(unit.start, unit.stop), unit.view))
        assert writer.finish().content_digest == book.content_digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("features/boxes/values"), "`parts` to be the parts"),
        (lambda parts: parts.update(other=1), "`parts` to be the parts"),
        (
            lambda parts: parts.update({"features/boxes/values": np.zeros(64)}),
            "to be a RaggedArray, got a ndarray|'ndarray'",
        ),
        (
            lambda parts: parts.update({"features/boxes/values": parts["features/boxes/values"].take(np.arange(63))}),
            "features/boxes/values` to be float16 of shape",
        ),
        (
            lambda parts: parts.update(
                {"features/boxes/values": parts["features/boxes/values"].take(np.arange(64)[::-1])}
            ),
            "as many items a row as the parts before",
        ),
    ],
)
def test_copied_records_that_do_not_fit(made, tmp_path, change, message):
    parts = Book(made).gather(np.arange(64), 0)
    change(parts)
    with BookWriter(tmp_path / "b", plan()) as writer, pytest.raises(ConfigError, match=message):
        writer.copy(writer.pending()[0], parts)


def test_more_items_than_the_codec_says(tmp_path):
    small = Plan(4, 1, {"features/boxes": FieldPlan((W,), Present(most=2))})
    rows = np.zeros((4, W))
    rows[2, :3] = 1
    with (
        BookWriter(tmp_path / "b", small) as writer,
        pytest.raises(TeacherOutputError, match=r"at most 2 items .* 3.*sample 2"),
    ):
        writer.write_rows(0, 0, {"features/boxes": rows})


def test_rows_that_are_given_again_after_an_error_are_there_once(made, tmp_path, monkeypatch):
    encode = Raw.encode

    def fail(codec, array, ids=None):
        raise ConfigError("once")

    with BookWriter(tmp_path / "b", plan()) as writer:
        for unit in writer.pending():
            for start in range(unit.start, unit.stop, 16):
                rows = slice(start, min(start + 16, unit.stop))
                arrays = {"features/boxes": TRUTH[unit.view][rows], "probe/hash": np.arange(rows.start, rows.stop)}
                monkeypatch.setattr(Raw, "encode", fail)
                with pytest.raises(ConfigError, match="once"):
                    writer.write_rows(unit.view, start, arrays)
                monkeypatch.setattr(Raw, "encode", encode)
                writer.write_rows(unit.view, start, arrays)
        assert writer.finish().content_digest == Book(made).content_digest


def test_items_of_another_type_are_refused(tmp_path, monkeypatch):
    encode = Present.encode

    def wide(codec, array, ids=None):
        parts = encode(codec, array)
        return {**parts, "values": RaggedArray(parts["values"].values.astype(np.float32), parts["values"].offsets)}

    monkeypatch.setattr(Present, "encode", wide)
    with pytest.raises(ConfigError, match="features/boxes/values` to be float16 of shape"):
        write(tmp_path / "b")


def test_what_a_ragged_codec_may_not_say():
    with pytest.raises(ConfigError, match="at most 1048575 items a record, got 1048576"):
        FieldPlan((W,), Present(most=2**20))

    class Named(Present):
        def parts(self, shape):
            return {**super().parts(shape), "ends": (np.dtype(np.uint8), ())}

    with pytest.raises(ConfigError, match="`parts` to be without ends"):
        FieldPlan((W,), Named())


# Damage.


def spans_of(path):
    data = path.read_bytes()
    begin = _container.header_end(data[:8], len(data), "shard")
    flat = ("features/boxes/values", "features/boxes/places")
    return data, _container.parse_header(data[8:begin], begin, len(data), "shard", flat)


def with_ends(change):
    """Rewrite the ends of the first shard of view 0."""

    def apply(data):
        begin = _container.header_end(data[:8], len(data), "shard")
        flat = ("features/boxes/values", "features/boxes/places")
        span = _container.parse_header(data[8:begin], begin, len(data), "shard", flat)["features/boxes/ends"]
        ends = np.frombuffer(data[span.start : span.stop], dtype="<u4").copy()
        change(ends)
        return data[: span.start] + ends.tobytes() + data[span.stop :]

    return apply


def falling(ends):
    ends[4], ends[5] = ends[5] + 3, ends[4]


def swap_over_blocks(ends):
    ends[15] += 1
    ends[31] -= 1


HOSTILE = [
    (falling, "ends that fall in block 0"),
    (lambda ends: ends.__setitem__(3, 2**32 - 1), "ends that fall in block 0"),
    (lambda ends: ends.__setitem__(slice(0, 15), 0), "a row of .* items, at most 6 in block 0"),
    (lambda ends: ends.__setitem__(15, 2**32 - 1), "more than 6 items a row"),
    (lambda ends: ends.__setitem__(slice(None), 2**32 - 1), "more than 6 items a row"),
    (lambda ends: ends.__setitem__(63, ends[63] + 1), "items, the parts have"),
    (lambda ends: ends.__setitem__(slice(None), 0), "0 items, the parts have"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
@pytest.mark.parametrize("mode", ["never", "touched"])
def test_hostile_ends_with_digests_that_fit(copy, change, message, mode):
    """The hashes in the sidecar are not renewed: with "never" nobody looks at them, with "touched" they are found first."""
    rechain(copy, 0, with_ends(change))
    book = Book(copy, verify=mode)
    error, words = (BookCorruptError, "xxh3_64") if mode == "touched" else (BookFormatError, message)
    with pytest.raises(error, match=words):
        book.read(np.arange(64), 0)
    faults = [str(fault) for fault in verify(copy)]
    assert any("features/boxes/ends" in fault for fault in faults)
    np.testing.assert_array_equal(book.read(np.arange(64, N), 0)["features/boxes"], TRUTH[0, 64:])


def test_ends_that_are_moved_between_blocks_read_other_items_and_their_hashes_say_so(copy):
    rechain(copy, 0, with_ends(swap_over_blocks))
    with pytest.raises(BookCorruptError, match="block 0 of features/boxes/ends"):
        Book(copy).read([0], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_header(lambda header: header.pop("features/boxes/ends")), "an overlap or a hole|a difference in"),
        (move("features/boxes/ends", dtype="I32"), "features/boxes/ends to be uint32"),
        (move("features/boxes/values", dtype="U16"), "features/boxes/values to be float16"),
        (move("features/boxes/values", shape=[2**61]), "as many bytes as its shape"),
        (move("features/boxes/values", shape=[0]), "as many bytes as its shape"),
        (move("features/boxes/values", shape=[]), "whole-number shape"),
        (move("features/boxes/total", shape=[0], data_offsets=[0, 0]), "no empty axis"),
        (move("features/boxes/places", shape=[0, 0], data_offsets=[0, 0]), "no empty axis"),
    ],
)
@pytest.mark.parametrize("mode", ["never", "touched"])
def test_hostile_layouts(copy, change, message, mode):
    rechain(copy, 0, change)
    with pytest.raises(BookFormatError, match=message):
        Book(copy, verify=mode).read([0], 0)
    assert verify(copy)


def other_items(rows):
    """A shard whose places have another number of items than its values, or more than all rows may have."""

    def apply(data):
        begin = _container.header_end(data[:8], len(data), "shard")
        flat = ("features/boxes/values", "features/boxes/places")
        spans = _container.parse_header(data[8:begin], begin, len(data), "shard", flat)
        tensors = {
            name: np.frombuffer(data[span.start : span.stop], dtype=span.dtype).reshape(span.shape)
            for name, span in spans.items()
        }
        return _container.pack({name: rows(name, array) for name, array in tensors.items()})

    return apply


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda name, array: array[:-1] if name.endswith("places") else array, r"features/boxes/(places|values) to be"),
        (lambda name, array: array[:0] if name.endswith("places") else array, r"features/boxes/(places|values) to be"),
        (
            lambda name, array: (
                np.zeros((64 * W + 1, *array.shape[1:]), array.dtype)
                if "boxes/v" in name or "boxes/p" in name
                else array
            ),
            "at most 6 items in each of 64 rows, got 385",
        ),
    ],
)
def test_hostile_numbers_of_items(copy, rows, message):
    rechain(copy, 0, other_items(rows))
    with pytest.raises(BookFormatError, match=message):
        Book(copy, verify="never").read([0], 0)
    assert verify(copy)


def test_blocks_of_another_size_than_the_plans(copy):
    path = find(copy, "view-0000/rows-000000000", ".json")
    blocks = json.loads(path.read_bytes())["blocks"]
    halved = {name: hashes[:2] for name, hashes in blocks.items()}
    rechain(copy, 0, sidecar_change={"block_rows": 32, "blocks": halved})
    with pytest.raises(BookFormatError, match="`block_rows` to be 16, as the plan has it, got 32"):
        Book(copy).read([0], 0)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**30), st.integers(0, 7))
def test_a_flipped_bit_is_named_and_never_read(made, place, bit):
    path = find(made, "view-0000/rows-000000000", ".safetensors")
    good, spans = spans_of(path)
    begin = min(span.start for span in spans.values())
    place = begin + place % (len(good) - begin)
    path.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
    part = next(name for name, span in spans.items() if span.start <= place < span.stop)
    try:
        faults = verify(made)
        named = [fault for fault in faults if fault.part == part and fault.block is not None]
        assert named
        assert all((fault.view, fault.path) == (0, faults[0].path) for fault in faults)
        book = Book(made)
        with pytest.raises(BookCorruptError, match=f"block {named[0].block} of {part}"):
            book.read(np.arange(named[0].start, named[0].stop), 0)
        np.testing.assert_array_equal(book.read(np.arange(64, N), 0)["features/boxes"], TRUTH[0, 64:])
        if part != "features/boxes/ends":
            others = np.setdiff1d(np.arange(64), np.arange(named[0].start, named[0].stop))
            np.testing.assert_array_equal(book.read(others, 0)["features/boxes"], TRUTH[0, others])
    finally:
        path.write_bytes(good)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 100), min_size=64, max_size=64))
def test_any_ends_give_items_or_an_error_of_ours(made, tmp_path_factory, ends):
    path = tmp_path_factory.mktemp("any") / "b"
    shutil.copytree(made, path)
    rechain(path, 0, with_ends(lambda array: array.__setitem__(slice(None), ends)))
    try:
        found = Book(path, verify="never").gather(np.arange(64), 0)["features/boxes/values"]
    except BookKDError:
        return
    assert found.counts.max() <= W


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=6), st.booleans())
def test_any_bytes_with_digests_that_fit_give_items_or_an_error_of_ours(made, tmp_path_factory, flips, in_header):
    path = tmp_path_factory.mktemp("flips") / "b"
    shutil.copytree(made, path)

    def change(data):
        begin = _container.header_end(data[:8], len(data), "shard")
        out = bytearray(data)
        for place, bits in flips:
            out[place % begin if in_header else begin + place % (len(data) - begin)] ^= bits
        assume(bytes(out) != data)
        return bytes(out)

    rechain(path, 0, change)
    for mode in ("never", "touched"):
        message = ""
        try:
            found = Book(path, verify=mode).gather(np.arange(64), 0)
            assert found["features/boxes/values"].counts.max() <= W
        except BookKDError as error:
            message = str(error)
        # A changed block is never read; a changed header may be blanks.
        assert message or mode == "never" or in_header
        assert "\n" not in message
    assert isinstance(verify(path), list)


# The array itself.


ragged_rows = st.lists(st.lists(st.integers(-100, 100), max_size=5), min_size=1, max_size=12)


@given(ragged_rows, st.data())
def test_rows_are_taken_as_a_list_takes_them(rows, data):
    whole = RaggedArray.from_rows([np.array(row, dtype=np.int64) for row in rows])
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    taken = whole.take(chosen)
    assert [taken.values[a:b].tolist() for a, b in zip(taken.offsets, taken.offsets[1:], strict=False)] == [
        rows[index] for index in chosen
    ]
    assert [whole[index].tolist() for index in (0, -1)] == [rows[0], rows[-1]]
    low, high = sorted(data.draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
    for index in (slice(low, high), slice(None, None, -1), np.arange(low, high), np.arange(len(rows)) % 2 == 0):
        assert [row.tolist() for row in whole[index]] == [rows[place] for place in np.arange(len(rows))[index]]
    with pytest.raises(IndexError):
        whole[len(rows)]
    padded = whole.to_padded(fill=999, length=7)
    assert padded.tolist() == [[*row, *[999] * (7 - len(row))] for row in rows]
    assert whole.counts.tolist() == [len(row) for row in rows]
    again = RaggedArray.concatenate([whole.take([index]) for index in range(len(rows))])
    np.testing.assert_array_equal(again.values, whole.values)
    np.testing.assert_array_equal(again.offsets, whole.offsets)


def test_items_of_any_shape_are_padded():
    rows = RaggedArray.from_rows([np.zeros((0, 2)), np.ones((2, 2))])
    assert rows.to_padded(fill=7).tolist() == [[[7, 7], [7, 7]], [[1, 1], [1, 1]]]
    assert rows.take([]).to_padded(fill=0).shape == (0, 0, 2)
    with pytest.raises(ConfigError, match="`length` to be at least the 2 items of the longest row, got 1"):
        rows.to_padded(fill=0, length=1)


@pytest.mark.parametrize("offsets", [[0, 1], [1, 3], [0, 2, 1, 3], [], [[0, 3]], [0.0, 3.0], [0, -1, 3]])
def test_offsets_that_divide_nothing(offsets):
    with pytest.raises(ConfigError, match="`offsets` to be whole numbers that rise from 0 to the number of items"):
        RaggedArray(np.arange(3), np.array(offsets))
    with pytest.raises(ConfigError, match="`rows` to be at least one"):
        RaggedArray.from_rows([])


def test_a_ragged_field_beside_others_counts_in_the_bytes(made):
    book = Book(made)
    most = W * (2 + 3) + 4 + 4
    assert book.plan.fields["features/boxes"].codec.bytes_per_record((W,)) == most
    assert book.bytes_per_record < most + 8
    assert Plan(10, 1, {"a": FieldPlan((2,), Dense())}).flat == {}
