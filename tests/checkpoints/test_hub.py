"""Checkpoints from a stand-in for the Hugging Face hub on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fgzoo
from fgzoo.checkpoints.download import fetch_checkpoint
from fgzoo.checkpoints.hub import WEIGHTS
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.errors import CheckpointError
from tests import command
from tests.checkpoints.test_safetensors import logits
from tests.hub import COMMIT, Hub
from tests.small import small

pytest.importorskip("huggingface_hub")


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    save_safetensors(small(), tmp_path / "made.safetensors")
    return (tmp_path / "made.safetensors").read_bytes()


@pytest.fixture
def filled(hub: Hub, content: bytes) -> Hub:
    hub.repositories["some.one/birds"] = {WEIGHTS: content, "other/name.safetensors": content, "small/x.safetensors": content}
    return hub


@pytest.mark.parametrize("which", ["", f"@{COMMIT}", "/other/name.safetensors"])
def test_an_address_loads_as_a_name_does(which: str, filled: Hub) -> None:
    assert torch.equal(logits(fgzoo.load(f"hf://some.one/birds{which}")), logits(small()))


def test_a_file_is_transferred_once(filled: Hub) -> None:
    for _ in range(2):
        fetch_checkpoint("hf://some.one/birds")
    assert [asked for asked in filled.asked if asked.startswith("GET")] == [f"GET /some.one/birds/resolve/main/{WEIGHTS}"]


def test_offline_what_is_here_is_taken_and_nothing_asked(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGZOO_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="could not be downloaded: it is not on this machine, and FGZOO_OFFLINE forbids"):
        fetch_checkpoint("hf://some.one/birds")
    monkeypatch.delenv("FGZOO_OFFLINE")
    place = fetch_checkpoint("hf://some.one/birds")
    monkeypatch.setenv("FGZOO_OFFLINE", "1")
    before = list(filled.asked)
    assert fetch_checkpoint("hf://some.one/birds") == place
    assert filled.asked == before


def test_a_damaged_file_is_fetched_again_or_named_where_that_is_forbidden(
    filled: Hub, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fetch_checkpoint("hf://some.one/birds")
    place.resolve().write_bytes(content[:-1] + b"x")
    monkeypatch.setenv("FGZOO_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=f"is another file than its sha256 [0-9a-f]{{64}} says; delete {place}"):
        fetch_checkpoint("hf://some.one/birds")
    monkeypatch.delenv("FGZOO_OFFLINE")
    assert fetch_checkpoint("hf://some.one/birds").read_bytes() == content


def test_offline_a_copy_without_its_sha256_is_not_trusted_and_nothing_asked(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fetch_checkpoint("hf://some.one/birds")
    content = place.read_bytes()
    place.unlink()
    place.write_bytes(content)  # as caches are where there are no links
    monkeypatch.setenv("FGZOO_OFFLINE", "1")
    before = list(filled.asked)
    with pytest.raises(CheckpointError, match="cannot be verified: FGZOO_OFFLINE forbids asking for its sha256"):
        fetch_checkpoint("hf://some.one/birds")
    assert filled.asked == before
    monkeypatch.delenv("FGZOO_OFFLINE")
    assert fetch_checkpoint("hf://some.one/birds") == place


def test_another_content_than_the_hub_promised_is_refused(filled: Hub) -> None:
    filled.spoilt = True
    with pytest.raises(CheckpointError, match="is another file than its sha256"):
        fetch_checkpoint("hf://some.one/birds")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://some.one", "is no checkpoint's address: hf://OWNER/NAME, or"),
        ("hf://some.one/birds/pickle.ckpt", "is no checkpoint's address"),
        ("hf://some.one/../birds", "is no checkpoint's address"),
        (
            "hf://some.one/fishes",
            "there is no repository some.one/fishes, or it is private; check the name, or log in by `hf auth",
        ),
        ("hf://some.one/birds/absent.safetensors", "some.one/birds holds no such file"),
        ("hf://some.one/birds@absent", "has no such branch, tag or commit"),
        ("hf://some.one/birds/small/x.safetensors", "the hub knows no sha256 of it"),
    ],
)
def test_what_cannot_be_had_is_named(address: str, said: str, filled: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(address)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs the package huggingface_hub: pip install 'fgzoo\[hub\]'"):
        fetch_checkpoint("hf://some.one/birds")


def test_the_verb_downloads_and_prints_where(filled: Hub) -> None:
    result = command.fgzoo("download", "hf://some.one/birds")
    assert result.status == 0, result.err
    assert result.out == f"{fetch_checkpoint('hf://some.one/birds')}\n"
