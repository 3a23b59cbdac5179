"""Confusion matrix and per-class report, as CSV and PNG; and what every single image was given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array, issparse, sparray
from torch import Tensor

from fgzoo.checkpoints.run_folder import CALIBRATION
from fgzoo.files import atomic_write, write_csv, write_json
from fgzoo.prediction.rejection import REJECTED, Calibration
from fgzoo.reporting.scores import confused_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More class names than this do not fit beside a picture.
NAMED_CLASSES = 60
#: Of a longer class name a picture shows the beginning and the end, by which names of one genus differ.
SHOWN_LETTERS = 30
#: A confusion matrix of more classes is written as the list of its entries, and drawn in blocks.
DENSE_CLASSES = 2000

#: Counts (K, K), true classes in rows, dense or as one of scipy's sparse arrays.
Counts = np.ndarray | Tensor | sparray


def write_report(
    folder: Path, split: str, confusion: Counts, class_names: Sequence[str], class_counts: Sequence[int] | None = None
) -> list[Path]:
    """Write `<split>_confusion.csv`, `.png`, `<split>_per_class.csv`, `.png` and `<split>_confused.csv` into a folder.

    Args:
        folder: Where to.
        split: `val` or `test`.
        confusion: (K, K) counts; row: true class, column: predicted class. Of more than [DENSE_CLASSES][] classes the CSV holds
            a row for every pair that came, instead of the matrix.
        class_names: K names.
        class_counts: K numbers of training images; `None` where they are not known.

    Returns:
        The files; a picture that cannot be drawn is left out with a warning.
    """
    counts = _sparse(confusion)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{split}_{kind}.csv" for kind in ("confusion", "per_class", "confused")]
    matrix, classes, pairs = paths
    rows = per_class(counts, class_names)
    if len(class_names) <= DENSE_CLASSES:
        named = [[name, *row] for name, row in zip(class_names, counts.toarray(), strict=True)]
        write_csv(matrix, ["true \\ predicted", *class_names], named)
    else:
        entries = zip(*counts.coords, counts.data, strict=True)
        write_csv(matrix, ["true", "predicted", "images"], [[class_names[t], class_names[p], n] for t, p, n in entries])
    trained = [""] * len(rows) if class_counts is None else class_counts
    with_trained = [[*row, count] for row, count in zip(rows, trained, strict=True)]
    write_csv(classes, ["class", "images", "recall", "precision", "f1", "training images"], with_trained)
    write_csv(pairs, ["true", "predicted", "images"], most_confused(counts, class_names))
    return paths + _draw(folder, split, counts, rows)


def _draw(folder: Path, split: str, counts: coo_array, rows: Sequence[Sequence[str | int]]) -> list[Path]:
    """The pictures, with class names as they are written, or by number where no font of this machine can write them."""
    import matplotlib as mpl

    from fgzoo.interpret.fonts import fonts_for

    names = [_shortened(str(row[0])) for row in rows]
    families, missing = fonts_for("".join(names) if len(names) <= NAMED_CLASSES else "")
    if missing:
        warnings.warn(
            f"{folder}: no font of this machine knows {''.join(sorted(missing))[:20]}; pictures name classes that need them by "
            f"their row in {split}_per_class.csv. Install a font such as Noto Sans CJK",
            stacklevel=2,
        )
        names = [f"row {row}" if missing & set(name) else name for row, name in enumerate(names, start=1)]
    shown = [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
    drawn = []
    pictures = {"confusion": partial(_draw_confusion, counts, names), "per_class": partial(_draw_per_class, shown)}
    for kind, draw in pictures.items():
        path = folder / f"{split}_{kind}.png"
        try:
            with mpl.rc_context({"font.family": families, "text.parse_math": False}):
                draw(split).savefig(path, dpi=130)
            drawn.append(path)
        except Exception as error:  # noqa: BLE001 - no picture is worth the run that it would end
            warnings.warn(f"{path} cannot be drawn: {error}", stacklevel=2)
    return drawn


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.json: temperature and thresholds, and which of them holds unless another is asked for."""
    plain = {name: value for name, value in calibration.as_dict().items() if name != "means"}
    write_json(folder / CALIBRATION, {"threshold": calibration.threshold(), "rejected": REJECTED, **plain})


