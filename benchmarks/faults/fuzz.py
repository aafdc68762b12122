"""Coverage-guided fuzzing of the readers, and of those that write into hostile folders, by atheris; without it, the same inputs mutated at random.

    pip install atheris
    python benchmarks/faults/fuzz.py shard --seconds 300 --out found.json

One process, since what is fuzzed counts its own memory. An input that breaks a promise is kept beside `--out`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["bookkd.book", "bookkd.core"]):
        from benchmarks.faults import folders, readers
else:
    from benchmarks.faults import folders, readers

SEED = 20260801
LARGEST = 2**16
KINDS = [*readers.READERS, *folders.WRITERS]


class Fuzzing:
    """What is counted while inputs come in."""

    def __init__(self, kinds: list[str], out: Path, seconds: float) -> None:
        self.kinds, self.out, self.seconds = kinds, out, seconds
        self.started = self.told = time.monotonic()
        self.inputs: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.read = 0
        self.broken: list[str] = []
        tracemalloc.start()

    def one(self, data: bytes) -> None:
        if not data:
            return
        kind = self.kinds[data[0] % len(self.kinds)]
        body = self._body(kind, data[1:])
        self.inputs[kind] += 1
        try:
            said = (folders if kind in folders.WRITERS else readers).judge(kind, body)
        except readers.BrokenError as error:
            if str(error) not in self.broken and len(self.broken) < 100:
                self.broken.append(str(error))
                self.out.with_name(f"{self.out.stem}-broken-{len(self.broken)}.bin").write_bytes(body)
            self.tell()
            return
        if said:
            self.refused[said] += 1
        else:
            self.read += 1
        if time.monotonic() - self.told > 5:
            self.tell()

    def _body(self, kind: str, data: bytes) -> bytes:
        """Return the input itself, or an edit of a whole file that the input chooses: bytes alone rarely stay JSON."""
        if kind in folders.WRITERS:
            return data
        if len(data) < 2 or data[0] % 3 == 0:
            return data[1:]
        if data[0] % 3 == 1:
            good = bytearray(readers.whole()["plan" if kind == "book" else kind])
            for at in range(1, len(data) - 3, 4):  # a place of three bytes, and what is put there
                good[int.from_bytes(data[at : at + 3], "little") % len(good)] = data[at + 3]
            return bytes(good)
        numbers = iter(data[1:])

        def choose(below: int) -> int:
            return (next(numbers, 0) | next(numbers, 0) << 8) % below

        return readers.edited(kind, choose, lambda: readers.SCALARS[choose(len(readers.SCALARS))])

    def tell(self) -> None:
        self.told = time.monotonic()
        self.out.write_text(json.dumps(self.report(), indent=1, sort_keys=True) + "\n")

    def report(self) -> dict[str, Any]:
        return {
            "by": "atheris, guided by coverage" if atheris is not None else "random mutation",
            "seconds": round(time.monotonic() - self.started),
            "inputs": dict(self.inputs),
            "refused": dict(self.refused),
            "read": self.read,
            "broken": self.broken,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="kinds of files; all where none is named")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    given = parser.parse_args()
    run = Fuzzing(given.kinds or KINDS, given.out, given.seconds)
    readers.whole()
    folders.place()
    if atheris is None:
        draws = random.Random(given.seed)
        while time.monotonic() - run.started < given.seconds:
            run.one(draws.randbytes(draws.choice([4, 16, 64, 256, 2048])))
        run.tell()
        return
    corpus = given.out.with_name(f"{given.out.stem}-corpus")
    corpus.mkdir(exist_ok=True)
    for place, kind in enumerate(run.kinds):
        if kind in folders.WRITERS:
            for way in range(10):  # one kind of change each
                (corpus / f"folder-{kind}-{way}").write_bytes(bytes([place, *range(way, way + 60)]))
            continue
        data = readers.whole()["plan" if kind == "book" else kind]
        (corpus / f"whole-{kind}").write_bytes(bytes([place, 0]) + b"\0" * (kind == "book") + data)
        for way in (1, 2):
            (corpus / f"edit-{kind}-{way}").write_bytes(bytes([place, way, *range(40)]))
    options = [
        "-max_len=65536",
        f"-max_total_time={int(given.seconds) + 10}",  # counted from before what this file counts
        f"-seed={given.seed}",
        "-timeout=60",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus.parent}/", str(corpus)], run.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
