"""Credentials are taken from the environment and told to nobody."""

from __future__ import annotations

import json
import pickle
import traceback

import pytest
from tests.book import books
from tests.book.remote.servers import SECRET

from bookkd.book import Book, is_finished
from bookkd.book.remote.secrets import reason, scrub
from bookkd.cli import main
from bookkd.core.errors import BookKDError, ConfigError, MissingExtraError, StorageError

SIGNED = "https://someone:pass-word-1@host/shelf/book?X-Amz-Signature=deadbeef0123&sig=abc%2Bdef#part"
TOLD = ("pass-word-1", "deadbeef0123", "abc%2Bdef", "someone")


@pytest.mark.parametrize(
    "address",
    [
        SIGNED,
        "s3://key:pass-word-1@shelf/book",
        "https://host/book?sig=deadbeef0123",
        # Secrets of AWS and Azure often have "/" in them; a part before one may look like a port.
        "s3://someone:front/pass-word-1/back@shelf/book",
        "s3://someone:front/pass-word-1",
        "az://someone:front/pass-word-1==@container/book",
        "https://someone:12/pass-word-1@127.0.0.1:9/book",
        "https://someone:12/pass-word-1@9",
        "abfs://container:pass-word-1/x@account/book",
        "abfs://container:pass-word-1/x",
    ],
)
@pytest.mark.parametrize("use", [Book, is_finished])
def test_an_address_with_credentials_is_refused_without_repeating_them(address, use):
    with pytest.raises(ConfigError, match="without credentials") as caught:
        use(address)
    assert not any(secret in "".join(traceback.format_exception(caught.value)) for secret in TOLD)


def test_the_program_stores_and_says_none(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["learn", SIGNED, "--student", "digits-small", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert not any(secret in said.err + said.out for secret in TOLD)
    assert not out.exists()


@pytest.mark.parametrize("out", ["s3://someone:pass-word-1@shelf/x", "S3:/shelf/x", "https://host/x"])
@pytest.mark.parametrize(
    "verb",
    [
        ["learn", "book", "--student", "digits-small", "--out"],
        ["stats", "book", "--out"],
        ["query", "book", "select 1", "--stats"],
        [
            "compare",
            "--students",
            "digits-small",
            "--methods",
            "supervised",
            "--data",
            "digits",
            "--data.limit",
            "60",
            "--out",
        ],
        ["chain", "--path", "digits-large,digits-small", "--data", "digits", "--data.limit", "60", "--out"],
        ["report", "book", "--out"],
    ],
)
def test_what_is_written_here_takes_no_address(tmp_path, monkeypatch, capsys, verb, out):
    books.make(tmp_path / "book")
    monkeypatch.chdir(tmp_path)
    assert main([*verb, out]) == 2
    said = capsys.readouterr().err
    assert "to be one of this machine, got an address" in said
    assert "pass-word-1" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["book"]


def test_texts_are_scrubbed(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-in-a-header")
    said = scrub(f"GET {SIGNED} with token-in-a-header, and https://other/x?y=1, 'http://a:b@c/d?e'")
    assert said == "GET https://host/shelf/book with ***, and https://other/x 'http://c/d'"
    assert scrub("of s3://key:front/back@shelf/x, http://me:1/2@host:80/y") == "of s3://shelf/x, http://host:80/y"
    assert scrub("at http://host:80/x/y") == "at http://host:80/x/y"
    error = OSError(
        f"Error performing GET {SIGNED} in 1s - HTTP error: error for url ({SIGNED})\n\nDebug source: {SECRET}"
    )
    assert not any(secret in reason(error) for secret in (*TOLD, SECRET))


def test_nothing_written_or_pickled_has_them(shelf, tmp_path, monkeypatch):
    there = books.make(shelf)
    kept = pickle.dumps(there) + repr(there).encode()
    assert SECRET.encode() not in kept
    from bookkd.book import copy_book

    copy_book(tmp_path / "copy", there)
    for path in (tmp_path / "copy").rglob("*.json"):
        assert SECRET not in path.read_text()
        json.loads(path.read_text())


def test_errors_and_their_causes_have_none(shelf, monkeypatch):
    books.make(shelf)
    monkeypatch.setenv("BOOKKD_RETRY_SECONDS", "0.2")
    for name, value in [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_REGION", "nowhere")]:
        monkeypatch.setenv(name, value)
    with pytest.raises(BookKDError) as caught:
        Book(shelf + "-elsewhere")
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert "Debug source" not in text


def test_http_takes_them_from_netrc(served, tmp_path, monkeypatch):
    server, url, _ = served
    seen = []

    def fault(request, name, data):
        seen.append(request.authorization)
        if request.authorization != "Basic bWU6cGFzcy13b3JkLTE=":  # me:pass-word-1
            request.answer(401)
            return True
        return False

    server.fault = fault
    with pytest.raises(StorageError, match="401 Unauthorized"):
        Book(url)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password pass-word-1\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    from bookkd.book.remote import path

    monkeypatch.setattr(path, "_stores", {})
    Book(url).read([0], 0)
    assert seen[-1] == "Basic bWU6cGFzcy13b3JkLTE="


def test_a_missing_client_names_the_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"bookkd\[remote\]"):
        Book("s3://shelf/never-opened-before")
