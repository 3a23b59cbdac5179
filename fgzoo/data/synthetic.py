"""Synthetic birds: the built-in fine-grained data set, generated from (seed, index); no file is shipped or downloaded.

A class is a value for each of six traits (crown, eye ring, wing bars, breast, beak, tail tip), each a small area of the
bird. Classes come in twins that differ in one trait, and in at least two from everyone else: the part that carries this
trait is the image's *deciding part*, where a network should look. All the rest of an image follows from the seed and
the image's number without a look at its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgzoo.data.bird_drawing import DIFFICULTIES, PARTS, TRAITS, DifficultyName, Scene, paint, pose
from fgzoo.data.records import Listing, Part, Record
from fgzoo.errors import UsageError

#: A value for each trait, in the order of `TRAITS`.
Code = tuple[int, ...]

MAX_CLASSES = 200
#: Test images are numbered from here, so that no training image is ever one of them, however many there are.
TEST_START = 1_000_000
#: Painted images kept in a process, bytes.
MEMORY = 512 * 2**20


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
    """

    classes: int = 12
    train_per_class: int = 100
    test_per_class: int = 50
    size: int = 128
    difficulty: DifficultyName = "medium"
    seed: int = 0

    def __post_init__(self) -> None:
        self._require("classes", 2, MAX_CLASSES)
        self._require("train_per_class", 1, TEST_START // self.classes)
        self._require("test_per_class", 0, TEST_START // self.classes)
        self._require("size", 32, 1024)
        self._require("seed", 0, 2**63 - 1)
        if self.difficulty not in DIFFICULTIES:
            raise UsageError(f"birds.difficulty must be one of {', '.join(DIFFICULTIES)}; got {self.difficulty!r}.")

    def _require(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"birds.{name} must be a whole number from {low} to {high}; got {value!r}.")


class SyntheticBirds:
    """A set of synthetic birds.

    Args:
        birds: What the set is like.
    """

    def __init__(self, birds: Birds | None = None) -> None:
        self.birds = birds or Birds()
        self.codes = class_codes()[: self.birds.classes]
        self.class_names = tuple(map(class_name, self.codes))
        self._deciding = tuple(_deciding_traits(code, self.codes) for code in self.codes)
        self._memory: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, object]:
        """Workers paint for themselves; sending them what is painted already would cost more."""
        return {**self.__dict__, "_memory": {}}

    def listing(self) -> Listing:
        """All records, with boxes and parts; nothing is painted until `listing.read` is called."""
        birds = self.birds
        return Listing(
            dataset="birds",
            class_names=self.class_names,
            train=_records(birds, "train", birds.classes * birds.train_per_class),
            test=_records(birds, "test", birds.classes * birds.test_per_class),
            read=self.read,
            identity=repr(birds),
            notes=(f"Generated: {', '.join(f'{name} {value}' for name, value in asdict(birds).items())}.",),
        )

    def read(self, record: Record) -> Tensor:
        """Paint a record's image, or remember it: uint8 (3, size, size), the caller's own copy."""
        image = self._memory.get(record.name)
        if image is None:
            image = torch.from_numpy(self.render(self.scene(record), record.target)).permute(2, 0, 1).contiguous()
            # Epochs visit every image once: throwing the oldest out would throw out just the next one to be asked for.
            if (len(self._memory) + 1) * image.numel() <= MEMORY:
                self._memory[record.name] = image
        return image.clone()

    def deciding_part(self, record: Record) -> Part | None:
        """The part that tells the record's class from the nearest other class; `None` where it is hidden.

        Of several parts that tell the two apart, it is the first that is visible.
        """
        visible = {part.name: part for part in record.parts}
        return next((visible[name] for name in self._deciding[record.target] if name in visible), None)

    def scene(self, record: Record) -> Scene:
        """All of a record but its class; it follows from the seed and the record's name alone."""
        split, number = record.name.split("/")
        return _scene(self.birds, split, int(number))

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


@lru_cache(maxsize=4)
def _records(birds: Birds, split: str, count: int) -> tuple[Record, ...]:
    """A split's records. Laying out 1,800 scenes takes a second or two, and a process often asks for one set again."""
    records = []
    for number in range(count):
        target = number % birds.classes
        scene = _scene(birds, split, number)
        box = scene.box(_traits(class_codes()[target]))
        records.append(Record(f"{split}/{number:06d}", target, box=box, parts=scene.visible_parts()))
    return tuple(records)


def _scene(birds: Birds, split: str, number: int) -> Scene:
    index = number + (TEST_START if split == "test" else 0)
    return pose(np.random.default_rng([birds.seed, index]), birds.size, DIFFICULTIES[birds.difficulty])


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


def _deciding_traits(code: Code, codes: Sequence[Code]) -> tuple[str, ...]:
    """Parts in which a class differs from its nearest other class."""

    def different(other: Code) -> tuple[str, ...]:
        return tuple(part for part, a, b in zip(TRAITS, code, other, strict=True) if a != b)

    return min((different(other) for other in codes if other != code), key=len)


def _changed(code: Code, trait: int, values: Sequence[int]) -> list[Code]:
    """All codes that differ from `code` in this trait alone."""
    return [(*code[:trait], value, *code[trait + 1 :]) for value in values if value != code[trait]]


def _traits(code: Code) -> dict[str, int]:
    return dict(zip(TRAITS, code, strict=True))


def _file_name(class_name: str) -> str:
    return class_name.title().replace(", ", "_").replace(" ", "_")
