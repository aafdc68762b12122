"""The same records in a book and in the formats of others: writing, random batches, size, opening, and a flipped bit.

python benchmarks/peers.py [--rows 32768] [--rounds 7] [--keep]       # writes benchmarks/performance/peers.json

Every peer is used through the public names of its package, as its own documentation does. None is a requirement of this project:

    pip install pyarrow datasets lmdb array_record webdataset litdata mosaicml-streaming

What is not installed is named as such; with `--only NAME,NAME --keep` other rows stay as they were kept, for peers whose requirements
exclude each other. Ratios are of rounds in turn: writing against a plain write of the same bytes with fsync, a
batch of 256 random rows against indexing of the same array in memory. The bit is flipped inside a record, found by its bytes, or in the
middle of the largest file where they are not there as they are; what then reads all records is a process of its own, since some
readers end theirs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from keeping import KEPT, keep

from bookkd.book import Book, BookWriter, FieldPlan, Plan, Raw
from bookkd.core.errors import BookKDError
from bookkd.core.rng import generator
from bookkd.pipelines.bench import Ratio, machine

WIDTH = 512
BATCH = 256
HALF = np.dtype(np.float16)


class Peer:
    """One way to keep rows of WIDTH float16.

    Args:
        folder: Where its files are.
    """

    words = ""
    package = ""
    random = True
    """Whether rows can be asked for by number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, array: np.ndarray) -> None:
        raise NotImplementedError

    def open(self) -> Any:
        raise NotImplementedError

    def close(self, opened: Any) -> None:
        """Let go of what `open` gave, where that is needed to open it again."""

    def rows(self, opened: Any, numbers: np.ndarray) -> np.ndarray:
        """Return rows by number, of a peer that is read in order alone all rows up to the last one asked for."""
        raise NotImplementedError


class BookPeer(Peer):
    words, package = "book (this project), blocks hashed when first touched", "bookkd"

    def write(self, array):
        fields = {"x": FieldPlan((WIDTH,), Raw("float16"))}
        plan = Plan(n_samples=len(array), n_views=1, fields=fields, temperatures=(), unit_rows=len(array))
        with BookWriter(self.folder / "book", plan) as writer:
            writer.write_rows(0, 0, {"x": array})
            writer.finish()

    def open(self):
        return Book(self.folder / "book")

    def rows(self, opened, numbers):
        return opened.gather(numbers, 0)["x/values"]


class NpyPeer(Peer):
    words, package = "npy, memory-mapped", "numpy"

    def write(self, array):
        np.save(self.folder / "x.npy", array)

    def open(self):
        return np.load(self.folder / "x.npy", mmap_mode="r", allow_pickle=False)

    def rows(self, opened, numbers):
        return opened[numbers]


class SafetensorsPeer(Peer):
    words, package = "safetensors, `get_slice` a row", "safetensors"

    def write(self, array):
        from safetensors.numpy import save_file

        save_file({"x": array}, self.folder / "x.safetensors")

    def open(self):
        from safetensors import safe_open

        return safe_open(self.folder / "x.safetensors", framework="np").__enter__().get_slice("x")

    def rows(self, opened, numbers):
        return np.concatenate([opened[number : number + 1] for number in numbers.tolist()])


class ArrowPeer(Peer):
    words, package = "Arrow file, memory-mapped, one batch, `take`", "pyarrow"

    def write(self, array):
        import pyarrow as pa

        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * WIDTH), len(array), [None, pa.py_buffer(array)])
        table = pa.table({"x": column})
        with pa.OSFile(str(self.folder / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def open(self):
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(self.folder / "x.arrow"))).read_all()["x"].chunk(0)

    def rows(self, opened, numbers):
        import pyarrow as pa

        taken = opened.take(pa.array(numbers))
        return np.frombuffer(taken.buffers()[1], dtype=HALF).reshape(-1, WIDTH)


class DatasetsPeer(Peer):
    words, package = "Hugging Face datasets, format numpy", "datasets"

    def write(self, array):
        import datasets

        features = datasets.Features({"x": datasets.Sequence(datasets.Value("float16"), length=WIDTH)})
        datasets.Dataset.from_dict({"x": array}, features=features).save_to_disk(str(self.folder / "x"))

    def open(self):
        import datasets

        return datasets.load_from_disk(str(self.folder / "x")).with_format("numpy")

    def rows(self, opened, numbers):
        return np.asarray(opened[numbers.tolist()]["x"])


