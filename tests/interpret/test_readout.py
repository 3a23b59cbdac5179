"""What a linear classifier can tell from what a method's classifiers read, before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fgzoo
from fgzoo import FGVCDataModule, create_model
from fgzoo.data.synthetic import Birds
from fgzoo.errors import UsageError
from fgzoo.interpret.readout import PARTS, PENALTIES, calibrate, classifier_inputs, final_classifiers, readout, ridge_accuracy
from fgzoo.methods import available
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn import Backbone, EvidenceHead, MethodOutput
from fgzoo.recipes import list_recipes, read_recipe
from tests.small import small

IMAGES = 360
#: The least share of what pooled features give a ridge classifier that a method's own features must keep.
KEPT = 0.9
#: What makes the preset's methods small enough for a test.
SMALLER: dict[str, dict[str, Any]] = {
    "rra": {"steps": 3},
    "iagn": {"feature_size": 64},
    "pmg": {"feature_size": 128},
    "srbn": {"second_backbone": None, "rank": 128, "projection": 64, "hidden_size": 32},
    "bcnn": {"second_backbone": None},
    "bcnn-spp": {"second_backbone": None},
}


def preset(name: str) -> dict[str, Any]:
    """Arguments of a method by the preset `small`."""
    part = f"small/{name}"
    arguments: dict[str, Any] = read_recipe(part if part in list_recipes() else "small")["model"]["init_args"]
    return arguments


@pytest.fixture(scope="module")
def birds() -> list[tuple[Tensor, Tensor]]:
    data = FGVCDataModule(
        "birds",
        image_size=112,
        resize=128,
        eval_batch_size=50,
        num_workers=0,
        birds=Birds(train_per_class=1, test_per_class=IMAGES // 12),
    )
    data.setup("test")
    return [(images, targets) for images, targets, _ in data.test_dataloader()]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged baseline's backbone, as a file of pretrained weights."""
    model = fgzoo.load("baseline_birds")
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file({name: value.float().contiguous() for name, value in model.network.backbone.model.state_dict().items()}, path)
    return path


def accuracy(name: str, birds: list[tuple[Tensor, Tensor]], weights: Path, **arguments: Any) -> float:
    """Of a ridge classifier on half of the images, of the other half."""
    torch.manual_seed(0)
    own = {"backbone": "test_resnet", "pretrained": False, "backbone_weights": weights, "optimizer": "adamw"}
    model = create_model(name, 12, **{**arguments, **own})
    half = len(birds) // 2
    return readout(model, birds[:half], birds[half:]).top1


@pytest.fixture(scope="module")
def pooled(birds: list[tuple[Tensor, Tensor]], weights: Path) -> float:
    return accuracy("baseline", birds, weights)


@pytest.mark.parametrize("name", [name for name in available() if name != "baseline"])
def test_what_the_classifiers_read_keeps_what_pooled_features_tell(
    name: str, birds: list[tuple[Tensor, Tensor]], weights: Path, pooled: float
) -> None:
    assert pooled > 0.6
    assert accuracy(name, birds, weights, **{**preset(name), **SMALLER.get(name, {})}) >= KEPT * pooled


def test_a_bottleneck_is_found_out(birds: list[tuple[Tensor, Tensor]], weights: Path, pooled: float) -> None:
    assert accuracy("pmg", birds, weights, feature_size=8, stages=2, grids=(4, 2)) < 0.7 * pooled


# ---------------------------------------------------------------------- what is read


def test_the_baseline_reads_its_pooled_features() -> None:
    model, images = small(), torch.randn(3, 3, 64, 64)
    classifiers = final_classifiers(model, images)
    assert classifiers == [model.network.classifier]
    with torch.no_grad():
        assert torch.equal(classifier_inputs(model, images, classifiers), model.features(images))


