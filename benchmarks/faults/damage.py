"""Random faults in finished books: each is named at the right place, or proven to change nothing.

A fault is drawn, done to a copy of a book, and looked at by `verify` and by reading everything. It counts as

- *named*: `verify` names the file that was changed (or, where files changed places, one of them), with the block and rows
  where the change lies in a block; reading everything is refused, or gives what the book said where the change is one that only
  the hash of the whole file can see (the bytes of a header that say the same);
- *harmless*: nothing is named, all records, keys and figures are read as they were, and the content digest is that of the book; or
  the newest edition is gone altogether, and the one before is read, whole;
- *silent* or *misnamed*: anything else. None of these may be.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults import specimens

from bookkd.book import Book, compact, prune, verify
from bookkd.book._shard import read_header
from bookkd.core.errors import BookKDError

SEED = 5
FAULTS = 10_000
SECONDS = 20
"""Most that one fault may take."""

HARMLESS = {
    "unused": "a file that the newest edition does not name",
    "lock": "the lock and what a killed writer left are no part of the book",
    "same": "the bytes are what they were",
    "blanks": "an edition is digested by its values: blanks around them say nothing",
    "older": "the newest edition is gone as if it had never been: the one before is the book, and whole",
}


def books(folder: Path) -> dict[str, Path]:
    """Make the books that are damaged: one of one edition; a grown one of two; one whose views are one file each."""
    made = {name: folder / "books" / name for name in ("plain", "grown", "compacted")}
    if not (folder / "books").exists():
        for name, path in made.items():
            specimens.make(path)
            if name == "grown":
                specimens.grow(path, 150, 3)
            elif name == "compacted":
                compact(path)
                prune(path)
            (path / ".plan.json.123.tmp").write_bytes(b"half")
            (path / ".lock").write_bytes(b'{"pid": 4194305, "host": "elsewhere", "started": 1}')
    return made


def flip(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    data = bytearray(path.read_bytes())
    for _ in range(draws.choice([1, 1, 1, 2, 8])):
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)
    return [path]


def write_over(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    """Random bytes, zeros, or a piece of the same file, over a stretch, as a disk that writes a sector elsewhere does."""
    data = bytearray(path.read_bytes())
    length = min(len(data), draws.choice([1, 8, 64, 512]))
    place, source = draws.randrange(len(data) - length + 1), draws.randrange(len(data) - length + 1)
    data[place : place + length] = draws.choice(
        [draws.randbytes(length), bytes(length), data[source : source + length]]
    )
    path.write_bytes(data)
    return [path]


def cut(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    data = path.read_bytes()
    path.write_bytes(data[: draws.randrange(len(data))])
    return [path]


def lengthen(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    data = path.read_bytes()
    path.write_bytes(data + draws.choice([b"\0", b"\n", b" ", draws.randbytes(64), data]))
    return [path]


def empty(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    path.write_bytes(b"")
    return [path]


def delete(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    path.unlink()
    return [path]


def rename(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    path.rename(path.with_name(draws.choice(["moved", f"{path.name}.bak", f"x{path.name}", path.name.upper()])))
    return [path]


def swap(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    """Two files of a kind change their names."""
    other = draws.choice([each for each in files if each.suffix == path.suffix and each != path] or [path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return [path, other]


def duplicate(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    """One file lies in place of another of its kind."""
    other = draws.choice([each for each in files if each.suffix == path.suffix and each != path] or [path])
    other.write_bytes(path.read_bytes())
    return [other]


def edit(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    """One value of a manifest is another."""
    if path.suffix != ".json":
        return flip(path, draws, files)
    found = json.loads(path.read_bytes())
    place: Any = found
    while True:
        key = draws.choice(sorted(place)) if isinstance(place, dict) else draws.randrange(len(place))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draws.random() < 0.8:
            place = inner
            continue
        break
    if draws.random() < 0.2:
        del place[key]
    elif isinstance(inner, bool) or not isinstance(inner, int | float):
        place[key] = draws.choice([None, 0, 1, "a", "0" * 32, [], {}, inner * 2 if isinstance(inner, str) else True])
    else:
        place[key] = draws.choice(
            [inner + 1, inner - 1, -inner, inner * 2, float(inner) + 0.5, str(inner), None, 2**63]
        )
    path.write_text(json.dumps(found, sort_keys=True, indent=1) + "\n")
    return [path]


def replace_kind(path: Path, draws: random.Random, files: list[Path]) -> list[Path]:
    """A folder, a pipe, or a link to nothing, to itself or out of the book lies in place of a file."""
    data, outside = path.read_bytes(), Path(os.path.commonpath(files)).with_name("outside")
    path.unlink()
    kind = draws.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to("nowhere")
    elif kind == 3:
        path.symlink_to(path.name)
    else:
        outside.write_bytes(data)
        path.symlink_to(outside)
    return [path]


KINDS: dict[str, tuple[int, Callable[[Path, random.Random, list[Path]], list[Path]]]] = {
    "bits flipped": (30, flip),
    "a stretch written over": (15, write_over),
    "cut": (10, cut),
    "made longer": (5, lengthen),
    "emptied": (3, empty),
    "deleted": (5, delete),
    "renamed": (5, rename),
    "swapped with another": (7, swap),
    "laid over another": (5, duplicate),
    "a JSON value edited": (12, edit),
    "another kind of entry in its place": (3, replace_kind),
}
"""Kind of fault -> how often among a hundred, and who does it."""


def run(folder: Path, share: float = 1.0) -> dict[str, Any]:
    """Do the faults, in forked workers; a worker that hangs or dies is a finding."""
    made = books(folder)
    wanted = {name: specimens.everything(Book(path)) for name, path in made.items()}
    digests = {name: Book(path).content_digest for name, path in made.items()}
    count = max(1, round(FAULTS * share))
    found: list[dict[str, Any]] = []
    context = multiprocessing.get_context("fork")
    with context.Pool(
        min(2, os.cpu_count() or 1), initializer=_begin, initargs=(folder, made, wanted, digests)
    ) as pool:
        waiting = pool.imap_unordered(_one, range(count))
        for place in range(count):
            try:
                found.append(waiting.next(timeout=40 * SECONDS))
            except multiprocessing.TimeoutError:
                found.append({"outcome": "crashed", "kind": "?", "message": f"a worker was lost after {place} faults"})
                break
    return _counted(found)


def _counted(found: list[dict[str, Any]]) -> dict[str, Any]:
    outcomes = ("named", "named by the whole file alone", "harmless")
    kinds = {kind: Counter(each["outcome"] for each in found if each["kind"] == kind) for kind in KINDS}
    places = Counter(each["place"] for each in found if each["outcome"] in outcomes)
    reasons = Counter(each["reason"] for each in found if each["outcome"] == "harmless")
    wrong = [each for each in found if each["outcome"] not in outcomes]
    return {
        "faults": len(found),
        "kinds": {kind: dict(counts) for kind, counts in kinds.items()},
        "files": dict(places),
        "harmless": {HARMLESS[reason]: count for reason, count in reasons.items()},
        "blocks": sum(each.get("blocks", 0) for each in found),
        "wrong": [json.dumps(each, sort_keys=True) for each in wrong][:100],
    }


_known: dict[str, Any] = {}


def _begin(folder: Path, made: dict[str, Path], wanted: dict[str, Any], digests: dict[str, str]) -> None:
    _known.update(folder=folder, made=made, wanted=wanted, digests=digests)


def _hangs(signum: int, frame: object) -> None:
    raise TimeoutError


def _one(seed: int) -> dict[str, Any]:
    """Do one fault and judge it; `repr(seed)` is all that is needed to do it again."""
    draws = random.Random(f"{SEED} {seed}")
    name = draws.choice(sorted(_known["made"]))
    root = _known["folder"] / f"damage-{os.getpid()}" / "b"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(_known["made"][name], root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    good = {path: path.read_bytes() for path in files}
    path = draws.choice(files)
    kind = draws.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    told: dict[str, Any] = {"seed": seed, "book": name, "kind": kind, "file": str(path.relative_to(root))}
    try:
        changed = [
            each
            for each in KINDS[kind][1](path, draws, files)
            if each.is_symlink() or not each.is_file() or each.read_bytes() != good[each]
        ]
        told["place"] = _place(path.relative_to(root))
        told |= _judged(root, name, changed, good)
    except TimeoutError:
        told |= {"outcome": "hung"}
    except Exception as error:  # whatever it is, it is a finding
        told |= {"outcome": "crashed", "message": f"{type(error).__name__}: {error}"[:300]}
    finally:
        signal.alarm(0)
    return told


def _place(path: Path) -> str:
    name = path.name
    if name.startswith("."):
        return "lock and temporary files"
    for start, what in (("edition", "edition"), ("plan", "plan"), ("keys", "keys"), ("view-", "view file")):
        if name.startswith(start):
            return what
    return "sidecar" if path.suffix == ".json" else "shard"


def _judged(root: Path, name: str, changed: list[Path], good: dict[Path, bytes]) -> dict[str, Any]:
    try:
        faults = verify(root)
    except BookKDError as error:
        # There is no book to be verified: no edition and no plan is left, or an edition that is named is not there. That has to be so
        # by the change itself, or the message has to name a file that was changed.
        if not _read(root)[1]:
            return {"outcome": "silent", "message": str(error)}
        gone = all(path.name.startswith(("edition", "plan")) for path in changed) and not any(
            root.glob("edition-*.json")
        )
        named = any(path.name in str(error) for path in changed) or (bool(changed) and gone)
        return {"outcome": "named" if named else "misnamed", "message": str(error)[:300]}
    read, refused = _read(root)
    whole = read is not None and Book(root).content_digest == _known["digests"][name]
    same = whole and read == _known["wanted"][name]
    if not faults:
        if refused:
            return {"outcome": "silent", "message": refused}
        reason = _why_harmless(root, name, changed, same, good)
        return (
            {"outcome": "harmless", "reason": reason} if reason else {"outcome": "silent", "message": "read otherwise"}
        )
    names = {str(path.relative_to(root)) for path in changed}
    if not any(root.glob("edition-*.json")):
        names |= (
            {"edition-000001.json"} if any(name.startswith("edition-") for name in names) else set()
        )  # of whatever number
    if not names & {fault.path for fault in faults}:
        return {"outcome": "misnamed", "message": str(faults[0])}
    if not refused:
        return (
            {"outcome": "named by the whole file alone"} if same else {"outcome": "silent", "message": "read otherwise"}
        )
    try:
        blocks = sum(
            _check_blocks(root, path, good[path], faults)
            for path in changed
            if path.name.startswith("rows")
            and path.suffix == ".safetensors"
            and path.is_file()
            and not path.is_symlink()
        )
    except AssertionError as error:
        return {"outcome": "misnamed", "message": str(error)}
    return {"outcome": "named", "blocks": blocks}


def _read(root: Path) -> tuple[Any, str]:
    try:
        return specimens.everything(Book(root)), ""
    except BookKDError as error:
        return None, f"{type(error).__name__}: {error}"[:300]


def _same_values(path: Path, before: bytes) -> bool:
    """Say whether a JSON file says the same as before, whatever blanks stand around it."""
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(before))
    except (OSError, ValueError):
        return False


def _why_harmless(root: Path, name: str, changed: list[Path], same: bool, good: dict[Path, bytes]) -> str:
    """Return why a book without a fault is right, "" where nothing says so."""
    if name == "grown" and root / "edition-000002.json" in changed and Book(root).edition == 1:
        return "older"  # `verify` has just read all of it
    if not same:
        return ""
    if not changed:
        return "same"
    if all(path.name.startswith(".") for path in changed):
        return "lock"
    if all(path.name.startswith("edition") and _same_values(path, good[path]) for path in changed):
        return "blanks"
    book = Book(root)
    named = {f"edition-{book.edition:06d}.json", book._edition.plan_file, book._edition.keys_file}
    for file, entry in zip(book._files, book._edition.views, strict=True):
        folder = f"view-{file.view:04d}"
        named |= {f"{folder}/{stem}{end}" for stem in file.stems for end in (".json", ".safetensors")}
        named.add(f"{folder}/{entry.file}")
    return "" if {str(path.relative_to(root)) for path in changed} & named else "unused"


def _check_blocks(root: Path, path: Path, good: bytes, faults: list[Any]) -> int:
    """Hold the blocks that are named against the bytes that differ, where the file is as long as it was."""
    bad = path.read_bytes()
    here = [fault for fault in faults if fault.path == str(path.relative_to(root))]
    begin = 8 + int.from_bytes(good[:8], "little")
    if len(bad) != len(good) or bad[:begin] != good[:begin] or not here or any(fault.block is None for fault in here):
        return 0
    book = Book(root)
    spans = read_header(memoryview(good), "", book.plan.flat)
    sidecar = json.loads((path.with_suffix(".json")).read_bytes())
    rows = sidecar["block_rows"]
    found = {(fault.part, fault.block) for fault in here}
    for part, span in spans.items():
        if part in book.plan.flat:
            continue  # where its blocks lie is for the ends to say, which may have changed
        step = rows * span.row_bytes
        for block in range(-(-span.shape[0] // rows)):
            place = slice(span.start + block * step, min(span.start + (block + 1) * step, span.stop))
            if (bad[place] != good[place]) != ((part, block) in found):
                raise AssertionError(
                    f"block {block} of {part} in {path.name} is {'not ' * (bad[place] != good[place])}named"
                )
    for fault in here:
        if (fault.start - sidecar["start"]) // rows != fault.block or not fault.start < fault.stop <= sidecar["stop"]:
            raise AssertionError(f"block {fault.block} of {fault.part} has samples {fault.start} to {fault.stop}")
    return len(found)
