"""Writing: units, resume, refusals, and that a killed writer leaves a book that can be finished."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.book.books import C, N, V, arrays, make, plan

from bookkd.book import (
    Book,
    BookWriter,
    Dense,
    FieldPlan,
    Int8,
    Plan,
    Raw,
    TeacherInfo,
    TopK,
    Unit,
    verify,
)
from bookkd.book._comparison import difference
from bookkd.core import files, lock
from bookkd.core.errors import (
    BookFormatError,
    BookKDError,
    BookLockedError,
    BookMismatchError,
    BookUnfinishedError,
    ConfigError,
    StorageError,
    TeacherOutputError,
)

ROOT = Path(__file__).parents[2]


def test_pending_is_in_order_and_shrinks(tmp_path):
    with BookWriter(tmp_path / "b", plan()) as writer:
        pending = writer.pending()
        assert pending[:4] == [(0, 0, 64), (0, 64, 128), (0, 128, 150), (1, 0, 64)]
        assert len(pending) == 3 * V
        writer.write(pending[1], arrays(*pending[1]))
        assert writer.pending() == [pending[0], *pending[2:]]


def test_rows_in_pieces_equal_whole_units(tmp_path):
    whole = make(tmp_path / "whole")
    with BookWriter(tmp_path / "pieces", plan()) as writer:
        for view in range(V):
            for start in range(0, N, 35):
                stop = min(start + 35, N)
                writer.write_rows(view, start, arrays(view, start, stop))
        pieces = writer.finish()
    assert pieces.content_digest == whole.content_digest
    assert pieces.fidelity == whole.fidelity


def test_resume_equals_an_uninterrupted_book_and_keeps_committed_rows(tmp_path):
    whole = make(tmp_path / "whole")
    for units in range(4):
        make(tmp_path / "b", units=units, finish=False)
    # A producer that says everything again: rows of committed units are passed over.
    with BookWriter(tmp_path / "b", plan()) as writer:
        assert len(writer.pending()) == 3 * V - 6
        for view in range(V):
            writer.write_rows(view, 0, arrays(view, 0, N))
        resumed = writer.finish({"seconds": 99})
    assert resumed.content_digest == whole.content_digest
    assert resumed.fidelity == whole.fidelity


def test_a_finished_book_has_nothing_pending_and_refuses_writes(tmp_path):
    book = make(tmp_path / "b")
    with BookWriter(tmp_path / "b", plan(unit_rows=None, block_rows=None)) as writer:
        assert writer.pending() == []
        assert writer.finish().content_digest == book.content_digest
        with pytest.raises(ConfigError, match="`writer` to be open, got a finished or closed one"):
            writer.write(Unit(0, 0, 64), arrays(0, 0, 64))


def test_finish_refuses_while_units_are_pending(tmp_path):
    with BookWriter(tmp_path / "b", plan()) as writer:
        writer.write(Unit(0, 0, 64), arrays(0, 0, 64))
        with pytest.raises(BookUnfinishedError, match=r"8 of 9 pending, first Unit\(view=0, start=64, stop=128\)"):
            writer.finish()
    with pytest.raises(BookUnfinishedError, match=r"a plan without an edition\. Run `bookkd make` again"):
        Book(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": (TeacherInfo("resnet", "bb22"),)}, r"teachers\[0\].digest 'aa11' \(this run has 'bb22'\)"),
        ({"teachers": ()}, r"teachers \[\{'digest': 'aa11'"),
        ({"data": {"name": "toy", "digest": "d1"}}, r"data.digest 'd0' \(this run has 'd1'\)"),
        ({"views": {"seed": 8, "transform": {"crop": [4, 4]}}}, r"views.seed 7 \(this run has 8\)"),
        ({"views": {"seed": 7, "transform": {"crop": [4, 5]}}}, r"views.transform.crop\[1\] 4 \(this run has 5\)"),
        ({"views": {"seed": 7}}, r"views.transform .* \(this run has none\)"),
        (
            {"fields": {**plan().fields, "logits": FieldPlan((C,), Dense("float32"))}},
            "codec.configuration.dtype 'float16'",
        ),
        ({"fields": {"logits": FieldPlan((C,), Dense())}}, r"fields.features/layer1 .* \(this run has none\)"),
        ({"n_views": 4}, r"n_views 3 \(this run has 4\)"),
        ({"batch_size": 1}, r"batch_size 256 \(this run has 1\)"),
        ({"unit_rows": 32}, r"unit_rows 64 \(this run has 32\)"),
        ({"masked_classes": (2,)}, "masked_classes"),
    ],
)
@pytest.mark.parametrize("finish", [False, True])
def test_another_plan_is_refused_by_name(tmp_path, changes, message, finish):
    make(tmp_path / "b", units=None if finish else 2, finish=finish)
    with pytest.raises(BookMismatchError, match=message):
        BookWriter(tmp_path / "b", plan(**changes))
    assert not (tmp_path / "b" / ".lock").exists()


def test_how_the_run_was_like_is_no_difference(tmp_path):
    make(tmp_path / "b", units=2, finish=False)
    same = plan(threads=8, device="cuda", versions={"torch": "9"}, teachers=(TeacherInfo("renamed", "aa11"),))
    with BookWriter(tmp_path / "b", same) as writer:
        assert len(writer.pending()) == 3 * V - 2


def test_keys_are_part_of_the_plan(tmp_path):
    keys = np.arange(N, dtype=np.uint64)[::-1] * 7
    make(tmp_path / "b", keys=keys, units=1, finish=False)
    with pytest.raises(BookMismatchError, match="keys_digest"):
        BookWriter(tmp_path / "b", plan())
    (tmp_path / "b" / "keys.safetensors").unlink()
    book = make(tmp_path / "b", keys=keys)
    np.testing.assert_array_equal(book.keys, keys)
    np.testing.assert_array_equal(book.rows_of([0, 14]), [N - 1, N - 3])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.zeros(N, dtype=np.uint64), "149 repeated"),
        (np.arange(N - 1), r"shape \(150,\)"),
        (np.arange(N) - 1, "whole numbers from 0"),
        (np.arange(N) * 1.0, "whole numbers from 0"),
    ],
)
def test_bad_keys(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        BookWriter(tmp_path / "b", plan(), keys=keys)


def spoilt(field, row, value):
    found = arrays(1, 64, 128)
    found[field] = found[field].astype(np.float64) if found[field].dtype.kind == "f" else found[field]
    found[field][row] = value
    return found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spoilt("logits", 3, np.nan), r"`logits` to be finite, got 'nan' \(sample 67, view 1, teacher resnet\)"),
        (spoilt("logits", 3, np.inf), "got 'inf'"),
        (spoilt("logits", 3, -np.inf), "got '-inf' .*masked_classes"),
        (spoilt("features/layer1", 5, np.nan), r"`features/layer1` to be finite, .*sample 69, view 1"),
        (spoilt("logits", 9, 1e6), r"`logits` to fit codec dense \(sample 73, view 1, teacher resnet\).*dtype float32"),
        ({**arrays(1, 64, 128), "logits": np.zeros((64, 7))}, r"shape \[6\] a sample, got float64 \[7\] a sample"),
        ({**arrays(1, 64, 128), "logits": np.zeros((63, 6))}, "equally many rows"),
        ({**arrays(1, 64, 128), "logits": np.full((64, 6), "a")}, "numbers of shape"),
        (arrays(1, 64, 100), r"all rows of Unit\(view=1, start=64, stop=128\), got 'rows up to 100'|rows up to 100"),
    ],
)
def test_teacher_output_that_cannot_be_stored(tmp_path, given, message):
    with BookWriter(tmp_path / "b", plan()) as writer:
        with pytest.raises((TeacherOutputError, ConfigError), match=message):
            writer.write(Unit(1, 64, 128), given)
        assert len(writer.pending()) == 3 * V
    assert not list((tmp_path / "b").glob("view-*/rows-*"))


def test_a_member_names_its_own_teacher(tmp_path):
    two = (TeacherInfo("first", "1"), TeacherInfo("second", "2"))
    fields = {f"members/{i}/logits": FieldPlan((2,), Dense()) for i in range(2)}
    good = np.zeros((4, 2))
    with (
        BookWriter(tmp_path / "b", Plan(4, 1, fields, teachers=two)) as writer,
        pytest.raises(TeacherOutputError, match="view 0, teacher second"),
    ):
        writer.write(Unit(0, 0, 4), {"members/0/logits": good, "members/1/logits": good * np.nan})


@pytest.mark.parametrize("codec", [Dense(), Int8(), TopK(2)], ids=lambda codec: codec.name)
def test_minus_infinity_only_in_masked_classes(tmp_path, codec):
    logits = np.array([[0.0, 1.0, -np.inf], [3.0, 1.0, -np.inf]])
    the_plan = Plan(2, 1, {"logits": FieldPlan((3,), codec)}, masked_classes=(2,))
    with BookWriter(tmp_path / "b", the_plan) as writer:
        with pytest.raises(TeacherOutputError, match="sample 1, view 0"):
            writer.write(Unit(0, 0, 2), {"logits": np.array([[0.0, 1, -np.inf], [-np.inf, 1, 1]])})
        with pytest.raises(TeacherOutputError, match="sample 0, view 0"):
            writer.write(Unit(0, 0, 2), {"logits": np.full((2, 3), -np.inf)})
        writer.write(Unit(0, 0, 2), {"logits": logits})
        book = writer.finish()
    assert book.fidelity["logits"]["temperatures"]["1"]["mean"] < 1e-4
    assert book.fidelity["logits"]["top1_agreement"] == 1.0


def test_rows_out_of_order_are_refused_and_what_was_given_stays(tmp_path):
    with BookWriter(tmp_path / "b", plan()) as writer:
        writer.write_rows(0, 0, arrays(0, 0, 10))
        with pytest.raises(ConfigError, match="`start` to be 10, the next row"):
            writer.write_rows(0, 20, arrays(0, 20, 30))
        with pytest.raises(ConfigError, match="`start` to be 0, the next row"):
            writer.write_rows(1, 5, arrays(1, 5, 10))
        with pytest.raises(TeacherOutputError, match="equally many rows"):
            writer.write_rows(0, 10, {**arrays(0, 10, 20), "logits": np.zeros((9, C))})
        with pytest.raises(TeacherOutputError, match="equally many rows of samples 140 to 149"):
            writer.write_rows(0, 140, arrays(0, 140, 160))
        with pytest.raises(ConfigError, match="the fields"):
            writer.write_rows(0, 10, {"logits": np.zeros((9, C))})
        with pytest.raises(ConfigError, match="one of the plan"):
            writer.write_rows(3, 0, arrays(3, 0, 10))
        writer.write_rows(0, 10, arrays(0, 10, 64))
        assert len(writer.pending()) == 3 * V - 1
        with pytest.raises(ConfigError, match="which is committed"):
            writer.write(Unit(0, 0, 64), arrays(0, 0, 64))
        with pytest.raises(ConfigError, match="one of the plan"):
            writer.write(Unit(0, 0, 32), arrays(0, 0, 32))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BookFormatError, match=r"a folder with notes.txt"):
        BookWriter(tmp_path, plan())
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(StorageError, match=r"notes.txt to be a folder, got a file. Choose another folder"):
        BookWriter(tmp_path / "notes.txt", plan())


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_samples": 2**17, "unit_rows": 1, "block_rows": 1},
            "`unit_rows` to be such that a view has at most 65536 units",
        ),
        ({"n_samples": 2**18, "unit_rows": 2**18, "block_rows": 1}, "`block_rows` to be such that a unit has at most"),
        ({"views": nested(40)}, "`plan.json` to be readable again, .*nest at most 32"),
        ({"data": {"x": "y" * 2**24}}, "`plan.json` to be readable again, .*at most 16777216 bytes"),
    ],
)
def test_a_plan_that_no_reader_would_accept_is_not_written(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        BookWriter(tmp_path / "b", plan(**changes))
    assert list((tmp_path / "b").iterdir()) == []


def test_numpy_integers_may_address_a_unit(tmp_path):
    with BookWriter(tmp_path / "b", plan()) as writer:
        writer.write(Unit(*np.array([0, 64, 128])), arrays(0, 64, 128))
        writer.write_rows(np.int64(0), np.uint8(0), arrays(0, 0, 64))
        assert writer.pending()[0] == (0, 128, 150)


@pytest.mark.parametrize("cost", [{"x": float("nan")}, {"x": object()}, nested(40)])
def test_cost_is_json(tmp_path, cost):
    make(tmp_path / "b", finish=False)
    with BookWriter(tmp_path / "b", plan()) as writer, pytest.raises(ConfigError, match="`cost`"):
        writer.finish(cost)


def test_a_damaged_or_foreign_sidecar_means_the_unit_is_written_again(tmp_path):
    make(tmp_path / "b", units=6, finish=False)
    make(tmp_path / "other", plan(data={}), units=6, finish=False)
    folder = tmp_path / "b" / "view-0000"
    first, second, third = sorted(folder.glob("rows-*.json"))
    first.write_bytes(b"{")
    second.write_bytes((tmp_path / "other" / "view-0000" / second.name).read_bytes())
    third.with_suffix(".safetensors").unlink()
    with BookWriter(tmp_path / "b", plan()) as writer:
        assert writer.pending()[:3] == [(0, 0, 64), (0, 64, 128), (0, 128, 150)]
    assert make(tmp_path / "b").content_digest == make(tmp_path / "whole").content_digest
    assert verify(tmp_path / "b") == []


def test_leftover_temporary_files_are_removed(tmp_path):
    make(tmp_path / "b", units=1, finish=False)
    for name in (".plan.json.tmp", "view-0000/.rows-000000064-000000128.safetensors.tmp"):
        (tmp_path / "b" / name).write_bytes(b"half")
    make(tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.tmp"))
    assert not (tmp_path / "b" / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failing_disk_leaves_no_temporary_file_and_can_be_resumed(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    with BookWriter(tmp_path / "b", plan()) as writer:
        writer.write(Unit(0, 0, 64), arrays(0, 0, 64))
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fail)
            with pytest.raises(StorageError, match=f"{os.strerror(number)}. What was committed before is whole"):
                writer.write(Unit(0, 64, 128), arrays(0, 64, 128))
        assert not list((tmp_path / "b").rglob("*.tmp"))
    assert make(tmp_path / "b").content_digest == make(tmp_path / "whole").content_digest


def test_a_full_disk(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], check=False).returncode
    ):
        pytest.skip("mounting a tmpfs is refused here")
    try:
        big = plan(fields={"logits": FieldPlan((512,), Dense("float32"))}, class_names=())
        rows = np.zeros((64, 512))
        with BookWriter(mount / "b", big) as writer:
            writer.write(Unit(0, 0, 64), {"logits": rows})
            with pytest.raises(StorageError, match=r"No space left on device.*run again to resume"):
                writer.write(Unit(0, 64, 128), {"logits": rows})
            assert len(writer.pending()) == 3 * V - 1
            assert not list(mount.rglob("*.tmp"))
        with BookWriter(mount / "b", big) as writer:
            assert len(writer.pending()) == 3 * V - 1
    finally:
        subprocess.run(["umount", mount], check=True)


CHILD = """
import sys, time
from bookkd.book import BookWriter
from tests.book.books import arrays, plan
with BookWriter(sys.argv[1], plan()) as writer:
    print("locked", flush=True)
    for unit in writer.pending():
        time.sleep(float(sys.argv[2]))
        writer.write(unit, arrays(*unit))
        print(unit, flush=True)
    writer.finish()
