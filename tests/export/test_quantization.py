"""Files in eight bits: what they are made of, and when they are refused."""

from __future__ import annotations

import json
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import Tensor, nn

from fgzoo import load
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.errors import ExportError, UsageError
from fgzoo.export.exporting import export
from fgzoo.export.graph import NamedOutputs, onnx_bytes, onnx_file, openvino_files, outputs_of, trace
from fgzoo.export.parity import prepared, probes, read
from fgzoo.export.quantization import (
    INT8_LIMITS,
    Loss,
    QuantizationImages,
    check_loss,
    measure,
    quantization_images,
    quantized,
    thinned,
)
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.output import MethodOutput
from fgzoo.prediction.rejection import Calibration
from tests.builders import make_folder, picture, save
from tests.command import fgzoo
from tests.small import CARD, NAMES, small


@pytest.fixture(scope="module")
def model() -> FineGrainedClassifier:
    return small(backbone="test_resnet")


@pytest.fixture(scope="module")
def images(model: FineGrainedClassifier) -> QuantizationImages:
    shown = [picture(index % 4, index) for index in range(24)]
    named = [NAMES.index(found.classes[0]) for found in model.predict(shown[16:])]
    return QuantizationImages(shown[:16], shown[16:], named, "given images")


def test_a_file_in_eight_bits_is_small_and_names_what_the_float_one_does(
    model: FineGrainedClassifier, images: QuantizationImages, tmp_path: Path
) -> None:
    export(model, tmp_path / "float.onnx")
    about, _ = export(model, tmp_path / "int8.onnx", quantization=images, force=True)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.6 * sizes[1]
    proto = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in proto.graph.node}
    assert json.loads(proto.metadata_props[0].value) == about
    assert about["int8"]["after"] >= 0.75
    assert about["int8"]["images"] == 8
    run = read(tmp_path / "int8.onnx", "onnx")
    for batch in (1, 7):
        found = run(probes(batch, 64, seed=batch))
        assert found["logits"].shape == (batch, 4)
        assert found["attention"].shape[0] == batch


