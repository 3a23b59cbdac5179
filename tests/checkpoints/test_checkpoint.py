from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fgzoo as package
from fgzoo.checkpoints.loading import class_dependent, load, load_weights, read_checkpoint
from fgzoo.errors import CheckpointError
from tests.builders import Bomb, make_cub
from tests.command import fgzoo, fit, resolved, weights
from tests.small import small


def edited(trained: SimpleNamespace, path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the checkpoint with something changed."""
    content = torch.load(trained.file, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


# ---------------------------------------------------------------------- what a checkpoint carries


def test_a_checkpoint_carries_all_that_loading_needs(trained: SimpleNamespace) -> None:
    card = read_checkpoint(trained.run)["fgzoo"]
    assert (card["method"], card["backbone"], card["num_classes"]) == ("fgzoo.methods.baseline.Baseline", "test_efficientnet", 3)
    assert (card["version"], len(card["mean"]), len(card["std"])) == (package.__version__, 3, 3)
    assert card["data"]["class_names"] == ["001.Black_footed_Albatross", "002.Indigo_Bunting", "003.Rusty_Blackbird"]
    assert (card["data"]["image_size"], card["data"]["interpolation"]) == (64, "bilinear")
    assert len(card["data"]["fingerprint"]) == 16


def test_a_loaded_model_has_the_saved_weights(trained: SimpleNamespace) -> None:
    model = load(trained.file)
    torch.testing.assert_close(dict(model.state_dict()), weights(trained.run), rtol=0, atol=0)
    assert (model.training, model.trained) == (False, True)


# ---------------------------------------------------------------------- fine-tuning


def test_fine_tuning_starts_from_the_weights(trained: SimpleNamespace, tmp_path: Path) -> None:
    result = fit(trained.root, "--ckpt_path", trained.run, "--model.lr", 0, "--output", "tuned")
    assert result.status == 0
    classifier = "network.classifier.weight"
    assert torch.equal(weights(tmp_path / "tuned")[classifier], weights(trained.run)[classifier])


def test_given_arguments_hold_over_the_checkpoints(trained: SimpleNamespace, tmp_path: Path) -> None:
    assert fit(trained.root, "--ckpt_path", trained.file, "--model.lr", 0.125, "--output", "tuned").status == 0
    assert read_checkpoint(tmp_path / "tuned")["hyper_parameters"]["lr"] == 0.125


def test_another_class_count_is_refused_with_the_way_out(trained: SimpleNamespace, tmp_path: Path) -> None:
    result = fit(make_cub(tmp_path, classes=4), "--ckpt_path", trained.run)
    assert result.status == 2
    assert "num_classes is 3 there and 4 here; add --reset_head true, for other classes" in result.err


def test_reset_head_keeps_the_backbone(trained: SimpleNamespace, tmp_path: Path) -> None:
    root = make_cub(tmp_path, classes=4)
    result = fit(root, "--ckpt_path", trained.run, "--reset_head", "true", "--model.lr", 0, "--output", "tuned")
    assert result.status == 0, result.err
    old, new = weights(trained.run), weights(tmp_path / "tuned")
    assert new["network.classifier.weight"].shape == (4, old["network.classifier.weight"].shape[1])
    convolutions = [name for name, value in old.items() if value.ndim == 4]
    assert all(torch.equal(old[name], new[name]) for name in convolutions)


def test_reset_head_makes_a_new_head_even_for_as_many_classes(trained: SimpleNamespace) -> None:
    fresh = package.create_model("baseline", 3, "test_efficientnet", pretrained=False)
    before = fresh.state_dict()["network.classifier.weight"].clone()
    load_weights(fresh, read_checkpoint(trained.run), trained.run, reset_head=True)
    after = fresh.state_dict()["network.classifier.weight"]
    assert torch.equal(after, before)
    assert not torch.equal(after, weights(trained.run)["network.classifier.weight"])


def test_a_fine_tuned_run_is_not_reset_again(trained: SimpleNamespace, tmp_path: Path) -> None:
    tune = ("--reset_head", "true", "--model.lr", 0)
    assert fit(trained.root, "--ckpt_path", trained.run, *tune, "--output", "once").status == 0
    assert fgzoo("fit", "--ckpt_path", "once", "--output", "twice").status == 0
    classifier = "network.classifier.weight"
    assert torch.equal(weights(tmp_path / "once")[classifier], weights(tmp_path / "twice")[classifier])


@pytest.mark.parametrize(("name", "expected"), [("baseline", 2), ("rra-parent", 2), ("rra", 4)])
def test_class_dependent_weights_are_the_classifiers(name: str, expected: int) -> None:
    found = class_dependent(package.create_model(name, 3, "test_efficientnet", pretrained=False))
    assert len(found) == expected
    assert all("classifier" in key for key in found)


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("model", "backbone", "said"),
    [
        ("rra", "test_efficientnet", "method is fgzoo.methods.baseline.Baseline there and fgzoo.methods.rra.RRA here"),
        ("baseline", "test_resnet", "backbone is test_efficientnet there and test_resnet here"),
    ],
)
def test_another_method_or_backbone_is_named(trained: SimpleNamespace, model: str, backbone: str, said: str) -> None:
    result = fit(trained.root, "--ckpt_path", trained.run, "--model.backbone", backbone, model=model)
    assert result.status == 2
    assert said in result.err


def test_what_is_to_be_added_for_a_checkpoint_of_another_network_is_said(trained: SimpleNamespace) -> None:
    small = ("--model.hidden_size", 32, "--model.global_width", 32, "--model.steps", 2)
    assert fit(trained.root, *small, "--output", "run", model="rra").status == 0
    for backbone in ("test_resnet", "test_efficientnet"):
        refused = fit(trained.root, "--ckpt_path", "run", "--model.backbone", backbone, "--output", "tuned", model="rra")
        assert refused.status == 2
        said = refused.err.rpartition("; add ")[2].split()
        assert ("--model.backbone" in said) == (backbone == "test_resnet")
        again = ("--ckpt_path", "run", "--model.backbone", backbone, *said, "--output", f"from {backbone}")
        assert fit(trained.root, *again, model="rra").status == 0


def test_a_head_that_is_reset_is_a_checkpoints(trained: SimpleNamespace) -> None:
    result = fit(trained.root, "--reset_head", "true")
    assert (result.status, result.err) == (2, "fgzoo: --reset_head: of which weights? Give --ckpt_path, or leave it away\n")


def test_another_shape_of_the_method_is_named() -> None:
    parent = package.create_model("rra-parent", 3, "test_efficientnet", pretrained=False)
    checkpoint: dict[str, Any] = {"state_dict": parent.state_dict()}
    parent.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, "parent.ckpt")
    other = package.create_model("rra", 3, "test_efficientnet", pretrained=False)
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors, e\.g\. network\.local"):
        load_weights(other, read_checkpoint("parent.ckpt"), "parent.ckpt")


def test_a_newer_version_is_named(trained: SimpleNamespace, tmp_path: Path) -> None:
    path = edited(trained, tmp_path / "newer.ckpt", lambda content: content["fgzoo"].update(version="99.1.0"))
    result = fgzoo("test", "--ckpt_path", path)
    assert result.status == 2
    assert "written by fgzoo 99.1.0, newer than this" in result.err


@pytest.mark.parametrize("version", ["0.0.1", "0.1.0rc1+local"])
def test_an_older_version_is_read(trained: SimpleNamespace, tmp_path: Path, version: str) -> None:
    path = edited(trained, tmp_path / "older.ckpt", lambda content: content["fgzoo"].update(version=version))
    assert read_checkpoint(path)["fgzoo"]["version"] == version


def test_a_missing_tensor_is_named(trained: SimpleNamespace, tmp_path: Path) -> None:
    path = edited(trained, tmp_path / "less.ckpt", lambda content: content["state_dict"].pop("network.classifier.bias"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, e\.g\. network\.classifier\.bias"):
        load(path)


# ---------------------------------------------------------------------- damage and malice


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world, this is text", b"PK\x03\x04 cut off", b"\x80\x05\x95garbage", b"<html>404</html>"],
    ids=["empty", "text", "zip", "pickle", "html"],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_a_truncated_checkpoint_is_damaged(trained: SimpleNamespace, tmp_path: Path) -> None:
    data = trained.file.read_bytes()
    (tmp_path / "half.ckpt").write_bytes(data[: len(data) // 2])
    result = fgzoo("test", "--ckpt_path", "half.ckpt")
    assert result.status == 2
    assert "half.ckpt is damaged" in result.err


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, write: Callable[[Any, Path], Any]) -> None:
    canary = tmp_path / "canary"
    write({"fgzoo": {}, "state_dict": Bomb(canary)}, tmp_path / "bomb.ckpt")
    result = fgzoo("test", "--ckpt_path", "bomb.ckpt")
    assert result.status == 2
    assert "bomb.ckpt" in result.err
    assert not canary.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"fgzoo": 3, "state_dict": {}}, {"fgzoo": {}, "state_dict": {}}])
def test_somebody_elses_file_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not written by fgzoo"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.fixture
def foreign(trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a class in a module that leaves a canary behind when it is imported."""
    code = (
        "from pathlib import Path\nfrom fgzoo.methods.baseline import Baseline\n"
        f"Path({str(tmp_path / 'canary')!r}).touch()\nclass Mine(Baseline):\n    '''Mine.'''\n"
    )
    (tmp_path / "foreign_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_methods", raising=False)
    yield edited(trained, tmp_path / "foreign.ckpt", lambda content: content["fgzoo"].update(method="foreign_methods.Mine"))
    sys.modules.pop("foreign_methods", None)


def test_a_foreign_class_is_not_imported(foreign: Path, trained: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--trust foreign_methods"):
        load(foreign)
    assert fgzoo("test", "--ckpt_path", foreign, "--data.root", trained.root).status == 2
    assert not (tmp_path / "canary").exists()


def test_a_foreign_class_that_is_imported_already_is_known(foreign: Path) -> None:
    import foreign_methods  # type: ignore[import-not-found]

    assert type(load(foreign)) is foreign_methods.Mine


def test_a_foreign_class_that_is_trusted_is_imported(foreign: Path) -> None:
    assert type(load(foreign, trust=["foreign_methods"])).__name__ == "Mine"


def test_trust_on_the_command_line(foreign: Path, trained: SimpleNamespace, tmp_path: Path) -> None:
    machine = ("--trainer.accelerator", "cpu", "--data.num_workers", 0, "--output", tmp_path / "out")
    result = fgzoo("test", "--ckpt_path", foreign, "--data.root", trained.root, "--trust", "foreign_methods", *machine)
    assert result.status == 0, result.err


def test_trust_is_added_to_a_configs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trust: [one]\n")
    given = ("--config", "birds/rra", "--config", "mine.yaml", "--trust", "two", "--trust=three")
    assert resolved(*given)["trust"] == ["one", "two", "three"]


def test_a_class_that_is_no_method_is_refused(trained: SimpleNamespace, tmp_path: Path) -> None:
    path = edited(trained, tmp_path / "odd.ckpt", lambda content: content["fgzoo"].update(method="pathlib.Path"))
    with pytest.raises(CheckpointError, match="no FineGrainedClassifier"):
        load(path)


def test_a_folder_without_a_checkpoint_is_named(trained: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(trained.run, tmp_path / "empty", ignore=shutil.ignore_patterns("*.ckpt"))
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        load(tmp_path / "empty")


# ---------------------------------------------------------------------- arguments


def saved_srbn(path: Path, arguments: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A checkpoint of two networks whose arguments are changed; `None` takes one away."""
    model = small("srbn", second_backbone="test_resnet", **(arguments or {}))
    content: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": {**model.hparams, **changes}}
    model.on_save_checkpoint(content)
    content["hyper_parameters"] = {k: v for k, v in content["hyper_parameters"].items() if k not in changes or v is not None}
    torch.save(content, path)
    return path


def test_an_argument_that_is_younger_than_a_checkpoint_has_the_value_of_then(tmp_path: Path) -> None:
    older = load(saved_srbn(tmp_path / "older.ckpt", root_eps=None))
    assert older.network.bilinear.root_eps == 1e-12  # type: ignore[union-attr]
    newer = load(saved_srbn(tmp_path / "newer.ckpt"))
    assert newer.network.bilinear.root_eps == 1e-5  # type: ignore[union-attr]


@pytest.mark.parametrize(("optimizer", "scale"), [("sgd", 10.0), ("adamw", 1.0)])
def test_the_scale_that_an_optimiser_chose_is_kept(tmp_path: Path, optimizer: str, scale: float) -> None:
    own = {"optimizer": optimizer}
    other = {"optimizer": {"sgd": "adamw", "adamw": "sgd"}[optimizer]}
    assert load(saved_srbn(tmp_path / "kept.ckpt", own, **other)).network.scale == scale
    # Without the number, as in files that were written before it was kept.
    assert load(saved_srbn(tmp_path / "older.ckpt", own, scale=None)).network.scale == scale


def test_no_weights_of_a_second_backbone_are_looked_for(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.safetensors")
    model = load(saved_srbn(tmp_path / "last.ckpt", second_backbone_weights=gone, backbone_weights=gone))
    assert model.hparams["second_backbone_weights"] is None
