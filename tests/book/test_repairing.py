"""What can be proven is mended to the byte; what cannot is refused, and what was said otherwise is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.book.books import N, V, arrays, make, plan
from tests.book.test_growing import assert_same, files, grow, larger

from bookkd.book import Book, GrowthWriter, compact, repair, verify
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookKDError,
    BookLockedError,
    BookMismatchError,
    BookMissingError,
    BookVersionError,
)
from bookkd.core.lock import Lock

SHARD = "view-0001/rows-000000064-000000128"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("repairing") / "b", plan(batch_size=10), keys=np.arange(N))


@pytest.fixture
def book(original, tmp_path):
    return Book(shutil.copytree(original.path, tmp_path / "b"))


def teacher(asked=None, change=None):
    def say(view, start, stop):
        if asked is not None:
            asked.append((view, start, stop))
        said = arrays(view, start, stop)
        return said if change is None else change(said)

    return say


def flip(path, place, bit=3):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def manifest(book, view=1):
    return book.path / f"view-{view:04d}" / book._edition.views[view].file


def test_a_whole_book_is_left_as_it_is(book):
    before = files(book.path)
    seen = []
    found = repair(book.path, progress=lambda *at: seen.append(at))
    assert (found.edition, found.restored, found.renewed, found.said) == (1, (), (), 0)
    assert files(book.path) == before
    assert seen[-1] == (9, 9)


@pytest.mark.parametrize("place", [-1, -300, -1500])
def test_a_flipped_bit_is_said_again_in_its_batches_alone(book, place):
    before = files(book.path)
    shard = book.path / f"{SHARD}.safetensors"
    flip(shard, place)
    (fault,) = verify(book.path)
    asked = []
    found = repair(book.path, teacher(asked))
    assert found.restored == (f"{SHARD}.safetensors",)
    assert files(book.path) == before
    # Batches of 10 from the unit's first row, 64, on; a block has 16 rows.
    assert all(view == 1 and (start - 64) % 10 == 0 for view, start, stop in asked)
    assert min(start for _, start, _ in asked) <= fault.start < fault.stop <= max(stop for _, _, stop in asked)
    assert found.said == sum(stop - start for _, start, stop in asked) <= 40


@pytest.mark.parametrize("spoil", ["delete", "empty", "cut", "longer", "header", "zeros"])
def test_shards(book, spoil):
    before = files(book.path)
    shard = book.path / f"{SHARD}.safetensors"
    data = shard.read_bytes()
    if spoil == "delete":
        shard.unlink()
    else:
        new = {
            "empty": b"",
            "cut": data[:-700],
            "longer": data + b"x",
            "header": b"\xff" * 40 + data[40:],
            "zeros": bytes(len(data)),
        }
        shard.write_bytes(new[spoil])
    nothing_lost = spoil in ("longer", "header")
    if not nothing_lost:
        with pytest.raises(BookCorruptError, match=r"of view 1 have to be said again\. Name the teacher and the data"):
            repair(book.path)
    found = repair(book.path, None if nothing_lost else teacher())
    assert found.restored == (f"{SHARD}.safetensors",)
    assert files(book.path) == before


@pytest.mark.parametrize("name", ["edition-000001.json", "view-file", "sidecar"])
@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 13))
def test_a_flipped_bit_in_a_manifest(book, original, name, share):
    before = files(book.path)
    path = {"view-file": manifest(book), "sidecar": book.path / f"{SHARD}.json"}.get(name, book.path / name)
    flip(path, int(share * path.stat().st_size))
    found = repair(book.path)
    assert verify(book.path) == []
    assert Book(book.path).content_digest == original.content_digest
    after = files(book.path)
    if not found.renewed and Book(book.path).cost:
        assert after == before
    # Where a digit of the measurements was hit, or the cost, what is lost is outside of the content.
    assert_same(Book(book.path), original)


@pytest.mark.parametrize("name", ["view-file", "sidecar"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_manifest_that_is_gone(book, original, name, content):
    before = files(book.path)
    path = manifest(book) if name == "view-file" else book.path / f"{SHARD}.json"
    path.unlink() if content is None else path.write_bytes(content)
    found = repair(book.path)
    if name == "view-file":
        assert files(book.path) == before
        return
    # The measurements of a sidecar are nowhere else: a new edition of the same content does without them.
    assert (found.edition, found.renewed) == (2, (f"{SHARD}.json",))
    mended = Book(book.path)
    assert_same(mended, original)
    assert (mended.fidelity, mended.cost) == (original.fidelity, original.cost)
    assert compact(book.path).content_digest == original.content_digest


def test_sidecar_and_shard_both_are_refused(book):
    (book.path / f"{SHARD}.json").unlink()
    flip(book.path / f"{SHARD}.safetensors", -1)
    before = files(book.path)
    with pytest.raises(BookCorruptError, match=r"nothing proves what the records were.*Restore the files from a copy"):
        repair(book.path, teacher())
    assert files(book.path) == before


def test_a_plan_stands_nowhere_else(book):
    flip(book.path / "plan.json", 100)
    with pytest.raises(BookCorruptError, match=r"plan\.json to be whole.*restore it from a copy"):
        repair(book.path, teacher())


def test_an_edition_of_which_nothing_is_left(book):
    (book.path / "edition-000001.json").write_bytes(b"{}")
    with pytest.raises(BookCorruptError, match="What is left does not prove what it named"):
        repair(book.path)
    found = json.loads((book.path / "plan.json").read_text())
    (book.path / "edition-000001.json").write_text(json.dumps({"format_version": 2, "digest": found["keys_digest"]}))
    with pytest.raises(BookVersionError):
        repair(book.path)


def test_keys(book):
    before = files(book.path)
    flip(book.path / "keys.safetensors", -4)
    for keys, said in (
        (None, "none were given"),
        (np.arange(N) + 1, "others were given"),
        (np.arange(3), "others were given"),
    ):
        with pytest.raises(BookCorruptError, match=said):
            repair(book.path, keys=keys)
    assert repair(book.path, keys=np.arange(N)).restored == ("keys.safetensors",)
    assert files(book.path) == before


def nearly(said):
    return {**said, "logits": said["logits"] + np.float32(0.0625)}


def place_of(path, tensor):
    """Where a tensor begins, from the header as safetensors documents it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]


