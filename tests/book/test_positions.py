"""Fields of positions: a record is a sequence of its own length, each position encoded as a record would be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from bookkd.book import (
    Argmax,
    Book,
    BookWriter,
    Dense,
    FieldPlan,
    GrowthWriter,
    Int8,
    Plan,
    Positions,
    RaggedArray,
    Raw,
    RowIds,
    Sampled,
    TopK,
    compact,
    copy_book,
    extract,
    verify,
)
from bookkd.book.codecs import UnfitRowError, UnreadableRowError
from bookkd.core.errors import BookFormatError, ConfigError, FidelityError, TeacherOutputError

C, MOST = 40, 9
CODECS = [Dense(), Dense("float32"), Int8(), TopK(5, (1.0, 4.0)), Argmax(), Sampled(20, seed=3), Sampled(1)]
NAMES = [f"{codec.name}-{place}" for place, codec in enumerate(CODECS)]


def sequences(lengths, seed=0, shape=(C,)):
    rng = np.random.default_rng(seed)
    return RaggedArray.from_rows([3 * rng.normal(size=(length, *shape)) for length in lengths])


def records(view, start, stop, empty=True):
    """What a teacher says of some samples: a function of (view, sample)."""
    lengths = [
        (7 * sample + view) % (MOST + 1) if empty else 1 + (7 * sample + view) % MOST for sample in range(start, stop)
    ]
    return RaggedArray.from_rows(
        [4 * np.random.default_rng([view, sample]).normal(size=(n, C)) for sample, n in enumerate(lengths, start)]
    )


def plan(codec, **changes):
    fields = {
        "logits": FieldPlan((C,), codec, positions=MOST),
        "input/tokens": FieldPlan((), Raw("int32"), positions=MOST),
    }
    options = {"n_samples": 50, "n_views": 2, "fields": fields, "unit_rows": 32, "block_rows": 8, "task": "causal-lm"}
    return Plan(**options | changes)


def write(path, the_plan, rows=7):
    with BookWriter(path, the_plan) as writer:
        for view in range(the_plan.n_views):
            for start in range(0, the_plan.n_samples, rows):
                writer.write_rows(view, start, said(view, start, min(start + rows, the_plan.n_samples)))
        return writer.finish()


def said(view, start, stop):
    logits = records(view, start, stop)
    return {"logits": logits, "input/tokens": RaggedArray(logits.values.argmax(axis=1), logits.offsets)}


@pytest.fixture(scope="module", params=CODECS, ids=NAMES)
def book(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("positions") / "b", plan(request.param))


def assert_same(one, other):
    """Assert that two decoded batches of positions are equal."""
    np.testing.assert_array_equal(one.offsets, other.offsets)
    mine, theirs = one.values, other.values
    assert type(mine) is type(theirs)
    if isinstance(mine, np.ndarray):
        np.testing.assert_array_equal(mine, theirs)
        return
    for name, value in vars(mine).items():
        kept = vars(theirs)[name]
        if isinstance(value, RaggedArray):
            np.testing.assert_array_equal(value.offsets, kept.offsets)
            np.testing.assert_array_equal(value.values, kept.values)
        else:
            np.testing.assert_array_equal(value, kept)


def test_every_position_is_what_the_codec_gives_of_it_alone(book):
    entry, rng = book.fields["logits"], np.random.default_rng(1)
    for _ in range(5):
        samples, views = rng.integers(0, 50, 17), rng.integers(0, 2, 17)
        found = book.read(samples, views)["logits"]
        for row, (sample, view) in enumerate(zip(samples, views, strict=True)):
            alone = records(view, sample, sample + 1)
            ids = RowIds(np.array([sample]), int(view), "logits").at_positions(alone.offsets)
            wanted = entry.codec.decode(entry.codec.encode(alone.values, ids), (C,))
            here = book.read([sample], view)["logits"]
            assert_same(here, type(here)(wanted, alone.offsets))
            assert found.counts[row] == len(alone.values)
        joined = [book.read([sample], view)["logits"] for sample, view in zip(samples, views, strict=True)]
        if isinstance(found, RaggedArray):
            assert_same(found, RaggedArray.concatenate(joined))


def test_lengths_and_tokens_come_back(book):
    found = book.read(np.arange(50), 1)
    np.testing.assert_array_equal(found["logits"].counts, [(7 * sample + 1) % (MOST + 1) for sample in range(50)])
    np.testing.assert_array_equal(found["logits"].offsets, found["input/tokens"].offsets)
    wanted = records(1, 0, 50).values.argmax(axis=1)
    np.testing.assert_array_equal(found["input/tokens"].values, wanted)


def test_the_fields_are_the_arrays_that_safetensors_reads(tmp_path):
    from safetensors.numpy import load_file

    book = write(tmp_path / "b", plan(TopK(3)))
    shard = load_file(sorted((book.path / "view-0001").glob("*.safetensors"))[1])
    block = shard["logits/ends"][8:16]  # counted from the start of the second block of 8 rows
    first = int(shard["logits/ends"][7])
    wanted = book.read(np.arange(40, 48), 1)["logits"]
    np.testing.assert_array_equal(block, wanted.offsets[1:])
    np.testing.assert_array_equal(shard["logits/indices"][first : first + block[-1]], wanted.values.indices)


def test_verify_copy_extract_compact_and_growth_know_positions(tmp_path, book):
    assert verify(book.path) == []
    copied = copy_book(tmp_path / "copy", book)
    assert copied.content_digest == book.content_digest
    part = extract(tmp_path / "part", book, samples=slice(0, 20))
    assert_same(part.read(np.arange(20), 0)["logits"], book.read(np.arange(20), 0)["logits"])
    small = write(tmp_path / "small", replace(book.plan, n_views=1, unit_rows=None, block_rows=8))
    with GrowthWriter(small.path, replace(small.plan, n_views=2)) as writer:
        for start in range(0, 50, 10):
            writer.write_rows(1, start, said(1, start, start + 10))
        grown = writer.finish()
    assert_same(grown.read(np.arange(50), 1)["logits"], book.read(np.arange(50), 1)["logits"])
    compact(copied.path)
    assert verify(copied.path) == []
    assert Book(copied.path).content_digest == book.content_digest


def test_what_the_codec_lost_is_measured_at_positions(tmp_path):
    book = write(tmp_path / "b", plan(Int8(), temperatures=(1.0,)))
    found = book.fidelity["logits"]
    assert 0 < found["temperatures"]["1"]["mean"] < 1e-3
    assert found["n"] > 100
    truth, kept = (
        softmax(records(0, 0, 50).values, axis=1),
        softmax(book.read(np.arange(50), 0)["logits"].values, axis=1),
    )
    kl = (truth * np.log(truth / kept)).sum(axis=1).mean()
    assert found["temperatures"]["1"]["mean"] == pytest.approx(kl, rel=0.5)


def test_copies_with_another_codec_of_positions(tmp_path):
    book = write(tmp_path / "b", plan(Dense("float32")))
    small = copy_book(tmp_path / "c", book, codec=TopK(4))
    wanted = np.argsort(-book.read(np.arange(50), 0)["logits"].values, axis=1)[:, :4]
    np.testing.assert_array_equal(small.read(np.arange(50), 0)["logits"].values.indices, wanted)


def test_draws_of_positions_are_their_own():
    entry = FieldPlan((C,), Sampled(50), positions=MOST)
    flat = np.zeros((3 * MOST, C))
    rows = RaggedArray(flat, np.arange(4) * MOST)
    found = entry.decode(entry.encode(rows, RowIds(np.arange(3), 0, "logits")))
    assert isinstance(found, Positions)
    drawn = found.values.probabilities()
    assert len({row.tobytes() for row in drawn}) == 3 * MOST
    one = entry.decode(entry.encode(rows[[1]], RowIds(np.array([1]), 0, "logits")))
    np.testing.assert_array_equal(one.values.probabilities(), drawn[MOST : 2 * MOST])
    # Position 0 draws what a record without positions draws.
    plain = Sampled(50).decode(Sampled(50).encode(flat[:3], RowIds(np.arange(3), 0, "logits")), (C,))
    np.testing.assert_array_equal(plain.probabilities(), drawn[::MOST])


@given(
    lengths=st.lists(st.integers(0, MOST), min_size=1, max_size=12),
    place=st.integers(0, len(CODECS) - 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_lengths_round_trip(lengths, place, seed):
    codec = CODECS[place]
    entry, rows = FieldPlan((C,), codec, positions=MOST), sequences(lengths, seed)
    ids = RowIds(np.arange(len(lengths)), 1, "logits")
    parts = entry.encode(rows, ids)
    assert {name: part.values.dtype for name, part in parts.items()} == {
        name: kind for name, (kind, _) in entry.parts.items()
    }
    assert (
        sum(part.values.nbytes for part in parts.values()) + 4 * len(lengths) <= len(lengths) * entry.bytes_per_record
    )
    found = entry.decode(parts)
    np.testing.assert_array_equal(found.counts, lengths)
    wanted = codec.decode(codec.encode(rows.values, ids.at_positions(rows.offsets)), (C,))
    assert_same(found, type(found)(wanted, rows.offsets))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda said: said | {"logits": said["logits"].values[:2]},
            r"`logits` to be a RaggedArray of positions, got 'ndarray' \(sample 0",
        ),
        (
            lambda said: said | {"logits": RaggedArray(said["logits"].values[:, :5], said["logits"].offsets)},
            r"\[40\] a position",
        ),
        (
            lambda said: said | {"logits": sequences([1, MOST + 1])},
            r"sample 1, view 0.*10 positions, and the plan at most 9",
        ),
    ],
)
def test_records_that_are_no_positions_are_refused(tmp_path, change, message):
    with BookWriter(tmp_path / "b", plan(Dense())) as writer, pytest.raises(TeacherOutputError, match=message):
        writer.write_rows(0, 0, change(said(0, 0, 2)))


def test_a_value_that_is_none_is_named_with_its_position(tmp_path):
    found = said(0, 0, 4)
    found["logits"].values[found["logits"].offsets[2] + 3, 5] = np.nan
    with BookWriter(tmp_path / "b", plan(Dense())) as writer:
        with pytest.raises(TeacherOutputError, match=r"sample 2, view 0, position 3"):
            writer.write_rows(0, 0, found)
        found["logits"].values[found["logits"].offsets[2] + 3, 5] = 1e6
        with pytest.raises(TeacherOutputError, match=r"sample 2, view 0\): position 3: a value of magnitude 1e\+06"):
            writer.write_rows(0, 0, found)
    masked = plan(Dense(), masked_classes=(5,), class_names=())
    found["logits"].values[:, 5] = -np.inf
    with BookWriter(tmp_path / "c", masked) as writer:
        writer.write_rows(0, 0, found)
        found["logits"].values[found["logits"].offsets[2] + 3, 6] = -np.inf
        with pytest.raises(TeacherOutputError, match=r"got '-inf' \(sample 6, view 0, position 3"):
            writer.write_rows(0, 4, found)


def test_draws_that_end_inside_of_a_position_are_refused():
    entry, rows = FieldPlan((C,), Sampled(20), positions=MOST), sequences([2, 3, 1])
    parts = entry.encode(rows, RowIds(np.arange(3), 0, "logits"))
    entries = parts["entries"]
    moved = entries.offsets + np.array([0, 1, 0, 0])
    with pytest.raises(UnreadableRowError, match="Row 0 cannot be decoded: it ends inside of a position") as caught:
        entry.decode({"entries": RaggedArray(entries.values, moved)})
    assert caught.value.row == 0
    wide = entries.values.copy()
    wide[entries.offsets[1], 0] ^= 1
    with pytest.raises(UnreadableRowError):
        entry.decode({"entries": RaggedArray(wide[:-1], np.minimum(entries.offsets, len(wide) - 1))})


def test_hostile_plans_of_positions(tmp_path):
    import json

    book = write(tmp_path / "b", plan(Dense()))
    file = book.path / "plan.json"
    for wrong in (0, -1, 2**20, 1.5, "9", True, None):
        found = json.loads(file.read_text())
        found["fields"]["logits"]["positions"] = wrong
        with pytest.raises(BookFormatError, match="positions"):
            Plan.from_json(found)


def test_plans_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"at most 1048575 items a record, got .*Cut long records"):
        FieldPlan((C,), Dense(), positions=2**20)
    with pytest.raises(ConfigError, match="at most 1048575 items"):
        FieldPlan((C,), Sampled(20), positions=2**18)
    with pytest.raises(ConfigError, match="`positions` to be a whole number of at least 1, got 0"):
        FieldPlan((C,), Dense(), positions=0)
    book = write(tmp_path / "b", plan(Dense(), class_names=tuple(map(str, range(C)))))
    with pytest.raises(FidelityError, match=r"of one array each, to take some classes, got 'sequences'"):
        extract(tmp_path / "c", book, classes=[0, 1])
    entry = FieldPlan((C,), Dense(), positions=3)
    with pytest.raises(UnfitRowError, match="it has 4 positions, and the plan at most 3"):
        entry.encode(sequences([4]))
    with pytest.raises(ConfigError, match="`records` to be a RaggedArray of positions, got 'ndarray'"):
        entry.encode(np.zeros((2, C)))
    with pytest.raises(ConfigError, match="`records` to be an array, got 'RaggedArray'"):
        FieldPlan((C,), Dense()).encode(sequences([1]))
