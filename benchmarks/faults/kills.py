"""SIGKILL at random moments of everything that writes a book, and before every call that the disk sees; then the same again.

Children are forked from a process that has everything imported, so that a run takes tens of milliseconds. After each
kill the book that was there must still be there, and every file that was there, of the sources too, must be what it was or what it is
to become; the work is then run again, and all that lies there compared with what a run leaves that nobody disturbed: the content
digest, the list of files, and every byte of them but of what the work cost.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from benchmarks.faults import specimens

from bookkd.book import (
    Book,
    FieldPlan,
    GrowthWriter,
    Int8,
    Sampled,
    compact,
    copy_book,
    extract,
    is_finished,
    prune,
    repair,
    verify,
)
from bookkd.core.errors import BookMismatchError
from bookkd.knowledge import Teacher
from bookkd.making import make, merge
from bookkd.query import write_statistics
from bookkd.tasks import Classification
from bookkd.views import Views
from bookkd.zoo import open_dataset

SEED = 4
SAMPLES, VIEWS, GROWN = 100, 2, (150, 4)
ONE = {"dense": specimens.CODECS["dense"]}


@dataclass(frozen=True)
class Work:
    """Something that writes a book.

    Args:
        start: Lays down what is worked on.
        run: Does the work, from wherever it was left; returns the folder of its result.
        to: Folder of its result, where that comes from other books: begun, it is not gone on with from books of other records.
        finished: Whether a finished book is worked on, which has to be readable at every moment.
        damaged: Whether the book of `start_book` was spoilt, which has to have no fault in any other file, ever.
        kills: At how many random moments it is killed.
    """

    start: Callable[[Path], None]
    run: Callable[..., Path]
    to: str = ""
    finished: bool = True
    damaged: bool = False
    kills: int = 50


def nothing(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)


def start_book(root: Path) -> None:
    specimens.make(root / "b", specimens.plan(SAMPLES, VIEWS))


def making(root: Path) -> Path:
    specimens.make(root / "b", specimens.plan(*GROWN))
    return root / "b"


def teacher(seed: int = 0) -> Teacher:
    """Return a network of a few thousand parameters that nobody trained."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    return Teacher(network, lambda image: image.float() / 16, name=f"teacher-{seed}")


def digits(count: int) -> Any:
    return open_dataset("digits", limit=count)


def noisy(image: torch.Tensor) -> torch.Tensor:
    return image + torch.randint(0, 2, image.shape, dtype=image.dtype)


def making_with_a_network(root: Path) -> Path:
    make(
        root / "b",
        teacher(),
        digits(192),
        Views(noisy, n_views=3, seed=1),
        task=Classification(tuple("0123456789")),
        codec=Sampled(9),
        batch_size=16,
        unit_rows=32,
    )
    return root / "b"


def compacting(root: Path) -> Path:
    compact(root / "b")
    return root / "b"


def pruning(root: Path) -> Path:
    compact(root / "b")
    prune(root / "b")
    return root / "b"


def start_books(root: Path) -> None:
    for place, codec in enumerate((Int8(), Sampled(9, 2.0))):
        the_plan = specimens.plan(SAMPLES, VIEWS, {"one": codec})
        fields = {"logits": FieldPlan((specimens.C,), codec), "probe/hash": the_plan.fields["probe/hash"]}
        info = replace(the_plan.teachers[0], name=f"teacher {place}", digest=f"{place:032x}")
        specimens.make(root / f"b{place}", replace(the_plan, fields=fields, teachers=(info,)))


def merging(root: Path, of: Path | None = None) -> Path:
    merge(root / "b", [Book((of or root) / "b0"), Book((of or root) / "b1")])
    return root / "b"


def growing_views(root: Path) -> Path:
    specimens.grow(root / "b", SAMPLES, GROWN[1])
    return root / "b"


def growing_samples(root: Path) -> Path:
    specimens.grow(root / "b", GROWN[0], VIEWS)
    return root / "b"


