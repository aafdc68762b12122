"""Golden books stay readable and the same input still gives the same content."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from bookkd.book import Book, ClassArray, SampledArray, SparseArray, verify

GOLDEN = Path(__file__).parent / "golden"
CONTENT = {
    "v1-dense": "1e3e1d15917015dacb2f8898c0c11ef2",
    "v1-int8": "220d7bb2e934233c625c23d2e7ba1f8c",
    "v1-top-k": "5fd983ce4bde75bb16d49f4dc4dd8829",
    "v1-sampled": "af12cb73d6e54a5cbbe90ac439679d61",
    "v1-argmax": "e24b1326e19d50ef6db0e6af3fc26d2b",
    "v1-pooled": "50638577c29877dece7d88ee6dd5d3fb",
}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CONTENT)
def test_golden_books_are_whole_and_say_what_they_said(name):
    assert verify(GOLDEN / name) == []
    book = Book(GOLDEN / name, verify="all")
    assert book.content_digest == CONTENT[name]
    assert (book.n_samples, book.n_views, book.edition, book.cost) == (5, 2, 1, {"seconds": 0.25})
    assert book.plan.teachers[0].digest == "00112233"
    np.testing.assert_array_equal(book.keys, np.array([100, 7, 2**63, 3, 55], dtype=np.uint64))
    np.testing.assert_array_equal(book.rows_of(np.array([2**63, 55], dtype=np.uint64)), [2, 4])
    hashes = book.read([4, 0, 4], [0, 1, 1], ["probe/hash"])["probe/hash"]
    np.testing.assert_array_equal(hashes, np.array([2**64 - 1, 5, 2**63], dtype=np.uint64))


def test_dense():
    found = Book(GOLDEN / "v1-dense").read([4, 1, 2], [1, 0, 1])["logits"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, [[8.0, 0.0, 1.0, 4.0], [7.0, -7.0, 0.125, 0.25], [1.5, 2.5, 2.0, -1.5]])


def test_int8():
    book = Book(GOLDEN / "v1-int8")
    parts = book.gather([4, 1], [1, 0], ["logits"])
    np.testing.assert_array_equal(parts["logits/codes"], [[255, 1, 33, 128], [255, 1, 130, 132]])
    np.testing.assert_array_equal(parts["logits/scale"], np.float16([0.031524658203125, 0.055145263671875]))
    np.testing.assert_array_equal(parts["logits/minimum"], [0.0, -7.0])
    found = book.read([4], [1])["logits"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[8.00726318, 0.0, 1.00878906, 4.00363159]], rtol=1e-7)


def test_top_k():
    found = Book(GOLDEN / "v1-top-k").read([4, 1], [1, 0])["logits"]
    assert isinstance(found, SparseArray)
    assert (found.temperatures, found.n_classes) == ((1.0, 4.0), 4)
    np.testing.assert_array_equal(found.values, np.float16([[0.0, -4.0], [0.0, -6.75]]))
    np.testing.assert_array_equal(found.indices, [[0, 3], [0, 3]])
    log_tail = [[-6.706112384796143, -1.6910603046417236], [-6.876398086547852, -1.8956048488616943]]
    np.testing.assert_allclose(found.log_tail_mass, log_tail, rtol=1e-6)
    # By hand, logits 8, 0, 1, 4 at T = 1: the two left out have (1 + e) / (e^8 + 1 + e + e^4).
    assert np.exp(found.log_tail_mass[0, 0]) == pytest.approx((1 + np.e) / (np.e**8 + 1 + np.e + np.e**4), rel=1e-6)


def test_sampled():
    book = Book(GOLDEN / "v1-sampled")
    entries = book.gather([4, 1, 2], [1, 0, 1], ["logits"])["logits/entries"]
    # Two bits of class below the count: 6 draws of class 0 are 6 * 4 + 0.
    np.testing.assert_array_equal(entries.values[:, 0], [24, 15, 24, 14, 8, 21, 10])
    np.testing.assert_array_equal(entries.offsets, [0, 2, 4, 7])
    found = book.read([4, 1, 2], [1, 0, 1])["logits"]
    assert isinstance(found, SampledArray)
    assert (found.draws, found.temperature, found.n_classes) == (9, 2.0, 4)
    counts = found.probabilities() * 9
    np.testing.assert_allclose(counts, [[6, 0, 0, 3], [6, 0, 3, 0], [2, 5, 2, 0]], rtol=1e-12)


def test_argmax():
    found = Book(GOLDEN / "v1-argmax").read([4, 1, 2], [1, 0, 1])["logits"]
    assert isinstance(found, ClassArray)
    np.testing.assert_array_equal(found.classes, [0, 0, 1])
    assert (found.classes.dtype, found.n_classes) == (np.uint8, 4)


def test_pooled():
    """Two cells of two numbers: (8 + 0) / 2 and (1 + 4) / 2 for the first record."""
    found = Book(GOLDEN / "v1-pooled").read([4, 1, 2], [1, 0, 1])["features/map"]
    assert (found.dtype, found.shape) == (np.float16, (3, 1, 1, 2))
    np.testing.assert_array_equal(found.reshape(3, 2), [[4.0, 2.5], [0.0, 0.1875], [2.0, 0.25]])


POSITIONS = "b13834389cc3011588532a6487cd72a2"


def test_positions():
    assert verify(GOLDEN / "v1-positions") == []
    book = Book(GOLDEN / "v1-positions", verify="all")
    assert (book.content_digest, book.n_samples, book.n_views) == (POSITIONS, 5, 2)
    np.testing.assert_array_equal(book.read(np.arange(5), 0)["input/tokens"].counts, [2, 0, 3, 1, 2])
    found = book.read([4, 1, 2], [1, 0, 1])
    np.testing.assert_array_equal(found["input/tokens"].values, [40, 41, 20, 21, 22])
    np.testing.assert_array_equal(found["members/0/logits"].offsets, [0, 2, 2, 5])
    # The first position of a sequence draws what a record without positions draws: these are rows of `v1-sampled`.
    counts = found["members/0/logits"].values.probabilities() * 9
    wanted = [[6, 0, 0, 3], [0, 2, 0, 7], [2, 5, 2, 0], [1, 1, 2, 5], [8, 0, 0, 1]]
    np.testing.assert_allclose(counts, wanted, rtol=1e-12)
    # The second teacher says the contrary, -8, 0, -1, -4 first.
    kept = found["members/1/logits"].values
    np.testing.assert_array_equal(kept.indices, [[1, 2], [2, 0], [3, 0], [0, 2], [1, 2]])
    np.testing.assert_array_equal(kept.values, np.float16([[0, -1], [0, -3], [0, -3], [0, -1], [0, -1]]))


def test_the_same_sequences_give_the_same_content_today(maker, tmp_path):
    assert maker.write_positions(tmp_path / "b").content_digest == POSITIONS
    for path in sorted((GOLDEN / "v1-positions").glob("view-*/*.safetensors")):
        assert (tmp_path / "b" / path.relative_to(GOLDEN / "v1-positions")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", CONTENT)
def test_the_same_input_gives_the_same_content_today(maker, tmp_path, name):
    book = maker.write(name, tmp_path / name)
    assert book.content_digest == CONTENT[name]
    golden = sorted(path.relative_to(GOLDEN / name) for path in (GOLDEN / name).glob("view-*/*.safetensors"))
    for path in golden:
        assert (tmp_path / name / path).read_bytes() == (GOLDEN / name / path).read_bytes()


def test_a_golden_book_is_finished_for_a_writer_of_the_same_plan(maker, tmp_path):
    shutil.copytree(GOLDEN / "v1-dense", tmp_path / "b")
    assert maker.write("v1-dense", tmp_path / "b").content_digest == CONTENT["v1-dense"]


CONSTANTS = "0395ecf3c1aaa70358efda1f70461932"


def test_constants(maker, tmp_path):
    path = GOLDEN / "v1-constants"
    assert verify(path) == []
    book = Book(path, verify="all")
    assert book.content_digest == CONSTANTS
    assert list(book.constants) == ["classes/mean", "members/0/classifier/weight", "order"]
    np.testing.assert_array_equal(
        book.constants["classes/mean"], np.float32([[0.5, -1], [2, 0.25], [0, 8], [-4, 1.5]]), strict=True
    )
    weight = np.float16([[1, -2, 0.5], [3, 4, -0.25]])
    np.testing.assert_array_equal(book.constants["members/0/classifier/weight"], weight, strict=True)
    np.testing.assert_array_equal(book.constants["order"], np.array([3, 0, 2**63, 1], dtype=np.uint64), strict=True)
    for part, array in Book(GOLDEN / "v1-dense").gather(np.arange(5), 1).items():
        np.testing.assert_array_equal(book.gather(np.arange(5), 1)[part], array)
    assert maker.write_constants(tmp_path / "b").content_digest == CONSTANTS
    for file in path.rglob("*.safetensors"):
        assert (tmp_path / "b" / file.relative_to(path)).read_bytes() == file.read_bytes()


GROWN = {
    1: ("2006f9947fbe3d8a40c2cc3e7fc40c00", 3, 1, 2),
    2: ("ae9490059eba4b369134efbf5103f73d", 5, 2, 6),
    3: ("ae9490059eba4b369134efbf5103f73d", 5, 2, 2),
}
"""Edition -> content digest, samples, views, shards: made, grown by samples and views, compacted."""


@pytest.mark.parametrize("edition", GROWN)
def test_every_edition_of_a_grown_book(edition):
    path = GOLDEN / "v1-grown"
    assert verify(path, edition) == []
    book = Book(path, edition, verify="all")
    shards = sum(len(file.stems) for file in book._files)
    assert (book.content_digest, book.n_samples, book.n_views, shards) == GROWN[edition]
    np.testing.assert_array_equal(book.keys, np.array([100, 7, 2**63, 3, 55], dtype=np.uint64)[: book.n_samples])
    if edition == 1:
        return
    assert (book._edition.plan_file, book._edition.keys_file) == ("plan-000002.json", "keys-000002.safetensors")
    found = book.read([4, 1, 2], [1, 0, 1])
    # A teacher of several draws what it draws alone: these are the counts of `v1-sampled`.
    counts = found["members/0/logits"].probabilities() * 9
    np.testing.assert_allclose(counts, [[6, 0, 0, 3], [6, 0, 3, 0], [2, 5, 2, 0]], rtol=1e-12)
    # The second teacher says the contrary: -8, 0, -1, -4 and -7, 7, -0.125, -0.25.
    np.testing.assert_array_equal(found["members/1/logits"].values[:2], np.float16([[0.0, -1.0], [0.0, -7.125]]))
    np.testing.assert_array_equal(found["members/1/logits"].indices[:2], [[1, 2], [1, 2]])
    np.testing.assert_array_equal(found["probe/hash"], np.array([2**63, 2, 7], dtype=np.uint64))


def test_a_grown_book_comes_out_the_same_today(maker, tmp_path):
    assert maker.write_grown(tmp_path / "b").content_digest == GROWN[3][0]
    golden = [path.relative_to(GOLDEN / "v1-grown") for path in (GOLDEN / "v1-grown").rglob("*.safetensors")]
    assert len(golden) == 11
    for path in golden:
        assert (tmp_path / "b" / path).read_bytes() == (GOLDEN / "v1-grown" / path).read_bytes()
