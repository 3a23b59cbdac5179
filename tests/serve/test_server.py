"""The server of `fgzoo serve`, asked as programs ask it."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from fgzoo.checkpoints.download import CHECKOUT
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.data.images import decode_content
from fgzoo.errors import UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.rejection import Calibration
from fgzoo.serve import server as module
from fgzoo.serve.server import MAX_BYTES, Server
from tests.builders import encode, picture
from tests.server import running
from tests.small import CARD, small

PHOTO = encode(picture(0))


@contextmanager
def serving(model: FineGrainedClassifier, host: str = "127.0.0.1") -> Iterator[Server]:
    server = Server(model, "runs/mine", host)
    with running(server):
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(small("rra")) as server:
        yield server


def ask(
    server: Server, method: str = "POST", path: str = "/answer", content: bytes = PHOTO, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    sent = {"Content-Type": "application/octet-stream", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request(method, path, content if method == "POST" else None, sent)
    reply = connection.getresponse()
    return reply.status, dict(reply.getheaders()), reply.read()


def answer(server: Server, content: bytes) -> dict[str, Any]:
    status, _, text = ask(server, content=content)
    assert status == 200
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_says_nothing_of_where_its_checkpoint_lies() -> None:
    server = Server(small("rra"), "/home/me/runs/mine")
    server.server_close()
    assert "/home/me" not in server.page[0]
    assert "mine" in server.page[0]


def test_what_pillow_hands_to_another_program_is_refused(server: Server) -> None:
    found = answer(server, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    assert found["error"].startswith("The picture is not an image that can be read (it starts with b'%!PS")


def test_a_picture_that_needs_a_package_names_it(server: Server) -> None:
    found = answer(server, b"\xff\x0a" + bytes(40))
    assert found == {"error": "The picture is not an image that can be read (pip install pillow-jxl-plugin)."}


def test_pixels_are_counted_before_they_are_decoded_whatever_holds_them(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = encode(Image.new("L", (13_300, 13_300)), "PNG")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(huge), 22) + huge
    loaded: list[Image.Image] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded.append)
    for content, said in ((huge, "too large: 13300 x 13300 pixels"), (icon, "not an image that can be read")):
        assert said in answer(server, content)["error"]
    assert not loaded


def test_a_port_that_no_machine_has_is_told() -> None:
    with pytest.raises(UsageError, match=r"serve: 127\.0\.0\.1:70000 cannot be had \(.*0-65535.*; give another --host or --port"):
        Server(small("rra"), "runs/mine", port=70000)


def test_an_answer_is_that_of_predict_with_the_maps_of_explain(server: Server) -> None:
    found = answer(server, PHOTO)
    (expected,) = server.model.predict(picture_of(PHOTO))
    assert tuple(found["classes"]) == expected.classes
    assert found["shares"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert found["accepted"] is True
    assert [name for name, _ in found["pictures"]] == ["image", "step 1 of 3", "step 2 of 3", "step 3 of 3", "Grad-CAM"]
    assert all(source.startswith("data:image/") for _, source in found["pictures"])


def picture_of(content: bytes) -> Any:
    return decode_content(content, "a photo")


def test_maps_that_gave_most_come_first_and_not_too_many() -> None:
    with serving(small("coarse2fine", num_maps=16)) as server:
        names = [name for name, _ in answer(server, PHOTO)["pictures"]]
    assert len(names) == 1 + module.MAPS + 1
    assert (names[0], names[-1]) == ("image", "Grad-CAM")


def test_what_the_model_does_not_know_is_not_accepted() -> None:
    with serving(doubting()) as server:
        assert answer(server, PHOTO)["accepted"] is False


def doubting() -> FineGrainedClassifier:
    """A model that accepts nothing."""
    model = small()
    model.calibration = Calibration(1.0, "probability", (0.0, 0.05), (1.5, 2.0), 40)
    return model


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture", "The picture is not an image that can be read (it starts with"),
        (b"", "The picture is empty"),
        (PHOTO[: len(PHOTO) // 2], "The picture is damaged"),
    ],
    ids=["text", "nothing", "half"],
)
def test_what_is_no_picture_is_told(content: bytes, said: str, server: Server) -> None:
    assert answer(server, content)["error"].capitalize().startswith(said.capitalize())


def test_no_picture_is_decoded_before_its_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr(module, "decode_content", decoded)
    with server.turn:
        assert answer(server, PHOTO) == {"error": "Too many photos at once; try again."}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't allocate memory"), "predict: no memory left for an image; take another --device"),
        (UsageError("explain: mine gives no maps"), "explain: mine gives no maps"),
    ],
)
def test_what_a_model_cannot_do_is_told(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    with serving(small()) as server:
        monkeypatch.setattr(server.model, "forward", fails)
        assert answer(server, PHOTO)["error"].startswith(said)
        monkeypatch.undo()
        assert answer(server, PHOTO)["accepted"] is True


def test_an_address_of_this_machine_is_one_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("Localhost", "127.0.0.2", *(["::1"] if six() else [])):
        with Server(small(), "runs/mine", host) as server:
            assert server.alone
    with Server(small(), "runs/mine", "0.0.0.0") as server:
        assert not server.alone


def six() -> bool:
    """Whether this machine has an address of its own by IPv6."""
    with socket.socket(socket.AF_INET6) as tried:
        return tried.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL


def test_a_picture_of_too_many_pixels_is_not_decoded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    assert "is too large: 48 x 40 pixels, the limit is 100. Scale it down." in answer(server, PHOTO)["error"]


def test_an_upload_beyond_the_bound_is_refused_before_it_is_read(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=30) as connection:
        head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BYTES + 1}"
        connection.sendall(f"{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode())
        assert b" 413 " in connection.recv(100)


def test_a_body_that_breaks_off_is_not_taken_for_the_whole(server: Server) -> None:
    with sending(server, PHOTO[:-1]) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert b" 400 " in connection.recv(100)


def test_a_client_that_leaves_before_its_answer_ends_nothing(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    reset = struct.pack("ii", 1, 0)
    for sent in (PHOTO, PHOTO[:-1]):
        with server.turn, sending(server, sent) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    assert answer(server, PHOTO)["accepted"] is True
    assert capfd.readouterr().err == ""


@contextmanager
def sending(server: Server, content: bytes) -> Iterator[socket.socket]:
    """A connection over which the head for a photo was sent, and this content."""
    head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PHOTO)}"
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=30) as connection:
        connection.sendall(f"{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode() + content)
        yield connection


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"method": "GET", "path": "/"}, 200),
        ({"method": "GET", "path": "/../pyproject.toml"}, 404),
        ({"method": "GET", "path": "/answer"}, 404),
        ({"path": "/"}, 404),
        ({"Content_Type": "text/plain"}, 415),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "127.0.0.2"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Content_Length": "9" * 5000}, 413),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "["}, 400),
        ({"method": "GET", "path": "/", "Host": "127.0.0.1:x]"}, 400),
        ({"method": "GET", "path": "/", "Host": "evil.example"}, 403),
        ({"method": "OPTIONS"}, 501),
    ],
)
def test_who_is_answered(how: dict[str, Any], status: int, server: Server) -> None:
    assert ask(server, **how)[0] == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("192.0.2.7:80", 200), ("[2001:db8::1]", 200), ("localhost", 200), (socket.gethostname(), 200)],
)
def test_who_is_answered_where_others_are_heard(host: str, status: int) -> None:
    with serving(small(), "0.0.0.0") as server:
        assert ask(server, Host=host)[0] == status


def test_the_page_may_ask_this_server_alone(server: Server) -> None:
    _, headers, content = ask(server, "GET", "/")
    assert headers["Content-Security-Policy"].startswith(
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'sha256-"
    )
    assert b"http" not in content
    assert headers["Cache-Control"] == "no-store"


def test_nothing_is_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    answer(server, encode(picture(1, width=400, height=300), "PNG"))
    assert list(tmp_path.rglob("*")) == []
    assert list(Path.home().rglob("*")) == []


def test_names_are_text_and_no_markup() -> None:
    model = small(card=replace(CARD, class_names=["<b>x", "b", "c", "d"], dataset="folder"))
    with Server(model, "<script>runs", "127.0.0.1") as server:
        assert "&lt;script&gt;runs" in server.page[0]
        assert "<script>runs" not in server.page[0]


def test_a_port_that_is_taken_is_named(server: Server) -> None:
    port = server.server_address[1]
    with pytest.raises(
        UsageError, match=rf"serve: 127\.0\.0\.1:{port} cannot be had \(Address already in use\); give another --host or --port"
    ):
        Server(server.model, "x", "127.0.0.1", port)


def test_the_verb_says_where_it_is_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    save_safetensors(small(), tmp_path / "mine.safetensors")
    command = [sys.executable, "-m", "fgzoo", "serve", "mine.safetensors", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline()
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
