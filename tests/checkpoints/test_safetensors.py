from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fgzoo as package
from fgzoo.checkpoints.loading import load, read_checkpoint
from fgzoo.checkpoints.safetensors import save_safetensors, training_only
from fgzoo.data.card import DataCard
from fgzoo.errors import CheckpointError, UntrainedError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.baseline import Baseline
from fgzoo.prediction.rejection import Calibration
from fgzoo.testing import evaluation_mode, example_batch
from tests.builders import Bomb, make_cub
from tests.command import MACHINE, fgzoo, fit, weights
from tests.small import small

CARD = DataCard("cub", ["a", "b", "ü", "d", "e"], 64, 72, "squash", "bilinear", "pillow", "0123456789abcdef")


def logits(model: FineGrainedClassifier) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(example_batch((96, 96), batch=2)[0]).logits
    return result


def edited(path: Path, edit: Callable[[dict[str, str]], Any]) -> Path:
    """The file with something changed in its header."""
    with safe_open(path, framework="pt") as file:
        metadata, state = dict(file.metadata()), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    edit(metadata)
    save_file(state, path, metadata)
    return path


def with_card(path: Path, **changes: Any) -> Path:
    return edited(path, lambda metadata: metadata.update(fgzoo=json.dumps({**json.loads(metadata["fgzoo"]), **changes})))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_safetensors(small(card=CARD), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


# ---------------------------------------------------------------------- the round trip


@pytest.mark.parametrize("name", package.list_models())
def test_every_method_comes_back_to_the_bit_and_in_half_precision_nearly(name: str, tmp_path: Path) -> None:
    model = evaluation_mode(small(name, CARD))
    expected = logits(model)
    save_safetensors(model, tmp_path / "whole.safetensors")
    save_safetensors(model, tmp_path / "half.safetensors", "float16")
    whole, half = package.load(tmp_path / "whole.safetensors"), package.load(tmp_path / "half.safetensors")
    assert type(whole) is type(model)
    assert torch.equal(logits(whole), expected)
    found, stored = ({k: v for k, v in m.state_dict().items() if k not in training_only(m)} for m in (whole, model))
    torch.testing.assert_close(found, stored, rtol=0, atol=0)
    assert (logits(half) - expected).abs().max() < 0.01 * expected.abs().max()
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "whole.safetensors").stat().st_size


def test_centres_that_only_training_reads_are_left_out(tmp_path: Path) -> None:
    model = small("wsdan", CARD)
    with torch.no_grad():
        model.network.centers.centers.fill_(1.0)  # type: ignore[operator, union-attr]
    save_safetensors(model, tmp_path / "model.safetensors")
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "centers" in name]
    assert not load(tmp_path / "model.safetensors").network.centers.centers.any()  # type: ignore[operator, union-attr]


