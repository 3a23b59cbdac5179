from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.onnx._internal.exporter import _registration

import fgzoo as package
from fgzoo import FineGrainedClassifier, MethodOutput
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.data.card import DataCard
from fgzoo.errors import CheckpointError, ExportError, UntrainedError, UsageError
from fgzoo.export import Format, exporting, parity
from fgzoo.export.exporting import checkpoint_name, export, summary
from fgzoo.export.graph import NamedOutputs
from fgzoo.export.parity import Parity, Run, compare, probes
from fgzoo.nn import activation_boxes
from fgzoo.prediction.rejection import Calibration, ClassMeans
from fgzoo.testing import evaluation_mode
from tests.builders import encode, picture
from tests.command import fgzoo
from tests.small import small

NAMES = ["Cardinal", "Crow", "Gull", "Möwe", "Ovenbird"]
CARD = DataCard("cub", NAMES, 64, 72, "squash", "bilinear", "pillow", "0123456789abcdef")
REPOSITORY = Path(package.__file__).parents[1]

README = (REPOSITORY / "fgzoo" / "checkpoints" / "README.md").read_text(encoding="utf-8")
#: What README shows of running a file without torch.
EXAMPLE = next(block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "onnxruntime" in block)


@pytest.fixture(scope="module", autouse=True)
def _one_registry() -> Any:
    """Torch collects its table of operations at every export, which takes longer than a tiny network."""
    collect = functools.cache(_registration.ONNXRegistry.from_torchlib.__func__)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(collect))
        yield


def counted(model: FineGrainedClassifier, card: DataCard = CARD) -> FineGrainedClassifier:
    model.trained, model.card = True, card
    return model.eval()


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both formats of one model are made of one trace."""
    for name in ("evaluation_network", "trace"):
        monkeypatch.setattr(exporting, name, functools.cache(getattr(exporting, name)))


def run_onnx(path: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]:
    """The file by onnxruntime alone, and what it says of itself."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert [value.name for value in session.get_inputs()] == ["images"]
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
    assert all(output.shape[0] == "batch" for output in session.get_outputs())

    def run(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))

    return run, json.loads(session.get_modelmeta().custom_metadata_map["fgzoo"])


def run_program(path: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]:
    files = {"fgzoo.json": ""}
    program = torch.export.load(path, extra_files=files)
    return program.module(), json.loads(files["fgzoo.json"])


# ---------------------------------------------------------------------- every method, both formats


#: Parents are the same classes without something.
@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("name", ["baseline", "rra", "iagn", "coarse2fine", "srbn"])
def test_every_method_answers_alike_in_both_formats_for_any_batch(name: str, tmp_path: Path) -> None:
    model = evaluation_mode(small(name, CARD, backbone="tiny_vgg"))
    with torch.no_grad():
        logits, features = model.logits_and_features(probes(8, 64, seed=9))
    targets = torch.arange(8) % len(CARD.class_names)
    means = ClassMeans.fit(features, targets, len(CARD.class_names))
    model.calibration = Calibration.fit(logits, targets, "cosine", features, means)
    # Read back and compared with torch on batches of 1, 2, 4 and 5.
    _, outputs = export(model, tmp_path / "model.pt2", "torch-export")
    assert [(output.kind, output.images, output.output, output.difference) for output in outputs] == [
        (kind, images, output, 0)
        for kind, images in (("random images", 8), ("glaring images", 4), ("synthetic birds", 4))
        for output in ("logits", "attention", "known")
    ]
    about, outputs = export(model, tmp_path / "model.onnx")
    assert [output.output for output in outputs] == [*about["outputs"]] * 3 == ["logits", "attention", "known"] * 3
    assert all(output.difference <= output.allowed for output in outputs)
    assert about["method"] == name
    run, _ = run_onnx(tmp_path / "model.onnx")
    for batch in (1, 7):
        images = probes(batch, 64, seed=10 + batch)
        with torch.no_grad():
            expected, known = model(images), model.calibration.scores(*model.logits_and_features(images))
        found = run(images)
        assert torch.allclose(found["known"], known, atol=1e-5)
        assert torch.allclose(found["logits"], expected.logits, atol=1e-4, rtol=1e-4)
        assert torch.allclose(found["attention"], expected.attention, atol=1e-3)
    for file in tmp_path.iterdir():
        assert str(REPOSITORY).encode() not in file.read_bytes()


