"""IAGN and its parent PMG: which step trains what on which input, and what the maps mean."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fgzoo.errors import UsageError
from fgzoo.methods.iagn import IAGN, IAGNNetwork, VectorNorm, stage_taps
from fgzoo.nn.backbone import Level
from fgzoo.nn.crops import attention_boxes, crop_boxes
from fgzoo.nn.evidence import EvidenceHead, alignment_loss, distillation_loss
from fgzoo.nn.jigsaw import jigsaw, jigsaw_order
from fgzoo.nn.maps import normalize_map
from fgzoo.nn.randomness import keyed_uniform
from fgzoo.testing import check_statistics_move, evaluation_mode, example_batch
from tests.small import total  # and registers tiny_vgg

PMG: dict[str, Any] = {
    "head": "pmg", "guidance": False, "distillation": "none", "alignment_weight": 0, "whole_statistics": False,
}  # fmt: skip
#: No mechanism on top of progressive training, but evidence heads.
PLAIN: dict[str, Any] = {**PMG, "head": "evidence"}
#: PMG's classifiers, which have batch-norms of their own, but for whole images' statistics.
WHOLE: dict[str, Any] = {**PMG, "whole_statistics": True}


def make(**arguments: Any) -> IAGN:
    torch.manual_seed(0)
    return IAGN(**{"num_classes": 5, "backbone": "test_efficientnet", "pretrained": False, "feature_size": 16, **arguments})


def network(model: IAGN) -> IAGNNetwork:
    assert isinstance(model.network, IAGNNetwork)
    return model.network


def head(model: IAGN, number: int) -> EvidenceHead:
    return network(model).heads[number]


def reached(model: IAGN) -> set[str]:
    return {name for name, parameter in network(model).named_parameters() if parameter.grad is not None}


def steady(model: IAGN) -> IAGN:
    """In training mode, but for batch-norm, which keeps the statistics that some training left."""
    evaluation_mode(model).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


# ---------------------------------------------------------------------- stages and blocks


def levels(*strides: int) -> list[Level]:
    return [Level(8, stride) for stride in strides]


@pytest.mark.parametrize(
    ("strides", "stages", "taps"),
    [
        ((2, 4, 8, 16, 32), 3, [2, 3, 4]),  # ResNet-50
        ((1, 2, 4, 8, 16, 32), 3, [3, 4, 5]),  # VGG
        ((4, 8, 16, 32), 3, [1, 2, 3]),  # ConvNeXt
        ((2, 4, 8, 16, 16, 32, 32), 3, [2, 4, 6]),  # of one stride the deepest
        ((16,) * 12, 3, [3, 7, 11]),  # ViT
        ((16,) * 6, 3, [1, 3, 5]),
        ((8, 16, 16, 16), 3, [0, 1, 3]),  # fewer strides than stages
        ((4, 8, 16, 32), 1, [3]),
    ],
)
def test_stages_are_the_last_of_different_stride_or_spread_over_the_depth(
    strides: tuple[int, ...], stages: int, taps: list[int]
) -> None:
    assert stage_taps(levels(*strides), stages) == taps


def test_more_stages_than_levels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.stages: 3 stages need as many levels, but this backbone has 2"):
        stage_taps(levels(8, 16), 3)


@pytest.mark.parametrize("arguments", [{}, PMG], ids=["iagn", "pmg"])
def test_resnet50_has_the_widths_of_pmg(arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        net = network(IAGN(200, pretrained=False, **arguments))
    assert [net.backbone.levels[tap].stride for tap in net.taps] == [8, 16, 32]
    convolutions = [[tuple(m.weight.shape) for m in block if isinstance(m, nn.Conv2d)] for block in net.blocks]
    assert convolutions == [[(512, width, 1, 1), (1024, 512, 3, 3)] for width in (512, 1024, 2048)]
    weights = [[tuple(p.shape) for p in h.parameters() if p.ndim > 1] for h in net.heads]
    if arguments:
        assert weights == [[(512, 1024), (200, 512)]] * 3 + [[(512, 3072), (200, 512)]]
    else:
        assert weights == [[(200, 1024, 1, 1)]] * 3 + [[(200, 3072, 1, 1)]]


def test_a_single_vector_is_normalised_by_the_running_statistics() -> None:
    norm = VectorNorm(4)
    norm.running_mean.copy_(torch.randn(4))
    single = torch.randn(1, 4)
    assert torch.equal(norm.train()(single), norm.eval()(single))
    start = copy.deepcopy(norm.state_dict())
    norm.train()(single)
    assert all(torch.equal(value, start[name]) for name, value in norm.state_dict().items())
    many = torch.randn(8, 4)
    torch.testing.assert_close(norm.train()(many).mean(0), torch.zeros(4), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- evidence


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.double, 1e-12)])
@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit"])
def test_every_logit_is_the_mean_of_its_evidence_plus_bias(backbone: str, dtype: torch.dtype, tolerance: float) -> None:
    model = evaluation_mode(make(backbone=backbone)).to(dtype)
    net, images = network(model), example_batch((96, 64))[0].to(dtype)
    with torch.no_grad():
        output, maps = net(images), net._maps(images)
        for number, name in enumerate(net.names):
            evidence = head(model, number).evidence([maps[i] for i in net.stages_of(number)])
            logits = evidence.mean(dim=(2, 3)) + head(model, number).bias
            torch.testing.assert_close(output.heads[name], logits, atol=tolerance, rtol=0)
    assert torch.equal(output.logits, output.heads["fused"])


def test_attention_is_each_classifiers_evidence_of_the_predicted_class() -> None:
    model = evaluation_mode(make())
    net, images = network(model), example_batch((96, 64))[0]
    with torch.no_grad():
        output, maps = net(images), net._maps(images)
        predicted = output.logits.argmax(1)
        assert output.attention.shape == (4, 4, 12, 8)
        for number in range(4):
            read = [maps[stage] for stage in net.stages_of(number)]
            evidence = head(model, number).evidence(read)[torch.arange(4), predicted]
            enlarged = F.interpolate(evidence[:, None], size=(12, 8), mode="bilinear", align_corners=False)[:, 0]
            torch.testing.assert_close(output.attention[:, number], normalize_map(enlarged), atol=1e-5, rtol=1e-4)


def test_maps_are_named_the_fused_one_last() -> None:
    assert make().map_names(4) == ["stage 1", "stage 2", "stage 3", "fused"]
    assert make(**PMG).map_names(3) == ["stage 1", "stage 2", "stage 3"]


def test_attention_follows_the_class_asked_for_and_the_logits_do_not() -> None:
    model = evaluation_mode(make(test_crop=True))
    images = example_batch()[0]
    with torch.no_grad():
        first, second = (model(images, torch.full((4,), k)) for k in (0, 1))
    assert not torch.allclose(first.attention, second.attention)
    assert torch.equal(first.logits, second.logits)


def test_attention_of_the_parent_is_the_mean_activation_of_its_blocks() -> None:
    model = evaluation_mode(make(**PMG))
    images = example_batch()[0]
    with torch.no_grad():
        attention, maps = model(images).attention, network(model)._maps(images)
    torch.testing.assert_close(attention[:, 0], normalize_map(maps[0].mean(1)))


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "tiny_vgg", "test_convnext", "test_vit"])
def test_a_step_of_the_parent_reaches_exactly_its_stage(backbone: str) -> None:
    model = make(backbone=backbone, **PMG).train()
    net, (images, targets, keys) = network(model), example_batch()
    for step, output in enumerate(model.training_outputs(images, targets, keys)):
        model.zero_grad()
        net.backbone(images)[net.taps[max(net.stages_of(step))]].sum().backward()
        own = (f"heads.{step}.", *(f"blocks.{i}." for i in net.stages_of(step)))
        expected = reached(model) | {name for name, _ in net.named_parameters() if name.startswith(own)}
        model.zero_grad()
        total(model, output, targets).backward()
        assert reached(model) == expected
    assert list(output.heads) == ["fused"]


def test_stages_see_their_grids_and_the_fused_head_the_image() -> None:
    model = steady(make(**PLAIN))
    net, (images, targets, keys) = network(model), example_batch((96, 64))
    inputs = [jigsaw(images, jigsaw_order(keyed_uniform(keys, grid**2, salt=11 + i)), grid) for i, grid in enumerate((8, 4, 2))]
    for output, seen in zip(model.training_outputs(images, targets, keys), [*inputs, images], strict=True):
        ((name, logits),) = output.heads.items()
        with torch.no_grad():
            expected = net._heads(net._maps(seen))[name]
        torch.testing.assert_close(logits, expected)
        assert torch.equal(output.logits, logits)


def test_a_step_sees_the_weights_that_the_one_before_left() -> None:
    model = steady(make(**PLAIN))
    images, targets, keys = example_batch()
    outputs = model.training_outputs(images, targets, keys)
    next(outputs)
    with torch.no_grad():
        head(model, 1).conv.weight.zero_()
    torch.testing.assert_close(next(outputs).logits, head(model, 1).bias.expand(4, 5))


def test_the_order_of_patches_changes_with_the_epoch() -> None:
    net, (images, _, keys) = network(make()), example_batch()
    first = net.stage_input(images, 0, keys)
    assert torch.equal(first, net.stage_input(images, 0, keys))
    assert not torch.equal(first, net.stage_input(images, 0, keys + torch.tensor([0, 1, 0])))


def test_without_keys_torchs_generator_decides() -> None:
    net, images = network(make()), example_batch()[0]
    torch.manual_seed(1)
    first = net.stage_input(images, 0, None)
    assert not torch.equal(first, net.stage_input(images, 0, None))
    torch.manual_seed(1)
    assert torch.equal(first, net.stage_input(images, 0, None))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"distillation": "shallow_to_deep"}, PMG, {"guidance": False, "stages": 2, "grids": [4, 3]}],
    ids=["iagn", "shallow_to_deep", "pmg", "two_stages"],
)
def test_one_steps_gradients_are_the_sum_of_the_steps_gradients(arguments: dict[str, Any]) -> None:
    model = steady(make(**arguments)).double()
    images, targets, keys = example_batch((96, 64))
    images = images.double()
    for output in model.training_outputs(images, targets, keys):
        total(model, output, targets).backward()
    summed = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    output = model(images, targets, keys)
    assert list(output.heads) == list(network(model).names)
    total(model, output, targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, summed[name], atol=1e-10, rtol=1e-8)


def test_one_step_gives_one_output_with_all_heads() -> None:
    model = make(one_step=True).train()
    assert model.steps_per_batch == 1
    (output,) = model.training_outputs(*example_batch())
    assert list(output.heads) == ["stage1", "stage2", "stage3", "fused"]
    assert make().steps_per_batch == 4


@pytest.mark.parametrize("arguments", [{}, PMG], ids=["iagn", "pmg"])
@pytest.mark.parametrize("one_step", [False, True])
def test_a_batch_of_one_oblong_image_trains(arguments: dict[str, Any], one_step: bool) -> None:
    model = make(one_step=one_step, **arguments).train()
    images, targets, keys = example_batch((64, 112), batch=1)
    for output in model.training_outputs(images, targets, keys):
        total(model, output, targets).backward()
    assert reached(model) == {name for name, _ in network(model).named_parameters()}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_dead_features_give_finite_losses_and_gradients() -> None:
    model = make().train()
    for block in network(model).blocks:
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)
    images, targets, keys = example_batch()
    for output in model.training_outputs(images, targets, keys):
        loss = total(model, output, targets)
        assert torch.isfinite(loss)
        loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        assert model.eval()(images).attention.abs().sum() == 0


# ---------------------------------------------------------------------- distillation and alignment


@pytest.mark.parametrize(
    ("direction", "teachers"),
    [("deep_to_shallow", [1, 2, 3, None]), ("shallow_to_deep", [None, 0, 1, 2]), ("none", [None] * 4)],
)
def test_a_head_learns_from_its_neighbour_on_the_same_input(direction: str, teachers: list[int | None]) -> None:
    model = steady(make(distillation=direction, guidance=False))
    net, (images, targets, keys) = network(model), example_batch()
    for student, output in enumerate(model.training_outputs(images, targets, keys)):
        teacher, name = teachers[student], f"teacher{student + 1}"
        assert (name in output.extra) == (teacher is not None)
        if teacher is not None:
            seen = images if student == net.fused else net.stage_input(images, student, keys)
            with torch.no_grad():
                expected = net._heads(net._maps(seen))[net.names[teacher]]
            torch.testing.assert_close(output.extra[name], expected)


@pytest.mark.parametrize("direction", ["deep_to_shallow", "shallow_to_deep"])
def test_the_student_alone_learns(direction: str) -> None:
    model = make(distillation=direction, guidance=False).train()
    net, (images, targets, keys) = network(model), example_batch()
    for student, output in enumerate(model.training_outputs(images, targets, keys)):
        model.zero_grad()
        total(model, output, targets).backward()
        trained = {name.split(".")[1] for name in reached(model) if name.startswith("heads.")}
        assert trained == {str(student)}
        blocks = {int(name.split(".")[1]) for name in reached(model) if name.startswith("blocks.")}
        assert blocks == set(net.stages_of(student))


def test_alignment_draws_a_stage_to_the_next_deeper_evidence_of_the_true_class() -> None:
    model = steady(make(distillation="none", guidance=False))
    net, (images, targets, keys) = network(model), example_batch()
    for student, output in enumerate(model.training_outputs(images, targets, keys)):
        if student == net.fused:
            assert output.extra == {}
            continue
        with torch.no_grad():
            maps = net._maps(net.stage_input(images, student, keys))
            read = [maps[i] for i in net.stages_of(student + 1)]
            evidence = head(model, student + 1).evidence(read)[torch.arange(4), targets]
        torch.testing.assert_close(output.extra[f"evidence{student + 1}"], evidence, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.extra[f"attention{student + 1}"], maps[student].mean(1))
        assert not output.extra[f"evidence{student + 1}"].requires_grad


def test_loss_terms_are_weighted_and_named_after_their_heads() -> None:
    model = make(distillation_weight=0.3, temperature=2.0, alignment_weight=0.7, fused_weight=3.0).train()
    images, targets, keys = example_batch()
    output = model(images, targets, keys)
    terms = model.loss(output, targets)
    expected: dict[str, Tensor] = {}
    for number in (1, 2, 3):
        logits, extra = output.heads[f"stage{number}"], output.extra
        expected[f"stage{number}"] = F.cross_entropy(logits, targets)
        expected[f"distill{number}"] = 0.3 * distillation_loss(logits, extra[f"teacher{number}"], 2.0)
        expected[f"align{number}"] = 0.7 * alignment_loss(extra[f"attention{number}"], extra[f"evidence{number}"])
    expected["fused"] = 3 * F.cross_entropy(output.heads["fused"], targets)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_the_parents_loss_is_the_cross_entropy_with_the_fused_head_twice() -> None:
    model = make(**PMG).train()
    images, targets, keys = example_batch()
    output = model(images, targets, keys)
    terms = model.loss(output, targets)
    assert list(terms) == ["stage1", "stage2", "stage3", "fused"]
    torch.testing.assert_close(terms["fused"], 2 * F.cross_entropy(output.logits, targets))


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize(("name", "own_layer_learns_alike"), [("adamw", True), ("sgd", False)])
def test_with_adamw_the_fused_weight_acts_through_shared_layers_alone(
    name: str, own_layer_learns_alike: bool, one_step: bool
) -> None:
    images, targets, keys = example_batch()
    own, shared = [], []
    for weight in (1.0, 4.0):
        model = make(**PMG, fused_weight=weight, one_step=one_step).double().train()
        weights = network(model).parameters()
        optimizer = torch.optim.AdamW(weights, eps=1e-16) if name == "adamw" else torch.optim.SGD(weights, lr=1e-3)
        for output in model.training_outputs(images.double(), targets, keys):
            optimizer.zero_grad()
            total(model, output, targets).backward()
            optimizer.step()
        own.append(network(model).heads[3].classifier[-1].weight)  # type: ignore[union-attr,index]
        shared.append(network(model).blocks[0][0].weight)  # type: ignore[index]
    assert torch.allclose(own[0], own[1], rtol=0, atol=1e-9) == own_layer_learns_alike
    assert not torch.allclose(shared[0], shared[1], rtol=0, atol=1e-9)


def test_mixed_images_have_a_loss() -> None:
    model = make().train()
    images, targets, keys = example_batch()
    output = model(images, targets, keys)
    hard, soft = (model.loss(output, given) for given in (targets, F.one_hot(targets, 5).float()))
    for name, value in hard.items():
        torch.testing.assert_close(value, soft[name])


# ---------------------------------------------------------------------- guidance


def test_the_guiding_crop_contains_the_strongest_evidence_of_the_true_class() -> None:
    model = evaluation_mode(make(guide_padding=0.0))
    net, (images, targets, keys) = network(model), example_batch((96, 64), batch=8)
    with torch.no_grad():
        maps = net._maps(images)
        evidence = head(model, net.fused).evidence(list(maps.values()), targets)
        boxes = net.guide(images, targets, keys)[:, 0]
    enlarged = F.interpolate(evidence[:, None], scale_factor=4, mode="bilinear", align_corners=False)[:, 0]
    height, width = enlarged.shape[-2:]
    assert (boxes != torch.tensor([0.0, 0, 1, 1])).any()
    for box, found in zip(boxes, enlarged, strict=True):
        y, x = divmod(int(found.argmax()), width)
        assert box[0] <= (x + 0.5) / width <= box[2]
        assert box[1] <= (y + 0.5) / height <= box[3]


def test_the_guiding_region_reaches_the_drawn_share_of_the_maximum() -> None:
    model = evaluation_mode(make())
    net, (images, targets, keys) = network(model), example_batch()
    with torch.no_grad():
        evidence = head(model, net.fused).evidence(list(net._maps(images).values()), targets)
        theta = 0.4 + 0.2 * keyed_uniform(keys, 1, salt=10)[:, 0]
        expected = attention_boxes(evidence.clamp_min(0), theta, 0.1)
        torch.testing.assert_close(net.guide(images, targets, keys), expected)


def test_the_guiding_crop_depends_on_the_true_class() -> None:
    net = network(evaluation_mode(make()))
    images, targets, keys = example_batch()
    assert not torch.equal(net.guide(images, targets, keys), net.guide(images, (targets + 1) % 5, keys))


def test_without_positive_evidence_the_whole_image_is_seen() -> None:
    model = evaluation_mode(make())
    with torch.no_grad():
        head(model, 3).conv.weight.zero_()
    boxes = network(model).guide(*example_batch())
    assert torch.equal(boxes, torch.tensor([0.0, 0, 1, 1]).expand(4, 1, 4))


def test_guided_stages_see_the_crop_and_the_fused_head_the_whole_image() -> None:
    model = steady(make(distillation="none", alignment_weight=0))
    net, (images, targets, keys) = network(model), example_batch((96, 64))
    with model.evaluating():
        boxes = net.guide(images, targets, keys)
    crops = crop_boxes(images, boxes, (96, 64))
    inputs = [jigsaw(crops, jigsaw_order(keyed_uniform(keys, grid**2, salt=11 + i)), grid) for i, grid in enumerate((8, 4, 2))]
    for output, seen in zip(model.training_outputs(images, targets, keys), [*inputs, images], strict=True):
        ((name, logits),) = output.heads.items()
        with torch.no_grad():
            torch.testing.assert_close(logits, net._heads(net._maps(seen))[name])


def test_guidance_leaves_statistics_and_modes_alone() -> None:
    model = make(distillation="none", alignment_weight=0, whole_statistics=False).train()
    twin = copy.deepcopy(model)
    images, targets, keys = example_batch()
    next(iter(model.training_outputs(images, targets, keys)))
    assert all(module.training for module in model.network.modules())
    counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert max(counts.values()) == 1
    with twin.evaluating():
        boxes = network(twin).guide(images, targets, keys)
    assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), make().train().buffers(), strict=True))
    assert boxes.shape == (4, 1, 4)


def moved(model: IAGN, step: int | None = None) -> dict[str, Tensor]:
    """What testing reads of batch-norm after one batch's steps, or after a single one."""
    model = copy.deepcopy(model).train()
    images, targets, keys = example_batch()
    if step is None:
        list(model.training_outputs(images, targets, keys))
    else:
        network(model)(images, targets, keys, step=step)
    return dict(model.named_buffers())


