"""The page that goes with a published checkpoint: what it was trained on, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgzoo.checkpoints.registry import SUFFIX, ZooEntry
from fgzoo.data.card import DataCard
from fgzoo.data.verify import OFFICIAL

#: How each metric is called, and how it is shown.
METRIC_TITLES = {
    "top1": ("top-1, %", 100), "top5": ("top-5, %", 100), "macro": ("macro accuracy, %", 100),
    "nll": ("negative log-likelihood", 1), "ece": ("calibration error (15 bins), %", 100),
}  # fmt: skip


#: The papers of methods and data sets, as BibTeX.
CITATIONS = Path(__file__).with_name("citations.bib")
#: Their keys there; what has no paper is not listed.
PAPERS = {
    "rra": "shroff2020focus", "rra-parent": "shroff2020focus", "iagn": "huang2021iagn", "pmg": "du2020pmg",
    "coarse2fine": "eshratifar2019coarse2fine", "wsdan": "hu2019wsdan", "srbn": "wu2017srbn", "bcnn": "lin2015bcnn",
    "bcnn-spp": "lin2015bcnn",
    "cub": "wah2011cub", "cars": "krause2013cars", "aircraft": "maji2013aircraft",
}  # fmt: skip
#: What each data set is, and under what terms its images may be used.
TERMS = {
    "birds": "Synthetic birds, drawn by fgzoo from seeds. They are no photographs: these weights name no real bird, and their "
    "scores say nothing about photographs. They are for trying fgzoo out.",
    "cub": "CUB-200-2011. Its images belong to their photographers and are for non-commercial research and education.",
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


def model_card(entry: ZooEntry, card: DataCard, training: Training) -> str:
    """The page of a registry's entry in Markdown, of the data that its weights know, and of how they came to be."""
    sections = [
        f"# {entry.name}",
        f"{entry.method} with {entry.backbone}, {entry.classes} classes of `{entry.dataset}`, {entry.image_size} pixels.",
        _use(entry),
        _data(entry, card, training),
        _recipe(entry, training),
        _metrics(entry, training),
        _confusion(training),
        _limits(entry),
        f"## Licence\n\nWeights: {entry.licence}.{THEIR_TERMS if entry.dataset != 'birds' else ''}",
        _citation(entry),
        f"## File\n\n`{entry.name}{SUFFIX}`, {training.stored}, {entry.size:,} bytes, sha256\n`{entry.sha256}`",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _use(entry: ZooEntry) -> str:
    return (
        f"## Use\n\n```sh\nfgzoo predict {entry.name} photos/ --output predictions.csv\nfgzoo explain {entry.name} photos/ "
        f'--output report/\n```\n\nFrom Python: `fgzoo.load("{entry.name}").predict("photo.jpg")`.'
    )


def _data(entry: ZooEntry, card: DataCard, training: Training) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in training.images.items() if number)
    lines = [
        f"{TERMS[entry.dataset]} {entry.classes} classes; images: {counts}; fingerprint of the lists `{card.fingerprint}`.",
        *_subset(entry, training.images),
        *training.notes,
        f"Images are resized to {card.resize} pixels ({card.resize_mode}, {card.interpolation}, antialiased), and the middle "
        f"{card.image_size} x {card.image_size} pixels are classified.",
    ]
    return "## Training data\n\n" + "\n\n".join(lines)


def _subset(entry: ZooEntry, images: Mapping[str, int]) -> list[str]:
    """What must be said where the official data set has more images."""
    official = OFFICIAL.get(entry.dataset)
    train, test = sum(number for split, number in images.items() if split != "test"), images["test"]
    if official is None or (train >= official.train and test >= official.test):
        return []
    return [
        f"**A subset** of the official data set: {entry.classes} of {official.classes} classes, {train:,} of {official.train:,} "
        f"training and {test:,} of {official.test:,} test images. Its scores cannot be compared with published ones."
    ]


def _recipe(entry: ZooEntry, training: Training) -> str:
    packages = training.environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchvision", "lightning", "timm"))
    hardware = ", ".join(training.environment["gpus"]) or training.environment["processor"]
    settings = "; ".join(f"{name} {value}" for name, value in training.settings.items())
    return (
        f"## Recipe\n\n```sh\n{training.command}\n```\n\nPackaged recipe: {entry.recipe}. {settings}.\n\n"
        f"fgzoo {training.environment['fgzoo']} (revision {training.environment['git']}), {versions}; {hardware}; "
        f"{training.cost['seconds']:.0f} s, {training.cost['peak_memory_gib']:.1f} GiB; "
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
    rows = "\n".join(f"| {true} | {predicted} | {count} |" for true, predicted, count in training.confused)
    return f"## Confused most often\n\n| true | predicted | test images |\n|---|---|---|\n{rows}"


def _limits(entry: ZooEntry) -> str:
    top1 = entry.metrics["top1"]["value"]
    limits = [
        f'It answers with one of its {entry.classes} classes whatever the image shows; it cannot say "none of these".',
        f"{100 * (1 - top1):.0f} of 100 test images are named wrongly, and photographs unlike the test split's fare worse.",
        "Its maps show where evidence came from, not that the answer is right.",
    ]
    if entry.metrics["top1"]["seeds"] == 1:
        limits.append("One run: another seed may score higher or lower by a point or two.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _citation(entry: ZooEntry) -> str:
    papers = [PAPERS[name] for name in (entry.method, entry.dataset) if name in PAPERS]
    if not papers:
        return ""
    texts = CITATIONS.read_text(encoding="utf-8").strip().split("\n\n")
    entries = {text.partition(",")[0].removeprefix("@misc{"): text for text in texts}
    return "## Citation\n\n```bibtex\n" + "\n\n".join(entries[paper] for paper in papers) + "\n```"
