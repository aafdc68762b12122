"""The cache: fetched once for all processes of a machine, within its limit, never a byte that is not the book's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tests.book import books

from bookkd.book import Book, _remote_shards
from bookkd.core.errors import ConfigError, StorageError

ROWS = np.arange(books.N)


def shards_in(cache):
    return sorted(cache.glob("*.shard"))


def bytes_in(cache):
    """Bytes of all shards; one may go while they are looked at."""
    total = 0
    for path in cache.glob("*.shard"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


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


@pytest.mark.parametrize("damage", [(0, b"\xff" * 5), (12, b"\0"), (b"F16", b"F32")])
def test_damage_in_a_header_is_mended(served, cache, damage):
    server, url, here = served
    book = Book(url)
    book.read([0], 0)
    where, bad = damage
    for path in shards_in(cache):
        data = bytearray(path.read_bytes())
        at = data.index(where) if isinstance(where, bytes) else where
        data[at : at + len(bad)] = bad
        path.write_bytes(data)
    before = server.count("view-0000/rows-000000000-000000064.safetensors")
    for opened in (Book(url), book):  # one that maps it now, and one that has mapped what was changed in place
        np.testing.assert_array_equal(
            opened.gather(ROWS[:64], 0)["logits/values"], here.gather(ROWS[:64], 0)["logits/values"]
        )
    assert server.count("view-0000/rows-000000000-000000064.safetensors") == before + 1


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
                assert bytes_in(cache) <= 3 * size + 3000


def test_two_processes_share_a_small_cache(served, cache, monkeypatch):
    """Both read everything, in another order each, while either evicts what the other has mapped."""
    _server, url, here = served
    limit = 4 * here.nbytes // 9
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(limit))
    code = (
        "import sys; import numpy as np; from bookkd.book import Book; from tests.book import books\n"
        "book, turn = Book(sys.argv[1]), np.random.default_rng(int(sys.argv[2]))\n"
        "for _ in range(15):\n"
        "    samples, views = turn.integers(0, [books.N, books.V], size=(40, 2)).T\n"
        "    found = book.read(samples, views, ['logits'])['logits']\n"
        "    known = np.concatenate([books.arrays(v, s, s + 1)['logits'] for s, v in zip(samples, views)])\n"
        "    np.testing.assert_array_equal(found, known.astype(np.float16))\n"
    )
    run = [subprocess.Popen([sys.executable, "-c", code, url, str(seed)]) for seed in (1, 2)]
    most = 0
    while any(each.poll() is None for each in run):
        most = max(most, bytes_in(cache))
        time.sleep(0.01)
    assert [each.returncode for each in run] == [0, 0]
    assert 0 < most <= limit
    assert not list(cache.glob(".*.tmp"))


def test_a_shard_larger_than_the_cache_says_what_to_do(served, monkeypatch):
    _, url, _ = served
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", "1000")
    with pytest.raises(StorageError, match=r"limit of 1000.*BOOKKD_CACHE_BYTES.*BOOKKD_CACHE=none"):
        Book(url).read([0], 0)


def test_what_a_killed_process_left_is_fetched_anew(served, cache):
    server, url, here = served
    server.fault = lambda request, name, data: "view-0001/rows-000000064-000000128.safe" in name and not time.sleep(30)
    code = "import sys; from bookkd.book import Book; Book(sys.argv[1]).read([70], 1)"
    run = subprocess.Popen([sys.executable, "-c", code, url])
    deadline = time.monotonic() + 20
    while not list(cache.glob(".*.shard.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    run.kill()
    run.wait()
    left = list(cache.glob(".*.shard.tmp"))
    assert left
    server.fault = lambda request, name, data: False
    np.testing.assert_array_equal(Book(url).gather(ROWS, 1)["logits/values"], here.gather(ROWS, 1)["logits/values"])
    assert not any(each.exists() for each in left if (cache / each.name[1:-4]).exists())


def test_what_arrives_is_nobody_elses_to_lose_and_what_is_left_behind_is(served, cache, monkeypatch):
    """As seen from another container, where numbers of processes say nothing."""
    fcntl = pytest.importorskip("fcntl")
    _, url, here = served
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(here.nbytes // 2))
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.3")
    cache.mkdir()
    arriving = cache / f".0123-{'5' * 32}.shard.tmp"
    with arriving.open("wb") as file:
        file.truncate(here.nbytes // 2 - 100)
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"safetensors to arrive, got a cache .* full of what is still arriving"):
            Book(url).read([0], 0)
        assert arriving.exists()
    Book(url).read([0], 0)
    assert not arriving.exists()


def test_many_at_once_through_a_cache_of_one_wait_as_long_as_others_get_on(served, cache, monkeypatch):
    server, url, here = served
    size = max(int(each.stat().st_size) for each in here.path.rglob("*.safetensors"))
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(size))
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.3")
    server.fault = lambda request, name, data: ".safetensors" in name and bool(time.sleep(0.1))
    found = [None] * books.V

    def read(view):
        found[view] = Book(url).gather(ROWS, view)["logits/values"]

    threads = [threading.Thread(target=read, args=(view,)) for view in range(books.V)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for view in range(books.V):
        np.testing.assert_array_equal(found[view], here.gather(ROWS, view)["logits/values"])


def test_a_batch_larger_than_the_cache_fetches_each_shard_once(served, cache, monkeypatch):
    server, url, here = served
    size = max(int(each.stat().st_size) for each in here.path.rglob("*.safetensors"))
    monkeypatch.setenv("BOOKKD_CACHE_BYTES", str(3 * size))
    book = Book(url)
    samples, views = np.random.default_rng(0).permuted(np.indices((books.N, books.V)).reshape(2, -1), axis=1)
    for name, array in book.gather(samples, views).items():
        np.testing.assert_array_equal(array, here.gather(samples, views)[name])
    assert server.count(".safetensors") == 9


def test_a_process_that_starts_with_a_full_cache_asks_for_manifests_alone(served, cache):
    server, url, _ = served
    read_all(Book(url))
    assert server.count("/rows-") == 18
    sidecars = sorted(cache.glob("*.sidecar"))
    assert len(sidecars) == 9
    sidecars[0].write_bytes(bytes(sidecars[0].stat().st_size))
    read_all(Book(url))
    assert server.count("/rows-") == 19


def test_looking_at_a_book_makes_no_cache(served, cache):
    _, url, _ = served
    assert Book(url).n_samples == books.N
    assert not cache.exists()


def test_a_cache_that_takes_no_files_says_what_to_do(served, tmp_path):
    _, url, _ = served
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError,
        match=r"cache .*file/x to be a folder that takes files, got: Not a directory\. Name "
        r"another one by BOOKKD_CACHE, or stream: BOOKKD_CACHE=none",
    ):
        Book(url, cache=tmp_path / "file" / "x").read([0], 0)


def test_streaming_keeps_nothing_and_asks_for_whole_blocks(served, cache, monkeypatch):
    server, url, here = served
    monkeypatch.setattr(_remote_shards, "_HEAD", 1024)
    monkeypatch.setenv("BOOKKD_CACHE", "none")
    book = Book(url)
    found = book.gather([3, 20, 21, 5], 1, ["logits"])
    np.testing.assert_array_equal(found["logits/values"], here.gather([3, 20, 21, 5], 1)["logits/values"])
    asked = [wanted for kind, name, wanted in server.asked if "safetensors" in name]
    assert asked[0] == "bytes=0-1023"
    spans = [tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in asked[1:]]
    assert len(spans) == 1  # blocks 0 and 1 in one
    assert spans[0][1] + 1 - spans[0][0] <= 2 * 16 * books.C * 2
    book.gather([0, 31], 1, ["logits"])
    assert server.count("safetensors") == 2
    assert not cache.exists()


def test_streaming_asks_for_what_came_with_the_header_no_second_time(served):
    server, url, here = served
    book = Book(url, cache="none")
    assert np.array_equal(book.gather(ROWS, 1)["logits/values"], here.gather(ROWS, 1)["logits/values"])
    assert server.count("safetensors") == 3
    assert sum(shard.held for shard in book._shards._open.values()) == sum(
        each.stat().st_size for each in here.path.glob("view-0001/*.safetensors")
    )


def test_a_header_that_arrives_wrong_once_is_asked_for_again(served):
    server, url, here = served
    seen = set()

    def fault(request, name, data):
        if "safetensors" not in name or name in seen:
            return False
        seen.add(name)
        begin, end = request.span(len(data))
        request.answer(206, bytes(end - begin), (begin, end, len(data)))
        return True

    server.fault = fault
    np.testing.assert_array_equal(
        Book(url, cache="none").gather(ROWS, 1)["logits/values"], here.gather(ROWS, 1)["logits/values"]
    )


@pytest.mark.parametrize("name", ["BOOKKD_CACHE_BYTES", "BOOKKD_RETRY_SECONDS"])
@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_settings_are_checked(served, monkeypatch, name, value):
    _, url, _ = served
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"`{name}` to be a number from 0 on, got '{value}' \(environment\)"):
        Book(url)


def test_a_user_without_a_home_folder_is_told_what_to_set(served, monkeypatch):
    _, url, _ = served

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BOOKKD_CACHE")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", home)
    with pytest.raises(ConfigError, match=r"`BOOKKD_CACHE` to be set for a user without a home folder"):
        Book(url)
