"""RRA against its equations and plain Grad-CAM; its arguments; its patches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.synthetic import Birds
from fgzoo.errors import DataError, UsageError
from fgzoo.methods.rra import RRA, GlobalStream, LocalStream, RRANetwork, read_boxes
from fgzoo.nn import crop_boxes, normalize_map, paste_boxes
from fgzoo.testing import CHECKS, evaluation_mode, example_batch
from tests.builders import Bomb
from tests.small import require_projections, small
from tests.training.toys import loader, trainer

SMALL: dict[str, Any] = {"hidden_size": 24, "global_width": 16, "steps": 4}


def make(**arguments: Any) -> RRA:
    torch.manual_seed(0)
    return RRA(**{"num_classes": 5, "backbone": "test_efficientnet", "pretrained": False, **SMALL, **arguments})


def local_stream(**arguments: Any) -> LocalStream:
    """One of the paper's form, but small."""
    paper = {"recursion": True, "attend_over_time": True, "normalize_states": False, "residual": False, "refocus": False}
    return LocalStream(**{"channels": 7, "num_classes": 4, "steps": 5, "hidden_size": 6, **paper, **arguments})


def network(model: RRA) -> RRANetwork:
    assert isinstance(model.network, RRANetwork)
    return model.network


# ---------------------------------------------------------------------- the equations


def test_global_stream_follows_the_equations() -> None:
    torch.manual_seed(0)
    stream = GlobalStream(3, 4, global_width=6).double()
    features = torch.randn(2, 3, 4, 5, dtype=torch.double)
    logits, maps = stream(features)
    first, second = stream.added[0], stream.added[2]
    for n in range(2):
        pooled = torch.zeros(6, dtype=torch.double)
        for i in range(4):
            for j in range(5):
                hidden = (first.weight[:, :, 0, 0] @ features[n, :, i, j] + first.bias).clamp_min(0)
                value = (second.weight[:, :, 0, 0] @ hidden + second.bias).clamp_min(0)
                torch.testing.assert_close(maps[n, :, i, j], value)
                pooled += value / 20
        torch.testing.assert_close(logits[n], stream.classifier.weight @ pooled + stream.classifier.bias)


def test_global_stream_without_added_convolutions_is_plain_fine_tuning() -> None:
    stream, features = GlobalStream(3, 4, global_width=0), torch.randn(2, 3, 4, 5)
    logits, maps = stream(features)
    assert torch.equal(maps, features)
    torch.testing.assert_close(logits, F.linear(features.mean(dim=(2, 3)), stream.classifier.weight, stream.classifier.bias))


def test_local_stream_follows_the_equations() -> None:
    torch.manual_seed(0)
    stream = local_stream().double()
    features = torch.randn(3, 7, 2, 4, dtype=torch.double)
    pooled = features.sum(dim=(2, 3)) / 8
    hidden = stream.recursion(pooled @ stream.project.weight.T + stream.project.bias, 5)
    energy = hidden @ stream.attention.score.weight[0] + stream.attention.score.bias
    weights = energy.exp() / energy.exp().sum(dim=1, keepdim=True)
    context = (weights[:, :, None] * hidden).sum(dim=1)
    expected = context @ stream.classifier.weight.T + stream.classifier.bias
    torch.testing.assert_close(stream(features), expected)


def test_states_may_be_normalised_before_they_are_classified() -> None:
    torch.manual_seed(0)
    stream = local_stream(normalize_states=True).double()
    features = torch.randn(3, 7, 2, 4, dtype=torch.double)
    context = stream.attention(stream.unroll(features).states)[0]
    centred = context - context.mean(dim=1, keepdim=True)
    normal = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(stream(features), normal @ stream.classifier.weight.T + stream.classifier.bias)


def test_a_path_round_the_recursion_adds_x_to_what_the_classifier_reads() -> None:
    model = make(residual=True)
    stream = network(model).local_stream
    features = torch.randn(3, network(model).local_backbone.levels[-1].channels, 2, 4)  # type: ignore[union-attr]
    x = stream.project(features.mean((2, 3)))
    context, _ = stream.attention(stream.recursion(x, stream.steps))
    torch.testing.assert_close(stream(features), stream.classifier(x + context))


