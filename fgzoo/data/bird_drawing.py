"""How a synthetic bird is posed and painted; which traits make a class is decided in `fgzoo.data.synthetic`.

Two steps, so that boxes and part positions are known without painting anything:

1. [pose][] draws what must *not* tell the class (pose, place, plumage, leaves) from a random generator. It never sees
   the class: whatever differs between two classes is therefore painted in step two.
2. [paint][] paints a [Scene][] with given traits.

The bird is described facing right in its own units: x right, y down, origin in the body, body length about 1.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fgzoo.data.records import Box, Part

Array = NDArray[np.float64]
Colour = tuple[int, int, int]
DifficultyName = Literal["easy", "medium", "hard"]

#: What each part may look like; the first value is the plain one. The words are the class names'.
TRAITS: dict[str, tuple[str, ...]] = {
    "crown": ("", "red-crowned", "gold-crowned", "white-crowned", "blue-crowned"),
    "eye": ("", "white eye ring", "gold eye ring"),
    "wing": ("", "one wing bar", "two wing bars"),
    "breast": ("", "spotted breast", "streaked breast", "banded breast"),
    "beak": ("", "orange beak", "long beak"),
    "tail": ("", "white tail tip", "gold tail tip"),
}
#: All parts with a position, in the order of `parts.txt`. Legs are there to be looked at, never to decide.
PARTS = (*TRAITS, "legs")

RED, GOLD, WHITE, BLUE, ORANGE, DARK = (
    (205, 38, 40), (246, 196, 40), (246, 244, 238), (52, 104, 214), (240, 132, 30), (38, 34, 36)
)  # fmt: skip
TRAIT_COLOURS = (RED, GOLD, WHITE, BLUE, ORANGE)
CROWNS = (DARK, RED, GOLD, WHITE, BLUE)
RINGS = (DARK, WHITE, GOLD)
TAIL_TIPS = (DARK, WHITE, GOLD)

#: Hue, saturation and value of leaves, ranges in [0, 1]. Autumn's go through the traits' red, orange and gold.
GREEN_LEAF = ((0.2, 0.42), (0.35, 0.75), (0.3, 0.7))
AUTUMN_LEAF = ((0.0, 0.14), (0.5, 0.9), (0.45, 0.95))

#: By how much a bird that sits up is turned, radians: its parts then lie in the smallest square.
SITTING = math.radians(27)
#: Pixels of the canvas per pixel of the image, along each side: Pillow's shapes have no antialiasing of their own.
SUPERSAMPLING = 3


@dataclass(frozen=True)
class Difficulty:
    """What makes a set of birds easy or hard.

    Attributes:
        trait: Size of the traits relative to the drawing's own.
        contrast: Opacity of the traits in (0, 1].
        rotation: Largest rotation of the bird, degrees.
        scale: Smallest and largest body length as a share of the image side.
        leaves: Largest number of leaves and twigs before the bird.
        clutter: Largest number of leaves, twigs and berries behind it.
        light: Largest relative deviation of brightness and tint.
    """

    trait: float
    contrast: float
    rotation: float
    scale: tuple[float, float]
    leaves: int
    clutter: int
    light: float


DIFFICULTIES: dict[DifficultyName, Difficulty] = {
    "easy": Difficulty(1.2, 1.0, 8, (0.50, 0.56), 1, 10, 0.10),
    "medium": Difficulty(0.9, 0.88, 20, (0.42, 0.55), 4, 20, 0.22),
    "hard": Difficulty(0.75, 0.7, 35, (0.33, 0.52), 7, 30, 0.30),
}


class Leaf:
    """A pointed leaf |y| <= b (1 - (x/a)^2), in pixels; a twig is a long, thin one."""

    def __init__(self, centre: Array, length: float, width: float, angle: float, colour: Colour, vein: bool) -> None:
        self.centre, self.length, self.width, self.colour, self.vein = centre, length, width, colour, vein
        self.axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])

    def hides(self, point: Array) -> bool:
        """Whether the leaf covers a point (2,)."""
        x, y = self.axes @ (point - self.centre)
        return abs(float(y)) <= self.width * (1 - (float(x) / self.length) ** 2)

    def outline(self) -> Array:
        """Corner points (K, 2) in pixels."""
        return LEAF * (self.length, self.width) @ self.axes + self.centre


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything about an image but the class.

    Attributes:
        size: Image side in pixels.
        difficulty: The set's difficulty.
        frames: Bird coordinates to pixels, a matrix (2, 3) by joint: `body`, `head`, `wing`, `tail`.
        leaves: What lies before the bird, back to front.
        plumage: Base colour.
        cover: Colour of wing, tail and cap, always dark.
        belly: Colour of breast and belly, always pale.
        cheek: Colour of the cheek patch.
        fading: Share of plumage in the traits' colours.
        vent: Colour of the patch under the tail, often one that a trait has elsewhere.
        legs: Colour of the legs.
        marks: Jitter of the marks on the breast (N, 2), bird units.
        texture: Seed of the background.
    """

    size: int
    difficulty: Difficulty
    frames: dict[str, Array]
    leaves: tuple[Leaf, ...]
    plumage: Colour
    cover: Colour
    belly: Colour
    cheek: Colour
    fading: float
    vent: Colour
    legs: Colour
    marks: Array
    texture: int

    def place(self, points: Array, joint: str = "body") -> Array:
        """Bird coordinates (K, 2) to pixels (K, 2)."""
        frame = self.frames[joint]
        return points @ frame[:, :2].T + frame[:, 2]

    def dye(self, colour: Colour, ground: Colour) -> Colour:
        """A trait's colour as this bird has it upon a ground: no two birds are quite the same red."""
        return _mix(ground, _mix(colour, self.plumage, self.fading), self.difficulty.contrast)

    def part(self, name: str) -> Array:
        """Where the centre of a part lies (2,), pixels, visible or not."""
        joint, x, y = CENTRES[name]
        return self.place(np.array([[x, y]]), joint)[0]

    def visible_parts(self) -> tuple[Part, ...]:
        """The parts whose centre is in the image and under no leaf."""
        found = []
        for name in PARTS:
            point = self.part(name)
            inside = bool(((point >= 0) & (point < self.size)).all())
            if inside and not any(leaf.hides(point) for leaf in self.leaves):
                found.append(Part(name, round(float(point[0]), 2), round(float(point[1]), 2)))
        return tuple(found)

    def box(self, traits: dict[str, int]) -> Box:
        """The bird's bounding box, leaves disregarded, clipped to the image; pixels."""
        shapes = [self.place(shape, joint) for joint, shape in OUTLINE]
        shapes.append(self.place(BEAKS[traits["beak"]], "head"))
        points = np.concatenate(shapes).clip(0, self.size)
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return round(x0, 2), round(y0, 2), round(x1, 2), round(y1, 2)


