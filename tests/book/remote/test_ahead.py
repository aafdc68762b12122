"""What is fetched in the background: it goes on, it is not in the way, and it ends with the book and the process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tests.book.remote import servers

from bookkd import ViewSampler
from bookkd.book import Book, BookWriter, Dense, FieldPlan, Plan
from bookkd.book._remote_shards import CachedShard
from bookkd.views import BlockWindow

SHARDS, ROWS = 20, 16


@pytest.fixture
def many(tmp_path):
    """A book of many small shards, served: (server, its address, bytes of a shard)."""
    pytest.importorskip("obstore")
    plan = Plan(SHARDS * ROWS, 1, {"logits": FieldPlan((400,), Dense())}, unit_rows=ROWS, block_rows=ROWS)
    with BookWriter(tmp_path / "served" / "book", plan) as writer:
        for unit in writer.pending():
            writer.write(unit, {"logits": np.full((ROWS, 400), unit.start, dtype=np.float32)})
        book = writer.finish()
    with servers.files(tmp_path / "served") as server:
        yield server, f"{server.url}/book", book.nbytes // SHARDS


def waiting_for(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_reading_ahead_goes_on_for_ever_in_a_small_cache(many, monkeypatch):
    """Epoch after epoch by windows that fill half of a cache of half the book."""
    server, url, size = many
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(SHARDS // 2 * (size + 500)))
    ahead, real = [], CachedShard.prepare
    monkeypatch.setattr(
        CachedShard, "prepare", lambda self, rows, names: (ahead.append(rows is None), real(self, rows, names))[1]
    )
    book = Book(url)
    sampler = ViewSampler(
        SHARDS * ROWS, 1, batch_size=ROWS, shuffle=BlockWindow(4, rows=ROWS), block_rows=ROWS, ahead=book.prefetch
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        asked = server.count(".safetensors")
        ahead.clear()
        for batch in sampler:
            samples = [pick.sample for pick in batch]
            found = book.read(samples, 0)["logits"]
            np.testing.assert_array_equal(found[:, 0], np.array(samples) // ROWS * ROWS)
            time.sleep(0.02)
            sampler.consumed()
        assert sum(ahead) >= SHARDS // 2 - 2
        assert server.count(".safetensors") - asked <= SHARDS + 2


def test_what_is_never_come_to_is_forgotten(many, monkeypatch):
    server, url, size = many
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(6 * (size + 500)))
    book = Book(url)
    book.prefetch(0, 3 * ROWS, 0)
    assert waiting_for(lambda: server.count(".safetensors") == 3)
    for shard in range(4, 12):
        book.read([shard * ROWS], 0)
    asked = server.count(".safetensors")
    book.prefetch(16 * ROWS, 17 * ROWS, 0)
    assert waiting_for(lambda: server.count(".safetensors") == asked + 1)


def test_streaming_reads_nothing_ahead(many):
    server, url, _ = many
    book = Book(url, cache="none")
    book.prefetch(0, 3 * ROWS, 0)
    time.sleep(0.05)
    assert server.count(".safetensors") == 0


def test_threads_end_when_there_is_nothing_to_do(many):
    _, url, _ = many
    for shard in range(4):
        Book(url).read([shard * ROWS], 0)
    assert waiting_for(lambda: "bookkd-fetch" not in [each.name for each in threading.enumerate()])


@pytest.mark.parametrize("fault", ["hangs", "503"])
def test_a_process_ends_although_something_is_arriving(served, monkeypatch, fault):
    server, url, _ = served
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "60")

    def late(request, name, data):
        if "view-0001" not in name or ".safetensors" not in name:
            return False
        if fault == "hangs":
            time.sleep(20)
        else:
            request.answer(503)
        return True

    server.fault = late
    code = (
        "import sys, time; from bookkd.book import Book; Book(sys.argv[1]).read([0], 0) if len(sys.argv) == 2 else 0\n"
        "book = Book(sys.argv[1]); book.read([0], 0); book.prefetch(0, 1, 1); time.sleep(0.3); print(time.time(), flush=True)"
    )
    run = subprocess.run([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True, timeout=30, check=True)
    assert time.time() - float(run.stdout) < 4


def test_a_book_that_is_closed_gives_up_what_arrives(many, monkeypatch):
    """What is under way ends by itself; what stands in line behind it is not begun."""
    server, url, _ = many
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.3")
    book = Book(url)
    server.fault = lambda request, name, data: ".safetensors" in name and (request.answer(503), True)[1]
    book.prefetch(0, SHARDS * ROWS, 0)
    assert waiting_for(lambda: server.count(".safetensors"))
    book.close()
    time.sleep(1.5)
    assert len({name for _, name, _ in server.asked if ".safetensors" in name}) <= 2
    assert waiting_for(lambda: "bookkd-fetch" not in [each.name for each in threading.enumerate()])
    server.fault = lambda request, name, data: False
    assert book.read([5], 0)["logits"][0, 0] == 0