@pytest.mark.parametrize("one_step", [False, True])
def test_whole_images_alone_move_the_statistics(one_step: bool) -> None:
    model = make(one_step=one_step)
    found, expected = moved(model), moved(model, step=3)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    every = moved(make(one_step=one_step, whole_statistics=False))
    assert any(not torch.equal(every[name], expected[name]) for name in expected if "running_mean" in name)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("distillation", ["none", "deep_to_shallow", "shallow_to_deep"])
def test_every_batch_norm_of_pmgs_classifiers_moves(whole: bool, one_step: bool, stages: int, distillation: str) -> None:
    grids = (8, 4, 2)[-stages:]
    more = {"whole_statistics": whole, "one_step": one_step, "stages": stages, "grids": grids, "distillation": distillation}
    check_statistics_move(lambda: make(**{**PMG, **more}))


def test_a_batch_norm_without_a_batch_is_named() -> None:
    def forgetful() -> IAGN:
        model = make(**PMG)
        network(model).forgotten = nn.Sequential(nn.BatchNorm1d(3))
        return model

    with pytest.raises(AssertionError, match=r"no batch, e\.g\. \['forgotten\.0'\]"):
        check_statistics_move(forgetful)


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("distillation", ["none", "shallow_to_deep"])
def test_the_stages_classifiers_count_the_whole_image_once(one_step: bool, distillation: str) -> None:
    model = make(**{**WHOLE, "one_step": one_step, "distillation": distillation}).train()
    net, (images, targets, keys) = network(model), example_batch()
    with torch.no_grad():
        levels = copy.deepcopy(net).backbone(images)
        whole = [copy.deepcopy(block)(levels[tap]) for block, tap in zip(net.blocks, net.taps, strict=True)]
    list(model.training_outputs(images, targets, keys))
    for maps, found in zip([*whole, None], net.heads, strict=True):
        vectors = torch.cat([m.amax((2, 3)) for m in (whole if maps is None else [maps])], dim=1)
        for norm in (found.classifier[0], found.classifier[2]):
            assert norm.num_batches_tracked == 1
        torch.testing.assert_close(found.classifier[0].running_mean, 0.1 * vectors.mean(0))