def test_without_recursion_there_is_no_path_round_it() -> None:
    stream = network(make(residual=True, recursion=False)).local_stream
    features = torch.randn(3, stream.project.in_features, 2, 4)  # type: ignore[arg-type]
    torch.testing.assert_close(stream(features), stream.classifier(stream.project(features.mean((2, 3)))))


def test_added_layers_can_begin_as_projections() -> None:
    net = network(make(init="orthogonal", hidden_size=24, global_width=40))
    require_projections(net.global_stream.added[0], net.global_stream.added[2], net.local_stream.project)


def test_paper_width_needs_no_projection() -> None:
    assert isinstance(local_stream(channels=512, hidden_size=512).project, torch.nn.Identity)


def test_fusion_is_global_plus_lambda_local() -> None:
    model = evaluation_mode(make(fusion_weight=0.3))
    with torch.no_grad():
        output = model(example_batch()[0])
    torch.testing.assert_close(output.logits, output.heads["global"] + 0.3 * output.heads["local"])


def test_loss_is_the_global_plus_lambda_the_local_cross_entropy() -> None:
    model = make(fusion_weight=0.3).train()
    images, targets, keys = example_batch()
    output = model(images, targets, keys)
    terms = model.loss(output, targets)
    torch.testing.assert_close(terms["global"], torch.nn.functional.cross_entropy(output.heads["global"], targets))
    torch.testing.assert_close(terms["local"], 0.3 * torch.nn.functional.cross_entropy(output.heads["local"], targets))


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    stream = GlobalStream(64, 200, global_width=1024)
    assert stream.classifier.weight.detach().std().item() == pytest.approx(0.01, rel=0.05)
    assert stream.classifier.bias.detach().abs().sum() == 0
    fan_out = (2 / 1024) ** 0.5
    assert stream.added[0].weight.detach().std().item() == pytest.approx(fan_out, rel=0.05)


def test_the_paper_network_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        model = RRA(200, pretrained=False)
    net = network(model)
    assert net.global_backbone.levels[-1] == (512, 32)
    assert net.local_backbone.levels[-1] == (512, 16)
    assert [tuple(cell.weight_hh.shape) for cell in net.local_stream.recursion.cells] == [(2048, 512)] * 2


def test_streams_do_not_share_weights() -> None:
    net = network(make())
    mine = {id(parameter) for parameter in net.global_backbone.parameters()}
    assert not mine & {id(parameter) for parameter in net.local_backbone.parameters()}


# ---------------------------------------------------------------------- refocusing


def refocusing(**arguments: Any) -> RRA:
    """One whose steps look at different places of maps of many locations, as after training."""
    model = make(refocus=True, local_stride=4, **arguments)
    learn_to_look(network(model).local_stream)
    return model


def learn_to_look(stream: LocalStream) -> None:
    """Give the attention other weights than the zeros it begins with."""
    for name, parameter in stream.refocus.named_parameters():
        torch.nn.init.normal_(parameter, std=30 if name == "hidden.weight" else 1)


