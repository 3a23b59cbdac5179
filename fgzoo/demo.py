"""`make demo`: train a method on the synthetic birds, test it, compare it with plain fine-tuning, and look where it looks."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from fgzoo.checkpoints.loading import load
from fgzoo.checkpoints.run_folder import CONFIG, new_folder
from fgzoo.cli import main as fgzoo
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.interpret.overlays import attention_picture, in_input_frame


@dataclass
class Result:
    """What one training run gave."""

    name: str
    folder: Path
    epochs: int
    seconds: float
    metrics: dict[str, float]


def demo(
    method: str = "srbn",
    output: Path | None = None,
    epochs: int | None = None,
    pictures: int = 5,
    more: list[str] | None = None,
) -> None:
    """Train, test, compare and explain on the built-in data.

    Args:
        method: Name of a method with a recipe for the birds.
        output: Folder of everything the demo makes; by default a new one below `demo`.
        epochs: Epochs of the method; by default its recipe's. The baseline gets as many, and as many as fit into the same time.
        pictures: Images in the attention picture.
        more: Further arguments of every `fgzoo fit`, e.g. `["--data.birds.difficulty=hard"]`.
    """
    console = Console(soft_wrap=True)
    output = output or new_folder(Path("demo"))
    started = time.perf_counter()
    results = [train(method, output / method, epochs, more)]
    if method != "baseline":
        results += baselines(results[0], output, more)
    picture = explain(results[0].folder, output / "attention.png", pictures)

    table = Table(title="Synthetic birds, test split", title_justify="left")
    for column in ("method", "epochs", "seconds", "top-1 %", "top-5 %", "macro %", "NLL", "ECE"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for result in results:
        shown = [f"{100 * result.metrics[f'test/{key}']:.1f}" for key in ("top1", "top5", "macro")]
        shown += [f"{result.metrics['test/nll']:.3f}", f"{result.metrics['test/ece']:.3f}"]
        table.add_row(result.name, str(result.epochs), f"{result.seconds:.0f}", *shown)
    console.print(table)
    budgets = {2: "The baseline had as many epochs. ", 3: "The baseline had as many epochs, then as much time. "}
    console.print(
        f"{budgets.get(len(results), '')}Chance is {100 / data_of(results[0].folder).num_classes:.1f} %. "
        f"Everything took {time.perf_counter() - started:.0f} s."
    )
    console.print(
        f"Where it looked: {picture}; circled is the part that tells the bird's class from the nearest other\n"
        f"Runs:            {', '.join(str(result.folder) for result in results)}",
        highlight=False,
    )


def baselines(result: Result, output: Path, more: list[str] | None) -> list[Result]:
    """Plain fine-tuning for as many epochs as a method, and, where that is more, for as long."""
    epochs = result.epochs
    equal = train("baseline", output / "baseline", epochs, more)
    # What an epoch costs is the difference of two runs of different length: starting up costs, too.
    other = 1 if epochs >= 3 else epochs + 2
    epoch = (equal.seconds - fit("baseline", output / "probe", other, more)) / (epochs - other)
    as_long = epochs + round((result.seconds - equal.seconds) / max(0.1, epoch))
    if as_long <= epochs:
        return [equal]
    return [equal, train("baseline", output / "baseline_as_long", as_long, more)]


def train(method: str, folder: Path, epochs: int | None, more: list[str] | None) -> Result:
    """Run `fgzoo fit` and `fgzoo test` into a run's folder, and read what they wrote."""
    seconds = fit(method, folder, epochs, more)
    _check(fgzoo(["test", "--ckpt_path", str(folder)]))
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = {name: float(value) for name, value in rows[-1].items() if name.startswith("test/") and value}
    done = 1 + max(int(row["epoch"]) for row in rows if row.get("train/loss"))
    return Result(method, folder, done, seconds, metrics)


def fit(method: str, folder: Path, epochs: int | None, more: list[str] | None) -> float:
    """Run `fgzoo fit` into a run's folder, and say how many seconds it took; `epochs` where they are not the recipe's."""
    arguments = ["fit", "--config", f"birds/{method}", "--output", str(folder), *(more or [])]
    arguments += [] if epochs is None else ["--trainer.max_epochs", str(epochs)]
    started = time.perf_counter()
    _check(fgzoo(arguments))
    return time.perf_counter() - started


def explain(run: Path, path: Path, pictures: int) -> Path:
    """Draw the maps of a trained run over some test images into a PNG, the part that decides each image's class circled."""
    model = load(run)
    assert model.card is not None
    data = data_of(run)
    birds = SyntheticBirds(data.birds)
    chosen = of_many_classes([record for record in data.splits["test"] if birds.deciding_part(record) is not None], pictures)
    images = torch.stack([model.transform(birds.read(record)) for record in chosen])
    inputs = model.normalize(images)
    with torch.no_grad():
        predicted = model(inputs).logits.argmax(dim=1)
    maps = model.explain(inputs)
    shown = sorted({0, maps.shape[1] // 3, 2 * maps.shape[1] // 3, maps.shape[1] - 1})
    captions, marks = [], []
    for record, guess in zip(chosen, predicted.tolist(), strict=True):
        part = birds.deciding_part(record)
        verdict = "right" if guess == record.target else "wrong"
        captions.append(f"{model.card.class_names[record.target]}\n({verdict})")
        assert part is not None
        marks.append(in_input_frame(part.x, part.y, data.birds.size, model.card.resize, model.card.image_size))
    names = [model.map_names(maps.shape[1])[index] for index in shown]
    return attention_picture(path, images, maps[:, shown], names, captions, marks)


def of_many_classes(records: Sequence[Record], count: int) -> list[Record]:
    """Some records, their classes evenly spread over all; `count` of them, or all there are."""
    ordered = sorted(records, key=lambda record: record.target)
    count = min(count, len(ordered))
    return [ordered[index * len(ordered) // count] for index in range(count)]


def data_of(run: Path) -> FGVCDataModule:
    """A data module with the birds that a run was trained on."""
    settings = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))["data"]
    return FGVCDataModule(**{**settings, "birds": Birds(**settings["birds"])})


def _check(status: int) -> None:
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    auto_cli(demo, as_positional=False)
