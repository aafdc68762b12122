"""Draws: unbiased, a function of (seed, field, sample, view) alone, packed as the format says, and refused where they are none."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from bookkd.book import (
    Argmax,
    Book,
    BookWriter,
    FieldPlan,
    Plan,
    Pooled,
    RaggedArray,
    RowIds,
    Sampled,
    TeacherInfo,
    TopK,
    _container,
    verify,
)
from bookkd.book.codecs import UnreadableRowError
from bookkd.core.errors import BookFormatError, ConfigError, FidelityError, TeacherOutputError

T = np.array([0.50, 0.20, 0.15, 0.08, 0.05, 0.02])


def counts_of(codec, logits, samples, view=0, field="logits"):
    ids = RowIds(np.asarray(samples), view, field)
    decoded = codec.decode(codec.encode(logits, ids), logits.shape[1:])
    return np.rint(decoded.probabilities() * codec.draws).astype(int)


def words(counter, key):
    """Philox4x32-10 of one counter, from the paper's text, in Python integers."""
    low = 2**32 - 1
    for _ in range(10):
        one, two = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (two >> 32 ^ counter[1] ^ key[0], two & low, one >> 32 ^ counter[3] ^ key[1], one & low)
        key = ((key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low)
    return counter


@pytest.mark.parametrize(
    ("sample", "view", "seed"), [(0, 0, 0), (7, 3, 5), (2**32 + 9, 65535, 2**64 - 1), (2**40 - 1, 1, 2**33)]
)
def test_draws_are_those_of_the_format_page(sample, view, seed):

    field, p, drawn = "members/0/logits", softmax([0.3, -1.0, 2.0, 0.0]), np.zeros(4, dtype=int)
    for draw in range(9):
        counter = (sample % 2**32, sample // 2**32 + view * 2**16, draw // 2, zlib.crc32(field.encode()))
        four = words(counter, (seed % 2**32, seed // 2**32))
        low, high = four[2 * (draw % 2) :][:2]
        u = (low + high * 2**32) // 2**11 / 2**53
        drawn[np.flatnonzero(np.cumsum(p) > u * p.sum())[0]] += 1
    found = counts_of(Sampled(9, seed=seed), np.log(p)[None], [sample], view, field)
    np.testing.assert_array_equal(found[0], drawn)


def test_counts_are_unbiased_within_three_standard_errors():
    seeds, draws = 2000, 10
    total = sum(counts_of(Sampled(draws, seed=seed), np.log(T)[None], [seed % 7])[0] for seed in range(seeds))
    error = np.sqrt(T * (1 - T) / (seeds * draws))
    assert (np.abs(total / (seeds * draws) - T) <= 3 * error).all()


@pytest.mark.parametrize(("draws", "unique"), [(4, 2.552626), (50, 5.543109)])
def test_unique_classes_are_as_many_as_the_card_says(draws, unique):
    rows = np.repeat(np.log(T)[None], 20_000, axis=0)
    found = (counts_of(Sampled(draws), rows, np.arange(20_000)) > 0).sum(axis=1)
    assert found.mean() == pytest.approx(unique, abs=3 * found.std() / np.sqrt(20_000))


def test_samples_views_fields_seeds_and_draws_are_independent():
    logits = np.zeros((3000, 2))
    rows = np.arange(3000)
    base = counts_of(Sampled(64), logits, rows)[:, 0]
    others = [
        counts_of(Sampled(64), logits, rows + 3000)[:, 0],
        counts_of(Sampled(64), logits, rows, view=1)[:, 0],
        counts_of(Sampled(64), logits, rows, field="members/0/logits")[:, 0],
        counts_of(Sampled(64, seed=1), logits, rows)[:, 0],
        counts_of(Sampled(64, seed=2**32), logits, rows)[:, 0],
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(3000)
    # Were the draws of a record alike, the variance of their number would not be that of a binomial.
    assert base.var() == pytest.approx(64 / 4, rel=0.12)


def write(path, order, pieces, codec, logits):
    the_plan = Plan(60, 2, {"logits": FieldPlan((12,), codec)}, unit_rows=20, block_rows=4)
    with BookWriter(path, the_plan) as writer:
        units = writer.pending()
        for number in order:
            unit = units[number]
            for start in range(unit.start, unit.stop, pieces):
                rows = slice(start, min(start + pieces, unit.stop))
                writer.write_rows(unit.view, start, {"logits": logits[unit.view, rows]})
        return writer.finish()


def test_a_book_depends_on_no_batch_and_no_order(tmp_path):
    logits = np.random.default_rng(3).normal(size=(2, 60, 12)) * 3
    books = [
        write(tmp_path / f"{number}", order, pieces, Sampled(20), logits)
        for number, (order, pieces) in enumerate(
            [((0, 1, 2, 3, 4, 5), 20), ((5, 3, 1, 0, 2, 4), 7), ((2, 1, 0, 5, 4, 3), 1)]
        )
    ]
    assert len({book.content_digest for book in books}) == 1
    other = write(tmp_path / "other", range(6), 20, Sampled(20, seed=1), logits)
    assert other.content_digest != books[0].content_digest
    assert verify(other.path) == []


def test_an_entry_of_a_language_model_takes_three_bytes():
    """17 bits of class and 6 of count: 12 classes take 36 bytes and 4 of ends."""
    codec = Sampled(50)
    assert codec.parts((131_072,))["entries"] == (np.dtype(np.uint8), (3,))
    assert 12 * 3 + 4 <= 40
    assert Sampled(127).parts((131_072,))["entries"][1] == (3,)
    assert Sampled(128).parts((131_072,))["entries"][1] == (4,)
    logits = np.full((1, 131_072), -50.0)
    logits[0, 131_071] = 0.0
    packed = codec.encode(logits, RowIds(np.arange(1), 0, "logits"))["entries"]
    assert packed.values.tolist() == [list((131_071 + (50 << 17)).to_bytes(3, "little"))]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-80, 80, width=32)),
    st.integers(1, 300),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40 - 5),
)
def test_any_rows_give_counts_that_add_up_and_come_back(rows, draws, temperature, seed, first):
    codec = Sampled(draws, temperature, seed)
    ids = RowIds(np.arange(first, first + len(rows), dtype=np.uint64), 1, "logits")
    parts = codec.encode(rows, ids)
    decoded = codec.decode(parts, rows.shape[1:])
    counts = np.rint(decoded.probabilities() * draws)
    assert (counts.sum(axis=1) == draws).all()
    assert (softmax(rows.astype(np.float64) / temperature, axis=1)[counts > 0] > 0).all()
    for low, high in itertools.pairwise(decoded.classes.offsets):
        assert (np.diff(decoded.classes.values[low:high]) > 0).all()


def entry(number, count, bits=3, width=1):
    return list((number | count << bits).to_bytes(width, "little"))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry(0, 4), entry(1, 6)], None),
        ([entry(0, 4), entry(1, 5)], "its counts do not add up to 10"),
        ([entry(0, 4), entry(0, 6)], "in rising order"),
        ([entry(1, 4), entry(0, 6)], "in rising order"),
        ([entry(6, 10)], "no class below 6"),
        ([entry(0, 10), entry(1, 0)], "with a count"),
        ([], "its counts do not add up to 10"),
    ],
)
def test_entries_that_no_codec_writes(entries, reason):
    good = [entry(2, 10)]
    values = np.array(good + entries + good, dtype=np.uint8).reshape(-1, 1)
    parts = {"entries": RaggedArray(values, np.array([0, 1, 1 + len(entries), 2 + len(entries)]))}
    if reason is None:
        assert Sampled(10).decode(parts, (6,)).counts.values.tolist() == [10, 4, 6, 10]
        return
    with pytest.raises(UnreadableRowError, match=reason) as caught:
        Sampled(10).decode(parts, (6,))
    assert caught.value.row == 1