def test_what_is_known_costs_no_pass_of_the_backbone(tmp_path: Path) -> None:
    model = evaluation_mode(small("iagn", CARD, backbone="tiny_vgg"))

    def convolutions() -> int:
        export(model, tmp_path / "model.onnx")
        return sum(node.op_type == "Conv" for node in onnx.load(tmp_path / "model.onnx").graph.node)

    before = convolutions()
    means = ClassMeans.fit(model.features(probes(4, 64, seed=9)), torch.arange(4), 4)
    model.calibration = Calibration(1.0, "cosine", (0.0, 0.05), (0.1, 0.2), 40, means)
    assert convolutions() == before


def test_a_file_says_what_one_must_know_to_run_it(onnx_file: Path) -> None:
    about = run_onnx(onnx_file)[1]
    outputs = about.pop("outputs")
    assert list(outputs) == ["logits", "attention", "known"]
    assert about.pop("torch") == torch.__version__
    assert about.pop("input").startswith("images, (batch, 3, image_size, image_size) float32")
    assert about.pop("opset") == next(x.version for x in onnx.load(onnx_file).opset_import if x.domain == "")
    assert about == {
        "checkpoint": "birds", "method": "baseline", "class": "fgzoo.methods.baseline.Baseline", "backbone": "test_resnet",
        "dataset": "cub", "fingerprint": "0123456789abcdef", "class_names": NAMES, "image_size": 64, "resize": 72,
        "resize_mode": "squash", "interpolation": "bilinear", "antialias": True, "crop": 64, "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "fgzoo": package.__version__, "temperature": 1.7, "score": "probability", "threshold": 0.5,
    }  # fmt: skip


def test_a_file_is_valid_onnx_and_one_file(onnx_file: Path) -> None:
    onnx.checker.check_model(str(onnx_file), full_check=True)
    assert [path.name for path in onnx_file.parent.iterdir() if path.name.startswith("birds")] == ["birds.onnx"]


# ---------------------------------------------------------------------- what people do with files


def test_openvino_answers_as_torch_does_and_says_the_same_of_itself(sure: FineGrainedClassifier, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    about, outputs = export(sure, tmp_path / "birds.xml", "openvino")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds.bin", "birds.xml"]
    assert {output.kind for output in outputs} == {"random images", "glaring images", "synthetic birds"}
    model = openvino.Core().read_model(tmp_path / "birds.xml")
    assert json.loads(model.get_rt_info("fgzoo").value) == about
    run = parity.read(tmp_path / "birds.xml", "openvino")
    for batch in (1, 7):
        images = probes(batch, 64, seed=batch)
        with torch.no_grad():
            assert torch.allclose(run(images)["logits"], sure(images).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("opset", [18, 23])
def test_opsets(opset: int, sure: FineGrainedClassifier, tmp_path: Path) -> None:
    about, _ = export(sure, tmp_path / "birds.onnx", opset=opset)
    assert about["opset"] == opset == next(x.version for x in onnx.load(tmp_path / "birds.onnx").opset_import if x.domain == "")


def test_an_opset_that_nobody_reads_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="export: opset 17; from 18 to 23"):
        export(bare(), tmp_path / "bare.onnx", opset=17)


@pytest.mark.parametrize("batch", [1, 7])
def test_shapes_may_be_fixed_afterwards(batch: int, sure: FineGrainedClassifier, onnx_file: Path, tmp_path: Path) -> None:
    tools = pytest.importorskip("onnxruntime.tools.onnx_model_utils")
    proto = onnx.load(onnx_file)
    tools.make_dim_param_fixed(proto.graph, "batch", batch)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    assert session.get_inputs()[0].shape == [batch, 3, 64, 64]
    images = probes(batch, 64, seed=batch)
    with torch.no_grad():
        assert torch.allclose(
            torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), sure(images).logits, atol=1e-4
        )


def test_weights_in_half_precision_are_exported_in_single(tmp_path: Path) -> None:
    model = small(card=CARD, backbone="test_resnet").half()
    export(model, tmp_path / "half.onnx")
    assert onnxruntime.InferenceSession(str(tmp_path / "half.onnx")).get_inputs()[0].type == "tensor(float)"
    assert model.dtype == torch.float16