def start_one_teacher(root: Path) -> None:
    base = specimens.plan(SAMPLES, VIEWS, ONE)
    specimens.make(root / "b", base)


def growing_teachers(root: Path) -> Path:
    larger = specimens.plan(SAMPLES, VIEWS)
    with GrowthWriter(root / "b", larger, keys=specimens.keys(SAMPLES)) as writer:
        for view, start, stop in writer.pending():
            found = specimens.said(larger, view, start, stop)
            writer.write_rows(view, start, {name: found[name] for name in writer.fields})
        writer.finish({"seconds": 1.5})
    return root / "b"


def start_damaged(root: Path) -> None:
    start_book(root)
    book = Book(root / "b")
    shards = sorted((root / "b").glob("view-*/*.safetensors"))
    for shard, cut in zip(shards[::3], (900, 1, 5000), strict=False):
        shard.write_bytes(shard.read_bytes()[:-cut])
    (root / "b" / "view-0001" / book._edition.views[1].file).unlink()


def repairing(root: Path, *, otherwise: bool = False) -> Path:
    the_plan = specimens.plan(SAMPLES, VIEWS)

    def say(view: int, start: int, stop: int) -> dict[str, np.ndarray]:
        found = specimens.said(the_plan, view, start, stop)
        return {**found, "features/map": found["features/map"] + np.float32(0.25)} if otherwise else found

    repair(root / "b", say, keys=specimens.keys(SAMPLES), accept=otherwise)
    return root / "b"


def accepting(root: Path) -> Path:
    return repairing(root, otherwise=True)


def start_without_a_sidecar(root: Path) -> None:
    """What it says of losses stands nowhere else: a new edition does without. Another one is damaged where nothing is lost."""
    start_book(root)
    sidecars = sorted((root / "b").glob("view-0001/rows-*.json"))
    sidecars[1].unlink()
    sidecars[-1].write_bytes(b"?" + sidecars[-1].read_bytes()[1:])
    (root / "b" / "keys.safetensors").unlink()


def start_damaged_edition(root: Path) -> None:
    """It has still its own digest, and is made again to the byte."""
    start_book(root)
    shard = sorted((root / "b").glob("view-*/*.safetensors"))[2]
    for path, cut in ((root / "b" / "edition-000001.json", 30), (root / "b" / "keys.safetensors", 9), (shard, 700)):
        path.write_bytes(path.read_bytes()[:-cut])


def start_plain(root: Path) -> None:
    specimens.make(
        root / "b", specimens.plan(SAMPLES, VIEWS, {name: specimens.CODECS[name] for name in ("dense", "top_k")})
    )


def describing(root: Path) -> Path:
    write_statistics(Book(root / "b"))
    return root / "b"


def copying(root: Path, of: Path | None = None) -> Path:
    copy_book(root / "copy", Book((of or root) / "b"))
    return root / "copy"


def encoding_anew(root: Path, of: Path | None = None) -> Path:
    copy_book(root / "copy", Book((of or root) / "b"), codec=Sampled(9))
    return root / "copy"


def start_dense(root: Path) -> None:
    start_one_teacher(root)


def extracting(root: Path, of: Path | None = None) -> Path:
    extract(root / "part", Book((of or root) / "b"), samples=np.arange(0, SAMPLES, 2), views=[1, 0])
    return root / "part"


WORKS = {
    "making, any producer": Work(nothing, making, finished=False, kills=100),
    "making, a network": Work(nothing, making_with_a_network, finished=False, kills=100),
    "compacting": Work(start_book, compacting),
    "compacting and pruning": Work(start_book, pruning),
    "merging": Work(start_books, merging, to="b", finished=False),
    "growing by views": Work(start_book, growing_views),
    "growing by samples": Work(start_book, growing_samples),
    "growing by teachers": Work(start_one_teacher, growing_teachers),
    "repairing": Work(start_damaged, repairing, finished=False, damaged=True),
    "repairing an edition and keys": Work(start_damaged_edition, repairing, finished=False, damaged=True),
    "repairing without a sidecar": Work(start_without_a_sidecar, repairing, finished=False, damaged=True),
    "repairing, other records taken": Work(start_damaged, accepting, finished=False, damaged=True),
    "statistics": Work(start_plain, describing),
    "copying": Work(start_book, copying, to="copy"),
    "encoding anew": Work(start_dense, encoding_anew, to="copy"),
    "extracting": Work(start_book, extracting, to="part"),
}


