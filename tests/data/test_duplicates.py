from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fgzoo.data import duplicates
from fgzoo.data.duplicates import known_near_duplicates, near_duplicates
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from tests.builders import encode

#: Birds of two species, alike but for one trait.
TWINS = SyntheticBirds(Birds(classes=2, train_per_class=60, test_per_class=0)).listing()


def bird(index: int) -> Image.Image:
    return Image.fromarray(TWINS.read(TWINS.train[index]).permute(1, 2, 0).numpy())


def write(folder: Path, **pictures: Image.Image | bytes) -> list[Path]:
    paths = [folder / f"{name}.jpg" for name in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        path.write_bytes(picture if isinstance(picture, bytes) else encode(picture, "PNG"))
    return paths


def recompressed(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, quality=30)))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": recompressed,
    "smaller": lambda image: image.resize((50, 50), Image.Resampling.BICUBIC),
    "squashed": lambda image: image.resize((160, 90)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L"),
    "cut": lambda image: image.crop((1, 1, 127, 127)),
    "turned": lambda image: image.rotate(1, Image.Resampling.BILINEAR),
    "mirrored": ImageOps.mirror,
}


@pytest.mark.parametrize("how", ALTERED)
def test_altered_copies_are_found(tmp_path: Path, how: str) -> None:
    copies = {f"copy{n}": ALTERED[how](bird(n)) for n in range(0, 20, 4)}
    found = near_duplicates(write(tmp_path, **{f"bird{n}": bird(n) for n in range(20)}, **copies))
    assert found.groups == tuple((n, 20 + n // 4) for n in range(0, 20, 4))
    assert found.identical == ()


def test_birds_of_a_species_and_its_twin_are_not_duplicates() -> None:
    assert near_duplicates(TWINS.train, TWINS.read) == ((), (), {})


def test_copies_of_a_file_are_found_even_where_nothing_is_to_be_seen(tmp_path: Path) -> None:
    black = encode(Image.new("RGB", (40, 30)), "PNG")
    nearly = Image.new("RGB", (40, 30), (1, 1, 1))
    paths = write(tmp_path, a=bird(0), b=black, c=nearly, d=black, e=bird(0), f=black)
    assert near_duplicates(paths) == (((0, 4), (1, 3, 5)), ((0, 4), (1, 3, 5)), {})


def test_pictures_that_are_read_are_identical_by_their_pixels() -> None:
    again = [TWINS.train[0], TWINS.train[1], TWINS.train[0]]
    assert near_duplicates(again, TWINS.read).identical == ((0, 2),)


def test_what_cannot_be_read_is_said_and_the_rest_compared(tmp_path: Path) -> None:
    paths = write(tmp_path, a=bird(0), b=b"no image", c=bird(0))
    found = near_duplicates([*paths, tmp_path / "missing.jpg"], threads=2)
    assert found.groups == ((0, 2),)
    assert found.unreadable.keys() == {1, 3}
    assert "b.jpg is not an image" in found.unreadable[1]
    assert "missing.jpg cannot be read" in found.unreadable[3]


def test_no_images() -> None:
    assert near_duplicates([]) == ((), (), {})


def test_groups_are_those_of_all_pairs_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 7)  # groups reach over blocks
    draw = np.random.default_rng(0)
    cells = draw.uniform(0, 255, (30, 16, 16)).repeat(2, axis=0)[draw.permutation(60)]
    cells += draw.normal(0, 25, cells.shape)
    cells[::3] = cells[::3, :, ::-1]

    def steps(picture: np.ndarray) -> np.ndarray:
        differences = np.concatenate([np.diff(picture, axis=axis).ravel() for axis in (0, 1)])
        return differences / np.linalg.norm(differences)

    groups = [{index} for index in range(60)]
    for i in range(60):
        for j in range(i):
            if max(steps(cells[i]) @ steps(other) for other in (cells[j], cells[j][:, ::-1])) >= 0.87:
                groups[i] |= groups[j]
                for member in groups[i]:
                    groups[member] = groups[i]
    labels = duplicates._components(*duplicates._description(cells.astype(np.float32)), 0.87)
    assert [set(np.flatnonzero(labels == label)) for label in labels] == groups
    assert 5 < len({min(group) for group in groups}) < 55


# ---------------------------------------------------------------------- what is known from before


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    paths = write(
        tmp_path, **{f"bird{n}": bird(n) for n in (0, 1, 2)}, copy=bird(1), darker=ImageEnhance.Brightness(bird(2)).enhance(0.8)
    )
    return [Record(path.name, 0, path) for path in paths]


def test_what_was_found_is_read_by_others_whatever_the_order(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_near_duplicates(records) == near_duplicates(records) == (((1, 3), (2, 4)), ((1, 3),), {})
    monkeypatch.delattr(duplicates, "decode")
    assert known_near_duplicates(records[::-1]) == (((0, 2), (1, 3)), ((1, 3),), {})


def test_a_file_that_has_changed_is_compared_anew(records: list[Record]) -> None:
    known_near_duplicates(records)
    records[3].path.write_bytes(encode(bird(9)))  # type: ignore[union-attr]
    assert known_near_duplicates(records).groups == ((2, 4),)


def test_other_files_of_the_same_names_sizes_and_times_are_compared(tmp_path: Path) -> None:
    found = []
    for folder, numbers in (("apart", (0, 1, 2)), ("copies", (0, 0, 0))):
        (tmp_path / folder).mkdir()
        paths = [tmp_path / folder / f"{place}.bmp" for place in range(3)]
        for path, number in zip(paths, numbers, strict=True):
            bird(number).save(path)
            os.utime(path, (1e9, 1e9))
        found.append(known_near_duplicates([Record(path.name, 0, path) for path in paths]).groups)
    assert found == [(), ((0, 1, 2),)]


def test_images_are_compared_where_nothing_can_be_kept(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert known_near_duplicates(records, cache_folder=tmp_path / "file").groups == ((1, 3), (2, 4))


def test_what_takes_long_is_said(
    records: list[Record], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    near_duplicates(records)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(duplicates, "PATIENCE", 0)
    near_duplicates(records)
    assert capsys.readouterr() == ("", "Looking for near-duplicates among 5 images\n")
