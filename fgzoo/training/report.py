"""Confusion matrix and per-class report, as CSV and PNG; and what every single image was given."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fgzoo.files import atomic_write

#: More class names than this do not fit beside a picture.
NAMED_CLASSES = 60


def write_report(
    folder: Path, split: str, confusion: Tensor, class_names: Sequence[str], class_counts: Sequence[int] | None = None
) -> list[Path]:
    """Write `<split>_confusion.csv`, `.png`, `<split>_per_class.csv`, `.png` and `<split>_confused.csv` into a folder.

    Args:
        folder: Where to.
        split: `val` or `test`.
        confusion: (K, K) counts; row: true class, column: predicted class.
        class_names: K names.
        class_counts: K numbers of training images; `None` where they are not known.

    Returns:
        The files.
    """
    counts = confusion.cpu().numpy().astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ("confusion.csv", "confusion.png", "per_class.csv", "per_class.png", "confused.csv")
    paths = [folder / f"{split}_{kind}" for kind in kinds]
    matrix, matrix_picture, classes, classes_picture, pairs = paths
    rows = per_class(counts, class_names)
    named = [[name, *row] for name, row in zip(class_names, counts, strict=True)]
    _write_rows(matrix, ["true \\ predicted", *class_names], named)
    trained = [""] * len(rows) if class_counts is None else class_counts
    with_trained = [[*row, count] for row, count in zip(rows, trained, strict=True)]
    _write_rows(classes, ["class", "images", "recall", "precision", "f1", "training images"], with_trained)
    _write_rows(pairs, ["true", "predicted", "images"], most_confused(counts, class_names))
    _draw_confusion(matrix_picture, counts, class_names, split)
    _draw_per_class(classes_picture, rows, split)
    return paths


def write_probabilities(path: Path, logits: Tensor, targets: Tensor, names: Sequence[str]) -> None:
    """Write what every image was given, in one move.

    `numpy.load(path)` holds `names`, the images as their data set lists them; `targets`, their classes; `predicted`, the classes
    with the largest logits; `probabilities`, (N, K) in half precision, so that nearly equal ones may have become equal.

    Args:
        path: An `.npz` file.
        logits: (N, K).
        targets: (N,) classes.
        names: N names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(names),
            targets=targets.numpy().astype(np.int32),
            predicted=logits.argmax(dim=1).numpy().astype(np.int32),
            probabilities=logits.softmax(dim=1).numpy().astype(np.float16),
        )


def per_class(counts: np.ndarray, class_names: Sequence[str]) -> list[list[str | int]]:
    """A row a class of counts (K, K), true classes in rows: name, images, recall, precision, F1, empty without a denominator."""
    rows: list[list[str | int]] = []
    for index, name in enumerate(class_names):
        hits, true, predicted = counts[index, index], counts[index].sum(), counts[:, index].sum()
        recall = hits / true if true else None
        precision = hits / predicted if predicted else None
        f1 = 2 * hits / (true + predicted) if true + predicted else None
        rows.append([name, int(true), *("" if value is None else f"{value:.4f}" for value in (recall, precision, f1))])
    return rows


def most_confused(counts: np.ndarray, class_names: Sequence[str], most: int = 10) -> list[list[str | int]]:
    """The pairs (true, predicted) that are confused most often, at most `most`, the worst first."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(flat, off.shape) for flat in order]
    return [[class_names[t], class_names[p], int(off[t, p])] for t, p in pairs if off[t, p] > 0]


def _write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _draw_confusion(path: Path, counts: np.ndarray, class_names: Sequence[str], split: str) -> None:
    from matplotlib.figure import Figure

    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
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
    figure.savefig(path, dpi=130)


def _draw_per_class(path: Path, rows: Sequence[Sequence[str | int]], split: str) -> None:
    from matplotlib.figure import Figure

    known = sorted(((float(row[2]), str(row[0])) for row in rows if row[2] != ""), reverse=True)
    values, names = [value for value, _ in known], [name for _, name in known]
    few = len(names) <= NAMED_CLASSES
    figure = Figure(figsize=(max(5.0, 0.2 * len(names) + 2) if few else 10.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(values)), values, color="#3b528b", width=0.85)
    axes.set(ylim=(0, 1), ylabel="recall", title=f"{split}: recall of each class, best to worst")
    axes.set_xticks(range(len(names)) if few else [], names if few else [], rotation=90, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
