"""Charts as inline SVG: elements with classes, which the page's style sheet colours, and values to read when pointed at."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgzoo.reporting.scores import Accepted, Bin

#: Size of a chart in its own units, and room for what stands left of, below, right of and above it.
WIDTH, HEIGHT = 420.0, 260.0
LEFT, BELOW, RIGHT, ABOVE = 42.0, 40.0, 14.0, 26.0
#: Most points that a line is drawn through.
POINTS = 200

Points = Sequence[tuple[float, float]]


class Frame:
    """A chart's axes, and where its values lie in it.

    Args:
        x: Smallest and largest value.
        y: Smallest and largest value.
        labels: What the axes show.
        percent: Whether the x-axis, and the y-axis, show shares as percents.
    """

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str], percent: tuple[bool, bool]
    ) -> None:
        self.x_range, self.y_range, self.labels, self.percent = x, y, labels, percent

    def x(self, value: float) -> float:
        """From the left."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From the top."""
        low, high = self.y_range
        return HEIGHT - BELOW - (value - low) / (high - low) * (HEIGHT - BELOW - ABOVE)

    def line(self, points: Points, style: str) -> str:
        """A line through points."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="line {style}" points="{path}"/>'

    def mark(self, point: tuple[float, float], style: str, said: str) -> str:
        """A point that says something when it is pointed at."""
        x, y = point
        return f'<circle class="mark {style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.5">{_title(said)}</circle>'

    def bar(self, low: float, high: float, value: float, style: str, said: str) -> str:
        """A bar from zero to a value."""
        top, bottom = self.y(max(value, 0)), self.y(0)
        place = f'x="{self.x(low) + 1:.1f}" y="{top:.1f}" width="{self.x(high) - self.x(low) - 2:.1f}"'
        return f'<rect class="{style}" {place} height="{max(bottom - top, 0.8):.1f}" rx="2">{_title(said)}</rect>'

    def draw(self, content: Sequence[str], said: str) -> str:
        """The chart; `said` is read out in its place."""
        grid = [*self._rows(), *self._columns()]
        axes = (
            f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 4:.1f}">{html.escape(self.labels[0])}</text>'
            f'<text class="axis first" x="4" y="12">{html.escape(self.labels[1])}</text>'
        )
        inside = "".join([*grid, axes, *content])
        label = html.escape(said)
        return f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}">{inside}</svg>'

    def _rows(self) -> list[str]:
        drawn = []
        for value in ticks(*self.y_range):
            y, said = self.y(value), _number(value, self.percent[1])
            drawn.append(f'<line class="rule" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
            drawn.append(f'<text class="tick left" x="{LEFT - 6:g}" y="{y + 4:.1f}">{said}</text>')
        return drawn

    def _columns(self) -> list[str]:
        values = [value for value in ticks(*self.x_range) if self.percent[0] or value == round(value)]
        return [
            f'<text class="tick" x="{self.x(value):.1f}" y="{HEIGHT - BELOW + 17:.1f}">{_number(value, self.percent[0])}</text>'
            for value in values
        ]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between two others, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def curves(lines: dict[str, Points], label: str, percent: bool) -> str:
    """Values by epoch, the first line accented, each point with its value.

    Args:
        lines: Points (epoch, value) by what they show; one line at least has a point.
        label: What the values are.
        percent: Whether they are shares.
    """
    values = [value for points in lines.values() for _, value in points]
    epochs = [epoch for points in lines.values() for epoch, _ in points]
    top = 1.0 if percent else 1.05 * max(values) or 1.0
    low, high = min(epochs), max(epochs)
    around = (low - 0.5, high + 0.5) if low == high else (low, high)
    frame = Frame(around, (min(0.0, *values), top), ("epoch", label), (False, percent))
    content = []
    for number, (name, points) in enumerate(lines.items()):
        style = f"series{number}"
        content.append(frame.line(thinned(points), style))
        marks = points if len(points) <= 40 else points[-1:]
        content += [frame.mark(point, style, f"{name}, epoch {point[0]:g}: {_value(point[1], percent)}") for point in marks]
    last = ", ".join(f"{name} ends at {_value(points[-1][1], percent)}" for name, points in lines.items())
    return frame.draw(content, f"{label} by epoch: {last}")


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Share of right answers by confidence, beside the diagonal where both are the same."""
    frame = Frame((0, 1), (0, 1), ("confidence", "right answers"), (True, True))
    bars = [
        frame.bar(
            one.low, one.high, one.accuracy, "bin" if one.images >= 10 else "bin few",
            f"{one.images} images, confidence {one.confidence:.1%}, right {one.accuracy:.1%}",
        )
        for one in bins
    ]  # fmt: skip
    # Where the answers would be if they were as right as they are sure.
    marks = [
        f'<line class="wanted" x1="{frame.x(one.low) + 1:.1f}" x2="{frame.x(one.high) - 1:.1f}" '
        f'y1="{frame.y(one.confidence):.1f}" y2="{frame.y(one.confidence):.1f}"/>'
        for one in bins
    ]
    diagonal = frame.line([(0, 0), (1, 1)], "ideal")
    return frame.draw([*bars, diagonal, *marks], "Share of right answers by confidence, in fifteen bins")


def coverage_chart(curve: Sequence[Accepted]) -> str:
    """Share of right answers among the surest ones, by how many images are answered."""
    points = [(one.share, one.accuracy) for one in curve]
    low = min(accuracy for _, accuracy in points)
    frame = Frame((0, 1), (min(0.5, math.floor(10 * low) / 10), 1), ("images answered", "right answers"), (True, True))
    kept = thinned(points)
    shown = [one for one in curve if one.share in {share for share, _ in kept[:: max(1, len(kept) // 20)]}]
    marks = [
        frame.mark(
            (one.share, one.accuracy), "series0 quiet",
            f"{one.share:.1%} of the images reach {one.threshold:.1%}; {one.accuracy:.1%} of them are right",
        )
        for one in shown
    ]  # fmt: skip
    said = "Share of right answers among the surest, from few images to all of them"
    return frame.draw([frame.line(kept, "series0"), *marks], said)


def confusion_picture(counts: NDArray[np.int64]) -> str:
    """A confusion matrix (K, K) as a picture of K x K pixels, a data URI.

    How opaque a pixel is says which share of its row it is. Right answers are grey-blue, wrong ones red, on nothing.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((*counts.shape, 4), np.uint8)
    pixels[:] = (208, 60, 40, 0)
    pixels[np.arange(len(counts)), np.arange(len(counts))] = (66, 120, 176, 0)
    # A single image among many is to be seen, too.
    pixels[..., 3] = np.where(counts > 0, np.rint(45 + 210 * share**0.7), 0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def meter(share: float) -> str:
    """A bar that is full at 1."""
    return (
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect class="rest" width="100" '
        f'height="6"/><rect class="full" width="{100 * share:.1f}" height="6"/></svg>'
    )


def thinned(points: Points) -> Points:
    """At most [POINTS][] of them, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    return [points[index] for index in np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int)).tolist()]


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.0f}%" if percent else f"{value:.6g}"


def _value(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.4g}"


def _title(said: str) -> str:
    return f"<title>{html.escape(said)}</title>"
