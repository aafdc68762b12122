"""One reader a kind of file, each given bytes in its place: what is fuzzed, by Hypothesis in the tests and by `fuzz.py`.

The digests that would refuse other bytes at once are made to fit, as somebody could who may write the whole book.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from benchmarks.faults import specimens

from bookkd.book import Book, Plan, _manifest, verify
from bookkd.book._constants import read_constant
from bookkd.book._opening import read_keys
from bookkd.book._shard import Shard
from bookkd.core import jsonio
from bookkd.core.errors import BookKDError, ConfigError

LIMIT_SECONDS = 5.0
LIMIT_BYTES = 64 * 2**20
"""Beyond twice the file's own size."""
SAMPLES, VIEWS = 20, 2


@cache
def folder() -> Path:
    """Return a folder in memory, where there is one, with the specimen in `book`."""
    fast = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="bookkd-readers-", dir=fast if os.access(fast, os.W_OK) else None))
    specimens.make(root / "book", specimens.plan(SAMPLES, VIEWS, unit_rows=16), constants=specimens.CONSTANTS)
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def specimen() -> Book:
    return Book(folder() / "book")


@cache
def whole() -> dict[str, bytes]:
    """Return the files of the specimen, one of each kind."""
    book = specimen()
    view = book._edition.views[0].file
    stem = book._files[0].stems[0]
    names = {
        "plan": "plan.json",
        "edition": "edition-000001.json",
        "view": f"view-0000/{view}",
        "sidecar": f"view-0000/{stem}.json",
        "shard": f"view-0000/{stem}.safetensors",
        "keys": "keys.safetensors",
        "constant": book.plan.constants["classifier/weight"].file,
    }
    return {kind: (book.path / name).read_bytes() for kind, name in names.items()}


def plan(data: bytes) -> None:
    found = Plan.from_json(jsonio.parse(data, "plan.json", limit=2**24), "plan.json")
    jsonio.digest(found.identity())
    assert found.record_bytes >= 0
    assert set(found.flat) < set(found.stored)  # what a shard is compared with


def edition(data: bytes) -> None:
    found = jsonio.parse(data, "edition", limit=2**24)
    found.pop("digest", None)
    try:
        fitting = jsonio.digest(found)
    except ValueError:  # half of a surrogate pair
        fitting = "0" * 32
    read = _manifest.Edition.from_json({**found, "digest": fitting}, "edition")
    assert len(read.content_digest) == 32


def view(data: bytes) -> None:
    _manifest.ViewFile.from_json(jsonio.parse(data, "view", limit=2**24), SAMPLES, "view")


def sidecar(data: bytes) -> None:
    found = _manifest.Sidecar.from_json(jsonio.parse(data, "sidecar", limit=2**24), "sidecar")
    _manifest.content_of_view([found])


def shard(data: bytes) -> None:
    """Map it as the first shard of the specimen and read every record: its blocks trusted, then hashed."""
    path, (root, name) = folder() / "view-0000", (folder(), "rows-000000000-000000016")
    path.mkdir(exist_ok=True)
    (path / f"{name}.safetensors").write_bytes(data)
    book = specimen()
    file = _manifest.ViewFile(
        0, [name], np.array([0]), np.array([16]), np.array([len(data)]), np.array([9]), ["0" * 32]
    )
    hashes = _manifest.read_sidecar(book.path, book._files[0], 0)
    rows = np.arange(16)
    for known in (None, hashes):
        found = Shard(root, file, 0, book.plan, known)
        flat = list(book.plan.flat)
        ends = {each.ends for each in book.plan.flat.values()}
        out = {
            tensor: np.empty((16, *row), dtype)
            for tensor, (dtype, row) in book.plan.stored.items()
            if tensor not in flat and tensor not in ends
        }
        try:
            found.take(rows, out, slice(None))
            stored = {**out, **found.take_items(rows, flat)}
            for field, entry in book.plan.fields.items():
                parts = {part: stored[f"{field}/{part}"] for part in entry.codec.parts(entry.shape)}
                entry.codec.decode(parts, entry.shape)
        except BookKDError:
            if known is not None:
                raise


def keys(data: bytes) -> None:
    path = folder() / "keys.safetensors"
    path.write_bytes(data)
    read_keys(folder(), _with_keys(xxhash.xxh3_128_hexdigest(data)))


def constant(data: bytes) -> None:
    """Read it as the constant that it stands for, as far as the plan may say its size."""
    entry = specimen().plan.constants["classifier/weight"]
    try:
        entry = replace(entry, bytes=len(data), digest=xxhash.xxh3_128_hexdigest(data))
    except ConfigError:  # no plan is read that says so
        return
    path = folder() / entry.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        found = read_constant(folder(), entry)
    finally:
        path.unlink()
    assert (found.dtype.name, found.shape, found.flags.writeable) == (entry.dtype, entry.shape, False)


def _with_keys(digest: str) -> Plan:
    return replace(specimen().plan, keys_digest=digest)