class LmdbPeer(Peer):
    words, package = "LMDB, a row a key", "lmdb"

    def write(self, array):
        import lmdb

        with lmdb.open(str(self.folder / "x"), map_size=2**34) as store, store.begin(write=True) as work:
            for number, row in enumerate(array):
                work.put(number.to_bytes(4, "big"), row.tobytes(), append=True)

    def open(self):
        import lmdb

        store = lmdb.open(str(self.folder / "x"), readonly=True, lock=False)
        return store, store.begin(buffers=True)

    def close(self, opened):
        store, work = opened
        work.abort()
        store.close()

    def rows(self, opened, numbers):
        get = opened[1].get
        return np.stack([np.frombuffer(get(number.to_bytes(4, "big")), dtype=HALF) for number in numbers.tolist()])


class ArrayRecordPeer(Peer):
    words, package = "ArrayRecord, group of one row", "array_record"

    def write(self, array):
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(self.folder / "x.array_record"), "group_size:1")
        for row in array:
            writer.write(row.tobytes())
        writer.close()

    def open(self):
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(str(self.folder / "x.array_record"))

    def rows(self, opened, numbers):
        return np.stack([np.frombuffer(row, dtype=HALF) for row in opened.read(numbers.tolist())])


class WebDatasetPeer(Peer):
    words, package, random = "WebDataset, a row a member of the tar", "webdataset", False

    def write(self, array):
        import webdataset

        with webdataset.TarWriter(str(self.folder / "x.tar")) as writer:
            for number, row in enumerate(array):
                writer.write({"__key__": f"{number:08d}", "bin": row.tobytes()})

    def open(self):
        import webdataset

        return webdataset.WebDataset(str(self.folder / "x.tar"), shardshuffle=False)

    def rows(self, opened, numbers):
        found = {int(sample["__key__"]): sample["bin"] for sample in opened}
        return np.stack([np.frombuffer(found[number], dtype=HALF) for number in numbers.tolist()])


class LitDataPeer(Peer):
    words, package = "LitData, `StreamingDataset`", "litdata"

    def write(self, array):
        from litdata.streaming import Cache

        cache = Cache(str(self.folder / "x"), chunk_bytes=2**26)
        for number, row in enumerate(array):
            cache[number] = row.tobytes()
        cache.done()
        cache.merge()

    def open(self):
        from litdata import StreamingDataset

        return StreamingDataset(str(self.folder / "x"))

    def rows(self, opened, numbers):
        return np.stack([np.frombuffer(opened[number], dtype=HALF) for number in numbers.tolist()])


class MdsPeer(Peer):
    words, package = "MosaicML MDS, hashes xxh3_64", "mosaicml-streaming"

    def write(self, array):
        from streaming import MDSWriter

        with MDSWriter(out=str(self.folder / "x"), columns={"x": "bytes"}, hashes=["xxh3_64"]) as writer:
            for row in array:
                writer.write({"x": row.tobytes()})

    def open(self):
        from streaming import StreamingDataset

        return StreamingDataset(local=str(self.folder / "x"), shuffle=False, batch_size=1, validate_hash="xxh3_64")

    def rows(self, opened, numbers):
        return np.stack([np.frombuffer(opened[number]["x"], dtype=HALF) for number in numbers.tolist()])


PEERS: dict[str, type[Peer]] = {
    "book": BookPeer,
    "npy": NpyPeer,
    "safetensors": SafetensorsPeer,
    "arrow": ArrowPeer,
    "datasets": DatasetsPeer,
    "lmdb": LmdbPeer,
    "array_record": ArrayRecordPeer,
    "webdataset": WebDatasetPeer,
    "litdata": LitDataPeer,
    "mds": MdsPeer,
}


