"""`make demo`: a method and plain fine-tuning on species that are new to a pretrained backbone, and where the method looks."""

from __future__ import annotations

import json
import shlex
import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

from fgzoo.checkpoints.loading import last_test
from fgzoo.checkpoints.run_folder import new_folder
from fgzoo.cli import main as fgzoo
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.errors import UsageError
from fgzoo.recipes import recipe_files
from fgzoo.training.arguments import DEFAULT_RECIPE, expand_presets, settings_of


@dataclass
class Result:
    """What one training run gave, in so many seconds: of the CPU's work, where no other device did it."""

    name: str
    folder: Path
    epochs: int
    seconds: float
    metrics: dict[str, float]


def demo(
    method: str = DEFAULT_RECIPE.partition("/")[2],
    output: Path | None = None,
    epochs: int | None = None,
    photos: int = 12,
    browser: bool | None = None,
    more: list[str] | None = None,
) -> None:
    """Train, test, compare and explain on the built-in data.

    Args:
        method: Name of a method with a recipe for the birds.
        output: Folder of everything the demo makes; by default a new one below `demo`.
        epochs: Epochs of the method; by default its recipe's. The baseline gets as many, and as many as fit into the same time.
        photos: Test images on the page.
        browser: Open the page; by default where the demo runs in a terminal.
        more: Further arguments of every `fgzoo fit`, e.g. `["--data.birds.difficulty=hard"]`.
    """
    console = Console(soft_wrap=True, highlight=False)
    methods = [name.partition("/")[2] for name in recipe_files() if name.startswith("birds/")]
    if method not in methods:
        raise UsageError(f"demo: --method {method}: no recipe for the birds; there are {', '.join(methods)}")
    output = output or new_folder(Path("demo"))
    started = time.perf_counter()
    data = data_of(["--config", f"birds/{method}", *(more or [])])
    birds = SyntheticBirds(data.birds)
    console.print(f"Painting {len(data.listing.records)} images of {data.num_classes} species, {output}/photos has some of them.")
    for record in data.listing.records:
        birds.read(record)  # the process remembers them, so that the first training does not pay for the others
    write_photos(birds, data.splits["test"], output / "photos", photos)
    results = [train(method, output / method, epochs, more, console)]
    if method != "baseline":
        results.append(train("baseline", output / "baseline", results[0].epochs, more, console))
        as_long = round(results[0].seconds / results[1].seconds * results[1].epochs)
        if as_long > results[1].epochs:
            results.append(train("baseline", output / "baseline_as_long", as_long, more, console))
    explain = ["explain", results[0].folder, output / "photos", "--output", output / "page"]
    run(explain, console)

    table = Table(title=f"{data.num_classes} species, {len(data.splits['test'])} test images", title_justify="left")
    for column in ("method", "epochs", "seconds", "top-1 %", "top-5 %", "NLL", "ECE"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for result in results:
        shown = [f"{100 * result.metrics[f'test/{key}']:.1f}" for key in ("top1", "top5")]
        shown += [f"{result.metrics['test/nll']:.3f}", f"{result.metrics['test/ece']:.3f}"]
        table.add_row(result.name, str(result.epochs), f"{result.seconds:.0f}", *shown)
    console.print()
    console.print(table)
    budgets = {2: " The baseline had as many epochs.", 3: " The baseline had as many epochs, then as much time."}
    console.print(
        f"Chance is {100 / data.num_classes:.1f} %.{budgets.get(len(results), '')} "
        f"Everything took {time.perf_counter() - started:.0f} s."
    )
    page = (output / "page" / "index.html").resolve()
    console.print(f"Where it looked: {page}")
    if console.is_terminal if browser is None else browser:
        webbrowser.open(page.as_uri())


def train(method: str, folder: Path, epochs: int | None, more: list[str] | None, console: Console) -> Result:
    """Run `fgzoo fit` and `fgzoo test` into a run's folder, and read what they wrote."""
    arguments = [] if epochs is None else ["--trainer.max_epochs", epochs]
    run(["fit", "--config", f"birds/{method}", *arguments, *(more or []), "--output", folder], console)
    run(["test", "--ckpt_path", folder], console)
    metrics = {name: float(value) for name, value in (last_test(folder) or {}).items() if name.startswith("test/") and value}
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    # On a CPU the clock on the wall also counts what other processes take.
    seconds = cost["cpu_seconds" if cost["device"] == "cpu" else "seconds"]
    return Result(method, folder, cost["epochs"], seconds, metrics)


def run(arguments: list[object], console: Console) -> None:
    """Run a `fgzoo` command, and show it as one would type it."""
    typed = list(map(str, arguments))
    console.print(f"\n[bold]$ fgzoo {shlex.join(typed)}[/bold]")
    if status := fgzoo(typed):
        raise SystemExit(status)


def data_of(arguments: list[str]) -> FGVCDataModule:
    """The birds that `fgzoo fit` paints when it is given these arguments."""
    settings = settings_of(expand_presets(arguments))["data"]
    return FGVCDataModule(**{**settings, "birds": Birds(**settings["birds"])})


def write_photos(birds: SyntheticBirds, records: Sequence[Record], folder: Path, count: int) -> None:
    """Write images as PNG files named by their class, their classes evenly spread over all; all where there are no more."""
    ordered = sorted(records, key=lambda record: record.target)
    count = min(count, len(ordered))
    folder.mkdir(parents=True, exist_ok=True)
    for record in (ordered[index * len(ordered) // count] for index in range(count)):
        pixels = birds.read(record).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{birds.class_names[record.target]} {Path(record.name).stem}.png")


if __name__ == "__main__":
    try:
        auto_cli(demo, as_positional=False)
    except UsageError as error:
        sys.exit(f"fgzoo: {error}")
