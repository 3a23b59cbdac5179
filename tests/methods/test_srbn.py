"""SRBN against its equations, its ablations and its parent; its streams; its two training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fgzoo.errors import UsageError
from fgzoo.methods.srbn import SRBN, BilinearReadout, SRBNNetwork
from fgzoo.nn import normalize_map
from fgzoo.nn.bilinear import bilinear_pool, power_normalize
from fgzoo.nn.randomness import keyed_uniform
from fgzoo.testing import evaluation_mode, example_batch
from tests.small import require_projections, total  # and registers tiny_vgg
from tests.training.toys import loader, trainer

SMALL: dict[str, Any] = {"hidden_size": 16, "rank": 24, "projection": 12, "attention_size": 8}
#: The LSTM's readout alone.
HIDDEN: dict[str, Any] = {"bilinear_head": False}
PARENT: dict[str, Any] = {"attention": "none", "spatial_lstm": False}
CONTROL: dict[str, Any] = {**PARENT, "combine": "concat"}
#: Attention over the whole map, before a scan of one layer.
STATIC: dict[str, Any] = {"attention": "static", "layers": 1}


def make(**arguments: Any) -> SRBN:
    torch.manual_seed(0)
    return SRBN(**{"num_classes": 5, "backbone": "test_efficientnet", "pretrained": False, **SMALL, **arguments})


def bilinear_readout(channels: int, second_channels: int, **arguments: Any) -> BilinearReadout:
    usual = {"num_classes": 5, "bilinear_size": 262_144, "pyramid": (1,), "scale": 1.0, "root_eps": 1e-5, "init": "default"}
    return BilinearReadout(channels, second_channels, **{**usual, **arguments})


def network(model: SRBN) -> SRBNNetwork:
    assert isinstance(model.network, SRBNNetwork)
    return model.network


# ---------------------------------------------------------------------- the equations


def test_the_whole_follows_the_equations() -> None:
    model = evaluation_mode(make(scale=3.0))
    net, images = network(model), example_batch((96, 64))[0]
    (second,) = net.deeper
    nn.init.normal_(net.attention.location, std=3.0)
    with torch.no_grad():
        a, b = net.streams(images)
        states, alpha, _ = net.spatial_lstm.attend(3.0 * power_normalize(net.local.features(a, b)), net.attention)
        hidden = second(states)
        scanned = net.readout.classifier(hidden.mean(dim=(2, 3)))
        attended = net.bilinear.classifier(3.0 * power_normalize(bilinear_pool(a, b, alpha), root_eps=1e-5))
        output = model(images)
    torch.testing.assert_close(output.logits, attended + 0.3 * scanned)
    torch.testing.assert_close(output.heads, {"hidden": scanned, "bilinear": attended})
    torch.testing.assert_close(output.attention[:, :2], normalize_map(torch.stack([alpha, hidden.norm(dim=1)], dim=1)))


def test_attention_begins_as_the_parent_reads_the_map() -> None:
    images = example_batch()[0]
    with torch.no_grad():
        ours, parent = evaluation_mode(make()), evaluation_mode(make(**PARENT))
        parent.network.readout.load_state_dict(network(ours).bilinear.state_dict())
        for name in ("backbone", "second_backbone"):
            parent.network.get_submodule(name).load_state_dict(ours.network.get_submodule(name).state_dict())
        torch.testing.assert_close(ours(images).heads["bilinear"], parent(images).logits)


def test_attention_over_the_whole_map_follows_the_equations() -> None:
    model = evaluation_mode(make(**STATIC, scale=3.0))
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        a, b = net.streams(images)
        x = 3.0 * power_normalize(net.local.features(a, b))
        alpha = net.attention(x)
        hidden = net.spatial_lstm(alpha[0].numel() * alpha[:, None] * x)
        scanned = net.readout.classifier(torch.einsum("bhw,bchw->bc", alpha, hidden))
        attended = net.bilinear.classifier(3.0 * power_normalize(bilinear_pool(a, b, alpha), root_eps=1e-5))
        output = model(images)
    torch.testing.assert_close(output.logits, attended + 0.3 * scanned)
    torch.testing.assert_close(output.heads, {"hidden": scanned, "bilinear": attended})


def test_the_evidence_is_for_the_class_that_both_readouts_predict() -> None:
    model = evaluation_mode(make(hidden_weight=3.0))
    images = example_batch((96, 64))[0]
    with torch.no_grad():
        output = model(images)
        by_class = [model(images, torch.full((4,), k)).attention[:, 2] for k in range(5)]
    assert not torch.equal(output.heads["bilinear"].argmax(dim=1), output.logits.argmax(dim=1))
    expected = torch.stack([by_class[k][image] for image, k in enumerate(output.logits.argmax(dim=1).tolist())])
    torch.testing.assert_close(output.attention[:, 2], expected)


def test_the_readout_of_the_scan_alone_follows_the_equations() -> None:
    model = evaluation_mode(make(**STATIC, **HIDDEN, scale=3.0))
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        a, b = net.streams(images)
        x = 3.0 * power_normalize(net.local.features(a, b))
        alpha = net.attention(x)
        locations = alpha[0].numel()
        hidden = net.spatial_lstm(locations * alpha[:, None] * x)
        pooled = torch.einsum("bhw,bchw->bc", alpha, hidden)
        output = model(images)
        torch.testing.assert_close(output.logits, net.readout.classifier(pooled))
    torch.testing.assert_close(output.attention, torch.stack([normalize_map(alpha), normalize_map(hidden.norm(dim=1))], 1))


def test_the_head_of_the_scan_may_read_the_streams_beside_its_states() -> None:
    model = evaluation_mode(make(**HIDDEN, residual=True))
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        a, b = net.streams(images)
        alpha, hidden, _ = net.focus(a, b)
        attended = [hidden.mean(dim=(2, 3)), *(torch.einsum("bhw,bchw->bc", alpha, maps) for maps in (a, b))]
        torch.testing.assert_close(model(images).logits, net.readout.classifier(torch.cat(attended, dim=1)))


@pytest.mark.parametrize("attention", ["causal", "static", "none"])
def test_the_evidence_tells_of_all_that_both_heads_read_of_the_streams(attention: str) -> None:
    model = evaluation_mode(make(residual=True, hidden_weight=2.0, attention=attention))
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        a, b = net.streams(images)
        output = model(images)
        chosen = output.logits.argmax(dim=1)
        alpha, hidden, _ = net.focus(a, b)
        _, bilinear = net.bilinear(a, b, alpha, chosen)
        streams = net.readout.evidence(a, b, alpha, chosen)
        torch.testing.assert_close(output.attention[:, -1], normalize_map(bilinear + 2.0 * streams))
        states = torch.einsum("bhw,bchw->bc", alpha, hidden) if attention == "static" else hidden.mean((2, 3))
        head = net.readout.classifier
        told = streams.sum((1, 2)) + (head.weight[chosen, : states.shape[1]] * states).sum(1) + head.bias[chosen]
    torch.testing.assert_close(told, output.heads["hidden"].gather(1, chosen[:, None])[:, 0])


def test_local_features_and_states_may_be_batch_normalised() -> None:
    model = evaluation_mode(make(**STATIC, scale=3.0, batch_norm=True))
    net, images = network(model), example_batch((96, 64))[0]
    norms = net.batch_norm, net.readout.norm
    assert all(isinstance(norm, torch.nn.BatchNorm2d) for norm in norms)
    for seed, norm in enumerate(norms):
        generator = torch.Generator().manual_seed(seed)
        for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)

    def normalised(x: torch.Tensor, norm: Any) -> torch.Tensor:
        mean, variance, weight, bias = (v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    with torch.no_grad():
        a, b = net.streams(images)
        factors = [stream.movedim(1, -1) @ side.weight.T + 1 for stream, side in ((a, net.local.u), (b, net.local.v))]
        x = normalised((factors[0] * factors[1] @ net.local.p.weight.T).movedim(-1, 1), norms[0])
        alpha = net.attention(x)
        hidden = normalised(net.spatial_lstm(alpha[0].numel() * alpha[:, None] * x), norms[1])
        scanned = net.readout.classifier(torch.einsum("bhw,bchw->bc", alpha, hidden))
        attended = net.bilinear.classifier(3.0 * power_normalize(bilinear_pool(a, b, alpha), root_eps=1e-5))
        heads = model(images).heads
    torch.testing.assert_close(heads, {"hidden": scanned, "bilinear": attended}, rtol=1e-4, atol=1e-4)


def test_the_recurrent_form_reads_the_scan_before() -> None:
    model = make(**HIDDEN, attention="recurrent", layers=1, glimpses=3, dropout=0.0).train()
    net, (images, targets, keys) = network(model), example_batch()
    output = model(images, targets, keys)
    a, b = net.streams(images)
    x = 10.0 * net.local(a, b)
    hidden, alphas = None, []
    for _ in range(3):
        alphas.append(net.attention(x, hidden))
        hidden = net.spatial_lstm(alphas[-1][0].numel() * alphas[-1][:, None] * x)
    logits = net.readout.classifier((alphas[-1][:, None] * hidden).sum(dim=(2, 3)))
    torch.testing.assert_close(output.logits, logits)
    penalty = (1 - torch.stack(alphas).sum(dim=0)).square().sum(dim=(1, 2)).mean()
    terms = model.loss(output, targets)
    torch.testing.assert_close(terms["penalty"], 0.01 * penalty)
    torch.testing.assert_close(terms["global"], torch.nn.functional.cross_entropy(output.logits, targets))


def test_without_attention_the_hidden_states_are_averaged() -> None:
    model = evaluation_mode(make(**HIDDEN, attention="none", layers=1))
    net, images = network(model), example_batch()[0]
    with torch.no_grad():
        hidden = net.spatial_lstm(10.0 * net.local(*net.streams(images)))
        output = model(images)
        torch.testing.assert_close(output.logits, net.readout.classifier(hidden.mean(dim=(2, 3))))
    torch.testing.assert_close(output.attention, normalize_map(hidden.norm(dim=1))[:, None])


def test_the_parent_is_b_cnn() -> None:
    model = evaluation_mode(make(**PARENT, scale=2.0))
    net, images = network(model), example_batch()[0]
    assert net.local is None
    with torch.no_grad():
        a, b = net.streams(images)
        sums = [sum(torch.outer(p, q) for p, q in zip(m, n, strict=True)).flatten() for m, n in pairs(a, b)]
        # Of the mean over locations, with published code's epsilon.
        vector = torch.stack(sums) / (a.shape[2] * a.shape[3])
        root = vector / (vector.abs() + 4e-5).sqrt()
        expected = net.readout.classifier(2.0 * root / root.norm(dim=1, keepdim=True))
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)


def pairs(a: torch.Tensor, b: torch.Tensor) -> Any:
    """Locations of both streams, (L, C) and (L, D) of each image."""
    return zip(a.flatten(2).transpose(1, 2), b.flatten(2).transpose(1, 2), strict=True)


def test_attention_alone_weighs_the_bilinear_vector() -> None:
    model = evaluation_mode(make(attention="static", spatial_lstm=False))
    net, images = network(model), example_batch()[0]
    with torch.no_grad():
        a, b = net.streams(images)
        alpha = net.attention(10.0 * net.local(a, b))
        expected = net.readout.classifier(10.0 * power_normalize(bilinear_pool(a, b, alpha), root_eps=1e-5))
        torch.testing.assert_close(model(images).logits, expected)


def test_the_control_concatenates_both_streams() -> None:
    model = evaluation_mode(make(**CONTROL))
    net, images = network(model), example_batch()[0]
    with torch.no_grad():
        a, b = net.streams(images)
        expected = net.readout.classifier(torch.cat([a.mean(dim=(2, 3)), b.mean(dim=(2, 3))], dim=1))
        torch.testing.assert_close(model(images).logits, expected)


def test_a_penalty_is_there_in_training_where_attention_has_something_to_avoid() -> None:
    images, targets, keys = example_batch()
    assert make(**STATIC).train()(images, targets, keys).extra == {}
    for attention in ("causal", "recurrent"):
        model = make(attention=attention)
        assert set(model.train()(images, targets, keys).extra) == {"penalty"}
        assert model.eval()(images).extra == {}


def test_shuffled_cells_are_scanned_in_another_order_and_shown_where_they_are() -> None:
    net = network(evaluation_mode(make(shuffle=True, content=True)))
    plain = network(evaluation_mode(make(content=True)))
    for model in (net, plain):
        torch.manual_seed(1)
        nn.init.normal_(model.attention.location, std=3.0)
    with torch.no_grad():
        a, b = net.streams(example_batch((96, 64))[0])
        x = net.local_features(a, b)
        order = keyed_uniform(torch.zeros(4, 3, dtype=torch.long), 24, salt=30).argsort(dim=1)
        shuffled = torch.stack([image.flatten(1)[:, places].view_as(image) for image, places in zip(x, order, strict=True)])
        states, alpha, _ = net.spatial_lstm.attend(shuffled, net.attention)
        states = net.deeper[0](states)
        found = net.focus(a, b)
        for image, places in enumerate(order.tolist()):
            for scanned, place in enumerate(places):
                row, column, at = scanned // 4, scanned % 4, (place // 4, place % 4)
                assert found.alpha[image][at] == alpha[image, row, column]
                assert torch.equal(found.hidden[image][:, at[0], at[1]], states[image, :, row, column])
        assert not torch.allclose(found.hidden, plain.focus(a, b).hidden)


def test_training_draws_an_order_for_every_image_and_testing_has_one() -> None:
    net, (images, _, keys) = network(make(shuffle=True)), example_batch()
    with torch.no_grad():
        a, b = (stream[:1].expand(4, -1, -1, -1) for stream in net.eval().streams(images))
        testing, training = net.focus(a, b, keys), net.train().focus(a, b, keys)
    assert torch.allclose(testing.hidden[0], testing.hidden[3])
    assert not torch.allclose(training.hidden[0], training.hidden[3])


# ---------------------------------------------------------------------- maps


@pytest.mark.parametrize(
    ("arguments", "names", "by_class"),
    [
        ({}, ["attention", "hidden states", "evidence"], [False, False, True]),
        (HIDDEN, ["attention", "hidden states"], [False, False]),
        ({**HIDDEN, "attention": "recurrent"}, ["attention", "hidden states"], [False, False]),
        ({"attention": "none"}, ["hidden states", "evidence"], [False, True]),
        ({"attention": "static", "spatial_lstm": False}, ["attention", "evidence"], [False, True]),
        (PARENT, ["evidence"], [True]),
        (CONTROL, ["activation"], [True]),
    ],
)
def test_maps_of_each_variant(arguments: dict[str, Any], names: list[str], by_class: list[bool]) -> None:
    model = evaluation_mode(make(**arguments))
    images = example_batch((64, 96))[0]
    first, second = (model.explain(images, torch.full((4,), k)) for k in (0, 1))
    assert first.shape == (4, len(names), 64, 96)
    assert model.map_names(len(names)) == names
    assert [not torch.equal(one, other) for one, other in zip(first.unbind(1), second.unbind(1), strict=True)] == by_class


@pytest.mark.parametrize("pyramid", [(1,), (1, 2), (3,)])
def test_evidence_of_the_bilinear_readout_sums_to_the_logit(pyramid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    readout = bilinear_readout(6, 4, scale=10.0, pyramid=pyramid).double()
    a, b = torch.randn(2, 6, 3, 5).double(), torch.randn(2, 4, 3, 5).double()
    alpha = torch.rand(2, 3, 5).double()
    targets = torch.tensor([3, 1])
    logits, evidence = readout(a, b, alpha, targets)
    expected = logits.gather(1, targets[:, None])[:, 0] - readout.classifier.bias[targets]
    torch.testing.assert_close(evidence.sum(dim=(1, 2)), expected.detach(), rtol=0, atol=1e-8)


# ---------------------------------------------------------------------- streams


def test_the_paper_like_network_reads_vgg16_and_resnet34_at_stride_16() -> None:
    with torch.device("meta"):
        net = network(SRBN(200, pretrained=False))
    assert (net.backbone.name, net.second_backbone.name) == ("vgg16", "resnet34")
    assert net.backbone.levels[-1] == (512, 16)
    assert net.second_backbone.levels[-1] == (256, 16)
    assert tuple(net.local.p.weight.shape) == (512, 2048)


@pytest.mark.parametrize(
    ("backbone", "first", "second"),
    [
        ("test_efficientnet", (256, 32), (48, 16)),
        ("test_resnet", (96, 32), (192, 16)),
        ("tiny_vgg", (32, 32), (32, 16)),
        ("test_convnext", (64, 32), (48, 16)),
    ],
)
def test_a_second_copy_is_read_at_another_depth(backbone: str, first: tuple[int, int], second: tuple[int, int]) -> None:
    net = network(make(backbone=backbone))
    assert net.backbone.levels[-1] == first
    assert net.second_backbone.levels[-1] == second
    a, b = net.streams(torch.randn(1, 3, 96, 64))
    assert a.shape[-2:] == b.shape[-2:] == (6, 4)


def test_a_second_copy_is_read_at_the_last_level_where_that_is_fine_enough() -> None:
    assert network(make(stride=32)).second_backbone.levels[-1] == network(make(stride=32)).backbone.levels[-1]


def test_a_second_transformer_is_read_as_the_mean_of_its_levels() -> None:
    net = network(make(backbone="test_vit").eval())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        a, b = net.streams(images)
        torch.testing.assert_close(b, torch.stack(net.second_backbone(images)).mean(dim=0))
        assert not torch.allclose(b, net.second_backbone(images)[-1])
    assert a.shape == b.shape == (1, 64, 4, 6)


def test_the_streams_share_no_weights() -> None:
    net = network(make())
    assert not set(net.backbone.parameters()) & set(net.second_backbone.parameters())


def test_each_stream_sees_images_in_its_own_normalisation() -> None:
    net = network(make(second_backbone="test_resnet").eval())
    net.second_backbone.mean, net.second_backbone.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    parts = {"backbone": net.backbone, "second_backbone": net.second_backbone, "average_levels": False, "scale": 1.0}
    net = make().build(SRBNNetwork, **parts).eval()
    raw = torch.rand(1, 3, 64, 64)
    first, second = (
        (raw - torch.tensor(b.mean).view(-1, 1, 1)) / torch.tensor(b.std).view(-1, 1, 1)
        for b in (net.backbone, net.second_backbone)
    )
    with torch.no_grad():
        expected = net.second_backbone(second)[-1]
        torch.testing.assert_close(net.streams(first)[1], expected, rtol=1e-4, atol=1e-4)


def test_weight_files_reach_their_streams(tmp_path: Path) -> None:
    source = network(make())
    state = {name: torch.full_like(value, 0.125) for name, value in source.backbone.model.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    net = network(make(backbone_weights=tmp_path / "w.pth"))
    for backbone in (net.backbone, net.second_backbone):
        assert all((parameter == 0.125).all() for parameter in backbone.parameters())
    net = network(make(second_backbone_weights=tmp_path / "w.pth"))
    assert not all((parameter == 0.125).all() for parameter in net.backbone.parameters())
    assert all((parameter == 0.125).all() for parameter in net.second_backbone.parameters())


def test_wide_streams_are_narrowed_to_the_largest_bilinear_size() -> None:
    readout = network(make(**PARENT, bilinear_size=48 * 20)).readout
    assert tuple(readout.narrow_first.weight.shape) == (20, 256, 1, 1)
    assert isinstance(readout.narrow_second, torch.nn.Identity)
    assert readout.classifier.in_features == 48 * 20
    narrowed = bilinear_readout(10, 30, bilinear_size=200)
    assert narrowed.classifier.in_features == 200
    assert isinstance(narrowed.narrow_second, torch.nn.Conv2d)


def test_resnet50_keeps_a_classifier_of_the_papers_length() -> None:
    with torch.device("meta"):
        readout = network(SRBN(200, backbone="resnet50", pretrained=False, **PARENT)).readout
    assert readout.classifier.in_features == 512 * 512


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("base", "arguments"),
    [
        ({}, {"attention": "none"}),
        ({}, {"attention": "recurrent"}),
        (STATIC, {"spatial_lstm": False}),
        ({}, {"layers": 1}),
        ({}, {"neighbourhood": "causal"}),
        ({}, {"shuffle": True}),
        ({}, {"pyramid": [1, 2]}),
        ({}, HIDDEN),
        ({}, {"hidden_weight": 1.0}),
        ({}, {"directions": 4}),
        ({}, {"hidden_size": 8}),
        ({}, {"rank": 8}),
        ({}, {"projection": 8}),
        (STATIC, {"attention_size": 4}),
        ({}, {"scale": 1.0}),
        ({}, {"batch_norm": True}),
        ({}, {"residual": True}),
        ({}, {"stride": 8}),
        ({}, {"second_backbone": "test_resnet"}),
        ({"attention": "recurrent", "layers": 1}, {"glimpses": 3}),
        (PARENT, {"combine": "concat"}),
        ({}, {"bilinear_size": 500}),
        (PARENT, {"bilinear_size": 500}),
        (PARENT, {"scale": 3.0}),
        (PARENT, {"optimizer": "adamw"}),
    ],
    ids=str,
)
def test_every_argument_changes_the_output(base: dict[str, Any], arguments: dict[str, Any]) -> None:
    images = example_batch()[0]
    with torch.no_grad():
        usual, other = (evaluation_mode(make(**{**base, **more}))(images).logits for more in ({}, arguments))
    assert not torch.allclose(usual, other, atol=1e-7)


def test_penalty_weight_scales_the_penalty() -> None:
    images, targets, keys = example_batch()
    one, two = make(attention="recurrent", penalty_weight=1.0), make(attention="recurrent", penalty_weight=2.0)
    terms = [model.loss(model.train()(images, targets, keys), targets) for model in (one, two)]
    torch.testing.assert_close(2 * terms[0]["penalty"], terms[1]["penalty"])


@pytest.mark.parametrize("variant", [{}, CONTROL], ids=["lstm", "control"])
def test_dropout_acts_in_training(variant: dict[str, Any]) -> None:
    images, targets, keys = example_batch()
    for dropout, same in ((0.0, True), (0.5, False)):
        model = make(**variant, dropout=dropout).train()
        first, second = (model(images, targets, keys).logits for _ in range(2))
        assert torch.equal(first, second) == same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combine": "concat"}, "model.combine"),
        ({"spatial_lstm": False}, "model.attention: 'causal' reads"),
        ({"attention": "recurrent", "spatial_lstm": False}, "model.attention: 'recurrent' reads"),
        ({"attention": "dense"}, "model.attention: 'dense'"),
        ({"attention": "none", "content": True}, "model.content"),
        ({"neighbourhood": "all"}, "model.neighbourhood"),
        ({"layers": 0}, "model.layers"),
        ({"pyramid": []}, "model.pyramid"),
        ({"attention": "recurrent", "glimpses": 1}, "model.glimpses"),
        ({"directions": 2}, "model.directions"),
        ({"new_share": 1.0}, "model.new_share"),
        ({"init": "xavier"}, "model.init"),
        ({"new_share": -0.1}, "model.new_share"),
        ({"rank": 0}, "model.rank"),
        ({"stride": 0}, "model.stride"),
        ({"stride": 1}, "model.stride: 1; the finest level of 'test_efficientnet' has stride 2"),
        ({"second_backbone": "resnet_34"}, "no network 'resnet_34'"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**arguments)


# ---------------------------------------------------------------------- numerics


@pytest.mark.parametrize("variant", [{}, PARENT, {"attention": "recurrent"}, {**STATIC, "spatial_lstm": False}], ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-6, 300.0])
def test_zero_and_extreme_features_give_finite_values_and_gradients(variant: dict[str, Any], value: float) -> None:
    model = make(**variant).train()
    net, (images, targets, keys) = network(model), example_batch()
    net.backbone.register_forward_hook(lambda m, x, levels: [value + 0 * level for level in levels])
    net.second_backbone.register_forward_hook(lambda m, x, levels: [value + 0 * level for level in levels])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, targets, keys)
        total(model, output, targets).backward()
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.attention).all()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", [{}, PARENT], ids=str)
def test_float16_is_finite_and_near_single_precision(variant: dict[str, Any]) -> None:
    model = evaluation_mode(make(**variant))
    images = example_batch()[0]
    with torch.no_grad():
        exact = model(images).logits
        with torch.autocast("cpu", torch.float16):
            lowered = model(images).logits
    torch.testing.assert_close(lowered.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("variant", [{}, PARENT, CONTROL], ids=str)
def test_a_batch_of_one_oblong_image_trains(variant: dict[str, Any]) -> None:
    model = make(**variant).train()
    images, targets, keys = example_batch((64, 160), batch=1)
    output = model(images, targets, keys)
    assert output.attention.shape[-2:] == (4, 10)
    assert all(torch.isfinite(term) for term in model.loss(output, targets).values())


# ---------------------------------------------------------------------- the two steps


class Snapshots(L.Callback):
    """The weights at the start of each epoch, and at the end."""

    def __init__(self) -> None:
        self.taken: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        self.taken.append({name: value.clone() for name, value in model.state_dict().items()})

    def on_train_end(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, model)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], prefix: str) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(f"network.{prefix}"))


def test_the_first_step_trains_the_new_layers_alone(tmp_path: Path) -> None:
    model, snapshots = make(new_share=0.5, schedule="constant"), Snapshots()
    trainer(tmp_path, max_epochs=2, callbacks=[snapshots]).fit(model, loader(batch_size=4))
    start, between, end = snapshots.taken
    for prefix in ("backbone.", "second_backbone."):
        assert not changed(start, between, prefix)
        assert changed(between, end, prefix)
    for prefix in ("local.", "attention.", "spatial_lstm.", "readout."):
        assert changed(start, between, prefix)
        assert changed(between, end, prefix)


def test_stages_name_groups_that_exist() -> None:
    for variant, classifier in (({}, {"bilinear.classifier"}), (PARENT, {"readout.classifier"}), (CONTROL, set())):
        model = make(**variant)
        groups = {str(group["name"]).partition("/")[0] for group in model.parameter_groups()}
        assert groups - {"new"} == {"backbone", "second_backbone"} | classifier
        for stage in model.stages():
            assert set(stage.rates) <= groups | {"new"}


def test_shares_and_rates_of_the_steps() -> None:
    first, second = make(new_share=0.25, new_rate=3.0).stages()
    assert (first.share, second.share) == (0.25, 0.75)
    assert (first.rate("backbone"), first.rate("second_backbone"), first.rate("new/norm+bias")) == (0, 0, 3)
    assert (first.rate("bilinear.classifier"), second.rate("bilinear.classifier"), second.rate("new")) == (3, 0.02, 1)
    assert make(optimizer="adamw").stages()[1].rate("bilinear.classifier") == 1
    assert make(joint_rate=0.3, **PARENT).stages()[1].rate("readout.classifier") == 0.3
    assert [stage.share for stage in make(new_share=0).stages()] == [1.0]


# ---------------------------------------------------------------------- how layers begin


def test_layers_between_streams_and_classifiers_can_begin_as_projections() -> None:
    net = network(make(init="orthogonal", bilinear_size=4096))
    require_projections(net.local.u, net.local.v, net.local.p, net.bilinear.narrow_first)


def test_gradients_through_the_root_are_those_of_published_code() -> None:
    # It takes the mean's root, 1e-5 below it, of features that are not negative and mostly zero.
    torch.manual_seed(0)
    a, b = (torch.randn(2, 32, 3, 4, dtype=torch.double).sub_(0.8).clamp_min_(0).requires_grad_() for _ in range(2))
    readout = bilinear_readout(32, 32, num_classes=3).double()
    vector = torch.einsum("bchw,bdhw->bcd", a, b).flatten(1) / 12
    assert (vector == 0).double().mean() > 0.2
    weights = torch.randn(2, 3, dtype=torch.double)
    found, _ = readout(a, b, None, None)
    roots = {
        "published": (vector + 1e-5).sqrt(),
        "with next to no epsilon": vector.sign() * (vector.abs() + 1e-12).sqrt(),
    }
    own, *others = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad((logits * weights).sum(), (a, b), retain_graph=True)])
        for logits in (found, *(readout.classifier(F.normalize(root)) for root in roots.values()))
    )
    published, bare = others
    assert F.cosine_similarity(own, published, dim=0) > 0.99
    assert own.norm() / published.norm() == pytest.approx(1, abs=0.1)
    assert F.cosine_similarity(bare, published, dim=0) < 0.9


def test_each_network_s_features_are_of_images_as_its_own_weights_were_trained() -> None:
    model = evaluation_mode(make(second_backbone="test_resnet", stride=32))
    net, raw = network(model), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    first, second = net.backbone, net.second_backbone
    assert (first.mean, first.std) != (second.mean, second.std)
    wanted = []
    for one in (first, second):
        mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (one.mean, one.std))
        wanted.append(one((raw - mean) / std)[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(model.features(model.normalize(raw)), torch.cat(wanted, dim=1), rtol=1e-4, atol=1e-5)
