from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fgzoo.reporting import charts
from fgzoo.reporting.scores import Accepted, Bin


def tree(chart: str) -> ElementTree.Element:
    """A chart is well-formed, whatever it says."""
    return ElementTree.fromstring(chart)


def test_curves_have_a_mark_an_epoch_that_says_its_value() -> None:
    drawn = tree(charts.curves({"validation": [(2, 0.5)], "training": [(1, 0.25), (2, 1.0)]}, "accuracy", percent=True))
    said = [mark.findtext("title") for mark in drawn.iter("circle")]
    assert said == ["validation, epoch 2: 50.0%", "training, epoch 1: 25.0%", "training, epoch 2: 100.0%"]
    heights = [float(mark.attrib["cy"]) for mark in drawn.iter("circle")]
    assert heights[2] < heights[0] < heights[1]
    assert "validation ends at 50.0%" in drawn.attrib["aria-label"]


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 2.5)], [(1, -1.0), (2, 3.0)], [(epoch, 1.0) for epoch in range(1, 5000)]])
def test_any_values_can_be_drawn(points: list[tuple[float, float]]) -> None:
    drawn = tree(charts.curves({"<a>": points}, "loss & more", percent=False))
    (line,) = drawn.iter("polyline")
    places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
    assert 1 <= len(places) <= charts.POINTS
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in places)


def test_reliability_has_a_bar_a_bin_as_high_as_it_is_right() -> None:
    drawn = tree(charts.reliability_chart([Bin(0.2, 0.4, 3, 0.3, 0.25), Bin(0.8, 1.0, 50, 0.9, 0.5)]))
    few, many = drawn.iter("rect")
    assert float(many.attrib["height"]) == pytest.approx(2 * float(few.attrib["height"]), rel=0.01)
    assert ("few" in few.attrib["class"], "few" in many.attrib["class"]) == (True, False)
    assert many.findtext("title") == "50 images, confidence 90.0%, right 50.0%"


def test_coverage_falls_from_left_to_right() -> None:
    curve = [Accepted(0.5, 0.9, 1.0), Accepted(1.0, 0.4, 0.75)]
    (line,) = tree(charts.coverage_chart(curve)).iter("polyline")
    (x0, y0), (x1, y1) = (tuple(map(float, place.split(","))) for place in line.attrib["points"].split())
    assert x0 < x1
    assert y0 < y1


@pytest.mark.parametrize("classes", [2, 200])
def test_the_confusion_picture_has_a_pixel_a_cell_of_any_count(classes: int) -> None:
    counts = np.zeros((classes, classes), np.int64)
    counts[0, 0], counts[0, 1] = 999, 1
    picture = charts.confusion_picture(counts)
    assert len(picture) < 20_000
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.sub("^.*,", "", picture)))).convert("RGBA"))
    assert pixels.shape == (classes, classes, 4)
    assert pixels[0, 0, 3] > pixels[0, 1, 3] > 40
    assert pixels[1:, :, 3].max() == 0
    assert pixels[0, 1, 0] > pixels[0, 1, 2]  # a wrong answer is red
    assert pixels[0, 0, 0] < pixels[0, 0, 2]


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(1, 15) == pytest.approx([5, 10, 15])
    assert charts.ticks(0, 7.6) == pytest.approx([0, 2, 4, 6])
