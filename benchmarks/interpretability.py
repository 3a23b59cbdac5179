"""Do a network's maps show what its decision rests on? Measured where it is known which part decides: on the synthetic birds.

A method's maps stand beside Grad-CAM and an occlusion sweep of the same network, the centred Gaussian, which any map must beat,
and the uniform map, which is chance. On CUB-200-2011 there are boxes and parts, but no deciding part.

    python benchmarks/accuracy.py run birds                                                  # trains; runs/accuracy/METHOD-seed0
    python benchmarks/interpretability.py measure --runs runs/accuracy/* --write interpretability
    python benchmarks/interpretability.py measure --runs runs/accuracy/iagn-seed0 --keep --write interpretability    # this anew
    python benchmarks/interpretability.py measure --runs RUN --data cub --root PATH --write interpretability_cub
    python benchmarks/interpretability.py picture                                            # README's

Which map is judged. `explain` gives S maps from coarse to fine, and S differs from method to method, so picking the best of them
on the test set would favour methods with many. Two maps are therefore fixed before anything is measured: the *final map*, which
every method defines as its last word (the last step of a recursion, the fused evidence, the mask, the readout), and the *mean of
the maps*, each in [0, 1]. Every map is judged by its place, too. All explain the predicted class, unless `--explain true` is
given. Networks that look twice are judged on what they show of the whole image.
"""

from __future__ import annotations

import io
import itertools
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import common
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

import fgzoo
from fgzoo import FGVCDataModule, FineGrainedClassifier
from fgzoo.data.images import decode
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.demo import data_of
from fgzoo.interpret import metrics
from fgzoo.interpret.explanation import explain as explained
from fgzoo.interpret.overlays import overlay

FINAL, MEAN, CAM, OCCLUSION, GAUSSIAN, UNIFORM = (
    "final map", "mean of the maps", "Grad-CAM", "occlusion", "centred Gaussian", "uniform (chance)"
)  # fmt: skip
#: Regions that a map may lie in.
BOX, PARTS, DECIDING = "box", "any part", "deciding part"
#: Measures: whether the network needs what a map shows, and Spearman's correlation with the map of a network with new layers.
NEEDS = ("insertion (higher is better)", "deletion (lower is better)", "ranks, top layers new", "ranks, all layers new")
RATIO = "pointing, times the centred Gaussian's"
#: Side of the occluder as a share of the image's (it moves by half of it), and groups of layers that are randomised in turn.
OCCLUDER, GROUPS = 1 / 7, 8
EXPLAINED = """\
*Final map*: the last of `explain`, fixed before measuring. *Pointing*: the map's maximum is at most {tolerance:g} pixels (at
224) from the box, any part's centre, the deciding part's; several maxima share the hit. *Energy*: the map's mass inside the
box, or inside discs of that radius. Images whose part is hidden are left out of its columns. Grad-CAM reads the network's
first backbone. A coarse map cannot point finely: enlarging puts its maximum at the middle of a cell. Insertion from the
blurred image, deletion to the mean colour, areas under the class's probability: to be compared within a network. *Ranks*:
Spearman's correlation with the trained network's map after the top 1/8 of the layers, or all, have been initialised anew; a
map that keeps its ranks does not depend on what was learnt. Means ± standard errors over images, places in per cent; in
brackets 95 % intervals of a paired bootstrap."""
PICTURE = common.RESULTS / "maps.jpg"
COLUMNS = {
    "baseline": "plain fine-tuning\n(Grad-CAM)",
    "rra": "RRA",
    "iagn": "IAGN",
    "coarse2fine": "Coarse2Fine",
    "srbn": "SRBN",
}
#: Side of a drawn image in pixels; one bird of every so many classes is drawn.
SIDE, EVERY = 224, 3

Scores = dict[tuple[str, str], list[Tensor]]
Row = dict[str, Any]

# ---------------------------------------------------------------------- images and what is known about them


class Batch(NamedTuple):
    """Normalised images (B, 3, H, W), true classes (B,); in their pixels boxes (B, 4) and parts (B, P, 2), NaN where unknown."""

    images: Tensor
    targets: Tensor
    boxes: Tensor
    parts: Tensor
    deciding: Tensor


