"""Attention crops and drops against literal loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.nn import attention_boxes, attention_drop


def example_maps(batch: int = 4, height: int = 5, width: int = 7) -> Tensor:
    noise = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(3))
    return noise**4


def literal_box(enlarged: Tensor, theta: float, padding: float) -> list[float]:
    height, width = enlarged.shape
    peak = max(float(x) for x in enlarged.flatten())
    inside = [(i, j) for i in range(height) for j in range(width) if float(enlarged[i, j]) >= theta * peak]
    rows, columns = [i for i, _ in inside], [j for _, j in inside]
    box = [min(columns) / width, min(rows) / height, (max(columns) + 1) / width, (max(rows) + 1) / height]
    padded = [box[0] - padding, box[1] - padding, box[2] + padding, box[3] + padding]
    return [min(max(x, 0.0), 1.0) for x in padded]


@pytest.mark.parametrize("size", [None, (30, 33)])
@pytest.mark.parametrize("padding", [0.0, 0.1])
def test_boxes_equal_the_literal_loop(size: tuple[int, int] | None, padding: float) -> None:
    maps, theta = example_maps(), torch.tensor([0.1, 0.4, 0.7, 0.95])
    boxes = attention_boxes(maps, theta, padding, size)
    assert boxes.shape == (4, 1, 4)
    for n in range(4):
        enlarged = F.interpolate(maps[n][None, None], size=size or (20, 28), mode="bilinear", align_corners=False)[0, 0]
        assert boxes[n, 0].tolist() == pytest.approx(literal_box(enlarged, float(theta[n]), padding), abs=1e-6)


def test_box_of_a_zero_map_is_the_whole_image() -> None:
    assert attention_boxes(torch.zeros(2, 4, 4), torch.full((2,), 0.5)).tolist() == [[[0, 0, 1, 1]]] * 2


def test_box_does_not_depend_on_the_maps_scale() -> None:
    maps, theta = example_maps(), torch.full((4,), 0.5)
    torch.testing.assert_close(attention_boxes(maps, theta), attention_boxes(1024 * maps, theta))


def test_lower_thresholds_give_larger_boxes() -> None:
    maps = example_maps()
    small, large = (attention_boxes(maps, torch.full((4,), theta))[:, 0] for theta in (0.9, 0.1))
    assert (large[:, :2] <= small[:, :2]).all()
    assert (large[:, 2:] >= small[:, 2:]).all()
    assert not torch.equal(large, small)


def test_drop_equals_the_literal_loop() -> None:
    maps, theta = example_maps(), torch.tensor([0.2, 0.3, 0.5, 0.8])
    images = torch.randn(4, 3, 12, 17)
    found = attention_drop(images, maps, theta)
    for n in range(4):
        enlarged = F.interpolate(maps[n][None, None], size=(12, 17), mode="bilinear", align_corners=False)[0, 0]
        peak = max(float(x) for x in enlarged.flatten())
        for i in range(12):
            for j in range(17):
                erased = float(enlarged[i, j]) >= float(theta[n]) * peak
                assert torch.equal(found[n, :, i, j], torch.zeros(3) if erased else images[n, :, i, j])


def test_zero_map_erases_nothing() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(attention_drop(images, torch.zeros(2, 4, 4), torch.full((2,), 0.3)), images)


def test_no_gradient_reaches_the_maps() -> None:
    maps, images = example_maps().requires_grad_(), torch.randn(4, 3, 8, 8, requires_grad=True)
    assert not attention_boxes(maps, torch.full((4,), 0.5)).requires_grad
    attention_drop(images, maps, torch.full((4,), 0.5)).sum().backward()
    assert maps.grad is None
    assert images.grad is not None
