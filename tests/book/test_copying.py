"""Copies are the records to the bit or say what was lost; parts are what reading the whole and choosing gives."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from tests.book.books import C, N, V, arrays, make, plan
from tests.book.test_growing import assert_same, two_teachers

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Int8, TopK, compact, copy_book, extract, verify
from bookkd.core.errors import (
    BookMismatchError,
    ConfigError,
    DataError,
    FidelityError,
    TeacherOutputError,
    UnknownNameError,
)

ROWS = np.arange(N)


def dense(**changes):
    return plan(fields={name: plan().fields[name] for name in ("logits", "features/layer1", "probe/hash")}, **changes)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return make(tmp_path_factory.mktemp("copying") / "b", dense(), keys=np.arange(N, dtype=np.uint64) + 1000)


@pytest.fixture(scope="module")
def keyless(tmp_path_factory):
    return make(tmp_path_factory.mktemp("copying") / "b", dense())


def test_a_copy_is_the_same_book_in_one_edition(tmp_path, book):
    from shutil import copytree

    copytree(book.path, tmp_path / "source")
    compact(tmp_path / "source")
    found = copy_book(tmp_path / "b", Book(tmp_path / "source"))
    assert_same(found, book)
    assert (found.edition, found.cost, found.fidelity) == (1, book.cost, book.fidelity)
    np.testing.assert_array_equal(found.keys, book.keys)
    assert {path.name for path in (tmp_path / "b" / "view-0000").glob("rows*")} == {
        path.name for path in (book.path / "view-0000").glob("rows*")
    }


@pytest.mark.parametrize("codec", [Int8(), TopK(3, (1.0, 4.0)), Dense("float32")])
def test_another_codec_says_what_it_loses_of_the_records(tmp_path, book, codec):
    found = copy_book(tmp_path / "b", book, codec=codec)
    assert verify(found.path) == []
    assert found.fields["logits"].codec == codec
    rows = {
        name: (Book(found.path).gather(ROWS, 1, [name]), book.gather(ROWS, 1, [name])) for name in list(book.fields)[:1]
    }
    for mine, theirs in rows.values():  # what is no logits is copied to the bit, lossy codec or not
        for part, array in theirs.items():
            np.testing.assert_array_equal(mine[part], array)
    source = np.concatenate([book.read(ROWS, view, ["logits"])["logits"] for view in range(V)]).astype(np.float64)
    if not codec.sparse:
        copied = np.concatenate([found.read(ROWS, view, ["logits"])["logits"] for view in range(V)]).astype(np.float64)
        p, q = log_softmax(source / 4, axis=1), log_softmax(copied / 4, axis=1)
        lost = 16 * (np.exp(p) * (p - q)).sum(axis=1)
        measured = found.fidelity["logits"]["temperatures"]["4"]
        assert measured["mean"] == pytest.approx(np.maximum(lost, 0).mean(), rel=1e-6, abs=1e-15)
    assert found.cost["source_fidelity"]["logits"] == book.fidelity["logits"]
    assert found.cost["copied_from"] == book.content_digest
    assert found.fidelity["logits"]["n"] == N * V


def test_what_was_left_out_is_not_made_up(tmp_path, book):
    sparse = copy_book(tmp_path / "sparse", book, codec=TopK(3))
    with pytest.raises(FidelityError, match="codec of logits` to be one that keeps every class"):
        copy_book(tmp_path / "c", sparse, codec=Int8())
    assert copy_book(tmp_path / "d", sparse).content_digest == sparse.content_digest
    assert copy_book(tmp_path / "e", sparse, codec=TopK(3)).content_digest == sparse.content_digest


@pytest.mark.parametrize("units", [0, 1, 4, 8])
def test_an_interrupted_copy_is_gone_on_with(tmp_path, book, monkeypatch, units):
    real, done = BookWriter._commit, []

    def failing(self, *args):
        if len(done) == units:
            raise KeyboardInterrupt
        done.append(args)
        real(self, *args)

    for work, wanted in (
        (lambda: copy_book(tmp_path / "b", book, codec=Int8()), copy_book(tmp_path / "whole", book, codec=Int8())),
        (lambda: extract(tmp_path / "c", book, classes=[0, 2]), extract(tmp_path / "part", book, classes=[0, 2])),
    ):
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(BookWriter, "_commit", failing)
            with pytest.raises(KeyboardInterrupt):
                work()
        found = work()
        assert (found.content_digest, found.fidelity) == (wanted.content_digest, wanted.fidelity)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "work",
    [
        copy_book,
        lambda path, book: copy_book(path, book, codec=Int8()),
        lambda path, book: extract(path, book, views=[0, 1]),
    ],
    ids=["copy", "another codec", "extract"],
)
def test_records_of_two_sources_are_not_mixed(tmp_path, book, monkeypatch, work, finished):
    # The same plan, other records: as after a repair that took what the teacher says today.
    with BookWriter(tmp_path / "other", book.plan, keys=book.keys) as writer:
        for unit in writer.pending():
            said = {name: array for name, array in arrays(*unit).items() if name in book.fields}
            writer.write(unit, {**said, "logits": said["logits"] + 1.0})
        other = writer.finish()
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(BookWriter, "_write_edition", interrupt)
        with suppress(KeyboardInterrupt):
            work(tmp_path / "b", book)
    with pytest.raises(
        BookMismatchError, match=f"to come from {book.content_digest}, got {other.content_digest}. Give ano"
    ):
        work(tmp_path / "b", other)
    found = work(tmp_path / "b", book)
    assert found.content_digest == work(tmp_path / "fresh", book).content_digest
    assert work(tmp_path / "c", other).content_digest != found.content_digest
    if not finished:
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(BookWriter, "_write_edition", interrupt)
            work(tmp_path / "d", book)
        with pytest.raises(BookMismatchError, match=f"to come from {book.content_digest}, got a teacher"):
            BookWriter(tmp_path / "d", replace(Book(tmp_path / "c").plan, sources=()), keys=Book(tmp_path / "c").keys)


def test_a_finished_copy_of_the_same_records_is_the_copy_whoever_made_it(tmp_path, book):
    from shutil import copytree

    copytree(book.path, tmp_path / "b")  # nobody noted the source
    assert copy_book(tmp_path / "b", book).content_digest == book.content_digest


def interrupt(*args):
    raise KeyboardInterrupt


def test_not_into_itself_nor_into_another_book(tmp_path, book):
    for work in (copy_book, lambda path, source: extract(path, source, views=[0])):
        with pytest.raises(ConfigError, match="another folder than the source's"):
            work(book.path.parent / "." / "b", book)
    make(tmp_path / "other", plan())
    with pytest.raises(BookMismatchError, match="to be a book of this run"):
        copy_book(tmp_path / "other", book)


def test_a_class_subset_is_the_conditional_distribution(tmp_path, book):
    for source in (book, copy_book(tmp_path / "int8", book, codec=Int8())):
        found = extract(tmp_path / f"part-{source.path.name}", source, classes=["e", 0, "b"])
        assert verify(found.path) == []
        assert found.plan.class_names == ("e", "a", "b")
        assert found.plan.data["extracted"]["classes"] == [4, 0, 1]
        for view in range(V):
            whole = source.read(ROWS, view, ["logits"])["logits"].astype(np.float64)
            part = found.read(ROWS, view, ["logits"])["logits"].astype(np.float64)
            np.testing.assert_array_equal(part, whole[:, [4, 0, 1]])
            for temperature in (1, 4):
                p = softmax(whole / temperature, axis=1)[:, [4, 0, 1]]
                np.testing.assert_allclose(
                    softmax(part / temperature, axis=1), p / p.sum(axis=1, keepdims=True), rtol=1e-9
                )
        assert found.fidelity == {}
        assert found.cost["extracted_from"] == source.content_digest


def test_masked_classes_go_along(tmp_path):
    with BookWriter(tmp_path / "b", dense(masked_classes=(1, 4))) as writer:
        for unit in writer.pending():
            said = {name: array for name, array in arrays(*unit).items() if name in writer.plan.fields}
            said["logits"][:, 4] = -np.inf
            said["logits"][::7, 1] = -np.inf
            writer.write(unit, said)
        book = writer.finish()
    found = extract(tmp_path / "c", book, classes=[4, 0, 1])
    assert found.plan.masked_classes == (0, 2)
    assert np.isneginf(found.read([0], [0], ["logits"])["logits"][0]).tolist() == [True, False, True]
    with pytest.raises(TeacherOutputError, match="sample 0 of the part, view 0"):
        extract(tmp_path / "d", book, classes=[4, 1])


def in_one_go(path, first, **changes):
    with BookWriter(path, replace(first.plan, keys_digest=None, **changes)) as writer:
        for unit in writer.pending():
            said = arrays(*unit)
            writer.write(unit, {name: said[name] for name in writer.plan.fields})
        return writer.finish()


@pytest.mark.parametrize("samples", [slice(0, 100), np.arange(64), range(3)])
def test_the_first_samples_and_views_are_a_book_of_them(tmp_path, keyless, samples):
    given = samples if isinstance(samples, slice) else np.array(samples)
    found = extract(tmp_path / "part", keyless, samples=given, views=slice(0, 2), data={"digest": "d9"})
    count = len(range(N)[samples] if isinstance(samples, slice) else samples)
    assert_same(
        found,
        in_one_go(
            tmp_path / "whole", keyless, n_samples=count, n_views=2, data={"digest": "d9"}, unit_rows=min(64, count)
        ),
    )
    assert found.keys is None
    part = extract(tmp_path / "unnamed", keyless, samples=given)
    assert part.plan.data["part_of"] == {"digest": "d0"}
    assert part.plan.data["extracted"]["samples"] == f"0:{count}"


@pytest.mark.parametrize("with_keys", [True, False])
def test_other_samples_keep_their_numbers_as_keys(tmp_path, book, keyless, with_keys):
    source = book if with_keys else keyless
    ids = np.array([140, 3, 77, 78])
    found = extract(tmp_path / "part", source, samples=ids, views=[2, 0])
    named = ids + 1000 if with_keys else ids
    np.testing.assert_array_equal(found.rows_of(named), np.arange(4))
    for new, old in enumerate([2, 0]):
        for field in source.fields:
            np.testing.assert_array_equal(
                found.read(np.arange(4), new, [field])[field], source.read(ids, old, [field])[field]
            )
    # Its views cannot be drawn again by number: whoever compares recipes sees it.
    assert found.plan.views["renumbered_views"] == [2, 0]
    assert "renumbered_samples" in found.plan.views


def test_teachers(tmp_path):
    first, second = two_teachers()
    with BookWriter(tmp_path / "b", second) as writer:
        for unit in writer.pending():
            said = arrays(*unit)
            writer.write(
                unit,
                {
                    "members/0/logits": said["logits"],
                    "members/1/logits": -said["logits"],
                    "probe/hash": said["probe/hash"],
                },
            )
        both = writer.finish()
    one = extract(tmp_path / "one", both, teachers=["resnet"])
    assert_same(one, make(tmp_path / "alone", first))
    assert one.fidelity == Book(tmp_path / "alone").fidelity
    turned = extract(tmp_path / "turned", both, teachers=[1, 0])
    assert [teacher.name for teacher in turned.plan.teachers] == ["second", "resnet"]
    np.testing.assert_array_equal(turned.read(ROWS, 1)["members/1/logits"], both.read(ROWS, 1)["members/0/logits"])
    with pytest.raises(ConfigError, match="of a book that keeps each one's logits"):
        extract(tmp_path / "x", make(tmp_path / "whole"), teachers=[0])
    for wanted, error in ((["nobody"], UnknownNameError), ([2], ConfigError), ([], ConfigError), ([0, 0], ConfigError)):
        with pytest.raises(error):
            extract(tmp_path / "x", both, teachers=wanted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "given classes, samples, views or teachers"),
        ({"classes": ["a"]}, ConfigError, "at least two"),
        ({"classes": ["a", "x"]}, UnknownNameError, "class 'x'"),
        ({"classes": [0, 6]}, DataError, "from 0 to 5, got 6"),
        ({"classes": ["a", 0]}, ConfigError, "without repeats"),
        ({"samples": [0, 150]}, DataError, "from 0 to 149, got 150"),
        ({"samples": [-1]}, DataError, "got -1"),
        ({"samples": [1, 1]}, ConfigError, "1 twice"),
        ({"samples": []}, DataError, "whole numbers"),
        ({"samples": slice(5, 5)}, DataError, "a range within 0:150"),
        ({"samples": slice(0, 151)}, DataError, "a range within 0:150"),
        ({"views": [3]}, DataError, "from 0 to 2, got 3"),
        ({"views": [0.5]}, DataError, "whole numbers"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, book, options, error, message):
    with pytest.raises(error, match=message):
        extract(tmp_path / "part", book, **options)
    assert not (tmp_path / "part").exists()


def test_some_classes_of_the_largest_ones_are_refused(tmp_path):
    sparse = make(tmp_path / "b", plan(fields={"logits": FieldPlan((C,), TopK(3))}))
    with pytest.raises(FidelityError, match="dense or int8, to take some classes"):
        extract(tmp_path / "part", sparse, classes=[0, 1])


def test_the_plan_stays_readable_where_many_samples_are_chosen(tmp_path, keyless):
    found = extract(tmp_path / "part", keyless, samples=np.arange(0, N, 2))
    assert len((found.path / "plan.json").read_text()) < 4000
    assert "samples" not in json.loads((found.path / "plan.json").read_text())["data"]["extracted"]
