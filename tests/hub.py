"""A stand-in for the Hugging Face hub on this machine: the parts of its HTTP interface that pushing and loading use.

Large files go through git LFS's batch interface, as the hub offers it to clients without xet; commits are lines of JSON. It
holds nothing but the newest state of every repository, and knows one token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.server import running

TOKEN = "hf_of_the_tests"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`repositories` holds the files of each, `asked` what was requested; `spoilt`: large files arrive with another content."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.spoilt = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.note()
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if not name.startswith("mine/"):
                return self.refuse(403, "Forbidden: you are not allowed to create a repository there")
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.server.url}/{name}"}, status)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = json.loads(content)["files"]
            modes = [{"path": f["path"], "uploadMode": mode_of(f["path"]), "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        if re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            wanted = json.loads(content)["objects"]
            return self.answer(
                {"transfer": "basic", "objects": [{**o, "actions": {"upload": self.place(o["oid"])}} for o in wanted]}
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in map(json.loads, content.splitlines()):
                self.commit(self.server.repositories[found[1]], line["key"], line["value"])
            return self.answer({"commitUrl": f"{self.server.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.refuse(404, "Not found")

    def place(self, digest: str) -> dict[str, Any]:
        return {"href": f"{self.server.url}/upload/{digest}", "header": {}}

    def commit(self, files: dict[str, bytes], kind: str, value: dict[str, Any]) -> None:
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = self.server.stored[value["oid"]]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.note()
        digest = hashlib.sha256(content).hexdigest()
        if self.path != f"/upload/{digest}":
            return self.refuse(400, "another content than announced")
        self.server.stored[digest] = content
        return self.answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.note()
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        files = self.server.repositories.get(found[1]) if found else None
        if found is None or files is None:
            return self.refuse(401, "Invalid username or password.", "RepoNotFound")
        if found[2] not in ("main", COMMIT):
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        if found[3] not in files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        content = files[found[3]]
        large = mode_of(found[3]) == "lfs"
        etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        return self.send(200, content[::-1] if self.server.spoilt else content, headers)

    def note(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, said: str, code: str = "") -> None:
        headers = {"X-Error-Message": said} | ({"X-Error-Code": code} if code else {})
        self.send(status, json.dumps({"error": said}).encode(), headers)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def mode_of(path: str) -> str:
    """Which files a new repository keeps in git LFS."""
    return "lfs" if path.endswith(".safetensors") and not path.startswith("small/") else "regular"


@contextmanager
def hub_serving() -> Iterator[Hub]:
    hub = Hub()
    with running(hub):
        yield hub
