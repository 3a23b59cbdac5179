"""The blocks of torch, each beside a slow and literal oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fgzoo.nn import (
    RepeatedInputLSTM,
    TemporalAttention,
    activation_boxes,
    center_boxes,
    class_activation_map,
    crop_boxes,
    keyed_uniform,
    normalize_map,
    paste_boxes,
    random_boxes,
)


def keys(batch: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    index = torch.arange(batch)
    return torch.stack([torch.full_like(index, seed), torch.full_like(index, epoch), index], dim=1)


def test_recursion_equals_nn_lstm_on_a_repeated_input() -> None:
    torch.manual_seed(0)
    ours = RepeatedInputLSTM(6, 4, num_layers=2).double()
    theirs = torch.nn.LSTM(6, 4, num_layers=2, batch_first=True).double()
    for layer, cell in enumerate(ours.cells):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(theirs, f"{name}_l{layer}").data.copy_(getattr(cell, name))
    x = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    found, (expected, _) = ours(x, 7), theirs(x[:, None].expand(-1, 7, -1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    mine, other = (torch.autograd.grad(states.square().sum(), x) for states in (found, expected))
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_temporal_attention_follows_the_equations() -> None:
    torch.manual_seed(0)
    block = TemporalAttention(4).double()
    hidden = torch.randn(2, 5, 4, dtype=torch.double)
    context, weights = block(hidden)
    w, b = block.score.weight[0], block.score.bias[0]
    for n in range(2):
        e = [(w @ hidden[n, t] + b).item() for t in range(5)]
        a = np.exp(e) / np.exp(e).sum()
        c = sum(a[t] * hidden[n, t].detach().numpy() for t in range(5))
        np.testing.assert_allclose(weights[n].detach(), a, atol=1e-12)
        np.testing.assert_allclose(context[n].detach(), c, atol=1e-12)


def literal_box(channel: np.ndarray, percentile: float) -> tuple[float, float, float, float]:
    height, width = channel.shape
    kept = max(1, round((1 - percentile) * channel.size))
    threshold = np.sort(channel.ravel())[::-1][kept - 1]
    rows, columns = np.where(channel >= threshold)
    return columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height


def test_activation_boxes_equal_the_literal_procedure() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 6, 5, 7)
    boxes = activation_boxes(features, num_boxes=4)
    for n in range(3):
        peaks = features[n].flatten(1).amax(1)
        strongest = peaks.argsort(descending=True)[:4]
        for k, channel in enumerate(strongest):
            enlarged = torch.nn.functional.interpolate(
                features[n, channel][None, None], scale_factor=4, mode="bilinear", align_corners=False
            )[0, 0].numpy()
            np.testing.assert_allclose(boxes[n, k], literal_box(enlarged, 0.95), atol=1e-6)


def test_activation_boxes_surround_a_bright_spot() -> None:
    features = torch.zeros(1, 2, 16, 16)
    features[0, 1, 4:6, 10:13] = 9.0
    x0, y0, x1, y1 = activation_boxes(features, num_boxes=1)[0, 0].tolist()
    assert x0 <= 10.5 / 16
    assert x1 >= 12.5 / 16
    assert y0 <= 4.5 / 16
    assert y1 >= 5.5 / 16
    assert (x1 - x0) * (y1 - y0) < 0.2


def test_enlarging_by_four_gives_nearly_the_boxes_of_full_resolution() -> None:
    torch.manual_seed(0)
    features = torch.nn.functional.avg_pool2d(torch.randn(8, 5, 16, 16), 3, stride=1)  # 14 x 14 and smooth, as of 448 pixels
    quick, full = activation_boxes(features, 5), activation_boxes(features, 5, upsample=32)
    low, high = torch.maximum(quick[..., :2], full[..., :2]), torch.minimum(quick[..., 2:], full[..., 2:])
    inter = (high - low).clamp_min(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (quick, full)]
    assert (inter / (areas[0] + areas[1] - inter)).mean() > 0.85


def clamped(*shape: int) -> torch.Tensor:
    """Maps as ReLU6 makes them: some zero, most at 6 somewhere."""
    torch.manual_seed(0)
    return (4 * torch.randn(shape)).clamp(0, 6)


def test_channels_that_peak_equally_come_by_their_means_then_by_their_numbers() -> None:
    # In quarters, so that means are exact and often equal, too.
    features = (4 * clamped(8, 96, 3, 3)).round() / 4
    features[:, 70:90] = features[:, :20]
    boxes = activation_boxes(features, num_boxes=10)
    for n in range(8):
        channels = features[n].flatten(1).tolist()
        ordered = sorted(range(96), key=lambda c: (-max(channels[c]), -sum(channels[c]), c))
        assert max(channels[ordered[9]]) == 6
        alone = [activation_boxes(features[n : n + 1, c : c + 1], num_boxes=1)[0, 0] for c in ordered[:10]]
        assert torch.equal(boxes[n], torch.stack(alone))


def test_boxes_do_not_depend_on_the_channels_numbers() -> None:
    features = clamped(8, 96, 5, 5)
    assert ((features.amax(dim=(2, 3)) == 6).sum(dim=1) > 40).all()
    boxes = activation_boxes(features, num_boxes=10)
    for _ in range(3):
        assert torch.equal(activation_boxes(features[:, torch.randperm(96)], num_boxes=10), boxes)


def test_pixels_that_are_equal_but_for_rounding_are_bounded_together() -> None:
    # Beside a corner that is not quite 6 pixels mirror one another, and the percentile often falls between two of them.
    maps = clamped(2000, 1, 5, 5)
    boxes = activation_boxes(maps, num_boxes=1)
    assert torch.equal(activation_boxes(maps.mT, num_boxes=1), boxes[..., [1, 0, 3, 2]])


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 7)])
def test_constant_maps_give_the_whole_image(shape: tuple[int, int]) -> None:
    # Enlarging 0.1 gives more than one value.
    features = torch.linspace(-1, 1, 21)[None, :, None, None].expand(-1, -1, *shape)
    assert (activation_boxes(features, num_boxes=21) == torch.tensor([0.0, 0, 1, 1])).all()


def test_fewer_channels_than_boxes_repeat_the_strongest() -> None:
    boxes = activation_boxes(torch.randn(2, 3, 4, 4), num_boxes=7)
    assert boxes.shape == (2, 7, 4)
    assert torch.equal(boxes[:, 0], boxes[:, 3])
    assert torch.equal(boxes[:, 0], boxes[:, 6])


@pytest.mark.parametrize("side", [0.25, 0.5, 1.0])
def test_boxes_of_fixed_size_lie_inside(side: float) -> None:
    boxes = torch.cat([random_boxes(torch.rand(50, 3, 2), side), center_boxes(50, 3, torch.zeros(1), side)])
    assert (boxes >= 0).all()
    assert (boxes <= 1 + 1e-6).all()
    torch.testing.assert_close(boxes[..., 2:] - boxes[..., :2], torch.full((100, 3, 2), side))


def test_crop_of_the_whole_image_at_its_own_size_is_the_image() -> None:
    # two samples a pixel and direction lie a quarter pixel off its centre, so inner pixels of a linear ramp are exact
    ramp = torch.linspace(0, 1, 12).expand(2, 3, 8, 12).contiguous()
    exact = crop_boxes(ramp, torch.tensor([[[0.0, 0, 1, 1]]] * 2), (8, 12))
    torch.testing.assert_close(exact[..., 1:-1], ramp[..., 1:-1])


def test_crop_of_a_half_equals_slicing_on_a_ramp() -> None:
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).contiguous()
    crop = crop_boxes(ramp, torch.tensor([[[0.5, 0.0, 1.0, 1.0]]]), (16, 8))
    torch.testing.assert_close(crop[..., :-1], ramp[..., 8:-1])


def test_crops_of_a_large_batch_are_of_their_own_images_in_half_precision() -> None:
    images = (torch.arange(300) % 2).bfloat16()[:, None, None, None].expand(300, 3, 8, 8).contiguous()
    assert torch.equal(crop_boxes(images, torch.tensor([[[0.0, 0, 1, 1]]]).expand(300, 1, 4)), images)


def test_crops_of_an_image_follow_one_another() -> None:
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    crops = crop_boxes(images, torch.tensor([[[0.0, 0, 1, 1], [0, 0, 0.5, 0.5]]] * 2), (4, 4))
    assert crops.flatten(1).mean(1).tolist() == [0, 0, 1, 1]


def test_pasted_map_lies_where_its_crop_came_from() -> None:
    maps = torch.ones(1, 1, 1, 4, 4)
    pasted = paste_boxes(maps, torch.tensor([[[0.25, 0.5, 0.75, 1.0]]]), (8, 8))[0, 0, 0]
    expected = torch.zeros(8, 8)
    expected[4:8, 2:6] = 1
    torch.testing.assert_close(pasted, expected)


def test_pasting_inverts_cropping_on_a_smooth_image() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    image = (x * y).expand(1, 3, 32, 32).contiguous()
    box = torch.tensor([[[0.25, 0.25, 0.75, 0.75]]])
    crop = crop_boxes(image, box, (16, 16))
    pasted = paste_boxes(crop[:, None, :1], box, (32, 32))[0, 0, 0]
    torch.testing.assert_close(pasted[9:23, 9:23], image[0, 0, 9:23, 9:23], rtol=0, atol=0.01)


def test_class_activation_map_averages_to_the_logit_up_to_its_scale() -> None:
    torch.manual_seed(0)
    features, weight = torch.rand(2, 6, 4, 5), torch.rand(3, 6)
    classes = torch.tensor([2, 0])
    maps = class_activation_map(features, weight, classes)
    raw = torch.stack([(weight[c][:, None, None] * f).sum(0) for c, f in zip(classes, features, strict=True)])
    torch.testing.assert_close(maps, raw / raw.amax((1, 2), keepdim=True))


def test_map_without_a_positive_value_stays_zero() -> None:
    assert normalize_map(-torch.ones(2, 3, 3)).abs().sum() == 0


def test_keyed_uniform_depends_on_every_part_of_the_key() -> None:
    base = keyed_uniform(keys(4))
    assert torch.equal(base, keyed_uniform(keys(4)))
    for other in (keyed_uniform(keys(4, seed=1)), keyed_uniform(keys(4, epoch=1)), keyed_uniform(keys(4), salt=1)):
        assert not torch.equal(base, other)


def test_keyed_uniform_does_not_depend_on_the_batch() -> None:
    torch.testing.assert_close(keyed_uniform(keys(8), 3)[5:6], keyed_uniform(keys(8)[5:6], 3), rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_keyed_uniform_is_uniform(count: int) -> None:
    draws = keyed_uniform(keys(20_000), count)
    assert draws.shape == (20_000, count)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = torch.histc(draws.flatten(), 20, 0, 1) / draws.numel()
    torch.testing.assert_close(histogram, torch.full((20,), 0.05), rtol=0, atol=0.006)


def test_keyed_uniform_is_uncorrelated_between_neighbours() -> None:
    draws = keyed_uniform(keys(20_000), 2)
    pairs = torch.stack([draws[:-1, 0], draws[1:, 0], draws[:-1, 1]])
    off = torch.corrcoef(pairs) - torch.eye(3)
    assert off.abs().max() < 0.03
