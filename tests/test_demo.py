"""The demo, at a hundredth of its size."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.demo import Result, demo, write_photos
from fgzoo.errors import UsageError

TINY = ["--data.birds", "{classes: 4, train_per_class: 8, test_per_class: 4, size: 64}", "--data.image_size", "64"]
TINY += ["--data.resize", "72", "--data.batch_size", "8", "--trainer.accelerator", "cpu"]
METRICS = {f"test/{name}": 0.5 for name in ("top1", "top5", "nll", "ece")}

BIRDS = SyntheticBirds(Birds(4, 8, 4, 64))


def test_demo_trains_compares_and_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(method="rra", output=tmp_path / "demo", epochs=1, photos=2, more=TINY)
    shown = capsys.readouterr().out
    assert "$ fgzoo fit --config birds/rra --trainer.max_epochs 1 --data.birds '{classes: 4" in shown
    assert "The baseline had as many epochs" in shown
    assert "Chance is 25.0 %" in shown
    assert f"Where it looked: {(tmp_path / 'demo' / 'page' / 'index.html').resolve()}" in shown
    assert len(list((tmp_path / "demo" / "photos").glob("*.png"))) == 2
    for method in ("rra", "baseline"):
        assert "test/top1" in (tmp_path / "demo" / method / "metrics.csv").read_text()


@pytest.mark.parametrize(("seconds", "epochs"), [(21.0, [4, 4, 8]), (10.0, [4, 4])])
def test_baseline_gets_as_many_epochs_and_as_much_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, epochs: list[int]
) -> None:
    trained = []

    def train(method: str, folder: Path, epochs: int | None, *_: object) -> Result:
        trained.append(epochs or 4)
        return Result(method, folder, trained[-1], seconds if method == "rra" else 2.5 * trained[-1], METRICS)

    monkeypatch.setattr("fgzoo.demo.train", train)
    monkeypatch.setattr("fgzoo.demo.run", lambda *_: None)
    demo(output=tmp_path, more=TINY)
    assert trained == epochs


def test_a_method_without_a_recipe_for_the_birds_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--method wsdn: no recipe for the birds; there are baseline, bcnn"):
        demo("wsdn", tmp_path)


def test_photos_are_of_many_classes(tmp_path: Path) -> None:
    write_photos(BIRDS, BIRDS.listing().test, tmp_path, 4)
    assert len({path.stem.rpartition(" ")[0] for path in tmp_path.iterdir()}) == 4
    with Image.open(next(tmp_path.iterdir())) as photo:
        assert photo.size == (64, 64)


def test_more_photos_than_images_are_all_images(tmp_path: Path) -> None:
    write_photos(BIRDS, BIRDS.listing().test, tmp_path, 100)
    assert len(list(tmp_path.iterdir())) == 16
