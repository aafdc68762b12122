"""Reading: alignment, any mixture of views, any process; and every way in which a file can be wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.book.books import C, N, V, arrays, make, plan

from bookkd.book import (
    Book,
    BookWriter,
    Dense,
    FieldPlan,
    Int8,
    Plan,
    SparseArray,
    TopK,
    _container,
    _layout,
    _manifest,
    is_finished,
    verify,
)
from bookkd.core import jsonio
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookKDError,
    BookMismatchError,
    BookMissingError,
    BookUnfinishedError,
    BookVersionError,
    ConfigError,
    DataError,
    UnknownNameError,
)

KEYS = np.arange(N, dtype=np.uint64)[::-1] * 7
EVERYTHING = {view: arrays(view, 0, N) for view in range(V)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "b"
    make(path, keys=KEYS)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "b")
    return tmp_path / "b"


def truth(field, samples, views):
    return np.stack([EVERYTHING[view][field][sample] for sample, view in zip(samples, views, strict=True)])


pairs = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, V - 1)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs, st.sampled_from(["touched", "never"]), st.integers(1, 3))
def test_a_batch_is_what_the_teacher_said_about_each_pair(whole, batch, verify, max_open):
    samples, views = map(list, zip(*batch, strict=True))
    book = Book(whole, verify=verify, max_open=max_open)
    found = book.read(samples, views)
    np.testing.assert_array_equal(found["logits"], truth("logits", samples, views).astype(np.float16))
    np.testing.assert_array_equal(found["probe/hash"], truth("probe/hash", samples, views))
    np.testing.assert_allclose(found["features/layer1"], truth("features/layer1", samples, views), atol=2.1 / 254 / 2)
    sparse = found["members/0/logits"]
    assert isinstance(sparse, SparseArray)
    np.testing.assert_array_equal(sparse.indices[:, 0], truth("members/0/logits", samples, views).argmax(axis=1))
    assert len(book._shards) <= max_open


def test_what_a_book_says_of_itself(whole):
    book = Book(whole)
    assert (book.n_samples, book.n_views, book.edition) == (N, V, 1)
    assert book.plan == plan(keys_digest=book.plan.keys_digest)
    assert set(book.fields) == set(plan().fields)
    assert book.cost == {"seconds": 1.5}
    assert book.nbytes == sum(file.stat().st_size for file in whole.glob("view-*/*.safetensors"))
    assert book.bytes_per_record == book.nbytes / (N * V)
    assert book.fidelity["logits"]["temperatures"]["1"]["mean"] < 1e-5
    assert "n_samples=150" in repr(book)
    assert len(book.content_digest) == 32


def test_gather_gives_the_stored_parts(whole):
    found = Book(whole).gather([3, 100], [0, 2], ["members/0/logits"])
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "members/0/logits/values": ("float16", (2, 3)),
        "members/0/logits/indices": ("uint16", (2, 3)),
        "members/0/logits/log_tail_mass": ("float32", (2, 2)),
    }


def test_one_view_for_all_and_empty_batches(whole):
    book = Book(whole)
    np.testing.assert_array_equal(book.read([1, 2], 1, "logits")["logits"], book.read([1, 2], [1, 1])["logits"])
    assert book.read([], [])["logits"].shape == (0, C)


@pytest.mark.parametrize(
    ("samples", "views", "fields", "error", "message"),
    [
        ([N], [0], None, DataError, "`samples` to be from 0 to 149, got 150"),
        ([-1], [0], None, DataError, "`samples` to be from 0 to 149, got -1"),
        ([0], [3], None, DataError, "`views` to be from 0 to 2, got 3"),
        ([0.5], [0], None, DataError, "`samples` to be whole numbers in one row"),
        ([[0]], [0], None, DataError, "`samples` to be whole numbers in one row"),
        ([0, 1, 2], [0, 1], None, DataError, "one for each of the 3 samples"),
        (np.array([2**64 - 1], dtype=np.uint64), [0], None, DataError, "from 0 to 149"),
        ([0], [0], ["logit"], UnknownNameError, "Unknown field 'logit' .*Nearest: logits"),
    ],
)
def test_asking_for_what_is_not_there(whole, samples, views, fields, error, message):
    with pytest.raises(error, match=message):
        Book(whole).read(samples, views, fields)


def test_keys(whole):
    book = Book(whole)
    np.testing.assert_array_equal(book.rows_of(KEYS[[5, 0, 149]]), [5, 0, 149])
    assert book.rows_of(np.array([], dtype=np.uint64)).shape == (0,)
    with pytest.raises(DataError, match="unknown key 3"):
        book.rows_of([7, 3])
    with pytest.raises(DataError, match="unknown key 9999"):
        book.rows_of([9999])
    with pytest.raises(DataError, match="whole numbers from 0"):
        book.rows_of([-7])


def test_no_keys(tmp_path):
    book = make(tmp_path / "b")
    assert book.keys is None
    with pytest.raises(DataError, match="to have sample keys, got none"):
        book.rows_of([1])


def _share(path_or_book, pipe):
    book = path_or_book if isinstance(path_or_book, Book) else Book(path_or_book)
    samples = np.arange(0, N, 7)
    pipe.send(book.read(samples, samples % V)["probe/hash"].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readers_in_other_processes_after_use(whole, method):
    book = Book(whole, max_open=2)
    samples = np.arange(0, N, 7)
    expected = book.read(samples, samples % V)["probe/hash"].sum()
    context = multiprocessing.get_context(method)
    for given_book in (book, str(whole)):
        here, there = context.Pipe()
        process = context.Process(target=_share, args=(given_book, there))
        process.start()
        assert here.recv() == expected
        process.join()
        assert process.exitcode == 0
    assert book.read(samples, samples % V)["probe/hash"].sum() == expected


def test_pickle_refuses_another_book_at_the_path(copy):
    data = pickle.dumps(Book(copy))
    assert pickle.loads(data).content_digest == Book(copy).content_digest
    shutil.rmtree(copy)
    make(copy)
    with pytest.raises(BookMismatchError, match="to be the book that was pickled"):
        pickle.loads(data)


def mapped(folder):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list its mappings")
    return [line for line in maps.read_text().splitlines() if str(folder) in line]


def test_a_closed_book_holds_no_file_and_reads_again(whole):
    book = Book(whole)
    before = book.read([0, 1], [0, 1])["probe/hash"]
    assert mapped(whole)
    book.close()
    assert not mapped(whole)
    np.testing.assert_array_equal(book.read([0, 1], [0, 1])["probe/hash"], before)


def test_a_folder_is_a_finished_book_from_its_edition_on(tmp_path):
    assert not is_finished(tmp_path / "none")
    assert not is_finished(tmp_path)
    make(tmp_path / "book")
    assert is_finished(str(tmp_path / "book"))
    (tmp_path / "book" / _layout.edition_name(1)).unlink()
    assert not is_finished(tmp_path / "book")


def test_threads_may_unmap_under_each_other(whole):
    book = Book(whole, max_open=1)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            samples, views = rng.integers(0, N, 16), rng.integers(0, V, 16)
            if not (book.read(samples, views)["probe/hash"] == truth("probe/hash", samples, views)).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What is there, and what is not.


def test_no_book(tmp_path):
    with pytest.raises(BookMissingError, match=r"plan.json and edition-000001.json\), got no folder"):
        Book(tmp_path / "none")
    with pytest.raises(BookMissingError, match="got an empty folder"):
        Book(tmp_path)
    (tmp_path / "model.pt").touch()
    with pytest.raises(BookMissingError, match=r"a folder with model\.pt"):
        Book(tmp_path)
    with pytest.raises(BookMissingError, match="got no folder"):
        Book(tmp_path / "model.pt")
    with pytest.raises(BookMissingError, match=r"a folder with model\.pt"):
        verify(tmp_path)


def test_unknown_edition_and_options(whole):
    with pytest.raises(BookMissingError, match="to have edition 2, got editions 1"):
        Book(whole, 2)
    with pytest.raises(UnknownNameError, match="Unknown verify 'always'"):
        Book(whole, verify="always")
    with pytest.raises(ConfigError, match="`max_open`"):
        Book(whole, max_open=0)


def test_unfinished(copy):
    (copy / "edition-000001.json").unlink()
    with pytest.raises(BookUnfinishedError):
        Book(copy)
    assert "without an edition" in str(verify(copy)[0])


def resign(path, change):
    """Change an edition the way an author could: with a digest that fits."""
    found = json.loads(path.read_bytes())
    change(found)
    found.pop("digest")
    path.write_bytes(jsonio.pretty({**found, "digest": jsonio.digest(found)}))


@pytest.mark.parametrize("name", ["plan.json", "edition-000001.json"])
def test_a_newer_version_is_refused_before_anything_else(copy, name):
    (copy / name).write_text('{"format_version": 2, "else": [null]}')
    with pytest.raises(BookVersionError, match=r"version 1 at most, got 2 .*upgrade bookkd"):
        Book(copy)
    assert verify(copy)[0].path == name


def test_an_unknown_codec(copy):
    text = (copy / "plan.json").read_text().replace('"dense"', '"later"')
    (copy / "plan.json").write_text(text)
    with pytest.raises(UnknownNameError, match="Unknown codec 'later'"):
        Book(copy)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e: e["views"].pop(), BookFormatError, "`views` to be 3 entries, got 2"),
        (lambda e: e.update(edition=2), BookFormatError, "`edition` to be 1, got 2|`edition` to be '?1"),
        (lambda e: e.update(content_digest="0" * 32), BookFormatError, "`content_digest`"),
        (
            lambda e: e["plan"].update(xxh3_128="0" * 32),
            BookCorruptError,
            r"plan.json to have \d+ bytes with xxh3_128 0000",
        ),
        (lambda e: e["views"][0].update(file="../../x.json"), BookFormatError, "`file` to be a text like"),
        (lambda e: e["views"][0].update(xxh3_128="0" * 32), BookCorruptError, "with xxh3_128 0000"),
        (lambda e: e.update(n_samples=151), BookFormatError, "cover 0 to 151 in order"),
        (lambda e: e.update(n_samples=True), BookFormatError, "`n_samples` to be a whole number"),
        (lambda e: e.update(n_views=2**17), BookFormatError, "`n_views`"),
    ],
)
def test_a_wrong_edition(copy, change, error, message):
    resign(copy / "edition-000001.json", change)
    with pytest.raises(error, match=message):
        Book(copy)
    assert verify(copy)


def test_a_changed_edition_or_plan_is_found_by_its_digest(copy):
    edition = copy / "edition-000001.json"
    good = edition.read_bytes()
    edition.write_bytes(good.replace(b"1.5", b"1.4"))
    with pytest.raises(BookCorruptError, match="was changed after it was written"):
        Book(copy)
    edition.write_bytes(good)
    plan_file = copy / "plan.json"
    plan_file.write_bytes(plan_file.read_bytes() + b" ")
    with pytest.raises(BookCorruptError, match=r"plan\.json to have \d+ bytes with xxh3_128"):
        Book(copy)


def find(root, start, suffix=""):
    return next(
        path
        for path in sorted(root.rglob("*"))
        if str(path.relative_to(root)).startswith(start) and path.name.endswith(suffix)
    )


def use(root):
    """Touch everything."""
    book = Book(root)
    samples = np.tile(np.arange(N), V)
    book.read(samples, np.repeat(np.arange(V), N))
    return book.keys


FILES = [(start, suffix) for start, suffix in [
    ("plan.json", ""), ("edition-", ""), ("keys", ""), ("view-0000/view-", ""), ("view-0001/rows-000000064", ".json"), ("view-0001/rows-000000064", ".safetensors"),
]]  # fmt: skip


SAID = {
    "delete": (BookMissingError, "to be a file of the book, got nothing there"),
    "empty": (BookFormatError, r"Expected \d+ bytes, got 0|to have|to be valid JSON"),
    "cut": (BookFormatError, r"Expected \d+ bytes, got|to have|to be valid JSON"),
    "folder": (BookFormatError, "to be a regular file, got another kind of entry"),
    "pipe": (BookFormatError, "to be a regular file, got another kind of entry"),
    "link out": (BookFormatError, r"to lie inside the book, got a link to .*outside\. Copy the file into the book\."),
}
"""Harm -> the error and what it says."""


@pytest.mark.parametrize(("start", "suffix"), FILES)
@pytest.mark.parametrize("harm", ["delete", "empty", "cut", "folder", "pipe", "link out"])
def test_every_file_missing_cut_or_replaced(copy, tmp_path, start, suffix, harm):
    path = find(copy, start, suffix)
    data = path.read_bytes()
    path.unlink()
    if harm == "empty":
        path.touch()
    elif harm == "cut":
        path.write_bytes(data[: len(data) - 10])
    elif harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    elif harm == "link out":
        (tmp_path / "outside").write_bytes(data)
        path.symlink_to(tmp_path / "outside")
    kind, said = SAID[harm]
    if (harm, start) == ("delete", "edition-"):
        kind, said = BookUnfinishedError, "a plan without an edition"
    with pytest.raises(kind, match=said) as refused:
        use(copy)
    assert type(refused.value) in (BookMissingError, BookFormatError, BookCorruptError, BookUnfinishedError)
    assert str(refused.value).count("Expected") == 1
    faults = verify(copy)
    assert faults
    assert all("\n" not in str(fault) and str(fault).count("Expected") == 1 for fault in faults)
    assert re.search(said, str(faults[0]))
    assert faults[0].path == str(path.relative_to(copy))
    if suffix:
        assert (faults[0].view, faults[0].start, faults[0].stop) == (1, 64, 128)


def test_a_link_inside_the_book_is_followed(copy):
    path = find(copy, "view-0001/rows-000000064", ".safetensors")
    path.rename(copy / "moved")
    path.symlink_to("../moved")
    use(copy)
    assert verify(copy) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.integers(0, 2**30), st.integers(0, 7))
def test_a_flipped_bit_is_found_and_named(whole, tmp_path_factory, file, place, bit):
    path = find(whole, *file)
    good = path.read_bytes()
    place %= len(good)
    path.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
    try:
        faults = verify(whole)
        if file[0] == "edition-" and not faults:
            # An edition is digested by its values: a last digit that a double does not hold says the same.
            assert json.loads(path.read_bytes()) == json.loads(good)
            use(whole)
            return
        assert faults
        assert faults[0].path == str(path.relative_to(whole))
        if path.suffix != ".safetensors" or faults[0].block is not None or file[0] == "keys":
            with pytest.raises(BookKDError):
                use(whole)
    finally:
        path.write_bytes(good)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(64, 127), st.sampled_from(["logits/values", "probe/hash/values", "members/0/logits/indices"]))
def test_a_flipped_block_is_named_with_its_samples_and_only_its_rows_are_refused(whole, sample, part):
    path = find(whole, "view-0001/rows-000000064", ".safetensors")
    good = path.read_bytes()
    begin = _container.header_end(good[:8], len(good), "shard")
    span = _container.parse_header(good[8:begin], begin, len(good), "shard")[part]
    place = span.start + (sample - 64) * span.row_bytes
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    block = (sample - 64) // 16
    try:
        (fault,) = verify(whole)
        assert (fault.view, fault.start, fault.stop) == (1, 64 + 16 * block, 80 + 16 * block)
        assert (fault.part, fault.block) == (part, block)
        assert f"view 1, samples {fault.start} to {fault.stop}, {part}, block {block}" in str(fault)
        book = Book(whole)
        with pytest.raises(
            BookCorruptError, match=f"block {block} of {part} in .* \\(view 1, samples {fault.start} to"
        ):
            book.read([sample], [1])
        with pytest.raises(BookCorruptError):  # also the second time
            book.read([sample], [1])
        book.read([(sample - 64 + 16) % 64 + 64], [1])
        Book(whole, verify="never").gather([sample], [1])
        with pytest.raises(BookCorruptError, match="to be whole, got 1 faults, first: view-0001"):
            Book(whole, verify="all")
    finally:
        path.write_bytes(good)


def test_verify_reads_everything_and_tells_how_far_it_is(whole):
    told = []
    assert verify(whole, progress=lambda done, total: told.append((done, total))) == []
    assert told[-1] == (Book(whole).nbytes,) * 2
    assert sorted(told) == told
    Book(whole, verify="all")


def rechain(root, view, shard_change=lambda data: data, sidecar_change=()):
    """Replace a shard or its sidecar and renew every digest above, as an attacker who may write the book would."""
    view_path = find(root, f"view-{view:04d}/view-")
    found = json.loads(view_path.read_bytes())
    stem = view_path.parent / found["shards"][0]
    data = shard_change(stem.with_suffix(".safetensors").read_bytes())
    stem.with_suffix(".safetensors").write_bytes(data)
    sidecar = json.loads(stem.with_suffix(".json").read_bytes())
    sidecar.update({"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}, **dict(sidecar_change))
    packed = jsonio.pretty(sidecar)
    stem.with_suffix(".json").write_bytes(packed)
    found["bytes"][0], found["sidecar_bytes"][0] = len(data), len(packed)
    found["sidecar_xxh3_128"][0] = xxhash.xxh3_128_hexdigest(packed)
    packed = jsonio.pretty(found)
    view_path.write_bytes(packed)
    entry = {"bytes": len(packed), "xxh3_128": xxhash.xxh3_128_hexdigest(packed)}
    resign(root / "edition-000001.json", lambda edition: edition["views"][view].update(entry))


def with_header(change):
    def apply(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        changed = change(header)
        text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return apply


def move(name, **entries):
    return with_header(lambda header: header[name].update(entries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (2**63).to_bytes(8, "little") + data[8:], "a header of at most 4194304 bytes"),
        (lambda data: (2**21).to_bytes(8, "little") + data[8:], "The file is cut"),
        (lambda data: data[:5], "to start with a header, got 5 bytes"),
        (lambda data: data + b"tail", "its tensors to end at byte"),
        (with_header(lambda header: b"[1]"), "to hold a JSON object"),
        (with_header(lambda header: b'{"a": {}, "a": {}}'), "a key stands twice"),
        (with_header(lambda header: b"[" * 5000), "valid JSON|nest"),
        (move("logits/values", dtype="F8_E4M3"), "a known dtype"),
        (move("logits/values", dtype=["F16"]), "a known dtype"),
        (move("logits/values", dtype="U16"), "logits/values to be float16"),
        (move("logits/values", shape=[64, 3, 2]), "logits/values to be float16"),
        (move("logits/values", shape=[2**61, 2**61]), "as many bytes as its shape"),
        (move("logits/values", shape=[-64, -6]), "whole-number shape"),
        (move("logits/values", shape=[0, 6], data_offsets=[0, 0]), "no empty axis"),
        (move("logits/values", shape=[64.0, 6]), "whole-number shape"),
        (move("logits/values", shape=[]), "whole-number shape"),
        (move("logits/values", data_offsets=[0, 768]), "an overlap or a hole"),
        (move("logits/values", data_offsets=[768, 0]), "as many bytes as its shape"),
        (move("logits/values", data_offsets=[2**61, 2**61 + 768]), "an overlap or a hole"),
        (move("logits/values", extra=1), "to have dtype, shape and data_offsets"),
        (
            with_header(lambda header: header.update(other=header.pop("logits/values"))),
            "a difference in logits/values, other",
        ),
        (with_header(lambda header: header.update({"two\nlines": 5})), "tensor two lines to have dtype"),
        (with_header(lambda header: header.update({"logits/values": 5})), "to have dtype, shape and data_offsets"),
    ],
)
def test_a_hostile_shard_with_digests_that_fit(copy, change, message):
    rechain(copy, 0, change)
    for mode in ("touched", "never"):
        book = Book(copy, verify=mode)
        with pytest.raises(BookFormatError, match=message) as caught:
            book.read([0], [0])
        assert "\n" not in str(caught.value)
    assert any(fault.path.endswith(".safetensors") for fault in verify(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [0, 64, 100]}, "cover 0 to 150 in order"),
        ({"stop": [64, 128, 2**80]}, "whole numbers from 0"),
        ({"start": [0, 64]}, "columns of one length"),
        ({"start": []}, "columns of one length"),
        ({"start": [0, 64.0, 128]}, "whole numbers"),
        ({"shards": ["../plan", "b", "c"]}, "a list of texts like rows-"),
        ({"shards": ["rows-000000000-000000064"] * 3}, "without repeats"),
        ({"view": 1}, "`view` to be"),
        ({"sidecar_xxh3_128": ["0" * 31] * 3}, "a list of texts like"),
        ({"format_version": "1"}, "`format_version` to be a whole number"),
        ({"bytes": None}, "`bytes` to be a list"),
    ],
)
def test_a_hostile_view_file_with_digests_that_fit(copy, change, message):
    path = find(copy, "view-0000/view-")
    packed = jsonio.pretty({**json.loads(path.read_bytes()), **change})
    path.write_bytes(packed)
    entry = {"bytes": len(packed), "xxh3_128": xxhash.xxh3_128_hexdigest(packed)}
    resign(copy / "edition-000001.json", lambda edition: edition["views"][0].update(entry))
    with pytest.raises(BookFormatError, match=message):
        Book(copy)
    assert verify(copy)[0].path == str(path.relative_to(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_rows": 3}, "a power of two, got 3"),
        ({"block_rows": 8}, "`blocks` to be 8 hashes"),
        ({"blocks": {}}, "hashes of the planned tensors"),
        ({"blocks": {"logits/values": ["x"] * 4}}, "a list of texts like"),
        ({"stop": 0}, "`stop` to be a whole number"),
        ({"start": 1}, "`view, start, stop, bytes`|hashes"),
        ({"fidelity": []}, "`fidelity` to be an object"),
    ],
)
def test_a_hostile_sidecar_with_digests_that_fit(copy, change, message):
    rechain(copy, 0, sidecar_change=change)
    assert verify(copy)
    book = Book(copy)
    with pytest.raises(BookFormatError, match=message):
        book.read([0], [0])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.data())
def test_any_bytes_in_place_of_any_file_give_an_error_of_ours(whole, file, data):
    path = find(whole, *file)
    good = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans()):
        found = json.loads(good)
        key = data.draw(st.sampled_from(sorted(found)))
        found[key] = data.draw(json_values)
        if "digest" in found and key != "digest":
            found.pop("digest")
            try:
                found["digest"] = jsonio.digest(found)
            except ValueError:
                found["digest"] = "0" * 32
        bad = json.dumps(found).encode()
    else:
        length = data.draw(st.integers(0, 2**23))
        bad = data.draw(st.sampled_from([b"", length.to_bytes(8, "little"), good[:30]])) + data.draw(
            st.binary(max_size=200)
        )
    path.write_bytes(bad)
    try:
        try:
            use(whole)
            message = ""
        except BookKDError as error:
            message = str(error)
        assert "\n" not in message
        assert message or file[0] == "edition-"  # cost and fidelity are only told
        assert isinstance(verify(whole), list)
    finally:
        path.write_bytes(good)


def test_number_beyond_every_range_in_a_plan(copy):
    text = (copy / "plan.json").read_text().replace('"seed": 7', '"seed": 1e999')
    (copy / "plan.json").write_text(text)
    with pytest.raises(BookFormatError, match=r"plan\.json to be valid JSON, got: 1e999 is too large for a number"):
        Book(copy)


def test_opening_does_not_depend_on_the_number_of_records(tmp_path):
    """10^9 records in 10^4 shards: only plan, edition and view files are read."""
    shards, rows, views = 1000, 100_000, 10
    the_plan = Plan(shards * rows, views, {"logits": FieldPlan((10,), Dense())}, unit_rows=rows, block_rows=32)
    (tmp_path / "plan.json").write_bytes(jsonio.pretty(the_plan.to_json()))
    starts = np.arange(shards) * rows
    entries = []
    for view in range(views):
        stems = [_layout.shard_stem(start, start + rows) for start in starts.tolist()]
        sizes = np.full(shards, rows * 20 + 128)
        file = _manifest.ViewFile(
            view, stems, starts, starts + rows, sizes, np.full(shards, 9), [f"{view:032x}"] * shards
        )
        data = file.to_bytes()
        digest = xxhash.xxh3_128_hexdigest(data)
        (tmp_path / _layout.view_folder(view)).mkdir()
        (tmp_path / _layout.view_folder(view) / f"view-{digest[:8]}.json").write_bytes(data)
        entries.append(_manifest.ViewEntry(f"view-{digest[:8]}.json", len(data), digest, "0" * 32))
    written = (tmp_path / "plan.json").read_bytes()
    identity = jsonio.digest(the_plan.identity())
    edition = _manifest.Edition(
        1, the_plan.n_samples, tuple(entries), len(written), xxhash.xxh3_128_hexdigest(written), identity, {}, {}
    )
    (tmp_path / "edition-000001.json").write_bytes(edition.to_bytes())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        book = Book(tmp_path)
        times.append(time.perf_counter() - start)
    assert book.n_samples * book.n_views == 10**9
    assert min(times) < 0.5  # the goal is 0.1 s on an idle machine
    with pytest.raises(BookMissingError, match="rows-099900000-100000000"):
        book.read([10**8 - 1], [9])


@pytest.mark.parametrize("codec", [Dense(), Int8(), TopK(3)], ids=lambda codec: codec.name)
def test_merging_shards_keeps_the_content_digest(tmp_path, codec):
    fields = {"logits": FieldPlan((C,), codec)}
    many = make(tmp_path / "many", plan(fields=fields))
    few = make(tmp_path / "few", plan(fields=fields, unit_rows=N))
    assert [view.content for view in many._edition.views] == [view.content for view in few._edition.views]
    assert len(list(Path(few.path).rglob("*.safetensors"))) == V


def test_reading_needs_numpy_alone(whole):
    code = f"import sys, bookkd.book as b; b.Book({str(whole)!r}).read([0], [0]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_gather_is_near_the_speed_of_memory(tmp_path):
    """The goal is 0.4 of numpy's own indexing in RAM (measured 0.8); 0.2 here, since test machines are shared."""
    rows = np.random.default_rng(0).normal(size=(8192, 1024)).astype(np.float16)
    with BookWriter(tmp_path / "b", Plan(8192, 1, {"logits": FieldPlan((1024,), Dense())})) as writer:
        writer.write_rows(0, 0, {"logits": rows})
        book = writer.finish()
    book.read(np.arange(8192), 0)
    rng = np.random.default_rng(1)
    ram, disk = [], []
    for _ in range(100):
        samples = rng.integers(0, 8192, 256)
        start = time.perf_counter()
        expected = rows[samples]
        middle = time.perf_counter()
        found = book.read(samples, 0)["logits"]
        disk.append(time.perf_counter() - middle)
        ram.append(middle - start)
        np.testing.assert_array_equal(found, expected)
    assert np.median(ram) / np.median(disk) >= 0.2