def literal_steps(
    stream: LocalStream, features: torch.Tensor, step: int | None = None, read: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """States (T, N, hidden) and attention (T, N, h, w) by the equations; one step may read other features than it looks at."""
    h = c = [features.new_zeros(len(features), stream.recursion.hidden_size)] * 2
    states, alphas = [], []
    for t in range(stream.steps):
        told = torch.einsum("ac,nchw->nhwa", stream.refocus.input.weight, features)
        told = told + (h[1] @ stream.refocus.hidden.weight.T)[:, None, None]  # type: ignore[union-attr]
        energy = told.tanh() @ stream.refocus.score.weight[0]
        alphas.append(energy.exp() / energy.exp().sum(dim=(1, 2), keepdim=True))
        seen = features if read is None or t != step else read
        x = stream.project((alphas[-1][:, None] * seen).sum(dim=(2, 3)))
        below, h, c = x, list(h), list(c)
        for layer, cell in enumerate(stream.recursion.cells):
            gates = below @ cell.weight_ih.T + cell.bias_ih + h[layer] @ cell.weight_hh.T + cell.bias_hh
            i, f, g, o = gates.chunk(4, dim=1)
            c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
            below = h[layer] = o.sigmoid() * c[layer].tanh()
        states.append(x + below if stream.residual else below)
    return torch.stack(states), torch.stack(alphas)


@pytest.mark.parametrize("residual", [False, True])
def test_refocusing_follows_the_equations(residual: bool) -> None:
    torch.manual_seed(0)
    stream = local_stream(refocus=True, residual=residual).double()
    learn_to_look(stream)
    features = torch.randn(3, 7, 2, 4, dtype=torch.double, requires_grad=True)
    found, (states, alphas) = stream.unroll(features), literal_steps(stream, features)
    torch.testing.assert_close(found.states, states.transpose(0, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.alpha, alphas.transpose(0, 1), rtol=0, atol=1e-12)
    parts = (stream.refocus, stream.project, stream.recursion)
    learnt = [features, *(parameter for part in parts for parameter in part.parameters())]  # type: ignore[union-attr]
    ours, theirs = (torch.autograd.grad(values.square().sum(), learnt) for values in (found.states, states))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("states", [{}, {"residual": True, "normalize_states": True}, {"attend_over_time": False}])
def test_refocusing_begins_as_the_paper_and_learns(states: dict[str, Any]) -> None:
    images, targets, _ = example_batch((96, 64))
    paper, model = (evaluation_mode(make(local_stride=4, refocus=refocus, **states)) for refocus in (False, True))
    output = model(images)
    torch.testing.assert_close(output.logits, paper(images).logits, rtol=1e-5, atol=1e-6)
    model.loss(output, targets)["local"].backward()
    assert network(model).local_stream.refocus.score.weight.grad.abs().max() > 0


def test_steps_look_at_different_places() -> None:
    model = evaluation_mode(refocusing())
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        alpha = net.local_stream.unroll(net.patch_features(images, net.boxes(images, images, None))).alpha
    torch.testing.assert_close(alpha.sum(dim=(2, 3)), torch.ones(16, 4))
    assert ((alpha[:, -1] - alpha[:, 0]).abs().sum(dim=(1, 2)) > 0.1).all()
    maps = model.explain(images)
    assert ((maps[:, -1] - maps[:, 0]).abs().amax(dim=(1, 2)) > 0.1).all()


def test_refocusing_is_one_graph_and_can_be_exported() -> None:
    stream = network(evaluation_mode(refocusing())).local_stream
    features = torch.randn(3, 24, 4, 5)
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(stream, backend="eager", fullgraph=True)(features)
        exported = torch.export.export(stream, (features,)).module()(features)
        torch.testing.assert_close([compiled, exported], [stream(features)] * 2)


def test_refocusing_explains_inside_inference_mode() -> None:
    CHECKS["inference_mode"](refocusing)


# ---------------------------------------------------------------------- patches


@pytest.mark.parametrize(
    ("arguments", "size"), [({}, (64, 48)), ({"local_scale": 1.0}, (128, 96)), ({"local_scale": 0.1}, (32, 32))], ids=str
)
def test_patches_have_half_the_side_or_what_is_asked_for(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    net = network(evaluation_mode(make(local_stride=4, **arguments)))
    maps = net.patch_features(torch.randn(1, 3, 128, 96), torch.tensor([[[0.0, 0, 1, 1]]]))
    assert maps.shape[-2:] == (size[0] // 4, size[1] // 4)


def test_a_lower_percentile_makes_larger_patches() -> None:
    images, features = torch.randn(4, 3, 64, 64), torch.randn(4, 16, 8, 8)
    narrow, wide = (network(make(patch_percentile=p)).eval().boxes(images, features, None) for p in (0.95, 0.5))
    assert (wide[..., :2] <= narrow[..., :2]).all()
    assert (wide[..., 2:] >= narrow[..., 2:]).all()
    assert not torch.equal(wide, narrow)


def test_testing_takes_the_first_patches_and_averages_them() -> None:
    model = evaluation_mode(make(test_patches=3))
    net, images = network(model), example_batch()[0]
    with torch.no_grad():
        boxes = net.boxes(images, net.global_backbone(images)[-1], None)
        assert boxes.shape == (4, 3, 4)
        each = [net.local_stream(net.patch_features(images, boxes[:, k : k + 1])) for k in range(3)]
        torch.testing.assert_close(model(images).heads["local"], torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


def test_training_draws_one_of_all_candidates() -> None:
    net = network(make(patches="random")).train()
    images = torch.randn(64, 3, 64, 64)
    features = net.global_backbone(images)[-1]
    index = torch.arange(64)
    keys = torch.stack([index * 0, index * 0, index], dim=1)
    chosen = net.boxes(images, features, keys)
    candidates = net._candidates(images, features, keys)
    assert chosen.shape == (64, 1, 4)
    which = (candidates == chosen).all(dim=2).float().argmax(dim=1)
    assert (candidates == chosen).all(dim=2).any(dim=1).all()
    assert len(which.unique()) >= 8


def test_training_draws_anew_every_epoch() -> None:
    net = network(make()).train()
    images = torch.randn(16, 3, 64, 64)
    features = net.global_backbone(images)[-1]
    index = torch.arange(16)
    first, second = (net.boxes(images, features, torch.stack([index * 0, index * 0 + e, index], 1)) for e in (0, 1))
    assert not torch.equal(first, second)


def test_no_gradient_flows_through_the_boxes() -> None:
    model = make().train()
    images, targets, keys = example_batch()
    model(images, targets, keys).heads["local"].sum().backward()
    assert all(parameter.grad is None for parameter in network(model).global_backbone.parameters())


@pytest.mark.parametrize(
    "arguments",
    [
        {"local": False},
        {"recursion": False},
        {"steps": 1},
        {"attend_over_time": False},
        {"normalize_states": True},
        {"hidden_size": 16},
        {"global_width": 8},
        {"global_width": 0},
        {"fusion_weight": 0.5},
        {"patches": "center"},
        {"patches": "random"},
        {"test_patches": 1},
        {"local_stride": 8},
        {"local_scale": 1.0},
        {"patch_percentile": 0.5},
    ],
    ids=lambda arguments: "-".join(f"{k}={v}" for k, v in arguments.items()),
)
def test_every_argument_changes_the_output(arguments: dict[str, Any]) -> None:
    images = example_batch()[0]
    with torch.no_grad():
        usual, other = (evaluation_mode(make(**more))(images).logits for more in ({}, arguments))
    assert not torch.allclose(usual, other, atol=1e-7)


def test_num_patches_changes_what_training_sees() -> None:
    images, targets, keys = example_batch(batch=8)
    usual, other = (make(num_patches=n, test_patches=1).train()(images, targets, keys).logits for n in (10, 1))
    assert not torch.allclose(usual, other)


# ---------------------------------------------------------------------- stored boxes


def write_boxes(path: Path, names: list[str], boxes: np.ndarray) -> Path:
    np.savez(path, **dict.fromkeys(names, boxes))  # type: ignore[arg-type]
    return path


def test_stored_boxes_are_looked_up_by_name(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]])
    path = tmp_path / "boxes.npz"
    np.savez(path, **{"a/1.jpg": boxes, "b 2.jpg": boxes[::-1]})
    table = read_boxes(path, ["b 2.jpg", "a/1.jpg"], 2)
    assert table[0].tolist() == boxes[::-1].tolist()
    assert table[1].tolist() == boxes.tolist()


def test_stored_boxes_reach_the_network() -> None:
    net = network(make(patches="file", patch_file="boxes.npz", num_patches=2, test_patches=2)).eval()
    net.stored_boxes = torch.rand(9, 2, 4).sort(dim=-1).values
    keys = torch.tensor([[0, 0, 7], [0, 0, 3], [0, 0, 9 + 3]])  # the last is repeated in the epoch
    images = torch.randn(3, 3, 64, 64)
    assert torch.equal(net.boxes(images, images, keys), net.stored_boxes[[7, 3, 3]])


def test_images_that_are_predicted_have_no_stored_boxes(tmp_path: Path) -> None:
    model = small("rra", patches="file", patch_file="boxes.npz")
    model.network.stored_boxes = torch.rand(9, 10, 4).sort(dim=-1).values  # of the split that ran last
    with pytest.raises(UsageError, match="looks boxes up by the images' names"):
        trainer(tmp_path).predict(model, loader())


def test_loaders_without_names_have_no_stored_boxes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="looks boxes up by the images' names, which only a data module's have"):
        trainer(tmp_path, max_epochs=1).fit(small("rra", patches="file", patch_file="boxes.npz"), loader())


@pytest.mark.parametrize("cropped", [{"augmentation": "standard"}, {"resize": 110}, {"resize_mode": "shortest"}])
def test_stored_boxes_need_whole_images(tmp_path: Path, cropped: dict[str, Any]) -> None:
    whole = {"image_size": 64, "resize": 64, "augmentation": "paper", "num_workers": 0}
    data = FGVCDataModule("birds", birds=Birds(4, 2, 1, 64), **{**whole, **cropped})
    with pytest.raises(UsageError, match=r"fit whole images only.*--data\.resize 64 --data\.resize_mode squash"):
        trainer(tmp_path, max_epochs=1).fit(small("rra", patches="file", patch_file="boxes.npz"), datamodule=data)


def test_stored_boxes_need_named_images() -> None:
    model = make(patches="file", patch_file="boxes.npz").eval()
    with pytest.raises(UsageError, match="looks boxes up by the images' names"):
        model(example_batch()[0])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (np.zeros((1, 4)), r"needed \(2, 4\)"),
        (np.zeros((2, 3)), r"needed \(2, 4\)"),
        (np.array([[0, 0, 1, 2.0]] * 2), "within"),
        (np.array([[0.5, 0, 0.5, 1.0]] * 2), "x0 < x1"),
    ],
)
def test_bad_boxes_are_named(tmp_path: Path, boxes: np.ndarray, message: str) -> None:
    path = write_boxes(tmp_path / "boxes.npz", ["a.jpg"], boxes)
    with pytest.raises(DataError, match=rf"boxes\.npz, a\.jpg: .*{message}"):
        read_boxes(path, ["a.jpg"], 2)


