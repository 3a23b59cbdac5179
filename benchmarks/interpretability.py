"""Do a network's maps show what its decision rests on? Measured where it is known which part decides: on the synthetic birds.

A method's maps stand beside Grad-CAM and an occlusion sweep of the same network, the centred Gaussian, which any map must beat,
and the uniform map, which is chance. On CUB-200-2011 there are boxes and parts, but no deciding part.

    python benchmarks/interpretability.py --train --write                            # every birds recipe, 12 epochs each
    python benchmarks/interpretability.py --train --methods rra iagn --limit 60      # a quick look
    python benchmarks/interpretability.py runs/birds-rra/000 runs/birds-iagn/000
    python benchmarks/interpretability.py runs/birds-iagn/000 --keep --write         # this method anew, the others as they were
    python benchmarks/interpretability.py runs/cub-rra/000 --data cub --root ~/cub --write   # interpretability_cub.md

Which map is judged. `explain` gives S maps from coarse to fine, and S differs from method to method, so picking the best of them
on the test set would favour methods with many. Two maps are therefore fixed before anything is measured: the *final map*, which
every method defines as its last word (the last step of a recursion, the fused evidence, the mask, the readout), and the *mean of
the maps*, each in [0, 1]. Every map is judged by its place, too; the best of them is chosen afterwards and says so. All explain
the predicted class, unless `--explain true` is given. Networks that look twice are judged on what they show of the whole image.
IAGN's last word was its deepest stage when it was first measured; only since then has it shown the fused evidence, whose mean is
its logit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RESULTS, deliver, fgzoo, heading, machine, table
from torch import Tensor
from torchvision import tv_tensors

from fgzoo.checkpoints.loading import load
from fgzoo.checkpoints.run_folder import CONFIG, LAST
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.images import DecoderName, decode
from fgzoo.data.records import Listing, Record
from fgzoo.data.synthetic import SyntheticBirds
from fgzoo.demo import data_of
from fgzoo.errors import UsageError
from fgzoo.interpret import metrics
from fgzoo.methods import method_name
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.nn.backbone import Backbone
from fgzoo.recipes import list_recipes

FINAL, MEAN, CAM, OCCLUSION, GAUSSIAN, UNIFORM = (
    "final map", "mean of the maps", "Grad-CAM", "occlusion", "centred Gaussian", "uniform (chance)"
)  # fmt: skip
#: Regions that a map may lie in.
BOX, PARTS, DECIDING = "box", "any part", "deciding part"
#: Measures, as columns.
POINTING, ENERGY, INSERTION, DELETION = "pointing", "energy", "insertion", "deletion"
RANDOM_TOP, RANDOM_ALL = "ranks, top layers new", "ranks, all layers new"

#: Side of the occluder as a share of the image's; it moves by half of it.
OCCLUDER = 1 / 7
#: Groups of layers that the randomisation goes through.
GROUPS = 8
#: What is said of a single result, which `--keep` may carry on beside later ones.
MEASURED = ("time", "git", "command")

#: Scores of images by (map, column); NaN where an image has none.
Scores = dict[tuple[str, str], list[Tensor]]

# ---------------------------------------------------------------------- images and what is known about them


class Batch(NamedTuple):
    """Images as the network sees them, and the truth in their pixels; NaN where there is none.

    Shape:
        - images: (B, 3, H, W) normalised; targets: (B,), the true classes
        - boxes: (B, 4); parts: (B, P, 2); deciding: (B, 1, 2)
    """

    images: Tensor
    targets: Tensor
    boxes: Tensor
    parts: Tensor
    deciding: Tensor


class Source:
    """The test split of the data that a model belongs to.

    Args:
        run: The checkpoint or run folder.
        model: The model.
        options: The script's arguments.
    """

    def __init__(self, run: Path, model: FineGrainedClassifier, options: argparse.Namespace) -> None:
        if model.card is None:
            raise UsageError(f"{run}: the checkpoint names no data")
        self.model = model
        self.card = model.card
        self.batch_size: int = options.batch_size
        self.seed: int = options.seed
        data = self._data(run, options)
        self.card.check_classes(data.card)
        self.listing: Listing = data.listing
        if options.data == "birds" and self.listing.fingerprint() != self.card.fingerprint:
            raise UsageError(f"{run}: trained on other birds than the built-in ones; give its run folder, which names them")
        self.birds = SyntheticBirds(data.birds) if options.data == "birds" else None

    def _data(self, run: Path, options: argparse.Namespace) -> FGVCDataModule:
        if options.data == "birds" and (run / CONFIG).is_file():
            return data_of(run)
        card = self.card
        shape: dict[str, Any] = {"image_size": card.image_size, "resize": card.resize, "resize_mode": card.resize_mode}
        return FGVCDataModule(options.data, root=options.root, **shape)

    def records(self, limit: int | None) -> tuple[Record, ...]:
        """At most `limit` test images, drawn by the seed; every n-th image would miss classes that take turns."""
        records = self.listing.test
        if limit is None or limit >= len(records):
            return records
        return tuple(records[index] for index in sorted(random.Random(self.seed).sample(range(len(records)), limit)))

    def batches(self, records: Sequence[Record]) -> Iterator[Batch]:
        """The records' images and truths."""
        device = self.model.device
        for start in range(0, len(records), self.batch_size):
            chunk = records[start : start + self.batch_size]
            raw = [self._read(record) for record in chunk]
            images = torch.stack([self.model.transform(image) for image in raw]).to(device)
            truths = [self._truth(record, image) for record, image in zip(chunk, raw, strict=True)]
            boxes, parts, deciding = (_padded([truth[i] for truth in truths]).to(device) for i in range(3))
            targets = torch.tensor([record.target for record in chunk], device=device)
            yield Batch(self.model.normalize(images), targets, boxes[:, 0], parts, deciding)

    def _read(self, record: Record) -> Tensor:
        if self.listing.read is not None:
            return self.listing.read(record)
        assert record.path is not None
        decoder: DecoderName = "pillow" if self.card.decoder == "pillow" else "auto"
        return decode(record.path, decoder)

    def _truth(self, record: Record, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Box (1, 4), parts (P, 2) and deciding part (1, 2) in the pixels of the transformed image."""
        part = None if self.birds is None else self.birds.deciding_part(record)
        box = torch.tensor([record.box or [math.nan] * 4], dtype=torch.float64)
        parts = torch.tensor([[part.x, part.y] for part in record.parts], dtype=torch.float64).view(-1, 2)
        deciding = torch.tensor([[part.x, part.y] if part else [math.nan] * 2], dtype=torch.float64)
        size = (image.shape[-2], image.shape[-1])
        moved = [in_input_frame(x.repeat(1, 2), size, self.model.transform)[:, :2] for x in (parts, deciding)]
        visible = [_inside(points, self.card.image_size) for points in moved]
        return _clipped(in_input_frame(box, size, self.model.transform), self.card.image_size), visible[0], visible[1]


def in_input_frame(boxes: Tensor, size: tuple[int, int], transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Where boxes of an image lie after its transform.

    Args:
        boxes: (N, 4), x0, y0, x1, y1.
        size: H and W of the image.
        transform: The image's transform, of torchvision's v2, which moves boxes as it moves pixels.

    Returns:
        (N, 4) in the transformed image's pixels; may lie outside of it.
    """
    kind = tv_tensors.BoundingBoxFormat.XYXY
    given = tv_tensors.BoundingBoxes(boxes, format=kind, canvas_size=size, clamping_mode=None)
    return transform(given).as_subclass(Tensor)


def _inside(points: Tensor, side: int) -> Tensor:
    """Points (N, 2), NaN where they lie outside of the image."""
    inside = ((points >= 0) & (points <= side)).all(dim=1, keepdim=True)
    return points.masked_fill(~inside, math.nan)


def _clipped(boxes: Tensor, side: int) -> Tensor:
    """Boxes (N, 4), cut at the image's border; NaN where nothing of them is left."""
    cut = boxes.clamp(0, side)
    return cut.masked_fill((cut[:, 2:] <= cut[:, :2]).any(dim=1, keepdim=True), math.nan)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows (P_b, D) as (B, P, D), filled up by NaN."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=math.nan)


# ---------------------------------------------------------------------- what is judged


class Judge:
    """Scores one model's maps.

    Args:
        model: The model, in evaluation mode.
        options: The script's arguments.

    Attributes:
        scores: Scores of images by (map, column).
        each: Scores of the method's single maps.
        hits: Whether the images' predicted classes are right.
    """

    def __init__(self, model: FineGrainedClassifier, options: argparse.Namespace) -> None:
        self.model = model
        self.explain: str = options.explain
        self.tolerance: float = options.tolerance
        self.steps: int = options.steps
        self.seed: int = options.seed
        # The first backbone is the one that sees the whole image first, in every method.
        self.layer = next(module for module in model.network.modules() if isinstance(module, Backbone))
        self.scores: Scores = defaultdict(list)
        self.each: Scores = defaultdict(list)
        self.hits: list[Tensor] = []

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits, (B, K)."""
        return self.model(images).logits.float()

    def probabilities(self, images: Tensor) -> Tensor:
        """The model's probabilities, (B, K)."""
        return self.logits(images).softmax(dim=1)

    def classes(self, batch: Batch) -> Tensor:
        """The classes to explain, (B,)."""
        with torch.no_grad():
            predicted = self.logits(batch.images).argmax(dim=1)
        return predicted if self.explain == "predicted" else batch.targets

    def maps(self, batch: Batch, classes: Tensor) -> dict[str, Tensor]:
        """The maps that cost little, (B, H, W) by name."""
        own = self.model.explain(batch.images, classes).float()
        gaussian = metrics.centered_gaussian((own.shape[2], own.shape[3])).to(own.device).expand_as(own[:, 0])
        found = {FINAL: own[:, -1]} if own.shape[1] == 1 else {FINAL: own[:, -1], MEAN: own.mean(dim=1)}
        return found | {CAM: metrics.grad_cam(self.logits, self.layer, batch.images, classes), GAUSSIAN: gaussian}

    def place(self, batch: Batch) -> None:
        """Score where the maps lie, and count right predictions."""
        with torch.no_grad():
            self.hits.append((self.logits(batch.images).argmax(dim=1) == batch.targets).double().cpu())
        classes = self.classes(batch)
        maps = self.maps(batch, classes)
        for name, found in {**maps, UNIFORM: torch.ones_like(maps[GAUSSIAN])}.items():
            self._place(self.scores, name, found, batch)
        own = self.model.explain(batch.images, classes).float()
        for index, name in enumerate(self.model.map_names(own.shape[1])):
            self._place(self.each, name, own[:, index], batch)

    def _place(self, into: Scores, name: str, maps: Tensor, batch: Batch) -> None:
        size = (maps.shape[1], maps.shape[2])
        radius = self.tolerance * size[0] / 224
        box = metrics.box_region(batch.boxes, size)
        near_box = metrics.box_region(batch.boxes, size, radius)
        parts = metrics.disc_region(batch.parts, radius, size)
        deciding = metrics.disc_region(batch.deciding, radius, size)
        for region, near, inside in ((BOX, near_box, box), (PARTS, parts, parts), (DECIDING, deciding, deciding)):
            into[name, f"{POINTING}, {region}"].append(metrics.pointing_game(maps, near).cpu())
            into[name, f"{ENERGY}, {region}"].append(metrics.energy_inside(maps, inside).cpu())

    def need(self, batch: Batch) -> None:
        """Score whether the network needs what the maps show, and place and need of the occlusion map."""
        classes, images = self.classes(batch), batch.images
        maps = self.maps(batch, classes)
        window = max(1, round(OCCLUDER * images.shape[-1]))
        sweep = metrics.occlusion_map(self.probabilities, images, classes, window, max(1, window // 2))
        self._place(self.scores, OCCLUSION, sweep, batch)
        for name, found in {**maps, OCCLUSION: sweep}.items():
            arguments = self.probabilities, images, found, classes, self.steps
            self.scores[name, INSERTION].append(metrics.insertion(*arguments).area.cpu())
            self.scores[name, DELETION].append(metrics.deletion(*arguments).area.cpu())

    def weights(self, batch: Batch) -> None:
        """Score whether the maps depend on the weights."""
        classes, images = self.classes(batch), batch.images
        with torch.no_grad():
            layers = metrics.layers_from_top(self.model.network, lambda: self.model(images))
        bounds = [round(index * len(layers) / GROUPS) for index in range(GROUPS + 1)]
        groups = [layers[low:high] for low, high in itertools.pairwise(bounds)]
        explanations: dict[str, Callable[[], Tensor]] = {
            FINAL: lambda: self.model.explain(images, classes)[:, -1],
            CAM: lambda: metrics.grad_cam(self.logits, self.layer, images, classes),
        }
        for name, explain in explanations.items():
            curve = metrics.cascading_randomization(explain, groups, self.seed).cpu()
            self.scores[name, RANDOM_TOP].append(curve[0])
            self.scores[name, RANDOM_ALL].append(curve[-1])


def judge(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything about one checkpoint.

    Args:
        run: A checkpoint or a run's folder.
        options: The script's arguments.

    Returns:
        Plain values for the report.
    """
    model = load(run).to(options.device)
    source, judged = Source(run, model, options), Judge(model, options)
    for done, batch in enumerate(source.batches(source.records(options.limit)), start=1):
        judged.place(batch)
        sys.stderr.write(f"\r{name_of(model)}: places, batch {done} ")
    perturbed = options.perturbed if options.limit is None else min(options.perturbed, options.limit)
    for done, batch in enumerate(source.batches(source.records(perturbed)), start=1):
        judged.need(batch)
        judged.weights(batch)
        sys.stderr.write(f"\r{name_of(model)}: needs and weights, batch {done} ")
    sys.stderr.write("\n")
    return {
        "method": name_of(model),
        "run": run.name,
        "backbone": model.backbone,
        "fingerprint": source.listing.fingerprint(),
        "notes": list(source.listing.notes),
        "image_size": source.card.image_size,
        "top1": summary(judged.hits),
        "maps": summaries(judged.scores),
        "single_maps": summaries(judged.each),
        "ratio": ratio(judged.scores, options.seed),
    }


def name_of(model: FineGrainedClassifier) -> str:
    """The model's name in `fgzoo list`; its class's name where it has none."""
    cls = type(model)
    return method_name(f"{cls.__module__}.{cls.__qualname__}", model.hparams).rpartition(".")[2]


# ---------------------------------------------------------------------- numbers


def summary(values: Sequence[Tensor]) -> dict[str, float | int | None]:
    """Mean over images, its standard error, and the number of images that have a value."""
    found = torch.cat(list(values))
    found = found[~found.isnan()]
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else None
    return {"mean": float(found.mean()) if len(found) else None, "error": error, "images": len(found)}


def summaries(scores: Scores) -> dict[str, dict[str, Any]]:
    """Summaries by map and column."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for (name, column), values in scores.items():
        found[name][column] = summary(values)
    return dict(found)


def ratio(scores: Scores, seed: int, resamples: int = 2000) -> dict[str, float] | None:
    """How many times as often the final map hits the deciding part as the centred Gaussian does.

    Args:
        scores: Scores of images.
        seed: Seed of the resampling.
        resamples: Samples of the paired bootstrap over images.

    Returns:
        The ratio, and its 95 % interval; `None` where nothing decides, or the Gaussian never hits.
    """
    mine, gaussian = (torch.cat(scores[name, f"{POINTING}, {DECIDING}"]) for name in (FINAL, GAUSSIAN))
    known = ~(mine.isnan() | gaussian.isnan())
    mine, gaussian = mine[known], gaussian[known]
    if not len(gaussian) or not gaussian.sum():
        return None
    chosen = torch.randint(len(mine), (resamples, len(mine)), generator=torch.Generator().manual_seed(seed))
    # A resample in which the Gaussian never hits counts as an infinite ratio.
    ratios = (mine[chosen].sum(dim=1) / gaussian[chosen].sum(dim=1)).nan_to_num(nan=math.inf, posinf=math.inf)
    low, high = ratios.sort().values[[round(0.025 * (resamples - 1)), round(0.975 * (resamples - 1))]].tolist()
    return {"ratio": float(mine.sum() / gaussian.sum()), "low": low, "high": high}


# ---------------------------------------------------------------------- the report


def shown(found: dict[str, Any] | None, percent: bool = True) -> str:
    """A summary as mean ± standard error."""
    if found is None or found["mean"] is None:
        return "-"
    factor, digits = (100, 1) if percent else (1, 3)
    error = "" if found["error"] is None else f" ± {factor * found['error']:.{digits}f}"
    return f"{factor * found['mean']:.{digits}f}{error}"


def report(results: Sequence[dict[str, Any]], options: argparse.Namespace, where: dict[str, Any]) -> str:
    """Everything as Markdown."""
    regions = known_regions(results)
    columns = [f"{measure}, {region}" for measure in (POINTING, ENERGY) for region in regions]
    places, needs, single = [], [], []
    for result in results:
        label, maps = result["method"], result["maps"]
        for name in (FINAL, MEAN, CAM, OCCLUSION, GAUSSIAN, UNIFORM):
            if name in maps:
                images = max(found["images"] for found in maps[name].values())
                places.append([label, name, images, *(shown(maps[name].get(column)) for column in columns)])
        for name in (FINAL, MEAN, CAM, OCCLUSION, GAUSSIAN):
            if name in maps:
                found = [maps[name].get(column) for column in (INSERTION, DELETION, RANDOM_TOP, RANDOM_ALL)]
                needs.append([label, name, *(shown(value, percent=False) for value in found)])
        column = f"{POINTING}, {regions[-1]}"
        best = max(result["single_maps"], key=lambda name: result["single_maps"][name][column]["mean"] or 0.0)
        for name, found in result["single_maps"].items():
            single.append([label, f"{name} (best, chosen afterwards)" if name == best else name, shown(found[column])])
    return "\n".join([
        "# Where the networks look", "",
        heading(where, options.device, options.seed), "",
        *earlier(results, where),
        *introduction(results, options, regions), "",
        "## Where the maps lie, %", "",
        table(["method", "map", "images", *columns], places), "",
        *target(results, DECIDING in regions),
        "## Whether the network needs what the maps show, and whether they depend on its weights", "",
        table(["method", "map", "insertion (higher is better)", "deletion (lower is better)", RANDOM_TOP, RANDOM_ALL], needs),
        "",
        "## Every map of a method, %", "",
        table(["method", "map", f"{POINTING}, {regions[-1]}"], single), "",
    ])  # fmt: skip


def known_regions(results: Sequence[dict[str, Any]]) -> list[str]:
    """The regions that some image has: boxes alone in a copy of CUB-200-2011 without `parts`, a deciding part on birds alone."""
    finals = [result["maps"][FINAL] for result in results]
    return [region for region in (BOX, PARTS, DECIDING) if any(found[f"{POINTING}, {region}"]["images"] for found in finals)]


def earlier(results: Sequence[dict[str, Any]], where: dict[str, Any]) -> list[str]:
    """Which results were measured before this call, and by which revision."""
    kept: dict[str, list[str]] = defaultdict(list)
    for result in results:
        if result["measured"]["time"] != where["time"]:
            kept[result["measured"]["git"]].append(result["method"])
    lines = [f"Measured before, by fgzoo {git}: {', '.join(methods)}." for git, methods in kept.items()]
    return [*lines, ""] if lines else []


def introduction(results: Sequence[dict[str, Any]], options: argparse.Namespace, regions: Sequence[str]) -> list[str]:
    """What was measured, in the terms of the report's tables."""
    parts = PARTS in regions
    near = {BOX: "from the box", PARTS: "from any part's centre", DECIDING: "from the deciding part's"}
    accuracy = ", ".join(f"{result['method']} {shown(result['top1'])}" for result in results)
    return [
        f"Test split, top-1 % on the images judged: {accuracy}. Cells are means ± standard errors over images. Maps explain the",
        f"{options.explain} class. *Final map*: the last of `explain`, fixed before measuring. *Pointing*: the map's maximum is",
        f"at most {options.tolerance:g} pixels (at 224) {', '.join(near[region] for region in regions)}; several",
        f"maxima share the hit. *Energy*: the map's mass inside the box{', or inside discs of that radius' if parts else ''}.",
        *(["Images whose part is hidden or cut off are left out of its columns."] if parts else []),
        "Grad-CAM reads the network's first backbone.",
        "A coarse map cannot point finely: enlarging puts its maximum at the middle of a cell.",
        f"Insertion from the blurred image, deletion to the mean colour, {options.steps} steps, areas under the explained",
        "class's probability: to be compared within a network. *Ranks*: Spearman's correlation with the trained network's map",
        f"after the top 1/{GROUPS} of the layers, or all of them, have been initialised anew; a map that keeps its ranks does",
        "not depend on what was learnt. These and the occlusion sweep were measured on at most",
        f"{options.perturbed} images.",
        *dict.fromkeys(note for result in results for note in result["notes"]),
    ]


def target(results: Sequence[dict[str, Any]], decided: bool) -> list[str]:
    """How often the final maps hit the deciding part, relative to the centred Gaussian."""
    if not decided:
        return []
    known = {result["method"]: result["ratio"] for result in results if result["ratio"] is not None}
    twice = [name for name, found in known.items() if found["ratio"] >= 2]
    lines = [
        f"{name} {found['ratio']:.1f} (95 % interval {found['low']:.1f} to {found['high']:.1f})" for name, found in known.items()
    ]
    return [
        "How many times as often as the centred Gaussian the final map hits the deciding part (paired bootstrap over images):",
        f"{'; '.join(lines) or 'unknown, the Gaussian never hits'}.",
        f"At least twice as often: {', '.join(twice) or 'none'}. The target, two methods or more, is "
        f"{'met' if len(twice) >= 2 else 'missed'}.",
        "",
    ]


# ---------------------------------------------------------------------- command line


def train(options: argparse.Namespace) -> list[Path]:
    """Train every method's recipe for the birds, unless that is done.

    Args:
        options: The script's arguments.

    Returns:
        The runs' folders.
    """
    folders = []
    for method in options.methods:
        folder = options.runs / f"{method}-{options.seed}"
        arguments = ["fit", "--config", f"birds/{method}", "--seed_everything", str(options.seed), "--output", str(folder)]
        arguments += [] if options.epochs is None else ["--trainer.max_epochs", str(options.epochs)]
        if (folder / LAST).is_file() and not (folder / "cost.json").is_file():
            arguments = ["fit", "--resume", str(folder)]
        if not (folder / "cost.json").is_file():
            sys.stderr.write(f"{method}: training\n")
            fgzoo([*arguments], folder, options.threads)
        folders.append(folder)
    return folders


def distinct(results: Sequence[dict[str, Any]]) -> None:
    """Methods that occur more than once are told apart by their run."""
    counts = Counter(result["method"] for result in results)
    for result in results:
        if counts[result["method"]] > 1:
            result["method"] = f"{result['method']} ({result['run']})"


def read_results(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Results that were written before.

    Args:
        path: The file.
        settings: How they must have been measured.

    Returns:
        The results, each with its own `measured`.

    Raises:
        UsageError: The file is missing, or its results were measured in another way.
    """
    if not path.is_file():
        raise UsageError(f"--keep: there is no {path.name} to keep results of")
    before = json.loads(path.read_text())
    differing = [name for name, value in settings.items() if before["settings"].get(name) != value]
    if differing:
        raise UsageError(f"--keep: {path.name} was measured with another {', '.join(differing)}")
    everyone = {name: before["machine"][name] for name in MEASURED}
    return [{"measured": everyone, **result} for result in before["results"]]


def renewed(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of before in their order, those of now in their places, new methods last."""
    new = {result["method"]: result for result in now}
    return [new.pop(result["method"], result) for result in before] + list(new.values())


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    recipes = [name.partition("/")[2] for name in list_recipes() if name.startswith("birds/")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, help="checkpoints or run folders")
    parser.add_argument("--train", action="store_true", help="train the birds recipes first, those that are not done")
    parser.add_argument("--methods", nargs="+", choices=recipes, default=recipes, help="what to train")
    parser.add_argument("--epochs", type=int, help="of training; by default the recipe's")
    parser.add_argument("--runs", type=Path, default=Path("runs/interpretability"), help="where to train")
    parser.add_argument("--data", choices=["birds", "cub"], default="birds")
    parser.add_argument("--root", type=Path, help="folder of CUB-200-2011")
    parser.add_argument("--limit", type=int, help="test images, drawn by the seed; by default all")
    parser.add_argument("--perturbed", type=int, default=120, help="images for the metrics that take many passes")
    parser.add_argument("--explain", choices=["predicted", "true"], default="predicted", help="the class to explain")
    parser.add_argument("--tolerance", type=float, default=15, help="of the pointing game, in pixels at 224")
    parser.add_argument("--steps", type=int, default=28, help="of insertion and deletion")
    parser.add_argument("--batch_size", type=int, default=40)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process, or of a training")
    parser.add_argument("--seed", type=int, default=0, help="of training, new weights, drawn images and bootstrap")
    parser.add_argument("--keep", action="store_true", help="keep the written results of methods that are not measured now")
    written = f"write {RESULTS.name}/interpretability.md and .json, for CUB interpretability_cub"
    parser.add_argument("--write", action="store_true", help=written)
    return parser


def main() -> None:
    """Train where that is asked for, measure, report."""
    parser = arguments()
    options = parser.parse_args()
    if options.train == bool(options.checkpoints):
        parser.error("give checkpoints or run folders, or --train")
    if options.train and options.data != "birds":
        parser.error("--train trains the birds recipes; give checkpoints for --data cub")
    if options.data == "cub" and options.root is None:
        parser.error("--data cub needs --root")
    settings = {name: getattr(options, name) for name in ("data", "limit", "perturbed", "explain", "tolerance", "steps", "seed")}
    name = "interpretability" if options.data == "birds" else f"interpretability_{options.data}"
    before = []
    if options.keep:
        try:
            before = read_results(RESULTS / f"{name}.json", settings)
        except UsageError as error:
            parser.error(str(error))
    torch.set_num_threads(options.threads)
    runs = train(options) if options.train else options.checkpoints
    results = [judge(run, options) for run in runs]
    distinct(results)
    where = machine()
    measured = {name: where[name] for name in MEASURED}
    results = renewed(before, [{"measured": measured, **result} for result in results])
    content = {"machine": where, "settings": settings, "results": results}
    deliver(report(results, options, where), content, name if options.write else None)


if __name__ == "__main__":
    main()
