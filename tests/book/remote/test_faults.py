"""What goes wrong on the way: each is waited out, or is one clear error with the address; nothing wrong is ever read."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from tests.book import books

from bookkd.book import Book, verify
from bookkd.book.remote import root_of
from bookkd.core.errors import BookCorruptError, BookFormatError, BookKDError, BookMissingError, StorageError

ROWS = np.arange(books.N)


def reads_all(book, here):
    for view in range(books.V):
        for name, array in book.gather(ROWS, view).items():
            np.testing.assert_array_equal(array, here.gather(ROWS, view)[name])


@pytest.mark.parametrize("cache", [None, "none"])
def test_cut_off_in_the_middle(served, cache):
    """Every object is cut at its half, once."""
    server, url, here = served
    cut = set()

    def fault(request, name, data):
        begin, end = request.span(len(data or b""))
        if request.command != "GET" or name in cut or end - begin < 2:
            return False
        cut.add(name)
        wanted = request.headers.get("Range")
        middle = begin + (end - begin) // 2
        request.answer(206 if wanted else 200, data[begin:middle], (begin, end, len(data)), length=end - begin)
        request.hang_up()
        return True

    server.fault = fault
    reads_all(Book(url, cache=cache), here)
    assert sum("safetensors" in name for name in cut) == 9


def test_what_came_before_the_cut_is_kept(served):
    """10 MiB over a connection that ends after each 3 MiB."""
    server, _, _ = served
    whole = np.random.default_rng(0).bytes(10 * 2**20)
    (server.folder / "large").mkdir()
    (server.folder / "large" / "file").write_bytes(whole)

    def fault(request, name, data):
        begin, end = request.span(len(data))
        wanted = request.headers.get("Range")
        sent = data[begin : min(end, begin + 3 * 2**20)]
        request.answer(206 if wanted else 200, sent, (begin, end, len(data)), length=end - begin)
        if len(sent) < end - begin:
            request.hang_up()
        return True

    server.fault = fault
    found = bytearray()
    place = root_of(f"{server.url}/large") / "file"
    place.download(found.extend, size=len(whole), again=lambda: pytest.fail("it can be gone on with"))
    assert found == whole
    begun = [int((wanted or "bytes=0-").removeprefix("bytes=").rstrip("-")) for _, _, wanted in server.asked]
    assert begun == sorted(begun)
    assert 4 <= len(begun) <= 6


def test_cut_off_by_a_server_that_knows_no_ranges(served):
    """It begins again from the start, and the halves are not put one behind the other."""
    server, url, here = served
    cut = set()

    def fault(request, name, data):
        if data is None or request.command != "GET":
            return False
        if name not in cut and len(data) > 1:
            cut.add(name)
            request.answer(200, data[: len(data) // 2], length=len(data))
            request.hang_up()
        else:
            request.answer(200, data)
        return True

    server.fault = fault
    reads_all(Book(url), here)
    with pytest.raises(StorageError, match=r"to take this request, got .*Range"):
        Book(url, cache="none").read([0], 0)


def test_always_cut_off_ends(served, monkeypatch):
    server, url, _ = served
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.5")

    def fault(request, name, data):
        if "safetensors" not in name:
            return False
        request.answer(200, data[:100], length=len(data))
        request.hang_up()
        return True

    server.fault = fault
    with pytest.raises(StorageError, match=rf"{url}/view-0000/rows-000000000-.*to arrive, got .* for 0\.5 s"):
        Book(url).read([0], 0)


def test_a_storm_of_503_is_waited_out(served):
    server, url, here = served
    left = {}

    def fault(request, name, data):
        left[name] = left.get(name, 2) - 1
        if data is not None and left[name] >= 0:
            request.answer(503)
            return True
        return False

    server.fault = fault
    reads_all(Book(url), here)
    shards = [times for name, times in left.items() if name.endswith(".safetensors")]
    assert len(shards) == len(list(server.folder.rglob("*.safetensors")))
    assert max(shards) < 0  # refused twice each, and asked for again


def test_a_storm_that_does_not_end_is_one_line(served, monkeypatch):
    server, url, _ = served
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.4")
    book = Book(url)
    server.fault = lambda request, name, data: request.answer(503) or True
    with pytest.raises(StorageError, match=r"safetensors|json") as caught:
        book.read([0], 0)
    assert "503 Service Unavailable" in str(caught.value)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_replaced_is_asked_for_twice_and_refused(served):
    server, url, _ = served
    book = Book(url)
    path = next(server.folder.rglob("view-0001/rows-000000064-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BookCorruptError, match=rf"{path.name} to have {len(data)} bytes with xxh3_128 .*twice"):
        book.read([70], 1)
    assert server.count(f"view-0001/{path.name}") == 2
    book.read([70], 0)
    with pytest.raises(BookCorruptError, match=r"block \d of .* in http.*view 1, samples"):
        Book(url, cache="none").gather(ROWS, 1)
    faults = verify(url)
    assert [(fault.view, fault.start, fault.stop) for fault in faults] == [(1, 112, 128)]


def test_a_shard_that_is_wrong_once_is_fetched_again(served):
    server, url, here = served
    seen = set()

    def fault(request, name, data):
        if "safetensors" not in name or name in seen:
            return False
        seen.add(name)
        request.answer(200, bytes(len(data)))
        return True

    server.fault = fault
    reads_all(Book(url), here)
    assert len(seen) == len(list(server.folder.rglob("*.safetensors")))


def test_an_object_that_expires(served):
    server, url, here = served
    book = Book(url)
    streamed = Book(url, cache="none")
    book.read([0], 0)
    shutil.rmtree(server.folder / "book" / "view-0002")
    for opened in (book, streamed):
        with pytest.raises(BookMissingError, match=r"view-0002/rows-000000064-000000128\.json.*nothing there"):
            opened.read([70], 2)
    np.testing.assert_array_equal(book.gather([0], 0)["logits/values"], here.gather([0], 0)["logits/values"])


@pytest.mark.parametrize("cache", [None, "none"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_server_that_lies_about_sizes(served, factor, monkeypatch, cache):
    """It says half or double; the connection then ends or hangs with too many bytes."""
    server, url, _ = served
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.3")

    def fault(request, name, data):
        if "safetensors" not in name:
            return False
        begin, end = request.span(len(data))
        wanted = request.headers.get("Range")
        request.answer(
            206 if wanted else 200,
            data[begin:end],
            (begin, end, int(factor * len(data))),
            length=int(factor * (end - begin)),
        )
        request.hang_up()
        return True

    server.fault = fault
    with pytest.raises((BookCorruptError, StorageError), match="safetensors"):
        Book(url, cache=cache).read([0], 0)


@pytest.mark.parametrize("name", ["edition-000001.json", "plan.json"])
def test_a_manifest_that_is_too_long_is_not_taken(served, name):
    server, url, _ = served
    sent = []

    def fault(request, asked, data):
        if not asked.endswith(name):
            return False
        request.answer(200, length=2**40)
        for _ in range(64):
            request.wfile.write(b" " * 2**20)
            sent.append(1)
        return True

    server.fault = fault
    with pytest.raises(BookFormatError, match=rf"{name} to be at most 16777216 bytes, got 1099511627776"):
        Book(url)
    assert len(sent) < 64


def test_bytes_of_any_kind_are_an_error_of_ours(served):
    server, url, _ = served
    generator = np.random.default_rng(3)
    server.fault = lambda request, name, data: (
        data is not None and (request.answer(200, generator.bytes(len(data))), True)[1]
    )
    with pytest.raises(BookKDError):
        Book(url)


def test_forbidden_is_said_at_once(served, monkeypatch):
    server, url, _ = served
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "60")
    server.fault = lambda request, name, data: request.answer(403) or True
    with pytest.raises(StorageError, match=r"open to these credentials, got the answer 403 Forbidden"):
        Book(url)


def test_nobody_answers(monkeypatch, served):
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.3")
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9/book"):
        Book("http://127.0.0.1:9/book")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_what_is_cached_and_is_refused_the_rest(served):
    _, url, here = served
    book = Book(url)
    expected = here.gather(ROWS, 0)["logits/values"]
    book.gather(ROWS, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if (book.gather(ROWS, 0)["logits/values"] == expected).all():
                try:
                    Book(url)
                except StorageError as error:
                    code = 0 if "spawn" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_server_with_a_page_for_every_name_is_not_asked_for_ever(served):
    server, url, _ = served
    server.fault = lambda request, name, data: data is None and (request.answer(200, b"<html></html>"), True)[1]
    for address in (url, f"{url}/mistyped"):
        with pytest.raises(
            StorageError, match=r"to answer 404 to what is not there, got an answer to edition-000000\.json"
        ):
            Book(address)