def test_the_parents_classifiers_count_their_jigsaw_and_the_whole_image() -> None:
    model = make(**PMG).train()
    list(model.training_outputs(*example_batch()))
    counts = {name: int(value) for name, value in network(model).named_buffers() if name.endswith("num_batches_tracked")}
    assert [counts[f"heads.{number}.classifier.0.num_batches_tracked"] for number in range(4)] == [2, 2, 2, 1]


def test_compiled_stages_move_no_statistics() -> None:
    model = make().train()
    before = copy.deepcopy(dict(model.named_buffers()))
    compiled = torch.compile(network(model), backend="eager", fullgraph=True)
    compiled(*example_batch(), step=2)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    compiled(*example_batch(), step=3)
    assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_guidance_without_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="need the true classes"):
        make().train()(example_batch()[0])


# ---------------------------------------------------------------------- testing


def test_test_crop_averages_the_image_and_its_crop() -> None:
    usual, cropped = (evaluation_mode(make(test_crop=crop)) for crop in (False, True))
    net, images = network(usual), example_batch((96, 64))[0]
    with torch.no_grad():
        first, output = usual(images), cropped(images)
        evidence = head(usual, 3).evidence(list(net._maps(images).values()), first.logits.argmax(1))
        boxes = attention_boxes(evidence.clamp_min(0), torch.full((4,), 0.1), 0.05)
        second = usual(crop_boxes(images, boxes, (96, 64)))
    assert not torch.allclose(first.logits, output.logits)
    for name, logits in output.heads.items():
        torch.testing.assert_close(logits, (first.heads[name] + second.heads[name]) / 2)
    torch.testing.assert_close(output.logits, output.heads["fused"])