def test_another_size_than_training_s(tmp_path: Path) -> None:
    model = small(card=CARD, backbone="test_resnet")
    model.calibration = Calibration(1.7, "probability", (0.0, 0.05), (0.1, 0.5), 40)
    save_safetensors(model, tmp_path / "weights.safetensors")
    result = fgzoo("export", "weights.safetensors", "--size", 96, "--output", "large.onnx")
    assert result.status == 0, result.err
    session = onnxruntime.InferenceSession("large.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["fgzoo"])
    assert (about["image_size"], about["crop"], about["resize"]) == (96, 96, 108)
    assert (about["temperature"], about["threshold"]) == (None, None)  # they were found at the checkpoint's own size
    assert session.get_inputs()[0].shape == ["batch", 3, 96, 96]


# ---------------------------------------------------------------------- without torch


@pytest.fixture(scope="module")
def sure() -> FineGrainedClassifier:
    """A model whose answers differ from image to image by percents, and that is never very sure."""
    model = small(card=CARD, backbone="test_resnet")
    with torch.no_grad():
        model.network.classifier.weight.mul_(0.1)  # type: ignore[operator, union-attr]
    model.calibration = Calibration(1.7, "probability", (0.0, 0.05, 0.5), (0.1, 0.5, 0.9), 40)
    return model


@pytest.fixture(scope="module")
def onnx_file(sure: FineGrainedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line writes."""
    folder = tmp_path_factory.mktemp("exported")
    save_safetensors(sure, folder / "weights.safetensors")
    result = fgzoo("export", folder / "weights.safetensors", "--output", folder / "birds.onnx")
    assert result.status == 0, result.err
    assert result.out == f"{folder / 'birds.onnx'}\n"
    differ = r"differ by at most [\d.e-]+ \(allowed [\d.e-]+\) on [48] [a-z ]+"
    said = r"fgzoo: [\d.]+ MB, opset \d+; against torch on 8 random images, 4 glaring images and 4 synthetic birds: "
    assert re.match(rf"{said}\w+ {differ}; \w+ {differ}; \w+ {differ}\n", result.err)
    assert all(f"{name} differ" in result.err for name in ("logits", "attention", "known"))
    assert result.err.count("\n") == 1
    # The name is the checkpoint's, not the file's.
    return with_about(folder / "birds.onnx", checkpoint="birds")


def with_about(path: Path, **changes: Any) -> Path:
    """The file with other values in its description."""
    proto = onnx.load(path)
    about = {**json.loads(proto.metadata_props[0].value), **changes}
    onnx.helper.set_model_props(proto, {"fgzoo": json.dumps(about)})
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("mode", "size", "form"), [("squash", (90, 131), "JPEG"), ("shortest", (211, 150), "JPEG"), ("shortest", (75, 300), "PNG")]
)
def test_the_example_runs_without_torch_and_answers_as_predict_does(
    mode: str, size: tuple[int, int], form: str, sure: FineGrainedClassifier, onnx_file: Path, tmp_path: Path
) -> None:
    (name,) = re.findall(r'InferenceSession\("(.+?)"', EXAMPLE)
    (tmp_path / name).write_bytes(onnx_file.read_bytes())
    with_about(tmp_path / name, resize_mode=mode)
    (tmp_path / "photo.jpg").write_bytes(encode(picture(3, width=size[0], height=size[1]), form))
    code = "import sys\nsys.modules['torch'] = sys.modules['fgzoo'] = None\n" + EXAMPLE
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    said_unknown = lines[-1] == "unknown"
    found = [line.split(maxsplit=1) for line in lines if line != "unknown"]
    sure.card = replace(CARD, resize_mode=mode)
    expected = sure.predict(tmp_path / "photo.jpg")[0]
    assert found[0][1] == expected.classes[0]
    assert said_unknown == (expected.label == "unknown")
    by_class = dict(zip(expected.classes, expected.probabilities, strict=True))
    assert {cls: float(share) for share, cls in found} == pytest.approx(by_class, abs=3e-3)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_pillow_resizes_as_training_did_to_two_levels_of_256(mode: str) -> None:
    for seed, size in enumerate([(500, 375), (331, 500), (100, 90), (64, 640)]):
        image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        ours = replace(CARD, resize_mode=mode).transform()(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
        wide = [72 if mode == "squash" else 72 * length // min(size) for length in size]
        x, y = (round((length - 64) / 2) for length in wide)
        theirs = image.resize(wide, Image.Resampling.BILINEAR).crop((x, y, x + 64, y + 64))
        difference = ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int)
        assert abs(difference).max() <= 2
        assert abs(difference).mean() < 0.3


# ---------------------------------------------------------------------- methods of one's own


class BareNetwork(nn.Module):
    """No maps; a root of what may be exactly zero."""

    def __init__(self, num_classes: int, twist: str) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, num_classes)
        self.twist = twist

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        means = images.mean(dim=(2, 3)) * torch.tensor([1.0, 0.0, 1.0])
        logits = self.classifier(means / (means.abs() + 1e-12).sqrt())
        if self.twist == "looks" and bool(logits.sum() > 0):
            logits = 2 * logits
        if self.twist == "counts":
            logits = logits / len(images)
        if self.twist == "deviates" and torch.compiler.is_exporting():
            logits = logits + 0.12
        return MethodOutput(logits, {"bare": logits}, images.new_zeros(images.shape[0], 0, 1, 1))


class Bare(FineGrainedClassifier):
    def __init__(self, num_classes: int, twist: str = "none") -> None:
        super().__init__(num_classes, "tiny_vgg", False)
        self.twist = twist

    def build_network(self) -> nn.Module:
        return BareNetwork(self.num_classes, self.twist)


def bare(twist: str = "none") -> FineGrainedClassifier:
    torch.manual_seed(0)
    return counted(Bare(len(NAMES), twist))


def test_a_method_without_maps_has_logits_alone_and_roots_of_zero_stay(tmp_path: Path) -> None:
    about, outputs = export(bare(), tmp_path / "bare.onnx")
    assert {output.output for output in outputs} == {"logits"}
    assert list(about["outputs"]) == ["logits"]
    images = probes(4, 64, seed=9)
    with torch.no_grad():
        assert torch.allclose(run_onnx(tmp_path / "bare.onnx")[0](images)["logits"], bare()(images).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("twist", "said"),
    [("looks", "Could not guard on data-dependent expression"), ("counts", r"its forward fixes the batch \(len\(images\) does")],
)
def test_a_method_that_decides_by_what_it_sees_or_by_the_batch_is_named(twist: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"BareNetwork cannot be traced for any batch: {said}") as caught:
        export(bare(twist), tmp_path / "bare.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_does_not_replace_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "bare.pt2"
    path.write_text("yesterday's")
    with pytest.raises(ExportError, match=r"logits differ from torch's on 8 of 8 random images, by up to 0\.12, where 0\.0"):
        export(bare("deviates"), path, "torch-export")
    assert path.read_text() == "yesterday's"
    assert [file.name for file in tmp_path.iterdir()] == ["bare.pt2"]


@pytest.mark.parametrize("how", ["compile", "recompute_backbone"])
def test_how_a_network_trained_does_not_matter_and_the_model_stays(how: str, tmp_path: Path) -> None:
    # Not run before, so that nothing is compiled here.
    model = counted(package.create_model("baseline", len(NAMES), "test_resnet", pretrained=False, **{how: True})).train()
    _, outputs = export(model, tmp_path / "model.pt2", "torch-export")
    assert all(output.difference == 0 for output in outputs)
    assert all(module.training for module in model.network.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---------------------------------------------------------------------- what counts as alike


class Thresholds(nn.Module):
    """Logits that jump where an image's first pixel is positive; the first images of a batch lie exactly there."""

    def __init__(self, on_the_edge: int) -> None:
        super().__init__()
        self.on_the_edge = on_the_edge

    def forward(self, images: Tensor) -> MethodOutput:
        pixel = images[:, 0, 0, 0]
        # What the probe itself had, so that nudges alone remain.
        edge = pixel - probes(len(images), 8, seed=len(images))[:, 0, 0, 0]
        value = torch.where(torch.arange(len(images)) < self.on_the_edge, edge, pixel)
        logits = torch.stack([(value > 0).float(), images.mean(dim=(1, 2, 3))], dim=1)
        return MethodOutput(logits, {}, images.new_zeros(len(images), 0, 1, 1))


def noise() -> list[Tensor]:
    return [probes(batch, 8, seed=batch) for batch in parity.BATCHES]


def test_where_roundings_decide_in_torch_itself_a_file_may_decide_otherwise() -> None:
    network = NamedOutputs(Thresholds(on_the_edge=1))

    def run(images: Tensor) -> dict[str, Tensor]:
        return network(images + 1e-6)  # type: ignore[no-any-return]

    (parity,) = compare(network, run, noise(), "random images")
    assert (parity.unsteady, parity.unsteady_difference) == (3, 1.0)
    assert 0 < parity.difference < 2e-6
    assert "on 8 random images, and by 1.0e+00 on 3 of them where roundings move torch's own" in str(parity)


def test_a_summary_names_what_was_compared_and_what_is_nearest_to_its_limit() -> None:
    parities = [
        Parity("logits", "random images", 2e-6, 1e-3, 8, 1, 0.5),
        Parity("attention", "random images", 3e-6, 1e-3, 8, 0, 0.0),
        Parity("logits", "given images", 2e-6, 1e-4, 3, 0, 0.0),
        Parity("attention", "given images", 1e-6, 1e-3, 3, 0, 0.0),
    ]
    assert summary(parities) == (
        "against torch on 8 random images and 3 given images: logits differ by at most 2.0e-06 (allowed 1.0e-03) on 8 random "
        "images, and by 5.0e-01 on 1 of them where roundings move torch's own; attention differ by at most 3.0e-06 (allowed "
        "1.0e-03) on 8 random images; logits differ by at most 2.0e-06 (allowed 1.0e-04) on 3 given images"
    )


def test_where_roundings_decide_most_answers_nothing_can_be_compared() -> None:
    network = NamedOutputs(Thresholds(on_the_edge=3))
    with pytest.raises(ExportError, match="on 6 of 8 random images roundings decide the network's own logits"):
        compare(network, network, noise(), "random images")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x + 1e-3, r"differ from torch's on 8 of 8 random images, by up to 0\.001, where 0\.0003 is allowed"),
        (lambda x: x * float("nan"), "differ from torch's on 8 of 8 random images, by up to nan"),
        (lambda x: torch.cat([x[:-1], x[-1:] + 1]), r"differ from torch's on 3 of 8 random images, by up to 1, where"),
        (lambda x: x[:1], r"logits have the shape \(1, 2\), torch's \(2, 2\); nothing was written"),
    ],
    ids=["a little", "nan", "one image", "shape"],
)
def test_other_answers_are_refused(change: Callable[[Tensor], Tensor], said: str) -> None:
    network = NamedOutputs(Thresholds(on_the_edge=0))
    with pytest.raises(ExportError, match=said):
        compare(network, lambda images: {"logits": change(network(images)["logits"])}, noise(), "random images")