def test_other_records_are_refused_and_can_be_taken(book, original):
    shard = book.path / f"{SHARD}.safetensors"
    flip(shard, place_of(shard, "logits/values") + 40)  # the fourth row
    spoilt = files(book.path)
    with pytest.raises(BookMismatchError) as refused:
        repair(book.path, teacher(change=nearly))
    said = str(refused.value)
    assert "samples 64 to 80 of view 1" in said
    assert "differ by up to 0.06" in said
    assert "made on cpu with 1 threads" in said
    assert "--accept" in said
    assert files(book.path) == spoilt
    found = repair(book.path, teacher(change=nearly), accept=True)
    assert (found.edition, found.renewed) == (2, (f"{SHARD}-00000002.safetensors",))
    assert {name: content for name, content in files(book.path).items() if name in spoilt} == spoilt
    mended = Book(book.path)
    assert verify(book.path) == []
    assert mended.content_digest != original.content_digest
    rest, again = np.setdiff1d(np.arange(N), np.arange(64, 80)), np.arange(64, 80)
    np.testing.assert_array_equal(mended.read(rest, 1)["logits"], original.read(rest, 1)["logits"])
    moved = mended.read(again, 1)["logits"].astype(float) - original.read(again, 1)["logits"].astype(float)
    np.testing.assert_allclose(moved, 0.0625, atol=0.005)


def test_records_that_are_taken_leave_no_measurement_of_those_before(book, original):
    """What the codec lost of records that are no more says nothing of the new ones."""
    for path in book.path.rglob("*.safetensors"):
        if path.parent.name.startswith("view-"):
            flip(path, place_of(path, "logits/values"))
    repair(book.path, teacher(change=nearly), accept=True)
    found = Book(book.path)
    assert found.edition == 2
    assert original.fidelity["logits"]["n"] > 0
    assert "logits" not in found.fidelity


