"""Photos of a run for its page: small, and with the maps of the method over those that it got wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from fgzoo.data.records import Record
from fgzoo.errors import DataError
from fgzoo.interpret.explanation import Explanation, explain
from fgzoo.interpret.overlays import drawn
from fgzoo.interpret.page import data_uri
from fgzoo.reporting.run import Run
from fgzoo.reporting.scores import Scores

#: Sides in pixels of a mistake's photo and map, of photos beside it and in lists, of a class's examples, and of further maps.
PHOTO, BESIDE, EXAMPLE, MAP = 320, 224, 72, 96
#: Quality of what is embedded.
QUALITY = 76
#: Mistakes whose photos are in memory at once.
AT_ONCE = 4
#: Further maps shown below a mistake.
MAPS = 5


class Photos:
    """The photos of a run's images, by part and name.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.data = run.data
        self.records: dict[tuple[str, str], Record] = {(part, record.name): record for part, record in run.images()}
        self.by_class: dict[int, list[tuple[str, str]]] = {}
        for (part, name), record in self.records.items():
            self.by_class.setdefault(record.target, []).append((part, name))

    def path(self, part: str, name: str) -> str:
        """Where an image's file lies; its name where there is none."""
        record = self.records.get((part, name))
        return str(record.path) if record is not None and record.path is not None else name

    def picture(self, part: str, name: str, side: int, square: bool = False) -> Image.Image | None:
        """A photo no larger than a square, or cut to one; `None` where it is not to be found or cannot be read."""
        record = self.records.get((part, name))
        if record is None or self.data is None:
            return None
        try:
            pixels = self.data.read(record, enough=side)
        except DataError:
            return None
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if square:
            return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    def example(self, target: int, scores: Scores, besides: str = "") -> tuple[str, str] | None:
        """Part and name of a photo that shows a class: the one answered right with most confidence, else one trained on."""
        right = np.flatnonzero(scores.right & (scores.targets == target))
        for index in right[np.argsort(-scores.confidence[right], kind="stable")].tolist():
            if scores.names[index] != besides and (scores.part, scores.names[index]) in self.records:
                return scores.part, scores.names[index]
        others = (key for key in self.by_class.get(target, []) if key[1] != besides)
        return min(others, key=lambda key: key[0] != "train", default=None)


class Looked(NamedTuple):
    """A mistake's photo as the network saw it, the method's most telling map over it, and further maps, each with its name."""

    photo: Image.Image
    map_name: str
    map: Image.Image | None
    others: list[tuple[str, Image.Image]]


def look(run: Run, photos: Photos, scores: Scores, mistakes: Sequence[int]) -> Iterator[Looked | None]:
    """Photos and maps of mistakes, in their order; `None` for an image that is not to be found or cannot be read."""
    for start in range(0, len(mistakes), AT_ONCE):
        some = mistakes[start : start + AT_ONCE]
        images: dict[int, torch.Tensor] = {}
        for index in some:
            record = photos.records.get((scores.part, scores.names[index]))
            if record is not None and run.data is not None:
                try:
                    images[index] = run.data.read(record)
                except DataError:
                    continue
        found = dict(zip(images, explain(run.model, list(images.values()), batch_size=AT_ONCE), strict=True)) if images else {}
        for index in some:
            yield _looked(found[index]) if index in found and found[index].error is None else None


def _looked(found: Explanation) -> Looked:
    maps = list(zip(found.names, found.maps, strict=True))
    # The method's own word for which map mattered, else its last one, which is its finest.
    best = int(np.argmax(found.map_shares)) if found.map_shares else len(maps) - 1
    cam = [] if found.cam is None else [("Grad-CAM", found.cam)]
    main, rest = (maps[best], [*maps[:best], *maps[best + 1 :]]) if maps else (cam[0] if cam else None, [])
    kept = [rest[place] for place in np.unique(np.linspace(0, len(rest) - 1, min(MAPS, len(rest))).round().astype(int))]
    image = Image.fromarray(found.image.permute(1, 2, 0).numpy())
    shown = [(name, drawn(found.image, one)) for name, one in [*([] if main is None else [main]), *kept, *(cam if maps else [])]]
    for _, picture in shown[1:]:
        picture.thumbnail((MAP, MAP), Image.Resampling.LANCZOS)
    for picture in (image, *(picture for _, picture in shown[:1])):
        picture.thumbnail((PHOTO, PHOTO), Image.Resampling.LANCZOS)
    name, best_shown = shown[0] if shown else ("", None)
    return Looked(image, name, best_shown, shown[1:])


def embedded(picture: Image.Image) -> str:
    """A picture as a data URI."""
    return data_uri(picture, QUALITY)
