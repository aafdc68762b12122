"""Bytes of any kind in place of any file: an error of ours, bounded memory, bounded time; and a test for each line of the abuse list."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xxhash
from benchmarks.faults import folders, readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.book.books import C, N, make, plan
from tests.book.test_growing import grow, larger
from tests.book.test_reader import find, rechain, resign

from bookkd.book import Book, FieldPlan, Sampled, _layout, _manifest, compact, shortfall, verify
from bookkd.core import jsonio
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookKDError,
    BookMissingError,
    BookUnfinishedError,
    BookVersionError,
)

ROOT = Path(__file__).parents[2]
KINDS = sorted(readers.READERS)
MANIFESTS = {"plan": "data", "edition": "cost", "sidecar": "fidelity", "view": "note"}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=400))
def test_any_bytes(kind, data):
    readers.judge(kind, data)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.data())
def test_any_edit_of_a_manifest_or_header(kind, data):
    """With digests that fit, so that nothing else is in the way of the values."""

    def choose(below):
        return data.draw(st.integers(0, below - 1))

    readers.judge(kind, readers.edited(kind, choose, lambda: data.draw(st.sampled_from(readers.SCALARS))))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 2**24), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_bytes_inside_of_a_whole_file(kind, changes):
    data = bytearray(readers.whole()["plan" if kind == "book" else kind])
    for place, value in changes:
        data[place % len(data)] = value
    readers.judge(kind, bytes(data))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(folders.WRITERS)), st.binary(max_size=120))
def test_any_folder_that_is_written_to(kind, data):
    """Nothing outside of it changes, and whoever writes is refused in a moment or done."""
    pytest.importorskip("pyarrow")
    folders.place()
    folders.judge(kind, data)


def test_the_judge_of_folders_finds_what_may_not_be(monkeypatch):
    def outside(root):
        (root.parent / "outside" / "new").touch()

    def waiting(root):
        os.mkfifo(root / "pipe")
        (root / "pipe").read_bytes()

    folders.place()
    monkeypatch.setattr(folders, "SECONDS", 1)
    for work, message in (
        (outside, "changed outside"),
        (waiting, "not done in 1 s"),
        (lambda root: 1 / 0, "ZeroDivision"),
    ):
        monkeypatch.setitem(folders.WRITERS, "grow", (("whole",), work))
        with pytest.raises(readers.BrokenError, match=message):
            folders.judge("grow", b"")


def test_the_judge_finds_what_may_not_be(monkeypatch):
    def greedy(data):
        _ = bytearray(readers.LIMIT_BYTES + 2**20)

    for work, message in (
        (lambda data: 1 / 0, "ZeroDivisionError"),
        (lambda data: (_ for _ in ()).throw(BookFormatError("two\nlines")), "several lines"),
        (greedy, "bytes of memory"),
    ):
        monkeypatch.setitem(readers.READERS, "plan", work)
        with pytest.raises(readers.BrokenError, match=message):
            readers.judge("plan", b"")


def with_value(kind, inner):
    found = json.loads(readers.whole()[kind])
    found[MANIFESTS[kind]] = "@"
    return json.dumps(found).replace('"@"', f'{{"x": {inner}}}').encode()


MOST = 2**24 - 4000
BOMBS = {
    "objects": lambda: "[" + "{}," * (MOST // 3) + "0]",
    "lists": lambda: "[" + "[]," * (MOST // 3) + "0]",
    "objects in objects": lambda: "[" + '{"a":{"b":[]}},' * (MOST // 15) + "0]",
    "numbers": lambda: "[" + "0," * (MOST // 2) + "0]",
    "texts": lambda: "[" + '"ab",' * (MOST // 5) + '"a"]',
    "keys": lambda: "{" + ",".join(f'"{key:x}":0' for key in range(MOST // 12)) + "}",
    "escaped keys": lambda: "{" + ",".join(f'"\\"{key:x}":0' for key in range(100_000)) + "}",
    "wide letters": lambda: '"' + "a" * (MOST - 10) + '\U0001f600"',
}


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_says_much_is_refused_before_it_is_parsed(bomb, kind):
    data = with_value(kind, BOMBS[bomb]())
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(BookFormatError, match=r"more values than a file of this length may have|different keys"):
        readers.READERS[kind](data)
    spent, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(data) + 2**20 if bomb == "wide letters" else peak < 2 * len(data) + 2**26
    assert spent < 5


@pytest.mark.parametrize("kind", MANIFESTS)
def test_as_much_as_may_be_said_stays_within_the_bound(kind):
    room = 3 * 2**24 * 9 // 10
    for value, cost in (('{"a":0},', 322), ('"\u0100",', 93), ("0.1,", 90)):
        assert readers.judge(kind, with_value(kind, "[" + value * (room // cost) + "0]")) == ""


def test_the_largest_manifests_of_the_format_are_read():
    hashes = {"logits/values": np.arange(_layout.MAX_HASHES, dtype=np.uint64) + np.uint64(2**63)}
    rows = _layout.MAX_HASHES
    sidecar = _manifest.Sidecar(0, 0, rows, 1, "0" * 32, 1, hashes, "0" * 32, {})
    read = _manifest.Sidecar.from_json(jsonio.parse(sidecar.to_bytes(), "", limit=_layout.JSON_LIMIT), "")
    np.testing.assert_array_equal(read.blocks["logits/values"], hashes["logits/values"])
    starts = np.arange(_layout.MAX_SHARDS) * 2**24
    stems = [_layout.shard_stem(start, start + 2**24, 7) for start in starts.tolist()]
    sizes = np.full(len(starts), 2**40)
    view = _manifest.ViewFile(0, stems, starts, starts + 2**24, sizes, sizes, ["f" * 32] * len(starts))
    parsed = jsonio.parse(view.to_bytes(), "", limit=_layout.JSON_LIMIT)
    assert _manifest.ViewFile.from_json(parsed, 2**40, "").stems == stems
    entry = _manifest.ViewEntry("view-ffffffff.json", 2**24, "f" * 32, "e" * 32)
    edition = _manifest.Edition(1, 1, (entry,) * _layout.MAX_VIEWS, 1, "0" * 32, "0" * 32, {}, {})
    parsed = jsonio.parse(edition.to_bytes(), "", limit=_layout.JSON_LIMIT)
    assert len(_manifest.Edition.from_json(parsed, "").views) == _layout.MAX_VIEWS


def test_a_name_for_each_of_a_quarter_of_a_million_classes():
    """As a language model has them."""
    found = {**json.loads(readers.whole()["plan"]), "class_names": [f"token {index}" for index in range(250_000)]}
    assert readers.judge("plan", json.dumps(found).encode()) == ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "b"
    fields = {"logits": FieldPlan((C,), Sampled(9, 2.0)), "probe/hash": plan().fields["probe/hash"]}
    make(path, plan(fields=fields), keys=np.arange(N, dtype=np.uint64))
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "b")


def renamed_view(root, change):
    """Change the file of view 0 and its name and digest in the edition."""
    path = find(root, "view-0000/view-")
    found = json.loads(path.read_bytes())
    change(found)
    packed = jsonio.pretty(found)
    path.write_bytes(packed)
    entry = {"bytes": len(packed), "xxh3_128": xxhash.xxh3_128_hexdigest(packed)}
    resign(root / "edition-000001.json", lambda edition: edition["views"][0].update(entry))


def to_edition(change):
    return lambda root, size: resign(root / "edition-000001.json", lambda found: change(found, size))


def to_view(key):
    return lambda root, size: renamed_view(root, lambda found: found[key].__setitem__(0, size))


def to_header(tensor, key):
    def change(root, size):
        def apply(data):
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            header[tensor][key][0 if key == "shape" else 1] = size
            text = json.dumps(header).encode()
            return len(text).to_bytes(8, "little") + text + data[8 + length :]

        rechain(root, 0, apply)

    return change


LIES = {
    "plan": to_edition(lambda found, size: found["plan"].update(bytes=size)),
    "view file": to_edition(lambda found, size: found["views"][0].update(bytes=size)),
    "samples": to_edition(lambda found, size: found.update(n_samples=size)),
    "shard": to_view("bytes"),
    "sidecar": to_view("sidecar_bytes"),
    "last sample": to_view("stop"),
    "shard in its sidecar": lambda root, size: rechain(root, 0, sidecar_change={"bytes": size}),
    "header": lambda root, size: rechain(root, 0, lambda data: (size % 2**64).to_bytes(8, "little") + data[8:]),
    "shape": to_header("logits/ends", "shape"),
    "offset": to_header("logits/ends", "data_offsets"),
    "items": to_header("logits/entries", "shape"),
}


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**40, 2**62, 2**64 - 1, 2**200, -1])
@pytest.mark.parametrize("what", LIES)
def test_sizes_that_lie_take_no_memory(copy, what, size):
    LIES[what](copy, size)
    tracemalloc.start()
    with pytest.raises(BookKDError):
        Book(copy).read(np.arange(N), 0)
    faults = verify(copy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faults
    assert peak < 2**23  # `verify` hashes in pieces of 4 MiB


def test_an_empty_shard_whose_manifests_say_so(copy):
    rechain(copy, 0, lambda data: b"")
    with pytest.raises(BookCorruptError, match="to start with a header, got 0 bytes"):
        Book(copy).read([0], 0)
    with pytest.raises(BookCorruptError, match="to start with a header, got 0 bytes"):
        compact(copy)
    assert verify(copy)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), key=st.sampled_from(["fidelity", "cost"]))
def test_figures_that_are_none_are_told_and_not_believed(whole, data, key):
    """What an edition says of losses, of a choice and of cost may be any JSON."""
    path = whole / "edition-000001.json"
    good = path.read_bytes()
    scalars = st.sampled_from([value for value in readers.SCALARS if value != "\ud800"])
    figures = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4)
    )
    try:
        resign(path, lambda found: found.update({key: {"logits": data.draw(figures)}}))
        book = Book(whole)
        assert all("\n" not in line for line in shortfall(book))
        book.read([0], 0)
        assert verify(whole) == []
    finally:
        path.write_bytes(good)


NAMES = st.sampled_from(
    [
        "choice",
        "temperatures",
        "unpromised",
        "1",
        "2",
        "4",
        "mean",
        "p99",
        "kept_mass",
        "n",
        "max_kl",
        "candidates",
        "asked",
        "chosen",
    ]
)


def grown(path):
    book = make(path, plan(n_samples=100, n_views=1), keys=np.arange(100, dtype=np.uint64))
    return grow(path, larger(book, n_samples=N), keys=np.arange(N, dtype=np.uint64))


@pytest.mark.parametrize("name", ["plan-000002.json", "edition-000002.json"])
def test_a_later_version_of_a_later_edition_is_refused_by_version(tmp_path, name):
    grown(tmp_path / "b")
    (tmp_path / "b" / name).write_text('{"format_version": 2, "else": [null]}')
    with pytest.raises(BookVersionError, match=r"version 1 at most, got 2 .*upgrade bookkd"):
        Book(tmp_path / "b")
    assert verify(tmp_path / "b")[0].path == name
    assert Book(tmp_path / "b", 1).n_samples == 100


@pytest.mark.parametrize("name", ["plan-000002.json", "keys-000002.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", "plan.json"])
def test_plan_and_keys_of_a_later_edition(tmp_path, name, content):
    path = grown(tmp_path / "b").path
    if content is None:
        (path / name).unlink()
    else:
        data = (path / name.replace("-000002", "")).read_bytes() if isinstance(content, str) else content
        (path / name).write_bytes(data)
    with pytest.raises((BookMissingError, BookCorruptError, BookFormatError)):
        Book(path, verify="all")
    assert [fault.path for fault in verify(path)] == [name]
    assert verify(path, 1) == []


ABUSE = {
    "no folder, an empty or another folder": "test_reader.test_no_book",
    "a plan without an edition": "test_reader.test_unfinished",
    "an edition that is not there": "test_reader.test_unknown_edition_and_options",
    "`format_version` above 1": "test_reader.test_a_newer_version_is_refused_before_anything_else, test_hostile.test_a_later_version_of_a_later_edition_is_refused_by_version",
    "a file deleted": "test_reader.test_every_file_missing_cut_or_replaced",
    "the file of a constant deleted, cut, longer, with a flipped bit, or a folder, pipe or link out of the book in its place": "test_constants.test_a_file_missing_cut_or_replaced, test_constants.test_a_flipped_bit_is_found_and_named",
    "a constant of another dtype, shape, size or name than any has, in the plan or in its file": "test_constants.test_a_hostile_plan_with_digests_that_fit, test_constants.test_a_hostile_list_of_constants, test_constants.test_a_hostile_file_with_digests_that_fit",
    "a constant of NaN or infinity, for a writer": "test_constants.test_what_is_no_constant",
    "for a writer: a link in place of the folder `constants`": "test_constants.test_a_folder_that_is_a_link_is_not_written_through",
    "a file pruned under a reader that has not mapped it": "test_compacting.test_readers_go_on_while_a_book_is_compacted_and_pruned",
    "a plan or keys named in an edition by another name than the forms above": "test_growing.test_an_edition_names_files_of_the_forms_alone",
    "`plan-000002.json` without its edition": "test_growing.test_an_interrupted_growth_is_gone_on_with",
    "plan or keys of a later edition deleted, emptied, or those of an earlier one": "test_hostile.test_plan_and_keys_of_a_later_edition",
    "files of an abandoned growth or a killed compaction, constants that no plan names": "test_constants.test_copied_and_compacted, test_compacting.test_pruned_are_old_editions_and_what_they_alone_name, test_editions.test_killed_at_some_moments",
    "a sidecar of another plan under the name of a growth's shard": "test_growing.test_a_sidecar_of_another_plan_is_not_taken",
    "a file cut, emptied or longer": "test_reader.test_every_file_missing_cut_or_replaced, test_reader.test_a_hostile_shard_with_digests_that_fit",
    "an empty shard whose manifests say that it is": "test_hostile.test_an_empty_shard_whose_manifests_say_so",
    "a flipped bit in plan, edition, view file, sidecar or keys": "test_reader.test_a_flipped_bit_is_found_and_named",
    "a flipped bit in a block": "test_reader.test_a_flipped_block_is_named_with_its_samples_and_only_its_rows_are_refused",
    "a flipped bit in a shard's header": "test_reader.test_a_flipped_bit_is_found_and_named",
    "a folder, pipe or device in place of a file": "test_reader.test_every_file_missing_cut_or_replaced",
    "a link that leaves the book": "test_reader.test_every_file_missing_cut_or_replaced, test_reader.test_a_link_inside_the_book_is_followed",
    "for a writer: a link in place of a view's folder or of `stats`, wherever it leads": "test_hostile_writing.test_a_view_folder_that_is_a_link, test_hostile_writing.test_a_folder_of_a_view_to_come_that_is_a_link, test_hostile_writing.test_statistics_in_a_folder_that_is_a_link, test_hostile_writing.test_the_root_itself_may_be_a_link",
    "a link under the name of a temporary file": "test_hostile_writing.test_a_link_under_the_name_of_a_temporary_file",
    "a link, pipe, folder or file of several names as `.lock`": "test_hostile_writing.test_a_lock_that_is_something_else",
    "for repair: many sidecars of the same rows, a manifest full of digests, an edition of a high number": "test_hostile_writing.test_many_sidecars_for_the_same_rows, test_hostile_writing.test_a_damaged_sidecar_full_of_digests, test_hostile_writing.test_a_damaged_edition_of_a_high_number_that_says_much",
    "a name with `..` or `/` in a manifest": "test_reader.test_a_wrong_edition, test_reader.test_a_hostile_view_file_with_digests_that_fit",
    "JSON: too long, too deep, a key twice, NaN, 1e999, a number of 5000 digits, not an object": "test_hostile.test_json_that_is_none",
    "JSON that says more values than its length leaves room for, or more than 65536 different keys": "test_hostile.test_a_small_file_that_says_much_is_refused_before_it_is_parsed",
    "text or fractions where numbers belong, true for 1, numbers out of range": "test_reader.test_a_wrong_edition, test_hostile.test_any_edit_of_a_manifest_or_header",
    "figures of losses, of a choice or of cost that are none": "test_hostile.test_figures_that_are_none_are_told_and_not_believed",
    "sizes that lie, of files, headers, shapes or samples": "test_hostile.test_sizes_that_lie_take_no_memory",
    "shards that overlap, leave a hole, repeat or do not cover all samples": "test_reader.test_a_hostile_view_file_with_digests_that_fit",
    "a header longer than 4 MiB or than the file": "test_reader.test_a_hostile_shard_with_digests_that_fit",
    "tensors that overlap, leave a hole, end elsewhere, have 2^61 rows, an empty axis or negative sizes": "test_reader.test_a_hostile_shard_with_digests_that_fit",
    "tensors missing, added, renamed, of another dtype or shape": "test_reader.test_a_hostile_shard_with_digests_that_fit",
    "hashing blocks of no power of two, too few hashes": "test_reader.test_a_hostile_sidecar_with_digests_that_fit",
    "ends that fall inside of a block, or give a row more items than its codec allows": "test_ragged.test_hostile_ends_with_digests_that_fit",
    "last ends of blocks that do not add up to the items, parts of one field with different numbers of items": "test_ragged.test_hostile_ends_with_digests_that_fit, test_ragged.test_hostile_numbers_of_items",
    "a flipped bit in the last end of a block": "test_ragged.test_a_flipped_bit_is_named_and_never_read",
    "a ragged part without items where others have some, more items than all rows may have": "test_ragged.test_hostile_numbers_of_items",
    "hashing blocks of another size than the plan's, around ragged parts": "test_ragged.test_blocks_of_another_size_than_the_plans",
    "draws that do not add up, that fall, repeat or name no class; a class that is none": "test_sampled.test_entries_that_no_codec_writes, test_sampled.test_a_hostile_record_is_refused_with_its_sample_and_view",
    "kept classes that are none or stand twice, values that rise, a tail that is no share": "test_codecs.test_a_record_that_top_k_does_not_write_is_refused, test_sampled.test_a_hostile_record_is_refused_with_its_sample_and_view",
    "an unknown codec, an unknown option": "test_reader.test_an_unknown_codec",
    "a sample, view, field or key that is not there": "test_reader.test_asking_for_what_is_not_there, test_reader.test_keys",
    "a sidecar of another book in an unfinished one": "test_writer.test_a_damaged_or_foreign_sidecar_means_the_unit_is_written_again",
    "on a server: a manifest that is longer than it may be": "remote/test_faults.test_a_manifest_that_is_too_long_is_not_taken",
    "a transfer that is cut off": "remote/test_faults.test_cut_off_in_the_middle, remote/test_faults.test_always_cut_off_ends",
    "5xx, 429 and 408, again and again": "remote/test_faults.test_a_storm_of_503_is_waited_out, remote/test_faults.test_a_storm_that_does_not_end_is_one_line",
    "a shard replaced under the reader, or sent otherwise than it is": "remote/test_faults.test_a_shard_replaced_is_asked_for_twice_and_refused, remote/test_faults.test_a_shard_that_is_wrong_once_is_fetched_again",
    "a server that says another size than it sends, or more than it was asked for": "remote/test_faults.test_a_server_that_lies_about_sizes",
    "an object that has expired": "remote/test_faults.test_an_object_that_expires",
    "a file of the cache damaged, cut or left behind": "remote/test_cache.test_damage_in_the_cache_is_mended, remote/test_cache.test_damage_in_a_header_is_mended, remote/test_cache.test_what_a_killed_process_left_is_fetched_anew, remote/test_cache.test_what_arrives_is_nobody_elses_to_lose_and_what_is_left_behind_is",
    "a shard in the cache from another server with the same digest": "remote/test_cache.test_two_books_with_equal_shards_of_one_server_share_them_and_others_do_not",
    "an address with credentials": "remote/test_secrets.test_an_address_with_credentials_is_refused_without_repeating_them",
    "an import of a small file that claims much: lists, archives or lines that grow out of nothing, one record far wider than all others": "../interchange/test_interchange_memory.test_distillkit_lists_that_compress_to_nothing, ../interchange/test_interchange_memory.test_megatron_arrays_out_of_nothing, ../interchange/test_interchange_memory.test_vllm_lines_that_would_be_many_objects, ../interchange/test_interchange_memory.test_distillkit_one_wide_position_among_many",
    "two writers at once": "remote/test_round_trip.test_a_race_has_one_winner, remote/test_round_trip.test_two_writers_of_other_bits_cannot_mix",
    "a web server that has an answer to every name": "remote/test_faults.test_a_server_with_a_page_for_every_name_is_not_asked_for_ever",
    "a listing that never ends": "",
    "a file cut *while* it is mapped": "",
}
"""Line of the abuse list -> the tests that hold it; none where it is out of the promise."""


def test_every_line_of_the_abuse_list_has_its_test():
    chapter = (ROOT / "docs" / "book-format.md").read_text(encoding="utf-8").split("\n## Abuse list\n")[1]
    lines = re.findall(r"^\| (.+?) \| (.+) \|$", chapter, flags=re.M)[1:]
    assert [line for line, _ in lines] == list(ABUSE)
    for line, happens in lines:
        assert ABUSE[line] or "outside of the promise" in happens
        for name in filter(None, ABUSE[line].split(", ")):
            module, _, test = name.rpartition(".")
            tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.parametrize("kind", ["plan", "edition", "view", "sidecar"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b" " * (2**24 + 1), "at most 16777216 bytes"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nest at most 32 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "valid JSON"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b'{"a": NaN}', "NaN is not allowed"),
        (b'{"a": 1e999}', "too large for a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "valid JSON"),
        (b"[1]", "a JSON object"),
        (b'{"a": "\xff"}', "valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "valid JSON"),
        (b"", "valid JSON"),
    ],
)
def test_json_that_is_none(kind, text, message):
    with pytest.raises(BookFormatError, match=message):
        readers.READERS[kind](text)


def test_a_book_that_lost_every_edition_says_so(tmp_path):
    path = grown(tmp_path / "b").path
    for number in (1, 2):
        (path / _layout.edition_name(number)).unlink()
    with pytest.raises(BookUnfinishedError, match="a plan without an edition"):
        Book(path)
