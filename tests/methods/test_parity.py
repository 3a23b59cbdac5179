"""The published methods beside transcriptions of their equations: the same weights, double precision, values and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fgzoo import create_model
from fgzoo.interpret import metrics
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn import jigsaw_order, keyed_uniform
from fgzoo.testing import evaluation_mode, example_batch
from tests.small import seen_by, total
from tests.training.toys import trainer

CLASSES = 5


def make(name: str, **arguments: Any) -> tuple[FineGrainedClassifier, Any]:
    """A method of the zoo, its batch-norms as after some training, and a copy of its network for the transcription."""
    torch.manual_seed(0)
    model = create_model(name, CLASSES, "test_efficientnet", pretrained=False, **arguments)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    model = evaluation_mode(model).double()
    return model, copy.deepcopy(model.network)


def batch(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    images, targets, keys = example_batch((96, 64), count)
    return images.double(), targets, keys


def require_equal_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Each parameter's gradient, relative to its largest entry; 1e-12 was measured."""
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max() <= 1e-10 * max(other.grad.abs().max(), 1e-3), name


def batch_norm(x: Tensor, norm: Any, eps: float = 1e-5) -> Tensor:
    """Ioffe and Szegedy: by the batch's mean and biased variance in training, by the running ones in evaluation."""
    dims = [0, *range(2, x.ndim)]
    mean, variance = (x.mean(dims), x.var(dims, correction=0)) if norm.training else (norm.running_mean, norm.running_var)
    mean, variance, weight, bias = (v.view(-1, *[1] * (x.ndim - 2)) for v in (mean, variance, norm.weight, norm.bias))
    return weight * (x - mean) / (variance + eps).sqrt() + bias


# ---------------------------------------------------------------------- PMG


def pmg_vector(level: Tensor, block: Any) -> Tensor:
    """max_ij of Conv1x1, BN, ReLU, Conv3x3, BN, ReLU. PMG (arXiv 2003.03836), published code."""
    narrow = F.relu(batch_norm(F.conv2d(level, block[0].weight), block[1]))
    return F.relu(batch_norm(F.conv2d(narrow, block[3].weight, padding=1), block[4])).flatten(2).max(dim=2).values


def pmg_classifier(vector: Tensor, layers: Any) -> Tensor:
    """BN, Linear, BN, ELU, Linear. PMG (arXiv 2003.03836), published code."""
    hidden = batch_norm(batch_norm(vector, layers[0]) @ layers[1].weight.T + layers[1].bias, layers[2])
    return torch.where(hidden > 0, hidden, hidden.exp() - 1) @ layers[4].weight.T + layers[4].bias


def pmg_logits(net: Any, images: Tensor) -> list[Tensor]:
    """z_1, z_2, z_3 of the last three stages' vectors, and z of all three concatenated. PMG's published code."""
    vectors = [pmg_vector(level, block) for level, block in zip(net.backbone(images)[-3:], net.blocks, strict=True)]
    return [pmg_classifier(v, head.classifier) for v, head in zip([*vectors, torch.cat(vectors, 1)], net.heads, strict=True)]


def pmg_jigsaw(image: Tensor, order: list[int], n: int) -> Tensor:
    """An image's n x n patches, put back in another order. PMG's published code."""
    patches = [patch for row in image.chunk(n, dim=1) for patch in row.chunk(n, dim=2)]
    return torch.cat([torch.cat([patches[i] for i in order[k : k + n]], dim=2) for k in range(0, n * n, n)], dim=1)