def test_a_growth_that_is_begun_is_not_lost(tmp_path):
    """A new edition would take its number: what needs one is left, the rest is mended."""
    book = make(tmp_path / "b", plan(n_samples=100, n_views=2))
    with GrowthWriter(book.path, larger(book, n_views=3)) as writer:
        unit = writer.pending()[0]
        writer.write_rows(unit.view, unit.start, arrays(*unit))
        waiting = len(writer.pending())
    shard = next(iter(sorted(book.path.glob("view-0000/rows-*0.safetensors"))))
    flip(shard, place_of(shard, "logits/values"))
    with pytest.raises(
        BookCorruptError, match=r"a new edition has to name it, and plan-000002.json of a growth is begun"
    ):
        repair(book.path, teacher(change=nearly), accept=True)
    assert Book(book.path).edition == 1
    repair(book.path, teacher())
    with GrowthWriter(book.path, larger(Book(book.path), n_views=3)) as writer:
        assert len(writer.pending()) == waiting


def test_a_compacted_and_grown_book(tmp_path):
    small = make(tmp_path / "b", plan(batch_size=10, n_samples=100))
    compact(tmp_path / "b")
    book = grow(tmp_path / "b", larger(small, n_samples=N))
    compact(tmp_path / "b")
    before = files(tmp_path / "b")
    shard = next((tmp_path / "b" / "view-0002").glob("*-00000004.safetensors"))
    flip(shard, shard.stat().st_size // 2)
    (fault,) = verify(tmp_path / "b")
    asked = []
    assert repair(tmp_path / "b", teacher(asked)).restored == (f"view-0002/{shard.name}",)
    assert files(tmp_path / "b") == before
    assert all(stop - start <= 10 for _, start, stop in asked)
    assert sum(stop - start for _, start, stop in asked) <= fault.stop - fault.start + 20
    (tmp_path / "b" / "edition-000004.json").write_bytes((tmp_path / "b" / "edition-000004.json").read_bytes()[:-40])
    repair(tmp_path / "b")
    assert Book(tmp_path / "b").content_digest == book.content_digest


def test_one_writer_and_only_a_book(book, tmp_path):
    lock = Lock(book.path / ".lock")
    with pytest.raises(BookLockedError):
        repair(book.path)
    lock.release()
    with pytest.raises(BookMissingError):
        repair(tmp_path / "none")
    shard = book.path / f"{SHARD}.safetensors"
    shard.unlink()
    shard.mkdir()
    with pytest.raises(BookFormatError, match="regular file"):
        repair(book.path, teacher())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_spoilt_the_book_is_mended_or_left(original, tmp_path_factory, data):
    """After a repair the book is what it was; a refusal leaves every whole file as it was."""
    root = tmp_path_factory.mktemp("spoilt") / "b"
    shutil.copytree(original.path, root)
    before = files(root)
    names = sorted(before)
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        kind = data.draw(st.sampled_from(["flip", "cut", "empty", "delete"]))
        path = Path(root / name)
        if kind == "flip":
            flip(path, data.draw(st.integers(0, len(before[name]) - 1)), data.draw(st.integers(0, 7)))
        elif kind == "delete":
            path.unlink()
        else:
            path.write_bytes(before[name][: len(before[name]) // 2 if kind == "cut" else 0])
    spoilt = files(root)
    try:
        repair(root, teacher(), keys=np.arange(N))
    except BookKDError:
        after = files(root)
        assert all(after.get(name) == content for name, content in before.items() if spoilt.get(name) == content)
        return
    assert verify(root) == []
    assert Book(root).content_digest == original.content_digest
    rows = np.arange(N)
    for view in range(V):
        np.testing.assert_array_equal(
            Book(root).gather(rows, view)["logits/values"], original.gather(rows, view)["logits/values"]
        )