def records(count: int) -> np.ndarray:
    """Return the rows that everybody keeps; random, so that nobody gains by compressing."""
    return generator(0, "peers").standard_normal((count, WIDTH), dtype=np.float32).astype(HALF)


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def sync(folder: Path) -> None:
    """Bring all files below a folder to the disk, whatever their writer did."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def time_plain(place: Path, data: bytes) -> float:
    """Return the seconds that a plain write takes."""
    path = place / "plain"
    taken = seconds(lambda: (path.write_bytes(data), sync(place)))
    path.unlink()
    return taken


def time_writing(peer: Peer, array: np.ndarray) -> float:
    return seconds(lambda: (peer.write(array), sync(peer.folder)))


def compare(kind: type[Peer], array: np.ndarray, place: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one peer."""
    plain, written = array.tobytes(), []
    for number in range(3):
        folder = place / f"{number}"
        folder.mkdir()
        peer = kind(folder)
        written.append(time_plain(place, plain) / time_writing(peer, array))
        if number < 2:
            shutil.rmtree(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    opening = []
    for _ in range(5):
        started = time.perf_counter()
        opened = peer.open()
        opening.append(time.perf_counter() - started)
        peer.close(opened)
    opened = peer.open()
    found: dict[str, Any] = {
        "words": kind.words,
        "version": importlib.metadata.version(kind.package),
        "write_ratio": statistics.median(written),
        "bytes_per_record": size / len(array),
        "open_ms": 1e3 * statistics.median(opening),
        "gather_ratio": None,
    }
    draws = generator(1, "peers")
    some = draws.integers(len(array), size=BATCH)
    if not np.array_equal(peer.rows(opened, some), array[some]):
        raise SystemExit(f"{kind.words} gave other rows than were written")
    if kind.random:
        found |= gather(peer, opened, array, rounds)
    peer.close(opened)
    return found | {"flipped_bit": flipped(kind, peer, array)}


def gather(peer: Peer, opened: Any, array: np.ndarray, rounds: int) -> dict[str, Any]:
    """Return the speed of random batches against memory, once every page is there."""
    draws = generator(2, "peers")
    batches = [draws.integers(len(array), size=BATCH) for _ in range(16)]

    def read(count: int) -> float:
        return seconds(lambda: [peer.rows(opened, rows) for rows in batches[:count]]) / count

    for start in range(0, len(array), BATCH):
        peer.rows(opened, np.arange(start, min(start + BATCH, len(array))))
    count = 16 if read(1) < 0.02 else 2
    ratios, speeds = [], []
    for _ in range(rounds):
        memory = seconds(lambda: [array[rows] for rows in batches]) / len(batches)
        theirs = read(count)
        ratios.append(memory / theirs)
        speeds.append(BATCH / theirs)
    low, high = Ratio(tuple(ratios), (0.0, 0.0)).interval()
    middle, speed = statistics.median(ratios), statistics.median(speeds)
    return {"gather_ratio": middle, "gather_low": low, "gather_high": high, "rows_per_second": speed}


def flipped(kind: type[Peer], peer: Peer, array: np.ndarray) -> str:
    """Flip one bit of a record in the middle; return what a reader of it, in a process of its own, makes of that."""
    number = len(array) // 2 + 7
    wanted = array[number].tobytes()
    files = sorted((path for path in peer.folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    found = {path: path.read_bytes().find(wanted) for path in files}
    path = next((path for path in files if found[path] >= 0), files[0])
    data = bytearray(path.read_bytes())
    data[found[path] + WIDTH if found[path] >= 0 else len(data) // 2] ^= 4
    path.write_bytes(data)
    name = next(key for key, value in PEERS.items() if value is kind)
    command = [sys.executable, __file__, "--read", name, str(peer.folder), "--rows", str(len(array))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return "the reader hangs"
    if done.returncode < 0:
        return f"the process ends by signal {-done.returncode}"
    lines = done.stdout.strip().splitlines() or [f"the reader fails with exit code {done.returncode}"]
    return lines[-1]


def read_flipped(name: str, folder: Path, count: int) -> str:
    """Read the record again, and all others where it is right; said on stdout to the process that flipped the bit."""
    array, number = records(count), count // 2 + 7
    peer = PEERS[name](folder)
    try:
        opened = peer.open()
        for start in [number, *range(0, count, BATCH)] if peer.random else [number]:
            rows = np.arange(start, min(start + (1 if start == number else BATCH), count))
            if not np.array_equal(peer.rows(opened, rows), array[rows]):
                return "not noticed: wrong numbers"
    except BookKDError as error:
        return f"error: {type(error).__name__}, place named"
    except Exception as error:
        return f"error: {type(error).__name__}"
    return "harmless: outside of the records"


def _words(error: Exception) -> str:
    """Return the first line of what an error says, without the paths of this machine."""
    return re.sub(r"\(?/\S+", "", str(error).partition("\n")[0])[:120].strip()


def installed(kind: type[Peer]) -> bool:
    try:
        importlib.metadata.version(kind.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def merged(found: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """Return what was found, and what was kept of the same number of rows for the others."""
    path, known = KEPT / "peers.json", {}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        known = {peer["name"]: peer for peer in kept["peers"] if kept["rows"] == rows}
    known |= {peer["name"]: peer for peer in found}
    return [known[name] for name in PEERS if name in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--folder", help="where the files are written: a real disk, not a tmpfs")
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    parser.add_argument("--read", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(read_flipped(options.read[0], Path(options.read[1]), options.rows))
        return
    before, array, found = machine(), records(options.rows), []
    for name in options.only.split(","):
        kind = PEERS[name]
        figures: dict[str, Any] = {"name": name, "words": kind.words, "problem": None}
        if not installed(kind):
            figures["problem"] = "not installed"
        else:
            with tempfile.TemporaryDirectory(prefix="bookkd-peers-", dir=options.folder) as place:
                try:
                    figures |= compare(kind, array, Path(place), options.rounds)
                except Exception as error:
                    figures["problem"] = f"{type(error).__name__}: {_words(error)}"
        found.append(figures)
        print(figures)
    if options.keep:
        keep("peers", [], before, peers=merged(found, options.rows), rows=options.rows, row_bytes=2 * WIDTH)


if __name__ == "__main__":
    main()