def test_images_without_boxes_are_named(tmp_path: Path) -> None:
    path = write_boxes(tmp_path / "boxes.npz", ["a.jpg"], np.array([[0, 0, 1, 1]]))
    with pytest.raises(DataError, match=r"no boxes for 1 images, e\.g\. b\.jpg"):
        read_boxes(path, ["a.jpg", "b.jpg"], 1)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_unreadable_box_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "boxes.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"boxes\.npz cannot be read"):
        read_boxes(path, ["a.jpg"], 1)


def test_box_file_with_code_is_not_executed(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "boxes.npz"
    np.savez(path, **{"a.jpg": np.array([Bomb(canary)], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"boxes\.npz"):
        read_boxes(path, ["a.jpg"], 1)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"test_patches": 11}, "test_patches"),
        ({"test_patches": 0}, "test_patches"),
        ({"patch_percentile": 1.0}, r"patch_percentile: 1\.0 is not in \[0, 1\)"),
        ({"refocus": True, "recursion": False}, r"refocus: .* leave --model\.local and --model\.recursion on"),
        ({"refocus": True, "local": False}, r"refocus: .* leave --model\.local and --model\.recursion on"),
        ({"global_width": -1}, r"global_width: -1; give 0"),
        ({"local_scale": 0.0}, r"local_scale: 0\.0 is not in \(0, inf\)"),
        ({"patches": "file"}, "patch_file"),
        ({"patch_file": "boxes.npz"}, "patch_file"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**arguments)


# ---------------------------------------------------------------------- explanations


def plain_grad_cam(net: RRANetwork, patches: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
    """Grad-CAM by differentiating the logit with respect to the last map itself, position by position."""
    features = net.local_backbone(patches)[-1].detach().requires_grad_()
    logits = net.local_stream.classify(net.local_stream.unroll(features).states)[:, step]
    gradient = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)[0]
    weights = gradient.mean(dim=(2, 3))
    return (weights[:, :, None, None] * features).sum(dim=1).clamp_min(0).detach()


def literal_refocused_map(net: RRANetwork, patches: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
    """What every location gives to the logit at this step: its features times the gradient that reaches them through x_t."""
    features = net.local_backbone(patches)[-1].detach()
    read = features.clone().requires_grad_()
    states, _ = literal_steps(net.local_stream, features, step, read)
    chosen = net.local_stream.classify(states[step]).gather(1, targets[:, None])
    return (torch.autograd.grad(chosen.sum(), read)[0] * features).sum(dim=1).clamp_min(0).detach()


@pytest.mark.parametrize("states", [{}, {"normalize_states": True}, {"residual": True}])
@pytest.mark.parametrize(
    ("build", "literal_map"), [(make, plain_grad_cam), (refocusing, literal_refocused_map)], ids=["paper", "refocus"]
)
def test_explain_equals_literal_maps_pasted_and_weighted(
    build: Callable[..., RRA], literal_map: Callable[..., torch.Tensor], states: dict[str, Any]
) -> None:
    model = evaluation_mode(build(**states))
    net, (images, targets, _) = network(model), example_batch((96, 64))
    with torch.no_grad():
        boxes = net.boxes(images, net.global_backbone(images)[-1], None)
        patches = crop_boxes(images, boxes, (48, 32))
        probability = net.local_stream(net.patch_features(images, boxes)).softmax(1)
    repeated = targets.repeat_interleave(4)
    weights = probability.gather(1, repeated[:, None]).view(4, 4)
    expected = []
    for step in range(4):
        cams = normalize_map(literal_map(net, patches, repeated, step)).unflatten(0, (4, 4))
        pasted = paste_boxes(cams[:, :, None], boxes, (96, 64))[:, :, 0]
        expected.append((weights[:, :, None, None] * pasted).sum(1))
    torch.testing.assert_close(model.explain(images, targets), normalize_map(torch.stack(expected, 1)), atol=1e-4, rtol=1e-3)


def test_head_gradients_equal_the_grad_cam_library() -> None:
    model = evaluation_mode(make(local_stride=8))
    net = network(model)
    patches = torch.randn(2, 3, 48, 32)
    targets = [1, 3]

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.last = net, torch.nn.Identity()

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            features = self.last(net.local_backbone(batch)[-1])
            return net.local_stream.classifier(net.local_stream.unroll(features).states)[:, 2]

    wrapped = Wrapped().eval()
    with GradCAM(wrapped, [wrapped.last]) as library:
        theirs = library(patches, [ClassifierOutputTarget(t) for t in targets])
    ours = plain_grad_cam(net, patches, torch.tensor(targets), step=2)
    ours = torch.nn.functional.interpolate(ours[:, None], size=(48, 32), mode="bilinear", align_corners=False)[:, 0]
    for mine, other in zip(ours, torch.from_numpy(theirs), strict=True):
        low, high = mine.min(), mine.max()
        correlation = torch.corrcoef(torch.stack([((mine - low) / (high - low + 1e-7)).flatten(), other.flatten()]))[0, 1]
        assert correlation > 0.99


def test_explain_defaults_to_the_predicted_class() -> None:
    model = evaluation_mode(make())
    images = example_batch()[0]
    with torch.no_grad():
        predicted = model(images).logits.argmax(dim=1)
    assert torch.equal(model.explain(images), model.explain(images, predicted))


def test_attention_shows_the_class_that_is_asked_for() -> None:
    model = evaluation_mode(make())
    images = example_batch()[0]
    with torch.no_grad():
        first, second = (model(images, torch.full((4,), k)).attention[:, 0] for k in (0, 1))
    assert not torch.allclose(first, second)
