from __future__ import annotations

import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from markdown_it import MarkdownIt
from timm.models import save_for_hf

from fgzoo import list_models, load
from fgzoo.checkpoints.download import CHECKOUT
from fgzoo.checkpoints.registry import METRIC_NAMES, check_entry, list_checkpoints, read_registry
from fgzoo.export.graph import description
from fgzoo.publish import publishing
from fgzoo.publish.model_card import CITATIONS, PAPERS, Training, _confusion
from fgzoo.publish.publishing import _configs
from fgzoo.recipes import merge
from tests.builders import make_cub, save
from tests.command import Result, fgzoo, fit, metrics

LICENCE = ("--licence", "CC-BY-NC-4.0")


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tested runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    root = make_cub(folder / "data")
    for seed in (0, 1):
        run = folder / f"seed{seed}"
        assert fit(root, "--output", run, "--seed_everything", seed, "--data.val_fraction", 0.5).status == 0
        assert fgzoo("test", "--ckpt_path", run).status == 0
    return [folder / "seed0", folder / "seed1"]


def published(run: Path, *more: object, name: str = "mine") -> Result:
    return fgzoo("publish", run, "--name", name, "--output", "zoo", *LICENCE, *more)


def test_a_run_becomes_a_checkpoint_that_is_loaded_by_name(tested: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    result = published(tested[0])
    assert result.status == 0, result.err
    assert "mine" not in list_checkpoints()
    monkeypatch.setenv("FGZOO_REGISTRY", "zoo/zoo.yaml")
    assert "mine" in list_checkpoints()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load("mine")(images).logits, load(tested[0])(images).logits)


