"""Whole folders that somebody hostile laid out, and those that write into a book: what is fuzzed beside the readers.

A folder is a copy of a book after a few changes that bytes choose: files gone, other or half, links and pipes in their place, names
that a writer will use taken beforehand, JSON edited. Where the bytes say so, the digests are made to fit then.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from benchmarks.faults import readers, specimens

from bookkd.book import Book, BookWriter, GrowthWriter, Plan, compact, prune, repair
from bookkd.core import jsonio
from bookkd.core.errors import BookMismatchError
from bookkd.query import write_statistics

SAMPLES, VIEWS = 20, 2
SECONDS = 60
"""After which somebody who waits for a pipe is stopped."""
PRECIOUS = b"what nobody may change"
CONSTANTS = specimens.CONSTANTS
PLAIN = {name: codec for name, codec in specimens.CODECS.items() if name != "sampled"}
"""Codecs that statistics can describe."""


@cache
def place() -> Path:
    """Return a folder in memory, where there is one, with the books that are spoilt."""
    root = readers.folder() / "folders"
    for name in ("whole", "plain"):
        specimens.make(root / name, _plan(name), constants=CONSTANTS)
    specimens.make(root / "grown", _plan("grown"), constants=CONSTANTS)
    specimens.grow(root / "grown", SAMPLES + 10, VIEWS)
    making(root / "begun", units=3)
    specimens.make(root / "growing", _plan("growing"), constants=CONSTANTS)
    growing(root / "growing", units=1)
    for kind in WRITERS:  # whatever is imported and set up once
        judge(kind, b"")
    return root


def _plan(name: str) -> Plan:
    return specimens.plan(SAMPLES, VIEWS, PLAIN if name == "plain" else specimens.CODECS, unit_rows=8)


def making(root: Path, *, units: int | None = None) -> None:
    with BookWriter(root, _plan("whole"), keys=specimens.keys(SAMPLES), constants=CONSTANTS) as writer:
        for unit in writer.pending()[:units]:
            writer.write(unit, specimens.said(writer.plan, *unit))
        if units is None:
            writer.finish()


def growing(root: Path, *, units: int | None = None) -> None:
    larger = replace(_plan("whole"), n_samples=SAMPLES + 10, n_views=VIEWS + 1, unit_rows=None)
    with GrowthWriter(root, larger, keys=specimens.keys(SAMPLES + 10), constants=CONSTANTS) as writer:
        for view, start, stop in writer.pending()[:units]:
            writer.write_rows(view, start, specimens.said(writer.plan, view, start, stop))
        if units is None:
            writer.finish()


def repairing(root: Path, *, accept: bool = False) -> None:
    known = Book(readers.folder() / "folders" / root.name).plan

    def say(view: int, start: int, stop: int) -> dict[str, Any]:
        if stop > known.n_samples:  # the plan is another one, which whoever asks a teacher has seen before
            raise BookMismatchError("Expected samples of the data set, got others. Give others.")
        return specimens.said(known, view, start, stop)

    repair(root, say, keys=specimens.keys(known.n_samples), constants=CONSTANTS, accept=accept)


def compacting(root: Path) -> None:
    compact(root, drop_growth=True)
    prune(root)


def describing(root: Path) -> None:
    write_statistics(Book(root))


WRITERS: dict[str, tuple[tuple[str, ...], Callable[[Path], object]]] = {
    "make": (("whole", "begun"), making),
    "grow": (("whole", "grown", "growing"), growing),
    "repair": (("whole", "grown", "growing"), repairing),
    "repair --accept": (("whole",), lambda root: repairing(root, accept=True)),
    "compact": (("whole", "grown", "growing"), compacting),
    "stats": (("plain",), describing),
}
"""What is done with a folder -> books that it may be a spoilt copy of, and who does it."""


def judge(kind: str, data: bytes) -> str:
    """Spoil a book as the bytes say and write into it; return how that was refused, "" if it was not.

    Raises:
        BrokenError: as `readers.measured`, and if anything outside of the folder was changed, or somebody waits for ever.
    """
    names, work = WRITERS[kind]
    room = readers.folder() / "room"
    shutil.rmtree(room, ignore_errors=True)
    numbers = iter(data)

    def choose(below: int) -> int:
        return (next(numbers, 0) | next(numbers, 0) << 8) % below

    name = names[choose(len(names))]
    root, outside = room / name, room / "outside"
    shutil.copytree(readers.folder() / "folders" / name, root)
    (outside / "view-0000").mkdir(parents=True)
    for file in (outside / "precious", outside / "stats.json", outside / "view-0000" / "precious", room / "beside"):
        file.write_bytes(PRECIOUS)
    _spoil(root, choose, len(data))
    before = _around(room, root)
    size = sum(path.lstat().st_size for path in root.rglob("*"))
    with _stopped(kind):
        said = readers.measured(kind, lambda: work(root), size)
    after = _around(room, root)
    if after != before:
        raise readers.BrokenError(f"{kind}: changed outside: {sorted(set(after.items()) ^ set(before.items()))[:4]}")
    return said


def _around(room: Path, root: Path) -> dict[str, bytes]:
    """Return what lies in a room, but for the book."""
    return {
        str(path.relative_to(room)): path.read_bytes() if path.is_file() else b""
        for path in sorted(room.rglob("*"))
        if root not in path.parents and path != root
    }


@contextmanager
def _stopped(kind: str) -> Iterator[None]:
    """End a wait; not in threads, where no signal comes, nor where a fuzzer has an alarm of its own."""
    mine = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
    if not mine or signal.getsignal(signal.SIGALRM) is None:
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise readers.BrokenError(f"{kind}: not done in {SECONDS} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


LAID = (
    ".lock", "stats", "stats/stats.json", "stats/view-0000.parquet", f"stats/.view-0000.parquet.{os.getpid()}.tmp", "plan-000002.json",
    "plan-000003.json", "keys-000002.safetensors", "keys-000003.safetensors", "edition-000002.json", "edition-000003.json",
    "edition-999999.json", f".edition-000002.json.{os.getpid()}.tmp", f".plan-000002.json.{os.getpid()}.tmp", "view-0000", "view-0001",
    "view-0002", "constants", f"constants/{'0' * 32}.safetensors", "view-0000/rows-000000000-000000008-00000009.json", "view-0000/rows-000000000-000000020-00000002.json",
    "view-0000/rows-000000000-000000020-00000002.safetensors", "view-0001/rows-000000008-000000016-00000002.json",
)  # fmt: skip
"""Names that a writer will use, or that it looks for."""
TARGETS = (
    "../outside/precious",
    "../outside",
    "../outside/new",
    "../../outside/precious",
    "../../outside",
    ".",
    "..",
    "plan.json",
    "nowhere",
)


def _spoil(root: Path, choose: Callable[[int], int], length: int) -> None:
    for _ in range(min(length // 4, 1 + choose(6)) if length else 0):
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
        name = (*names, *LAID)[choose(len(names) + len(LAID))]
        path = root / name
        if path.parent != root and (path.parent.is_symlink() or not path.parent.is_dir()):
            if path.parent.is_symlink() or path.parent.exists():
                continue  # what is spoilt lies in the book
            path.parent.mkdir()
        _change(root, path, choose, names)
    if choose(2):
        with suppress(Exception):  # of what is no manifest any more nothing has to fit
            fit(root)


def _change(root: Path, path: Path, choose: Callable[[int], int], names: list[str]) -> None:
    good = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    what = choose(10)
    target = TARGETS[choose(len(TARGETS))]
    other = root / names[choose(len(names))] if names else path
    copied = other.read_bytes() if other.is_file() and not other.is_symlink() else b"{}"
    _remove(path)
    if what == 1:
        path.symlink_to(target if choose(4) else (root / target).resolve())
    elif what == 2:
        path.write_bytes(copied)
    elif what == 3:
        path.write_bytes(bytes(choose(256) for _ in range(choose(40))))
    elif what == 4:
        path.write_bytes(_edited(good or copied, choose))
    elif what == 5 and good:
        data = bytearray(good)
        for _ in range(1 + choose(3)):
            data[choose(len(data))] ^= 1 << choose(8)
        path.write_bytes(data)
    elif what == 6:
        os.mkfifo(path)
    elif what == 7:
        path.mkdir()
    elif what == 8:
        os.link(root.parent / "outside" / "precious", path)
    elif what == 9:
        path.write_bytes(good[: choose(len(good) + 1)])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _edited(data: bytes, choose: Callable[[int], int]) -> bytes:
    try:
        found = json.loads(data)
    except ValueError:
        return data
    for _ in range(1 + choose(2)):
        readers.change(found, choose, lambda: readers.SCALARS[choose(len(readers.SCALARS))])
    try:
        return json.dumps(found, indent=1, sort_keys=True).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return b"{"


def fit(root: Path) -> None:
    """Make sizes and digests of the newest edition those of the files that it names."""
    path = sorted(root.glob("edition-00000?.json"))[-1]
    edition = json.loads(_read(path))
    plan = root / edition["plan"].get("file", "plan.json")
    data = _read(plan)
    identity = jsonio.digest(Plan.from_json(json.loads(data), "").identity())
    edition["plan"].update(bytes=len(data), xxh3_128=_digest(data), identity=identity)
    for view, entry in enumerate(edition["views"]):
        folder = root / f"view-{view:04d}"
        file = json.loads(_read(folder / entry["file"]))
        for index, stem in enumerate(file["shards"]):
            sidecar = _read(folder / f"{stem}.json")
            file["sidecar_bytes"][index], file["sidecar_xxh3_128"][index] = len(sidecar), _digest(sidecar)
        data = json.dumps(file).encode()
        _put(root, folder / entry["file"], data)
        entry.update(bytes=len(data), xxh3_128=_digest(data))
    edition["content_digest"] = jsonio.digest(
        {"plan": identity, "views": [entry["content"] for entry in edition["views"]]}
    )
    edition.pop("digest", None)
    _put(root, path, json.dumps({**edition, "digest": jsonio.digest(edition)}).encode())


def _read(path: Path) -> bytes:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(path)
    return path.read_bytes()


def _put(root: Path, path: Path, data: bytes) -> None:
    """Write a file of the book that may have a second name elsewhere, or be a link."""
    if path.parent != root and path.parent.is_symlink():
        return
    _remove(path)
    path.write_bytes(data)


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)
