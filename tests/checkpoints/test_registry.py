from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fgzoo as package
from fgzoo.checkpoints import registry
from fgzoo.checkpoints.registry import base_url, find_entry, list_checkpoints, read_registry
from fgzoo.cli import main
from fgzoo.errors import CheckpointError
from tests.command import Terminal, fgzoo

ENTRY: dict[str, Any] = {
    "name": "baseline_tiny_birds",
    "method": "baseline",
    "backbone": "test_efficientnet",
    "dataset": "birds",
    "classes": 12,
    "image_size": 64,
    "metrics": {"top1": {"value": 0.512, "mean": 0.5, "std": 0.01, "seeds": 3}, "nll": {"value": 1.5, "seeds": 1}},
    "recipe": "birds/baseline small",
    "size": 1_500_000,
    "sha256": "0" * 64,
    "sources": [
        "checkpoints/a.safetensors", "https://example.org/a.safetensors?download=1", "hf://owner/repository/in/a.safetensors@v1",
        "file:///mnt/a.safetensors", "package:checkpoints/a.safetensors",
    ],
    "licence": "CC-BY-4.0",
}  # fmt: skip


def written(folder: Path, *entries: Any, **top: Any) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump({"base_url": None, "checkpoints": list(entries), **top}))
    return path


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ENTRY, {**ENTRY, "name": "another"})
    monkeypatch.setattr(registry, "REGISTRY", path)


# ---------------------------------------------------------------------- reading


def test_the_packaged_list_is_valid() -> None:
    read_registry()
    base_url()


def test_an_entry_is_read_as_written(tmp_path: Path) -> None:
    assert read_registry(written(tmp_path, ENTRY))["baseline_tiny_birds"].as_dict() == ENTRY


def test_names_by_pattern(two: None) -> None:
    assert package.list_checkpoints() == ["another", "baseline_tiny_birds"]
    assert list_checkpoints("*_birds") == ["baseline_tiny_birds"]
    assert list_checkpoints("x*") == []


def test_an_unknown_name_gets_the_nearest(two: None) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'baseline_tiny_birds'"):
        find_entry("baseline_tiny_bird")
    with pytest.raises(CheckpointError, match="fgzoo list checkpoints"):
        find_entry("zzz")


def test_the_base_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", written(tmp_path, base_url="https://example.org/releases/"))
    assert base_url() == "https://example.org/releases"
    monkeypatch.setenv("FGZOO_ZOO_URL", "file:///mnt/zoo")
    assert base_url() == "file:///mnt/zoo"


