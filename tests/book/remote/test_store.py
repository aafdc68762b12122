"""Creating where there is nothing: what is made of stores that answer late, twice, or do not keep to it."""

from __future__ import annotations

import os

import pytest
from tests.book import books

from bookkd.book import BookWriter, verify
from bookkd.book.remote import local_folder, path, root_of
from bookkd.book.remote.store import Interrupted
from bookkd.core.errors import ConfigError, StorageError

ADDRESS = "s3://pretended/book"


class Pretended:
    """A store in memory."""

    writable = True

    def __init__(self):
        self.objects = {}
        self.lost = set()

    def size(self, key):
        return len(self._found(key))

    def stream(self, key, start):
        data = self._found(key)
        return len(data), [data[start:]]

    def ranges(self, key, starts, stops):
        return [self._found(key)[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def names(self, key):
        inside = [name.removeprefix(f"{key}/" if key else "") for name in self.objects if name.startswith(key)]
        return {name.partition("/")[0]: -1 if "/" in name else 1 for name in inside}

    def create(self, key, data):
        if key in self.objects:
            return False
        self.objects[key] = bytes(data)
        return True

    def _found(self, key):
        if key not in self.objects:
            raise FileNotFoundError
        return self.objects[key]


@pytest.fixture
def use(monkeypatch):
    def put(store):
        monkeypatch.setitem(path._stores, (os.getpid(), ADDRESS), store)
        return store

    return put


def test_an_answer_that_is_lost_is_no_other_writer(use, tmp_path):
    class Forgetful(Pretended):
        def create(self, key, data):
            done = super().create(key, data)
            if key not in self.lost:
                self.lost.add(key)
                raise Interrupted("no answer")
            return done

    store = use(Forgetful())
    made = books.make(ADDRESS)
    assert made.content_digest == books.make(tmp_path / "here").content_digest
    assert store.lost == set(store.objects)
    assert verify(ADDRESS) == []


def test_shard_before_sidecar_plan_first_edition_last(use):
    store = use(Pretended())
    books.make(ADDRESS)
    names = list(store.objects)
    assert names[0] == "plan.json"
    assert names[-1] == "edition-000001.json"
    units = [name for name in names if "rows-" in name]
    assert [name.rpartition(".")[2] for name in units] == ["safetensors", "json"] * 9
    assert len({name.rpartition(".")[0] for name in units}) == 9


def test_a_store_that_creates_twice_is_refused(use):
    class Careless(Pretended):
        def create(self, key, data):
            self.objects[key] = bytes(data)
            return True

    store = use(Careless())
    with pytest.raises(StorageError, match=r"refuse an object that exists \(If-None-Match\), got a second one"):
        BookWriter(ADDRESS, books.plan())
    assert list(store.objects) == ["plan.json"]


def test_a_sidecar_without_its_shard_is_written_again(use, tmp_path):
    store = use(Pretended())
    books.make(ADDRESS, units=3, finish=False)
    del store.objects["view-0000/rows-000000064-000000128.safetensors"]
    with BookWriter(ADDRESS, books.plan()) as writer:
        assert len(writer.pending()) == 7
    assert books.make(ADDRESS).content_digest == books.make(tmp_path / "here").content_digest


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://Bucket/a", "s3://Bucket/a"),
        ("https://host:8080/book", "https://host:8080/book"),
        ("http://[::1]:8080/book", "http://[::1]:8080/book"),
        ("s3://bucket/of@someone/book", "s3://bucket/of@someone/book"),
        ("abfs://container@account.dfs.core.windows.net/book", "abfs://container@account.dfs.core.windows.net/book"),
        ("books/resnet56", "books/resnet56"),
        ("file:///books/resnet%2056", "/books/resnet 56"),
        ("C:/books", "C:/books"),
    ],
)
def test_addresses(given, meant):
    assert str(root_of(given)) == meant


@pytest.mark.parametrize("given", ["s3://", "s3://bucket/../other", "https://host/a b", "s3://bucket/a\nb"])
def test_addresses_that_are_none(given):
    with pytest.raises(ConfigError, match="`address` to be a URL such as"):
        root_of(given)


def test_local_folder(tmp_path):
    assert local_folder(str(tmp_path), "grow") == tmp_path
    with pytest.raises(ConfigError, match="bookkd copy s3://bucket/book DIR"):
        local_folder("s3://bucket/book", "grow")
