"""Synthetic birds: the built-in fine-grained data set, generated from (seed, index); no file is shipped or downloaded.

A class is a value for each of six traits (crown, eye ring, wing bars, breast, beak, tail tip), each a small area of the
bird. Classes come in twins that differ in one trait, and in at least two from everyone else: the part that carries this
trait is the image's *deciding part*, where a network should look. All the rest of an image follows from the seed and
the image's number without a look at its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgzoo.data.bird_drawing import DIFFICULTIES, PARTS, TRAITS, Difficulty, DifficultyName, Scene, paint, pose
from fgzoo.data.records import Listing, Part, Record
from fgzoo.errors import UsageError

#: A value for each trait, in the order of `TRAITS`.
Code = tuple[int, ...]

MAX_CLASSES = 200
#: Test images are numbered from here, so that no training image is ever one of them, however many there are.
TEST_START = 1_000_000
#: Painted images kept in a process, bytes.
MEMORY = 512 * 2**20
#: Fields of `Birds` that a set's identity names only where they are not the default: earlier sets keep their fingerprints.
LATER_FIELDS = ("body", "trait", "clutter", "first_class")


@dataclass(frozen=True)
class Birds:
    """What the set of birds is like.

    Attributes:
        classes: Number of classes, 2 to 200. A smaller set's classes are the first of a larger one's.
        train_per_class: Training images per class.
        test_per_class: Test images per class.
        size: Image side in pixels, 32 to 1024.
        difficulty: Size and contrast of the traits, range of poses, clutter and occlusion.
        seed: Another seed gives other images of the same classes.
        body: Smallest and largest body length as a share of the image side, 0.05 to 1; `None`: the difficulty's. A bird too long
            for the image sits up, and is no longer than fits then (about 0.8).
        trait: Factor, 0.1 to 3, of the traits' size relative to the body; beyond that, wing bars run into one another.
        clutter: Factor, 0 to 10, of the difficulty's largest numbers of leaves, twigs and berries, before and behind the bird.
        first_class: The first of these classes among all 200; even, so that twins stay together.
    """

    classes: int = 12
    train_per_class: int = 100
    test_per_class: int = 50
    size: int = 128
    difficulty: DifficultyName = "medium"
    seed: int = 0
    body: tuple[float, float] | None = None
    trait: float = 1.0
    clutter: float = 1.0
    first_class: int = 0

    def __post_init__(self) -> None:
        self._require("classes", 2, MAX_CLASSES)
        self._require("train_per_class", 1, TEST_START // self.classes)
        self._require("test_per_class", 0, TEST_START // self.classes)
        self._require("size", 32, 1024)
        self._require("seed", 0, 2**63 - 1)
        if self.difficulty not in DIFFICULTIES:
            raise UsageError(f"birds.difficulty must be one of {', '.join(DIFFICULTIES)}; got {self.difficulty!r}.")
        if self.body is not None:
            if len(self.body) != 2 or not all(_within(share, 0.05, 1) for share in self.body) or self.body[0] > self.body[1]:
                raise UsageError(f"birds.body must be two numbers from 0.05 to 1, the smaller one first; got {self.body!r}.")
            object.__setattr__(self, "body", tuple(self.body))  # a file's is a list, which cannot be hashed
        for name, low, high in (("trait", 0.1, 3), ("clutter", 0, 10)):
            if not _within(value := getattr(self, name), low, high):
                raise UsageError(f"birds.{name} must be a number from {low} to {high}; got {value!r}.")
        self._require("first_class", 0, MAX_CLASSES - self.classes)
        if self.first_class % 2:
            raise UsageError(f"birds.first_class must be even, so that twins stay together; got {self.first_class!r}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this set from others: every field by name, but for `LATER_FIELDS` that have their default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if name not in LATER_FIELDS or value != default}

    @property
    def codes(self) -> tuple[Code, ...]:
        """The classes' traits."""
        return class_codes()[self.first_class : self.first_class + self.classes]

    @property
    def drawing(self) -> Difficulty:
        """The difficulty, with this set's own body lengths, size of traits and clutter."""
        usual = DIFFICULTIES[self.difficulty]
        leaves, clutter = (round(self.clutter * number) for number in (usual.leaves, usual.clutter))
        return replace(usual, scale=self.body or usual.scale, trait=self.trait * usual.trait, leaves=leaves, clutter=clutter)

    def _require(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or not _within(value, low, high):
            raise UsageError(f"birds.{name} must be a whole number from {low} to {high}; got {value!r}.")


class BirdRecord(Record):
    """A synthetic bird's record. Its box and parts, which take a millisecond, are found when they are first asked for."""

    __slots__ = ("birds",)
    birds: Birds

    @classmethod
    def numbered(cls, birds: Birds, split: str, number: int) -> BirdRecord:
        """The record of an image of a split; the set's classes take turns. Its fields are frozen, and two of them stay empty."""
        record = cls.__new__(cls)
        known = {"name": f"{split}/{number:06d}", "target": number % birds.classes, "path": None, "birds": birds}
        for field, value in known.items():
            object.__setattr__(record, field, value)
        return record

    def __getattr__(self, name: str) -> Any:
        """Python asks here for nothing but what is not there: fill in box and parts."""
        if name not in ("box", "parts"):
            raise AttributeError(f"a record of birds has no attribute {name!r}")
        scene = _scene(self.birds, self.name)
        object.__setattr__(self, "box", scene.box(_traits(self.birds.codes[self.target])))
        object.__setattr__(self, "parts", scene.visible_parts())
        return getattr(self, name)

    def __repr__(self) -> str:
        return repr(Record(self.name, self.target, box=self.box, parts=self.parts))


class SyntheticBirds:
    """A set of synthetic birds.

    Args:
        birds: What the set is like.
    """

    def __init__(self, birds: Birds | None = None) -> None:
        self.birds = birds or Birds()
        self.codes = self.birds.codes
        self.class_names = tuple(map(class_name, self.codes))
        self._nearest = tuple(_nearest_class(code, self.codes) for code in self.codes)
        self._memory = _painted(self.birds)

    def __getstate__(self) -> dict[str, object]:
        """Workers paint for themselves; sending them what is painted already would cost more."""
        return {**self.__dict__, "_memory": {}}

    def listing(self) -> Listing:
        """All records; nothing is laid out until a box or parts are asked for, nor painted until `listing.read` is called."""
        birds = self.birds
        return Listing(
            dataset="birds",
            class_names=self.class_names,
            train=_records(birds, "train", birds.classes * birds.train_per_class),
            test=_records(birds, "test", birds.classes * birds.test_per_class),
            read=self.read,
            identity=f"Birds({', '.join(f'{name}={value!r}' for name, value in birds.settings.items())})",
            notes=(f"Generated: {', '.join(f'{name} {value}' for name, value in birds.settings.items())}.",),
        )

    def read(self, record: Record) -> Tensor:
        """Paint a record's image, or remember it: uint8 (3, size, size), the caller's own copy."""
        image = self._memory.get(record.name)
        if image is None:
            image = np.ascontiguousarray(self.render(self.scene(record), record.target).transpose(2, 0, 1))
            # Epochs visit every image once: throwing the oldest out would throw out just the next one to be asked for.
            if (len(self._memory) + 1) * image.size <= MEMORY:
                self._memory[record.name] = image
        return torch.from_numpy(image.copy())  # numpy's, since torch would wake its threads for so little

    def deciding_part(self, record: Record) -> Part | None:
        """The part that tells the record's class from the nearest other class; `None` where it is hidden.

        Of several parts that tell the two apart, it is the first that is visible.
        """
        visible = {part.name: part for part in record.parts}
        pair = zip(TRAITS, self.codes[record.target], self.codes[self._nearest[record.target]], strict=True)
        return next((visible[name] for name, own, other in pair if own != other and name in visible), None)

    def deciding_share(self, record: Record) -> float:
        """Share of the image's pixels, in [0, 1], that would differ were the same scene painted with the nearest other class."""
        scene = self.scene(record)
        own, other = (self.render(scene, target) for target in (record.target, self._nearest[record.target]))
        return float((own != other).any(axis=2).mean())

    def scene(self, record: Record) -> Scene:
        """All of a record but its class; it follows from the seed and the record's name alone."""
        return _scene(self.birds, record.name)

    def render(self, scene: Scene, target: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Paint a scene with the traits of a class, which need not be the record's: RGB (size, size, 3)."""
        return paint(scene, _traits(self.codes[target]))

    def export(self, root: Path) -> None:
        """Write the set as files in the layout of CUB-200-2011.

        Args:
            root: Folder to write to; created where missing, must hold no other data set.

        Raises:
            UsageError: The folder holds a data set already.
        """
        if (root / "images.txt").exists():
            raise UsageError(f"{root} holds a data set already (images.txt); remove it or choose another folder.")
        listing = self.listing()
        folders = [f"{i:03d}.{_file_name(name)}" for i, name in enumerate(self.class_names, start=1)]
        for folder in (*(f"images/{folder}" for folder in folders), "parts"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        lists: dict[str, list[str]] = defaultdict(list)
        lists["classes.txt"] = [f"{i} {folder}" for i, folder in enumerate(folders, start=1)]
        lists["parts/parts.txt"] = [f"{i} {name}" for i, name in enumerate(PARTS, start=1)]
        # CUB numbers its images class by class.
        for key, record in enumerate(sorted(listing.records, key=lambda record: record.target), start=1):
            path = f"{folders[record.target]}/{record.name.replace('/', '_')}.png"
            Image.fromarray(self.render(self.scene(record), record.target)).save(root / "images" / path)
            lists["image_class_labels.txt"].append(f"{key} {record.target + 1}")
            lists["train_test_split.txt"].append(f"{key} {int(record.name.startswith('train/'))}")
            assert record.box is not None
            x0, y0, x1, y1 = record.box
            lists["bounding_boxes.txt"].append(f"{key} {x0} {y0} {x1 - x0:.2f} {y1 - y0:.2f}")
            visible = {part.name: part for part in record.parts}
            for number, name in enumerate(PARTS, start=1):
                part = visible.get(name)
                lists["parts/part_locs.txt"].append(
                    f"{key} {number} {part.x} {part.y} 1" if part else f"{key} {number} 0.0 0.0 0"
                )
            lists["images.txt"].append(f"{key} {path}")  # written last: its presence says that the rest is complete
        for name, lines in lists.items():
            (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _records(birds: Birds, split: str, count: int) -> tuple[Record, ...]:
    return tuple(BirdRecord.numbered(birds, split, number) for number in range(count))


def _scene(birds: Birds, name: str) -> Scene:
    split, number = name.split("/")
    index = int(number) + (TEST_START if split == "test" else 0)
    return pose(np.random.default_rng([birds.seed, index]), birds.size, birds.drawing)


@lru_cache(maxsize=1)
def _painted(birds: Birds) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:  # noqa: ARG001 - the cache reads it
    """The images that this process has painted of the set it came to last, by their records' names."""
    return {}


@cache
def class_codes() -> tuple[Code, ...]:
    """The traits of all classes.

    Greedy, from the plainest birds on: the next twins are the first code, and the same with one trait changed, that
    both differ in at least two traits from all chosen before. The trait that parts the twins takes turns.

    Returns:
        `MAX_CLASSES` codes; those at 2k and 2k + 1 differ in one trait, all other pairs in two or more.
    """
    values = [range(len(words)) for words in TRAITS.values()]
    candidates = list(product(*values))
    # Shuffled, so that the first few classes use all traits and colours; sorted, so that they have short names.
    Random(3).shuffle(candidates)
    candidates.sort(key=lambda code: max(2, sum(map(bool, code))))
    chosen: list[Code] = []
    blocked: set[Code] = set()
    while len(chosen) < MAX_CLASSES:
        trait = (len(chosen) // 2) % len(TRAITS)
        twins = next(
            (code, other)
            for code in candidates
            if code not in blocked
            for other in _changed(code, trait, values[trait])
            if other not in blocked
        )
        chosen += twins
        for code in twins:
            blocked.add(code)
            blocked.update(other for trait in range(len(TRAITS)) for other in _changed(code, trait, values[trait]))
    return tuple(chosen)


def class_name(code: Code) -> str:
    """The traits in words, as in "red-crowned, two wing bars": a name that no other class has."""
    return ", ".join(filter(None, (words[value] for words, value in zip(TRAITS.values(), code, strict=True)))) or "plain"


def _nearest_class(code: Code, codes: Sequence[Code]) -> int:
    """The index of the class, other than this one, that differs in the fewest traits."""

    def distance(index: int) -> int:
        return sum(a != b for a, b in zip(code, codes[index], strict=True))

    return min((index for index, other in enumerate(codes) if other != code), key=distance)


def _changed(code: Code, trait: int, values: Sequence[int]) -> list[Code]:
    """All codes that differ from `code` in this trait alone."""
    return [(*code[:trait], value, *code[trait + 1 :]) for value in values if value != code[trait]]


def _within(value: object, low: float, high: float) -> bool:
    """Whether it is a number from `low` to `high`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _traits(code: Code) -> dict[str, int]:
    return dict(zip(TRAITS, code, strict=True))


def _file_name(class_name: str) -> str:
    return class_name.title().replace(", ", "_").replace(" ", "_")