@pytest.mark.parametrize("part", ["logits/entries", "probe/classes", "kept/indices"])
def test_a_hostile_record_is_refused_with_its_sample_and_view(tmp_path, part):
    codecs = {"logits": Sampled(10), "probe": Argmax(), "kept": TopK(2)}
    fields = {name: FieldPlan((6,), codec) for name, codec in codecs.items()}
    with BookWriter(tmp_path / "b", Plan(20, 2, fields, temperatures=())) as writer:
        for unit in writer.pending():
            writer.write(unit, {name: np.zeros((20, 6)) for name in fields})
        book = writer.finish()
    path = next((tmp_path / "b" / "view-0001").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    begin = _container.header_end(bytes(data[:8]), len(data), "shard")
    span = _container.parse_header(bytes(data[8:begin]), begin, len(data), "shard")[part]
    data[span.stop - 1] = 255
    path.write_bytes(data)
    with pytest.raises(BookFormatError, match=r"of codec (sampled|argmax|top_k) \(sample 19, view 1, .*verify"):
        Book(book.path, verify="never").read([3, 19], [1, 1], [part.split("/")[0]])
    with pytest.raises(BookFormatError, match=r"\(sample 19, view 1,"):
        Book(book.path, verify="never").read([3, 19], 1, [part.split("/")[0]])


def test_draws_need_to_know_which_records_they_are():
    with pytest.raises(ConfigError, match="`ids` to be the ids of the 2 rows, which its draws come from, got None"):
        Sampled().encode(np.zeros((2, 3)))
    with pytest.raises(ConfigError, match=r"the 2 rows.* got 1"):
        Sampled().encode(np.zeros((2, 3)), RowIds(np.arange(1), 0, "logits"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Sampled(0), ConfigError, "`draws` to be a whole number of at least 1"),
        (lambda: Sampled(4097), ConfigError, "`draws` to be at most 4096"),
        (lambda: Sampled(temperature=0.0), ConfigError, "`temperature` to be a number above 0"),
        (lambda: Sampled(seed=2**64), ConfigError, r"`seed` to be at most 2\*\*64 - 1"),
        (lambda: FieldPlan((3, 3), Sampled()), ConfigError, r"\(n_classes,\) for codec sampled"),
        (lambda: FieldPlan((3, 3), Argmax()), ConfigError, r"\(n_classes,\) for codec argmax"),
        (lambda: FieldPlan((3,), Pooled()), ConfigError, "channels and spatial axes for codec pooled"),
        (lambda: FieldPlan((3, 4, 4), Pooled((2,))), ConfigError, r"one divisor for each spatial axis of \[4, 4\]"),
        (lambda: FieldPlan((3, 4, 4), Pooled((2, 3))), ConfigError, r"one divisor for each spatial axis of \[4, 4\]"),
        (lambda: Pooled((0,)), ConfigError, "`grid` to be a whole number of at least 1"),
        (lambda: Sampled(temperature=2.0).check_temperature(1.0), FidelityError, r"promises \(2\), got 1"),
        (lambda: Argmax().check_temperature(1.0), FidelityError, "keeps the likeliest class and no distribution"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_average_that_leaves_float16_is_refused():
    with pytest.raises(TeacherOutputError, match="Row 1 cannot be encoded"):
        Pooled().encode(np.stack([np.zeros((1, 2, 2)), np.full((1, 2, 2), 1e6)]))


def test_draws_are_the_teachers_own_and_independent_of_those_of_another(tmp_path):
    """Alone in a book or as a member beside another; two teachers who say the same draw apart."""
    logits = np.zeros((3000, 2))
    one, two = TeacherInfo("one", "aa"), TeacherInfo("two", "bb")

    def drawn(name, teachers):
        fields = {field: FieldPlan((2,), Sampled(64)) for field in name}
        with BookWriter(
            tmp_path / "-".join(each.digest for each in teachers), Plan(3000, 1, fields, teachers=teachers)
        ) as w:
            w.write_rows(0, 0, dict.fromkeys(fields, logits))
            found = w.finish().read(np.arange(3000), 0)
        return [found[field].probabilities()[:, 0] for field in name]

    (alone,) = drawn(["logits"], (one,))
    first, second = drawn(["members/0/logits", "members/1/logits"], (two, one))
    np.testing.assert_array_equal(alone, second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(3000)
