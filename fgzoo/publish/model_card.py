"""The page that goes with a published checkpoint: what it was trained on, how good it is, and what it must not be used for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fgzoo.checkpoints.hub import HubFile
from fgzoo.checkpoints.registry import SUFFIX, ZooEntry
from fgzoo.data.card import DataCard
from fgzoo.data.cub import is_cub
from fgzoo.data.verify import OFFICIAL
from fgzoo.prediction.rejection import SCORES, Calibration
from fgzoo.reporting.markup import few_below

#: How each metric is called, and how it is shown.
METRIC_TITLES = {
    "top1": ("top-1, %", 100), "top5": ("top-5, %", 100), "macro": ("macro accuracy, %", 100),
    "nll": ("negative log-likelihood", 1), "ece": ("calibration error (15 bins), %", 100),
    "nll_calibrated": ("negative log-likelihood, calibrated", 1),
    "ece_calibrated": ("calibration error (15 bins), calibrated, %", 100),
}  # fmt: skip
#: What the hub calls them.
HUB_METRICS = {
    "top1": "accuracy", "top5": "top_5_accuracy", "macro": "balanced_accuracy", "nll": "negative_log_likelihood",
    "ece": "expected_calibration_error", "nll_calibrated": "negative_log_likelihood",
    "ece_calibrated": "expected_calibration_error",
}  # fmt: skip
#: Licences that the hub knows by their names in small letters; it takes others as `other` with a name.
HUB_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "unlicense", "cc0-1.0",
    "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0",
)  # fmt: skip

#: The papers of methods and data sets, as BibTeX.
CITATIONS = Path(__file__).with_name("citations.bib")
#: Their keys there; what has no paper is not listed.
PAPERS = {
    "rra": "shroff2020focus", "rra-parent": "shroff2020focus", "iagn": "huang2021iagn", "pmg": "du2020pmg",
    "coarse2fine": "eshratifar2019coarse2fine", "wsdan": "hu2019wsdan", "srbn": "wu2017srbn", "bcnn": "lin2015bcnn",
    "bcnn-spp": "lin2015bcnn",
    "cub": "wah2011cub", "cars": "krause2013cars", "aircraft": "maji2013aircraft",
}  # fmt: skip
#: What is in CUB's format and is not CUB, such as NABirds.
LIKE_CUB = "like cub"
#: What each data set is, and under what terms its images may be used.
TERMS = {
    "birds": "Synthetic birds, drawn by fgzoo from seeds. They are no photographs: these weights name no real bird, and their "
    "scores say nothing about photographs. They are for trying fgzoo out.",
    "cub": "CUB-200-2011. Its images belong to their photographers and are for non-commercial research and education.",
    LIKE_CUB: "Images in the format of CUB-200-2011. They have terms of their own.",
    "cars": "Stanford Cars. Its images are for non-commercial research.",
    "aircraft": "FGVC-Aircraft. Its images are for non-commercial research.",
    "folder": "The publisher's own images.",
}
THEIR_TERMS = " The training images have terms of their own, see above."


@dataclass(frozen=True)
class Training:
    """How a checkpoint came to be.

    Attributes:
        command: What was typed, without the machine's paths.
        images: Number of images by split.
        notes: Facts that must stand beside any number on this data.
        environment: Versions and hardware.
        cost: Seconds, epochs, memory, parameters.
        settings: Seed, epochs, batch and learning rate.
        stored: `float32` or `float16`.
        before: Test metrics of the weights as trained, where they were stored in fewer bits.
        confused: (true, predicted, images), the worst first.
    """

    command: str
    images: Mapping[str, int]
    notes: Sequence[str]
    environment: Mapping[str, Any]
    cost: Mapping[str, Any]
    settings: Mapping[str, Any]
    stored: str
    before: Mapping[str, float] | None
    confused: Sequence[tuple[str, str, int]]


def model_card(
    entry: ZooEntry, card: DataCard, training: Training, hub: HubFile | None = None, calibration: Calibration | None = None
) -> str:
    """The page that goes with a checkpoint, in Markdown.

    Args:
        entry: Its entry in a registry.
        card: The data that its weights know.
        training: How they came to be.
        hub: Its file on the hub, where it goes there.
        calibration: Their temperature and thresholds, where images were held out.

    Returns:
        The page, which opens with the hub's header.
    """
    file = hub.file if hub else f"{entry.name}{SUFFIX}"
    data = LIKE_CUB if entry.dataset == "cub" and not is_cub(card.class_names) else entry.dataset
    sections = [
        f"{hub_header(entry, data, is_subset(data, training.images))}\n# {entry.name}",
        f"{entry.method} with {entry.backbone}, {entry.classes} classes of `{entry.dataset}`, {entry.image_size} pixels.",
        _use(f"hf://{hub.repository}" if hub else entry.name),
        _data(entry, data, card, training),
        _recipe(entry, training),
        _metrics(entry, training),
        _confusion(training),
        _limits(entry, calibration),
        f"## Licence\n\nWeights: {entry.licence}.{THEIR_TERMS if entry.dataset != 'birds' else ''}",
        _citation(entry, data),
        f"## File\n\n`{file}`, {training.stored}, {entry.size:,} bytes, sha256\n`{entry.sha256}`",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def is_subset(data: str, images: Mapping[str, int]) -> bool:
    """Whether the official data set has more training or test images; how many classes it has depends on their level."""
    official = OFFICIAL.get(data)
    return official is not None and (_trained_on(images) < official.train or images["test"] < official.test)


def _trained_on(images: Mapping[str, int]) -> int:
    return sum(number for split, number in images.items() if split != "test")


def hub_header(entry: ZooEntry, data: str, subset: bool) -> str:
    """What the hub reads of a card: YAML between two lines of dashes, its results in the form of a model-index."""
    known = entry.licence.lower()
    licence = {"license": known} if known in HUB_LICENCES else {"license": "other", "license_name": known.replace(" ", "-")}
    metrics = [
        {"type": HUB_METRICS[name], "name": METRIC_TITLES[name][0].removesuffix(", %"), "value": numbers["value"]}
        for name, numbers in entry.metrics.items()
    ]
    # A subset's scores must not stand among those of the whole.
    part = f", a subset of {entry.classes} classes" if subset else ""
    task = "image-classification"
    result = {
        "task": {"type": task},
        "dataset": {"type": entry.dataset, "name": TERMS[data].partition(".")[0] + part, "split": "test"},
        "metrics": metrics,
    }
    header = {
        **licence,
        "library_name": "fgzoo",
        "pipeline_tag": task,
        "tags": ["fine-grained", entry.method, entry.backbone],
        "model-index": [{"name": entry.name, "results": [result]}],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=120)}---\n"


def _use(said: str) -> str:
    return (
        f"## Use\n\n```sh\nfgzoo predict {said} photos/ --output predictions.csv\nfgzoo explain {said} photos/ "
        f'--output report/\n```\n\nFrom Python: `fgzoo.load("{said}").predict("photo.jpg")`.'
    )


def _data(entry: ZooEntry, data: str, card: DataCard, training: Training) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in training.images.items() if number)
    lines = [
        f"{TERMS[data]} {entry.classes} classes; images: {counts}; fingerprint of the lists `{card.fingerprint}`.",
        *_subset(entry, data, training.images),
        *training.notes,
        f"Images are resized to {card.resize} pixels ({card.resize_mode}, {card.interpolation}, antialiased), and the middle "
        f"{card.image_size} x {card.image_size} pixels are classified.",
    ]
    return "## Training data\n\n" + "\n\n".join(lines)


def _subset(entry: ZooEntry, data: str, images: Mapping[str, int]) -> list[str]:
    """What must be said where the official data set has more images."""
    if not is_subset(data, images):
        return []
    official = OFFICIAL[data]
    return [
        f"**A subset** of the official data set: {entry.classes} classes, {_trained_on(images):,} of {official.train:,} training "
        f"and {images['test']:,} of {official.test:,} test images. Its scores cannot be compared with published ones."
    ]


def _recipe(entry: ZooEntry, training: Training) -> str:
    packages = training.environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchvision", "lightning", "timm"))
    hardware = ", ".join(training.environment["gpus"]) or training.environment["processor"]
    settings = "; ".join(f"{name} {value}" for name, value in training.settings.items())
    memory = training.cost["peak_memory_gib"]
    return (
        f"## Recipe\n\n```sh\n{training.command}\n```\n\nRecipe: {entry.recipe or 'none but this command'}. {settings}.\n\n"
        f"fgzoo {training.environment['fgzoo']} (revision {training.environment['git']}), {versions}; {hardware}; "
        f"{training.cost['seconds']:.0f} s{'' if memory is None else f', {memory:.1f} GiB'}; "
        f"{training.cost['parameters'] / 1e6:.2f} M parameters."
    )


def _metrics(entry: ZooEntry, training: Training) -> str:
    lines = ["| metric, test split | this file | all runs | runs |", "|---|---|---|---|"]
    for name, numbers in entry.metrics.items():
        title, factor = METRIC_TITLES[name]
        digits = 1 if factor == 100 else 3
        every = f"{factor * numbers['mean']:.{digits}f} ± {factor * numbers['std']:.{digits}f}" if "mean" in numbers else "-"
        lines.append(f"| {title} | {factor * numbers['value']:.{digits}f} | {every} | {numbers['seeds']} |")
    text = "## Metrics\n\n" + "\n".join(lines)
    text += "\n\nThe last epoch's weights; the test split chose nothing. This file itself was scored by `fgzoo test`."
    if training.before is not None:
        change = 100 * (entry.metrics["top1"]["value"] - training.before["top1"])
        nll = entry.metrics["nll"]["value"] - training.before["nll"]
        text += (
            f" Stored as {training.stored}; against the weights as trained: {change:+z.2f} points of top-1, {nll:+z.5f} of "
            "negative log-likelihood."
        )
    return text


def _confusion(training: Training) -> str:
    if not training.confused:
        return ""
    rows = "\n".join(f"| {_cell(true)} | {_cell(predicted)} | {count} |" for true, predicted, count in training.confused)
    return f"## Confused most often\n\n| true | predicted | test images |\n|---|---|---|\n{rows}"


def _cell(name: str) -> str:
    """A class name as the text of a table's cell, whatever signs of Markdown and line breaks it has."""
    return re.sub(r"([\\|`*\[<&])", r"\\\1", " ".join(name.split()))


