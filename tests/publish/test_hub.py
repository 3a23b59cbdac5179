"""A run pushed to a stand-in for the Hugging Face hub on this machine, and what its cards say to the hub."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgzoo import list_checkpoints, load
from fgzoo.checkpoints.download import CHECKOUT, PACKAGE
from fgzoo.checkpoints.hub import WEIGHTS
from fgzoo.checkpoints.registry import read_registry
from fgzoo.publish.model_card import LIKE_CUB, hub_header, is_subset
from tests.builders import make_cub, save
from tests.command import Result, fgzoo, fit
from tests.hub import TOKEN, Hub

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert fit(make_cub(folder / "data"), "--output", folder / "run").status == 0
    assert fgzoo("test", "--ckpt_path", folder / "run").status == 0
    return folder / "run"


@pytest.fixture
def push(tested: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def pushed(repository: str) -> Result:
        return fgzoo(
            "publish", tested, "--name", "a_name", "--output", "zoo", "--licence", "CC-BY-NC-4.0", "--push", repository
        )  # fmt: skip

    return pushed


def test_what_is_pushed_is_loaded_back_by_its_address(push: Callable[[str], Result], hub: Hub, tested: Path) -> None:
    result = push("mine/birds")
    assert result.status == 0, result.err
    assert f"Pushed: {hub.url}/mine/birds" in result.out
    files = hub.repositories["mine/birds"]
    assert files == {"README.md": Path("zoo/a_name.md").read_bytes(), WEIGHTS: Path("zoo/a_name.safetensors").read_bytes()}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load("hf://mine/birds")(images).logits, load(tested)(images).logits)


def test_its_entry_leads_to_the_hub(push: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch) -> None:
    push("mine/birds")
    assert read_registry(Path("zoo/zoo.yaml"))["a_name"].sources == [f"hf://mine/birds/{WEIGHTS}"]
    Path("zoo/a_name.safetensors").unlink()
    monkeypatch.setenv("FGZOO_REGISTRY", "zoo/zoo.yaml")
    assert "a_name" in list_checkpoints()
    assert load("a_name").trained


def test_its_card_says_how_it_is_loaded_from_there(push: Callable[[str], Result], hub: Hub) -> None:
    push("mine/birds")
    text = hub.repositories["mine/birds"]["README.md"].decode()
    assert "fgzoo predict hf://mine/birds photos/" in text
    card = huggingface_hub.ModelCard(text).data
    assert (card.license, card.library_name, card.pipeline_tag) == ("cc-by-nc-4.0", "fgzoo", "image-classification")
    entry = read_registry(Path("zoo/zoo.yaml"))["a_name"]
    found = {result.metric_type: result.metric_value for result in card.eval_results}
    assert found["accuracy"] == entry.metrics["top1"]["value"]
    assert len(found) == 5
    assert {result.dataset_name for result in card.eval_results} == {"CUB-200-2011, a subset of 3 classes"}


def test_pushing_again_makes_a_commit_in_the_same_repository(push: Callable[[str], Result], hub: Hub) -> None:
    assert [push("mine/birds").status for _ in range(2)] == [0, 0]
    assert list(hub.repositories) == ["mine/birds"]


def test_a_repository_of_others_is_refused_and_the_files_stay(push: Callable[[str], Result]) -> None:
    result = push("theirs/birds")
    assert result.status == 2
    assert "are written, but not pushed: the token may not do that in theirs/birds; log in by `hf auth login`" in result.err
    assert Path("zoo/a_name.safetensors").is_file()


@pytest.mark.parametrize(
    ("repository", "said"),
    [("birds", "a repository of the hub is OWNER/NAME"), ("mine/birds", "the hub does not know who you are; log in by `hf auth")],
)
def test_what_cannot_be_pushed_is_told_before_anything_is_computed(
    repository: str, said: str, push: Callable[[str], Result], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(repository)
    assert (result.status, hub.asked) == (2, [])
    assert said in result.err
    assert not Path("zoo").exists()


def test_the_command_line_asks_the_hub_that_the_environment_names(push: Callable[[str], Result], hub: Hub) -> None:
    push("mine/birds")
    save(Path("photo.jpg"), 0)
    place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("home").absolute()), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "fgzoo", "predict", "hf://mine/birds", "photo.jpg", "--output", "answers.csv"]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with Path("answers.csv").open(newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == [""]


def test_a_card_says_of_other_data_in_cubs_format_nothing_of_cub() -> None:
    entry = replace(next(iter(read_registry().values())), dataset="cub")
    assert "name: CUB-200-2011\n" in hub_header(entry, "cub", subset=False)
    assert "name: Images in the format of CUB-200-2011\n" in hub_header(entry, LIKE_CUB, subset=False)


@pytest.mark.parametrize(
    ("data", "train", "test", "subset"),
    [("cub", 5994, 5794, False), ("cub", 2000, 5794, True), ("cub", 5994, 1389, True), ("folder", 3, 3, False)],
)
def test_fewer_images_make_a_subset_whatever_the_number_of_classes(data: str, train: int, test: int, subset: bool) -> None:
    assert is_subset(data, {"train": train - 1, "val": 1, "test": test}) is subset


@pytest.mark.parametrize("name", [entry.name for entry in read_registry().values()])
def test_the_shipped_cards_open_with_the_header_of_their_entries(name: str) -> None:
    entry = read_registry()[name]
    for folder in (PACKAGE / "checkpoints", CHECKOUT / "checkpoints"):
        if (folder / f"{name}.md").is_file():
            text = (folder / f"{name}.md").read_text(encoding="utf-8")
            assert text.startswith(hub_header(entry, entry.dataset, "**A subset**" in text) + f"\n# {name}\n")
            return
    pytest.fail(f"{name} has no card")