# ---------------------------------------------------------------------- what is wrong, and where


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../up"}, "name: '../up' must consist of"),
        ({"name": 3}, "name: 3 is no text"),
        ({"method": "rar"}, "method: 'rar' is no method; known: baseline, rra"),
        ({"backbone": ""}, "backbone: '' is no text"),
        ({"classes": 0}, "classes: 0 is no positive whole number"),
        ({"classes": True}, "classes: True is no positive"),
        ({"image_size": "224"}, "image_size: '224' is no positive"),
        ({"size": 1.5}, "size: 1.5 is no positive"),
        ({"sha256": "ABC"}, "sha256: 'ABC' must be 64 digits"),
        ({"recipe": "birds/baseline smal"}, "names no packaged recipe 'smal'"),
        ({"licence": None}, "licence: None is no text"),
        ({"metrics": {}}, "metrics: {} must hold at least top1"),
        ({"metrics": {"top1": {"value": 0.5}}}, "must give `seeds` for top1"),
        ({"metrics": {"top1": {"value": 0.5, "seeds": 3}}}, "must give mean, seeds, std, value for top1"),
        ({"metrics": {"top1": {"value": 51.2, "seeds": 1}}}, "has 51.2 as value of top1, which must be a fraction of one"),
        ({"metrics": {"top1": {"value": float("nan"), "seeds": 1}}}, "has nan as value of top1"),
        ({"metrics": {"top1": {"value": 0.5, "seeds": 1}, "f1": {"value": 0.5, "seeds": 1}}}, "has no metric 'f1'"),
        ({"sources": []}, "is no list of at least one source"),
        ({"sources": "https://example.org/a.safetensors"}, "is no list"),
        ({"sources": [3]}, "holds 3, which is no text"),
        ({"sources": ["ftp://example.org/a.safetensors"]}, "no source begins with 'ftp:', only https:"),
        ({"sources": ["https:///a.safetensors"]}, "is no whole address"),
        ({"sources": ["file://server/a.safetensors"]}, "is no whole address"),
        ({"sources": ["https://example.org/a.ckpt"]}, "names no .safetensors file"),
        ({"sources": ["hf://owner/a.safetensors"]}, "expected hf://OWNER/REPOSITORY/FILE"),
        ({"sources": ["../a.safetensors"]}, "leads out of the repository"),
        ({"sources": ["/etc/a.safetensors"]}, "leads out of the repository"),
        ({"sources": ["package:../a.safetensors"]}, "leads out of the package"),
        ({"sha265": "0"}, "no field 'sha265'; did you mean 'sha256'?"),
    ],
    ids=str,
)
def test_a_faulty_field_is_named_with_its_entry(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    entry = {**ENTRY, "name": "second", **changes}
    with pytest.raises(CheckpointError) as caught:
        read_registry(written(tmp_path, ENTRY, entry))
    assert said in str(caught.value)
    assert f"{tmp_path / 'zoo.yaml'}, entry 2" in str(caught.value)
    assert f"({entry['name']})" in str(caught.value) or not isinstance(entry["name"], str)


@pytest.mark.parametrize("key", ENTRY)
def test_a_missing_field_is_named(key: str, tmp_path: Path) -> None:
    entry = {name: value for name, value in ENTRY.items() if name != key}
    with pytest.raises(CheckpointError, match=f"entry 1.*the field '{key}' is missing"):
        read_registry(written(tmp_path, entry))


def test_a_second_entry_of_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="entry 2: a second checkpoint named 'baseline_tiny_birds'"):
        read_registry(written(tmp_path, ENTRY, ENTRY))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold `base_url` and `checkpoints`"),
        ("checkpoints: []", "must hold `base_url` and `checkpoints`"),
        ("base_url: null\ncheckpoints: {}", "`checkpoints` must be a list"),
        ("base_url: null\ncheckpoints: [3]", "entry 1: must be a mapping"),
        ("base_url: [", "cannot be read"),
        ("!!python/object/apply:os.mkdir [canary]", "cannot be read"),
    ],
)
def test_a_file_of_another_form_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "zoo.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_registry(tmp_path / "zoo.yaml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "https://", "file:relative", "http://[", 3])
def test_a_faulty_base_address_is_named(url: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", written(tmp_path, base_url=url))
    with pytest.raises(CheckpointError, match=r"base_url.* is no address"):
        base_url()
    monkeypatch.setenv("FGZOO_ZOO_URL", str(url))
    with pytest.raises(CheckpointError, match=r"^FGZOO_ZOO_URL: .* is no address"):
        base_url()


# ---------------------------------------------------------------------- the command line


def test_list_as_a_table(two: None) -> None:
    result = fgzoo("list", "checkpoints", "*tiny*")
    assert result.status == 0
    assert "another" not in result.out
    words = " ".join(result.out.split())
    assert "baseline_tiny_birds 51.2 50.0 ± 1.0 (3) 1.5 birds" in words


@pytest.mark.parametrize("width", [None, 80, 60])
def test_names_and_licences_of_a_list_stay_whole(width: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", written(tmp_path, {**ENTRY, "backbone": "b" * 40}))
    if width is None:
        out = fgzoo("list", "checkpoints").out
    else:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        assert main(["list", "checkpoints"]) == 0
        out = terminal.getvalue()
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ["checkpoints", "name", "baseline_tiny_birds"]
    assert lines[-1].split()[-1] == ENTRY["licence"]
    assert ("b" * 40 in out) == (width is None)


def test_a_list_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: parsed.append(text) or parse(text))
    monkeypatch.setattr(registry, "REGISTRY", written(tmp_path, {**ENTRY, "name": "parsed_once"}))
    assert (list_checkpoints(), find_entry("parsed_once").name, base_url()) == (["parsed_once"], "parsed_once", None)
    assert len(parsed) == 1


def test_a_list_that_has_changed_is_read_anew_and_readers_share_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRY)
    read_registry(path)["baseline_tiny_birds"].sources.clear()
    assert read_registry(path)["baseline_tiny_birds"].as_dict() == ENTRY
    assert list(read_registry(written(tmp_path, {**ENTRY, "name": "another"}))) == ["another"]


def test_list_as_json(two: None) -> None:
    found = json.loads(fgzoo("list", "checkpoints", "*tiny*", "--json").out)
    assert found == {"checkpoints": {"baseline_tiny_birds": ENTRY}}
    assert set(json.loads(fgzoo("list", "--json").out)["checkpoints"]) == {"another", "baseline_tiny_birds"}


def test_an_empty_list_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", written(tmp_path))
    assert "no checkpoint of such a name" in fgzoo("list", "checkpoints").out
    assert json.loads(fgzoo("list", "checkpoints", "--json").out) == {"checkpoints": {}}


@pytest.mark.parametrize("arguments", [["list", "checkpoints", "--json"], ["download", "nothing"]], ids=" ".join)
def test_neither_list_nor_download_imports_torch(arguments: list[str]) -> None:
    code = f"import sys; from fgzoo.cli import main; main({arguments!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