def test_half_precision_keeps_integers_and_loads_as_float32(tmp_path: Path) -> None:
    save_safetensors(small(card=CARD), tmp_path / "half.safetensors", "float16")
    with safe_open(tmp_path / "half.safetensors", framework="pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}
    assert {value.dtype for value in load(tmp_path / "half.safetensors").state_dict().values()} == {torch.float32, torch.int64}


def test_the_header_holds_what_lightnings_checkpoint_does(saved: Path) -> None:
    model, content = small(card=CARD), read_checkpoint(saved)
    lightnings: dict[str, Any] = {}
    model.on_save_checkpoint(lightnings)
    assert content["fgzoo"] == lightnings["fgzoo"]
    assert content["fgzoo"]["data"] == asdict(CARD)
    assert content["hyper_parameters"] == json.loads(json.dumps(dict(model.hparams)))


def test_a_loaded_model_knows_its_data(saved: Path) -> None:
    model = load(saved)
    assert (model.card, model.trained, model.training) == (CARD, True, False)
    assert model.transform(torch.zeros(3, 40, 90, dtype=torch.uint8)).shape == (3, 64, 64)


def test_temperature_and_thresholds_come_back(tmp_path: Path) -> None:
    model = small(card=CARD)
    model.calibration = Calibration(1.5, "probability", (0.0, 0.05), (0.1, 0.2), 40)
    save_safetensors(model, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").calibration == model.calibration


def test_a_checkpoint_of_before_they_were_kept_has_none(saved: Path) -> None:
    path = edited(saved, lambda metadata: metadata.update(fgzoo=without_calibration(metadata["fgzoo"])))
    assert load(path).calibration is None


def without_calibration(card: str) -> str:
    return json.dumps({key: value for key, value in json.loads(card).items() if key != "calibration"})


@pytest.mark.parametrize("stored", [3, {"temperature": 1.5}, {"temperature": "hot", "score": "probability"}])
def test_thresholds_that_are_damaged_are_refused(saved: Path, stored: Any) -> None:
    with pytest.raises(CheckpointError, match="its calibration is not what fgzoo writes"):
        load(with_card(saved, calibration=stored))


def test_the_stage_comes_back(tmp_path: Path) -> None:
    model = small("coarse2fine", CARD)
    assert model.network.stage != 0
    model.network.stage = 0
    save_safetensors(model, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").network.stage == 0


def test_the_file_is_tensors_by_name_for_other_programs(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert set(file.keys()) == set(small(card=CARD).state_dict())


# ---------------------------------------------------------------------- the verbs


def test_every_verb_takes_such_a_file(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    assert fit(root, "--output", tmp_path / "run").status == 0
    file = tmp_path / "apart" / "model.safetensors"
    save_safetensors(load(tmp_path / "run"), file)
    data = ("--data.root", root, "--data.batch_size", 3)
    machine = (*MACHINE, "--data.root", root)
    scored = fgzoo("test", "--ckpt_path", file, "--output", tmp_path / "test", *machine)
    assert scored.status == 0, scored.err
    tuned = fgzoo(
        "fit", "--ckpt_path", file, "--output", tmp_path / "tuned", "--model.lr", 0, "--trainer.max_epochs", 1, *MACHINE, *data
    )
    assert tuned.status == 0, tuned.err
    classifier = "network.classifier.weight"
    assert torch.equal(weights(tmp_path / "tuned")[classifier], weights(tmp_path / "run")[classifier])
    other = make_cub(tmp_path / "other", classes=4)
    assert fit(other, "--ckpt_path", file, "--reset_head", "true", "--output", tmp_path / "reset").status == 0


# ---------------------------------------------------------------------- what does not fit


def test_a_header_that_belongs_to_other_weights_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="has other shapes for"):
        load(with_card(saved, num_classes=2, data={**asdict(CARD), "class_names": ["a", "b"]}))


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "bare.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not written by fgzoo.*--model\.backbone_weights"):
        load(tmp_path / "bare.safetensors")


# ---------------------------------------------------------------------- damage and malice

DAMAGE = {
    "empty": lambda data: b"",
    "short": lambda data: b"\x01\x02",
    "text": lambda data: b"<html>404 not found</html>" * 10,
    "pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "zip": lambda data: b"PK\x03\x04" + data,
    "cut in the header": lambda data: data[:100],
    "cut in the tensors": lambda data: data[:-10],
    "header too long": lambda data: struct.pack("<Q", 1 << 60) + data[8:],
    "no JSON": lambda data: data[:8] + b"x" + data[9:],
    "offsets": lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
    "more behind": lambda data: data + b"more",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage: str, saved: Path) -> None:
    data = saved.read_bytes()
    changed = DAMAGE[damage](data)
    assert changed != data
    saved.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or no safetensors file") as caught:
        load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": 3}, {"backbone": ["x"]}, {"num_classes": "5"}, {"stage": "1"}, {"data": [1]}, {"data": {"dataset": "cub"}},
        {"data": {**asdict(CARD), "class_names": "abcde"}}, {"data": {**asdict(CARD), "class_names": ["a"]}},
        {"data": {**asdict(CARD), "image_size": 10**9}},
        {"data": {**asdict(CARD), "resize_mode": "squish"}}, {"data": {**asdict(CARD), "class_counts": [1, 2]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_of_another_type_is_damage(changes: dict[str, Any], saved: Path) -> None:
    with pytest.raises(CheckpointError, match=f"damaged: its field '{next(iter(changes))}'"):
        load(with_card(saved, **changes))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000], ids=["empty", "open", "deep"])
def test_metadata_that_is_no_json_is_damage(text: str, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="'hyper_parameters' in its header is no JSON"):
        load(edited(saved, lambda metadata: metadata.update(hyper_parameters=text)))


def test_an_unknown_argument_is_left_out_and_a_wrong_one_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: Baseline cannot be made with its arguments"):
        load(edited(saved, lambda metadata: metadata.update(hyper_parameters='{"label_smoothing": "much"}')))


def test_no_weights_are_fetched_for_a_header_that_lost_its_arguments(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit the model's arguments"):
        load(edited(saved, lambda metadata: metadata.update(hyper_parameters="{}")))


def test_a_class_that_there_is_not_is_named_with_its_file(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: the class fgzoo\.methods\.baseline\.Basin cannot be imported"
    ):
        load(with_card(saved, method="fgzoo.methods.baseline.Basin"))


def test_a_pickle_by_that_name_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(CheckpointError, match=r"bomb\.safetensors"):
        load(tmp_path / "bomb.safetensors")
    assert not canary.exists()


# ---------------------------------------------------------------------- writing


def test_untrained_weights_are_not_written(tmp_path: Path) -> None:
    model = package.create_model("baseline", 5, "test_efficientnet", pretrained=False)
    with pytest.raises(UntrainedError, match="never been trained"):
        save_safetensors(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    model = small(card=CARD)
    with torch.no_grad():
        model.network.classifier.bias[0] = 1e5
    with pytest.raises(CheckpointError, match=r"network\.classifier\.bias holds 1e\+05, too large for float16"):
        save_safetensors(model, tmp_path / "half.safetensors", "float16")
    assert list(tmp_path.iterdir()) == []


def test_an_argument_that_is_no_plain_value_is_named(tmp_path: Path) -> None:
    class Odd(Baseline):
        def __init__(
            self, num_classes: int, backbone: str = "test_efficientnet", pretrained: bool = False, odd: Any = None
        ) -> None:
            super().__init__(num_classes, backbone, pretrained)

    model = Odd(5, odd=object())
    model.trained = True
    with pytest.raises(CheckpointError, match="hyper_parameters cannot be stored"):
        save_safetensors(model, tmp_path / "model.safetensors")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must end with \.safetensors"):
        save_safetensors(small(card=CARD), tmp_path / "model.ckpt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_leaves_the_old_file(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    (tmp_path / f".model.safetensors.{os.getpid()}.part").symlink_to("/dev/full")
    model = small(card=CARD)
    model.card = replace(CARD, dataset="other")
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); what was there before"):
        save_safetensors(model, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
