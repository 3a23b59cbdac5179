"""Explanations as PNG files: a folder an image, with the image, each map over it, Grad-CAM, and a sheet of all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fgzoo.files import atomic_write, is_file
from fgzoo.interpret.explanation import Explanation
from fgzoo.interpret.fonts import font_file
from fgzoo.interpret.overlays import drawn

#: Longest part of an image's name that its folder takes over.
STEM = 48
#: Side of a sheet's tiles, and room round them, in pixels.
TILE, GAP, LINE = 224, 12, 20
#: What stands in files that were made here.
MARK = ("Software", "fgzoo explain")
#: Most tiles in a row of a sheet.
COLUMNS = 6


def write_pictures(folder: Path, paths: Sequence[Path], explanations: Iterable[Explanation]) -> Iterator[Explanation]:
    """Write the PNG files of explanations while they come, in a folder for each image that has an answer, and pass them on.

    Args:
        folder: Where these folders are made; those of an earlier run go when the first explanation comes.
        paths: The images.
        explanations: One an image.
    """
    for number, (path, found) in enumerate(zip(paths, explanations, strict=True), start=1):
        if number == 1:
            _clear(folder)
        if found.error is None:
            own = folder / folder_name(number, len(paths), path)
            own.mkdir(parents=True, exist_ok=True)
            _write_one(own, path, found)
        yield found


def folder_name(number: int, count: int, path: Path) -> str:
    """The name of the folder of one of `count` images: its number, from 1, and what every file system takes of its name."""
    return f"{number:0{max(3, len(str(count)))}d}_{safe(path.stem)}"


def safe(name: str) -> str:
    """Letters, digits, `-`, `_` and inner dots of a name; anything else becomes `_`."""
    return re.sub(r"[^\w.-]+", "_", name)[:STEM].strip("._") or "image"


def tiles(found: Explanation) -> list[tuple[str, Image.Image]]:
    """Names and pictures of one explanation, all of the size that the network saw: the image, its maps over it, Grad-CAM."""
    shown = [("image", Image.fromarray(found.image.permute(1, 2, 0).numpy()))]
    shown += [(name, drawn(found.image, own)) for name, own in zip(found.names, found.maps, strict=True)]
    return shown if found.cam is None else [*shown, ("Grad-CAM", drawn(found.image, found.cam))]


def sheet(title: str, pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """All pictures of an image on one, with their names, below a title of one or more lines."""
    font = ImageFont.truetype(str(font_file(title)), 14)
    lines = title.splitlines()
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    top, high = GAP + LINE * len(lines), LINE + TILE + GAP
    page = Image.new("RGB", (GAP + columns * (TILE + GAP), top + rows * high), "white")
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        draw.text((GAP, GAP // 2 + row * LINE), _fitting(line, font, page.width - 2 * GAP), "black", font)
    for index, (name, picture) in enumerate(pictures):
        x, y = GAP + index % columns * (TILE + GAP), top + index // columns * high
        draw.text((x, y), _fitting(name, font, TILE), "#444444", font)
        page.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y + LINE))
    return page


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of it as there is room for."""
    text = text[:width].encode(errors="replace").decode()  # no character is narrower than a pixel
    while len(text) > 1 and font.getlength(text) > width:
        text = f"{text[:-2]}…"
    return text


def _write_one(folder: Path, path: Path, found: Explanation) -> None:
    pictures = tiles(found)
    for index, (name, picture) in enumerate(pictures):
        _save(folder / f"{index:02d}_{safe(name)}.png", picture)
    title = f"{path.name}\n{found.answers}; explained: {found.explained} ({found.share:.1%})"
    _save(folder / "sheet.png", sheet(title, pictures))


def _save(path: Path, picture: Image.Image) -> None:
    made_by = PngInfo()
    made_by.add_text(*MARK)
    with atomic_write(path) as part:
        picture.save(part, "PNG", pnginfo=made_by)


def _clear(folder: Path) -> None:
    """Take away an earlier run's pictures, and its folders that then are empty; whatever else lies there stays."""
    for own in folder.glob("[0-9][0-9][0-9]*_*"):
        made = [] if own.is_symlink() else [file for file in own.glob("*.png") if _made_here(file)]
        for file in made:
            file.unlink()
        if made and not any(own.iterdir()):
            own.rmdir()


def _made_here(file: Path) -> bool:
    if not is_file(file):
        return False
    with file.open("rb") as stream:  # of a person's picture, however large, its beginning will do
        return "\0".join(MARK).encode() in stream.read(200)
