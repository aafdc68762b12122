"""Ragged parts and draws through growth, compacting, copies, parts and repair: the book of one go, to the bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tests.book.books import C, N, V, arrays, make, plan
from tests.book.test_growing import files, larger
from tests.book.test_ragged import Present
from tests.book.test_repairing import flip

from bookkd.book import (
    CODECS,
    Argmax,
    Book,
    BookWriter,
    Dense,
    FieldPlan,
    GrowthWriter,
    Sampled,
    TeacherInfo,
    compact,
    copy_book,
    extract,
    repair,
    verify,
)
from bookkd.core.errors import BookCorruptError, BookMismatchError, FidelityError

DRAWS = Sampled(9, 2.0)
FIELDS = {"logits": FieldPlan((C,), DRAWS), "probe/hash": plan().fields["probe/hash"]}
TWO = {"members/0/logits": FieldPlan((C,), DRAWS), "members/1/logits": FieldPlan((C,), Sampled(5, 1.0, 3))}
SHARD = "view-0001/rows-000000064-000000128"


def ragged(**changes):
    return plan(**{"fields": FIELDS, **changes})


def of_two(view, start, stop):
    said = arrays(view, start, stop)["logits"]
    return {"members/0/logits": said, "members/1/logits": -said}


def made_of_two(path, **changes):
    teachers = (*plan().teachers, TeacherInfo("second", "bb22"))
    with BookWriter(path, plan(fields=TWO, teachers=teachers, **changes)) as writer:
        for unit in writer.pending():
            writer.write(unit, of_two(*unit))
        return writer.finish()


def assert_same(found, whole):
    assert verify(found.path) == []
    assert found.content_digest == whole.content_digest
    rows = np.arange(whole.n_samples)
    for view in range(whole.n_views):
        mine, theirs = (each.gather(rows, view) for each in (found, whole))
        for part, array in theirs.items():
            for name in ("values", "offsets") if hasattr(array, "offsets") else ("T",):
                np.testing.assert_array_equal(getattr(mine[part], name), getattr(array, name))


def grow(path, request, *, pieces=None, finish=True, step=N):
    with GrowthWriter(path, request) as writer:
        for view, start, stop in writer.pending()[:pieces]:
            for first in range(start, stop, step):
                said = arrays(view, first, min(first + step, stop))
                writer.write_rows(view, first, {name: said[name] for name in writer.plan.fields})
        return writer.finish() if finish else None


def in_one_go(path, grown):
    return make(path, replace(grown.plan, keys_digest=None))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("upkeep") / "b", ragged(batch_size=10))


@pytest.fixture
def book(original, tmp_path):
    return Book(shutil.copytree(original.path, tmp_path / "b"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return made_of_two(tmp_path_factory.mktemp("upkeep") / "two", batch_size=10)


# 150 ends within a block of 16 rows and a unit of 64; 160 is a whole block, 192 a whole unit.
@pytest.mark.parametrize("first", [150, 160, 192, 17, 1])
@pytest.mark.parametrize("step", [N, 7])
def test_more_samples(tmp_path, first, step):
    book = make(tmp_path / "b", ragged(n_samples=first, n_views=2))
    grown = grow(tmp_path / "b", larger(book, n_samples=256), step=step)
    assert_same(grown, in_one_go(tmp_path / "whole", grown))
    assert grown.fidelity["logits"]["n"] == 2 * 256
    assert grown.fidelity["logits"]["unbiased"]
    assert grown.fidelity["logits"]["unpromised"].keys() == {"1", "4"}


def test_a_growth_that_was_interrupted(tmp_path):
    book = make(tmp_path / "b", ragged(n_samples=100, n_views=1))
    request = larger(book, n_samples=N, n_views=V)
    grow(tmp_path / "b", request, pieces=2, finish=False)
    with GrowthWriter(tmp_path / "b", request) as writer:
        assert sum(unit.stop - unit.start for unit in writer.pending()) < writer.rows
    assert_same(grow(tmp_path / "b", request), make(tmp_path / "whole", ragged()))


def test_further_teachers_draw_what_they_draw_alone(tmp_path, both):
    """Draws belong to a teacher's logits, under whatever name: a book of several is the same, however it came to be."""
    first = make(tmp_path / "b", plan(fields={"logits": FieldPlan((C,), DRAWS)}, batch_size=10))
    second = replace(both.plan, unit_rows=None)
    with GrowthWriter(tmp_path / "b", second, names={"logits": "members/0/logits"}) as writer:
        for view, start, stop in writer.pending():
            writer.write_rows(view, start, {"members/1/logits": of_two(view, start, stop)["members/1/logits"]})
        grown = writer.finish()
    assert_same(grown, both)
    assert grown.fidelity == both.fidelity
    alone = extract(tmp_path / "alone", both, teachers=[0])
    assert_same(alone, first)
    more = grow(alone.path, larger(alone, n_views=4))
    assert_same(more, in_one_go(tmp_path / "whole", more))