"""


def child(path, pause):
    return subprocess.Popen([sys.executable, "-c", CHILD, path, str(pause)], stdout=subprocess.PIPE, cwd=ROOT)


def test_killed_at_several_moments_then_resumed(tmp_path):
    rng = np.random.default_rng(3)
    killed = 0
    for _ in range(4):
        process = child(tmp_path / "b", 0.01)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    assert make(tmp_path / "b").content_digest == make(tmp_path / "whole").content_digest
    assert verify(tmp_path / "b") == []
    assert not list((tmp_path / "b").rglob("*.tmp"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60))
def test_stopped_at_any_file_then_resumed(tmp_path_factory, steps):
    """Every file that a writer makes is a moment at which it may die."""
    tmp_path = tmp_path_factory.mktemp("stop")
    left = [steps]
    original = files._write_temporary

    def stop(path, pieces):
        if left[0] == 0:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        left[0] -= 1
        return original(path, pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_temporary", stop)
        try:
            make(tmp_path / "b", keys=np.arange(N))
        except KeyboardInterrupt:
            pass
        else:
            assert steps > 20
    assert (
        make(tmp_path / "b", keys=np.arange(N)).content_digest == make(tmp_path / "w", keys=np.arange(N)).content_digest
    )
    assert verify(tmp_path / "b") == []


def test_two_writers_in_two_processes(tmp_path):
    process = child(tmp_path / "b", 5)
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BookLockedError, match=f"no other writer, got process {process.pid} on host"):
            BookWriter(tmp_path / "b", plan())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with BookWriter(tmp_path / "b", plan()) as writer:  # the lock of a killed writer is stale
        assert len(writer.pending()) == 3 * V


def test_two_writers_in_one_process(tmp_path):
    with BookWriter(tmp_path / "b", plan()):
        with pytest.raises(BookLockedError, match="a writer in this process"):
            BookWriter(tmp_path / "b", plan())
        with pytest.raises(BookLockedError, match="a writer in this process"):
            BookWriter(tmp_path / "b", plan())
    BookWriter(tmp_path / "b", plan()).close()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "started": 1}).encode(),
        json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": 1}).encode(),
    ],
    ids=["empty", "cut", "no object", "dead", "pid reused"],
)
def test_a_stale_lock_is_taken_over(tmp_path, text):
    make(tmp_path / "b", units=1, finish=False)
    (tmp_path / "b" / ".lock").write_bytes(text)
    with BookWriter(tmp_path / "b", plan()) as writer:
        assert len(writer.pending()) == 3 * V - 1
        assert json.loads((tmp_path / "b" / ".lock").read_bytes())["pid"] == os.getpid()


def test_what_a_writer_left_that_was_killed_after_its_last_step_is_removed(tmp_path):
    make(tmp_path / "b")
    whole = sorted(path.name for path in (tmp_path / "b").iterdir())
    lock, half = tmp_path / "b" / ".lock", tmp_path / "b" / ".edition-000001.json.77.tmp"
    for host, removed in ((socket.gethostname(), True), ("elsewhere", False)):
        lock.write_text(json.dumps({"pid": 2**22 + 1, "host": host, "started": 1}))
        half.write_bytes(b"half")
        assert make(tmp_path / "b").edition == 1
        assert (sorted(path.name for path in (tmp_path / "b").iterdir()) == whole) == removed
    assert half.exists()


def test_a_lock_of_another_host_is_refused_with_what_to_remove(tmp_path):
    make(tmp_path / "b", units=1, finish=False)
    (tmp_path / "b" / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1}))
    with pytest.raises(
        BookLockedError, match=r"process 1 on host elsewhere. If that writer has ended, remove .*\.lock"
    ):
        BookWriter(tmp_path / "b", plan())
    (tmp_path / "b" / ".lock").unlink()
    make(tmp_path / "b")


def test_a_forked_child_does_not_give_the_lock_away(tmp_path):
    with BookWriter(tmp_path / "b", plan()) as writer:
        pid = os.fork()
        if pid == 0:
            writer.close()
            os._exit(0)
        os.waitpid(pid, 0)
        process = child(tmp_path / "b", 0)
        assert process.stdout.read() == b""
        process.stdout.close()
        assert process.wait() == 1


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 10**7),
    st.lists(st.integers(1, 300_000), min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(1, 5000)),
    st.one_of(st.none(), st.sampled_from([1, 64, 4096])),
)
@example(1209, [55508], None, 4096)  # a unit rounded up to one block, which is more than there are samples
def test_units_cover_each_view_and_end_at_whole_blocks(n_samples, widths, unit_rows, block_rows):
    fields = {f"f{i}": FieldPlan((width,), Dense()) for i, width in enumerate(widths)}
    try:
        resolved = Plan(n_samples, 1, fields, unit_rows=unit_rows, block_rows=block_rows).resolved()
    except ConfigError:
        assert unit_rows is not None
        assert block_rows is not None
        return
    unit, block = resolved.unit_rows, resolved.block_rows
    assert resolved.resolved() == resolved
    assert 1 <= block <= 4096
    assert block & (block - 1) == 0
    assert unit == n_samples or unit % block == 0
    if unit_rows is None and block_rows is None:
        assert block == 1 or max(widths) * 2 * block <= 4 * 2**20
        assert unit <= -(-n_samples // 2**15) or sum(widths) * 2 * unit <= 128 * 2**20
        assert unit <= max(65536, -(-n_samples // 2**15))
    assert unit_rows is not None or -(-n_samples // unit) <= 2**16
    first = next(resolved.units())
    assert first == (0, 0, min(unit, n_samples))


def test_plan_survives_json():
    full = plan(keys_digest="0" * 32, masked_classes=(1,), versions={"numpy": "2"})
    again = Plan.from_json(json.loads(json.dumps(full.to_json())))
    assert again == full
    assert difference(full, again) == []


def made_with(name="toy", **versions):
    return plan(data={"name": name, "digest": "d0"}, views={"seed": 7, "versions": versions})


def test_names_and_versions_do_not_make_another_book(tmp_path):
    here = made_with(torch="2.14", processor="x86_64 AVX2")
    elsewhere = made_with("mine.code:Toy", torch="2.15", processor="aarch64 NEON")
    assert here.identity() == elsewhere.identity()
    assert make(tmp_path / "a", here).content_digest == make(tmp_path / "b", elsewhere).content_digest
    assert Book(tmp_path / "b").plan.views["versions"]["torch"] == "2.15"
    assert here.identity() != plan(data=here.data, views={"seed": 8}).identity()
    assert here.identity() != plan(data={"name": "toy", "digest": "d1"}, views=here.views).identity()


def test_a_book_is_gone_on_with_by_its_own_libraries_on_any_processor(tmp_path):
    make(tmp_path / "b", made_with(torch="2.14", processor="x86_64 AVX2"), units=2, finish=False)
    with pytest.raises(BookMismatchError, match=r"views\.versions\.torch '2\.14' \(this run has '2\.15'\)"):
        make(tmp_path / "b", made_with(torch="2.15", processor="x86_64 AVX2"))
    with pytest.raises(BookMismatchError, match=r"views\.versions \{'torch': '2\.14'\} \(this run has none\)"):
        make(tmp_path / "b", plan(views={"seed": 7}))
    with BookWriter(tmp_path / "b", made_with("other:Name", torch="2.14", processor="aarch64 NEON")) as writer:
        assert len(writer.pending()) == 3 * 3 - 2
    done = make(tmp_path / "b", made_with(torch="2.14", processor="aarch64 NEON"))
    assert done.plan.views["versions"]["processor"] == "x86_64 AVX2"
    # Nothing is written any more, so that nothing can mix.
    assert make(tmp_path / "b", made_with(torch="2.15")).content_digest == done.content_digest


@pytest.mark.parametrize(
    ("make_plan", "message"),
    [
        (lambda: plan(n_samples=0), "`n_samples` to be a whole number of at least 1"),
        (lambda: plan(n_samples=2**41), "`n_samples` to be at most"),
        (lambda: plan(n_views=2**17), "`n_views` to be at most 65536"),
        (lambda: plan(fields={}), "`fields` to be 1 to 1024 fields, got 0"),
        (lambda: plan(fields={"../x": FieldPlan((), Dense())}), "`field` to be a name"),
        (lambda: plan(fields={"x": Dense()}), "a FieldPlan"),
        (lambda: plan(block_rows=3), "a power of two up to 4096, got 3"),
        (lambda: plan(block_rows=8192), "a power of two up to 4096"),
        (lambda: plan(unit_rows=40), r"a multiple of block_rows \(16\)"),
        (lambda: plan(masked_classes=(6,)), "`masked_classes` to be below the 6 classes, got 6"),
        (lambda: plan(temperatures=(0.0,)), "`temperatures` to be a number above 0"),
        (lambda: plan(data={"x": np.nan}), "`data` to be a mapping of JSON values"),
        (lambda: plan(views=[1]), "`views` to be a mapping of JSON values"),
        (lambda: plan(class_names=(1,)), "`class_names` to be texts"),
        (lambda: plan(teachers=("resnet",)), "`teachers` to be TeacherInfo entries"),
        (lambda: TeacherInfo("a", "b", accuracy=80.0), "`accuracy` to be a share, or at most 1, got 80.0"),
        (lambda: TeacherInfo("a", None), "`digest` to be a plain value"),
        (lambda: plan(batch_size=0), "`batch_size`"),
        (lambda: plan(fields={"a": FieldPlan((2,), Dense()), "a/values": FieldPlan((2,), Dense())}), None),
    ],
)
def test_plan_errors(make_plan, message):
    if message is None:
        assert set(make_plan().stored) == {"a/values", "a/values/values"}
        return
    with pytest.raises(BookKDError, match=message):
        make_plan()


def test_what_the_fidelity_is_against_scipy(tmp_path):
    from scipy.special import log_softmax, softmax

    book = make(tmp_path / "b")
    logits = np.concatenate([arrays(view, 0, N)["logits"] for view in range(V)]).astype(np.float64)
    coarse = Int8().decode(Int8().encode(logits), (C,)).astype(np.float64)
    the_plan = Plan(N * V, 1, {"logits": FieldPlan((C,), Int8())})
    with BookWriter(tmp_path / "int8", the_plan) as writer:
        writer.write_rows(0, 0, {"logits": logits})
        found = writer.finish().fidelity["logits"]
    assert found["n"] == N * V
    assert found["top1_agreement"] == np.mean(logits.argmax(1) == coarse.argmax(1))
    for temperature in (1.0, 4.0):
        p = softmax(logits / temperature, axis=1)
        kl = temperature**2 * (p * (np.log(p) - log_softmax(coarse / temperature, axis=1))).sum(axis=1)
        got = found["temperatures"][f"{temperature:g}"]
        assert got["mean"] == pytest.approx(kl.mean(), rel=1e-6)
        assert got["max"] == pytest.approx(kl.max(), rel=1e-6)
        # The histogram's bins are eighths of a decade: its upper edge is at most 10**(1/8) above.
        assert np.quantile(kl, 0.98) <= got["p99"] <= np.quantile(kl, 1.0) * 10 ** (1 / 8)
        assert got["kept_mass"] == 1.0
    sparse = book.fidelity["members/0/logits"]["temperatures"]["4"]
    wide = logits[:, ::-1] * 2
    kept = -np.sort(-softmax(wide / 4, axis=1), axis=1)[:, :3].sum(axis=1)
    assert sparse["kept_mass"] == pytest.approx(kept.mean(), rel=1e-5)
    assert sparse["mean"] < 1e-5


def test_fidelity_is_measured_at_promised_temperatures_only(tmp_path):
    the_plan = Plan(8, 1, {"logits": FieldPlan((4,), TopK(2, (2.0,))), "probe/hash": FieldPlan((), Raw("uint64"))})
    the_plan = replace(the_plan, temperatures=(1.0, 2.0))
    with BookWriter(tmp_path / "b", the_plan) as writer:
        writer.write_rows(0, 0, {"logits": np.eye(8, 4), "probe/hash": np.arange(8)})
        assert list(writer.finish().fidelity["logits"]["temperatures"]) == ["2"]


@pytest.mark.parametrize(
    ("pid", "started", "refused"),
    [(os.getppid(), None, True), (os.getppid(), 1, False), (2**22 + 1, None, False), ("x", None, False)],
    ids=["alive", "pid reused", "dead", "no pid"],
)
def test_where_the_system_has_no_record_locks_the_text_is_the_guard(tmp_path, monkeypatch, pid, started, refused):
    make(tmp_path / "b", units=1, finish=False)
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / "b" / ".lock").write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "started": started}))
    if refused:
        with pytest.raises(BookLockedError, match=f"got process {pid} on host"):
            BookWriter(tmp_path / "b", plan())
    else:
        BookWriter(tmp_path / "b", plan()).close()


def test_windows_sends_no_signal_to_find_out_who_is_alive(monkeypatch):
    def kill(pid, signal):
        raise AssertionError(f"signal {signal} to {pid}")

    monkeypatch.setattr(lock, "os", SimpleNamespace(name="nt", kill=kill))
    assert lock._alive(2**22 + 1, None)
    monkeypatch.setattr(lock, "os", SimpleNamespace(name="posix", kill=kill))
    with pytest.raises(AssertionError, match="signal 0 to"):
        lock._alive(2**22 + 1, None)


def test_a_system_that_deletes_no_open_file_keeps_no_lock_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    held = lock.Lock(tmp_path / ".lock")
    descriptor, unlink = held._descriptor, Path.unlink

    def as_windows(path, **options):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", as_windows)
    held.release()
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", refuse)
    assert verify(make(tmp_path / "b").path) == []
    assert not list((tmp_path / "b").rglob("*.tmp"))


def test_an_edition_that_another_writer_made_meanwhile_is_never_replaced(tmp_path):
    with BookWriter(tmp_path / "b", plan()) as writer:
        for unit in writer.pending():
            writer.write(unit, arrays(*unit))
        (tmp_path / "b" / "edition-000001.json").write_text("theirs")
        with pytest.raises(BookLockedError, match=r"`edition` to be absent, got edition-000001.json of another writer"):
            writer.finish()
    assert (tmp_path / "b" / "edition-000001.json").read_text() == "theirs"


@pytest.mark.parametrize("fidelity", [{}, {"logits": {"n": 64, "agree": 1, "temperatures": []}}, {"logits": 5}])
def test_units_that_were_measured_otherwise_do_not_merge(tmp_path, fidelity):
    make(tmp_path / "b", units=9, finish=False)
    path = next((tmp_path / "b" / "view-0001").glob("rows-*.json"))
    path.write_bytes(json.dumps({**json.loads(path.read_bytes()), "fidelity": fidelity}).encode())
    with BookWriter(tmp_path / "b", plan()) as writer, pytest.raises(BookFormatError, match="fidelity of all sidecars"):
        writer.finish()


def test_a_segmentation_record_is_measured_per_position(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, 4, 8, 8))
    with BookWriter(tmp_path / "b", Plan(3, 1, {"logits": FieldPlan((4, 8, 8), Int8())})) as writer:
        writer.write_rows(0, 0, {"logits": rows})
        found = writer.finish().fidelity["logits"]
    assert found["n"] == 3 * 64
    assert 0 < found["temperatures"]["4"]["mean"] < 1e-3
