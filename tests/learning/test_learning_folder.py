"""What a run's folder keeps, takes over, refuses and never deletes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bookkd.core.errors import BookLockedError, CheckpointError, ConfigError
from bookkd.learning import folder as room

CONFIG = {"door": "plain", "method": {"name": "supervised"}, "training": {"lr": 0.1, "workers": 0}}


def changed(**training):
    return {**CONFIG, "training": {**CONFIG["training"], **training}}


def RunFolder(path, config, **options):  # noqa: N802 - stands for the class
    """Open a folder and give its lock back at once."""
    with room.RunFolder(path, config, **options) as opened:
        return opened


def begun(path):
    folder = RunFolder(path, CONFIG)
    folder.log({"epoch": 1, "lr": 0.1})
    return folder


def names(path):
    return {entry.name for entry in path.iterdir()}


def test_overwrite_deletes_the_files_of_a_run_and_no_others(tmp_path):
    begun(tmp_path).finish({"epoch": 1, "teacher_forwards": 0})
    for name in ("student.safetensors", "student-best.safetensors", "options.json", "notes.txt", "teacher.safetensors"):
        (tmp_path / name).write_text("x")
    for name in ("checkpoints", "logs", "pictures"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    folder = RunFolder(tmp_path, changed(lr=0.2), overwrite=True)
    kept = {"notes.txt", "teacher.safetensors", "pictures"}
    assert names(tmp_path) == {"config.json", "environment.json", *kept}
    assert (tmp_path / "pictures" / "file").exists()
    assert folder.result is None
    assert folder.history() == []
    assert json.loads((tmp_path / "config.json").read_text())["training"]["lr"] == 0.2


def test_overwrite_follows_no_link(tmp_path):
    begun(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    (tmp_path / "run" / "logs").symlink_to(tmp_path / "elsewhere")
    RunFolder(tmp_path / "run", CONFIG, overwrite=True)
    assert names(tmp_path / "elsewhere") == {"file"}
    assert "logs" not in names(tmp_path / "run")


def test_a_folder_of_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"to hold a run or nothing, got other files, .* Choose another --out\."):
        RunFolder(tmp_path, CONFIG, overwrite=True)
    assert names(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ['{"compilerOptions": {}}', "[1]", "not json"])
def test_a_config_of_something_else_stays(tmp_path, text, overwrite):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json to be of a run of bookkd, got another file"):
        RunFolder(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "config.json").read_text() == text


def test_overwrite_of_nothing_or_an_empty_folder(tmp_path):
    RunFolder(tmp_path / "new", CONFIG, overwrite=True)
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty", CONFIG, overwrite=True)
    assert names(tmp_path / "new") == names(tmp_path / "empty") == {"config.json", "environment.json"}


def test_a_start_that_failed_does_not_block_the_folder(tmp_path):
    RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, changed(lr=0.2))
    assert json.loads((tmp_path / "config.json").read_text())["training"]["lr"] == 0.2


@pytest.mark.parametrize("trace", ["metrics.jsonl", "result.json", "checkpoints/last.ckpt"])
def test_a_run_that_got_somewhere_is_not_taken_over(tmp_path, trace):
    RunFolder(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / trace).write_text("{}")
    with pytest.raises(ConfigError, match=r"got other training\.lr \(0\.1, now 0\.2\)"):
        RunFolder(tmp_path, changed(lr=0.2))


@pytest.mark.parametrize("key", ["workers", "checkpoint_steps", "cache_views", "cache_bytes", "probe_share"])
def test_what_does_not_change_the_result_may_change(tmp_path, key):
    begun(tmp_path)
    assert len(RunFolder(tmp_path, changed(**{key: 3})).history()) == 1


@pytest.mark.parametrize("damage", [b'{"epoch": 1, "l', b"\xff\xfe", b"[1]", b'{"lr": 1}', b'{"epoch": "1"}', b""])
def test_a_damaged_record_is_one_error(tmp_path, damage):
    folder = begun(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + damage + b"\n")
    match = r"Expected line 2 of .*metrics\.jsonl to be the record of an epoch, got damaged text\. Pass --overwrite"
    with pytest.raises(CheckpointError, match=match) as raised:
        folder.history()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"epoch": 1}'])
def test_a_damaged_result_is_one_error(tmp_path, text):
    folder = begun(tmp_path)
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json to be the result of a run, got damaged text\. Pass"):
        _ = folder.result


OTHER = """
import sys
from bookkd.learning.folder import RunFolder
folder = RunFolder(sys.argv[1], {"door": "plain", "method": {}, "training": {}})
print("training", flush=True)
sys.stdin.read()
"""


def test_one_process_trains_in_a_folder(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "training\n"
        before = names(tmp_path)
        for overwrite in (False, True):
            match = f"Expected .* to have no other writer, got process {other.pid} on host .* Wait for it, or end it"
            with pytest.raises(BookLockedError, match=match):
                room.RunFolder(tmp_path, CONFIG, overwrite=overwrite)
        assert names(tmp_path) == before
    finally:
        other.kill()
        other.communicate()
    # The lock of a killed process is stale.
    RunFolder(tmp_path, CONFIG)
    assert ".lock" not in names(tmp_path)


def test_the_lock_is_given_back_on_errors_and_a_finished_run_takes_none(tmp_path):
    begun(tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"training\.lr"):
            room.RunFolder(tmp_path, changed(lr=0.2))
    with room.RunFolder(tmp_path, CONFIG) as folder, pytest.raises(BookLockedError, match="a writer in this process"):
        room.RunFolder(tmp_path, CONFIG)
    folder.finish({"epoch": 1, "teacher_forwards": 0})
    with room.RunFolder(tmp_path, CONFIG), room.RunFolder(tmp_path, CONFIG):
        assert ".lock" not in names(tmp_path)
