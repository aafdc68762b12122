"""An epoch of a ResNet-8 from a book on a loopback S3 server, its cache cold, against one from the book on the disk.

    python benchmarks/remote.py [--pairs 15] [--samples 5120] [--views 4] [--padding 990]
    python benchmarks/remote.py --keep             # writes benchmarks/performance/remote.json too

The server is moto's, in a process of its own, on the same machine: what it costs to serve falls on the epoch that is measured. Each
remote epoch opens the book anew with an empty cache. The order within a pair changes with each pair.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from keeping import keep

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Plan, copy_book
from bookkd.core.rng import generator
from bookkd.knowledge import StoredKnowledge
from bookkd.methods import VanillaKD
from bookkd.pipelines.bench.arm import Arm, random_images
from bookkd.pipelines.bench.measure import Goal, machine, paired
from bookkd.pipelines.options import ViewOptions
from bookkd.tasks import Classification
from bookkd.views import CachedViews, Replay

SERVE = (
    "from moto.server import ThreadedMotoServer; import sys\n"
    "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False); server.start()\n"
    "print(server.get_host_and_port()[1], flush=True); sys.stdin.read()\n"
)


def write(path: Path, n_samples: int, n_views: int, width: int, padding: int) -> Book:
    """Write random logits of ten classes, and a further field that makes a record as large as the real ones."""
    fields = {"logits": FieldPlan((width,), Dense()), "features/pooled": FieldPlan((padding,), Dense())}
    plan = Plan(n_samples, n_views, fields, unit_rows=max(1, n_samples // 4))
    with BookWriter(path, plan) as writer:
        for unit in writer.pending():
            draws = generator(unit.start, "remote", unit.view)
            rows = unit.stop - unit.start
            writer.write(unit, {name: draws.normal(size=(rows, *entry.shape)) for name, entry in fields.items()})
        return writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--samples", type=int, default=5120)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--padding", type=int, default=990, help="further float16 values of a record")
    parser.add_argument("--keep", action="store_true", help="write the figure that the page is made from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    port = server.stdout.readline().strip()
    address = f"http://127.0.0.1:{port}"
    os.environ.update(
        AWS_ENDPOINT_URL=address, AWS_ALLOW_HTTP="true", AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_REGION="us-east-1"
    )  # fmt: skip
    urllib.request.urlopen(urllib.request.Request(f"{address}/bench", method="PUT")).close()
    try:
        with tempfile.TemporaryDirectory(prefix="bookkd-remote-") as folder:
            goal = measure(Path(folder), options)
    finally:
        server.stdin.close()
        server.wait(10)
    print(f"{goal.name}: {goal.value:.3g} ({goal.low:.3g} to {goal.high:.3g}); {goal.note}")
    if options.keep:
        keep("remote", [goal], before)


def measure(folder: Path, options: argparse.Namespace) -> Goal:
    local = write(folder / "book", options.samples, options.views, 10, options.padding)
    copy_book("s3://bench/book", local)
    dataset = random_images(options.samples)
    task = Classification(dataset.class_names)
    views = ViewOptions("crop-flip", options.views, args={"size": 32, "padding": 4}).build()
    cached = CachedViews(Replay(dataset, views, probe_share=0.0), max_bytes=2**30)
    arms = {name: Arm(cached, VanillaKD(), StoredKnowledge(local), task) for name in ("here", "there")}
    opened = 0

    def here() -> None:
        arms["here"].run.step.knowledge = StoredKnowledge(Book(folder / "book"))
        arms["here"].epoch()

    def there() -> None:
        nonlocal opened
        opened += 1
        book = Book("s3://bench/book", cache=folder / f"cache-{opened}")
        arms["there"].run.step.knowledge = StoredKnowledge(book)
        arms["there"].epoch()
        book.close()

    ratio = paired(here, there, options.pairs)  # seconds here over seconds there: speed there over speed here
    low, high = ratio.interval()
    same = Book("s3://bench/book", cache=folder / "cache-1").gather(np.arange(64), 0)
    assert all(np.array_equal(array, same[name]) for name, array in local.gather(np.arange(64), 0).items())
    size = f"{options.samples * options.views:,} records, {local.nbytes / 2**20:.0f} MiB"
    return Goal(
        "speed of an epoch of ResNet-8 from loopback S3, cold cache / from the disk",
        ratio.median,
        0.8,
        ">=",
        low,
        high,
        options.pairs,
        f"{ratio.seconds[1]:.2f} s over {ratio.seconds[0]:.2f} s; {size}",
    )


if __name__ == "__main__":
    main()
