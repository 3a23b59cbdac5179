from __future__ import annotations

import io
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fgzoo import list_models, load
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.errors import TrainingError, UntrainedError, UsageError
from fgzoo.interpret import pictures
from fgzoo.interpret.explanation import Explanation, class_index, explain
from fgzoo.interpret.metrics import grad_cam
from fgzoo.interpret.overlays import overlay
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.baseline import Baseline, BaselineNetwork
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.passes import shared_passes
from fgzoo.prediction.rejection import Calibration, ClassMeans
from fgzoo.testing import NUM_CLASSES, check_finite
from tests.builders import encode, picture
from tests.command import Result, fgzoo
from tests.small import CARD, NAMES, small

WIDE = picture(1, width=130, height=70)


@pytest.fixture(scope="module")
def trained(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The run that all tests share, and three photos."""
    folder = tmp_path_factory.mktemp("photos")
    photos = []
    for index in range(3):
        photos.append(folder / f"photo {index}.png")
        photos[-1].write_bytes(encode(picture(index, width=50 + 20 * index), "PNG"))
    return SimpleNamespace(run=trained.run, photos=photos)


def run(trained: SimpleNamespace, *arguments: object) -> Result:
    return fgzoo("explain", trained.run, *arguments, "--device", "cpu", "--num-workers", 0)


def one(model: FineGrainedClassifier, image: Any = WIDE, **how: Any) -> Explanation:
    (found,) = explain(model, image, **how)
    return found


def inputs(model: FineGrainedClassifier, image: Image.Image = WIDE) -> Tensor:
    """The image as the network takes it, (1, 3, H, W)."""
    upright = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return model.normalize(model.transform(upright)[None])


# ---------------------------------------------------------------------- every method


@pytest.mark.parametrize("name", list_models())
def test_every_method_explains(name: str) -> None:
    model = small(name)
    found = one(model, explained="Gull")
    assert found.error is None
    assert sorted(found.classes) == sorted(NAMES)
    assert found.maps.shape == (len(found.names), 64, 64)
    assert len(found.names) >= 1
    assert found.maps.min() >= 0
    assert found.maps.max() <= 1
    assert found.cam.shape == (64, 64)


@pytest.mark.parametrize("name", ["baseline", "rra"])
def test_maps_are_those_of_the_method_and_names_are_its_own(name: str) -> None:
    model = small(name)
    found = one(model)
    own = model.explain(inputs(model), torch.tensor([NAMES.index(found.classes[0])]))[0]
    assert torch.allclose(found.maps, own, atol=1e-5)
    assert list(found.names) == model.map_names(len(own))


def test_probabilities_are_those_of_predict() -> None:
    model = small()
    found, (predicted,) = one(model, top_k=3), model.predict(WIDE, top_k=3)
    assert found.classes == predicted.classes
    assert found.probabilities == pytest.approx(predicted.probabilities, abs=1e-5)
    assert (found.explained, found.share) == (found.classes[0], found.probabilities[0])


@pytest.mark.parametrize("method", ["baseline", "rra", "iagn", "coarse2fine", "srbn"])
def test_grad_cam_is_of_the_same_class(method: str) -> None:
    model = small(method)
    layer = next(module for module in model.network.modules() if isinstance(module, Backbone))
    for name in NAMES[:2]:
        found = one(model, explained=name, top_k=4)
        wanted = grad_cam(lambda x: model(x).logits, layer, inputs(model), torch.tensor([NAMES.index(name)]))
        assert torch.allclose(found.cam, wanted[0], atol=1e-5)
        assert (found.explained, found.share) == (name, dict(zip(found.classes, found.probabilities, strict=True))[name])


@pytest.mark.parametrize("method", ["baseline", "rra", "iagn", "srbn"])
def test_logits_maps_and_grad_cam_share_their_passes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = small(method), Counter[tuple[int, float]]()
    compute = Backbone._levels_of

    def counted(self: Backbone, images: Tensor, depth: int | None) -> list[Tensor]:
        passes[id(self), images.double().sum().item()] += 1
        return compute(self, images, depth)

    monkeypatch.setattr(Backbone, "_levels_of", counted)
    one(model)
    assert set(passes.values()) == {1}


def test_shared_passes_end_with_the_explanation() -> None:
    model = small()
    backbone = model.network.backbone
    with shared_passes(model.network):
        first, second = (backbone(inputs(model))[-1] for _ in range(2))
        second.zero_()  # a caller's own copy
        assert torch.equal(first, backbone(inputs(model))[-1])
    assert "forward" not in vars(backbone)


def test_a_gradient_to_the_images_passes_through_shared_passes() -> None:
    model = small()
    images = inputs(model).requires_grad_()
    with shared_passes(model.network):
        model(images.detach())
        model(images).logits.sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_image_is_what_the_network_saw() -> None:
    card = replace(CARD, resize=72, resize_mode="shortest")
    model = small(card=card)
    found = one(model)
    assert torch.equal(found.image, model.transform(torch.from_numpy(np.array(WIDE)).permute(2, 0, 1)))


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    assert class_index(["Ara", "Häher"], unicodedata.normalize("NFD", "Häher")) == 1  # as macOS types it
    with pytest.raises(UsageError, match=r"no class 'Cardnal'.*'Cardinal'"):
        one(small(), explained="Cardnal")


@pytest.mark.parametrize("how", [{"top_k": 0}, {"batch_size": 0}, {"num_workers": -1}])
def test_sizes_out_of_range_are_refused(how: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"explain: {next(iter(how))}"):
        explain(small(), WIDE, **how)


def test_an_untrained_model_is_refused() -> None:
    model = small()
    model.trained = False
    with pytest.raises(UntrainedError, match=r"^explain: "):
        explain(model, WIDE)


def test_explanations_come_in_order_with_errors_between(tmp_path: Path) -> None:
    images = [picture(0), tmp_path / "nowhere.jpg", picture(1), picture(2), tmp_path / "neither.jpg"]
    model = small()
    found = list(explain(model, images, batch_size=2))
    assert [bool(each.error) for each in found] == [False, True, False, False, True]
    for each, image in zip(found, images, strict=True):
        if not each.error:
            assert torch.allclose(each.maps, one(model, image).maps, atol=1e-5)


def test_shares_of_the_evidence_are_known_of_attention_pooling_alone() -> None:
    assert one(small("rra")).map_shares == ()
    found = one(small("coarse2fine"))
    assert len(found.map_shares) == len(found.names) - 1 == 4  # the mask has none
    assert sum(found.map_shares) == pytest.approx(1)


def test_the_modes_stay_as_they_were() -> None:
    model = small().train()
    one(model)
    assert all(module.training for module in model.modules())


def test_a_compiled_model_explains_the_same() -> None:
    compiled, plain = one(small(compile=True)), one(small())
    assert torch.allclose(compiled.maps, plain.maps)
    assert torch.allclose(compiled.cam, plain.cam)


# ---------------------------------------------------------------------- a method of one's own


class _NoMaps(BaselineNetwork):
    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        output = super().forward(images, targets, keys)
        return output._replace(attention=output.attention[:, :0])


class NoMaps(Baseline):
    """Looks everywhere."""

    def build_network(self) -> nn.Module:
        return self.build(_NoMaps, backbone=self.make_backbone())


class _Pixels(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(3, num_classes)

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        logits = self.classify(images.mean(dim=(2, 3)))
        return MethodOutput(logits, {"pixels": logits}, images.new_ones(len(images), 2, 4, 4))


class NoBackbone(FineGrainedClassifier):
    """Has no backbone, and maps that are not enlarged."""

    def build_network(self) -> nn.Module:
        return _Pixels(self.num_classes)

    def explain(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        return torch.rand(len(images), 2, 4, 4)


class _Apart(BaselineNetwork):
    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        with torch.no_grad():
            return super().forward(images, targets, keys)


class Frozen(Baseline):
    """Lets no gradient through."""

    def build_network(self) -> nn.Module:
        return self.build(_Apart, backbone=self.make_backbone())


class FlatMaps(Baseline):
    """Forgets a dimension."""

    def explain(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        return super().explain(images, targets)[:, 0]


class FewNames(Baseline):
    """Names none of its maps."""

    def map_names(self, count: int) -> list[str]:
        return []


class FlatShares(Baseline):
    """Has one share for all images."""

    def map_shares(self, images: Tensor, targets: Tensor) -> Tensor:
        return torch.ones(1)


class ManyShares(Baseline):
    """Has more shares than maps."""

    def map_shares(self, images: Tensor, targets: Tensor) -> Tensor:
        return torch.ones(len(images), 2)


class NotFinite(Baseline):
    """Draws maps that are no numbers."""

    def explain(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        return super().explain(images, targets) * float("nan")


class SharesNotFinite(Baseline):
    """Divides nothing by nothing."""

    def map_shares(self, images: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(len(images), 1) / 0


def own(cls: type[FineGrainedClassifier]) -> FineGrainedClassifier:
    model = cls(len(NAMES), "test_efficientnet", pretrained=False)
    model.card, model.trained = CARD, True
    return model


def test_a_method_without_maps_has_grad_cam_alone() -> None:
    found = one(own(NoMaps))
    assert (found.maps.shape, found.names) == ((0, 64, 64), ())
    assert found.cam is not None


@pytest.mark.parametrize("cls", [NoBackbone, Frozen])
def test_a_network_that_grad_cam_cannot_read_has_its_own_maps_alone(cls: type[FineGrainedClassifier]) -> None:
    found = one(own(cls))
    assert found.cam is None
    assert found.maps.shape == (len(found.names), 64, 64)


@pytest.mark.parametrize(
    ("cls", "said"),
    [(FlatMaps, r"\(1, 64, 64\)"), (FewNames, "0 names"), (FlatShares, r"shape \(1,\)"), (ManyShares, r"shape \(1, 2\)")],
)
def test_maps_that_are_not_as_promised_are_refused(cls: type[FineGrainedClassifier], said: str) -> None:
    with pytest.raises(UsageError, match=f"{cls.__name__}.*{said}"):
        one(own(cls))


@pytest.mark.parametrize("cls", [NotFinite, SharesNotFinite])
def test_maps_that_are_no_numbers_are_an_error_of_their_image(cls: type[FineGrainedClassifier]) -> None:
    assert "not finite" in str(one(own(cls)).error)


def test_the_suite_of_methods_refuses_shares_that_are_no_numbers() -> None:
    with pytest.raises(AssertionError, match=r"map_shares\(\) are not finite"):
        check_finite(lambda: SharesNotFinite(NUM_CLASSES, "test_efficientnet", pretrained=False))


def test_a_machine_without_memory_for_grad_cam_is_no_network_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(TrainingError, match="explain: no memory left for an image"):
        one(small())


# ---------------------------------------------------------------------- what is unknown


def by_cosine(threshold: float) -> Calibration:
    means = ClassMeans(torch.ones(len(NAMES), small().embed(WIDE).shape[1]))
    return Calibration(1.0, "cosine", (0.0, 0.05), (threshold, threshold), 40, means)


@pytest.mark.parametrize("found", [Calibration(2.0, "probability", (0.0, 0.05), (0.0, 0.5), 40), by_cosine(0.5)])
def test_what_predict_calls_unknown_is_unknown(found: Calibration) -> None:
    model = small()
    model.calibration = found
    (score,) = model.predict(WIDE)
    for threshold, accepted in ((-1.1, True), (1.1, False)):
        model.calibration = replace(found, thresholds=(threshold, threshold))
        assert model.predict(WIDE)[0].accepted is one(model).accepted is accepted
    assert one(model).answers.startswith(f"unknown; looks most like: {score.classes[0]} ")


def test_unknown_images_are_counted_and_shown_so(trained: SimpleNamespace, tmp_path: Path) -> None:
    model = small()
    model.calibration = Calibration(1.0, "probability", (0.0, 0.05), (1.5, 2.0), 40)
    save_safetensors(model, tmp_path / "model.safetensors")
    result = run(SimpleNamespace(run="model.safetensors"), *trained.photos, "--output", "out")
    assert "; 3 unknown" in result.err
    assert (tmp_path / "out" / "index.html").read_text().count(">unknown; looks most like:<") == 3


# ---------------------------------------------------------------------- PNG files


def example(hot: tuple[int, int] = (40, 9), classes: tuple[str, ...] = ("Gull", "Crow")) -> Explanation:
    """An explanation of a grey image with two maps; the first is one round `hot` (row, column) and zero elsewhere."""
    maps = torch.zeros(2, 64, 64)
    maps[0, hot[0] - 3 : hot[0] + 4, hot[1] - 3 : hot[1] + 4] = 1
    maps[1] = torch.linspace(0, 1, 64)[:, None]
    image = torch.full((3, 64, 64), 110, dtype=torch.uint8)
    return Explanation(classes, (0.75, 0.25), classes[0], 0.75, image, maps, ("step 1", "step 2"), maps[1].T.contiguous())


def written(folder: Path, name: str, found: Explanation) -> Path:
    assert list(pictures.write_pictures(folder, [Path(name)], [found])) == [found]
    (own,) = folder.iterdir()
    return own


def test_an_overlay_is_hot_where_the_map_is(tmp_path: Path) -> None:
    own = written(tmp_path, "a.jpg", example(hot=(40, 9)))
    pixels = np.asarray(Image.open(own / "01_step_1.png")).astype(float).sum(axis=2)
    rows, columns = np.nonzero(pixels == pixels.max())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (37, 43, 6, 12)


def test_an_image_has_a_file_a_map_and_a_sheet(tmp_path: Path) -> None:
    own = written(tmp_path, "folder/a bird.jpg", example())
    assert own.name == "001_a_bird"
    names = ["00_image.png", "01_step_1.png", "02_step_2.png", "03_Grad-CAM.png", "sheet.png"]
    assert sorted(path.name for path in own.iterdir()) == names
    assert Image.open(own / "02_step_2.png").size == (64, 64)
    assert np.array_equal(np.asarray(Image.open(own / "00_image.png")), np.full((64, 64, 3), 110))
    drawn = (255 * overlay(example().image, example().maps[1])).round()
    assert np.array_equal(np.asarray(Image.open(own / "02_step_2.png")), drawn)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../../etc/passwd", "007_passwd"),
        ("<img src=x onerror=alert(1)>.jpg", "007_img_src_x_onerror_alert_1"),
        ("ü/grüner Vogel.jpg", "007_grüner_Vogel"),
        ("...", "007_image"),
        ("caf\udce9.jpg", "007_caf"),
        ("x" * 300 + ".jpg", "007_" + "x" * 48),
    ],
)
def test_a_folder_is_named_by_what_every_file_system_takes(name: str, folder: str) -> None:
    assert pictures.folder_name(7, 12, Path(name)) == folder


def test_numbers_are_as_wide_as_the_last() -> None:
    assert pictures.folder_name(7, 12345, Path("a.jpg")) == "00007_a"


def test_a_sheet_of_many_maps_and_a_long_title_fits() -> None:
    tile = Image.new("RGB", (448, 448))
    page = pictures.sheet("long " * 500 + "\nB\udce9", [("a name that is much too long " * 9, tile)] * 34)
    assert page.width < 1500
    assert page.height < 2000


# ---------------------------------------------------------------------- the command


def test_a_page_and_png_files(trained: SimpleNamespace, tmp_path: Path) -> None:
    result = run(trained, *trained.photos, "--output", "out/deep", "--top-k", 2, "--png")
    assert result.status == 0, result.err
    out = tmp_path / "out" / "deep"
    assert result.out == "out/deep/index.html\n"
    assert sorted(path.name for path in out.iterdir()) == ["001_photo_0", "002_photo_1", "003_photo_2", "index.html"]
    assert (out / "001_photo_0" / "sheet.png").is_file()
    assert "3 images in" in result.err


def test_the_page_alone(trained: SimpleNamespace, tmp_path: Path) -> None:
    assert run(trained, *trained.photos, "--output", "out").status == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


def test_the_page_names_what_it_was_made_with(trained: SimpleNamespace, tmp_path: Path) -> None:
    run(trained, trained.photos[0], "--output", "out")
    text = (tmp_path / "out" / "index.html").read_text()
    card = load(trained.run).card
    for said in ("<dd>run</dd>", "baseline", "test_efficientnet", f"{card.dataset}, 3 classes", "64 × 64", "Grad-CAM"):
        assert said in text
    assert str(trained.run) not in text


def test_a_class_by_name(trained: SimpleNamespace, tmp_path: Path) -> None:
    card = load(trained.run).card
    name = card.class_names[2]
    assert run(trained, trained.photos[0], "--output", "out", "--class", name).status == 0
    assert f'"explained":"{name}"' in (tmp_path / "out" / "index.html").read_text()


def test_bad_files_are_entries_and_a_run_without_any_good_fails(trained: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    result = run(trained, trained.photos[0], "text.jpg", "nowhere.jpg", "--output", "out")
    assert result.status == 0
    assert "2 without an answer" in result.err
    text = (tmp_path / "out" / "index.html").read_text()
    assert "nowhere.jpg cannot be read" in text
    assert "text.jpg is not an image" in text
    assert run(trained, "text.jpg", "nowhere.jpg", "--output", "out").status == 1


def test_a_list_on_standard_input(trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in trained.photos)))
    assert "3 images in" in run(trained, "-", "--output", "out").err


REFUSED: dict[str, Callable[[SimpleNamespace], list[object]]] = {
    "--output": lambda trained: [trained.photos[0]],
    "is a file": lambda trained: [trained.photos[0], "--output", trained.photos[1]],
    "no class 'Dodo'": lambda trained: [trained.photos[0], "--output", "out", "--class", "Dodo"],
    "no images in 'empty'": lambda trained: ["empty", "--output", "out"],
    "--device tpu": lambda trained: [trained.photos[0], "--output", "out", "--device", "tpu"],
    "--top-k: 0 does not conform": lambda trained: [trained.photos[0], "--output", "out", "--top-k", 0],
}


@pytest.mark.parametrize("said", REFUSED)
def test_wrong_usage_is_one_line_and_writes_nothing(trained: SimpleNamespace, tmp_path: Path, said: str) -> None:
    (tmp_path / "empty").mkdir()
    # The option given last counts.
    result = fgzoo("explain", trained.run, "--device", "cpu", "--num-workers", 0, *REFUSED[said](trained))
    assert result.status == 2
    assert result.err.startswith("fgzoo: explain: ")
    assert result.err.count("\n") == 1
    assert said.removeprefix("--device ") in result.err
    assert not (tmp_path / "out").exists()


def test_a_run_that_breaks_off_leaves_the_old_page(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("old")

    def breaking(folder: Path, paths: list[Path], found: Iterator[Explanation]) -> Iterator[Explanation]:
        yield next(found)
        raise OSError("No space left on device")

    monkeypatch.setattr(pictures, "write_pictures", breaking)
    result = run(trained, *trained.photos, "--output", "out", "--png")
    assert result.status == 1
    assert "No space left" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    assert (tmp_path / "out" / "index.html").read_text() == "old"


@pytest.mark.parametrize("verb", ["explain", "predict"])
def test_help_answers_without_importing_torch(verb: str) -> None:
    code = f"""
import atexit, sys
from fgzoo.cli import main
atexit.register(lambda: print('torch' in sys.modules))
main(['{verb}', '--help'])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("False\n")
    assert "--top-k" in result.stdout