def pose(random: np.random.Generator, size: int, difficulty: Difficulty) -> Scene:
    """Draw pose, place, colours, light and leaves.

    Args:
        random: Generator of this one image; its state alone decides the scene.
        size: Image side in pixels.
        difficulty: Ranges to draw from.

    Returns:
        The scene, still without a class.
    """
    scale = size * random.uniform(*difficulty.scale)
    stretch = random.uniform(0.94, 1.08)  # slim or stout
    flip = random.choice((-1.0, 1.0))
    angle = math.radians(random.uniform(-1, 1) * difficulty.rotation)
    shape = np.diag([flip * stretch, 1 / stretch])
    turns = {joint: math.radians(random.uniform(-1, 1) * range_) for joint, (_, range_) in JOINTS.items()}
    frames, centres = _frames(scale, angle, shape, turns)
    if np.ptp(centres, axis=0).max() > 0.93 * size:
        # Too long for the image: it sits up, which takes the least room, and is as long as fits then.
        angle = -flip * SITTING
        _, centres = _frames(scale, angle, shape, turns)
        scale *= min(1.0, 0.86 * size / float(np.ptp(centres, axis=0).max()))
        frames, centres = _frames(scale, angle, shape, turns)

    # Anywhere, as long as the middle of every part that can decide stays in the image.
    low, high = 0.07 * size - centres.min(axis=0), 0.93 * size - centres.max(axis=0)
    low, high = np.minimum(low, high), np.maximum(low, high)
    shift = random.uniform(low, high)
    for frame in frames.values():
        frame[:, 2] += shift
    centres += shift

    leaves: list[Leaf] = []
    for _ in range(int(random.integers(difficulty.leaves + 1))):
        leaf = _leaf(random, centres.mean(axis=0) + random.uniform(-0.75, 0.75, 2) * scale, scale)
        # The class must stay decidable: a leaf upon a part is the exception, and the same one for every part and class.
        if random.random() < 0.25 or not any(leaf.hides(centre) for centre in centres):
            leaves.append(leaf)
    plumage = _hsv(random, (0, 1), (0.15, 0.5), (0.42, 0.68))
    return Scene(
        size=size,
        difficulty=difficulty,
        frames=frames,
        leaves=tuple(leaves),
        plumage=plumage,
        cover=_mix(_hsv(random, (0, 1), (0.1, 0.5), (0.22, 0.34)), plumage, 0.12),
        belly=_mix(_hsv(random, (0.03, 0.16), (0.05, 0.3), (0.84, 0.96)), plumage, 0.12),
        cheek=_mix(plumage, _hsv(random, (0, 1), (0.1, 0.6), (0.4, 0.9)), 0.45),
        fading=random.uniform(0, 0.3),
        vent=_mix(plumage, TRAIT_COLOURS[random.integers(len(TRAIT_COLOURS))], random.choice((0.0, 0.9))),
        legs=_mix(DARK, ((ORANGE, GOLD, RED, (150, 120, 110))[random.integers(4)]), random.uniform(0.2, 0.95)),
        marks=random.uniform(-0.013, 0.013, (len(MARKS), 2)),
        texture=int(random.integers(2**31)),
    )