def test_compacting_joins_items_and_their_ends(book, original):
    seen = []
    found = compact(book.path, progress=lambda *at: seen.append(at))
    assert_same(found, original)
    assert (found.fidelity, [len(file.stems) for file in found._files]) == (original.fidelity, [1] * V)
    assert seen[-1] == (seen[-1][1],) * 2
    grown = grow(book.path, larger(found, n_samples=200, n_views=4))
    assert_same(grown, in_one_go(book.path.parent / "whole", grown))
    assert_same(compact(book.path), grown)


def test_the_compacted_file_is_the_one_that_the_library_writes(tmp_path, both):
    one = made_of_two(tmp_path / "one", unit_rows=N)
    several = shutil.copytree(both.path, tmp_path / "several")
    compact(several)
    for view in range(V):
        (mine,) = (several / f"view-{view:04d}").glob("*-00000002.safetensors")
        (theirs,) = (one.path / f"view-{view:04d}").glob("*.safetensors")
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("empty", ["all", "some shards"])
def test_shards_without_any_item(tmp_path, monkeypatch, empty):
    monkeypatch.setitem(CODECS, "present", Present)
    said = np.zeros((N, 6))
    if empty != "all":
        said[70:75] = 3
    with BookWriter(
        tmp_path / "b", plan(fields={"features/boxes": FieldPlan((6,), Present())}, n_views=1, batch_size=10)
    ) as writer:
        writer.write_rows(0, 0, {"features/boxes": said})
        made = writer.finish()
    assert_same(compact(made.path), made)
    before = files(made.path)
    shard = made.path / "view-0000" / f"rows-{0:09d}-{N:09d}-00000002.safetensors"
    for change in (lambda data: data[:-3], lambda data: b"\xff" * 60 + data[60:], lambda data: b""):
        shard.write_bytes(change(before[str(shard.relative_to(made.path))]))
        repair(made.path, lambda view, start, stop: {"features/boxes": said[start:stop]})
        assert files(made.path) == before


def test_a_copy_is_the_same_book(tmp_path, book, original):
    assert_same(copy_book(tmp_path / "copy", book), original)
    assert Book(tmp_path / "copy").fidelity == original.fidelity


def test_draws_of_a_copy_are_those_of_the_records(tmp_path):
    """Encoded anew with the numbers of the samples and views that they are of."""
    dense = make(tmp_path / "dense", plan(fields={"logits": FieldPlan((C,), Dense("float32"))}, choice={"max_kl": 1}))
    found = copy_book(tmp_path / "copy", dense, codec=DRAWS)
    assert_same(found, make(tmp_path / "drawn", plan(fields={"logits": FieldPlan((C,), DRAWS)})))
    assert (found.plan.choice, dense.plan.choice) == ({}, {"max_kl": 1})
    assert "choice" not in found.fidelity["logits"]
    assert found.fidelity["logits"]["unbiased"]
    assert_same(
        copy_book(tmp_path / "top", dense, codec=Argmax()),
        make(tmp_path / "tops", plan(fields={"logits": FieldPlan((C,), Argmax())})),
    )


@pytest.mark.parametrize("codec", [DRAWS, Argmax()])
def test_what_is_left_out_does_not_come_back(tmp_path, codec):
    source = make(tmp_path / "b", plan(fields={"logits": FieldPlan((C,), codec)}))
    for work in (
        lambda: copy_book(tmp_path / "c", source, codec=Dense()),
        lambda: extract(tmp_path / "c", source, classes=[0, 1]),
    ):
        with pytest.raises(FidelityError, match=f"codec of logits.*got '?{codec.name}"):
            work()
    assert not (tmp_path / "c").exists()