@pytest.mark.parametrize("test_heads", ["fused", "combined"])
@pytest.mark.parametrize("arguments", [{}, PMG, {"test_crop": True}], ids=["iagn", "pmg", "two_views"])
def test_fused_and_combined_are_both_scored(test_heads: str, arguments: dict[str, Any]) -> None:
    model = evaluation_mode(make(test_heads=test_heads, **arguments))
    with torch.no_grad():
        heads = dict((output := model(example_batch()[0])).heads)
    assert torch.equal(output.logits, heads[test_heads])
    combined = heads.pop("combined")
    assert tuple(heads) == network(model).names
    torch.testing.assert_close(combined, sum(heads.values()) / 4)


def test_validation_logs_the_accuracy_of_fused_and_combined() -> None:
    model = make(**PMG)
    model.trained = True
    images, targets, _ = example_batch(batch=8)
    loader = DataLoader(list(zip(images, targets.tolist(), range(8), strict=True)), batch_size=4)  # type: ignore[arg-type]
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (scores,) = trainer.validate(model, loader, verbose=False)
    with torch.no_grad():
        heads = model.eval()(images).heads
    for name in ("stage1", "stage2", "stage3", "fused", "combined"):
        assert scores[f"val/top1_{name}"] == pytest.approx(float((heads[name].argmax(1) == targets).float().mean()))


