"""Tiny data sets in the official file formats, made of generated pictures."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.io
from PIL import Image

BIRDS = ("Black_footed_Albatross", "Indigo_Bunting", "Rusty_Blackbird", "Gray_Catbird", "Cardinal", "Ovenbird")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TT RS Coupe 2012", "BMW M3 Coupe 2012")
AIRCRAFT = (
    ("F/A-18", "F/A-18", "McDonnell Douglas"),
    ("737-200", "Boeing 737", "Boeing"),
    ("737-300", "Boeing 737", "Boeing"),
    ("A300B4", "A300", "Airbus"),
)


class Bomb:
    """What makes a file, the canary, when it is unpickled."""

    def __init__(self, canary: Path, make: Callable[[Path], None] = Path.touch) -> None:
        self.canary, self.make = canary, make

    def __reduce__(self) -> tuple[object, ...]:
        return self.make, (self.canary,)


def picture(target: int, index: int = 0, width: int = 48, height: int = 40) -> Image.Image:
    """A picture that a network can learn: one colour per class, noise, and a bright square somewhere."""
    draw = np.random.default_rng([target, index])
    colour = np.random.default_rng(zlib.crc32(str(target).encode())).integers(40, 200, 3)
    pixels = colour + draw.integers(-25, 26, (height, width, 3))
    x, y = draw.integers(0, max(width // 2, 1)), draw.integers(0, max(height // 2, 1))
    pixels[y : y + height // 4, x : x + width // 4] += 50
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def save(path: Path, target: int = 0, index: int = 0, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture(target, index, height=height)))
    return path


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def make_cub(root: Path, classes: int = 3, per_class: int = 4, parts: bool = True) -> Path:
    """CUB-200-2011; the first half of every class is training. Returns the folder with images.txt."""
    folder = root / "CUB_200_2011"
    lists: dict[str, list[str]] = {}

    def add(name: str, line: str) -> None:
        lists.setdefault(name, []).append(line)

    identifier = 0
    for target in range(classes):
        label = f"{target + 1:03d}.{BIRDS[target % len(BIRDS)]}"
        add("classes.txt", f"{target + 1} {label}")
        for index in range(per_class):
            identifier += 1
            name = f"{label}/{label[4:]}_{index:04d}_{identifier}.jpg"
            save(folder / "images" / name, target, index)
            add("images.txt", f"{identifier} {name}")
            add("image_class_labels.txt", f"{identifier} {target + 1}")
            add("train_test_split.txt", f"{identifier} {int(index < per_class / 2)}")
            add("bounding_boxes.txt", f"{identifier} 4.0 6.0 30.0 20.0")
            add("parts/part_locs.txt", f"{identifier} 1 10.0 12.0 1")
            add("parts/part_locs.txt", f"{identifier} 2 0.0 0.0 0")
    lists["parts/parts.txt"] = ["1 left wing", "2 tail"]
    for name, lines in lists.items():
        if parts or not name.startswith("parts/"):
            write_lines(folder / name, lines)
    return folder


def make_cars(
    root: Path,
    classes: int = 3,
    per_class: int = 4,
    layout: Literal["devkit", "single", "folders"] = "devkit",
) -> Path:
    """Stanford Cars in one of three layouts; the first half of every class is training. Returns `root`."""
    train: list[tuple[object, ...]] = []
    test: list[tuple[object, ...]] = []
    for target in range(classes):
        for index in range(per_class):
            split = train if index < per_class / 2 else test
            split.append((target, index))
    names = [CARS[target % len(CARS)] + (f" {target}" if target >= len(CARS) else "") for target in range(classes)]
    box = (3, 5, 40, 36)
    if layout == "folders":
        for split, members in (("train", train), ("test", test)):
            for target, index in members:
                save(root / split / names[target] / f"{index:05d}.jpg", target, index)
    elif layout == "single":
        rows = []
        for number, (target, index) in enumerate(train + test, start=1):
            name = f"car_ims/{number:06d}.jpg"
            save(root / name, target, index)
            rows.append((name, *box, target + 1, int(number > len(train))))
        fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
        save_mat(root / "cars_annos.mat", annotations=struct(fields, rows), class_names=cell(names))
    else:
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        files = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
        for split, members in (("train", train), ("test", test)):
            rows = []
            for number, (target, index) in enumerate(members, start=1):
                save(root / f"cars_{split}" / f"{number:05d}.jpg", target, index)
                rows.append((*box, target + 1, f"{number:05d}.jpg"))
            save_mat(root / "devkit" / files[split], annotations=struct(fields, rows))
        save_mat(root / "devkit" / "cars_meta.mat", class_names=cell(names))
    return root


def make_aircraft(root: Path, classes: int = 3, per_class: int = 4) -> Path:
    """FGVC-Aircraft with variants, families and manufacturers; a quarter each is training and validation, half test."""
    data = root / "fgvc-aircraft-2013b" / "data"
    chosen = [AIRCRAFT[target] for target in range(classes)]
    lists: dict[str, list[str]] = {}
    for target in range(classes):
        for index in range(per_class):
            name = f"{target * 100 + index:07d}"
            save(data / "images" / f"{name}.jpg", target, index, height=60)
            split = "test" if index >= per_class / 2 else "val" if index >= per_class / 4 else "train"
            lists.setdefault("images_box.txt", []).append(f"{name} 3 5 40 36")
            for level, label in zip(("variant", "family", "manufacturer"), chosen[target], strict=True):
                header = ["Image"] if level == "family" else []  # as in the official files
                for part in (split,) if split == "test" else (split, "trainval"):
                    lists.setdefault(f"images_{level}_{part}.txt", list(header)).append(f"{name} {label}")
    for file, column in (("variants.txt", 0), ("families.txt", 1), ("manufacturers.txt", 2)):
        lists[file] = sorted({labels[column] for labels in chosen})
    for file, lines in lists.items():
        write_lines(data / file, lines)
    return root


def make_folder(
    root: Path,
    classes: int = 3,
    per_class: int = 4,
    splits: tuple[str, ...] = ("train", "test"),
) -> Path:
    """Class folders, below one folder per split; without splits one tree. Returns `root`."""
    for part, split in enumerate(splits or ("",)):
        for target in range(classes):
            for index in range(per_class):
                save(root / split / f"class {target}" / f"image{index}.jpg", target, index + part * per_class)
    return root


def struct(fields: tuple[str, ...], rows: list[tuple[object, ...]]) -> np.ndarray:
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for column, row in enumerate(rows):
        array[0, column] = row
    return array


def cell(names: list[str]) -> np.ndarray:
    array = np.empty((1, len(names)), dtype=object)
    array[0, :] = names
    return array


def save_mat(path: Path, **variables: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)