class Source:
    """The test split of the data that a model belongs to."""

    def __init__(self, run: Path, model: FineGrainedClassifier, data: str, root: Path | None) -> None:
        self.model, self.card = model, model.card
        assert self.card is not None
        if data == "birds" and (run / common.CONFIG).is_file():
            module = data_of(run)
        else:
            shape = {"image_size": self.card.image_size, "resize": self.card.resize, "resize_mode": self.card.resize_mode}
            module = FGVCDataModule(data, root=root, **shape)
        self.card.check_classes(module.card)
        self.listing = module.listing
        if data == "birds" and self.listing.fingerprint() != self.card.fingerprint:
            raise common.UsageError(
                f"{run}: trained on other birds than the built-in ones; give its run folder, which names them"
            )
        self.birds = SyntheticBirds(module.birds) if data == "birds" else None

    def batches(self, size: int, limit: int | None, seed: int) -> Iterator[Batch]:
        """At most `limit` test images, drawn by the seed (every n-th would miss classes that take turns), and their truths."""
        records = list(self.listing.test)
        if limit is not None and limit < len(records):
            records = [records[index] for index in sorted(random.Random(seed).sample(range(len(records)), limit))]
        read = self.listing.read or (lambda record: decode(record.path, "pillow" if self.card.decoder == "pillow" else "auto"))
        for start in range(0, len(records), size):
            chunk = records[start : start + size]
            raw = [read(record) for record in chunk]
            truths = [self.truth(record, image) for record, image in zip(chunk, raw, strict=True)]
            images = self.model.normalize(torch.stack([self.model.transform(image) for image in raw]).to(self.model.device))
            boxes, parts, deciding = (
                torch.nn.utils.rnn.pad_sequence(list(known), batch_first=True, padding_value=math.nan).to(self.model.device)
                for known in zip(*truths, strict=True)
            )
            targets = torch.tensor([record.target for record in chunk], device=self.model.device)
            yield Batch(images, targets, boxes[:, 0], parts, deciding)

    def truth(self, record: Record, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Box (1, 4), parts (P, 2) and deciding part (1, 2) in the pixels of the transformed image; NaN outside of it."""
        part = None if self.birds is None else self.birds.deciding_part(record)
        size, side = (image.shape[-2], image.shape[-1]), self.card.image_size
        box = torch.tensor([record.box or [math.nan] * 4], dtype=torch.float64)
        cut = in_input_frame(box, size, self.model.transform).clamp(0, side)
        cut = cut.masked_fill((cut[:, 2:] <= cut[:, :2]).any(dim=1, keepdim=True), math.nan)
        known = []
        for points in ([[one.x, one.y] for one in record.parts], [[part.x, part.y] if part else [math.nan] * 2]):
            places = torch.tensor(points, dtype=torch.float64).view(-1, 2)
            moved = in_input_frame(places.repeat(1, 2), size, self.model.transform)[:, :2]
            known.append(moved.masked_fill(~((moved >= 0) & (moved <= side)).all(dim=1, keepdim=True), math.nan))
        return cut, known[0], known[1]


def in_input_frame(boxes: Tensor, size: tuple[int, int], transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Where boxes (N, 4) of an image of H and W lie after its transform, which moves boxes as it moves pixels."""
    return transform(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size, clamping_mode=None)).as_subclass(Tensor)


# ---------------------------------------------------------------------- what is judged