def test_openvino_takes_the_same_eight_bits(model: FineGrainedClassifier, images: QuantizationImages, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    export(model, tmp_path / "float.xml", "openvino")
    about, _ = export(model, tmp_path / "int8.xml", "openvino", quantization=images, force=True)
    assert about["int8"]["after"] >= 0.75
    assert about["batch"] == 1
    sizes = [(tmp_path / f"{name}.bin").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.6 * sizes[1]


class TwoReaders(nn.Module):
    """Features behind both logits and a map: OpenVINO gets them wrong in eight bits when the batch is free."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.features = nn.Sequential(first, nn.ReLU6(), second, nn.ReLU6(), nn.Conv2d(16, 32, 1), nn.ReLU6())
        self.classifier = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> MethodOutput:
        features = self.features(images)
        logits = self.classifier(features.mean(dim=(2, 3)))
        weight = self.classifier.weight[logits.argmax(dim=1)]
        return MethodOutput(logits, {}, (weight[:, :, None, None] * features).sum(dim=1, keepdim=True))


def test_openvino_computes_eight_bits_as_onnxruntime_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    program = trace(NamedOutputs(TwoReaders().eval()), 32)
    about = {"method": "two readers", "outputs": outputs_of(program)} | INT8_LIMITS["openvino"]
    content = quantized(onnx_bytes(program, about), [probes(8, 32, seed=0)])
    onnx_file(content, about, tmp_path / "a.onnx")
    openvino_files(content, about, tmp_path / "a.xml")
    images = probes(5, 32, seed=1)
    found, wanted = read(tmp_path / "a.xml", "openvino")(images), read(tmp_path / "a.onnx", "onnx")(images)
    for name, answer in wanted.items():
        torch.testing.assert_close(found[name], answer, atol=1e-3, rtol=0)


def answering(*classes: int) -> Tensor:
    return torch.eye(4)[list(classes)]


@pytest.mark.parametrize(
    ("targets", "loss", "said"),
    [
        (
            [0, 1, 2, 3],
            Loss(1.0, 0.5, 2, 4, "test images", True),
            "int8: top-1 100.00 -> 50.00 %, 2 of 4 test images named otherwise",
        ),
        (
            [0, 1, 0, 0],
            Loss(0.5, 1.0, 2, 4, "test images", True),
            "int8: top-1 50.00 -> 100.00 %, 2 of 4 test images named otherwise",
        ),
        (None, Loss(1.0, 0.5, 2, 4, "test images", False), "int8: 2 of 4 test images named otherwise"),
    ],
)
def test_what_is_lost_is_accuracy_or_agreement_where_classes_are_not_known(
    targets: list[int] | None, loss: Loss, said: str
) -> None:
    before, after = iter([answering(0, 1), answering(2, 3)]), iter([answering(0, 1), answering(0, 0)])
    batches = [torch.zeros(2, 3, 8, 8)] * 2
    found = measure(lambda _: {"logits": next(before)}, lambda _: {"logits": next(after)}, batches, targets, "test images")
    assert found == loss
    assert str(found) == said


def test_an_answer_that_is_no_number_is_refused() -> None:
    with pytest.raises(ExportError, match="quantised file's logits are not finite"):
        measure(
            lambda _: {"logits": answering(0)},
            lambda _: {"logits": answering(0) * float("nan")},
            [torch.zeros(1, 3, 8, 8)],
            [0],
            "x",
        )


def test_more_than_a_point_is_refused_unless_it_is_forced() -> None:
    check_loss(Loss(0.8, 0.79, 5, 100, "test images", True), force=False)
    check_loss(Loss(0.8, 0.8, 0, 12, "test images", True, 0.0, 1 / 12), force=False)
    worse = Loss(0.8, 0.789, 5, 1000, "test images", True)
    with pytest.raises(
        ExportError, match=r"top-1 80\.00 -> 78\.90 %, .*: 1\.10 points lost, and 1 is allowed; nothing was written"
    ):
        check_loss(worse, force=False)
    check_loss(worse, force=True)


def test_a_file_that_calls_known_images_unknown_is_refused() -> None:
    worse = Loss(0.9, 0.9, 0, 100, "validation images", True, 0.05, 0.97)
    with pytest.raises(ExportError, match=r"92\.0 points more are unknown, and 5 are allowed; nothing was written"):
        check_loss(worse, force=False)
    check_loss(worse, force=True)


def test_a_loss_of_exactly_a_point_is_allowed_wherever_it_is() -> None:
    for right in range(1, 101):
        before, after = (answering(*[0] * count, *[1] * (100 - count)) for count in (right, right - 1))
        images = [torch.zeros(100, 3, 8, 8)]
        found = measure(lambda _, now=before: {"logits": now}, lambda _, now=after: {"logits": now}, images, [0] * 100, "x")
        check_loss(found, force=False)


def test_what_is_called_unknown_before_and_after_is_measured(
    model: FineGrainedClassifier, images: QuantizationImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([torch.tensor([0.9, 0.2, 0.6, 0.7]), torch.tensor([0.9, 0.2, 0.4, 0.3])])

    def run(_: Tensor) -> dict[str, Tensor]:
        return {"logits": answering(0, 1, 2, 3), "known": next(scores)}

    found = measure(run, run, [torch.zeros(4, 3, 8, 8)], [0, 1, 2, 3], "test images", threshold=0.5)
    assert (found.unknown_before, found.unknown_after) == (0.25, 0.75)
    assert str(found).endswith("0 of 4 test images named otherwise, 25.00 -> 75.00 % of them called unknown")
    monkeypatch.setattr(model, "calibration", Calibration(1.0, "probability", (0.0, 0.05), (1.5, 2.0), 40))
    about, _ = export(model, tmp_path / "int8.onnx", quantization=images, force=True)
    assert (about["int8"]["unknown_before"], about["int8"]["unknown_after"]) == (1.0, 1.0)


def test_a_refused_file_leaves_the_old_one(
    model: FineGrainedClassifier, images: QuantizationImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.onnx").write_text("yesterday's")
    monkeypatch.setattr("fgzoo.export.quantization.LARGEST_LOSS", -1.0)
    with pytest.raises(ExportError, match="points lost"):
        export(model, tmp_path / "mine.onnx", quantization=images)
    assert (tmp_path / "mine.onnx").read_text() == "yesterday's"


# ---------------------------------------------------------------------- which images


def test_a_run_is_calibrated_on_its_training_images_and_measured_on_those_held_out(trained: SimpleNamespace) -> None:
    found = quantization_images(load(trained.run), trained.file, [])
    assert (len(found.calibration), len(found.measured), found.targets, found.kind) == (6, 6, [0, 0, 1, 1, 2, 2], "test images")
    assert not {str(path) for path in found.calibration} & {str(path) for path in found.measured}


def test_given_images_have_the_classes_of_their_folders(tmp_path: Path, model: FineGrainedClassifier) -> None:
    root = make_folder(tmp_path / "photos", 4, 2, ())
    for number, name in enumerate(NAMES):
        (root / f"class {number}").rename(root / name)
    paths = sorted(root.rglob("*.jpg"))
    found = quantization_images(model, Path("weights.safetensors"), paths)
    assert (list(found.calibration), list(found.measured)) == (paths[::2], paths[1::2])
    assert found.targets == [0, 1, 2, 3]
    paths[1].rename(tmp_path / "elsewhere.jpg")
    assert quantization_images(model, Path("weights.safetensors"), [paths[0], tmp_path / "elsewhere.jpg"]).targets is None


def test_a_folder_has_its_classs_name_however_its_accents_are_stored(tmp_path: Path) -> None:
    birds = small(card=replace(CARD, class_names=["Amsel", "Möwe"]), backbone="test_resnet")
    paths = [save(tmp_path / unicodedata.normalize("NFD", "Möwe") / f"{number}.jpg") for number in range(2)]
    assert quantization_images(birds, Path("weights.safetensors"), paths).targets == [1]


def test_weights_in_half_precision_are_quantised_by_images_in_single() -> None:
    (batch,) = prepared(small(backbone="test_resnet").half(), [picture(0)])
    assert batch.dtype == torch.float32


def test_without_images_there_is_nothing_to_calibrate_on(model: FineGrainedClassifier) -> None:
    with pytest.raises(
        UsageError, match=r"--quantize int8 needs training images, and none are found \(data\.root: where is 'folder'"
    ):
        quantization_images(model, Path("weights.safetensors"), [])


def test_other_images_of_the_same_classes_calibrate_nothing(trained: SimpleNamespace, tmp_path: Path) -> None:
    root = shutil.copytree(trained.root, tmp_path / "data")
    listed = (root / "images.txt").read_text().splitlines()
    shutil.copy(root / "images" / listed[0].split()[1], root / "images" / listed[0].split()[1].replace(".jpg", "b.jpg"))
    (root / "images.txt").write_text("\n".join([listed[0].replace(".jpg", "b.jpg"), *listed[1:]]) + "\n")
    run = shutil.copytree(trained.run, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(trained.root), str(root)))
    with pytest.raises(UsageError, match=r"the images listed in .*data are not those that the weights were trained on"):
        quantization_images(load(run), run / "checkpoints" / "last.ckpt", [])


def test_few_of_many_are_spread_evenly() -> None:
    assert list(thinned(range(10), 4)) == [0, 3, 6, 9]
    assert list(thinned(range(3), 4)) == [0, 1, 2]
    assert list(thinned([], 4)) == []


def test_the_verb_says_what_eight_bits_cost(trained: SimpleNamespace) -> None:
    result = fgzoo("export", trained.run, "--quantize", "int8", "--force", "--output", "mine.onnx")
    assert result.status == 0, result.err
    assert "; int8: top-1 " in result.err
    assert "of 6 test images named otherwise" in result.err


def test_a_program_of_torch_is_not_quantised(tmp_path: Path, model: FineGrainedClassifier) -> None:
    save_safetensors(model, tmp_path / "mine.safetensors")
    result = fgzoo("export", "mine.safetensors", "--quantize", "int8", "--format", "torch-export")
    assert (result.status, result.err) == (
        2, "fgzoo: export: --quantize int8 goes by onnxruntime; take --format onnx or openvino\n"
    )  # fmt: skip