def test_verbs_take_the_name(tested: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    published(tested[0])
    monkeypatch.setenv("FGZOO_REGISTRY", "zoo/zoo.yaml")
    save(Path("photo.jpg"), 0)
    assert fgzoo("predict", "mine", "photo.jpg", "--output", "answers.csv", "--num-workers", 0).status == 0
    with Path("answers.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["photo.jpg"]


def test_the_entry_holds_what_the_test_measured(tested: list[Path]) -> None:
    published(tested[0])
    entry = read_registry(Path("zoo/zoo.yaml"))["mine"]
    measured = metrics(tested[0])[-1]
    assert {name: numbers["value"] for name, numbers in entry.metrics.items()} == pytest.approx(
        {name: float(measured[f"test/{name}"]) for name in METRIC_NAMES}, abs=1e-5
    )
    assert (entry.method, entry.recipe, entry.size) == ("baseline", "cub", Path("zoo/mine.safetensors").stat().st_size)


def test_seeds_give_mean_and_spread(tested: list[Path]) -> None:
    assert published(tested[0], "--seeds", tested[1]).status == 0
    nll = read_registry(Path("zoo/zoo.yaml"))["mine"].metrics["nll"]
    values = [float(metrics(run)[-1]["test/nll"]) for run in tested]
    assert (nll["seeds"], nll["mean"], nll["std"]) == (
        2, pytest.approx(statistics.mean(values), abs=1e-5), pytest.approx(statistics.stdev(values), abs=1e-5)
    )  # fmt: skip
    assert nll["value"] == pytest.approx(values[0], abs=1e-5)


def test_half_precision_says_what_it_changed(tested: list[Path]) -> None:
    published(tested[0], name="whole")
    assert published(tested[0], "--dtype", "float16", name="half").status == 0
    assert Path("zoo/half.safetensors").stat().st_size < 0.6 * Path("zoo/whole.safetensors").stat().st_size
    assert "against the weights as trained: " in Path("zoo/half.md").read_text()
    assert "against the weights as trained: " not in Path("zoo/whole.md").read_text()


def test_the_card_tells_what_one_must_know_and_nothing_of_the_machine(tested: list[Path]) -> None:
    published(tested[0])
    card = Path("zoo/mine.md").read_text()
    for section in ("Use", "Training data", "Recipe", "Metrics", "Confused most often", "Limits", "Licence", "Citation", "File"):
        assert f"\n## {section}\n" in card
    assert "fgzoo fit --config cub --model baseline --data.root DATA" in card
    assert "CC-BY-NC-4.0" in card
    assert "**A subset** of the official data set: 3 classes, " in card
    assert "It knows 3 classes. An image whose cosine to the mean features of the nearest class is below" in card
    for text in (card, Path("zoo/mine.safetensors").read_bytes().decode(errors="replace")):
        assert str(tested[0].parent) not in text


@pytest.mark.parametrize("name", ["a | b", "two\nlines", "<b>*x*</b> [y](z) `q`", "a&amp;b\\|", "\u05e2\u05d5\u05e8\u05d1"])
def test_a_class_name_of_any_text_is_one_cell_of_the_card(name: str) -> None:
    page = _confusion(Training("", {}, [], {}, {}, {}, "float32", None, [(name, "other", 2)]))
    found = MarkdownIt().enable("table").parse(page)
    cells = ["".join(part.content for part in token.children or ()) for token in found if token.type == "inline"]
    assert cells[-3:] == [" ".join(name.split()), "other", "2"]


def test_a_network_of_a_folder_goes_by_the_folders_name(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet", num_classes=5)
    save_for_hf(network, tmp_path / "private" / "net", safe_serialization=True)
    backbone = f"local-dir:{tmp_path / 'private' / 'net'}"
    assert fit(make_cub(tmp_path / "data"), "--output", "run", "--model.backbone", backbone).status == 0
    assert fgzoo("test", "--ckpt_path", "run").status == 0
    result = published(Path("run"))
    assert result.status == 0, result.err
    model, card = load("zoo/mine.safetensors"), Path("zoo/mine.md").read_text()
    assert model.backbone == "local-dir:net"
    assert "baseline with local-dir:net, " in card
    for text in (card, Path("zoo/mine.safetensors").read_bytes().decode(errors="replace"), str(description(load("run"), "run"))):
        assert str(tmp_path) not in text


def test_every_method_but_the_baseline_has_a_paper_to_cite() -> None:
    assert set(list_models()) - set(PAPERS) == {"baseline"}
    assert set(re.findall(r"@misc\{(\w+),", CITATIONS.read_text(encoding="utf-8"))) == set(PAPERS.values())


def test_publishing_again_replaces_the_entry_and_keeps_the_rest(tested: list[Path]) -> None:
    published(tested[0])
    published(tested[0], name="other")
    registry = Path("zoo/zoo.yaml")
    registry.write_text("# ours\n" + registry.read_text())
    published(tested[1])
    assert registry.read_text().startswith("# ours\n")
    entries = read_registry(registry)
    assert list(entries) == ["mine", "other"]
    assert entries["mine"].sha256 != entries["other"].sha256


def test_an_untested_run_is_refused(tested: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(tested[0], tmp_path / "run")
    rows = [row for row in metrics(run) if "test/top1" not in row]
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    result = published(run)
    assert result.status == 2
    assert "run `fgzoo test --ckpt_path" in result.err
    assert not list(Path("zoo").glob("*")) if Path("zoo").exists() else True


def test_a_file_that_scores_otherwise_than_its_run_is_refused(tested: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(tested[0], tmp_path / "run")
    told = metrics(run)[-1]["test/top1"]
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text.replace(told, f"{(float(told) + 0.5) % 1:.4f}"))
    result = published(run)
    assert result.status != 0
    assert "the weights or the data have changed since" in result.err
    assert not list(Path("zoo").glob("*.*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"init_args": {"lr": 0.5}}},
        {"model": {"init_args": {"teacher": "runs/other"}}},
        {"ckpt_path": "runs/other"},
        {"trainer": {"max_steps": 7}},
    ],
)
def test_runs_of_other_settings_are_no_seeds(changes: dict[str, Any], tested: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(tested[1], tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    merge(config, changes)
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert "is no further seed" in published(tested[0], "--seeds", other).err
    assert "each must be another" in published(tested[0], "--seeds", tested[0]).err


def test_weights_of_others_photographs_need_a_licence(tested: list[Path]) -> None:
    result = fgzoo("publish", tested[0], "--name", "mine")
    assert result.status == 2
    assert "--licence is missing" in result.err


@pytest.mark.parametrize("name", ["Mine", "a/b", "", "../x"])
def test_a_name_that_nobody_could_type_is_refused(name: str, tested: list[Path]) -> None:
    result = published(tested[0], name=name)
    assert result.status != 0
    assert "name" in result.err
    assert not list(Path().rglob("*.safetensors"))


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from fgzoo.methods import Baseline\nclass Mine(Baseline):\n    pass\n"
    (tmp_path / "ownpackage.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    root = make_cub(tmp_path / "data")
    assert fit(root, "--output", "run", model="ownpackage.Mine").status == 0
    assert fgzoo("test", "--ckpt_path", "run").status == 0
    command = [sys.executable, "-m", "fgzoo", "publish", "run", "--name", "mine", "--output", "zoo", *LICENCE]
    # Here the class has been imported already.
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)])}
    done = subprocess.run([*command, "--trust", "ownpackage"], env=place, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert read_registry(Path("zoo/zoo.yaml"))["mine"].method == "ownpackage.Mine"


@pytest.mark.parametrize(
    ("typed", "recipe"),
    [
        ("fit", ["birds/rra"]),
        ("fit --ckpt_path runs/cub-rra/000", []),
        ("fit --model rra --data.name cub", []),
        ("fit --config cub --config small --model rra", ["cub", "small"]),
        ("fit --config=/home/me/mine.yml --config 'my own.yaml'", ["mine.yaml", "my_own.yaml"]),
        ("fit --config runs/folder-rra/000", ["config.yaml"]),
    ],
)
def test_a_recipe_is_what_was_typed_in_words_that_a_registry_takes(typed: str, recipe: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"# fgzoo {typed}\nmodel: {{}}\n")
    assert _configs(tmp_path) == recipe
    check_entry(replace(next(iter(read_registry().values())), recipe=" ".join(recipe)))


def test_a_run_of_several_devices_is_scored_by_one_process(tested: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(tested[0], tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= {"devices": 2, "num_nodes": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = published(run)
    assert result.status == 0, result.err


def test_a_name_of_the_packaged_list_is_refused(tested: list[Path]) -> None:
    result = published(tested[0], name="rra_birds")
    assert (result.status, result.err) == (
        2,
        "fgzoo: publish: fgzoo comes with a checkpoint named 'rra_birds'; give another --name\n",
    )


@pytest.mark.parametrize(
    ("damage", "more", "said"),
    [
        ("checkpoints: [", (), "zoo.yaml cannot be read"),
        ("", ("--source", "ftp://a.org/b.safetensors"), "no source begins with 'ftp:'"),
    ],
)
def test_what_no_registry_takes_is_told_before_anything_is_computed_or_replaced(
    damage: str, more: tuple[str, ...], said: str, tested: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published(tested[0]).status == 0
    before = Path("zoo/mine.safetensors").stat().st_mtime_ns
    if damage:
        Path("zoo/zoo.yaml").write_text(damage)
    monkeypatch.setattr(publishing, "score_alone", pytest.fail)
    result = published(tested[1], *more)
    assert result.status == 2
    assert said in result.err
    assert Path("zoo/mine.safetensors").stat().st_mtime_ns == before