def test_parts_of_samples_and_views(tmp_path, original):
    part = extract(tmp_path / "part", original, samples=slice(0, 70), views=[0, 1], data={"digest": "d9"})
    whole = make(tmp_path / "whole", ragged(n_samples=70, n_views=2, batch_size=10, data={"digest": "d9"}))
    assert_same(part, whole)
    ids = np.array([140, 3, 77, 78])
    other = extract(tmp_path / "other", original, samples=ids, views=[2, 0])
    assert verify(other.path) == []
    for new, old in enumerate([2, 0]):
        mine, theirs = (
            found.read(rows, view, ["logits"])["logits"].probabilities()
            for found, rows, view in ((other, np.arange(4), new), (original, ids, old))
        )
        np.testing.assert_array_equal(mine, theirs)


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return 8 + length, json.loads(data[8 : 8 + length])


TENSORS = ("members/0/logits/entries", "members/0/logits/ends", "members/1/logits/entries", "members/1/logits/ends")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("tensor", TENSORS)
def test_a_flipped_bit_is_said_again_in_its_batches_alone(tmp_path, both, tensor, share):
    root = shutil.copytree(both.path, tmp_path / "b")
    before, shard, asked = files(root), root / f"{SHARD}.safetensors", []
    begin, header = header_of(shard)
    first, last = header[tensor]["data_offsets"]
    flip(shard, begin + first + int(share * (last - first - 1)))

    def say(view, start, stop):
        asked.append((view, start, stop))
        return of_two(view, start, stop)

    assert repair(root, say).restored == (f"{SHARD}.safetensors",)
    assert files(root) == before
    assert sum(stop - start for _, start, stop in asked) <= 30
    assert all(view == 1 and (start - 64) % 10 == 0 for view, start, _ in asked)


def test_ends_that_are_all_wrong_in_between(tmp_path, both):
    """The last ends of blocks 1 and 2 are gone: where the items of these blocks lie follows from no file."""
    root = shutil.copytree(both.path, tmp_path / "b")
    before, shard, asked = files(root), root / f"{SHARD}.safetensors", []
    begin, header = header_of(shard)
    first = begin + header["members/1/logits/ends"]["data_offsets"][0]
    for row in (31, 47):
        flip(shard, first + 4 * row)
    repair(root, lambda view, start, stop: asked.append(start) or of_two(view, start, stop))
    assert files(root) == before
    assert min(asked) == 74  # block 0 stays


@pytest.mark.parametrize("spoil", ["delete", "empty", "cut", "longer", "header", "zeros", "items"])
@pytest.mark.parametrize("fields", ["one", "two"])
def test_shards(tmp_path, original, both, spoil, fields):
    source, say = (original, arrays_of_one) if fields == "one" else (both, of_two)
    root = shutil.copytree(source.path, tmp_path / "b")
    before, shard = files(root), root / f"{SHARD}.safetensors"
    data = shard.read_bytes()
    if spoil == "delete":
        shard.unlink()
    else:
        count = data.index(b"shape") + 8
        spoilt = {
            "empty": b"",
            "cut": data[:-50],
            "longer": data + b"x",
            "header": b"\xff" * 40 + data[40:],
            "zeros": bytes(len(data)),
            "items": data[:count] + bytes([data[count] ^ 1]) + data[count + 1 :],
        }
        shard.write_bytes(spoilt[spoil])
    whole = {"longer"} if fields == "two" else {"longer", "header", "items"}
    if spoil not in whole:
        with pytest.raises(BookCorruptError, match="of view 1 have to be said again"):
            repair(root)
    assert repair(root, None if spoil in whole else say).restored == (f"{SHARD}.safetensors",)
    assert files(root) == before


def arrays_of_one(view, start, stop):
    said = arrays(view, start, stop)
    return {name: said[name] for name in FIELDS}


@pytest.mark.parametrize("content", [None, b"", b"{}", "flip"])
def test_a_lost_sidecar_is_made_from_the_shard(tmp_path, both, content):
    root = shutil.copytree(both.path, tmp_path / "b")
    path = root / f"{SHARD}.json"
    if content is None:
        path.unlink()
    elif content == "flip":
        flip(path, path.read_bytes().index(b"members/1/logits/ends") + 40)
    else:
        path.write_bytes(content)
    found = repair(root)
    mended = Book(root)
    assert_same(mended, both)
    if content == "flip":  # the measurements are still there to be read
        assert (found.edition, found.restored) == (1, (f"{SHARD}.json",))
        return
    assert (found.edition, found.renewed) == (2, (f"{SHARD}.json",))
    # A shard that says that nothing was measured goes on through everything that adds up measurements.
    compacted = compact(root)
    assert_same(compacted, both)
    grown = grow_two(root, compacted)
    assert grown.fidelity["members/1/logits"]["unbiased"]
    assert grown.fidelity["members/1/logits"]["n"] == 4 * N - 64