def paint(scene: Scene, traits: dict[str, int]) -> NDArray[np.uint8]:
    """Paint a scene with the traits of a class.

    Args:
        scene: From [pose][].
        traits: Index into `TRAITS[part]` for every part.

    Returns:
        The image (size, size, 3), RGB.
    """
    random = np.random.default_rng(scene.texture)
    canvas = _background(random, scene)
    brush = Brush(canvas, scene)
    _perch(brush, random)
    for draw in (_tail, _body, _wing, _face):  # back to front
        draw(brush, traits)
    for leaf in scene.leaves:
        brush.leaf(leaf)
    # Nothing above may draw a class-dependent number of random values: light and grain follow from the same generator.
    return _light(random, np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32), scene.difficulty.light)


class Brush:
    """Draws in bird coordinates upon the supersampled canvas."""

    def __init__(self, canvas: Image.Image, scene: Scene) -> None:
        self.draw = ImageDraw.Draw(canvas)
        self.scene = scene
        self.unit = SUPERSAMPLING * math.sqrt(abs(float(np.linalg.det(scene.frames["body"][:, :2]))))

    def fill(self, shape: Array, colour: Colour, joint: str = "body") -> None:
        """A polygon (K, 2)."""
        self.draw.polygon((self.scene.place(shape, joint) * SUPERSAMPLING).ravel().tolist(), fill=colour)

    def line(self, shape: Array, colour: Colour, width: float, joint: str = "body") -> None:
        """A line through points (K, 2) of a width in bird units."""
        points = (self.scene.place(shape, joint) * SUPERSAMPLING).ravel().tolist()
        self.draw.line(points, fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Colour, joint: str = "body") -> None:
        """A disc of a radius in bird units."""
        (u, v), r = self.scene.place(np.array([[x, y]]), joint)[0] * SUPERSAMPLING, radius * self.unit
        self.draw.ellipse((u - r, v - r, u + r, v + r), fill=colour)

    def leaf(self, leaf: Leaf) -> None:
        """A leaf or twig; these are in pixels already."""
        points = leaf.outline() * SUPERSAMPLING
        self.draw.polygon(points.ravel().tolist(), fill=leaf.colour)
        if leaf.vein:
            half = points[: len(points) // 2 + 1]
            self.draw.polygon(half.ravel().tolist(), fill=_mix(leaf.colour, (255, 255, 220), 0.14))
            ends = (*points[0].tolist(), *points[len(points) // 2].tolist())
            self.draw.line(ends, fill=_mix(leaf.colour, DARK, 0.3), width=SUPERSAMPLING)


def _tail(brush: Brush, traits: dict[str, int]) -> None:
    scene = brush.scene
    brush.fill(TAIL, scene.cover, "tail")
    brush.line(TAIL_FEATHER, _mix(scene.cover, scene.plumage, 0.45), 0.014, "tail")
    if tip := traits["tail"]:
        brush.fill(_tail_end(0.085 * scene.difficulty.trait), scene.dye(TAIL_TIPS[tip], scene.cover), "tail")


def _body(brush: Brush, traits: dict[str, int]) -> None:
    """Body and head, and the marks on the breast."""
    scene, trait = brush.scene, brush.scene.difficulty.trait
    edge = _mix(scene.plumage, DARK, 0.45)
    # Both edges before both fills, so that no line parts head and body.
    brush.fill(BODY, edge)
    brush.fill(HEAD, edge, "head")
    brush.fill(BODY * 0.965 + (0.004, -0.004), scene.plumage)
    brush.fill((HEAD - HEAD_CENTRE) * 0.94 + HEAD_CENTRE, scene.plumage, "head")
    brush.fill(BELLY, scene.belly)
    brush.fill(VENT, scene.vent)
    brush.fill(THROAT, scene.belly, "head")
    brush.fill(CHEEK, scene.cheek, "head")

    mark = _mix(scene.belly, DARK, 0.85 * scene.difficulty.contrast)
    spots = MARKS + scene.marks
    if traits["breast"] == 1:
        for x, y in spots.tolist():
            brush.disc(x, y, 0.021 * trait, mark)
    elif traits["breast"] == 2:
        for spot in spots:
            brush.line(spot + STREAK * trait, mark, 0.019 * trait)
    elif traits["breast"] == 3:
        brush.line(BAND, mark, 0.05 * trait)


def _wing(brush: Brush, traits: dict[str, int]) -> None:
    scene = brush.scene
    brush.fill(WING, _mix(scene.cover, DARK, 0.4), "wing")
    brush.fill((WING - WING_CENTRE) * 0.93 + WING_CENTRE, scene.cover, "wing")
    for feather in FEATHERS:
        brush.line(feather, _mix(scene.cover, scene.plumage, 0.45), 0.014, "wing")
    for bar in BARS[: traits["wing"]]:
        brush.line(bar, scene.dye(WHITE, scene.cover), 0.04 * scene.difficulty.trait, "wing")


def _face(brush: Brush, traits: dict[str, int]) -> None:
    """Crown, beak and eye."""
    scene, trait = brush.scene, brush.scene.difficulty.trait
    dark_cap = _mix(scene.cover, DARK, 0.3)
    brush.fill(LORE, dark_cap, "head")
    crown = traits["crown"]
    brush.fill(_cap(0.07 * trait), scene.dye(CROWNS[crown], scene.cover) if crown else dark_cap, "head")

    shape = BEAKS[traits["beak"]]
    colour = scene.dye(ORANGE, DARK) if traits["beak"] == 1 else DARK
    brush.fill(shape, colour, "head")
    gape = np.stack([(shape[0] + shape[-1]) / 2, shape[2]])
    brush.line(gape, _mix(colour, DARK, 0.5), 0.01, "head")

    x, y = EYE
    if ring := traits["eye"]:
        brush.disc(x, y, 0.048 + 0.026 * trait, scene.dye(RINGS[ring], scene.plumage), "head")
    brush.disc(x, y, 0.046, (24, 20, 22), "head")
    brush.disc(x + 0.014, y - 0.016, 0.015, (250, 250, 250), "head")


def _perch(brush: Brush, random: np.random.Generator) -> None:
    """The branch under the feet, and the legs upon it."""
    bark = _hsv(random, (0.05, 0.12), (0.15, 0.5), (0.25, 0.5))
    slope = random.uniform(-0.12, 0.12)
    thick = random.uniform(0.05, 0.09)
    x, y = FEET.mean(axis=0).tolist()
    y += 0.05
    ends = np.array([[-3.0, y - 3 * slope], [x, y], [3.0, y + 3 * slope]])
    brush.line(ends, bark, thick * 1.5)
    brush.line(ends - (0, thick * 0.35), _mix(bark, (255, 240, 210), 0.22), thick * 0.4)
    for hip, toe in zip(HIPS, FEET, strict=True):
        brush.line(np.stack([hip, toe]), brush.scene.legs, 0.028)
        brush.line(toe + TOES, brush.scene.legs, 0.026)


def _background(random: np.random.Generator, scene: Scene) -> Image.Image:
    """A blurred backdrop, and leaves, twigs and berries in front of it."""
    size = scene.size * SUPERSAMPLING
    hues = ((0.50, 0.62), (0.20, 0.42), (0.04, 0.14), (0.0, 1.0))[random.integers(4)]
    top, bottom = (np.array(_hsv(random, hues, (0.1, 0.5), (0.35, 0.9))) for _ in range(2))
    coarse = top + (bottom - top) * np.linspace(0, 1, 7)[:, None, None] + random.normal(0, 18, (7, 7, 1))
    coarse = coarse + random.normal(0, 10, (7, 7, 3))
    canvas = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    brush = Brush(canvas, scene)
    middle = scene.size / 2
    for _ in range(int(random.integers(scene.difficulty.clutter // 3, scene.difficulty.clutter + 1))):
        centre = random.uniform(0, scene.size, 2)
        if random.random() < 0.5:
            # Berries in the traits' own colours: how much of a colour an image holds must not tell the class.
            colour = _mix(DARK, TRAIT_COLOURS[random.integers(len(TRAIT_COLOURS))], random.uniform(0.7, 1))
            for _ in range(int(random.integers(1, 5))):
                x, y = (centre * SUPERSAMPLING).tolist()
                r = size * random.uniform(0.012, 0.034)
                brush.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
                centre = centre + random.normal(0, 0.035, 2) * scene.size
        else:
            leaf = _leaf(random, centre, middle)
            # Farther away: paler, towards the backdrop.
            leaf.colour = _mix(leaf.colour, tuple(((top + bottom) / 2).astype(int).tolist()), random.uniform(0.1, 0.6))
            brush.leaf(leaf)
    return canvas


def _light(random: np.random.Generator, image: NDArray[np.float32], strength: float) -> NDArray[np.uint8]:
    """Saturation, brightness, tint, a fall-off across the image, and grain."""
    size = image.shape[0]
    fading = random.uniform(-0.7, 1.7) * strength
    tint = 1 + random.uniform(-1, 1, 3) * strength * 0.75 + random.uniform(-1.3, 0.7) * strength
    image = image @ (np.full((3, 3), fading / 3) + (1 - fading) * np.eye(3)).astype(np.float32)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    dx, dy = (random.uniform(-1, 1, 2) * strength * 0.6).astype(np.float32)
    image = image * ((1 + dx * across + dy * across[:, None])[..., None] * tint.astype(np.float32))
    image += random.standard_normal((size, size, 1), dtype=np.float32) * 3
    return image.clip(0, 255).astype(np.uint8)


def _leaf(random: np.random.Generator, centre: Array, scale: float) -> Leaf:
    """A random leaf (or, one in four, twig) for a bird of `scale` pixels."""
    angle = random.uniform(0, 2 * math.pi)
    if random.random() < 0.25:
        bark = _hsv(random, (0.04, 0.12), (0.2, 0.5), (0.2, 0.5))
        return Leaf(centre, scale * random.uniform(0.7, 1.6), scale * random.uniform(0.015, 0.035), angle, bark, False)
    autumn = random.random() < 0.4
    hue, saturation, value = AUTUMN_LEAF if autumn else GREEN_LEAF
    colour = _hsv(random, hue, saturation, value)
    return Leaf(centre, scale * random.uniform(0.14, 0.3), scale * random.uniform(0.05, 0.1), angle, colour, True)


def _frames(scale: float, angle: float, shape: Array, turns: dict[str, float]) -> tuple[dict[str, Array], Array]:
    """Frames (2, 3) of body and joints of a bird at the origin, and the centres (6, 2) of what can decide; pixels."""
    body = np.zeros((2, 3))
    body[:, :2] = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ shape
    frames = {"body": body} | {joint: _about(body, pivot, turns[joint]) for joint, (pivot, _) in JOINTS.items()}
    return frames, np.array([frames[joint][:, :2] @ (x, y) + frames[joint][:, 2] for joint, x, y in DECIDING])


def _about(frame: Array, pivot: tuple[float, float], angle: float) -> Array:
    """The frame (2, 3) preceded by a rotation about a point of the bird."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = frame[:, :2] @ turn
    shift = frame[:, :2] @ (np.array(pivot) - turn @ pivot)
    return np.concatenate([linear, (shift + frame[:, 2])[:, None]], axis=1)


def _mix(a: tuple[int, ...], b: tuple[int, ...], share: float) -> Colour:
    """`a`, with a share of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _hsv(
    random: np.random.Generator, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """A random colour from ranges in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(random.uniform(*hue), random.uniform(*saturation), random.uniform(*value))
    return round(255 * r), round(255 * g), round(255 * b)


def _smooth(*points: tuple[float, float], steps: int = 5) -> Array:
    """A closed Catmull-Rom curve through points: (len(points) * steps, 2)."""
    p1 = np.array(points)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = (np.arange(steps) / steps)[:, None, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).transpose(1, 0, 2).reshape(-1, 2)


def _arc(start: float, stop: float, radius: float | Array, count: int = 12) -> Array:
    """Points on the head at angles in degrees, 0 forward, 90 up."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack([np.cos(angle), -np.sin(angle) * 0.97], axis=1) * np.reshape(radius, (-1, 1)) + HEAD_CENTRE


def _cap(depth: float) -> Array:
    """The crown: a crescent on top of the head, `depth` bird units deep in the middle."""
    profile = 0.214 - depth * np.sin(np.linspace(0.12, math.pi - 0.12, 12)) ** 0.5
    return np.concatenate([_arc(28, 158, 0.218), _arc(28, 158, profile)[::-1]])


def _tail_end(depth: float) -> Array:
    """The last `depth` bird units of the tail."""
    a, b, c, d = TAIL
    share = depth / float(np.linalg.norm(b - a))
    return np.stack([b + (a - b) * share, b, c, c + (d - c) * share])


LEAF = np.stack(
    [
        np.concatenate([np.linspace(-1, 1, 9), np.linspace(1, -1, 9)[1:]]),
        np.concatenate([1 - np.linspace(-1, 1, 9) ** 2, np.linspace(1, -1, 9)[1:] ** 2 - 1]),
    ],
    axis=1,
)
# fmt: off
BODY = _smooth((0.46, -0.22), (0.36, -0.42), (0.17, -0.36), (0.02, -0.24), (-0.20, -0.13), (-0.43, -0.01),
               (-0.47, 0.07), (-0.36, 0.16), (-0.18, 0.26), (0.06, 0.30), (0.28, 0.22), (0.42, 0.02))
BELLY = _smooth((0.43, -0.10), (0.40, 0.04), (0.27, 0.20), (0.05, 0.275), (-0.18, 0.24), (-0.30, 0.16), (0.02, 0.10),
                (0.20, -0.04), (0.30, -0.14))
VENT = _smooth((-0.44, 0.09), (-0.36, 0.15), (-0.22, 0.235), (-0.16, 0.23), (-0.24, 0.15), (-0.36, 0.08))
MARKS = np.array([[0.31, -0.07], [0.385, -0.05], [0.25, 0.02], [0.325, 0.025], [0.19, 0.10], [0.265, 0.105],
                  [0.355, 0.085], [0.12, 0.175], [0.205, 0.185], [0.285, 0.165]])
STREAK = np.array([[0.008, -0.034], [-0.008, 0.034]])
BAND = np.array([[0.22, -0.03], [0.27, 0.06], [0.34, 0.085], [0.405, 0.05]])

HEAD_CENTRE = np.array([0.33, -0.33])
HEAD = _smooth(*[(0.33 + 0.215 * math.cos(a), -0.33 + 0.208 * math.sin(a)) for a in np.arange(11) * 2 * math.pi / 11])
THROAT = _smooth((0.53, -0.27), (0.50, -0.18), (0.42, -0.13), (0.30, -0.13), (0.36, -0.20))
CHEEK = _smooth((0.38, -0.25), (0.28, -0.19), (0.19, -0.24), (0.22, -0.32), (0.32, -0.33))
LORE = _smooth((0.53, -0.33), (0.44, -0.31), (0.34, -0.32), (0.42, -0.355))
EYE = (0.405, -0.355)
SHORT_BEAK = np.array([[0.515, -0.375], [0.60, -0.345], [0.675, -0.29], [0.60, -0.275], [0.515, -0.275]])
LONG_BEAK = np.array([[0.515, -0.365], [0.66, -0.335], [0.84, -0.265], [0.66, -0.29], [0.515, -0.285]])
BEAKS = (SHORT_BEAK, SHORT_BEAK, LONG_BEAK)

WING_CENTRE = np.array([-0.12, -0.01])
WING = _smooth((0.21, -0.06), (0.11, -0.18), (-0.10, -0.17), (-0.34, -0.04), (-0.60, 0.11), (-0.34, 0.14),
               (-0.06, 0.15), (0.13, 0.08))
FEATHERS = tuple(np.array([[-0.22, y], [-0.38, 0.5 * y + 0.05], [-0.52, 0.2 * y + 0.095]]) for y in (-0.06, 0.0, 0.06))
BARS = (np.array([[0.035, -0.165], [0.0, -0.06], [0.01, 0.04], [0.06, 0.115]]),
        np.array([[-0.105, -0.15], [-0.14, -0.04], [-0.13, 0.05], [-0.085, 0.135]]))

TAIL = np.array([[-0.38, -0.01], [-0.86, 0.07], [-0.87, 0.21], [-0.40, 0.13]])
TAIL_FEATHER = np.array([[-0.42, 0.06], [-0.84, 0.14]])
HIPS = np.array([[-0.06, 0.24], [0.07, 0.25]])
FEET = np.array([[-0.02, 0.45], [0.12, 0.45]])
TOES = np.array([[-0.05, 0.015], [0.0, -0.01], [0.06, 0.015]])
# fmt: on
#: Joints turn a little by themselves: pivot in bird units and largest angle in degrees.
JOINTS: dict[str, tuple[tuple[float, float], float]] = {
    "head": ((0.28, -0.24), 12),
    "wing": ((0.12, -0.08), 6),
    "tail": ((-0.40, 0.05), 12),
}
#: Where each part is annotated: joint and bird coordinates of the middle of what differs.
CENTRES: dict[str, tuple[str, float, float]] = {
    "crown": ("head", 0.32, -0.50),
    "eye": ("head", *EYE),
    "wing": ("wing", -0.05, -0.02),
    "breast": ("body", 0.28, 0.06),
    "beak": ("head", 0.60, -0.315),
    "tail": ("tail", -0.82, 0.135),
    "legs": ("body", 0.03, 0.38),
}
DECIDING = tuple(CENTRES[part] for part in TRAITS)
OUTLINE = (
    ("body", BODY),
    ("head", HEAD),
    ("tail", TAIL),
    ("wing", WING),
    ("body", FEET + np.array([0.06, 0.03])),
    ("body", FEET - np.array([0.05, 0.0])),
)
