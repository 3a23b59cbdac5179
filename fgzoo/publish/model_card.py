"""The page that goes with a published checkpoint: what it was trained on, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgzoo.checkpoints.registry import SUFFIX, Entry
from fgzoo.data.card import DataCard
from fgzoo.data.verify import OFFICIAL

#: How each metric is called, and how it is shown.
METRICS = {
    "top1": ("top-1, %", 100), "top5": ("top-5, %", 100), "macro": ("macro accuracy, %", 100),
    "nll": ("negative log-likelihood", 1), "ece": ("calibration error (15 bins), %", 100),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A paper or data set: how it is cited, and what must be known of it.

    Attributes:
        key: BibTeX key.
        fields: BibTeX fields.
        terms: Under what terms images may be used; empty for papers.
    """

    key: str
    fields: dict[str, str]
    terms: str = ""

    def bibtex(self) -> str:
        """The BibTeX entry."""
        body = "".join(f"  {name} = {{{value}}},\n" for name, value in self.fields.items())
        return f"@misc{{{self.key},\n{body}}}"


METHODS = {
    "rra": Source("shroff2020focus", {
        "title": "Focus Longer to See Better: Recursively Refined Attention for Fine-Grained Image Classification",
        "author": "Shroff, Prateek and Chen, Tianlong and Wei, Yunchao and Wang, Zhangyang", "year": "2020",
        "eprint": "2005.10979"}),
    "iagn": Source("huang2021iagn", {
        "title": "Interpretable Attention Guided Network for Fine-grained Visual Classification",
        "author": "Huang, Zhenhuan and Duan, Xiaoyue and Zhao, Bo and L{\\\"u}, Jinhu and Zhang, Baochang", "year": "2021",
        "eprint": "2103.04701"}),
    "pmg": Source("du2020pmg", {
        "title": "Fine-Grained Visual Classification via Progressive Multi-Granularity Training of Jigsaw Patches",
        "author": "Du, Ruoyi and others", "year": "2020", "eprint": "2003.03836"}),
    "coarse2fine": Source("eshratifar2019coarse2fine", {
        "title": "Coarse2Fine: A Two-stage Training Method for Fine-grained Visual Classification",
        "author": "Eshratifar, Amir Erfan and Eigen, David and Gormish, Michael and Pedram, Massoud", "year": "2019",
        "eprint": "1909.02680"}),
    "wsdan": Source("hu2019wsdan", {
        "title": "See Better Before Looking Closer: Weakly Supervised Data Augmentation Network for Fine-Grained Visual "
        "Classification", "author": "Hu, Tao and Qi, Honggang and Huang, Qingming and Lu, Yan", "year": "2019",
        "eprint": "1901.09891"}),
    "srbn": Source("wu2017srbn", {
        "title": "Where to Focus: Deep Attention-based Spatially Recurrent Bilinear Networks for Fine-Grained Visual Recognition",
        "author": "Wu, Lin and Wang, Yang", "year": "2017", "eprint": "1709.05769"}),
    "bcnn": Source("lin2015bcnn", {
        "title": "Bilinear CNN Models for Fine-grained Visual Recognition",
        "author": "Lin, Tsung-Yu and RoyChowdhury, Aruni and Maji, Subhransu", "year": "2015", "note": "ICCV 2015"}),
}  # fmt: skip
THEIR_TERMS = " The training images have terms of their own, see above."

METHODS["rra-parent"] = METHODS["rra"]

DATASETS = {
    "birds": Source("", {}, "Synthetic birds, drawn by fgzoo from seeds. They are no photographs: these weights name no real "
                    "bird, and their scores say nothing about photographs. They are for trying fgzoo out."),
    "cub": Source("wah2011cub", {
        "title": "The Caltech-UCSD Birds-200-2011 Dataset",
        "author": "Wah, Catherine and Branson, Steve and Welinder, Peter and Perona, Pietro and Belongie, Serge", "year": "2011",
        "note": "California Institute of Technology, CNS-TR-2011-001"},
        "CUB-200-2011. Its images belong to their photographers and are for non-commercial research and education."),
    "cars": Source("krause2013cars", {
        "title": "3D Object Representations for Fine-Grained Categorization",
        "author": "Krause, Jonathan and Stark, Michael and Deng, Jia and Fei-Fei, Li", "year": "2013", "note": "3dRR-13"},
        "Stanford Cars. Its images are for non-commercial research."),
    "aircraft": Source("maji2013aircraft", {
        "title": "Fine-Grained Visual Classification of Aircraft",
        "author": "Maji, Subhransu and Rahtu, Esa and Kannala, Juho and Blaschko, Matthew and Vedaldi, Andrea", "year": "2013",
        "eprint": "1306.5151"}, "FGVC-Aircraft. Its images are for non-commercial research."),
    "folder": Source("", {}, "The publisher's own images."),
}  # fmt: skip


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


def model_card(entry: Entry, card: DataCard, training: Training) -> str:
    """The model card.

    Args:
        entry: The registry's entry.
        card: The data that the weights know.
        training: How they came to be.

    Returns:
        Markdown.
    """
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


def _use(entry: Entry) -> str:
    return (
        f"## Use\n\n```sh\nfgzoo predict {entry.name} photos/ --output predictions.csv\nfgzoo explain {entry.name} photos/ "
        f'--output report/\n```\n\nFrom Python: `fgzoo.load("{entry.name}").predict("photo.jpg")`.'
    )


def _data(entry: Entry, card: DataCard, training: Training) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in training.images.items() if number)
    lines = [
        f"{DATASETS[entry.dataset].terms} {entry.classes} classes; images: {counts}; fingerprint of the lists "
        f"`{card.fingerprint}`.",
        *_subset(entry, training.images),
        *training.notes,
        f"Images are resized to {card.resize} pixels ({card.resize_mode}, {card.interpolation}, antialiased), and the middle "
        f"{card.image_size} x {card.image_size} pixels are classified.",
    ]
    return "## Training data\n\n" + "\n\n".join(lines)


def _subset(entry: Entry, images: Mapping[str, int]) -> list[str]:
    """What must be said where the official data set has more images."""
    official = OFFICIAL.get(entry.dataset)
    train, test = sum(number for split, number in images.items() if split != "test"), images["test"]
    if official is None or (train >= official.train and test >= official.test):
        return []
    return [
        f"**A subset** of the official data set: {entry.classes} of {official.classes} classes, {train:,} of {official.train:,} "
        f"training and {test:,} of {official.test:,} test images. Its scores cannot be compared with published ones."
    ]


def _recipe(entry: Entry, training: Training) -> str:
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


def _metrics(entry: Entry, training: Training) -> str:
    lines = ["| metric, test split | this file | all runs | runs |", "|---|---|---|---|"]
    for name, numbers in entry.metrics.items():
        title, factor = METRICS[name]
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


def _limits(entry: Entry) -> str:
    top1 = entry.metrics["top1"]["value"]
    limits = [
        f'It answers with one of its {entry.classes} classes whatever the image shows; it cannot say "none of these".',
        f"{100 * (1 - top1):.0f} of 100 test images are named wrongly, and photographs unlike the test split's fare worse.",
        "Its maps show where evidence came from, not that the answer is right.",
    ]
    if entry.metrics["top1"]["seeds"] == 1:
        limits.append("One run: another seed may score higher or lower by a point or two.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _citation(entry: Entry) -> str:
    sources = [source for source in (METHODS.get(entry.method), DATASETS[entry.dataset]) if source is not None and source.key]
    if not sources:
        return ""
    return "## Citation\n\n```bibtex\n" + "\n\n".join(source.bibtex() for source in sources) + "\n```"
