"""A local HTTP server that cuts connections, ignores ranges, redirects and lies, as told."""

import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """What the server sends for one path."""

    content: bytes
    cut: int | None = None  # bytes after which each connection is closed
    ranges: bool = True  # whether parts are sent if they are asked for
    etag: str = '"1"'
    headers: dict[str, str] = field(default_factory=dict)  # in place of the true ones; "" for none
    codes: list[int] = field(default_factory=list)  # of the next answers, which are errors
    waits: bool = False  # after `cut` bytes, wait until the client is gone


class Server(ThreadingHTTPServer):
    """Answers for `files`, by path; keeps the headers of all requests in `asked`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, File] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def ranges(self) -> list[str | None]:
        """The Range of each request so far."""
        return [headers.get("Range") for _, headers in self.asked]

    def handle_error(self, request, client_address):
        pass  # clients that are killed


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        file = self.server.files.get(self.path, File(b"", codes=[404]))
        if file.codes:
            self.send_error(file.codes.pop(0))
            return

        # the whole file, or the part that was asked for
        size = len(file.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", file.etag) == file.etag
        start = int(wanted[1]) if wanted and file.ranges and same else 0
        if start >= size > 0:
            self.send_error(416)
            return
        headers = {"Content-Length": size - start, "Content-Type": "application/octet-stream"}
        headers["ETag"] = file.etag
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        headers |= file.headers
        redirects = "Location" in headers
        self.send_response(302 if redirects else 206 if start else 200)
        for name, value in headers.items():
            if value != "":
                self.send_header(name, value)
        self.end_headers()

        # its content, or the beginning of it
        end = size if file.cut is None else min(start + file.cut, size)
        self.wfile.write(file.content[start:end])
        if file.waits and end < size:
            self.wfile.flush()
            self.connection.recv(1)

    def log_message(self, *_):
        pass


@contextmanager
def running():
    """A server that runs until the end of the block."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