def test_evaluation_has_no_extra() -> None:
    with torch.no_grad():
        assert evaluation_mode(make())(example_batch()[0]).extra == {}


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"head": "pmg", "guidance": False, "alignment_weight": 0},
        {"guidance": False},
        {"distillation": "shallow_to_deep"},
        {"distillation": "none"},
        {"distillation_weight": 0.25},
        {"temperature": 2.0},
        {"alignment_weight": 0},
        {"alignment_weight": 0.3},
        {"stages": 2, "grids": (8, 4)},
        {"grids": (8, 4, 1)},
        {"feature_size": 8},
        {"residual": True},
        {"fused_weight": 1.0},
        {"guide_theta": (0.8, 0.9)},
        {"guide_padding": 0.0},
    ],
    ids=lambda arguments: "-".join(f"{k}={v}" for k, v in arguments.items()),
)
def test_every_training_argument_changes_the_loss(arguments: dict[str, Any]) -> None:
    images, targets, keys = example_batch()
    losses = []
    for more in ({}, arguments):
        model = steady(make(**more))
        with torch.no_grad():
            for parameter in network(model).heads.parameters():
                parameter *= 10  # as far apart as after some training; near zero, no temperature makes a difference
        losses.append(sum(float(total(model, o, targets).detach()) for o in model.training_outputs(images, targets, keys)))
    assert losses[0] != pytest.approx(losses[1], rel=1e-7)