def grow_two(root, base):
    with GrowthWriter(root, larger(base, n_views=4)) as writer:
        for view, start, stop in writer.pending():
            writer.write_rows(view, start, of_two(view, start, stop))
        return writer.finish()


def test_other_draws_are_refused_and_can_be_taken(tmp_path, both):
    root = shutil.copytree(both.path, tmp_path / "b")
    shard = root / f"{SHARD}.safetensors"
    begin, header = header_of(shard)
    flip(shard, begin + header["members/0/logits/entries"]["data_offsets"][0])

    def otherwise(view, start, stop):
        return {name: said * np.float32(0.2) for name, said in of_two(view, start, stop).items()}

    spoilt = files(root)
    with pytest.raises(BookMismatchError, match="samples 64 to 80 of view 1"):
        repair(root, otherwise)
    assert files(root) == spoilt
    found = repair(root, otherwise, accept=True)
    assert found.edition == 2
    assert verify(root) == []
    taken = Book(root)
    said = made_of_other(tmp_path / "other", otherwise)
    rows = np.arange(N)
    for name in TWO:
        read = taken.read(rows, 1, [name])[name].probabilities()
        old = both.read(rows, 1, [name])[name].probabilities()
        new = said.read(rows, 1, [name])[name].probabilities()
        other = np.arange(64, 80) if name == "members/0/logits" else []
        wanted = old.copy()
        wanted[other] = new[other]
        np.testing.assert_array_equal(read, wanted)


def made_of_other(path, say):
    teachers = (*plan().teachers, TeacherInfo("second", "bb22"))
    with BookWriter(path, plan(fields=TWO, teachers=teachers)) as writer:
        for unit in writer.pending():
            writer.write(unit, say(*unit))
        return writer.finish()


def test_records_that_are_taken_are_of_one_piece(tmp_path):
    """A record of several parts is the old one or the new one, never parts of both."""
    fields = {"logits": plan().fields["members/0/logits"]}
    with BookWriter(tmp_path / "b", plan(fields=fields)) as writer:
        for unit in writer.pending():
            writer.write(unit, {"logits": arrays(*unit)["logits"]})
        writer.finish()
    shard = tmp_path / "b" / f"{SHARD}.safetensors"
    begin, header = header_of(shard)
    flip(shard, begin + header["logits/indices"]["data_offsets"][0])
    repair(tmp_path / "b", lambda *at: {"logits": -arrays(*at)["logits"]}, accept=True)
    kept = Book(tmp_path / "b").read(np.arange(64, 80), 1)["logits"]
    true = -arrays(1, 64, 80)["logits"].astype(np.float64)
    np.testing.assert_array_equal(kept.indices, np.argsort(-true, axis=1, kind="stable")[:, :3])
    top = np.sort(true, axis=1)[:, ::-1][:, :3]
    np.testing.assert_allclose(kept.values, top - top[:, :1], atol=5e-3)


@pytest.mark.parametrize("work", ["compact", "repair"])
def test_a_disk_that_is_full_in_the_middle_of_a_file(book, monkeypatch, work):
    """The pieces of a mapped file are let go before the file is."""
    from bookkd.core import files as module
    from bookkd.core.errors import StorageError

    if work == "repair":
        flip(book.path / f"{SHARD}.safetensors", -1)
    before = files(book.path)

    opened = module.Path.open

    def opening(path, mode="r", *args, **options):
        file = opened(path, mode, *args, **options)
        if "x" in mode and ".safetensors." in path.name:
            file = Full(file)
        return file

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 3

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, piece):
            self.left -= 1
            if not self.left:
                raise OSError(28, "No space left on device")
            return self.file.write(piece)

    monkeypatch.setattr(module.Path, "open", opening)
    with pytest.raises(StorageError, match="No space left on device"):
        compact(book.path) if work == "compact" else repair(book.path, arrays_of_one)
    monkeypatch.undo()
    assert files(book.path) == before