def pmg_batch(net: Any, images: Tensor, targets: Tensor, keys: Tensor, optimizer: torch.optim.Optimizer) -> list[float]:
    """CE(z_1) of 8x8 patches, CE(z_2) of 4x4, CE(z_3) of 2x2, 2 CE(z) of the image, a step each. PMG's published code."""
    losses = []
    for step, (n, weight) in enumerate(((8, 1), (4, 1), (2, 1), (1, 2))):
        orders = jigsaw_order(keyed_uniform(keys, n * n, salt=11 + step)).tolist()
        seen = torch.stack([pmg_jigsaw(image, order, n) for image, order in zip(images, orders, strict=True)])
        loss = weight * F.cross_entropy(pmg_logits(net, seen)[step], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_batch_of_pmg_takes_the_published_steps(tmp_path: Path) -> None:
    usual = {"lr": 0.002, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant", "feature_size": 16}
    model, net = make("pmg", **usual)
    images, targets, keys = batch()
    runner = trainer(tmp_path, max_epochs=1, precision="64-true")
    runner.fit(model.train(), DataLoader(list(zip(images, targets.tolist(), range(4), strict=True)), batch_size=4))  # type: ignore[arg-type]
    backbone = set(net.backbone.parameters())
    groups = [{"params": list(backbone), "lr": 0.0002}, {"params": [p for p in net.parameters() if p not in backbone]}]
    losses = pmg_batch(net.train(), images, targets, keys, torch.optim.SGD(groups, lr=0.002, momentum=0.9))
    found = [runner.callback_metrics[f"train/loss_{name}"].item() for name in ("stage1", "stage2", "stage3", "fused")]
    assert found == pytest.approx(losses, rel=0, abs=1e-13)
    torch.testing.assert_close(dict(model.network.named_parameters()), dict(net.named_parameters()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("test_heads", ["fused", "combined"])
def test_pmg_is_tested_by_the_fused_classifier_or_by_the_sum_of_all_four(test_heads: str) -> None:
    model, _ = make("pmg", test_heads=test_heads)
    images, _, _ = batch()
    with torch.no_grad():
        found, expected = model.eval()(images).logits, pmg_logits(model.network, images)
    torch.testing.assert_close(found, expected[3] if test_heads == "fused" else sum(expected) / 4, rtol=0, atol=1e-13)


# ---------------------------------------------------------------------- WS-DAN


def wsdan_pass(net: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps A_k, f = s / ||s|| with s = sign(v) sqrt(|v| + 1e-12), v = [GAP(A_k F)]_k, and z = W 100 f.

    WS-DAN (arXiv 1901.09891), section 3.2 and published code.
    """
    features = net.backbone(images)[-1]
    maps = F.relu(batch_norm(F.conv2d(features, net.attention.conv.weight), net.attention.norm, eps=1e-3))
    vector = torch.cat([(maps[:, k : k + 1] * features).mean(dim=(2, 3)) for k in range(maps.shape[1])], dim=1)
    root = vector.sign() * (vector.abs() + 1e-12).sqrt()
    pooled = root / root.square().sum(dim=1, keepdim=True).sqrt()
    return maps.detach(), pooled, 100 * pooled @ net.classifier.weight.T


def wsdan_map(maps: Tensor, uniform: float) -> Tensor:
    """The map A_k of an image with p_k = sqrt(mean A_k) / sum_j sqrt(mean A_j). WS-DAN's published code."""
    weights = maps.mean(dim=(1, 2)).sqrt()
    return maps[int(torch.searchsorted(weights.cumsum(0) / weights.sum(), uniform, right=True))]


def wsdan_region(attention: Tensor, theta: float, size: torch.Size) -> Tensor:
    """A*(i, j) >= theta max A*, with the map enlarged to the image. WS-DAN (arXiv 1901.09891), section 3.3."""
    enlarged = F.interpolate(attention[None, None], size=size, mode="bilinear")[0, 0]
    return enlarged >= theta * enlarged.max()


def wsdan_crop(image: Tensor, attention: Tensor, theta: float, padding: float) -> Tensor:
    """The least and largest row and column of the region, padded by a share of the image; resized to it. Published code."""
    places = wsdan_region(attention, theta, image.shape[1:]).nonzero()
    box = []
    for side, low, high in zip(image.shape[1:], places.amin(0).tolist(), places.amax(0).tolist(), strict=True):
        box.append(slice(max(0, int(low - padding * side)), min(side, int(high + padding * side))))
    return F.interpolate(image[None, :, box[0], box[1]], size=image.shape[1:], mode="bilinear")[0]


def wsdan_drop(image: Tensor, attention: Tensor, theta: float) -> Tensor:
    """Zero where the region is. WS-DAN (arXiv 1901.09891), section 3.3."""
    return image * ~wsdan_region(attention, theta, image.shape[1:])


def wsdan_centre_loss(pooled: Tensor, targets: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """sum_b ||f_b - c_y||^2 / B, and c_y + 0.05 (f_b - c_y), with c_y of length one. WS-DAN's published code."""
    moved, loss = centres.clone(), torch.zeros((), dtype=pooled.dtype)
    for f, y in zip(pooled, targets.tolist(), strict=True):
        centre = centres[y] / centres[y].square().sum().sqrt()
        loss = loss + (f - centre).square().sum() / len(pooled)
        moved[y] += 0.05 * (f - centre).detach()
    return loss, moved


def wsdan(bias: float) -> tuple[FineGrainedClassifier, Any]:
    """With maps that are zero in most places, so that crops are small, and centres of any length."""
    model, _ = make("wsdan", num_maps=4, attention_stride=4)
    network: Any = model.network
    nn.init.constant_(network.attention.norm.bias, bias)
    network.centers.centers.normal_()
    return model, copy.deepcopy(network)


def ramps() -> tuple[Tensor, Tensor, Tensor]:
    """Images whose first two channels tell the row and the column of each pixel, in shares of 32."""
    images, targets, keys = batch(12)
    images[:, 0], images[:, 1] = torch.arange(96)[:, None] / 32, torch.arange(64) / 32
    return images, targets, keys


def require_same_crops(found: Tensor, expected: Tensor) -> None:
    """Of [ramps][]: to 2.5 pixels, since published code ends a box before its last pixel, and at whole ones."""
    assert 32 * (found - expected)[:, :2].abs().max() < 2.5


def test_wsdan_trains_by_the_published_loss() -> None:
    model, net = wsdan(bias=-2)
    images, targets, keys = ramps()
    seen, uniform = seen_by(model.network.backbone), keyed_uniform(keys, 4, salt=20).tolist()
    loss = total(model, model.train()(images, targets, keys), targets)
    loss.backward()
    maps, pooled, raw = wsdan_pass(net.train(), images)
    crops, drops = [], []
    for image, drawn, (first, second, crop_share, drop_share) in zip(images, maps, uniform, strict=True):
        crops.append(wsdan_crop(image, wsdan_map(drawn, first), 0.4 + 0.2 * crop_share, 0.1))
        drops.append(wsdan_drop(image, wsdan_map(drawn, second), 0.2 + 0.3 * drop_share))
    require_same_crops(seen[1], torch.stack(crops))
    assert torch.equal(seen[2], torch.stack(drops))
    distance, centres = wsdan_centre_loss(pooled, targets, net.centers.centers)
    expected = sum(F.cross_entropy(z, targets) for z in (raw, wsdan_pass(net, seen[1])[2], wsdan_pass(net, seen[2])[2])) / 3
    (expected + distance).backward()
    torch.testing.assert_close(loss, expected + distance, rtol=0, atol=1e-13)
    torch.testing.assert_close(model.network.centers.centers, centres, rtol=0, atol=1e-13)
    require_equal_gradients(model.network, net)


def test_wsdan_is_tested_on_the_image_and_on_a_crop_round_the_mean_map() -> None:
    model, net = wsdan(bias=-4)
    images, _, _ = ramps()
    seen = seen_by(model.network.backbone)
    with torch.no_grad():
        found = model.eval()(images).logits.double().softmax(dim=1)
        maps, _, raw = wsdan_pass(net.eval(), images)
        crops = [wsdan_crop(image, drawn.mean(dim=0), 0.1, 0.05) for image, drawn in zip(images, maps, strict=True)]
        closer = wsdan_pass(net, seen[1])[2]
    require_same_crops(seen[1], torch.stack(crops))
    torch.testing.assert_close(found, (raw.softmax(dim=1) + closer.softmax(dim=1)) / 2, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- B-CNN


def bcnn_vector(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(mean_l a_l b_l^T + 1e-5) over its length, of features that are not negative. B-CNN (ICCV 2015), published code."""
    products = a.flatten(2) @ b.flatten(2).mT / (a.shape[2] * a.shape[3])
    root = (products.flatten(1) + 1e-5).sqrt()
    return root / root.square().sum(dim=1, keepdim=True).sqrt()


def test_the_vector_of_bcnn_is_that_of_published_code() -> None:
    model, net = make("bcnn", scale=1.0)
    generator, features = torch.Generator().manual_seed(0), []
    for backbone in (model.network.backbone, model.network.second_backbone):
        # Less than a hundredth of the products are zero, where published code's root is not.
        drawn = torch.randn(4, backbone.levels[-1].channels, 7, 7, dtype=torch.double, generator=generator)
        features.append(drawn.sub_(0.5).clamp_min_(0).requires_grad_())
        backbone.register_forward_hook(lambda *_, maps=features[-1]: [maps])
    images, targets, _ = batch()
    vectors, published = seen_by(model.network.readout.classifier), bcnn_vector(*features)
    loss = total(model, model(images), targets)
    torch.testing.assert_close(vectors[0].norm(dim=1), torch.ones(4, dtype=torch.double))
    assert F.cosine_similarity(vectors[0], published).min() > 0.99999
    expected = F.cross_entropy(net.readout.classifier(published), targets)
    mine, theirs = (torch.autograd.grad(x, features) for x in (loss, expected))
    for found, other in zip(mine, theirs, strict=True):
        assert (found - other).norm() < 0.05 * other.norm()


# ---------------------------------------------------------------------- RRA


def rra_local(x: Tensor, stream: Any, steps: int) -> Tensor:
    """z_l of two LSTM layers that read x at every step from zero states, sum_t softmax_t(w h_t + b) h_t, and a linear layer.

    RRA (arXiv 2005.10979), published code.
    """
    h, c, states = [torch.zeros_like(x)] * 2, [torch.zeros_like(x)] * 2, []
    for _ in range(steps):
        below = x
        for k, cell in zip((0, 1), stream.recursion.cells, strict=True):
            gates = below @ cell.weight_ih.T + cell.bias_ih + h[k] @ cell.weight_hh.T + cell.bias_hh
            i, f, g, o = gates.chunk(4, dim=1)
            c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
            h[k] = below = o.sigmoid() * c[k].tanh()
        states.append(below)
    energy = torch.cat([state @ stream.attention.score.weight.T + stream.attention.score.bias for state in states], dim=1)
    weights = energy.exp() / energy.exp().sum(dim=1, keepdim=True)
    context = sum(weights[:, t : t + 1] * state for t, state in enumerate(states))
    return context @ stream.classifier.weight.T + stream.classifier.bias


def rra_global(features: Tensor, stream: Any) -> Tensor:
    """z_g of Conv1x1, ReLU, Conv1x1, ReLU, global average pooling and a linear layer. RRA (arXiv 2005.10979), published code."""
    for layer in (stream.added[0], stream.added[2]):
        features = F.relu(torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], features) + layer.bias[:, None, None])
    return features.mean(dim=(2, 3)) @ stream.classifier.weight.T + stream.classifier.bias


def test_rra_follows_the_published_equations() -> None:
    model, net = make("rra", steps=4, hidden_size=48, global_width=16, fusion_weight=0.3)
    images, targets, keys = batch()
    patches = seen_by(model.network.local_backbone)
    output = model.train()(images, targets, keys)
    loss = total(model, output, targets)
    loss.backward()
    z_g = rra_global(net.train().global_backbone(images)[-1], net.global_stream)
    z_l = rra_local(net.local_backbone(patches[0])[-1].mean(dim=(2, 3)), net.local_stream, steps=4)
    expected = F.cross_entropy(z_g, targets) + 0.3 * F.cross_entropy(z_l, targets)
    expected.backward()
    torch.testing.assert_close(output.logits, z_g + 0.3 * z_l, rtol=0, atol=1e-14)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-14)
    require_equal_gradients(model.network, net)


# ---------------------------------------------------------------------- insertion and deletion


def rise_curve(network: Any, start: Tensor, finish: Tensor, saliency: Tensor, step: int) -> tuple[list[float], float]:
    """Probabilities while `step` pixels at a time, the most salient first, become those of `finish`; their trapezoidal mean.

    Petsiuk et al. (arXiv 1806.07421), section 3.3 and published code.
    """
    image, probabilities = start.clone(), [float(network(start))]
    for pixels in saliency.flatten().argsort(descending=True).split(step):
        for i, j in zip(pixels // saliency.shape[1], pixels % saliency.shape[1], strict=True):
            image[:, i, j] = finish[:, i, j]
        probabilities.append(float(network(image)))
    area = (sum(probabilities) - probabilities[0] / 2 - probabilities[-1] / 2) / (len(probabilities) - 1)
    return probabilities, area


@pytest.mark.parametrize("step", [1, 10, 70])
def test_insertion_and_deletion_are_those_of_rise(step: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images, saliency = (torch.randn(3, *shape, generator=generator, dtype=torch.double) for shape in ((3, 7, 10), (7, 10)))
    weight, classes = torch.randn(210, 4, generator=generator, dtype=torch.double), torch.tensor([3, 0, 1])
    blurred, mean_colour = metrics.gaussian_blur(images, 10 / 224 * 7), torch.zeros_like(images)

    def network(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weight).softmax(dim=1)

    for curve, start, finish in (
        (metrics.insertion(network, images, saliency, classes, 70 // step), blurred, images),
        (metrics.deletion(network, images, saliency, classes, 70 // step), images, mean_colour),
        (metrics.deletion(network, images, saliency, classes, 70 // step, blurred), images, blurred),
    ):
        for n, y in enumerate(classes.tolist()):
            expected, area = rise_curve(lambda x, y=y: network(x[None])[0, y], start[n], finish[n], saliency[n], step)
            assert curve.scores[n].tolist() == pytest.approx(expected, rel=0, abs=1e-14)
            assert curve.area[n].item() == pytest.approx(area, rel=0, abs=1e-14)