def test_a_file_that_fails_on_a_batch_is_named() -> None:
    def run(images: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("Got invalid dimensions for input\nand more")

    with pytest.raises(ExportError, match=r"does not run on a batch of 1: Got invalid dimensions for input; nothing was written"):
        compare(NamedOutputs(Thresholds(0)), run, noise(), "random images")


class Clamped(FineGrainedClassifier):
    """Logits are the first sides of boxes round channels most of which peak at 6 exactly."""

    def build_network(self) -> nn.Module:
        return ClampedNetwork()


class ClampedNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 200, 8, stride=8)

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        boxes = activation_boxes((30 * self.stem(images)).clamp(0, 6), num_boxes=4)
        logits = boxes.flatten(1)[:, : len(NAMES)]
        return MethodOutput(logits, {"boxes": logits}, images.new_zeros(images.shape[0], 0, 1, 1))


def test_of_channels_that_are_clamped_alike_an_onnx_file_takes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, outputs = export(counted(Clamped(len(NAMES), "tiny_vgg", False)), tmp_path / "model.onnx")
    assert not any(output.unsteady for output in outputs)


# ---------------------------------------------------------------------- images that show something


def test_a_file_that_answers_otherwise_where_there_is_something_to_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deviate(monkeypatch, lambda images: images.abs().amax(dim=(1, 2, 3)) < 3)  # bytes of 0 to 255 are
    with pytest.raises(ExportError, match=r"logits differ from torch's on 4 of 4 synthetic birds, by up to 0\.7, where"):
        export(bare(), tmp_path / "bare.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []


def deviate(monkeypatch: pytest.MonkeyPatch, which: Callable[[Tensor], Tensor]) -> None:
    """Files answer otherwise for some images."""
    read = exporting.read

    def deviating(path: Path, form: Format) -> Run:
        run = read(path, form)
        return lambda images: {**run(images), "logits": run(images)["logits"] + 0.7 * which(images)[:, None]}

    monkeypatch.setattr(exporting, "read", deviating)


def test_images_of_ones_own_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(small(card=CARD, backbone="tiny_vgg"), tmp_path / "weights.safetensors")
    (tmp_path / "photos").mkdir()
    for index in range(10):
        picture(index).save(tmp_path / "photos" / f"{index}.png")
    arguments = ("export", "weights.safetensors", "--format", "torch-export", "--images", "photos/[1-9].png", "photos/0.png")
    result = fgzoo(*arguments)
    assert result.status == 0, result.err
    assert "against torch on 8 random images, 4 glaring images, 4 synthetic birds and 10 given images: logits" in result.err

    (tmp_path / "weights.pt2").write_text("yesterday's")
    Image.new("RGB", (50, 40), "white").save(tmp_path / "photos" / "0.png")
    deviate(monkeypatch, lambda images: images.std(dim=(2, 3)).amax(dim=1) == 0)
    result = fgzoo(*arguments)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "logits differ from torch's on 1 of 10 given images, by up to 0.7" in result.err
    assert (tmp_path / "weights.pt2").read_text() == "yesterday's"


def test_images_of_ones_own_may_be_in_memory(tmp_path: Path) -> None:
    image = picture(0)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    _, outputs = export(bare(), tmp_path / "bare.pt2", "torch-export", images=[image, pixels])
    assert (outputs[-1].kind, outputs[-1].images) == ("given images", 2)
    _, (*_, output) = export(bare(), tmp_path / "bare.pt2", "torch-export", images=image)
    assert (output.kind, output.images) == ("given images", 1)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (["photos"], "1 of 2 images cannot be read, the first because photos/broken.jpg is not an image that can be read"),
        (
            ["photos/good.png", "nowhere.png"],
            "1 of 2 images cannot be read, the first because nowhere.png cannot be read: ",
        ),
        (["empty"], "no images in 'empty'; files with the usual suffixes"),
    ],
)
def test_an_image_of_ones_own_that_cannot_be_read_is_named(images: list[str], said: str, tmp_path: Path) -> None:
    save_safetensors(small(card=CARD, backbone="tiny_vgg"), tmp_path / "weights.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    picture(0).save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    result = fgzoo("export", "weights.safetensors", "--format", "torch-export", "--images", *images)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"export: {said}" in result.err
    assert not (tmp_path / "weights.pt2").exists()


# ---------------------------------------------------------------------- what is refused before anything is computed


def test_untrained_weights_are_not_exported(tmp_path: Path) -> None:
    model = package.create_model("baseline", 5, "tiny_vgg", pretrained=False)
    with pytest.raises(UntrainedError, match="export: this Baseline has never been trained"):
        export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    model = bare()
    with torch.no_grad():
        model.network.classifier.bias[1] = float("nan")  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match=r"network\.classifier\.bias holds a value that is no finite number"):
        export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_what_onnx_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "LARGEST_ONNX", 10)
    with pytest.raises(ExportError, match=r"an ONNX file holds less than 2; take --format torch-export"):
        export(bare(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("model.pt2", "onnx", r"model\.pt2 must end with \.onnx"),
        ("model.onnx", "torch-export", r"model\.onnx must end with \.pt2"),
        ("model.onnx", "openvino", r"model\.onnx must end with \.xml"),
        ("model.XML", "openvino", r"model\.XML must end with \.xml"),
        ("model", "onnx", r"must end with \.onnx"),
        ("folder.onnx", "onnx", "is a folder; give a file in it"),
        ("model.onnx", "tflite", "format 'tflite' is none of onnx, openvino, torch-export"),
    ],
)
def test_another_name_is_refused(name: str, form: Format, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=said):
        export(bare(), tmp_path / name, form)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def none(name: str, *rest: Any) -> Any:
        return None if name in ("onnxscript", "onnxruntime") else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", none)
    with pytest.raises(UsageError, match=r"onnxscript and onnxruntime not installed; pip install 'fgzoo\[export\]'"):
        export(bare(), tmp_path / "model.onnx")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/below cannot be made \(Not a directory\); give another place by --output"):
        export(bare(), tmp_path / "file" / "below" / "model.onnx")


