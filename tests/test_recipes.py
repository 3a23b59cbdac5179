"""Packaged recipes: their parts, how they are joined by name, and what a preset has for single methods."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import lightning as L
import pytest

from fgzoo import FGVCDataModule
from fgzoo.errors import UsageError
from fgzoo.methods import BUILT_IN, find_method, import_path, method_name
from fgzoo.methods.rra import RRA
from fgzoo.recipes import FOLDER, PRESETS, find_recipe, list_recipes, read_config, read_recipe, recipe_files
from fgzoo.training.arguments import expand_presets, settings_of
from fgzoo.training.messages import get_parameter_names
from tests.command import resolved

DATASETS = ("aircraft", "birds", "cars", "cub", "folder")
METHOD_RECIPES = [f"{dataset}/{method}" for dataset in DATASETS for method in BUILT_IN]
PARTS = sorted(FOLDER.rglob("*.yaml"))
OPTIMISATION = {
    "optimizer", "lr", "lr_batch", "backbone_lr_factor", "layer_decay", "momentum", "weight_decay", "schedule", "warmup_epochs",
    "milestones", "gamma", "label_smoothing", "clip_norm", "ema_decay", "freeze", "freeze_norm",
}  # fmt: skip


def settings(typed: str) -> dict:
    """What a command line comes to."""
    return settings_of(expand_presets(typed.split()))


def assert_holds(config: dict, said: dict) -> None:
    """Everything that is said stands in the config."""
    for key, value in said.items():
        if isinstance(value, dict):
            assert_holds(config[key], value)
        else:
            assert config[key] == value


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.relative_to(FOLDER).as_posix())
def test_a_part_sets_what_there_is(part: Path) -> None:
    content = read_config(part)
    assert content.keys() <= {"data", "model", "trainer"}
    assert content.get("data", {}).keys() <= inspect.signature(FGVCDataModule).parameters.keys()
    assert content.get("trainer", {}).keys() <= inspect.signature(L.Trainer).parameters.keys()
    model = content.get("model", {})
    cls = import_path(model.get("class_path", "fgzoo.methods.base.FineGrainedClassifier"))
    assert model.get("init_args", {}).keys() <= get_parameter_names(cls)


@pytest.mark.parametrize("part", sorted(FOLDER.glob("*/*.yaml")), ids=lambda part: part.relative_to(FOLDER).as_posix())
def test_a_part_is_of_the_method_whose_name_it_has(part: Path) -> None:
    folder, method = part.parent.name, part.stem
    if folder == "data":
        assert read_config(part)["data"]["name"] == method
        return
    said = read_config(part)["model"]
    cls, fixed = find_method(method)
    assert import_path(said["class_path"]) is cls
    if folder in ("methods", "birds"):
        assert method_name(said["class_path"], said.get("init_args", {})) == method
        assert {name: said["init_args"][name] for name in fixed} == fixed


@pytest.mark.parametrize("name", ["small", "dinov3"])
def test_the_preset_sets_the_whole_optimisation(name: str) -> None:
    preset = read_recipe(name)
    assert preset["model"]["init_args"].keys() >= OPTIMISATION | {"backbone"}
    assert preset["trainer"].keys() == {"max_epochs"}


# ---------------------------------------------------------------------- joined by name


def test_there_is_a_recipe_for_every_method_on_every_data_set() -> None:
    presets = {*PRESETS, *(f"{preset}/{part.stem}" for preset in PRESETS for part in FOLDER.glob(f"{preset}/*.yaml"))}
    assert list_recipes().keys() == {*DATASETS, *METHOD_RECIPES} | presets


def test_every_recipe_says_what_it_gives() -> None:
    lines = list_recipes()
    assert [name for name, line in lines.items() if len(line) < 20 or "{" in line] == []
    assert lines["cars/pmg"].startswith("PMG, IAGN's parent, with ResNet-50 on Stanford Cars at 448 pixels: ")


@pytest.mark.parametrize("name", ["cub/rra", "cub/wsdan", "birds/srbn", "birds/iagn"])
def test_a_recipe_is_what_the_parser_makes_of_it(name: str) -> None:
    assert_holds(resolved("--config", name), read_recipe(name))


def test_a_recipe_is_of_its_data_and_its_method() -> None:
    for name in METHOD_RECIPES:
        found = read_recipe(name)
        model = found["model"]
        assert f"{found['data']['name']}/{method_name(model['class_path'], model.get('init_args', {}))}" == name


def test_a_recipes_rate_is_meant_for_its_batch() -> None:
    batch = inspect.signature(FGVCDataModule).parameters["batch_size"].default
    for name in METHOD_RECIPES:
        found = read_recipe(name)
        assert found["model"]["init_args"]["lr_batch"] == found["data"].get("batch_size", batch), name


def test_the_birds_take_nothing_from_the_reference_recipes() -> None:
    assert FOLDER / "methods" not in {file.parent for file in recipe_files()["birds/rra"]}
    assert read_recipe("birds/rra")["model"]["init_args"]["schedule"] == "one_cycle"


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("cub/rar", "did you mean 'cub/rra'?"),
        ("smal", "did you mean 'small'?"),
        ("small-rra", "did you mean 'small/rra'?"),
        ("methods", "`fgzoo list recipes` names the packaged ones"),
    ],
)
def test_a_recipe_that_is_not_there(said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"no packaged recipe '{said}'; {re.escape(hint)}"):
        find_recipe(said)


def test_a_file_of_ones_own_wins_over_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").write_text("data: {batch_size: 3}\n")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("small") == [Path("small")]


# ---------------------------------------------------------------------- what a preset has for a method


@pytest.mark.parametrize(
    "typed",
    [
        "--config cub/rra --config small",
        "--config small --config cub/rra",
        "--config cub --model rra --config small",
        "--config cub --config small --model rra",
        "--config=cub --config=small --model=fgzoo.methods.RRA",
        "--config cub/rra-parent -c small --model rra",
    ],
)
def test_a_preset_brings_the_methods_part(typed: str) -> None:
    model = resolved(*typed.split())["model"]
    assert import_path(model["class_path"]) is RRA
    assert (model["init_args"]["local"], model["init_args"]["local_scale"]) == (True, 1.0)


@pytest.mark.parametrize(
    "typed",
    [
        "--config cub/rra-parent --config small",
        "--config cub --config small --model rra-parent",
        "--config cub/rra --config small --model.local false",
    ],
)
def test_a_parent_has_not_its_methods_part(typed: str) -> None:
    init_args = resolved(*typed.split())["model"]["init_args"]
    assert (init_args["local"], init_args["local_scale"], init_args["lr_batch"]) == (False, 0.5, 32)


@pytest.mark.parametrize(
    "typed", ["--model.stages 3 --config cub/iagn --config small", "--config cub/iagn -c small --model.stages=3"]
)
def test_what_is_typed_wins_over_every_part(typed: str) -> None:
    init_args = resolved(*typed.split())["model"]["init_args"]
    assert (init_args["stages"], init_args["grids"], init_args["lr"]) == (3, [4, 2], 0.002)


def test_a_preset_meets_the_method_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for model in ("fgzoo.methods.iagn.IAGN", "{class_path: IAGN, init_args: {temperature: 3.0}}"):
        file.write_text(f"data: {{name: cub}}\nmodel: {model}\n")
        assert resolved("--config", file, "--config", "small")["model"]["init_args"]["stages"] == 2
    file.write_text("data: {name: cub}\nmodel: {class_path: IAGN, init_args: {stages: 3, grids: [8, 4, 2]}}\n")
    assert resolved("--config", "small", "--config", file)["model"]["init_args"]["stages"] == 3


def test_a_typed_value_that_looks_like_a_date_is_text() -> None:
    assert settings("--data.root 2001-99-99 --config cub")["data"]["root"] == "2001-99-99"


def test_dinov3_tunes_its_network_by_low_rank_under_every_method() -> None:
    for name in (name for name in METHOD_RECIPES if name.startswith("folder/")):
        found = settings(f"--config {name} --config dinov3")
        arguments = found["model"]["init_args"]
        assert method_name(found["model"]["class_path"], arguments) == name.partition("/")[2]
        assert (arguments["backbone"], arguments["backbone_tuning"]) == ("vit_small_patch16_dinov3", "lora")
        assert found["data"]["image_size"] % 16 == 0


def test_small_keeps_every_method() -> None:
    for name in METHOD_RECIPES:
        before, after = (settings(f"--config {name}{more}")["model"] for more in ("", " --config small"))
        assert method_name(after["class_path"], after["init_args"]) == name.partition("/")[2]
        assert before["class_path"] == after["class_path"]


def test_a_pyramid_may_be_a_tuple() -> None:
    path = "fgzoo.methods.srbn.SRBN"
    assert method_name(path, {"attention": "none", "spatial_lstm": False, "pyramid": (1, 2)}) == "bcnn-spp"
