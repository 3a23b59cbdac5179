"""A real HTTP server on this machine that serves one file, as badly as the address asks for."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = random.Random(0).randbytes(3 << 20)
#: Where a connection breaks off, in bytes.
HALF = (1 << 20) + (1 << 19)


class Server(ThreadingHTTPServer):
    """The first part of an address's path says how it behaves. `requests` holds that and the Range header of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.content = CONTENT
        self.stopped = threading.Event()

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{behaviour}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        behaviour, wanted = self.path.split("/")[1], self.headers["Range"]
        self.server.requests.append((behaviour, wanted))
        number = sum(other == behaviour for other, _ in self.server.requests)
        content = self.server.content
        if behaviour == "silent":
            self.server.stopped.wait(30)
            return None
        if behaviour.isdecimal():
            return self.send_error(int(behaviour))
        if behaviour == "flaky" and number < 3:
            return self.send_error(503)
        if behaviour in ("redirect", "loop"):
            self.send_response(302)
            self.send_header("Location", "/fine" if behaviour == "redirect" else "/loop")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if behaviour == "wrong":
            content = content[::-1]
        start = int(wanted[len("bytes=") : -1]) if wanted and behaviour != "no-ranges" else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        lie = {"too-short": -1, "too-long": 1}.get(behaviour, 0)
        if behaviour != "endless":
            self.send_header("Content-Length", str(len(content) - start + lie))
        self.end_headers()
        breaks = behaviour == "always-breaks" or (behaviour in ("breaks", "no-ranges", "stalls") and number == 1)
        self.wfile.write(content[start : start + HALF] if breaks else content[start:])
        if behaviour == "slow":
            time.sleep(0.5)
        if behaviour == "stalls" and breaks:
            self.server.stopped.wait(30)
        while behaviour == "endless" and not self.server.stopped.is_set():
            try:
                self.wfile.write(content)
            except OSError:  # the client has had enough
                return None
        return None

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """A server that answers in a thread of its own."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield
        server.shutdown()
        thread.join()


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    with running(server):
        yield server
        server.stopped.set()
