"""README's picture: where the shipped networks look on synthetic birds, beside the part that decides the class.

    python benchmarks/maps_picture.py

No image is chosen by eye: of every third class, the first test image whose deciding part is visible. Rows are birds; columns are
the image and the final map of each network (the baseline has no maps of its own; its column is Grad-CAM), for the class that the
network predicts.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import fgzoo
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.interpret.explanation import Explanation, explain
from fgzoo.interpret.overlays import in_input_frame, overlay

PICTURE = Path(__file__).parent / "results" / "maps.jpg"
METHODS = {
    "baseline": "plain fine-tuning\n(Grad-CAM)",
    "rra": "RRA",
    "iagn": "IAGN",
    "coarse2fine": "Coarse2Fine",
    "srbn": "SRBN",
}
#: One bird of every so many classes.
EVERY = 3
#: Side of a drawn image in pixels; networks saw half of it.
SIDE = 224
RIGHT, WRONG, RING = "#1a7f37", "#b3261e", "#35c2ff"


def chosen(birds: SyntheticBirds) -> Iterator[Record]:
    """The first test image of every third class whose deciding part is visible."""
    records = [record for record in birds.listing().test if birds.deciding_part(record) is not None]
    for target in range(0, birds.birds.classes, EVERY):
        yield next(record for record in records if record.target == target)


def enlarged(found: Explanation) -> tuple[Tensor, Tensor]:
    """The image as its network saw it and its last map, in the picture's pixels."""
    image, last = (F.interpolate(one[None].float(), size=(SIDE, SIDE), mode="bicubic") for one in (found.image, found.maps[-1:]))
    return image[0].round().clamp(0, 255).to(torch.uint8), last[0, 0].clamp(0, 1)


def draw(path: Path) -> None:
    """Write the picture."""
    birds = SyntheticBirds(Birds())
    records = list(chosen(birds))
    images = [birds.read(record) for record in records]
    figure = Figure(figsize=(1.5 * (len(METHODS) + 1) + 1.2, 1.72 * len(records) + 0.4))
    figure.subplots_adjust(left=0.13, right=0.995, top=0.93, bottom=0.03, wspace=0.03, hspace=0.12)
    axes = figure.subplots(len(records), len(METHODS) + 1, squeeze=False)
    for column, (method, title) in enumerate(METHODS.items(), start=1):
        model = fgzoo.load(f"{method}_birds")
        assert model.card is not None
        for row, (record, found) in enumerate(zip(records, explain(model, images), strict=True)):
            image, last = enlarged(found)
            truth = model.card.class_names[record.target]
            right = found.explained == truth
            axes[row][column].imshow(overlay(image, last))
            answer, colour = ("right", RIGHT) if right else ("wrong", WRONG)
            axes[row][column].set_xlabel(f"{answer}, {found.share:.0%}", fontsize=8, color=colour, labelpad=2)
            if column == 1:
                axes[row][0].imshow(image.permute(1, 2, 0).numpy())
                axes[row][0].set_ylabel(truth.replace(", ", ",\n"), fontsize=8, rotation=0, ha="right", va="center")
                mark(axes[row][0], birds, record, model.card.resize, model.card.image_size)
        axes[0][column].set_title(title, fontsize=9)
    axes[0][0].set_title("image and\ndeciding part", fontsize=9)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    # A quarter of what PNG takes.
    Image.open(drawn).convert("RGB").save(path, quality=90, optimize=True)


def mark(cell: object, birds: SyntheticBirds, record: Record, resize: int, crop: int) -> None:
    """A ring round the part that decides."""
    part = birds.deciding_part(record)
    assert part is not None
    x, y = in_input_frame(part.x, part.y, birds.birds.size, resize, crop)
    style = {"marker": "o", "markersize": 17, "markerfacecolor": "none", "markeredgecolor": RING, "markeredgewidth": 1.6}
    cell.plot(x * SIDE / crop, y * SIDE / crop, **style)  # type: ignore[attr-defined]


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PICTURE)
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