@pytest.mark.parametrize(
    ("verb", "output"), [("export", "theirs/model.onnx"), ("predict", "theirs/p.csv"), ("explain", "theirs")]
)
def test_a_folder_that_is_not_ones_own_is_named_by_every_verb(
    verb: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_safetensors(small(), tmp_path / "weights.safetensors")
    (tmp_path / "theirs").mkdir()
    access = os.access  # the superuser may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode, **how: Path(path).name != "theirs" and access(path, mode, **how))
    result = fgzoo(verb, "weights.safetensors", *([] if verb == "export" else ["photo.jpg"]), "--output", output)
    assert result.status == 2
    assert result.err.startswith(f"fgzoo: {verb}: ")
    assert result.err.endswith("theirs cannot be written to; give another place by --output\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("yesterday's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=r"cannot be written \(File too large\); what was there before is as it was"):
            export(bare(), path, "torch-export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "yesterday's"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_an_interruption_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    save_safetensors(small(card=CARD, backbone="tiny_vgg"), tmp_path / "weights.safetensors")
    monkeypatch.setattr(exporting, "compare", interrupt)
    assert fgzoo("export", "weights.safetensors", "--format", "torch-export").status == 130
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ckpt"], "no file or run folder 'nowhere.ckpt'"),
        (["weights.safetensors", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["weights.safetensors", "--output", "model.pt2"], "must end with .onnx"),
        ([], "the following arguments are required: checkpoint"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    save_safetensors(small(card=CARD, backbone="tiny_vgg"), tmp_path / "weights.safetensors")
    result = fgzoo("export", *arguments)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert said in result.err


def test_a_file_is_called_after_its_checkpoint(tmp_path: Path) -> None:
    save_safetensors(small(card=CARD, backbone="tiny_vgg"), tmp_path / "weights.safetensors")
    result = fgzoo("export", "weights.safetensors", "--format", "torch-export")
    assert (result.status, result.out) == (0, "weights.pt2\n"), result.err
    assert run_program(Path("weights.pt2"))[1]["checkpoint"] == "weights"


RUN_CONFIG = "seed_everything: 0\ntrainer: {}\nmodel: {}\ndata: {}\n"


def test_a_checkpoint_beside_its_runs_config_gives_the_runs_name(tmp_path: Path) -> None:
    folder = tmp_path / "birds-rra" / "000"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(RUN_CONFIG)
    with contextlib.chdir(folder):
        assert checkpoint_name("weights.safetensors", Path("weights.safetensors")) == "birds-rra-000"


@pytest.mark.parametrize("content", ["lr: 0.1\n", "- data\n- model\n", ""])
def test_another_programs_config_makes_no_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "birds.safetensors").touch()
    with contextlib.chdir(tmp_path):
        assert checkpoint_name("birds.safetensors", Path("birds.safetensors")) == "birds"


def test_a_run_gives_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "cub-rra" / "000"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(RUN_CONFIG)
    assert checkpoint_name("last", folder / "checkpoints" / "last.ckpt") == "cub-rra-000"
    assert checkpoint_name("best", folder / "checkpoints" / "best.ckpt") == "cub-rra-000-best"
    named = folder.rename(tmp_path / "mine")
    assert checkpoint_name("mine", named / "checkpoints" / "last.ckpt") == "mine"
    assert checkpoint_name("cub-rra", tmp_path / "cache" / "0123.safetensors") == "cub-rra"


def test_the_size_is_that_of_what_was_written(tmp_path: Path) -> None:
    save_safetensors(small(card=CARD, backbone="tiny_vgg"), tmp_path / "weights.safetensors")
    (tmp_path / "mine.bin").write_bytes(bytes(5_000_000))
    result = fgzoo("export", "weights.safetensors", "--format", "torch-export", "--output", "mine.pt2")
    said = re.search(r"fgzoo: ([\d.]+) MB", result.err)
    assert said
    assert float(said[1]) == pytest.approx((tmp_path / "mine.pt2").stat().st_size / 1e6, abs=0.06)
