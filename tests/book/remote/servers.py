"""Servers on loopback: S3 by moto, and a plain HTTP server of files with ranges that can be told to misbehave."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import urllib.request
from pathlib import Path

SECRET = "only-for-tests-wJalrXUtnFEMI"


@contextlib.contextmanager
def s3(bucket="shelf"):
    """Run moto's server; yield the environment that leads a client to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        made = urllib.request.Request(f"{address}/{bucket}", method="PUT")
        urllib.request.urlopen(made).close()
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.stop()


class Files(http.server.ThreadingHTTPServer):
    """Serves a folder; `fault(request, path, data)` may do otherwise and return true."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Request)
        self.folder = Path(folder)
        self.asked = []
        self.fault = lambda request, name, data: False
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""

    def count(self, text, method="GET"):
        return sum(1 for kind, name, _ in self.asked if kind == method and text in name)


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the one before

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.lstrip("/")
        wanted = self.headers.get("Range")
        self.server.asked.append((self.command, name, wanted))
        self.authorization = self.headers.get("Authorization")
        path = self.server.folder / name
        data = path.read_bytes() if path.is_file() else None
        if self.server.fault(self, name, data):
            return
        if data is None:
            self.answer(404)
            return
        begin, end = self.span(len(data))
        self.answer(206 if wanted else 200, data[begin:end], (begin, end, len(data)))

    def span(self, size):
        wanted = self.headers.get("Range")
        if not wanted:
            return 0, size
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size

    def answer(self, status, data=b"", span=None, *, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{span[2]}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self):
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


@contextlib.contextmanager
def files(folder):
    server = Files(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
