"""The program makes a book on S3 and learns from it as from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.book.remote import servers
from tests.learning import digits

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Plan
from bookkd.book._far import FarShards
from bookkd.cli import main
from bookkd.cli.learn import VERB
from bookkd.core.errors import StorageError
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, make_groups
from bookkd.learning.order import choose_order
from bookkd.making import make
from bookkd.tasks import CausalLM
from bookkd.views import BlockWindow, Replay, Views
from bookkd.zoo import TokenDataset, create_network, save_weights

DATA = ["--data", "digits", "--data.limit", "90"]
TRAIN = ["--training.epochs", "1", "--training.batch_size", "32", "--training.accelerator", "cpu", "--loggers", "[]"]


def run(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_made_there_and_learnt_from(shelf, tmp_path, capsys, monkeypatch):
    save_weights(create_network("digits-small", n_classes=10), tmp_path / "teacher.safetensors")
    teacher = ["--teacher", "digits-small", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
    views = ["--views", "digits", "--views.n_views", "2", "--batch_size", "40", "--unit_rows", "40"]
    books = {
        place: run(capsys, "make", *DATA, *teacher, *views, "--out", place) for place in (shelf, str(tmp_path / "here"))
    }
    assert list(books) == [made["path"] for made in books.values()]
    assert len({made["content_digest"] for made in books.values()}) == 1

    def learnt(name, book):
        out = ["--validate_on", "", "--out", str(tmp_path / name)]
        return Path(
            run(capsys, "learn", book, *DATA, "--student", "digits-small", *TRAIN, *out)["weights"]
        ).read_bytes()

    here = learnt("run-here", str(tmp_path / "here"))
    assert learnt("run-cached", shelf) == here
    monkeypatch.setenv("BOOKKD_CACHE", "none")
    assert learnt("run-streamed", shelf) == here


def test_the_method_of_a_book_at_an_address_is_that_of_its_task(tmp_path):
    """As of the same book on this machine; what is named is not asked of the server."""
    pytest.importorskip("obstore")
    data, teacher = TokenDataset.of("text", [[1, 2, 3], [2, 1]], vocabulary=4), Teacher(Bigrams(), name="bigrams")
    make(tmp_path / "served" / "book", teacher, data, Views(None, n_views=1), task=CausalLM(4), codec=Dense())

    def method(*words):
        return VERB.parse([*words, "--student", "any"])["method"]["name"]

    with servers.files(tmp_path / "served") as server:
        for book in (f"{server.url}/book", str(tmp_path / "served" / "book")):
            assert method(book) == method(f"{book},{book}") == method("--book", book) == "llm-kd"
        asked = server.count("")
        assert method(f"{server.url}/book", "--method", "uld") == "uld"
        assert method(f"{server.url}/book", "--task", "classification") == "vanilla-kd"
        assert server.count("") == asked > 0
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9/book to arrive"):
        method("http://127.0.0.1:9/book")  # which nobody serves


class Bigrams(torch.nn.Module):
    """Says of the next token what the last one tells."""

    def __init__(self):
        super().__init__()
        self.said = torch.nn.Embedding(4, 4)

    def forward(self, tokens, lengths=None):
        return self.said(tokens)


ROWS, CLASSES = 640, 10


@pytest.fixture
def far(tmp_path):
    """A served book of 16 shards of 40 rows in 2 views: (server, its address, the book here)."""
    pytest.importorskip("obstore")
    plan = Plan(ROWS, 2, {"logits": FieldPlan((CLASSES,), Dense())}, unit_rows=40, block_rows=8)
    with BookWriter(tmp_path / "served" / "book", plan) as writer:
        for unit in writer.pending():
            rows = np.arange(unit.start, unit.stop)[:, None] + 1000 * unit.view
            writer.write(unit, {"logits": np.broadcast_to(rows, (len(rows), CLASSES)).astype(np.float32)})
        book = writer.finish()
    with servers.files(tmp_path / "served") as server:
        yield server, f"{server.url}/book", book


def order_of(url, free=2**40, *, cache=None, **changes):
    stored = StoredKnowledge(Book(url, cache=cache))
    return choose_order(Training(**changes), [stored], ["logits"], n_samples=ROWS, free=free)


def test_a_cache_smaller_than_the_book_is_read_by_windows_of_shards(far, monkeypatch):
    _, url, here = far
    epoch = here.nbytes // 2  # one of two views
    for kept, window in [
        (here.nbytes, None),
        (2 * epoch - 1, BlockWindow(15, 40)),  # with the next window, all that is kept
        (epoch // 2, BlockWindow(4, 40)),
        (1, BlockWindow(1, 40)),
    ]:
        monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(kept))
        found = order_of(url)
        assert found.window == window
        assert "of what is fetched are kept" in found.reason
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(epoch))
    assert order_of(url, shuffle="rows").window is None
    # A block of one's own size costs the shard that it lies in.
    assert order_of(url, shuffle="blocks", shuffle_block_rows=8).window == BlockWindow(8, 8)
    # Where memory does not hold the rows of a shard, it is the blocks that are hashed.
    assert order_of(url, free=4 * 10 * int(here.bytes_per_record)).window == BlockWindow(1, 8)


def test_streaming_is_read_by_windows_of_blocks_that_memory_keeps(far, monkeypatch):
    _, url, here = far
    monkeypatch.setattr(FarShards, "STREAMED", here.nbytes // 4)
    assert order_of(url, cache="none").window == BlockWindow(20, 8)
    monkeypatch.setattr(FarShards, "STREAMED", here.nbytes)
    assert order_of(url, cache="none").window is None


def test_an_epoch_fetches_each_shard_once_through_a_small_cache(far, monkeypatch):
    server, url, here = far
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(here.nbytes // 4))
    book = Book(url)
    order = choose_order(Training(), [StoredKnowledge(book)], ["logits"], n_samples=ROWS, free=2**40)
    groups = make_groups(
        Replay(digits.TRAIN, digits.views()),
        Training(batch_size=64),
        samples=ROWS,
        n_views=2,
        window=order.window,
        ahead=book.prefetch,
    )
    for epoch in range(2):
        before = server.count(".safetensors")
        groups.sampler.set_epoch(epoch)
        for batch in groups.sampler:
            samples, views = np.array([(pick.sample, pick.view) for pick in batch]).T
            np.testing.assert_array_equal(book.read(samples, views)["logits"][:, 0], samples + 1000 * views)
        assert server.count(".safetensors") - before <= 16 + 2