def run(folder: Path, share: float = 1.0) -> dict[str, Any]:
    """Kill each work; `share` of the kills that the page is about."""
    torch.set_num_threads(1)
    found = {}
    for name, work in WORKS.items():
        found[name] = _killed(folder, name, work, share)
        print(f"  {name}: {found[name]['random']['killed']} + {found[name]['every_call']['killed']} kills", flush=True)
    return found


def _killed(folder: Path, name: str, work: Work, share: float) -> dict[str, Any]:
    draws = random.Random(f"{SEED} {name}")
    with _place(folder) as root:
        work.start(root)
        before = _digest(root) if work.finished else ""
        start = _files(root)
        took, result = _reference(root, work)
        wanted, digest = _files(root), Book(result).content_digest
    with _place(folder) as root:
        start_book(root)
        spoilt = {name for name, whole in _files(root).items() if work.damaged and start.get(name) != whole}
    others = folder / "others" / name.replace(" ", "-")
    if work.to:
        others.mkdir(parents=True, exist_ok=True)
        with patch.object(specimens, "said", _otherwise):
            work.start(others)
    expectation = _Expectation(start, wanted, digest, before, spoilt, others)
    times = [took]
    for _ in range(4):
        with _place(folder) as root:
            work.start(root)
            times.append(_reference(root, work)[0])
    took = statistics.median(times)
    count = max(1, round(work.kills * share))
    judge = _Judge(work, expectation)
    for place in range(count):
        # Spread over the whole of the work, each somewhere in its share of it; earlier where the work was quicker than that.
        seconds = (place + draws.random()) / count * took
        killed = False
        while not killed:
            with _place(folder) as root:
                work.start(root)
                killed = judge.after(root, _after_seconds(root, work, seconds))
            seconds *= 0.8
    at_random, judge = judge, _Judge(work, expectation)
    for call in range(10_000):
        if share < 1 and call % max(1, round(1 / share)):
            continue
        with _place(folder) as root:
            work.start(root)
            if not judge.after(root, _before_call(root, work, call)):
                break
    return {
        "milliseconds": round(1000 * took, 1),
        "files": len(wanted),
        "random": at_random.report(),
        "every_call": judge.report(),
    }


@dataclass(frozen=True)
class _Expectation:
    """Files and content before a work, and after one that nobody disturbed."""

    start: dict[str, str]
    wanted: dict[str, str]
    digest: str
    before: str
    spoilt: set[str]
    others: Path


def _otherwise(*where: Any, said: Callable[..., Any] = specimens.said) -> dict[str, np.ndarray]:
    found = said(*where)
    return {name: found[name] if name == "probe/hash" else found[name] + np.float32(0.25) for name in found}


