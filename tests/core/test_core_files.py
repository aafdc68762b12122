"""Files: a crash leaves the old file or the new one, a taken name stays, and a wrong path is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bookkd.core import files
from bookkd.core.errors import BookKDError, StorageError
from bookkd.core.files import create, file_digest, make_folder, storage_errors, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_whole_file_and_makes_its_folder(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"first, and longer")
    assert path.read_bytes() == b"first, and longer"
    write_atomic(path, [b"sec", memoryview(b"ond")])
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    def fail(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StorageError, match=r"file to be writable, got: No space left on device\. .* to resume"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="ends a process between two system calls")
@pytest.mark.parametrize(("before", "content"), [("replace", b"old"), ("sync_folder", b"new")])
def test_a_process_that_dies_leaves_the_old_file_or_the_new_one(tmp_path: Path, before: str, content: bytes):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    place = {"replace": "pathlib.Path.replace", "sync_folder": "files.sync_folder"}[before]
    code = (
        "import os, pathlib\nfrom bookkd.core import files\n"
        f"{place} = lambda *_: os._exit(9)\n"
        f"files.write_atomic(pathlib.Path({str(path)!r}), b'new')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.read_bytes() == content
    left = set(names(tmp_path)) - {"file"}
    assert len(left) == (before == "replace")
    assert all(name.startswith(".") and name.endswith(files.TEMPORARY) for name in left)
    write_atomic(path, b"after")
    assert path.read_bytes() == b"after"


def test_create_never_replaces(tmp_path: Path):
    path = tmp_path / "file"
    assert create(path, b"first") is True
    assert create(path, b"second") is False
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_create_loses_to_a_file_that_appears_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write = files._write_temporary

    def slow(*given):
        temporary = write(*given)
        path.write_bytes(b"theirs")
        return temporary

    monkeypatch.setattr(files, "_write_temporary", slow)
    assert create(path, b"ours") is False
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["file"]


def test_create_where_the_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert create(tmp_path / "file", b"ours") is True
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert names(tmp_path) == ["file"]


def test_of_processes_that_create_one_file_one_wins(tmp_path: Path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom bookkd.core.files import create, write_atomic\n"
        "folder, mine = Path(sys.argv[1]), sys.argv[2].encode() * 100_000\n"
        "(folder / f'ready{sys.argv[2]}').touch()\n"
        "while len(list(folder.glob('ready*'))) < 3: time.sleep(0.001)\n"
        "print(sum(create(folder / f'file{i}', mine) for i in range(20)))\n"
        "for _ in range(20): write_atomic(folder / 'shared', mine)"
    )
    run = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdout=subprocess.PIPE) for name in "abc"
    ]
    won = [int(process.communicate(timeout=60)[0]) for process in run]
    assert [process.returncode for process in run] == [0, 0, 0]
    assert sum(won) == 20
    owners = []
    for path in [*(tmp_path / f"file{i}" for i in range(20)), tmp_path / "shared"]:
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
        owners.append(content[:1].decode())
    assert [owners[:20].count(name) for name in "abc"] == won
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("below", ["", "inner", "inner/most"])
def test_a_folder_that_is_a_file_is_named(tmp_path: Path, below: str):
    (tmp_path / "taken").write_text("text")
    with pytest.raises(StorageError) as caught:
        make_folder(tmp_path / "taken" / below)
    assert str(caught.value) == f"Expected {tmp_path / 'taken'} to be a folder, got a file. Choose another folder."
    assert (tmp_path / "taken").read_text() == "text"


def test_making_a_folder_twice_keeps_it(tmp_path: Path):
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").touch()
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").is_file()


def test_errors_of_the_package_pass_unchanged():
    own = BookKDError("mine")
    with pytest.raises(BookKDError) as caught, storage_errors(Path("file")):
        raise own
    assert caught.value is own


def test_the_digest_of_a_file_is_of_all_its_bytes(tmp_path: Path):
    path = tmp_path / "file"
    path.touch()
    assert file_digest(path) == "99aa06d3014798d86001c324468d497f"  # published for XXH3-128 of nothing, seed 0
    found = set()
    for last in (b"a", b"b", b""):
        path.write_bytes(bytes(2**22) + last)  # beyond the first piece
        found.add(file_digest(path))
    assert len(found) == 3