def _shortened(name: str) -> str:
    start = SHOWN_LETTERS // 3
    return name if len(name) <= SHOWN_LETTERS else f"{name[:start]}…{name[start + 1 - SHOWN_LETTERS :]}"


def write_probabilities(path: Path, logits: Tensor, targets: Tensor, names: Sequence[str], steps: int) -> None:
    """Write what every image was given, in one move.

    `numpy.load(path)` holds `names`, the images as their data set lists them; `targets`, their classes; `predicted`, the classes
    with the largest logits; `probabilities`, (N, K) in single precision; `steps`, those that the weights had been trained for.

    Args:
        path: An `.npz` file.
        logits: (N, K).
        targets: (N,) classes.
        names: N names.
        steps: Optimiser steps of the weights that gave them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(names),
            targets=targets.numpy().astype(np.int32),
            predicted=logits.argmax(dim=1).numpy().astype(np.int32),
            probabilities=logits.float().softmax(dim=1).numpy(),
            steps=steps,
        )


def per_class(counts: Counts, class_names: Sequence[str]) -> list[list[str | int]]:
    """A row a class of counts (K, K), true classes in rows: name, images, recall, precision, F1, empty without a denominator."""
    rows: list[list[str | int]] = []
    counts = _sparse(counts)
    by_class = zip(class_names, counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0), strict=True)
    for name, hits, true, predicted in by_class:
        recall = hits / true if true else None
        precision = hits / predicted if predicted else None
        f1 = 2 * hits / (true + predicted) if true + predicted else None
        rows.append([name, int(true), *("" if value is None else f"{value:.4f}" for value in (recall, precision, f1))])
    return rows


def most_confused(counts: Counts, class_names: Sequence[str], most: int = 10) -> list[list[str | int]]:
    """The pairs (true, predicted) that are confused most often, at most `most`, the worst first."""
    entries = _sparse(counts)
    true, predicted = entries.coords
    found = confused_pairs(true, predicted, entries.data, most)
    return [[class_names[one], class_names[other], images] for one, other, images in found]


def _sparse(counts: Counts) -> coo_array:
    """The entries that are not zero, each once, by row and column."""
    given: Any = counts if issparse(counts) else np.asarray(counts)
    entries = coo_array(given)
    entries.sum_duplicates()
    entries.eliminate_zeros()
    return entries


def _draw_confusion(counts: coo_array, class_names: Sequence[str], split: str) -> Figure:
    from matplotlib.figure import Figure

    total = counts.sum(axis=1)
    block = math.ceil(len(class_names) / DENSE_CLASSES)
    true, predicted = counts.coords
    blocks = math.ceil(len(class_names) / block)
    share = np.zeros((blocks, blocks))
    np.add.at(share, (true // block, predicted // block), counts.data / total[true] / block)
    few = len(class_names) <= NAMED_CLASSES
    side = max(4.5, 0.22 * len(class_names) + 2.5) if few else 9.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true", title=f"{split}: share of each true class")
    if few:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(class_names)), class_names, fontsize=7)
    figure.colorbar(picture, ax=axes, shrink=0.7)
    return figure


def _draw_per_class(rows: Sequence[Sequence[str | int]], split: str) -> Figure:
    from matplotlib.figure import Figure

    known = sorted(((float(row[2]), str(row[0])) for row in rows if row[2] != ""), reverse=True)
    values, names = [value for value, _ in known], [name for _, name in known]
    few = len(names) <= NAMED_CLASSES
    figure = Figure(figsize=(max(5.0, 0.2 * len(names) + 2) if few else 10.0, 4.5), layout="constrained")
    axes = figure.subplots()
    if few:
        axes.bar(range(len(values)), values, color="#3b528b", width=0.85)
    else:
        axes.fill_between(range(len(values)), values, step="mid", color="#3b528b")
    axes.set(ylim=(0, 1), ylabel="recall", title=f"{split}: recall of each class, best to worst")
    axes.set_xticks(range(len(names)) if few else [], names if few else [], rotation=90, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