class _Judge:
    """Looks at what a killed work left, and at what comes of it."""

    def __init__(self, work: Work, expectation: _Expectation) -> None:
        self.work, self.of = work, expectation
        self.runs = self.kills = self.refused = 0
        self.left: list[int] = []
        self.wrong: list[str] = []

    def after(self, root: Path, killed: bool) -> bool:
        """Judge a folder after its writer was killed, or came to its end first."""
        self.runs += 1
        self.kills += killed
        self.left.append(sum(1 for path in root.rglob("*") if path.is_file()))
        try:
            if self.work.finished:
                self._readable(root / "b")
            self._kept(root)
            self._refuses_others(root)
            result = self.work.run(root)
            found, wanted = _files(root), self.of.wanted
            if Book(result).content_digest != self.of.digest:
                raise AssertionError("another content digest")
            if verify(result):
                raise AssertionError(f"{verify(result)[0]}")
            if set(found) != set(wanted):
                raise AssertionError(f"other files: {sorted(set(found) ^ set(wanted))[:4]}")
            other = [name for name in found if found[name] != wanted[name]]
            if other:
                raise AssertionError(f"other bytes: {other[:4]}")
        except Exception as error:  # whatever it is, it is a finding
            self.wrong.append(f"{type(error).__name__}: {error}"[:300])
        return killed

    def _kept(self, root: Path) -> None:
        """Every file that was there, of sources too, is what it was or what it becomes; damage is nowhere that it was not."""
        found, start, wanted = _files(root), self.of.start, self.of.wanted
        other = [name for name, was in start.items() if found.get(name) not in (was, wanted.get(name))]
        if other:
            raise AssertionError(f"neither what it was nor what it becomes: {other[:4]}")
        if self.work.damaged:
            faults = {f"b/{fault.path}" for fault in verify(root / "b")} - self.of.spoilt
            if faults:
                raise AssertionError(f"damage where there was none: {sorted(faults)[:4]}")

    def _refuses_others(self, root: Path) -> None:
        """What was begun from some books is not gone on with from others, whose plans are the same."""
        to = root / (self.work.to or "none")
        if not (to / "plan.json").exists() or is_finished(to):
            return
        try:
            self.work.run(root, self.of.others)
        except BookMismatchError:
            self.refused += 1
            return
        raise AssertionError("gone on with from books of other records")

    def _readable(self, path: Path) -> None:
        """The book that was there is there, or the one that was to come."""
        book = Book(path, verify="all")
        if book.content_digest not in (self.of.before, self.of.digest):
            raise AssertionError("the book that was there is another one")
        book.read(np.arange(book.n_samples), 0)

    def report(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "killed": self.kills,
            "others_refused": self.refused,
            "files_left": [min(self.left), round(statistics.median(self.left)), max(self.left)],
            "wrong": self.wrong,
        }


class _place:  # noqa: N801 - reads as a function
    """A folder that is gone afterwards."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "kill"

    def __enter__(self) -> Path:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        return self.root

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _digest(root: Path) -> str:
    return Book(root / "b").content_digest


def _files(path: Path) -> dict[str, str]:
    """Return the digest of each file; of an edition without what the work cost, which is never the same."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            name = str(file.relative_to(path))
            data = file.read_bytes()
            if file.name.startswith("edition-"):
                with suppress(ValueError):  # a damaged one
                    data = json.dumps({**json.loads(data), "cost": None, "digest": None}, sort_keys=True).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _forked(root: Path, work: Work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work.run(root)
            code = 0
        finally:
            os._exit(code)
    return child


def _reference(root: Path, work: Work) -> tuple[float, Path]:
    """Do the work undisturbed; return its seconds and the folder of its result."""
    started = time.perf_counter()
    status = os.waitpid(_forked(root, work), 0)[1]
    took = time.perf_counter() - started
    if status:
        raise RuntimeError(f"Expected the work to come to its end, got status {status}.")
    return took, work.run(root)


def _after_seconds(root: Path, work: Work, seconds: float) -> bool:
    child = _forked(root, work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _before_call(root: Path, work: Work, number: int) -> bool:
    """Do the work in a child that dies before its n-th change of what the disk holds: a folder made or gone, a file renamed, linked,
    deleted, cut, synced or opened to be written, the lock among them.
    """

    def counted() -> Iterator[None]:
        for _ in range(number):
            yield
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        calls, code = counted(), 1

        def counting(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                next(calls)
                return real(*args, **options)

            return call

        opened, opened_low = Path.open, os.open

        def opening(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if set(mode) & set("wxa+"):
                next(calls)
            return opened(path, mode, *args, **options)

        def opening_low(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                next(calls)
            return opened_low(path, flags, *args, **options)

        Path.open, os.open = opening, opening_low
        for name in ("fsync", "link", "mkdir", "rmdir", "unlink", "rename", "replace", "ftruncate", "write"):
            setattr(os, name, counting(getattr(os, name)))
        try:
            work.run(root)
            code = 0
        finally:
            os._exit(code)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