def test_views_of_an_image_are_averaged() -> None:
    model, images = small("rra"), torch.randn(2, 3, 64, 64)
    classifiers = final_classifiers(model, images)
    each = classifier_inputs(model, images, classifiers)
    torch.testing.assert_close(classifier_inputs(model, images[1:], classifiers), each[1:])


def test_heads_that_are_not_scored_do_not_count() -> None:
    model, images = small("iagn"), torch.randn(2, 3, 64, 64)
    classifiers = final_classifiers(model, images)
    assert [type(module) for module in classifiers] == [EvidenceHead]
    assert classifiers[0] is model.network.heads[-1]  # type: ignore[index, union-attr]


def test_reading_leaves_mode_and_gradients_alone() -> None:
    model, images = small().train(), torch.randn(2, 3, 64, 64)
    classifier_inputs(model, images, final_classifiers(model, images))
    assert model.network.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_method_without_such_a_layer_is_named() -> None:
    class Loose(nn.Module):
        def __init__(self, backbone: Backbone) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
            logits = self.backbone(images)[-1].mean(dim=(2, 3))[:, :4]
            return MethodOutput(logits, {"loose": logits}, images.new_zeros(len(images), 0, 1, 1))

    class LooseMethod(FineGrainedClassifier):
        def build_network(self) -> nn.Module:
            return Loose(self.make_backbone())

    with pytest.raises(UsageError, match="no layer of 4 outputs makes the logits of LooseMethod"):
        final_classifiers(LooseMethod(4, "test_efficientnet", False), torch.randn(2, 3, 64, 64))


def test_the_readout_is_the_ridge_classifier_that_cross_validation_prefers() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 40, generator=generator, dtype=torch.double)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets = torch.randint(0, 3, (count,), generator=generator)
        return centres[targets] + 4 * torch.randn(count, 40, generator=generator, dtype=torch.double), targets

    (train, train_targets), (held_out, targets) = draw(30), draw(200)

    def hits(x: torch.Tensor, y: torch.Tensor, others: torch.Tensor, wanted: torch.Tensor, penalty: float) -> int:
        """By the normal equations, with an intercept that no penalty holds back."""
        mean, deviation = x.mean(dim=0), x.std(dim=0)
        rows = torch.cat([(x - mean) / deviation, torch.ones(len(x), 1)], dim=1)
        held = torch.diag(torch.tensor([penalty] * 40 + [0.0]).double())
        weights = torch.linalg.solve(rows.T @ rows + held, rows.T @ torch.nn.functional.one_hot(y, 3).double())
        scores = torch.cat([(others - mean) / deviation, torch.ones(len(others), 1)], dim=1) @ weights
        return int((scores.argmax(dim=1) == wanted).sum())

    part = torch.arange(30) % PARTS
    inner = [
        sum(
            hits(train[part != k], train_targets[part != k], train[part == k], train_targets[part == k], penalty)
            for k in range(5)
        )
        for penalty in PENALTIES
    ]
    penalty = PENALTIES[inner.index(max(inner))]
    expected = hits(train, train_targets, held_out, targets, penalty) / 200
    assert ridge_accuracy(train, train_targets, held_out, targets) == pytest.approx(expected)
    assert expected > 0.5


def test_calibration_gives_new_batch_norms_the_statistics_of_the_images_and_leaves_backbones_alone() -> None:
    model = small("srbn", batch_norm=True).train()
    before = {name: value.clone() for name, value in model.network.backbone.state_dict().items()}  # type: ignore[union-attr]
    images = torch.randn(6, 3, 64, 64)
    calibrate(model, [images[:4], images[4:]])
    assert not any(module.training for module in model.network.modules())
    with torch.no_grad():
        local = model.network.local_features(*model.network.streams(images))  # type: ignore[operator, union-attr]
    assert local.mean(dim=(0, 2, 3)).abs().max() < 0.5
    torch.testing.assert_close(dict(model.network.backbone.state_dict()), before, rtol=0, atol=0)  # type: ignore[union-attr]
