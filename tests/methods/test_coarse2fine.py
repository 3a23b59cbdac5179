"""Coarse2Fine and its parent WS-DAN: the path from the fine pass to the attention, the stages, the rates, every argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fgzoo.errors import UsageError
from fgzoo.methods.coarse2fine import Coarse2Fine, Coarse2FineNetwork, Pass
from fgzoo.methods.training_stages import EnterStages
from fgzoo.nn import attention_boxes, attention_drop, crop_boxes, keyed_uniform, normalize_map
from fgzoo.nn.attention_pooling import draw_map, map_similarity
from fgzoo.recipes import list_recipes
from fgzoo.testing import evaluation_mode, example_batch
from tests.small import seen_by, total
from tests.training.toys import trainer

#: Stage 1 here is a coarse and a fine pass and nothing else, unless a test says otherwise.
SMALL: dict[str, Any] = {"num_maps": 4, "decoder_widths": (8, 4), "fine": "mask", "keep_views": False}


def make(stage: int | None = None, **arguments: Any) -> Coarse2Fine:
    torch.manual_seed(0)
    model = Coarse2Fine(**{"num_classes": 5, "backbone": "test_efficientnet", "pretrained": False, **SMALL, **arguments})
    if stage is not None:
        network(model).stage = stage
    return model


def network(model: Coarse2Fine) -> Coarse2FineNetwork:
    assert isinstance(model.network, Coarse2FineNetwork)
    return model.network


def given_by(module: nn.Module) -> list[Tensor]:
    """The output of every later call of a module."""
    found: list[Tensor] = []
    module.register_forward_hook(lambda _, inputs, output: found.append(output))
    return found


def mask_of_ones(net: Coarse2FineNetwork) -> None:
    nn.init.zeros_(net.decoder.last.weight)
    nn.init.constant_(net.decoder.last.bias, 1e4)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the path from the fine pass to the attention


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("fine", ["mask", "crop"])
def test_gradient_of_the_fine_loss_reaches_the_decoder_and_unless_detached_the_coarse_maps(fine: str, detach: bool) -> None:
    model = make(fine=fine, detach_attention=detach).train()
    maps = given_by(network(model).attention)
    images, targets, keys = example_batch()
    loss = F.cross_entropy(model(images, targets, keys).heads["fine"], targets)
    decoder = network(model).decoder
    assert len(maps) == 2
    of_maps, of_decoder = torch.autograd.grad(loss, (maps[0], decoder.last.weight), allow_unused=True)
    assert of_decoder.abs().max() > 0
    assert of_maps is None if detach else of_maps.abs().max() > 0


def test_detaching_changes_no_output() -> None:
    images, targets, keys = example_batch()
    outputs = [make(detach_attention=detach).train()(images, targets, keys) for detach in (False, True)]
    assert torch.equal(outputs[0].heads["fine"], outputs[1].heads["fine"])


def test_gradient_of_the_masks_mean_reaches_the_attention_weights() -> None:
    model = make().train()
    penalty = model(*example_batch()).extra["mask"]
    assert torch.autograd.grad(penalty, network(model).attention.conv.weight)[0].abs().max() > 0


def test_wsdan_sends_no_gradient_from_crop_and_drop_to_the_raw_maps() -> None:
    model = make(fine="none").train()
    maps = given_by(network(model).attention)
    heads = model(*example_batch()).heads
    assert torch.autograd.grad((heads["crop"] + heads["drop"]).sum(), maps[0], allow_unused=True)[0] is None


# ---------------------------------------------------------------------- stage 1: coarse to fine


@pytest.mark.parametrize("fine", ["mask", "crop"])
def test_with_a_mask_of_ones_fine_equals_coarse(fine: str) -> None:
    model = evaluation_mode(make(fine=fine))
    mask_of_ones(network(model))
    with torch.no_grad():
        output = model(example_batch((96, 64))[0])
    torch.testing.assert_close(output.heads["fine"], output.heads["coarse"], rtol=0, atol=2e-3 if fine == "crop" else 0)
    torch.testing.assert_close(output.logits.softmax(1), output.heads["coarse"].softmax(1), rtol=0, atol=1e-3)


def test_decoder_reads_the_mean_attended_maps() -> None:
    model = evaluation_mode(make())
    net, images = network(model), example_batch()[0]
    attended = seen_by(net.decoder)
    with torch.no_grad():
        model(images)
        coarse = net.classify(images)
    expected = torch.stack([coarse.features * coarse.maps[:, k : k + 1] for k in range(4)]).mean(dim=0)
    torch.testing.assert_close(attended[0], expected)


def test_fine_pass_sees_the_image_times_the_mask() -> None:
    model = evaluation_mode(make())
    net, images = network(model), example_batch((96, 64))[0]
    inputs, masks = seen_by(net.backbone), given_by(net.decoder)
    with torch.no_grad():
        model(images)
    assert masks[0].shape == (4, 1, 96, 64)
    assert torch.equal(inputs[1], images * masks[0])


def test_penalty_is_the_masks_mean_or_the_boxs_area() -> None:
    images, targets, keys = example_batch()
    model = make().train()
    masks = given_by(network(model).decoder)
    torch.testing.assert_close(model(images, targets, keys).extra["mask"], masks[0].mean())
    model = make(fine="crop").train()
    mask_of_ones(network(model))
    torch.testing.assert_close(model(images, targets, keys).extra["mask"], torch.tensor(1.0))


def test_loss_of_stage_1_is_the_mean_cross_entropy_and_eta_times_the_mask() -> None:
    model = make(mask_weight=0.3).train()
    images, targets, keys = example_batch()
    output = model(images, targets, keys)
    expected = sum(F.cross_entropy(output.heads[name], targets) for name in ("coarse", "fine")) / 2
    torch.testing.assert_close(total(model, output, targets), expected + 0.3 * output.extra["mask"])
    assert set(output.heads) == {"coarse", "fine"}


@pytest.mark.parametrize("fine", ["mask", "crop"])
def test_a_backbone_that_stands_still_lets_the_fine_pass_teach_the_decoder(fine: str) -> None:
    model = make(stage=1, fine=fine, fine_backbone_rate=0.0).train()
    EnterStages().enter(model, 1)
    images, targets, keys = example_batch((96, 96))
    F.cross_entropy(model(images, targets, keys).heads["fine"], targets).backward()
    decoder = network(model).decoder
    assert decoder is not None
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_attention_of_stage_1_ends_with_the_mask() -> None:
    model = evaluation_mode(make())
    net, images = network(model), example_batch((96, 66))[0]
    masks = given_by(net.decoder)
    with torch.no_grad():
        attention = model(images).attention
    assert attention.shape == (4, 5, 24, 17)
    smaller = F.interpolate(masks[0], size=(24, 17), mode="bilinear", align_corners=False)
    torch.testing.assert_close(attention[:, -1:], normalize_map(smaller))


# ---------------------------------------------------------------------- stage 0: WS-DAN


def test_a_maps_share_is_what_the_class_loses_to_the_mean_class_without_it() -> None:
    model = make().eval()
    net = network(model)
    images, classes = example_batch(batch=3)[0], torch.tensor([0, 3, 4])
    with torch.no_grad():
        nn.init.normal_(net.classifier.weight)

        def lead(pooled: Tensor) -> Tensor:
            logits = net.classifier(pooled)
            return logits[torch.arange(3), classes] - logits.mean(dim=1)

        pooled = net.classify(images).pooled
        lost = []
        for number in range(4):
            without = pooled.clone().unflatten(1, (4, -1))
            without[:, number] = 0
            lost.append((lead(pooled) - lead(without.flatten(1))).clamp_min(0))
        expected = torch.stack(lost, dim=1)
        expected /= expected.sum(dim=1, keepdim=True)
        torch.testing.assert_close(model.map_shares(images, classes), expected)
        net.classifier.weight += torch.randn(net.classifier.weight.shape[1])  # the same for all classes
        torch.testing.assert_close(model.map_shares(images, classes), expected, atol=1e-4, rtol=1e-3)


def test_stage_0_is_the_parent() -> None:
    images, targets, keys = example_batch()
    child, parent = make(stage=0), make(fine="none")
    network(parent).load_state_dict({k: v for k, v in network(child).state_dict().items() if not k.startswith("decoder.")})
    for training in (True, False):
        outputs = [model.train(training)(images, targets, keys) for model in (child, parent)]
        assert list(outputs[0].heads) == list(outputs[1].heads)
        assert all(torch.equal(outputs[0].heads[name], outputs[1].heads[name]) for name in outputs[0].heads)
        assert torch.equal(outputs[0].attention, outputs[1].attention)


@pytest.mark.parametrize(("training", "weight"), [(True, 0.0), (False, 1.0)])
def test_stage_0_does_not_run_the_decoder_where_it_learns_nothing(training: bool, weight: float) -> None:
    model = make(stage=0, region_weight=weight).train(training)
    calls = seen_by(network(model).decoder)
    model(*example_batch())
    assert not calls


def test_stage_0_teaches_the_decoder_the_box_round_the_mean_map() -> None:
    model = make(stage=0, region_weight=0.5, region_theta=0.9).train()
    net = network(model)
    maps, masks = given_by(net.attention), given_by(net.decoder)
    images, targets, keys = example_batch((96, 64))
    terms = model.loss(model(images, targets, keys), targets)
    boxes = attention_boxes(maps[0].mean(dim=1), torch.full((len(images),), 0.9), 0.05)[:, 0]
    region = torch.zeros_like(masks[0])
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for row in range(96):
            for column in range(64):
                region[n, 0, row, column] = x0 <= (column + 0.5) / 64 < x1 and y0 <= (row + 0.5) / 96 < y1
    assert 0 < region.mean() < 1
    expected = -(region * masks[0].log() + (1 - region) * (1 - masks[0]).log()).mean()
    torch.testing.assert_close(terms["region"], 0.5 * expected)


def test_learning_the_region_leaves_backbone_and_attention_alone() -> None:
    model = make(stage=0, region_theta=0.9).train()
    model(*example_batch()).extra["region"].backward()
    assert {name.partition(".")[0] for name, p in model.network.named_parameters() if p.grad is not None} == {"decoder"}


@pytest.mark.parametrize("training", [True, False])
def test_stage_1_can_keep_the_passes_of_the_parent(training: bool) -> None:
    images, targets, keys = example_batch()
    kept, replaced, parent = (make(**arguments) for arguments in ({"keep_views": True}, {}, {"stage": 0}))
    kept_output, replaced_output, parent_output = (m.train(training)(images, targets, keys) for m in (kept, replaced, parent))
    names = ["coarse", "crop", "drop", "fine"] if training else ["coarse", "crop", "fine"]
    assert list(kept_output.heads) == names
    for name in names[1:-1]:
        assert torch.equal(kept_output.heads[name], parent_output.heads[name])
    assert torch.equal(kept_output.heads["coarse"], replaced_output.heads["coarse"])
    assert ("center" in kept_output.extra) == training
    assert "center" not in replaced_output.extra


def test_untrained_networks_are_in_their_last_stage() -> None:
    assert network(make()).stage == 1
    assert network(make(fine="none")).stage == 0


def test_training_sees_the_image_a_crop_and_an_erased_image() -> None:
    model = make(fine="none").train()
    net = network(model)
    images, targets, keys = example_batch((96, 64), batch=6)
    inputs, maps = seen_by(net.backbone), given_by(net.attention)
    model(images, targets, keys)
    crop_draw, drop_draw, crop_share, drop_share = keyed_uniform(keys, 4, salt=20).unbind(1)
    boxes = attention_boxes(draw_map(maps[0], crop_draw), 0.4 + 0.2 * crop_share, 0.1)
    erased = attention_drop(images, draw_map(maps[0], drop_draw), 0.2 + 0.3 * drop_share)
    assert len(inputs) == 3
    assert torch.equal(inputs[0], images)
    torch.testing.assert_close(inputs[1], crop_boxes(images, boxes, (96, 64)))
    assert torch.equal(inputs[2], erased)


def test_loss_of_stage_0_is_the_mean_cross_entropy_and_the_distance_to_the_centres() -> None:
    model = make(fine="none", center_weight=0.7).train()
    images, targets, keys = example_batch(batch=6)
    pooled: list[Pass] = []
    classify = network(model).classify

    def spy(x: Tensor) -> Pass:
        pooled.append(classify(x))
        return pooled[-1]

    network(model).classify = spy  # type: ignore[method-assign]
    network(model).centers.centers.normal_()
    read = F.normalize(network(model).centers.centers, dim=1)[targets]
    output = model(images, targets, keys)
    expected = sum(F.cross_entropy(output.heads[name], targets) for name in ("raw", "crop", "drop")) / 3
    distance = (pooled[0].pooled - read).square().sum(1).mean()
    torch.testing.assert_close(total(model, output, targets), expected + 0.7 * distance)


def test_testing_averages_the_probabilities_of_image_and_crop_of_the_mean_map() -> None:
    model = evaluation_mode(make(fine="none"))
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        output = model(images)
        raw = net.classify(images)
        boxes = attention_boxes(raw.maps.mean(1), torch.full((4,), 0.1), 0.05)
        crop = net.classify(crop_boxes(images, boxes, (96, 64)))
    torch.testing.assert_close(output.heads["raw"], raw.logits)
    torch.testing.assert_close(output.heads["crop"], crop.logits)
    mean = (raw.logits.softmax(1) + crop.logits.softmax(1)) / 2
    torch.testing.assert_close(output.logits.softmax(1), mean)
    torch.testing.assert_close(output.logits, mean.log())


def test_attention_of_stage_0_ends_with_the_mean_map() -> None:
    model = evaluation_mode(make(fine="none"))
    images = example_batch()[0]
    with torch.no_grad():
        maps = network(model).classify(images).maps
        attention = model(images).attention
    torch.testing.assert_close(attention[:, :4], normalize_map(maps))
    torch.testing.assert_close(attention[:, 4], normalize_map(maps.mean(1)))


def test_training_without_classes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"targets: .*give the images' classes"):
        make(fine="none").train()(example_batch()[0])


@pytest.mark.parametrize("stage", [0, 1])
def test_similarity_of_the_maps_is_logged_and_not_trained(stage: int) -> None:
    model = make(stage=stage).train()
    maps = given_by(network(model).attention)
    images, targets, keys = example_batch()
    output = model(images, targets, keys)
    similarity = output.extra["log_map_similarity"]
    torch.testing.assert_close(similarity, map_similarity(maps[0]))
    assert not similarity.requires_grad
    assert not any("similarity" in name for name in model.loss(output, targets))


# ---------------------------------------------------------------------- networks and inputs


def test_the_paper_network_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        net = network(Coarse2Fine(200, pretrained=False))
    assert net.backbone.levels[-1] == (768, 16)
    assert net.attention.conv.weight.shape == (32, 768, 1, 1)
    assert net.classifier.weight.shape == (200, 24_576)
    assert net.classifier.bias is None


def test_other_backbones_are_read_at_their_last_level() -> None:
    assert network(make()).backbone.levels[-1] == (256, 32)


def test_the_paper_stride_can_be_overruled() -> None:
    with torch.device("meta"):
        model = Coarse2Fine(5, "inception_v3.tv_in1k", pretrained=False, attention_stride=32)
    assert network(model).backbone.levels[-1] == (2048, 32)


def test_compiled_training_moves_the_centres() -> None:
    torch._dynamo.reset()
    plain, compiled = (network(make(fine="none")).train() for _ in range(2))
    images, targets, keys = example_batch()
    plain(images, targets, keys)
    torch.compile(compiled, backend="eager", fullgraph=True)(images, targets, keys)
    assert plain.centers.centers.abs().sum() > 0
    torch.testing.assert_close(compiled.centers.centers, plain.centers.centers)


@pytest.mark.parametrize(("weight", "missed"), [(1.0, set()), (0.0, {"decoder"})])
def test_every_parameter_is_reached_in_stage_0_but_those_of_an_idle_decoder(weight: float, missed: set[str]) -> None:
    model = make(stage=0, region_weight=weight).train()
    images, targets, keys = example_batch((96, 96))
    total(model, model(images, targets, keys), targets).backward()
    assert {name.partition(".")[0] for name, p in model.network.named_parameters() if p.grad is None} == missed


# ---------------------------------------------------------------------- rates and stages


def rates(**arguments: Any) -> dict[str, float]:
    model = make(lr=1.0, backbone_lr_factor=0.3, **arguments)
    return {group["name"].partition("/")[0]: round(group["lr"], 9) for group in model.parameter_groups()}


GIVEN = {"attention_lr_factor": 0.7, "classifier_lr_factor": 0.6, "decoder_lr_factor": 0.9}


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        ({}, {"attention": 1, "classifier": 1, "decoder": 1}),
        ({"optimizer": "adamw"}, {"attention": 0.5, "classifier": 0.05, "decoder": 1}),
        (GIVEN, {"attention": 0.7, "classifier": 0.6, "decoder": 0.9}),
        ({"optimizer": "adamw", **GIVEN}, {"attention": 0.7, "classifier": 0.6, "decoder": 0.9}),
        ({"fine": "none"}, {"attention": 1, "classifier": 1}),
    ],
)
def test_rates(arguments: dict[str, Any], new: dict[str, float]) -> None:
    assert rates(**arguments) == {"backbone": 0.3, **new}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("wsdan", "80 epochs as in its paper (its code: 160)"),
        ("coarse2fine", "80 epochs of WS-DAN as in its paper (its code: 160)"),
        ("rra", "90 of their 500 epochs"),
        ("rra-parent", "90 of their 500 epochs"),
    ],
)
def test_recipes_that_train_for_less_than_the_published_code_say_so(recipe: str, said: str) -> None:
    assert said in list_recipes()[f"cub/{recipe}"]


def test_the_parent_has_one_stage() -> None:
    assert [stage.share for stage in make(fine="none").stages()] == [1]


def test_stages_and_their_rates() -> None:
    first, second = make(fine_share=0.25, fine_backbone_rate=0.2, fine_head_rate=0.4).stages()
    assert (first.share, second.share) == (0.75, 0.25)
    assert [first.rate(name) for name in ("backbone", "attention", "classifier", "decoder")] == [1, 1, 1, 1]
    assert [second.rate(name) for name in ("backbone", "attention", "classifier", "decoder")] == [0.2, 0.4, 0.4, 1]


@pytest.mark.parametrize("learns", [True, False])
def test_one_fit_goes_through_both_stages(learns: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    loader = DataLoader([(pixels[i], i % 5, i) for i in range(8)], batch_size=4)  # type: ignore[arg-type]
    model = make(optimizer="adamw", lr=1e-3, region_weight=float(learns))
    decoder = network(model).decoder
    history: list[tuple[int, bool, bool]] = []
    last = [decoder.last.weight.detach().clone(), network(model).centers.centers.clone()]

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            now = [decoder.last.weight.detach().clone(), network(model).centers.centers.clone()]
            moved, centred = (not torch.equal(a, b) for a, b in zip(now, last, strict=True))
            history.append((network(model).stage, moved, centred))
            last[:] = now

    trainer(tmp_path, callbacks=[Watch()]).fit(model, loader)
    # stage, whether the decoder moved, whether the centres moved
    assert history == [(0, learns, True), (0, learns, True), (1, True, False)]


# ---------------------------------------------------------------------- arguments


def evaluated(model: Coarse2Fine) -> Tensor:
    with torch.no_grad():
        return evaluation_mode(model)(example_batch()[0]).logits


def trained(model: Coarse2Fine) -> Tensor:
    """The loss of a second training pass, in which the first one's centres count."""
    images, targets, keys = example_batch(batch=8)
    with torch.no_grad():
        model.train()(images, targets, keys)
        return total(model, model(images, targets, keys), targets)


