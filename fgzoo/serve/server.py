"""A page that answers for one photo at a time: its class, or that it is unknown, and where the model looked.

The standard library's server is all it takes: nothing is written, no other machine is asked, and the page holds its script, its
style and no fonts. Gradio would bring twenty-five packages of 170 MB and an older Pillow, keep every upload in a folder, and
take five seconds to start.

Whatever is sent is an image in memory, whose bytes and pixels are bounded before they are read. A page of another site cannot
use the server through a visitor's browser: it would need a permission to send such a request that is never given, and the host
must be called by an address, by this machine's name, or as `--host` says.
"""

from __future__ import annotations

import html
import json
import socket
import sys
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

from fgzoo.data.images import decode_content
from fgzoo.errors import TrainingError, UsageError
from fgzoo.files import without_places
from fgzoo.interpret.explanation import Explanation, explain
from fgzoo.interpret.page import data_uri, fill, head, packaged, policy
from fgzoo.interpret.pictures import tiles
from fgzoo.prediction.inference import required_card

if TYPE_CHECKING:
    from fgzoo.methods.base import FineGrainedClassifier

#: The largest upload in bytes, and the largest picture in pixels.
MAX_BYTES, MAX_PIXELS = 25 * 2**20, 50_000_000
#: Seconds that a connection may be silent, and that a photo waits for those before it.
TIMEOUT, PATIENCE = 30, 60
#: Classes that are named, and the most maps that are shown.
CLASSES, MAPS = 5, 12
#: Quality of the pictures that are sent back.
QUALITY = 85


class Server(ThreadingHTTPServer):
    """Answers on an address until it is shut down.

    Args:
        model: A trained model, on its device.
        checkpoint: What it was loaded from, for people.
        host: The address to listen at.
        port: The port; 0 takes a free one.

    Attributes:
        alone: Whether only this machine is heard.

    Raises:
        UsageError: The address cannot be had.
    """

    daemon_threads = True

    def __init__(self, model: FineGrainedClassifier, checkpoint: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.host = host
        self.turn = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"serve: {host}:{port} cannot be had ({why}); give another --host or --port") from error
        self.alone = _is_loopback(str(self.server_address[0]))

    def server_bind(self) -> None:
        """Take the address without looking up a name for it, which might ask another machine."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless a client has just left before its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_address[1]}/"

    @cached_property
    def page(self) -> tuple[str, str]:
        """The page, and its content security policy: no request but to this server, no script but its own."""
        style, script, text = (packaged(f"page.{kind}", "fgzoo.serve") for kind in ("css", "js", "html"))
        style = packaged("page.css") + style
        script = fill(script, {"most": str(MAX_BYTES)})
        card = required_card(self.model, "serve")
        name = without_places(self.checkpoint)
        said = {
            "Checkpoint": name,
            "Classes": f"{len(card.class_names)}, of {card.dataset}",
            "Backbone": without_places(self.model.backbone),
        }
        facts = "".join(f"<div><dt>{what}</dt><dd>{html.escape(value)}</dd></div>" for what, value in said.items())
        page = fill(text, {"head": head(html.escape(name), style), "script": script, "facts": facts})
        return page, policy(style, script, "connect-src 'self'") + "; frame-ancestors 'none'"

    def answer(self, content: bytes) -> dict[str, Any]:
        """What the page shows of an image file's content, or `error`, why there is nothing to show."""
        if not self.turn.acquire(timeout=PATIENCE):
            return {"error": "Too many photos at once; try again."}
        try:
            image = decode_content(content, "The picture", max_pixels=MAX_PIXELS)
            (found,) = self.model.predict(image, top_k=CLASSES)
            (seen,) = explain(self.model, image, top_k=1)
        except (TrainingError, UsageError) as error:
            return {"error": str(error)}
        finally:
            self.turn.release()
        if wrong := found.error or seen.error:
            return {"error": wrong}
        shown = [(name, data_uri(picture, QUALITY)) for name, picture in ordered(seen)]
        return {"classes": found.classes, "shares": found.probabilities, "accepted": found.accepted, "pictures": shown}


def _is_loopback(name: str) -> bool:
    """Whether a name is an address of this machine that no other reaches."""
    return _is_address(name) and ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def ordered(seen: Explanation) -> list[tuple[str, Image.Image]]:
    """The image, its maps, those that gave most to the class first where that is known, and Grad-CAM."""
    image, *maps = tiles(seen)
    cam = [maps.pop()] if seen.cam is not None else []
    if seen.map_shares:
        # Maps without a share stand for all others, and come first.
        shares = [*seen.map_shares, *[2.0] * (len(maps) - len(seen.map_shares))]
        maps = [one for _, one in sorted(zip(shares, maps, strict=True), key=lambda pair: -pair[0])]
    elif len(maps) > MAPS:
        maps = maps[-MAPS:]
    return [image, *maps[:MAPS], *cam]


class Handler(BaseHTTPRequestHandler):
    """`GET /` is the page, `POST /answer` with an image file's content is what it shows of it, as JSON."""

    server: Server
    timeout = TIMEOUT
    server_version = "fgzoo"
    sys_version = ""

    def do_GET(self) -> None:
        """The page."""
        if not self.welcome():
            return
        if self.path != "/":
            self.send_error(404)
            return
        text, policy = self.server.page
        self.reply(text.encode(), "text/html; charset=utf-8", policy)

    def do_POST(self) -> None:
        """An answer."""
        if not self.welcome():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer":
            self.send_error(404)
        # A type that no form of another site can send unasked.
        elif self.headers.get("Content-Type") != "application/octet-stream":
            self.send_error(415, "send the photo itself, with the header Content-Type: application/octet-stream")
        elif not length.isdecimal():
            self.send_error(411)
        elif len(length) > len(str(MAX_BYTES)) or int(length) > MAX_BYTES:  # int() takes a few thousand digits at most
            self.send_error(413, f"at most {MAX_BYTES >> 20} MB")
        elif len(content := self.rfile.read(int(length))) < int(length):
            self.send_error(400, "the body is shorter than its Content-Length")
        else:
            answer = self.server.answer(content)
            self.reply(json.dumps(answer).encode(), "application/json", "default-src 'none'")

    def welcome(self) -> bool:
        """Whether the request names this machine; another name may be another site's trick."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            self.send_error(400, "the host is no address")
            return False
        own = ["localhost", self.server.host.lower()]
        if not self.server.alone:
            machine = socket.gethostname().lower()
            own += [machine, f"{machine}.local"]
        if name not in own and not (_is_loopback(name) if self.server.alone else _is_address(name)):
            self.send_error(403, "this page is not served under that name; --host NAME serves it")
            return False
        return True

    def reply(self, content: bytes, kind: str, policy: str) -> None:
        """Send a whole answer that nobody keeps."""
        self.send_response(200)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is kept."""
