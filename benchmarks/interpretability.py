"""Do a network's maps show what its decision rests on? Measured where it is known which part decides: on the synthetic birds.

A method's maps stand beside Grad-CAM and an occlusion sweep of the same network, the centred Gaussian, which any map must beat,
and the uniform map, which is chance. On CUB-200-2011 there are boxes and parts, but no deciding part.

    python benchmarks/accuracy.py run birds                                            # trains; runs/accuracy/birds/METHOD-seed0
    python benchmarks/interpretability.py measure --runs runs/accuracy/birds/*/ --write interpretability
    python benchmarks/interpretability.py measure --runs RUN --root PATH --write interpretability_cub
    python benchmarks/interpretability.py picture                                            # README's

Which map is judged. `explain` gives S maps from coarse to fine, and S differs from method to method, so picking the best of them
on the test set would favour methods with many. Two maps are therefore fixed before anything is measured: the *final map*, which
every method defines as its last word (the last step of a recursion, the fused evidence, the mask, the readout), and the *mean of
the maps*, each in [0, 1]. Every map is judged by its place, too. All explain the predicted class. Networks that look twice are
judged on what they show of the whole image.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import common
import torch
from common import Row
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision import tv_tensors

import fgzoo
from fgzoo import FGVCDataModule, FineGrainedClassifier
from fgzoo.checkpoints.run_data import data_trained_on
from fgzoo.checkpoints.run_folder import resolve, run_of
from fgzoo.data.images import decode
from fgzoo.data.records import Part, Record
from fgzoo.data.synthetic import SyntheticBirds
from fgzoo.demo import data_of
from fgzoo.interpret import explanation, metrics
from fgzoo.interpret.overlays import in_input_frame
from fgzoo.interpret.pictures import TILE, drawn, sheet
from fgzoo.methods import method_name

FINAL, CAM, GAUSSIAN, SINGLE = "final map", "Grad-CAM", "centred Gaussian", "single: "
#: Measures: whether the network needs what a map shows, and Spearman's correlation with the map of a network with new layers.
FAITHFULNESS = ("insertion (higher is better)", "deletion (lower is better)", "ranks, top layers new", "ranks, all layers new")
DECIDING = "pointing, deciding part"
#: Of the pointing game, in pixels of an image of 224.
TOLERANCE = 15
#: Side of the occluder as a share of the image's (it moves by half of it), and groups of layers that are randomised in turn.
OCCLUDER, GROUPS = 1 / 7, 8
#: Images that pass a network at once.
BATCH = 40
LEGEND = f"""\
*Final map*: the last of `explain`, fixed before measuring. *Pointing*: the map's maximum is at most {TOLERANCE} pixels (at
224) from the box, any part's centre, the deciding part's; several maxima share the hit. *Energy*: the map's mass inside the
box, or inside discs of that radius. Images whose part is hidden are left out of its columns. Grad-CAM reads the network's
first backbone. A coarse map cannot point finely: enlarging puts its maximum at the middle of a cell, which
of networks that pad evenly (all but VGG and TensorFlow's) is half a cell right of and below what it is of. Insertion from the
blurred image, deletion to the mean colour, areas under the class's probability: to be compared within a network. *Ranks*:
Spearman's correlation with the trained network's map after the top 1/8 of the layers, or all, have been initialised anew; a
map that keeps its ranks does not depend on what was learnt. Means ± standard errors over images, places in per cent; in
brackets 95 % intervals of a paired bootstrap."""
#: Whose maps are drawn, and what they are called; the baseline's are Grad-CAM.
NETWORKS = {"baseline": "Grad-CAM", "rra": "RRA", "iagn": "IAGN", "coarse2fine": "Coarse2Fine", "srbn": "SRBN"}


class Batch(NamedTuple):
    """Normalised images (B, 3, H, W), true classes (B,); in their pixels boxes (B, 4) and parts (B, P, 2), NaN where unknown."""

    images: Tensor
    targets: Tensor
    boxes: Tensor
    parts: Tensor
    deciding: Tensor


def batches_of(model: FineGrainedClassifier, data: FGVCDataModule, limit: int | None) -> Iterator[Batch]:
    """At most `limit` test images, drawn at random (every n-th would miss classes that take turns), and their truths."""
    records = list(data.listing.test)
    if limit is not None and limit < len(records):
        records = [records[index] for index in sorted(random.Random(0).sample(range(len(records)), limit))]
    read = data.listing.read or (lambda record: decode(record.path))
    birds = SyntheticBirds(data.birds) if data.dataset_name == "birds" else None
    for chunk in (records[start : start + BATCH] for start in range(0, len(records), BATCH)):
        pixels = [read(record) for record in chunk]
        images = model.normalize(torch.stack([model.transform(image) for image in pixels]).to(model.device))
        targets = torch.tensor([record.target for record in chunk], device=model.device)
        named = [birds.deciding_part(record) if birds else None for record in chunk]
        known = zip(*map(partial(ground_truth, model), chunk, named, pixels), strict=True)
        boxes, parts, deciding = (pad_sequence(list(one), True, math.nan).to(model.device) for one in known)
        yield Batch(images, targets, boxes[:, 0], parts, deciding)


def ground_truth(model: FineGrainedClassifier, record: Record, deciding: Part | None, image: Tensor) -> tuple[Tensor, ...]:
    """Box (1, 4), parts (P, 2) and deciding part (1, 2) in the pixels of the transformed image; NaN outside of it."""
    unknown = (math.nan, math.nan)
    points = [(part.x, part.y) if part else unknown for part in (*record.parts, deciding)]
    known = torch.tensor([record.box or 2 * unknown, *(2 * point for point in points)], dtype=torch.float64)
    boxes = tv_tensors.BoundingBoxes(known, format="XYXY", canvas_size=image.shape[1:], clamping_mode=None)
    # The transform moves boxes as it moves pixels.
    moved, side = model.transform(boxes).as_subclass(Tensor), model.card.image_size
    box, points = moved[:1].clamp(0, side), moved[1:, :2]
    box = box.masked_fill((box[:, 2:] <= box[:, :2]).any(), math.nan)
    points = points.masked_fill(~((points >= 0) & (points <= side)).all(dim=1, keepdim=True), math.nan)
    return box, points[:-1], points[-1:]


class Judge:
    """Scores of one model's maps by map and measure; NaN where an image has none."""

    def __init__(self, model: FineGrainedClassifier) -> None:
        self.model = model
        self.probabilities: metrics.Scores = lambda images: model(images).logits.float().softmax(dim=1)
        self.scores: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def maps(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The predicted classes (B,), and maps (B, H, W) by name: what is judged, and the method's own."""
        with torch.no_grad():
            classes = self.probabilities(images).argmax(dim=1)
        own, names = explanation.own_maps(self.model, images, classes)
        own, cam = own.to(images.device), explanation.answers(self.model, images, classes)[1].to(images.device)
        found = {FINAL: own[:, -1]} if len(names) == 1 else {FINAL: own[:, -1], "mean of the maps": own.mean(dim=1)}
        gaussian = metrics.centered_gaussian((own.shape[2], own.shape[3])).to(own.device).expand_as(own[:, 0])
        single = {f"{SINGLE}{name}": own[:, index] for index, name in enumerate(names)}
        return classes, found | {CAM: cam, GAUSSIAN: gaussian}, single

    def localization(self, batch: Batch) -> None:
        """Score where the maps lie, and count right predictions."""
        predicted, maps, single = self.maps(batch.images)
        self.scores["", "top-1"].append((predicted == batch.targets).double().cpu())
        for name, found in {**maps, "uniform (chance)": torch.ones_like(maps[GAUSSIAN]), **single}.items():
            self.score_location(name, found, batch)

    def score_location(self, name: str, maps: Tensor, batch: Batch) -> None:
        """Score where maps (B, H, W) lie."""
        size = (maps.shape[1], maps.shape[2])
        radius = TOLERANCE * size[0] / 224
        parts, deciding = (metrics.disc_region(points, radius, size) for points in (batch.parts, batch.deciding))
        box, near_box = metrics.box_region(batch.boxes, size), metrics.box_region(batch.boxes, size, radius)
        for region, near, inside in (
            ("box", near_box, box), ("any part", parts, parts), ("deciding part", deciding, deciding)
        ):  # fmt: skip
            self.scores[name, f"pointing, {region}"].append(metrics.pointing_game(maps, near).cpu())
            self.scores[name, f"energy, {region}"].append(metrics.energy_inside(maps, inside).cpu())

    def faithfulness(self, batch: Batch) -> None:
        """Score whether the network needs what the maps show, and whether they depend on its weights."""
        images = batch.images
        classes, maps, _ = self.maps(images)
        window = max(1, round(OCCLUDER * images.shape[-1]))
        maps["occlusion"] = metrics.occlusion_map(self.probabilities, images, classes, window, max(1, window // 2))
        self.score_location("occlusion", maps["occlusion"], batch)
        insertion, deletion, *ranks = FAITHFULNESS
        for name, found in maps.items():
            for measure, score in ((insertion, metrics.insertion), (deletion, metrics.deletion)):
                self.scores[name, measure].append(score(self.probabilities, images, found, classes).area.cpu())
        with torch.no_grad():
            layers = metrics.layers_from_top(self.model.network, lambda: self.model(images))
        bounds = [round(index * len(layers) / GROUPS) for index in range(GROUPS + 1)]
        groups = [layers[low:high] for low, high in itertools.pairwise(bounds)]
        for name, explain in (
            (FINAL, lambda: self.model.explain(images, classes)[:, -1]),
            (CAM, lambda: explanation.answers(self.model, images, classes)[1]),
        ):
            correlations = metrics.cascading_randomization(explain, groups).cpu()
            for measure, group in zip(ranks, (0, -1), strict=True):
                self.scores[name, measure].append(correlations[group])

    def rows(self) -> list[Row]:
        """Mean over images, standard error and number of images by map and measure; and the final map beside the Gaussian."""
        rows: list[Row] = []
        for (name, measure), values in self.scores.items():
            found = torch.cat(values)
            found = found[~found.isnan()]
            if len(found):
                error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else None
                rows.append({"map": name, "measure": measure, "mean": float(found.mean()), "error": error, "images": len(found)})
        times = ratio(*(torch.cat(self.scores[name, DECIDING]) for name in (FINAL, GAUSSIAN)))
        return [*rows, {"map": FINAL, "measure": "pointing, times the centred Gaussian's", **times}] if times else rows


def ratio(mine: Tensor, other: Tensor, resamples: int = 2000) -> dict[str, float]:
    """How many times as often the first hits, with a paired bootstrap over images; empty where the other never does."""
    known = ~(mine.isnan() | other.isnan())
    mine, other = mine[known], other[known]
    if not len(other) or not other.sum():
        return {}
    chosen = torch.randint(len(mine), (resamples, len(mine)), generator=torch.Generator().manual_seed(0))
    # A resample in which the other never hits counts as an infinite ratio.
    ratios = (mine[chosen].sum(dim=1) / other[chosen].sum(dim=1)).nan_to_num(nan=math.inf, posinf=math.inf)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype), interpolation="nearest").tolist()
    return {"mean": float(mine.sum() / other.sum()), "low": low, "high": high, "images": len(mine)}


def report(rows: Sequence[Row]) -> str:
    """Three tables of rows, as Markdown: a line a method and map, a column a measure that anything is known of."""
    single = [row for row in rows if row["map"].startswith(SINGLE)]
    faithfulness = [row for row in rows if row["measure"] in FAITHFULNESS]
    tables = {
        "Where the maps lie, %": [row for row in rows if row not in single and row not in faithfulness],
        "Whether the network needs what they show, and whether they depend on its weights": faithfulness,
        "Every map of a method, %": [row for row in single if row["measure"].startswith("pointing")],
    }
    text = [LEGEND]
    for title, chosen in tables.items():
        lines: dict[tuple[str, str], Row] = {}
        for row in chosen:
            line = lines.setdefault((row["method"], row["map"]), {"method": row["method"], "map": row["map"]})
            line[row["measure"]] = formatted(row)
        text += [f"## {title}", common.markdown_table(list(lines.values()))]
    return "\n\n".join(text)


def formatted(row: Row) -> str:
    """A mean and what is known of its error."""
    if "low" in row:
        return f"{row['mean']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
    factor, digits = (1, 3) if row["measure"] in FAITHFULNESS else (100, 1)
    return f"{factor * row['mean']:.{digits}f}" + (f" ± {factor * row['error']:.{digits}f}" if row["error"] else "")


def measure(
    *,
    runs: Sequence[str] = tuple(f"{method}_birds" for method in NETWORKS),
    root: Path | None = None,
    limit: int | None = None,
    perturbed: int = 120,
    write: str | None = None,
) -> None:
    """Judge the maps of trained networks.

    Args:
        runs: Checkpoints or run folders, or names in `fgzoo list checkpoints`, by default those that are shipped.
        root: Folder of their images, where these are photographs.
        limit: Test images, drawn at random (default: all).
        perturbed: Images for the metrics that take many passes.
        write: Write results/NAME.md and .csv.
    """
    rows: list[Row] = []
    for run in runs:
        model = fgzoo.load(run).to("cuda" if torch.cuda.is_available() else "cpu")
        images, judge = data_trained_on(model.card, run_of(resolve(run)), root), Judge(model)
        for batch in batches_of(model, images, limit):
            judge.localization(batch)
        for batch in batches_of(model, images, min(perturbed, limit or perturbed)):
            judge.faithfulness(batch)
        method = method_name(f"{type(model).__module__}.{type(model).__qualname__}", model.hparams).rpartition(".")[2]
        about = {"method": method, "run": Path(run).name, "backbone": model.backbone, "fingerprint": images.card.fingerprint}
        rows += [{**row, **about, "limit": limit, "perturbed": perturbed} for row in judge.rows()]
    common.write_report("Where the networks look", report(rows), rows, write)


def picture(*, output: Path = common.RESULTS / "maps.jpg") -> None:
    """Where the shipped networks look on synthetic birds, for the class that each predicts, beside the part that decides.

    No image is chosen by eye: of every third class, the first test image whose deciding part is visible.

    Args:
        output: The file.
    """
    birds = SyntheticBirds(data_of(["--config", "birds/baseline"]).birds)
    visible = [record for record in birds.listing().test if birds.deciding_part(record) is not None]
    records = [next(record for record in visible if record.target == target) for target in range(0, birds.birds.classes, 3)]
    images = [birds.read(record) for record in records]
    tiles: list[list[tuple[str, Image.Image]]] = [[] for _ in records]
    for method, name in NETWORKS.items():
        model = fgzoo.load(f"{method}_birds")
        for record, row, found in zip(records, tiles, explanation.explain(model, images), strict=True):
            if not row:
                part, card = birds.deciding_part(record), model.card
                x, y = in_input_frame(part.x, part.y, birds.birds.size, card.resize * TILE / card.image_size, TILE)
                ringed = Image.fromarray(found.image.permute(1, 2, 0).numpy()).resize((TILE, TILE), Image.Resampling.LANCZOS)
                ImageDraw.Draw(ringed).ellipse((x - 18, y - 18, x + 18, y + 18), outline="#35c2ff", width=3)
                row.append(("image and deciding part", ringed))
            answer = "right" if found.explained == birds.class_names[record.target] else "wrong"
            row.append((f"{name}: {answer}, {found.share:.0%}", drawn(found.image, found.maps[-1])))
    sheets = [sheet(birds.class_names[record.target], row) for record, row in zip(records, tiles, strict=True)]
    page = Image.new("RGB", (sheets[0].width, sum(one.height for one in sheets)))
    for number, one in enumerate(sheets):
        page.paste(one, (0, number * one.height))
    page.save(output, quality=80, optimize=True)


if __name__ == "__main__":
    sys.exit(common.main({"measure": measure, "picture": picture}))
