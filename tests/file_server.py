"""A web server on loopback that gives a folder's files, and fails where it's told to."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class FileServer(ThreadingHTTPServer):
    """Serves `folder`.

    Attributes:
        faults: by file name, what to do wrong in the next requests, one after the other: an HTTP status, "cut" (half of
            the bytes, then the end), "wrong" (a changed byte), "stall" (half of the bytes, then nothing), "slow",
            "endless" (bytes without an end).
        asked: file names in the order of the requests.
        targets: paths with queries, as they were asked for.
        authorizations: the headers that came along.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: defaultdict[str, list[int | str]] = defaultdict(list)
        self.asked: list[str] = []
        self.targets: list[str] = []
        self.authorizations: list[str | None] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        self.server.asked.append(name)
        self.server.targets.append(self.path)
        self.server.authorizations.append(self.headers["Authorization"])
        fault = self.server.faults[name].pop(0) if self.server.faults[name] else None
        path = self.server.folder / name
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        data = path.read_bytes()
        self.send_response(200)
        if fault != "endless":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self._send(data, fault)
        except ConnectionError:
            self.close_connection = True

    def _send(self, data: bytes, fault: str | None) -> None:
        if fault == "wrong":
            data = data[:-700] + bytes([data[-700] ^ 1]) + data[-699:]
        if fault in ("cut", "stall"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.server.closing.wait(30)
        elif fault == "slow":
            for start in range(0, len(data), 4096):
                self.wfile.write(data[start : start + 4096])
                time.sleep(0.02)
        elif fault == "endless":
            while not self.server.closing.is_set():
                self.wfile.write(data)
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A server for as long as the block runs."""
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