def test_the_level_itself_is_evidence_beside_its_block() -> None:
    model, images = evaluation_mode(make(residual=True, grids=(4, 2), stages=2, last_level=True)), example_batch()[0]
    built = network(model)
    with torch.no_grad():
        for head in built.heads:
            head.conv.weight[:, :32] = 0  # type: ignore[operator, index, union-attr]
            head.conv.weight[:, 32 + built.backbone.levels[-1].channels :] = 0  # type: ignore[operator, index, union-attr]
        pooled = built.backbone(images)[-1].mean(dim=(2, 3))
        beside = built.heads[-1].conv.weight[:, 32:, 0, 0][:, : pooled.shape[1]]  # type: ignore[operator, index, union-attr]
        torch.testing.assert_close(model(images).logits, pooled @ beside.T + built.heads[-1].bias)


@pytest.mark.parametrize(
    ("usually", "arguments"),
    [({}, {"test_crop": True}), ({}, {"test_heads": "combined"}), ({"test_crop": True}, {"test_crop": True, "test_theta": 0.9})],
    ids=str,
)
def test_every_testing_argument_changes_the_logits(usually: dict[str, Any], arguments: dict[str, Any]) -> None:
    images = example_batch()[0]
    with torch.no_grad():
        usual, other = (evaluation_mode(make(**more))(images).logits for more in (usually, arguments))
    assert not torch.allclose(usual, other, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "max"}, r"model\.head: 'max' is none of evidence, pmg"),
        ({"distillation": "both"}, r"model\.distillation: 'both'"),
        ({"test_heads": "all"}, r"model\.test_heads: 'all'"),
        ({"head": "pmg"}, r"model\.guidance: a 'pmg' head has no evidence maps; set guidance to false, or head to 'evidence'"),
        ({"head": "pmg", "guidance": False}, r"model\.alignment_weight: .* set alignment_weight to 0"),
        ({**PMG, "test_crop": True}, r"model\.test_crop: .* set test_crop to false"),
        ({**PMG, "residual": True}, r"model\.residual: .* set residual to false"),
        ({"stages": 0, "grids": ()}, r"model\.stages: 0"),
        ({"stages": 9, "grids": (1,) * 9}, r"model\.stages: 9"),
        ({"grids": (8, 4)}, r"model\.grids: \[8, 4\]; give one grid of at least 1 for each of the 3 stages"),
        ({"grids": (8, 4, 0)}, r"model\.grids"),
        ({"distillation_weight": -1}, "distillation_weight"),
        ({"alignment_weight": -1}, "alignment_weight"),
        ({"fused_weight": 0}, "fused_weight"),
        ({"temperature": 0}, r"model\.temperature"),
        ({"guide_theta": (0.6, 0.4)}, r"model\.guide_theta"),
        ({"guide_theta": (0.6, 1.4)}, r"model\.guide_theta"),
        ({"guide_padding": -0.1}, r"model\.guide_padding"),
        ({"feature_size": 0}, r"model\.feature_size"),
        ({"test_theta": 1.5}, r"model\.test_theta: 1\.5 is not in \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**arguments)