def book(data: bytes) -> None:
    """Put the bytes in place of one file of a whole book, which the first of them chooses; nothing is made to fit."""
    names = sorted(str(path.relative_to(specimen().path)) for path in specimen().path.rglob("*") if path.is_file())
    place = specimen().path / names[(data[0] if data else 0) % len(names)]
    good = place.read_bytes()
    place.write_bytes(data[1:])
    try:
        if good == data[1:]:
            return
        assert verify(specimen().path), f"silent: other bytes in {place.name}"
        specimens.everything(Book(specimen().path, verify="all"))
    finally:
        place.write_bytes(good)


READERS: dict[str, Callable[[bytes], None]] = {
    "plan": plan,
    "edition": edition,
    "view": view,
    "sidecar": sidecar,
    "shard": shard,
    "keys": keys,
    "constant": constant,
    "book": book,
}
"""Kind of file -> what is done with bytes in its place; a BookKDError, or nothing at all."""


_CONTAINERS = ("shard", "keys", "constant")


class BrokenError(AssertionError):
    """An input did what none may."""


def judge(kind: str, data: bytes) -> str:
    """Read hostile bytes; return how they were refused, "" if they were read.

    Raises:
        BrokenError: as `measured`.
    """
    specimen()
    return measured(kind, lambda: READERS[kind](data), len(data))


def measured(kind: str, work: Callable[[], object], size: int) -> str:
    """Do something with hostile files; return how they were refused, "" if they were not.

    Args:
        kind: For the message.
        work: What is done.
        size: Bytes of the files.

    Raises:
        BrokenError: for any other error, for more memory than twice the files and 64 MiB, for more than 5 s of a processor.
    """
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    said = ""
    try:
        work()
    except BookKDError as error:
        said = type(error).__name__
        if "\n" in str(error) or len(str(error)) > 4000:
            raise BrokenError(f"{kind}: a message of {len(str(error))} characters, or of several lines") from error
    except BaseException as error:
        raise BrokenError(f"{kind}: {type(error).__name__}: {error}") from error
    finally:
        spent = time.process_time() - started
        taken = tracemalloc.get_traced_memory()[1] - before
        if not tracing:
            tracemalloc.stop()
    if taken > 2 * size + LIMIT_BYTES:
        raise BrokenError(f"{kind}: {taken} bytes of memory for {size} bytes of files")
    if spent > LIMIT_SECONDS:
        raise BrokenError(f"{kind}: {spent:.1f} s for {size} bytes of files")
    return said


def edited(kind: str, choose: Callable[[int], int], fresh: Callable[[], Any]) -> bytes:
    """Return a file of a kind with some JSON values changed, or another header around the data of a shard.

    Args:
        kind: Of the file.
        choose: Gives a whole number below the one given.
        fresh: Gives a JSON value.
    """
    good = whole()["plan" if kind == "book" else kind]
    if kind in _CONTAINERS:
        length = int.from_bytes(good[:8], "little")
        found = json.loads(good[8 : 8 + length])
    else:
        found = json.loads(good)
    for _ in range(1 + choose(3)):
        change(found, choose, fresh)
    try:
        text = json.dumps(found).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return b"{"
    if kind not in _CONTAINERS:
        return bytes([choose(256)]) * (kind == "book") + text
    return len(text).to_bytes(8, "little") + text + good[8 + length :]


def change(found: Any, choose: Callable[[int], int], fresh: Callable[[], Any]) -> None:
    """Walk down from an object or list and change what is met at a random depth."""
    while isinstance(found, dict | list) and found:
        key = sorted(found)[choose(len(found))] if isinstance(found, dict) else choose(len(found))
        inner = found[key]
        if isinstance(inner, dict | list) and inner and choose(4):
            found = inner
            continue
        what = choose(6)
        if what == 0:
            del found[key]
        elif what == 1 and isinstance(found, dict):
            found[str(fresh())[:40]] = found.pop(key)
        elif what == 2 and isinstance(inner, int) and not isinstance(inner, bool):
            found[key] = inner + (1, -1, 2**32, -(2**31), 2**62, 2**64)[choose(6)]
        elif what == 3 and isinstance(found, list):
            found.insert(choose(len(found) + 1), deepcopy(inner))
        else:
            found[key] = deepcopy(fresh())  # a list among the values must not be changed for the next input
        return


SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 255, 2**16, 2**31, 2**32, 2**40, 2**53 + 1, 2**62, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0,
    1e308, 5e-324, "", "a", "..", "../x", "/etc/passwd", "\x00", "\ud800", "é", "x" * 300, "dense", "sampled", "top_k", "pooled", "raw",
    "F64", "U8", "BOOL", "float32", "uint64", "0" * 32, "f" * 16, [], {}, [0], [1, 2], [2**62, 2**62], {"name": "dense"},
    {"name": "sampled", "configuration": {"draws": 4096}}, {"name": "top_k", "configuration": {"k": 2**40}},
    {"name": "pooled", "configuration": {"grid": [2**40]}}, {"dtype": "U8", "shape": [2**61, 8], "data_offsets": [0, 8]},
)  # fmt: skip
"""Values that have broken readers of other formats."""