def _limits(entry: ZooEntry, calibration: Calibration | None) -> str:
    top1 = entry.metrics["top1"]["value"]
    limits = [
        f'It answers with one of its {entry.classes} classes whatever the image shows; it cannot say "none of these".'
        if calibration is None
        else f"It knows {entry.classes} classes. An image whose {SCORES[calibration.score]} is below "
        f"{calibration.threshold():.3g} is called unknown, {few_below(calibration)}; of other things some are, not all. "
        f"Probabilities are calibrated by the temperature {calibration.temperature:.3g}.",
        f"{100 * (1 - top1):.0f} of 100 test images are named wrongly, and photographs unlike the test split's fare worse.",
        "Its maps show where evidence came from, not that the answer is right.",
    ]
    if entry.metrics["top1"]["seeds"] == 1:
        limits.append("One run: another seed may score higher or lower by a point or two.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _citation(entry: ZooEntry, data: str) -> str:
    papers = [PAPERS[name] for name in (entry.method, data) if name in PAPERS]
    if not papers:
        return ""
    texts = CITATIONS.read_text(encoding="utf-8").strip().split("\n\n")
    entries = {text.partition(",")[0].removeprefix("@misc{"): text for text in texts}
    return "## Citation\n\n```bibtex\n" + "\n\n".join(entries[paper] for paper in papers) + "\n```"
