"""The cache: fetched once for all processes of a machine, within its limit, never a byte that is not the book's."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.book import books

from bookkd.book import Book
from bookkd.core.errors import ConfigError, StorageError

ROWS = np.arange(books.N)


def shards_in(cache):
    return sorted(cache.glob("*.shard"))


def read_all(book):
    return [book.gather(ROWS, view) for view in range(books.V)]


def test_fetched_once(served, cache):
    server, url, here = served
    for _ in range(2):
        found = read_all(Book(url))
        for view in range(books.V):
            np.testing.assert_array_equal(found[view]["logits/values"], here.gather(ROWS, view)["logits/values"])
    assert server.count(".safetensors") == 9
    assert len(shards_in(cache)) == 9
    assert cache.stat().st_mode & 0o077 == 0


def test_a_look_fetches_little_and_an_epoch_ahead(served):
    server, url, _ = served
    book = Book(url)
    book.read([0], 0)
    deadline = time.monotonic() + 5
    while server.count(".safetensors") < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    # The one that is read, and two ahead: the same samples of the next views.
    asked = {name.split("/", 1)[1] for kind, name, _ in server.asked if "safetensors" in name and kind == "GET"}
    assert asked == {f"view-{view:04d}/rows-000000000-000000064.safetensors" for view in range(3)}


def test_damage_in_the_cache_is_mended(served, cache):
    server, url, here = served
    read_all(Book(url))
    for path in shards_in(cache):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    before = server.count(".safetensors")
    found = read_all(Book(url))
    for view in range(books.V):
        for name, array in here.gather(ROWS, view).items():
            np.testing.assert_array_equal(found[view][name], array)
    assert server.count(".safetensors") > before


def test_a_file_of_another_length_is_not_used(served, cache):
    _server, url, here = served
    read_all(Book(url))
    for path in shards_in(cache):
        os.truncate(path, 10)
    np.testing.assert_array_equal(
        read_all(Book(url))[1]["probe/hash/values"], here.gather(ROWS, 1)["probe/hash/values"]
    )


def test_two_books_with_equal_shards_of_one_server_share_them_and_others_do_not(served, tmp_path):
    import shutil

    from tests.book.remote import servers

    server, url, _ = served
    shutil.copytree(server.folder / "book", server.folder / "copy")
    read_all(Book(url))
    before = server.count(".safetensors")
    read_all(Book(f"{server.url}/copy"))
    assert server.count(".safetensors") == before
    with servers.files(server.folder) as other:
        read_all(Book(f"{other.url}/book"))
        assert other.count(".safetensors") == 9


def test_the_limit_holds_and_what_is_mapped_stays_readable(served, cache, monkeypatch):
    _server, url, here = served
    size = here.nbytes // 9
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(3 * size + 3000))
    book = Book(url)
    for _ in range(2):
        for start in range(0, books.N, 50):
            for view in range(books.V):
                rows = ROWS[start : start + 50]
                np.testing.assert_array_equal(
                    book.gather(rows, view)["logits/values"], here.gather(rows, view)["logits/values"]
                )
                assert sum(path.stat().st_size for path in shards_in(cache)) <= 3 * size + 3000


def test_two_processes_share_a_small_cache(served, cache, monkeypatch):
    """Both read everything, in another order each, while either evicts what the other has mapped."""
    _server, url, here = served
    limit = 4 * here.nbytes // 9
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(limit))
    code = (
        "import sys; import numpy as np; from bookkd.book import Book; from tests.book import books\n"
        "book, turn = Book(sys.argv[1]), np.random.default_rng(int(sys.argv[2]))\n"
        "for _ in range(30):\n"
        "    samples, views = turn.integers(0, [books.N, books.V], size=(40, 2)).T\n"
        "    found = book.read(samples, views, ['logits'])['logits']\n"
        "    known = np.concatenate([books.arrays(v, s, s + 1)['logits'] for s, v in zip(samples, views)])\n"
        "    np.testing.assert_array_equal(found, known.astype(np.float16))\n"
    )
    run = [subprocess.Popen([sys.executable, "-c", code, url, str(seed)]) for seed in (1, 2)]
    most = 0
    while any(each.poll() is None for each in run):
        sizes = []
        for path in list(cache.glob("*.shard")) if cache.exists() else []:
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        most = max(most, sum(sizes))
        time.sleep(0.01)
    assert [each.returncode for each in run] == [0, 0]
    assert 0 < most <= limit
    assert not list(cache.glob(".*.tmp"))


def test_a_shard_larger_than_the_cache_says_what_to_do(served, monkeypatch):
    _, url, _ = served
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", "1000")
    with pytest.raises(StorageError, match=r"limit of 1000.*BOOKKD_CACHE_BYTES.*BOOKKD_CACHE=none"):
        Book(url).read([0], 0)


def test_what_a_killed_process_left_is_removed(served, cache):
    _, url, _ = served
    read_all(Book(url))
    left = []
    for path in shards_in(cache):
        left.append(path.with_name(f".{path.name}.999999.1.tmp"))
        left[-1].write_bytes(b"half")
        path.unlink()
    read_all(Book(url))
    assert not any(path.exists() for path in left)


def test_streaming_keeps_nothing_and_asks_for_whole_blocks(served, cache, monkeypatch):
    server, url, here = served
    monkeypatch.setenv("BOOKKD_CACHE", "none")
    book = Book(url)
    found = book.gather([3, 20, 21, 5], 1, ["logits"])
    np.testing.assert_array_equal(found["logits/values"], here.gather([3, 20, 21, 5], 1)["logits/values"])
    asked = [wanted for kind, name, wanted in server.asked if "safetensors" in name]
    assert len(asked) == 2  # the header, and blocks 0 and 1 in one
    begin, end = map(int, asked[1].removeprefix("bytes=").split("-"))
    assert end + 1 - begin == 2 * 16 * books.C * 2
    book.gather([0, 31], 1, ["logits"])
    assert server.count("safetensors") == 2
    assert not cache.exists()


@pytest.mark.parametrize("name", ["BOOKKD_CACHE_BYTES", "BOOKKD_RETRY_SECONDS"])
@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_settings_are_checked(served, monkeypatch, name, value):
    _, url, _ = served
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"`{name}` to be a number from 0 on, got '{value}' \(environment\)"):
        Book(url)
