"""A book that has grown is the book made in one go; what was read before can be read all the while."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.book.books import C, N, V, arrays, make, plan

from bookkd.book import Book, Dense, FieldPlan, GrowthWriter, TeacherInfo, verify
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookLockedError,
    BookMismatchError,
    BookMissingError,
    BookUnfinishedError,
    ConfigError,
)
from bookkd.core.jsonio import digest


def larger(book, **changes):
    return replace(book.plan, unit_rows=None, keys_digest=None, **changes)


def grow(path, the_plan, *, keys=None, pieces=None, finish=True, step=None):
    """Say what is pending, or its first `pieces` shards; in steps that begin at multiples of `step`, if it is given."""
    with GrowthWriter(path, the_plan, keys=keys) as writer:
        for view, start, stop in writer.pending()[:pieces]:
            begin = start if step is None else start - start % step
            for first in range(begin, stop, step or stop):
                last = min(stop, first + (step or stop))
                writer.write_rows(view, first, arrays(view, first, last))
        return writer.finish({"seconds": 2.0}) if finish else None


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def assert_same(grown, whole):
    assert verify(grown.path) == []
    assert grown.plan.identity() == whole.plan.identity()
    assert grown.content_digest == whole.content_digest
    for view in range(grown.n_views):
        mine, theirs = (book.gather(np.arange(whole.n_samples), view) for book in (grown, whole))
        for part, array in theirs.items():
            np.testing.assert_array_equal(mine[part], array)


def in_one_go(path, grown, keys=None):
    return make(path, replace(grown.plan, keys_digest=None), keys=keys)


def test_more_views(tmp_path):
    book = make(tmp_path / "b")
    before = files(tmp_path / "b")
    grown = grow(tmp_path / "b", larger(book, n_views=5))
    assert (grown.edition, grown.n_views, grown.cost) == (2, 5, {"seconds": 2.0})
    assert_same(grown, make(tmp_path / "whole", plan(n_views=5)))
    after = files(tmp_path / "b")
    assert {name: after[name] for name in before} == before
    new = set(after) - set(before)
    assert all(name.startswith(("view-0003/", "view-0004/", "edition-000002", "plan-000002")) for name in new)
    assert Book(tmp_path / "b", edition=1).content_digest == book.content_digest
    assert grown.fidelity["logits"]["n"] == 5 * N  # every row of a small book is measured


# 150 ends within a block of 16 rows and a unit of 64; 160 is a whole block, 192 a whole unit.
@pytest.mark.parametrize("first", [150, 160, 192, 17, 1])
@pytest.mark.parametrize("last", [193, 256, 300])
@pytest.mark.parametrize("step", [None, 7])
def test_more_samples(tmp_path, first, last, step):
    book = make(tmp_path / "b", plan(n_samples=first, n_views=2))
    before = files(tmp_path / "b")
    grown = grow(tmp_path / "b", larger(book, n_samples=last), step=step)
    assert_same(grown, in_one_go(tmp_path / "whole", grown))
    assert (grown.plan.block_rows, grown.fidelity["logits"]["n"]) == (
        16 if first >= 16 else book.plan.block_rows,
        2 * last,
    )
    kept = {name: content for name, content in files(tmp_path / "b").items() if name in before}
    assert kept == before
    # Shards that end at a whole block are named by both editions.
    lines = json.loads((tmp_path / "b" / "view-0000" / grown._edition.views[0].file).read_text())["shards"]
    whole = {f"rows-{start:09d}-{start + 64:09d}" for start in range(0, first - 63, 64)}
    assert whole <= set(lines)
    assert (f"rows-{128:09d}-{first:09d}" in lines) == (first in (160, 192))


def test_more_samples_and_views_at_once(tmp_path):
    book = make(tmp_path / "b", plan(n_samples=100, n_views=1))
    assert_same(grow(tmp_path / "b", larger(book, n_samples=N, n_views=V)), make(tmp_path / "whole"))


def test_keys_grow_with_the_samples(tmp_path):
    keys = np.arange(N, dtype=np.uint64)[::-1] * 3
    book = make(tmp_path / "b", plan(n_samples=100, n_views=1), keys=keys[:100])
    with pytest.raises(BookMismatchError, match="`keys` to be given, as in the book, got None"):
        grow(tmp_path / "b", larger(book, n_samples=N))
    other = np.where(np.arange(N) == 99, np.uint64(7), keys)
    with pytest.raises(BookMismatchError, match="got 7 for sample 99, the book's is 150"):
        grow(tmp_path / "b", larger(book, n_samples=N), keys=other)
    grown = grow(tmp_path / "b", larger(book, n_samples=N), keys=keys)
    np.testing.assert_array_equal(grown.keys, keys)
    np.testing.assert_array_equal(Book(tmp_path / "b", edition=1).keys, keys[:100])
    assert_same(grown, in_one_go(tmp_path / "whole", grown, keys))
    more = grow(tmp_path / "b", larger(grown, n_views=2), keys=keys)
    assert (
        json.loads((tmp_path / "b" / "edition-000003.json").read_text())["plan"]["keys_file"]
        == "keys-000002.safetensors"
    )
    np.testing.assert_array_equal(more.keys, keys)


def two_teachers():
    one = {"logits": FieldPlan((C,), Dense()), "probe/hash": plan().fields["probe/hash"]}
    members = {f"members/{place}/logits": FieldPlan((C,), Dense()) for place in range(2)}
    both = {**members, "probe/hash": one["probe/hash"]}
    teachers = (*plan().teachers, TeacherInfo("second", "bb22"))
    return plan(fields=one), plan(fields=both, teachers=teachers)


def said_by_both(view, start, stop):
    said = arrays(view, start, stop)
    return {"members/0/logits": said["logits"], "members/1/logits": -said["logits"], "probe/hash": said["probe/hash"]}


def test_further_teachers(tmp_path):
    from bookkd.book import BookWriter

    first, second = two_teachers()
    book = make(tmp_path / "b", first)
    with GrowthWriter(tmp_path / "b", second, names={"logits": "members/0/logits"}) as writer:
        assert writer.fields == ["members/1/logits"]
        assert writer.rows == N * V
        for view, start, stop in writer.pending():
            writer.write_rows(view, start, {"members/1/logits": said_by_both(view, start, stop)["members/1/logits"]})
        grown = writer.finish()
    with BookWriter(tmp_path / "whole", second) as writer:
        for unit in writer.pending():
            writer.write(unit, said_by_both(*unit))
        whole = writer.finish()
    assert_same(grown, whole)
    assert grown.fidelity == whole.fidelity
    assert Book(tmp_path / "b", edition=1).content_digest == book.content_digest


@pytest.mark.parametrize("pieces", range(5))
def test_an_interrupted_growth_is_gone_on_with(tmp_path, pieces):
    book = make(tmp_path / "b", plan(n_samples=100))
    request = larger(book, n_samples=N, n_views=4)
    grow(tmp_path / "b", request, pieces=pieces, finish=False)
    assert Book(tmp_path / "b").content_digest == book.content_digest
    assert make(tmp_path / "b", plan(n_samples=100)).edition == 1  # the same `make` finds its book
    with pytest.raises(BookMismatchError, match=r"n_views 4 \(this run has 3\).*compact .* --prune"):
        grow(tmp_path / "b", larger(book, n_samples=N))
    with GrowthWriter(tmp_path / "b", request) as writer:
        assert len(writer.pending()) == 3 * 2 + 3 - pieces
        with pytest.raises(BookUnfinishedError, match="pending"):
            writer.finish()
    assert_same(grow(tmp_path / "b", request), make(tmp_path / "whole", plan(n_views=4)))


def test_a_growth_that_is_done_is_done(tmp_path):
    book = make(tmp_path / "b")
    grown = grow(tmp_path / "b", larger(book, n_views=4))
    again = grow(tmp_path / "b", larger(book, n_views=4))
    assert (again.edition, again.content_digest) == (2, grown.content_digest)
    assert not (tmp_path / "b" / ".lock").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_views": 2}, r"n_views 3 \(this run has 2\)"),
        ({"n_samples": 100}, r"n_samples 150 \(this run has 100\)"),
        ({"n_views": 4, "data": {"digest": "d1"}}, r"data.digest 'd0' \(this run has 'd1'\)"),
        ({"n_views": 4, "views": {"seed": 8, "transform": {"crop": [4, 4]}}}, "views.seed 7"),
        ({"n_views": 4, "batch_size": 3}, "batch_size 256"),
        ({"n_views": 4, "teachers": (TeacherInfo("resnet", "cc"),)}, r"teachers\[0\].digest"),
        ({"n_views": 4, "masked_classes": (2,)}, "masked_classes"),
        (
            {"n_views": 4, "fields": {"logits": FieldPlan((C,), Dense())}},
            "Expected `fields` to be with features/layer1",
        ),
        (
            {"n_views": 4, "fields": {**plan().fields, "logits": FieldPlan((C,), Dense("float32"))}},
            "codec.configuration.dtype 'float16'",
        ),
    ],
)
def test_another_book_is_refused_by_name(tmp_path, changes, message):
    book = make(tmp_path / "b")
    with pytest.raises(BookMismatchError, match=message):
        GrowthWriter(tmp_path / "b", larger(book, **changes))
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "edition-000001.json", "plan.json", "view-0000", "view-0001", "view-0002",
    ]  # fmt: skip


def test_further_teachers_and_views_do_not_go_together(tmp_path):
    first, second = two_teachers()
    make(tmp_path / "b", first)
    with pytest.raises(ConfigError, match="the book's 150 samples and 3 views for a further teacher"):
        GrowthWriter(tmp_path / "b", replace(second, n_views=4), names={"logits": "members/0/logits"})


def test_one_writer_and_only_on_a_finished_book(tmp_path):
    book = make(tmp_path / "b")
    with (
        GrowthWriter(tmp_path / "b", larger(book, n_views=4)),
        pytest.raises(BookLockedError, match="no other writer, got a writer in this process"),
    ):
        GrowthWriter(tmp_path / "b", larger(book, n_views=4))
    make(tmp_path / "c", units=1, finish=False)
    with pytest.raises(BookUnfinishedError):
        GrowthWriter(tmp_path / "c", plan(n_views=4))
    with pytest.raises(BookMissingError):
        GrowthWriter(tmp_path / "none", plan())
    assert not (tmp_path / "none").exists()


def test_a_damaged_record_is_not_copied(tmp_path):
    book = make(tmp_path / "b", plan(n_views=1))
    shard = tmp_path / "b" / "view-0000" / "rows-000000128-000000150.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BookCorruptError, match="block"):
        grow(tmp_path / "b", larger(book, n_samples=200))
    assert Book(tmp_path / "b").edition == 1


def test_make_says_that_a_book_can_grow(tmp_path):
    make(tmp_path / "b")
    with pytest.raises(BookMismatchError, match=r"n_views 3 \(this run has 4\).*run it with --grow"):
        make(tmp_path / "b", plan(n_views=4))
    with pytest.raises(BookMismatchError) as refused:
        make(tmp_path / "b", plan(n_views=4, batch_size=3))
    assert "--grow" not in str(refused.value)


@pytest.mark.parametrize("name", ["../plan.json", "plan-2.json", "plan-000002.json/x", 7, "edition-000001.json"])
@pytest.mark.parametrize("key", ["file", "keys_file"])
def test_an_edition_names_files_of_the_forms_alone(tmp_path, key, name):
    make(tmp_path / "b", plan(n_views=1))
    path = tmp_path / "b" / "edition-000001.json"
    found = json.loads(path.read_bytes())
    found["plan"][key] = name
    del found["digest"]
    found["digest"] = digest(found)
    path.write_text(json.dumps(found))
    with pytest.raises(BookFormatError, match=f"`{key}` to be a text like"):
        Book(tmp_path / "b")


def test_a_sidecar_of_another_plan_is_not_taken(tmp_path):
    """Left over under the name of a growth's shard: it is written again."""
    book = make(tmp_path / "b", plan(n_views=1))
    other = make(tmp_path / "other", plan(n_views=1, batch_size=7))
    grow(tmp_path / "b", larger(book, n_views=2), pieces=1, finish=False)
    for end in ("json", "safetensors"):
        mine = tmp_path / "b" / "view-0001" / f"rows-000000000-000000064-00000002.{end}"
        theirs = tmp_path / "other" / "view-0000" / f"rows-000000000-000000064.{end}"
        mine.write_bytes(theirs.read_bytes().replace(b'"view": 0', b'"view": 1'))
    assert other.content_digest != book.content_digest
    assert_same(grow(tmp_path / "b", larger(book, n_views=2)), make(tmp_path / "whole", plan(n_views=2)))
