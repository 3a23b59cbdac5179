"""Maps over images."""

from __future__ import annotations

import pytest
import torch

from fgzoo.interpret.overlays import in_input_frame, overlay


def test_overlay_shows_the_image_where_the_map_is_one_and_dims_it_where_it_is_zero() -> None:
    image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    attention = torch.zeros(4, 4)
    attention[:, 2:] = 1.0
    plain = overlay(image, attention, strength=0.0)
    assert plain[0, 3].tolist() == pytest.approx([200 / 255] * 3)
    assert plain[0, 0].tolist() == pytest.approx([0.6 * 200 / 255] * 3)


def test_a_point_keeps_its_place_through_resize_and_crop() -> None:
    assert in_input_frame(64, 64, size=128, resize=128, crop=112) == (56, 56)
    assert in_input_frame(10, 20, size=64, resize=128, crop=128) == (20, 40)