@pytest.mark.parametrize(
    ("base", "changed", "measure"),
    [
        ({}, {"num_maps": 3}, evaluated),
        ({}, {"init": "default"}, evaluated),
        ({}, {"attention_stride": 16}, evaluated),
        ({}, {"feature_scale": 10.0}, evaluated),
        ({}, {"fine": "crop"}, evaluated),
        ({}, {"fine": "none"}, evaluated),
        ({}, {"decoder_widths": (8, 8)}, evaluated),
        ({}, {"mask_bias": 0.0}, evaluated),
        ({}, {"mask_weight": 0.5}, trained),
        ({}, {"keep_views": True}, evaluated),
        ({"fine": "none"}, {"test_theta": 0.95}, evaluated),
        ({"fine": "none", "test_theta": 0.95}, {"test_padding": 0.2}, evaluated),
        ({"fine": "none"}, {"center_weight": 0.5}, trained),
        ({"fine": "none"}, {"crop_theta": (0.8, 0.9)}, trained),
        ({"fine": "none", "crop_theta": (0.8, 0.9)}, {"crop_padding": 0.0}, trained),
        ({"fine": "none"}, {"drop_theta": (0.8, 0.9)}, trained),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_every_argument_changes_the_output_or_the_loss(
    base: dict[str, Any], changed: dict[str, Any], measure: Callable[[Coarse2Fine], Tensor]
) -> None:
    usual, other = (measure(make(**{**base, **more})) for more in ({}, changed))
    assert not torch.allclose(usual, other, rtol=1e-5, atol=1e-6)


def test_center_rate_is_how_far_the_centres_move() -> None:
    found = []
    for rate in (0.05, 0.2):
        model = make(fine="none", center_rate=rate).train()
        model(*example_batch())
        found.append(network(model).centers.centers.clone())
    torch.testing.assert_close(found[1], 4 * found[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_maps": 0}, "num_maps"),
        ({"init": "random"}, "init"),
        ({"fine": "box"}, "fine"),
        ({"crop_theta": (0.6, 0.4)}, "crop_theta"),
        ({"crop_theta": (0.4, 1.0)}, "crop_theta"),
        ({"drop_theta": (0.0, 0.5)}, "drop_theta"),
        ({"drop_theta": (0.5,)}, "drop_theta"),
        ({"test_theta": 0.0}, "test_theta"),
        ({"crop_padding": -0.1}, "crop_padding"),
        ({"test_padding": -0.1}, "test_padding"),
        ({"region_weight": -1.0}, "region_weight"),
        ({"region_theta": 1.0}, "region_theta"),
        ({"fine_share": 0.0}, "fine_share"),
        ({"fine_share": 1.0}, "fine_share"),
        ({"center_rate": 0.0}, "center_rate"),
        ({"decoder_widths": ()}, "decoder_widths"),
        ({"decoder_widths": (8, 0)}, "decoder_widths"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^model\.{message}: "):
        make(**arguments)
