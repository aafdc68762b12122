from __future__ import annotations

import pytest
from tests.book.remote import servers

from bookkd.book.remote import settings


@pytest.fixture(scope="session")
def s3_environment():
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with servers.s3() as environment:
        yield environment


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and little patience."""
    monkeypatch.setenv("BOOKKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "2")
    monkeypatch.setattr(settings, "_FIRST_PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def shelf(s3_environment, monkeypatch, request):
    """An address in an S3 bucket that no other test uses."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://shelf/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture
def served(tmp_path):
    """A finished book, served by plain HTTP: (server, its address, the book here)."""
    pytest.importorskip("obstore")
    from tests.book import books

    book = books.make(tmp_path / "served" / "book")
    with servers.files(tmp_path / "served") as server:
        yield server, f"{server.url}/book", book
