"""The demo, at a hundredth of its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fgzoo.data.records import Record
from fgzoo.demo import Result, baselines, demo, of_many_classes
from fgzoo.interpret.overlays import attention_picture, in_input_frame, overlay

TINY = ["--data.birds", "{classes: 4, train_per_class: 8, test_per_class: 4, size: 64}", "--data.image_size", "64"]
TINY += ["--data.resize", "72", "--data.batch_size", "8", "--trainer.accelerator", "cpu"]


def test_demo_trains_tests_compares_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(method="rra", output=tmp_path / "demo", epochs=1, pictures=2, more=TINY)
    shown = capsys.readouterr().out
    assert "rra" in shown
    assert "baseline" in shown
    assert "The baseline had as many epochs" in shown
    assert "circled is the part" in shown
    assert "Chance is 25.0 %" in shown
    with Image.open(tmp_path / "demo" / "attention.png") as picture:
        assert picture.width > picture.height
    for method in ("rra", "baseline"):
        assert "test/top1" in (tmp_path / "demo" / method / "metrics.csv").read_text()


@pytest.mark.parametrize(("seconds", "epochs"), [(40.0, [4, 8]), (12.0, [4])])
def test_baseline_gets_as_many_epochs_and_as_much_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, epochs: list[int]
) -> None:
    def fit(method: str, folder: Path, epochs: int, more: None) -> float:
        return 8.0 + 4.0 * epochs  # starting up, and the epochs

    def train(method: str, folder: Path, epochs: int, more: None) -> Result:
        return Result(method, folder, epochs, fit(method, folder, epochs, more), {})

    monkeypatch.setattr("fgzoo.demo.fit", fit)
    monkeypatch.setattr("fgzoo.demo.train", train)
    found = baselines(Result("srbn", tmp_path / "srbn", 4, seconds, {}), tmp_path, None)
    assert [result.epochs for result in found] == epochs
    assert len({result.folder for result in found}) == len(epochs)


def test_pictures_are_of_many_classes_in_whatever_order_images_lie() -> None:
    in_turn = [Record(str(index), index % 4) for index in range(16)]
    assert [record.target for record in of_many_classes(in_turn, 4)] == [0, 1, 2, 3]
    assert [record.target for record in of_many_classes(in_turn, 2)] == [0, 2]
    assert len({record.name for record in of_many_classes(in_turn, 8)}) == 8


def test_more_pictures_than_images_are_all_images() -> None:
    assert [record.name for record in of_many_classes([Record("b", 1), Record("a", 0)], 5)] == ["a", "b"]


def test_overlay_shows_the_image_where_the_map_is_one_and_dims_it_where_it_is_zero() -> None:
    image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    attention = torch.zeros(4, 4)
    attention[:, 2:] = 1.0
    plain = overlay(image, attention, strength=0.0)
    assert plain[0, 3].tolist() == pytest.approx([200 / 255] * 3)
    assert plain[0, 0].tolist() == pytest.approx([0.6 * 200 / 255] * 3)


def test_picture_has_a_row_an_image_and_a_column_a_map(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    one, three = (
        attention_picture(tmp_path / f"{steps}.png", images, torch.rand(2, steps, 32, 32), ["map"] * steps, ["a", "b"])
        for steps in (1, 3)
    )
    with Image.open(one) as narrow, Image.open(three) as wide:
        assert wide.width > narrow.width
        assert wide.height == narrow.height


def test_a_point_keeps_its_place_through_resize_and_crop() -> None:
    assert in_input_frame(64, 64, size=128, resize=128, crop=112) == (56, 56)
    assert in_input_frame(10, 20, size=64, resize=128, crop=128) == (20, 40)
