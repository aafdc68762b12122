"""Constants of a book: what a teacher has once goes in before the records, comes out to the bit, and goes along wherever the book goes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load_file
from tests.book.books import C, N, V, arrays, make, plan
from tests.book.test_growing import files
from tests.book.test_reader import resign, with_header

from bookkd.book import (
    Book,
    BookWriter,
    Constant,
    Dense,
    FieldPlan,
    GrowthWriter,
    Int8,
    Plan,
    TeacherInfo,
    compact,
    copy_book,
    extract,
    newest_plan,
    planned_constants,
    prune,
    repair,
    verify,
)
from bookkd.book._constants import Constants, packed_constants, put_constants
from bookkd.book.codecs.raw import RAW_DTYPES
from bookkd.core import files as core_files
from bookkd.core import jsonio
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookKDError,
    BookMismatchError,
    BookMissingError,
    ConfigError,
    TeacherOutputError,
    UnknownNameError,
)

ROOT = Path(__file__).parents[2]
WEIGHT = np.arange(C * 4, dtype=np.float32).reshape(C, 4) / 7
GIVEN = {
    "classifier/weight": WEIGHT,
    "pca/stage1": np.eye(4, dtype=np.float16)[:, :3],
    "margins": np.array([-0.5, 2.0]),
}
SMALL = {"n_samples": 32, "n_views": 1, "fields": {"logits": FieldPlan((C,), Dense())}, "unit_rows": 16}


def write(path, given=GIVEN, *, units=None, finish=True, **changes):
    with BookWriter(path, plan(**SMALL, **changes), constants=given) as writer:
        for unit in writer.pending()[:units]:
            writer.write(unit, {"logits": arrays(*unit)["logits"]})
        return writer.finish({"seconds": 1.5}) if finish else None


def assert_same(book, given=GIVEN):
    assert sorted(book.constants) == sorted(given)
    for name, array in given.items():
        np.testing.assert_array_equal(book.constants[name], array, strict=True)
    assert verify(book.path) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("constants") / "b").path


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "b")


def file_of(root, name="classifier/weight"):
    return root / newest_plan(root).constants[name].file


def test_they_come_out_to_the_bit_and_cannot_be_written_to(whole):
    book = Book(whole)
    assert_same(book)
    with pytest.raises(ValueError, match="read-only"):
        book.constants["margins"][0] = 1
    assert len(book.constants) == 3
    assert book.constants.get("margin") is None
    assert "margin" not in book.constants
    with pytest.raises(UnknownNameError, match=r"Unknown constant 'margin' .*Nearest: margins"):
        book.constants["margin"]
    assert "classifier/weight: float32 [6, 4]" in repr(book.constants)
    assert_same(pickle.loads(pickle.dumps(book)))


def test_each_is_a_file_that_others_read(whole):
    (found,) = load_file(file_of(whole)).items()
    assert found[0] == "values"
    np.testing.assert_array_equal(found[1], WEIGHT)
    assert file_of(whole).stem == xxhash.xxh3_128_hexdigest(file_of(whole).read_bytes())


def test_nothing_is_read_before_it_is_asked_for(root):
    for name in GIVEN:
        file_of(root, name).unlink()
    book = Book(root)
    assert list(book.constants) == sorted(GIVEN)
    book.read([0], 0)
    with pytest.raises(BookMissingError, match="to be a file of the book"):
        book.constants["margins"]


def test_a_book_without_them_is_what_it_was(tmp_path):
    book = write(tmp_path / "b", None)
    assert not (book.path / "constants").exists()
    assert "constants" not in json.loads((book.path / "plan.json").read_bytes())
    assert "constants" not in book.plan.identity()
    assert dict(book.constants) == {}


def test_another_constant_is_another_book(whole, tmp_path):
    other = {**GIVEN, "margins": np.array([-0.5, 2.5])}
    assert Book(whole).content_digest != write(tmp_path / "o", other).content_digest
    assert Book(whole).content_digest == write(tmp_path / "s").content_digest


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**GIVEN, "margins": np.array([-0.5, 2.5])}, r"made with constants\.margins\.xxh3_128 '\w+' \(this run has '\w+'\)"),
        ({"margins": GIVEN["margins"], "pca/stage1": GIVEN["pca/stage1"]}, r"constants\.classifier/weight .* \(this run has none\)"),
        (None, r"constants\.classifier/weight .*constants\.margins"),
        ({**GIVEN, "more": WEIGHT}, r"no constants\.more \(this run has"),
    ],
)  # fmt: skip
def test_others_are_refused_by_name(tmp_path, given, message, finish):
    write(tmp_path / "b", units=None if finish else 1, finish=finish)
    with pytest.raises(BookMismatchError, match=message):
        write(tmp_path / "b", given)


def test_a_plan_that_names_them_is_enough_where_they_are_there(whole, root, tmp_path):
    known = replace(newest_plan(root), keys_digest=None)
    (root / "edition-000001.json").unlink()
    with BookWriter(root, known) as writer:
        assert writer.pending() == []
        assert_same(writer.finish({"seconds": 1.5}))
    assert files(root) == files(whole)
    with pytest.raises(ConfigError, match=r"`constants\[classifier/weight\]` to be given, as the plan names it"):
        BookWriter(tmp_path / "new", known)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.array([[1.0, np.nan]]), TeacherOutputError, r"`constants\[x\]` to be finite, got nan at \[0, 1\]"),
        (np.array([-np.inf], dtype=np.float16), TeacherOutputError, r"finite, got -inf at \[0\]"),
        (np.float32(3), ConfigError, r"1 to 8 axes, none of them empty, got float32 of shape \(\)"),
        (np.zeros((2, 0)), ConfigError, "none of them empty"),
        (np.zeros((1,) * 9), ConfigError, "1 to 8 axes"),
        (np.array(["a"]), ConfigError, "an array of numbers"),
        (np.array([object()]), ConfigError, "an array of numbers"),
        (np.array([1j]), ConfigError, "an array of numbers"),
        ([[1], [1, 2]], ConfigError, "to be an array, got list"),
    ],
)
def test_what_is_no_constant(tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path / "b", {"x": given})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/../b", "A", "/etc", "a//b", "a/.b", "x" * 300, "a\x00", "c:\\x"])
def test_names_are_those_of_fields(tmp_path, name):
    with pytest.raises(ConfigError, match="to be a name such as"):
        write(tmp_path / "b", {name: WEIGHT})


def test_a_plan_takes_no_arrays_and_an_entry_only_what_may_be():
    with pytest.raises(ConfigError, match=r"`constants\[x\]` to be a Constant"):
        plan(constants={"x": WEIGHT})
    with pytest.raises(ConfigError, match="at most 1024"):
        plan(constants={f"x{place}": Constant("bool", (1,), 99, "0" * 32) for place in range(1025)})
    for wrong in (
        ("float32", (2**31, 2**31), 99, "0" * 32),
        ("float32", (4,), 16, "0" * 32),
        ("float32", (4,), 2**30, "0" * 32),
        ("float32", (4,), 100, "../x"),
    ):
        with pytest.raises(ConfigError, match="constant"):
            Constant(*wrong)
    with pytest.raises(UnknownNameError, match="dtype"):
        Constant("object", (4,), 100, "0" * 32)


VALUES = st.sampled_from(RAW_DTYPES).flatmap(
    lambda name: arrays_of.arrays(
        st.sampled_from([np.dtype(name), np.dtype(name).newbyteorder(">")]),
        arrays_of.array_shapes(max_dims=8, max_side=3),
        elements={"allow_nan": False, "allow_infinity": False} if name.startswith("float") else None,
    )
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.booleans())
def test_round_trip(round_trips, array, turned):
    """Of every dtype, of either order of bytes and of axes: what comes out has the same numbers, little-endian."""
    given = array.T if turned else array
    packed = packed_constants({"x": given})
    put_constants(round_trips, {"x": packed["x"].entry}, packed)
    found = Constants(round_trips, json_round_trip(packed["x"].entry))["x"]
    assert (found.dtype, found.shape) == (given.dtype.newbyteorder("<"), given.shape)
    assert found.tobytes() == np.ascontiguousarray(given.astype(found.dtype)).tobytes()


def json_round_trip(entry):
    found = jsonio.parse(jsonio.pretty(plan(constants={"x": entry}).to_json()), "", limit=2**20)
    return Plan.from_json(found).constants


@pytest.fixture(scope="module")
def round_trips(tmp_path_factory):
    return tmp_path_factory.mktemp("round")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GIVEN)), st.integers(0, 2**30), st.integers(0, 7))
def test_a_flipped_bit_is_found_and_named(whole, name, place, bit):
    path = file_of(whole, name)
    good = path.read_bytes()
    place %= len(good)
    path.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
    try:
        assert [fault.path for fault in verify(whole)] == [str(path.relative_to(whole))]
        with pytest.raises(BookCorruptError, match="The file was changed"):
            Book(whole).constants[name]
        Book(whole).read([0], 0)
    finally:
        path.write_bytes(good)


HARMS = {
    "delete": (BookMissingError, "got nothing there"),
    "empty": (BookCorruptError, "got 0 with"),
    "cut": (BookCorruptError, "The file was changed"),
    "longer": (BookFormatError, "to be at most"),
    "folder": (BookFormatError, "to be a regular file"),
    "pipe": (BookFormatError, "to be a regular file"),
    "link out": (BookFormatError, "to lie inside the book"),
    "folder's link out": (BookFormatError, "to lie inside the book"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_missing_cut_or_replaced(root, tmp_path, harm):
    path = file_of(root)
    data = path.read_bytes()
    if harm == "folder's link out":
        shutil.move(root / "constants", tmp_path / "outside")
        (root / "constants").symlink_to(tmp_path / "outside")
    else:
        path.unlink()
    if harm in ("empty", "cut", "longer"):
        path.write_bytes({"empty": b"", "cut": data[:-1], "longer": data + b"x"}[harm])
    elif harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    elif harm == "link out":
        (tmp_path / "outside").write_bytes(data)
        path.symlink_to(tmp_path / "outside")
    error, message = HARMS[harm]
    with pytest.raises(error, match=message):
        Book(root).constants["classifier/weight"]
    assert str(path.relative_to(root)) in [fault.path for fault in verify(root)]
    with pytest.raises(BookCorruptError, match="to be whole, got"):
        Book(root, verify="all")


def named_anew(root, change, data=None, name="classifier/weight"):
    """Change what the plan says of a constant, or its file, and renew every digest above, as an attacker could."""
    found = json.loads((root / "plan.json").read_bytes())
    entry = found["constants"][name]
    if data is not None:
        entry.update(bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
        (root / "constants" / f"{entry['xxh3_128']}.safetensors").write_bytes(data)
    change(entry)
    packed = jsonio.pretty(found)
    (root / "plan.json").write_bytes(packed)
    try:
        identity = jsonio.digest(Plan.from_json(found).identity())
    except BookKDError:
        identity = "0" * 32
    views = [view["content"] for view in json.loads((root / "edition-000001.json").read_bytes())["views"]]
    above = {"bytes": len(packed), "xxh3_128": xxhash.xxh3_128_hexdigest(packed), "identity": identity}
    content = jsonio.digest({"plan": identity, "views": views})
    resign(root / "edition-000001.json", lambda edition: edition.update(plan=above, content_digest=content))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"}, {"dtype": "int32"}, {"dtype": "object"}, {"dtype": 4}, {"shape": [4, C]}, {"shape": []}, {"shape": [0, 4]},
        {"shape": [-C, -4]}, {"shape": [2**61, 8]}, {"shape": [6.0, 4]}, {"shape": "6"}, {"bytes": 2**62}, {"bytes": 0}, {"bytes": True},
        {"bytes": 2**22}, {"xxh3_128": "../" * 10 + "xx"}, {"xxh3_128": "0" * 32}, {"xxh3_128": None}, {"xxh3_128": "F" * 32},
    ],
)  # fmt: skip
def test_a_hostile_plan_with_digests_that_fit(root, change):
    named_anew(root, lambda entry: entry.update(change))
    tracemalloc.start()
    with pytest.raises(BookKDError) as refused:
        Book(root).constants["classifier/weight"]
    assert "\n" not in str(refused.value)
    assert verify(root)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_hostile_list_of_constants(root):
    found = json.loads((root / "plan.json").read_bytes())
    for wrong in ([], 5, {"../x": found["constants"]["margins"]}, {"margins": 5}, {"margins": {}}):
        (root / "plan.json").write_bytes(jsonio.pretty({**found, "constants": wrong}))
        with pytest.raises(BookFormatError):
            newest_plan(root) and Book(root)


def renamed(header):
    header["other"] = header.pop("values")


def shorter(header):
    header["values"].update(shape=[C - 1, 4], data_offsets=[0, (C - 1) * 16])


def longer(header):
    header["values"].update(shape=[2**40, 4], data_offsets=[0, 2**44])


def more(header):
    header["values"].update(shape=[3, 4], data_offsets=[0, 48])
    header["other"] = {"dtype": "F32", "shape": [3, 4], "data_offsets": [48, 96]}


@pytest.mark.parametrize(
    "apply",
    [
        lambda data: b"",
        lambda data: (2**40).to_bytes(8, "little") + data[8:],
        lambda data: (2**23).to_bytes(8, "little") + data[8:],
        with_header(lambda header: header["values"].update(dtype="I32")),
        with_header(lambda header: header["values"].update(dtype="BF16")),
        with_header(lambda header: header["values"].update(shape=[4, C])),
        with_header(renamed),
        with_header(shorter),
        with_header(longer),
        with_header(more),
        with_header(lambda header: b'{"values": ' * 40),
    ],
)
def test_a_hostile_file_with_digests_that_fit(root, apply):
    data = apply(file_of(root).read_bytes())
    named_anew(root, lambda entry: None, data)
    tracemalloc.start()
    with pytest.raises((BookFormatError, BookCorruptError)):
        Book(root).constants["classifier/weight"]
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert verify(root)


def test_a_header_of_another_length_is_read(root):
    """Not ours, but a container like any other: numbers that do not lie at a multiple of 8 are copied."""
    data = with_header(lambda header: header.pop("__metadata__"))(file_of(root).read_bytes())
    named_anew(root, lambda entry: None, data)
    found = Book(root).constants["classifier/weight"]
    np.testing.assert_array_equal(found, WEIGHT)
    assert found.flags.aligned
    assert not found.flags.writeable


def test_a_folder_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "constants").symlink_to(tmp_path / "outside")
    with pytest.raises(BookFormatError, match="to be a folder of its own, got a link"):
        write(tmp_path / "b")
    assert not list((tmp_path / "outside").iterdir())


def test_a_folder_of_that_name_with_other_files_is_not_ours(tmp_path):
    (tmp_path / "b" / "constants").mkdir(parents=True)
    (tmp_path / "b" / "constants" / "mine.txt").touch()
    with pytest.raises(BookFormatError, match="a folder with constants"):
        write(tmp_path / "b")


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 12))
def test_stopped_at_any_file_then_resumed(whole, tmp_path_factory, steps):
    """Every file that a writer makes is a moment at which it may die; the first are constants."""
    root = tmp_path_factory.mktemp("stop") / "b"
    left, original = [steps], core_files._write_temporary

    def stop(path, pieces):
        if left[0] == 0:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        left[0] -= 1
        return original(path, pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_files, "_write_temporary", stop)
        try:
            write(root)
        except KeyboardInterrupt:
            pass
        else:
            assert steps > 8
    write(root)
    assert files(root) == files(whole)
    shutil.rmtree(root)


CHILD = """
import sys
from tests.book.test_constants import write
print("begun", flush=True)
write(sys.argv[1])
"""


def test_killed_at_some_moments_then_resumed(whole, tmp_path):
    root = tmp_path / "b"
    process = subprocess.Popen([sys.executable, "-c", CHILD, root], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"begun\n"
    until = time.monotonic() + 20
    while not (root / "constants").exists() and time.monotonic() < until:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    write(root)
    assert {name for name in files(root) if name != ".lock"} == set(files(whole))
    assert_same(Book(root))


def test_a_damaged_one_of_an_unfinished_book_is_written_again(tmp_path):
    write(tmp_path / "b", units=1, finish=False)
    file_of(tmp_path / "b").write_bytes(b"else")
    file_of(tmp_path / "b", "margins").unlink()
    assert_same(write(tmp_path / "b"))


def test_copied_and_compacted(whole, root, tmp_path):
    copy = copy_book(tmp_path / "copy", Book(whole))
    assert_same(copy)
    assert copy.content_digest == Book(whole).content_digest
    assert_same(copy_book(tmp_path / "int8", Book(whole), codec=Int8()))
    left = root / "constants" / ("0" * 32 + ".safetensors")
    left.write_bytes(b"of an abandoned growth")
    (root / "constants" / "mine.txt").touch()
    compact(root)
    prune(root)
    assert_same(Book(root))
    assert Book(root).edition == 2
    assert not left.exists()
    assert (root / "constants" / "mine.txt").exists()


@pytest.mark.parametrize("harm", ["cut", "delete"])
def test_repair_takes_them_from_who_has_them(whole, root, harm):
    for name in ("classifier/weight", "margins"):
        path = file_of(root, name)
        path.unlink() if harm == "delete" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BookCorruptError, match=r"constants/\w+.safetensors: the constant .* none was given"):
        repair(root)
    with pytest.raises(
        BookCorruptError, match="the constant margins stands nowhere else, and another was given or worked out"
    ):
        repair(root, constants={**GIVEN, "margins": WEIGHT})
    assert repair(root, constants=GIVEN).restored == (str(file_of(root, "margins").relative_to(root)),)
    assert files(root) == files(whole)


def growing(root, larger, **options):
    with GrowthWriter(root, larger, **options) as writer:
        for view, start, stop in writer.pending():
            said = arrays(view, start, stop)["logits"]
            writer.write_rows(view, start, dict.fromkeys(writer.fields, said))
        return writer.finish({"seconds": 1.5})


def test_they_stay_when_a_book_grows(root):
    grown = growing(root, replace(newest_plan(root), n_views=2, n_samples=40, unit_rows=None))
    assert_same(grown)
    assert grown.edition == 2
    with pytest.raises(BookMismatchError, match=r"`constants\[classifier/weight\]` to be the book's, .* got none"):
        growing(root, replace(grown.plan, n_views=3, constants={}))
    with pytest.raises(
        BookMismatchError, match=r"`constants\[margins\]` to be the book's, float64 \[2\] .* got float32"
    ):
        growing(root, replace(grown.plan, n_views=3), constants={"margins": WEIGHT})


def test_constants_alone_are_added_to_a_finished_book(root):
    before = Book(root)
    added = {"bias": np.zeros(C, dtype=np.float32)}
    shards = sorted(root.glob("view-*/*"))
    grown = growing(root, before.plan, constants=added)
    assert_same(grown, GIVEN | added)
    assert (grown.edition, sorted(root.glob("view-*/*"))) == (2, shards)
    assert grown.content_digest != before.content_digest
    assert_same(Book(root, 1), GIVEN)
    assert growing(root, before.plan, constants=added).edition == 2  # they are there
    prune(root)
    assert_same(Book(root), GIVEN | added)


def test_a_growth_is_gone_on_with_only_with_its_own(root):
    before = newest_plan(root)
    with GrowthWriter(root, replace(before, n_views=2), constants={"bias": np.zeros(C)}):
        pass
    with pytest.raises(BookMismatchError, match=r"edition 2 was begun, with constants\.bias"):
        GrowthWriter(root, replace(before, n_views=2))
    assert_same(
        growing(root, replace(before, n_views=2), constants={"bias": np.zeros(C)}), GIVEN | {"bias": np.zeros(C)}
    )


def test_further_teachers_bring_their_own_and_extraction_takes_them_apart(root, tmp_path):
    """The files stay where they are under their new names."""
    book = Book(root)
    fields = {f"members/{place}/logits": book.fields["logits"] for place in range(2)}
    moved = {f"members/0/{name}": entry for name, entry in book.plan.constants.items()}
    teachers = (*book.plan.teachers, TeacherInfo("other", "bb22"))
    larger = replace(book.plan, fields=fields, teachers=teachers, constants=moved)
    second = {"members/1/classifier/weight": -WEIGHT, "shared": np.ones(3)}
    grown = growing(root, larger, names={"logits": "members/0/logits"}, constants=second)
    assert_same(grown, {f"members/0/{name}": array for name, array in GIVEN.items()} | second)
    assert len(list((root / "constants").iterdir())) == 5
    assert_same(extract(tmp_path / "0", grown, teachers=[0]), GIVEN | {"shared": np.ones(3)})
    assert_same(
        extract(tmp_path / "1", grown, teachers=["other"]), {"classifier/weight": -WEIGHT, "shared": np.ones(3)}
    )
    swapped = extract(tmp_path / "s", grown, teachers=[1, 0])
    np.testing.assert_array_equal(swapped.constants["members/0/classifier/weight"], -WEIGHT)
    np.testing.assert_array_equal(swapped.constants["members/1/classifier/weight"], WEIGHT)


def test_extracted(whole, tmp_path):
    book = Book(whole)
    assert_same(extract(tmp_path / "rows", book, samples=slice(0, 8)))
    with pytest.raises(
        ConfigError, match=r"classifier/weight of shape \[6, 4\], which may have one a class .*From Python"
    ):
        extract(tmp_path / "classes", book, classes=["a", "c"])
    cut = {"classifier/weight": WEIGHT[[0, 2]]}
    assert_same(extract(tmp_path / "classes", book, classes=["a", "c"], constants=cut), cut)
    other = {name: GIVEN[name] for name in ("margins", "pca/stage1")}
    assert_same(extract(tmp_path / "no", write(tmp_path / "o", other), classes=["a", "c"]), other)


def test_equal_arrays_are_one_file(tmp_path):
    given = {"a": WEIGHT, "b": WEIGHT.copy(), "c": WEIGHT.astype(np.float64)}
    book = write(tmp_path / "b", given)
    assert_same(book, given)
    assert len(list((book.path / "constants").iterdir())) == 2
    assert planned_constants(given) == book.plan.constants


def test_records_need_none_of_it(whole, tmp_path):
    """A whole book of several views and fields beside constants: what is read of records is what it was."""
    with BookWriter(tmp_path / "b", plan(), constants=GIVEN) as writer:
        for unit in writer.pending():
            writer.write(unit, arrays(*unit))
        mine = writer.finish()
    other = make(tmp_path / "o")
    for view in range(V):
        for part, array in other.gather(np.arange(N), view).items():
            np.testing.assert_array_equal(mine.gather(np.arange(N), view)[part], array)
