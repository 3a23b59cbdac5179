"""Checkpoints from a real server on this machine; no other address can be reached."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import fgzoo
from fgzoo.checkpoints import download
from fgzoo.checkpoints.download import fetch_checkpoint
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.errors import CheckpointError, UsageError
from tests import command
from tests.checkpoints.test_registry import ENTRY
from tests.checkpoints.test_safetensors import logits
from tests.hub import Hub
from tests.server import CONTENT, Server
from tests.small import small

NAME = "baseline_tiny_birds"
FILE = f"{NAME}.safetensors"


@pytest.fixture(autouse=True)
def cache_and_list_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FGZOO_REGISTRY", str(tmp_path / "zoo.yaml"))


def listed(*sources: str, content: bytes = CONTENT) -> Path:
    """Put a checkpoint of this content into a list of one's own; gives its place in the cache."""
    entry = {**ENTRY, "sources": list(sources), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    Path("zoo.yaml").write_text(yaml.safe_dump({"base_url": None, "checkpoints": [entry]}))
    return Path("cache/checkpoints").absolute() / FILE


def address(server: Server, behaviour: str) -> str:
    return f"{server.url(behaviour)}/{FILE}"


def asked(server: Server) -> list[str]:
    return [behaviour for behaviour, _ in server.requests]


def test_a_checkpoint_is_fetched_once_and_verified(server: Server) -> None:
    place = listed(address(server, "fine"))
    assert fetch_checkpoint(NAME) == place
    assert place.read_bytes() == CONTENT
    assert fetch_checkpoint(NAME) == place
    assert asked(server) == ["fine"]


def test_the_cache_is_below_home_without_a_setting(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.delenv("FGZOO_CACHE")
    listed(address(server, "fine"))
    assert fetch_checkpoint(NAME) == Path.home() / ".cache" / "fgzoo" / "checkpoints" / FILE


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    place = listed(address(server, "fine"))
    fetch_checkpoint(NAME)
    place.write_bytes(CONTENT[:-1] + b"x")
    assert fetch_checkpoint(NAME).read_bytes() == CONTENT
    assert asked(server) == ["fine", "fine"]
    assert "is damaged or of another version" in caplog.text


@pytest.mark.parametrize("bad", ["wrong", "404", "silent", "too-short", "too-long", "endless", "loop"])
def test_the_next_mirror_helps(bad: str, server: Server) -> None:
    listed(address(server, bad), address(server, "fine"))
    assert fetch_checkpoint(NAME).read_bytes() == CONTENT
    assert asked(server)[-1] == "fine"
    assert bad in asked(server)


def test_a_half_left_by_one_mirror_is_gone_on_with_at_the_next(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgzoo.data.download.ATTEMPTS", 1)
    listed(address(server, "always-breaks"), address(server, "fine"))
    assert fetch_checkpoint(NAME).read_bytes() == CONTENT
    wanted = dict(server.requests)["fine"]
    assert int(wanted.removeprefix("bytes=").removesuffix("-")) >= 1 << 20


def test_failures_are_told_together_with_what_to_do(server: Server) -> None:
    place = listed(address(server, "404"), address(server, "wrong"))
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(NAME)
    said = str(caught.value)
    for part in ("404", "another file than expected", f"put it at {place}", hashlib.sha256(CONTENT).hexdigest()):
        assert part in said
    assert "\n" not in said
    assert not place.exists()


def test_a_file_put_there_by_hand_is_taken(server: Server) -> None:
    place = listed(address(server, "404"))
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert fetch_checkpoint(NAME) == place
    assert not server.requests


def test_offline_nothing_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGZOO_OFFLINE", "1")
    place = listed(address(server, "fine"))
    with pytest.raises(CheckpointError, match="FGZOO_OFFLINE forbids fetching it from http"):
        fetch_checkpoint(NAME)
    assert not server.requests
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(CONTENT)
    assert fetch_checkpoint(NAME) == place


def test_a_file_source_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGZOO_OFFLINE", "1")
    (tmp_path / "share ä").mkdir()
    (tmp_path / "share ä" / FILE).write_bytes(CONTENT)
    place = listed((tmp_path / "share ä" / FILE).as_uri())
    assert fetch_checkpoint(NAME) == place
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize("where", ["PACKAGE", "CHECKOUT"])
def test_a_file_that_is_here_is_not_copied(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, where, tmp_path / "here")
    own = tmp_path / "here" / "checkpoints" / FILE
    own.parent.mkdir(parents=True)
    own.write_bytes(CONTENT)
    place = listed(f"package:checkpoints/{FILE}" if where == "PACKAGE" else f"checkpoints/{FILE}")
    assert fetch_checkpoint(NAME) == own
    assert not place.exists()


def test_a_path_of_the_repository_is_a_file_at_the_base_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(f"checkpoints/{FILE}")
    with pytest.raises(CheckpointError, match="set FGZOO_ZOO_URL"):
        fetch_checkpoint(NAME)
    monkeypatch.setenv("FGZOO_ZOO_URL", server.url("fine"))
    assert fetch_checkpoint(NAME).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FGZOO_CACHE", str(tmp_path / "file"))
    listed(address(server, "fine"))
    with pytest.raises(UsageError, match="set FGZOO_CACHE to a folder that can"):
        fetch_checkpoint(NAME)


def test_two_processes_fetch_once(server: Server) -> None:
    place = listed(address(server, "slow"))
    program = f"from fgzoo.checkpoints.download import fetch_checkpoint; fetch_checkpoint({NAME!r})"
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert place.read_bytes() == CONTENT
    assert asked(server) == ["slow"]


def test_load_by_name_from_a_server(server: Server, tmp_path: Path) -> None:
    model = small()
    save_safetensors(model, tmp_path / FILE)
    server.content = (tmp_path / FILE).read_bytes()
    listed(address(server, "fine"), content=server.content)
    assert torch.equal(logits(fgzoo.load(NAME)), logits(model))


def test_the_verb_prints_the_paths(server: Server) -> None:
    place = listed(address(server, "fine"))
    result = command.fgzoo("download", NAME)
    assert (result.status, result.out) == (0, f"{place}\n")


def test_a_misspelt_name_is_told_before_anything_is_fetched(server: Server) -> None:
    listed(address(server, "fine"))
    result = command.fgzoo("download", NAME, "baseline_tiny_bird")
    assert result.status == 2
    assert f"did you mean '{NAME}'?" in result.err
    assert not server.requests


def test_a_source_on_the_hub(hub: Hub) -> None:
    hub.repositories["owner/repository"] = {f"in/{FILE}": CONTENT}
    place = listed(f"hf://owner/repository/in/{FILE}@main")
    assert fetch_checkpoint(NAME) == place
    assert place.read_bytes() == CONTENT
