"""The inverse mapping, the box of a mask's moments, and the differentiable crop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.nn.inverse_mapping import InverseMapping, soft_boxes, soft_crop

#: Of Coarse2Fine.
WIDTHS = (64, 32, 16, 8)

# ---------------------------------------------------------------------- the decoder


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel by pixel, with pixel centres at (i + 0.5) / length."""
    batch, channels, height, width = x.shape
    out = x.new_zeros(batch, channels, *size)
    for i in range(size[0]):
        v = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
        for j in range(size[1]):
            u = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = x[..., top, left] * (1 - (u - left)) + x[..., top, right] * (u - left)
            lower = x[..., below, left] * (1 - (u - left)) + x[..., below, right] * (u - left)
            out[..., i, j] = upper * (1 - (v - top)) + lower * (v - top)
    return out


def test_decoder_follows_the_equations() -> None:
    torch.manual_seed(0)
    decoder = InverseMapping(5, widths=(4, 3), bias=0.7).double().eval()
    for step in decoder.steps:
        step[1].running_mean.normal_()
        step[1].running_var.uniform_(0.5, 2)
    attended = torch.randn(2, 5, 2, 3, dtype=torch.double)
    x = torch.einsum("oc,bchw->bohw", decoder.reduce.weight[:, :, 0, 0], attended) + decoder.reduce.bias[:, None, None]
    for conv, norm, _ in decoder.steps:
        x = F.pad(enlarge(x, (2 * x.shape[2], 2 * x.shape[3])), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        x = torch.einsum("bchwij,ocij->bohw", x, conv.weight)
        shape = (1, -1, 1, 1)
        x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
        x = (norm.weight.view(shape) * x + norm.bias.view(shape)).clamp_min(0)
    x = torch.einsum("oc,bchw->bohw", decoder.last.weight[:, :, 0, 0], x) + decoder.last.bias[:, None, None]
    torch.testing.assert_close(decoder(attended, (10, 7)), enlarge(1 / (1 + (-x).exp()), (10, 7)), rtol=0, atol=1e-12)


def test_decoder_costs_a_few_per_cent_of_a_resnet_50() -> None:
    decoder, size = InverseMapping(2048, WIDTHS, bias=2.0), 14
    cost = decoder.reduce.weight.numel() * size**2
    for step in decoder.steps:
        size *= 2
        cost += step[0].weight.numel() * size**2
    assert cost < 0.03 * 16.4e9


@pytest.mark.parametrize(("bias", "expected"), [(2.0, 0.88), (0.0, 0.5)])
def test_mask_starts_where_the_bias_says(bias: float, expected: float) -> None:
    torch.manual_seed(0)
    mask = InverseMapping(16, WIDTHS, bias)(torch.rand(4, 16, 5, 4), (64, 48))
    assert mask.shape == (4, 1, 64, 48)
    assert mask.mean().item() == pytest.approx(expected, abs=0.1)


def test_mask_is_in_single_precision_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mask = InverseMapping(16, WIDTHS, bias=2.0)(torch.rand(2, 16, 4, 4), (32, 32))
    assert mask.dtype == torch.float32


# ---------------------------------------------------------------------- boxes


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(1, 1, height, width, dtype=torch.double)
    mask[..., top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("box", [(2, 3, 9, 5), (0, 0, 4, 4), (7, 10, 8, 11)])
def test_a_rectangle_gives_its_own_box(box: tuple[int, int, int, int]) -> None:
    top, left, bottom, right = box
    expected = torch.tensor([[left / 12, top / 10, right / 12, bottom / 10]], dtype=torch.double)
    torch.testing.assert_close(soft_boxes(rectangle(10, 12, *box), eps=1e-12), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_mask_gives_the_whole_image(value: float) -> None:
    box = soft_boxes(torch.full((2, 1, 6, 9), value))
    torch.testing.assert_close(box, torch.tensor([[0.0, 0, 1, 1]] * 2), rtol=0, atol=1e-5)


def test_boxes_equal_the_literal_moments() -> None:
    mask = torch.rand(3, 1, 4, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = soft_boxes(mask, scale=1.3, eps=0.0)
    for n in range(3):
        mass, mean, square = 0.0, [0.0, 0.0], [0.0, 0.0]
        for i in range(4):
            for j in range(6):
                m = float(mask[n, 0, i, j])
                mass += m
                for axis, place in enumerate(((j + 0.5) / 6, (i + 0.5) / 4)):
                    mean[axis] += m * place
                    square[axis] += m * place**2
        mean = [x / mass for x in mean]
        side = [1.3 * (s / mass - m**2 + 1 / (12 * n**2)) ** 0.5 for s, m, n in zip(square, mean, (6, 4), strict=True)]
        expected = [mean[0] - side[0], mean[1] - side[1], mean[0] + side[0], mean[1] + side[1]]
        assert found[n].tolist() == pytest.approx(expected, abs=1e-12)


def test_zero_mask_has_finite_gradients() -> None:
    mask = torch.zeros(1, 1, 8, 8, requires_grad=True)
    soft_boxes(mask).sum().backward()
    assert torch.isfinite(mask.grad).all()  # type: ignore[arg-type]


# ---------------------------------------------------------------------- crops


def test_a_crop_of_the_whole_image_is_the_image_in_half_precision() -> None:
    images = torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    cropped = soft_crop(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(cropped, images, rtol=2**-7, atol=1e-3)  # a rounding


def test_crop_equals_literal_sampling() -> None:
    images = torch.rand(2, 3, 5, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [-0.2, 0.3, 0.6, 1.3]], dtype=torch.double)
    found = soft_crop(images, boxes)
    for n in range(2):
        x0, y0, x1, y1 = boxes[n].tolist()
        for i in range(5):
            v = (y0 + (i + 0.5) / 5 * (y1 - y0)) * 5 - 0.5
            for j in range(6):
                u = (x0 + (j + 0.5) / 6 * (x1 - x0)) * 6 - 0.5
                expected = torch.zeros(3, dtype=torch.double)
                for row in range(5):
                    for column in range(6):
                        share = max(0.0, 1 - abs(v - row)) * max(0.0, 1 - abs(u - column))
                        expected += share * images[n, :, row, column]
                torch.testing.assert_close(found[n, :, i, j], expected, rtol=0, atol=1e-12)


def test_gradient_from_crop_to_mask_is_the_numerical_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 5, 6, dtype=torch.double, generator=generator)
    mask = torch.rand(1, 1, 5, 6, dtype=torch.double, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: soft_crop(images, soft_boxes(m)), mask)