class Judge:
    """Scores of one model's maps by map and measure; NaN where an image has none."""

    def __init__(self, model: FineGrainedClassifier, truth: bool, tolerance: float, steps: int, seed: int) -> None:
        self.model, self.truth, self.tolerance, self.steps, self.seed = model, truth, tolerance, steps, seed
        # The first backbone is the one that sees the whole image first, in every method.
        self.layer = next(module for module in model.network.modules() if isinstance(module, common.Backbone))
        self.scores: Scores = defaultdict(list)

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits, (B, K)."""
        return self.model(images).logits.float()

    def probabilities(self, images: Tensor) -> Tensor:
        """The model's probabilities, (B, K)."""
        return self.logits(images).softmax(dim=1)

    def maps(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The classes to explain (B,), the method's own maps (B, S, H, W), and what is judged, (B, H, W) by name."""
        with torch.no_grad():
            predicted = self.logits(batch.images).argmax(dim=1)
        classes = batch.targets if self.truth else predicted
        own = self.model.explain(batch.images, classes).float()
        gaussian = metrics.centered_gaussian((own.shape[2], own.shape[3])).to(own.device).expand_as(own[:, 0])
        found = {FINAL: own[:, -1]} if own.shape[1] == 1 else {FINAL: own[:, -1], MEAN: own.mean(dim=1)}
        return classes, own, found | {CAM: metrics.grad_cam(self.logits, self.layer, batch.images, classes), GAUSSIAN: gaussian}

    def place(self, batch: Batch) -> None:
        """Score where the maps lie, and count right predictions."""
        with torch.no_grad():
            self.scores["", "top-1"].append((self.logits(batch.images).argmax(dim=1) == batch.targets).double().cpu())
        _, own, maps = self.maps(batch)
        single = {f"single: {name}": own[:, index] for index, name in enumerate(self.model.map_names(own.shape[1]))}
        for name, found in {**maps, UNIFORM: torch.ones_like(maps[GAUSSIAN]), **single}.items():
            self.lies(name, found, batch)

    def lies(self, name: str, maps: Tensor, batch: Batch) -> None:
        """Score where maps (B, H, W) lie."""
        size = (maps.shape[1], maps.shape[2])
        radius = self.tolerance * size[0] / 224
        parts, deciding = (metrics.disc_region(points, radius, size) for points in (batch.parts, batch.deciding))
        box, near_box = metrics.box_region(batch.boxes, size), metrics.box_region(batch.boxes, size, radius)
        for region, near, inside in ((BOX, near_box, box), (PARTS, parts, parts), (DECIDING, deciding, deciding)):
            self.scores[name, f"pointing, {region}"].append(metrics.pointing_game(maps, near).cpu())
            self.scores[name, f"energy, {region}"].append(metrics.energy_inside(maps, inside).cpu())

    def need(self, batch: Batch) -> None:
        """Score whether the network needs what the maps show, and whether they depend on its weights."""
        (classes, _, maps), images = self.maps(batch), batch.images
        window = max(1, round(OCCLUDER * images.shape[-1]))
        maps[OCCLUSION] = metrics.occlusion_map(self.probabilities, images, classes, window, max(1, window // 2))
        self.lies(OCCLUSION, maps[OCCLUSION], batch)
        for name, found in maps.items():
            for measure, score in zip(NEEDS, (metrics.insertion, metrics.deletion), strict=False):
                curve = score(self.probabilities, images, found, classes, self.steps)
                self.scores[name, measure].append(curve.area.cpu())
        with torch.no_grad():
            layers = metrics.layers_from_top(self.model.network, lambda: self.model(images))
        bounds = [round(index * len(layers) / GROUPS) for index in range(GROUPS + 1)]
        groups = [layers[low:high] for low, high in itertools.pairwise(bounds)]
        for name, explain in (
            (FINAL, lambda: self.model.explain(images, classes)[:, -1]),
            (CAM, lambda: metrics.grad_cam(self.logits, self.layer, images, classes)),
        ):
            curve = metrics.cascading_randomization(explain, groups, self.seed).cpu()
            for measure, place in zip(NEEDS[2:], (0, -1), strict=True):
                self.scores[name, measure].append(curve[place])

    def rows(self) -> list[Row]:
        """Mean over images, standard error and number of images by map and measure; and the final map beside the Gaussian."""
        rows: list[Row] = []
        for (name, measure), values in self.scores.items():
            found = torch.cat(values)
            found = found[~found.isnan()]
            if len(found):
                error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else None
                rows.append({"map": name, "measure": measure, "mean": float(found.mean()), "error": error, "images": len(found)})
        times = ratio(*(torch.cat(self.scores[name, f"pointing, {DECIDING}"]) for name in (FINAL, GAUSSIAN)), self.seed)
        return [*rows, *([{"map": FINAL, "measure": RATIO, **times}] if times else [])]


def ratio(mine: Tensor, other: Tensor, seed: int, resamples: int = 2000) -> dict[str, float]:
    """How many times as often the first hits, with a paired bootstrap over images; empty where the other never does."""
    known = ~(mine.isnan() | other.isnan())
    mine, other = mine[known], other[known]
    if not len(other) or not other.sum():
        return {}
    chosen = torch.randint(len(mine), (resamples, len(mine)), generator=torch.Generator().manual_seed(seed))
    # A resample in which the other never hits counts as an infinite ratio.
    ratios = (mine[chosen].sum(dim=1) / other[chosen].sum(dim=1)).nan_to_num(nan=math.inf, posinf=math.inf)
    low, high = ratios.sort().values[[round(0.025 * (resamples - 1)), round(0.975 * (resamples - 1))]].tolist()
    return {"mean": float(mine.sum() / other.sum()), "low": low, "high": high, "images": len(mine)}


# ---------------------------------------------------------------------- the report


def report(rows: Sequence[Row], tolerance: float) -> str:
    """Three tables of rows, as Markdown: a line a method and map, a column a measure that anything is known of."""
    tables = [
        (
            "Where the maps lie, %",
            lambda row: row["measure"].split(",")[0] in ("top-1", "pointing", "energy") and not _single(row),
        ),
        ("Whether the network needs what they show, and whether they depend on its weights", lambda row: row["measure"] in NEEDS),
        ("Every map of a method, %", lambda row: _single(row) and row["measure"].startswith("pointing")),
    ]
    text = [EXPLAINED.format(tolerance=tolerance)]
    for title, wanted in tables:
        chosen = [row for row in rows if wanted(row)]
        columns = list(dict.fromkeys(row["measure"] for row in chosen))
        lines: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for row in chosen:
            lines[row["method"], row["map"]][row["measure"]] = shown(row)
        cells = [[*key, *(line.get(column, "") for column in columns)] for key, line in lines.items()]
        text += [f"## {title}", common.table(["method", "map", *columns], cells)]
    return "\n\n".join(text)


def _single(row: Row) -> bool:
    return row["map"].startswith("single: ")


def shown(row: Row) -> str:
    """A mean and what is known of its error."""
    value = float(row["mean"])
    if row.get("low"):
        return f"{value:.1f} ({float(row['low']):.1f} to {float(row['high']):.1f})"
    factor, digits = (1, 3) if row["measure"] in NEEDS else (100, 1)
    return f"{factor * value:.{digits}f}" + (f" ± {factor * float(row['error']):.{digits}f}" if row.get("error") else "")


def measure(
    runs: list[str] = [],  # noqa: B006 - never changed
    data: Literal["birds", "cub"] = "birds",
    root: Path | None = None,
    limit: int | None = None,
    perturbed: int = 120,
    explain: Literal["predicted", "true"] = "predicted",
    tolerance: float = 15,
    steps: int = 28,
    batch_size: int = 40,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    seed: int = 0,
    keep: bool = False,
    write: str | None = None,
) -> None:
    """Judge the maps of trained networks.

    Args:
        runs: Checkpoints or run folders, or names in `fgzoo list checkpoints`.
        data: What they were trained on.
        root: Folder of CUB-200-2011.
        limit: Test images, drawn by the seed (default: all).
        perturbed: Images for the metrics that take many passes.
        explain: The class to explain.
        tolerance: Of the pointing game, in pixels at 224.
        steps: Of insertion and deletion.
        batch_size: Images at a time.
        device: Where it runs.
        seed: Of new weights, drawn images and bootstrap.
        keep: Keep the written results of methods that are not measured now.
        write: Write results/NAME.md and .csv.
    """
    if not runs:
        raise common.UsageError("--runs: which networks?")
    settings = {"limit": limit, "perturbed": perturbed, "explain": explain, "tolerance": tolerance, "steps": steps, "seed": seed}
    said = {name: str(value).removesuffix(".0") for name, value in settings.items() if value is not None}
    before = common.read_csv(common.RESULTS / f"{write}.csv") if keep else []
    if any(row.get(name, "") != said.get(name, "") for row in before for name in settings):
        raise common.UsageError("--keep: what was written was measured with other settings")
    rows: list[Row] = []
    for run in runs:
        model = fgzoo.load(run).to(device)
        judge, source = Judge(model, explain == "true", tolerance, steps, seed), Source(Path(run), model, data, root)
        name = common.method_name(f"{type(model).__module__}.{type(model).__qualname__}", model.hparams).rpartition(".")[2]
        for batch in source.batches(batch_size, limit, seed):
            judge.place(batch)
        for batch in source.batches(batch_size, min(perturbed, limit or perturbed), seed):
            judge.need(batch)
        sys.stderr.write(f"{name}\n")
        about = {"backbone": model.backbone, "fingerprint": source.listing.fingerprint(), **said}
        rows += [{"method": name, "run": Path(run).name, **row, **about} for row in judge.rows()]
    now = {row["method"] for row in rows}
    rows = [*(row for row in before if row["method"] not in now), *rows]
    common.deliver("Where the networks look", report(rows, tolerance), rows, write)


# ---------------------------------------------------------------------- README's picture


def picture(output: Path = PICTURE) -> None:
    """Where the shipped networks look on synthetic birds, for the class that each predicts, beside the part that decides.

    No image is chosen by eye: of every third class, the first test image whose deciding part is visible.

    Args:
        output: The file.
    """
    birds = SyntheticBirds(Birds())
    visible = [record for record in birds.listing().test if birds.deciding_part(record) is not None]
    classes = range(0, birds.birds.classes, EVERY)
    records = [next(record for record in visible if record.target == target) for target in classes]
    images = [birds.read(record) for record in records]
    figure = Figure(figsize=(1.5 * (len(COLUMNS) + 1) + 1.2, 1.72 * len(records) + 0.4))
    figure.subplots_adjust(left=0.13, right=0.995, top=0.93, bottom=0.03, wspace=0.03, hspace=0.12)
    axes = figure.subplots(len(records), len(COLUMNS) + 1, squeeze=False)
    axes[0][0].set_title("image and\ndeciding part", fontsize=9)
    for column, (method, title) in enumerate(COLUMNS.items(), start=1):
        model = fgzoo.load(f"{method}_birds")
        assert model.card is not None
        axes[0][column].set_title(title, fontsize=9)
        for row, (record, found) in enumerate(zip(records, explained(model, images), strict=True)):
            seen, last = (
                F.interpolate(one[None].float(), size=(SIDE, SIDE), mode="bicubic")[0] for one in (found.image, found.maps[-1:])
            )
            seen, truth = seen.round().clamp(0, 255).to(torch.uint8), model.card.class_names[record.target]
            axes[row][column].imshow(overlay(seen, last[0].clamp(0, 1)))
            answer, colour = ("right", "#1a7f37") if found.explained == truth else ("wrong", "#b3261e")
            axes[row][column].set_xlabel(f"{answer}, {found.share:.0%}", fontsize=8, color=colour, labelpad=2)
            if column == 1:
                part, side = birds.deciding_part(record), model.card.image_size
                assert part is not None
                places = torch.tensor([[part.x, part.y] * 2], dtype=torch.float64)
                x, y = (in_input_frame(places, (birds.birds.size,) * 2, model.transform)[0, :2] * SIDE / side).tolist()
                ring = {"markersize": 17, "markerfacecolor": "none", "markeredgecolor": "#35c2ff", "markeredgewidth": 1.6}
                axes[row][0].imshow(seen.permute(1, 2, 0).numpy())
                axes[row][0].plot(x, y, marker="o", **ring)
                axes[row][0].set_ylabel(truth.replace(", ", ",\n"), fontsize=8, rotation=0, ha="right", va="center")
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    # A quarter of what PNG takes.
    Image.open(drawn).convert("RGB").save(output, quality=90, optimize=True)


if __name__ == "__main__":
    sys.exit(common.command([measure, picture]))
