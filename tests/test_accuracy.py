"""The accuracy benchmark: plans, cells that are run once whoever runs them, the bootstrap, and tables made of committed files."""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.transforms import v2

from fgzoo import FGVCDataModule, load
from fgzoo.errors import UsageError
from fgzoo.methods import find_method
from fgzoo.training.messages import get_parameter_names
from tests.builders import make_cub
from tests.command import fgzoo, fit

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    "bootstrap",
    "common",
    "accuracy_plan",
    "accuracy_runs",
    "accuracy_table",
    "accuracy_views",
    "accuracy",
    "curves",
    "publish",
)
PLAN = """
title: A small plan
fit: --config {dataset} --model {method} --config small
datasets: {cub: {classes: 3, train_images: 40}}
variants:
  - {name: short, arguments: --data.image_size 64 --data.resize 72 --trainer.max_epochs 4, seeds: [0, 1]}
rows:
  - {label: Baseline, method: baseline}
  - {label: RRA's parent, method: rra-parent}
  - {label: RRA, method: rra, arguments: --model.steps 3, parent: RRA's parent}
compare: [RRA]
ensemble: [RRA's parent, RRA]
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The scripts as modules; they import each other by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        before = {name: sys.modules.pop(name, None) for name in NAMES}
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "small_plan.yaml"
    path.write_text(PLAN)
    return path


def counted(bench: Any, passes: float = 2.0) -> Any:
    """Costs that need no counting."""
    costs = bench.accuracy_plan.Costs()

    def of(cell: Any) -> Any:
        needed = 1.0 if cell.method == "baseline" else passes
        return bench.accuracy_plan.Cost(1.0, 0.5, 0.5 * needed, needed, 0.5)

    costs.of = of
    return costs


def cells_of(bench: Any, plan_file: Path) -> Any:
    return bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan(str(plan_file)), counted(bench))


# ---------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("method: rra-parent", "method: rrra", "rows: 2: model: no method 'rrra'; did you mean 'rra'?"),
        ("title: A small plan", "title: [A small", "no YAML"),
        ("parent: RRA's parent", "parnt: RRA's parent", "rows: 3: no key 'parnt'; did you mean 'parent'?"),
        ("parent: RRA's parent", "parent: RRAs parent", "parent: no row has the label 'RRAs parent'; did you mean"),
        ("seeds: [0, 1]", "seeds: 2", "variants: 1: seeds: expected a list of int, got '2'"),
        ("title: A small plan", "", "the plan: 'title' is missing"),
        ("compare: [RRA]", "compare: [SRBN]", "compare: no row has the label 'SRBN'"),
        ("classes: 3", "classes: many", "datasets: cub: classes: expected int, got 'many'"),
        (PLAN, "- a list", "the plan: expected keys and values"),
        ("--model {method}", "--model", "every option needs one value"),
        (" --config small", "", "short, nothing says how many epochs"),
        ("rows:", "pinned: {rrra: --model.steps 4}\nrows:", "no method 'rrra'; did you mean 'rra'?"),
        ("rows:", "pinned: {rra: --model.steps}\nrows:", "every option needs one value: --model.steps"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_in_one_line(
    bench: Any, plan_file: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    assert old in PLAN
    text = PLAN.replace(old, new, 1)
    if said.startswith("short"):
        text, said = text.replace(" --trainer.max_epochs 4", ""), said.removeprefix("short, ")
    plan_file.write_text(text)
    assert bench.accuracy.main(["run", str(plan_file), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_plan_that_is_not_there_names_those_that_are(bench: Any) -> None:
    with pytest.raises(UsageError, match="plans are ablations, cars60, cub50, full"):
        bench.accuracy_plan.read_plan("cub60")


@pytest.mark.parametrize("name", [path.stem for path in sorted((BENCHMARKS / "plans").glob("*.yaml"))])
def test_arguments_of_the_plans_are_arguments_of_the_methods(bench: Any, name: str) -> None:
    cells = bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan(name), counted(bench))
    assert len({cell.name for cell in cells}) == len(cells)
    known = {method: get_parameter_names(find_method(method)[0]) for method in {cell.method for cell in cells}}
    for cell in cells:
        assert cell.settings["model"]["init_args"].keys() <= known[cell.method]
        assert cell.epochs > 0


def test_cells_are_what_a_person_types(bench: Any, plan_file: Path) -> None:
    cell = next(cell for cell in cells_of(bench, plan_file) if (cell.label, cell.seed) == ("RRA", 1))
    where = bench.accuracy_runs.Where(Path("/runs"), {"cub": Path("/data/cub")}, {"": Path("/w.safetensors")})
    typed = "fit --config cub --model rra --config small --data.image_size 64 --data.resize 72 --trainer.max_epochs 4"
    typed += " --model.steps 3 --seed_everything 1"
    given = f"{typed} --data.root /data/cub --model.backbone_weights /w.safetensors".split()
    assert bench.accuracy_runs.fit_arguments(cell, where) == given
    shown = f"fgzoo {typed} --data.root PATH --model.backbone_weights PATH"
    assert bench.accuracy_runs.shown_command(cell, where) == shown


def test_what_is_pinned_is_run_and_names_no_cell(bench: Any, plan_file: Path) -> None:
    before = [cell.name for cell in cells_of(bench, plan_file)]
    plan_file.write_text(PLAN.replace("rows:", "pinned: {rra: --model.steps 9 --model.local_scale 0.5}\nrows:"))
    cells = cells_of(bench, plan_file)
    assert [cell.name for cell in cells] == before
    mine = next(cell for cell in cells if cell.label == "RRA")
    assert [mine.settings["model"]["init_args"][name] for name in ("steps", "local_scale")] == [3, 0.5]
    assert bench.accuracy_runs.fit_arguments(mine, bench.accuracy_runs.Where(Path("runs")))[-2:] == ["--model.local_scale", "0.5"]
    assert all(cell.pinned == () for cell in cells if cell.method != "rra")


def test_settings_are_those_of_the_command_line(bench: Any, plan_file: Path) -> None:
    cell = cells_of(bench, plan_file)[-1]
    result = fgzoo("fit", *cell.typed, "--print_config")
    resolved = yaml.safe_load(result.out)
    assert (cell.epochs, cell.size) == (resolved["trainer"]["max_epochs"], resolved["data"]["image_size"])
    assert cell.backbone == resolved["model"]["init_args"]["backbone"]
    for name, value in cell.settings["model"]["init_args"].items():
        assert resolved["model"]["init_args"][name] == value


def test_the_baseline_runs_for_as_many_passes(bench: Any, plan_file: Path) -> None:
    labels = [(cell.label, cell.epochs) for cell in cells_of(bench, plan_file) if cell.seed == 0]
    assert labels == [("Baseline", 4), ("RRA's parent", 4), ("RRA", 4), ("Baseline, 8 epochs", 8)]


def test_the_baseline_takes_a_compared_method_s_backbone(bench: Any) -> None:
    cells = bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan("full"), counted(bench))
    found = {(cell.backbone, cell.epochs) for cell in cells if cell.method == "baseline"}
    assert {("resnet50", 60), ("vgg19", 90), ("vgg19", 180), ("inception_v3", 120), ("inception_v3", 240)} <= found


def test_folds_validate_once_and_test_nothing(bench: Any) -> None:
    cells = bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan("search"), counted(bench))
    assert {cell.fold for cell in cells} == {0, 1}
    for cell in cells:
        assert f"--data.folds 2 --data.fold {cell.fold} --trainer.check_val_every_n_epoch 10" in " ".join(cell.typed)
    per_method = {method: sum(cell.method == method for cell in cells) for method in {cell.method for cell in cells}}
    assert set(per_method.values()) == {6}  # as many trials for every method, each on both folds


def test_a_variant_may_have_folds_and_data_sets_of_its_own(bench: Any) -> None:
    cells = bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan("small"), counted(bench))
    assert {(cell.dataset, cell.fold, cell.folds, cell.seed) for cell in cells} == {("cub", 0, 2, 0), ("cars", 1, 2, 1)}
    assert {cell.backbone for cell in cells if cell.dataset == "cars"} == {"tf_efficientnet_lite0"}


def test_every_row_of_the_search_has_as_many_trials(bench: Any) -> None:
    cells = bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan("small"), counted(bench))
    trials = {(cell.dataset, cell.method): sum(cell.method == other.method for other in cells) for cell in cells}
    assert set(trials.values()) == {9}


def test_a_second_network_has_weights_of_its_own(bench: Any) -> None:
    cells = bench.accuracy_plan.cells_of(bench.accuracy_plan.read_plan("small"), counted(bench))
    where = bench.accuracy_runs.Where(Path("runs"), weights={"tf_efficientnet_lite0": Path("lite0.safetensors")})
    two = next(cell for cell in cells if cell.label == "B-CNN, two networks")
    assert bench.accuracy_runs.fit_arguments(two, where)[-2:] == ["--model.second_backbone_weights", "lite0.safetensors"]
    one = next(cell for cell in cells if cell.label == "B-CNN, finer maps")
    assert "--model.second_backbone_weights" not in bench.accuracy_runs.fit_arguments(one, where)


def test_only_longer_runs_of_the_baseline_are_taken_for_it(bench: Any, plan_file: Path) -> None:
    names = ("Baseline", "Baseline, 8 epochs", "Baseline, vgg19, 180 epochs", "Baseline, lr 1e-3", "Baseline with 8 epochs")
    block = bench.accuracy_table.Block("short", "cub", [bench.accuracy_table.Group(name, []) for name in names])
    found = bench.accuracy_table.baselines(bench.accuracy_plan.read_plan(str(plan_file)), block)
    assert tuple(group.label for group in found) == names[:3]


def test_passes_are_counted_and_remembered(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "costs.json"
    arguments = {"num_maps": 4}
    cost = bench.accuracy_plan.Costs(path).count("wsdan", "test_efficientnet", arguments, 64, 3)
    assert cost.passes == 3  # the image, a crop, an image without a region
    assert cost.train_gmac > 3 * cost.backbone_gmac  # heads included
    monkeypatch.setattr(bench.accuracy_plan, "count", None)
    assert bench.accuracy_plan.Costs(path).count("wsdan", "test_efficientnet", arguments, 64, 3) == cost


# ---------------------------------------------------------------------- running


class Runner:
    """Takes the place of `fgzoo` in a process of its own; leaves the files that a run leaves."""

    def __init__(self, log: Path, fails: int = 0, seconds: float = 0.0) -> None:
        self.log = log
        self.fails = fails
        self.seconds = seconds

    def __call__(self, typed: list[str], log: Path, where: Any, claim: Any, gpu: str | None, stop: Any) -> None:
        with self.log.open("a") as file:
            file.write(f"{gpu} {' '.join(typed)}\n")
        time.sleep(self.seconds)
        folder = log.parent
        folder.mkdir(parents=True, exist_ok=True)
        if typed[0] == "fit":
            (folder / "config.yaml").write_text("trainer: {precision: 32-true}\ndata: {root: /home/me/cub}\n")
            if self.fails:
                self.fails -= 1
                raise sys.modules["accuracy_runs"].CellError("a loss that is no number")
            epochs = 4 if "--resume" not in typed else 2
            cost = {"seconds": 10.0, "epochs": epochs, "peak_memory_gib": 1.5, "device": "cpu"}
            environment = {"gpus": [], "processor": "P", "packages": {"torch": "2"}, "git": "abc", "command": ["/bin/x", "fit"]}
            data = {"fingerprint": "f" * 16, "class_names": ["a", "b", "c"]}
            for name, content in (("cost", cost), ("environment", environment), ("data", data)):
                (folder / f"{name}.json").write_text(json.dumps(content))
            (folder / "metrics.csv").write_text("epoch,step,train/loss\n3,9,0.5\n")
            return
        draw = np.random.default_rng(zlib.crc32(folder.name.encode()))  # `hash` differs from process to process
        targets, probabilities = np.arange(30) % 3, draw.dirichlet([1, 1, 1], 30).astype(np.float16)
        predicted = probabilities.argmax(axis=1)
        np.savez(folder / "test_probabilities.npz", targets=targets, predicted=predicted, probabilities=probabilities)
        top1 = (predicted == targets).mean()
        scores = f"{top1},1,{top1},1.5,0.1"
        head = "epoch,step,test/top1,test/top5,test/macro,test/nll,test/ece"
        (folder / "metrics.csv").write_text(f"{head}\n3,9,{scores}\n")

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.is_file() else []


@pytest.fixture
def runner(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner(tmp_path / "calls.txt")
    monkeypatch.setattr(bench.accuracy_runs, "_process", runner)
    monkeypatch.setattr(bench.accuracy, "Costs", lambda path: counted(bench))
    return runner


def run(bench: Any, plan_file: Path, *more: str) -> int:
    root = plan_file.parent / "cub"
    root.mkdir(exist_ok=True)
    folders = ["--runs", str(plan_file.parent / "runs"), "--results", str(plan_file.parent / "results")]
    status: int = bench.accuracy.main(["run", str(plan_file), "--root", f"cub={root}", *folders, *more])
    return status


def test_a_plan_runs_every_cell_once_and_keeps_its_results(bench: Any, plan_file: Path, runner: Runner) -> None:
    assert run(bench, plan_file) == 0
    assert len(runner.calls) == 2 * 8  # a fit and a test each
    results = plan_file.parent / "results"
    with (results / "small_plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [
        label for label in ("Baseline", "RRA's parent", "RRA", "Baseline, 8 epochs") for _ in (0, 1)
    ]
    kept = bench.accuracy_table.read_predictions(results / "small_plan.npz")
    right = kept[f"predicted/{rows[0]['cell']}"] == kept["targets/" + "f" * 16]
    assert float(rows[0]["top1"]) == pytest.approx(right.mean())
    for seed in ("0", "1"):
        members = [row["cell"] for row in rows if row["seed"] == seed and row["label"] in ("RRA's parent", "RRA")]
        single = [np.load(results / "small_plan" / f"{cell}.npz")["probabilities"].astype(np.float64) for cell in members]
        assert (kept[bench.accuracy_table.ensemble_name(members)] == sum(single).argmax(axis=1)).all()
    record = (results / "small_plan" / f"{rows[0]['cell']}.json").read_text()
    assert json.loads(record)["config"]["data"]["root"] == "PATH"
    assert str(plan_file.parent) not in record + (results / "small_plan.csv").read_text()
    assert run(bench, plan_file) == 0
    assert len(runner.calls) == 16  # nothing was left to do


def test_curves_show_every_term_and_head_of_the_compared_rows(bench: Any, plan_file: Path, runner: Runner) -> None:
    results = plan_file.parent / "results"
    drawn = ["--results", str(results)]
    run(bench, plan_file, "--seeds", "1")
    for path in (results / "small_plan").glob("*.json"):
        record = json.loads(path.read_text())
        record["metrics"] = [
            {"epoch": "0", "train/loss_global": "2.5", "train/top1": "0.2"},
            {"epoch": "1", "train/loss_global": "1.5", "train/loss_local": "3.0", "train/top1": "0.6"},
            {"epoch": "1", "test/top1": "0.5", "test/top1_local": "0.25"},
        ]
        path.write_text(json.dumps(record))
    plan = bench.accuracy_plan.read_plan(str(plan_file))
    above, below = bench.curves.draw(plan, "short", results).axes
    terms = {line.get_label(): list(line.get_ydata()) for line in above.lines}
    assert terms == {"global": [2.5, 1.5], "local": [3.0]}
    assert [line.get_label() for line in below.lines if not line.get_label().startswith("_")] == [
        "RRA's parent",
        "Baseline",
        "RRA",
    ]
    assert [text.get_text() for text in below.texts] == ["local"]
    assert bench.curves.main([str(plan_file), *drawn]) == 0
    assert (results / "small_plan_curves.png").stat().st_size > 10_000


def test_heads_that_lie_together_are_named_together(bench: Any) -> None:
    scores = {
        "test/top1": 0.78,
        "test/top1_fine": 0.77,
        "test/top1_global": 0.74,
        "test/top1_local": 0.735,
        "test/top1_third": 0.5,
    }
    assert bench.curves.named_heads(scores) == [(0.5, "third"), (0.735, "local, global")]


def test_curves_of_what_was_not_measured_are_refused(
    bench: Any, plan_file: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.curves.main([str(plan_file), "--results", str(plan_file.parent), "--variant", "long"]) == 2
    assert "nothing of the variant 'long' has been measured; its variants: 'short'" in capsys.readouterr().err


def test_only_and_seeds_choose_cells(bench: Any, plan_file: Path, runner: Runner) -> None:
    assert run(bench, plan_file, "--only", "RRA*", "--seeds", "1") == 0
    fits = [call for call in runner.calls if " fit " in call]
    assert len(fits) == 2
    assert all("--seed_everything 1" in call and "--model rra" in call for call in fits)


def test_devices_are_shared_out(bench: Any, plan_file: Path, runner: Runner) -> None:
    runner.seconds = 0.05
    assert run(bench, plan_file, "--devices", "0,3") == 0
    assert {call.partition(" ")[0] for call in runner.calls} == {"0", "3"}


def test_cells_of_committed_results_are_not_run_again(bench: Any, plan_file: Path, runner: Runner) -> None:
    run(bench, plan_file)
    shutil.rmtree(plan_file.parent / "runs")
    assert run(bench, plan_file) == 0
    assert len(runner.calls) == 16


def collected(bench: Any, plan_file: Path, runs: Path, results: Path) -> int:
    status: int = bench.accuracy.main(["collect", str(plan_file), "--runs", str(runs), "--results", str(results)])
    return status


def test_what_others_finished_is_collected_and_nothing_started(
    bench: Any, plan_file: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bench, plan_file, "--seeds", "1")
    calls = list(runner.calls)
    capsys.readouterr()
    assert collected(bench, plan_file, plan_file.parent / "runs", plan_file.parent / "mine") == 0
    assert "4 new, 4 of 8 cells done" in capsys.readouterr().out
    assert runner.calls == calls
    theirs, mine = (plan_file.parent / name / "small_plan.csv" for name in ("results", "mine"))
    assert mine.read_text() == theirs.read_text()


def test_collecting_from_nowhere_is_refused(
    bench: Any, plan_file: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collected(bench, plan_file, plan_file.parent / "nowhere", plan_file.parent / "mine") == 2
    assert "--runs: there is no " in capsys.readouterr().err
    assert not (plan_file.parent / "nowhere").exists()


def test_results_take_the_labels_that_the_plan_has_today(bench: Any, plan_file: Path, runner: Runner) -> None:
    run(bench, plan_file, "--only", "rra-parent")
    shutil.rmtree(plan_file.parent / "runs")
    (plan_file.parent / "runs").mkdir()
    plan_file.write_text(plan_file.read_text().replace("RRA's parent", "the parent"))
    assert collected(bench, plan_file, plan_file.parent / "runs", plan_file.parent / "results") == 0
    with (plan_file.parent / "results" / "small_plan.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"the parent"}


def test_a_broken_cell_is_resumed(bench: Any, plan_file: Path, runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    runner.fails = 1
    assert run(bench, plan_file, "--only", "RRA", "--seeds", "0") == 1
    assert "failed: a loss that is no number" in capsys.readouterr().out
    assert run(bench, plan_file, "--only", "RRA", "--seeds", "0") == 0
    assert [call.split()[1:3] for call in runner.calls][1][1] == "--resume"
    with (plan_file.parent / "results" / "small_plan.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["train_seconds"] == "20"  # ten seconds for two of four epochs


def test_dry_run_says_what_would_be_typed_and_how_long(
    bench: Any, plan_file: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench, plan_file, "--dry-run", "--images-per-second", "0.01") == 0
    said = capsys.readouterr().out
    assert said.count("fgzoo fit --config cub --model") == 8
    # 40 images, 4 epochs: 16,000 s a pass; twice 1 + 2 + 2 + 2 of them.
    assert "About 62.2 hours of training in all" in said
    assert runner.calls == []


def test_a_choice_without_cells_is_refused(
    bench: Any, plan_file: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench, plan_file, "--only", "none") == 2
    assert "--only, --seeds: they leave no cell" in capsys.readouterr().err


def test_a_data_set_without_a_folder_is_asked_for(bench: Any, plan_file: Path) -> None:
    with pytest.raises(UsageError, match="--root cub=PATH"):
        bench.accuracy_runs.check(cells_of(bench, plan_file), bench.accuracy_runs.Where(Path("runs")))


def test_two_processes_run_each_cell_once(bench: Any, plan_file: Path, runner: Runner) -> None:
    runner.seconds = 0.05
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=run, args=(bench, plan_file, "--jobs", "2")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    fits = [call for call in runner.calls if " fit " in call]
    assert len(fits) == len(set(fits)) == 8
    run(bench, plan_file)
    assert len((plan_file.parent / "results" / "small_plan.csv").read_text().splitlines()) == 9
    assert len(runner.calls) == 16


@pytest.fixture
def command(tmp_path: Path, bench: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `python -m fgzoo` runs in this folder."""
    monkeypatch.setattr(bench.accuracy, "Costs", lambda path: counted(bench))
    (tmp_path / "fgzoo").mkdir()
    (tmp_path / "fgzoo" / "__init__.py").touch()  # without it, a package on PYTHONPATH would come first
    return tmp_path / "fgzoo" / "__main__.py"


def test_sigterm_ends_the_training_and_frees_its_cell(bench: Any, plan_file: Path, command: Path) -> None:
    command.write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(100)\n")

    def stop() -> None:
        while not Path("begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(bench, plan_file) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.suffix for path in (plan_file.parent / "runs").glob("*") if path.suffix == ".claim"] == []


def test_a_failure_is_told_by_the_log_s_last_word(
    bench: Any, plan_file: Path, command: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.write_text("import sys\nprint('fgzoo: data: there is no /home/me/cub')\nprint('more')\nsys.exit(2)\n")
    assert run(bench, plan_file, "--seeds", "0", "--only", "RRA") == 1
    assert "failed: data: there is no PATH" in capsys.readouterr().out


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def claim_file(tmp_path: Path) -> Path:
    return tmp_path / "cell.claim"


def claimed(bench: Any, path: Path, age: float = 0.0, **owner: Any) -> bool:
    """Whether somebody else's claim can be taken."""
    mine = bench.accuracy_runs.Claim(path, stale=600)
    path.write_text(json.dumps({**mine.owner, **owner}))
    os.utime(path, (time.time() - age, time.time() - age))
    taken: bool = mine.take()
    mine.release()
    return taken


def test_claims_of_the_living_hold_and_those_of_the_dead_do_not(bench: Any, claim_file: Path) -> None:
    dead, living = dead_process(), os.getppid()
    assert not claimed(bench, claim_file, pid=living, age=9999)
    assert claimed(bench, claim_file, pid=dead)
    assert not claimed(bench, claim_file, pid=dead, child=living)  # its training goes on without it
    assert not claimed(bench, claim_file, host="elsewhere", pid=dead, age=500)
    assert claimed(bench, claim_file, host="elsewhere", pid=dead, age=700)


def test_one_of_many_takes_a_dead_claim(bench: Any, claim_file: Path) -> None:
    claim_file.write_text(json.dumps({**bench.accuracy_runs.Claim(claim_file, 600).owner, "pid": dead_process()}))
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda: taken.append(bench.accuracy_runs.Claim(claim_file, 600).take())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1


def test_a_claim_that_was_taken_over_is_left_to_its_new_owner(bench: Any, claim_file: Path) -> None:
    mine = bench.accuracy_runs.Claim(claim_file, stale=600)
    assert mine.take()
    claim_file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "child": None}))
    mine.release()
    assert claim_file.exists()


# ---------------------------------------------------------------------- statistics


def test_bootstrap_is_the_literal_one(bench: Any) -> None:
    draw = np.random.default_rng(1)
    first, second = draw.random((3, 41)) < 0.8, draw.random((3, 41)) < 0.7
    found = bench.bootstrap.paired_difference(first, second, resamples=1200, seed=5)
    images = np.random.default_rng(5).integers(0, 41, (1200, 41))
    seeds = np.random.default_rng(6).integers(0, 3, (1200, 3))
    means = []
    for number in range(1200):
        total = 0
        for seed in seeds[number]:
            for image in images[number]:
                total += int(first[seed, image]) - int(second[seed, image])
        means.append(total / (3 * 41))
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_bootstrap_refuses_what_is_not_paired(bench: Any) -> None:
    with pytest.raises(ValueError, match="equal and not empty"):
        bench.bootstrap.paired_difference(np.ones((2, 5), bool), np.ones((1, 5), bool))


def test_equal_models_do_not_differ(bench: Any) -> None:
    hits = np.random.default_rng(0).random((2, 30)) < 0.5
    assert bench.bootstrap.paired_difference(hits, hits, resamples=100) == (0, 0, 0)


def test_agreement_counts_shared_mistakes(bench: Any) -> None:
    assert bench.bootstrap.agreement(np.array([[0, 1, 2, 2]]), np.array([[0, 2, 2, 2]])) == 0.75


# ---------------------------------------------------------------------- tables


def test_tables_pair_methods_with_baseline_and_parent(bench: Any, plan_file: Path, runner: Runner) -> None:
    run(bench, plan_file)
    results = plan_file.parent / "results"
    plan, rows = bench.accuracy_plan.read_plan(str(plan_file)), bench.accuracy_table.read_rows(results / "small_plan.csv")
    kept = bench.accuracy_table.read_predictions(results / "small_plan.npz")
    text = bench.accuracy_table.report(plan, rows, kept)
    top1 = {label: [float(row["top1"]) for row in rows if row["label"] == label] for label in ("RRA", "Baseline", "RRA's parent")}
    line = next(line for line in text.splitlines() if line.startswith("| RRA |"))
    for other in ("Baseline", "RRA's parent"):
        assert f"| {100 * (np.mean(top1['RRA']) - np.mean(top1[other])):+.1f} [" in line
    assert f"{100 * np.mean(top1['RRA']):.1f} ± {100 * np.std(top1['RRA'], ddof=1):.1f}" in line
    passes = text.partition("### Equal passes")[2]
    assert "| RRA | " in passes
    assert " | 4 | 8 | 8 | " in passes  # epochs, passes, the baseline's epochs
    assert "RRA's parent and RRA" in text
    assert "Probabilities of RRA's parent, RRA averaged" in text
    # Without what single images were given there is a difference and no interval.
    assert "[" not in next(
        line for line in bench.accuracy_table.report(plan, rows, {}).splitlines() if line.startswith("| RRA |")
    )


def test_what_is_averaged_stands_beside_the_same_seeds_alone(bench: Any, plan_file: Path, runner: Runner) -> None:
    run(bench, plan_file)
    results = plan_file.parent / "results"
    plan, rows = bench.accuracy_plan.read_plan(str(plan_file)), bench.accuracy_table.read_rows(results / "small_plan.csv")
    kept = bench.accuracy_table.read_predictions(results / "small_plan.npz")
    fewer = [row for row in rows if (row["label"], row["seed"]) != ("RRA", "1")]
    parent = next(row for row in rows if (row["label"], row["seed"]) == ("RRA's parent", "0"))
    line = next(line for line in bench.accuracy_table.report(plan, fewer, kept).splitlines() if line.startswith("Probabilities"))
    assert f"(RRA's parent {100 * float(parent['top1']):.1f}, RRA " in line


def test_what_had_equal_passes_stands_beside_the_same_seeds_alone(bench: Any, plan_file: Path, runner: Runner) -> None:
    run(bench, plan_file)
    results = plan_file.parent / "results"
    plan, rows = bench.accuracy_plan.read_plan(str(plan_file)), bench.accuracy_table.read_rows(results / "small_plan.csv")
    fewer = [row for row in rows if (row["label"], row["epochs"], row["seed"]) != ("Baseline, 8 epochs", "8", "1")]
    assert len(fewer) == len(rows) - 1
    mine = next(float(row["top1"]) for row in rows if (row["label"], row["seed"]) == ("RRA", "0"))
    theirs = next(float(row["top1"]) for row in rows if (row["epochs"], row["seed"]) == ("8", "0"))
    text = bench.accuracy_table.report(plan, fewer, {}).partition("### Equal passes")[2]
    line = next(line for line in text.splitlines() if line.startswith("| RRA |"))
    assert line == f"| RRA | 1 | {100 * mine:.1f} | 4 | 8 | 8 | {100 * theirs:.1f} | {100 * (mine - theirs):+.1f} |"


def test_no_difference_has_no_sign_of_its_rounding(bench: Any) -> None:
    assert bench.accuracy_table.shown_difference((-1e-17, None)) == "+0.0"
    assert (
        bench.accuracy_table.shown_difference((-0.0004, bench.bootstrap.Difference(-0.0004, -0.02, -1e-9))) == "+0.0 [-2.0, +0.0]"
    )


def test_folds_are_paired_by_the_images_that_each_holds_out(bench: Any) -> None:
    draw, table = np.random.default_rng(0), bench.accuracy_table
    rows: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
    kept, hits = {}, {}
    for fold, images in (("0 of 2", 30), ("1 of 2", 31)):
        targets = draw.integers(0, 3, images)
        for name in rows:
            row = {"cell": f"{name} {fold}", "seed": "0", "fold": fold, "fingerprint": "f"}
            predicted = draw.integers(0, 3, images)
            kept |= {f"predicted/{row['cell']}": predicted, table.targets_name(row): targets}
            hits[name, fold] = predicted == targets
            rows[name].append({**row, "top1": str(hits[name, fold].mean())})
    one, two = (table.Group(name, rows[name]) for name in rows)
    joined = [np.concatenate([hits[name, fold] for fold in ("0 of 2", "1 of 2")])[None] for name in rows]
    mean, interval = table.difference(one, two, kept)
    assert mean == pytest.approx(np.mean([hits["a", fold].mean() - hits["b", fold].mean() for fold in ("0 of 2", "1 of 2")]))
    assert interval == bench.bootstrap.paired_difference(*joined)
    # Another seed of which one fold was run: images of single seeds are not comparable then.
    other = {**rows["a"][0], "seed": "1"}
    kept[table.targets_name(other)] = kept[table.targets_name(rows["a"][0])]
    assert table.difference(table.Group("a", [*rows["a"], other]), table.Group("b", [*rows["b"], other]), kept)[1] is None


def test_what_a_fold_gave_single_images_is_collected(bench: Any, plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(f"{PLAN}folds: {{number: 2}}\n")
    cell, results = cells_of(bench, plan_file)[0], tmp_path / "results"
    row = dict.fromkeys(bench.accuracy_runs.COLUMNS, "") | {"fold": "0 of 2", "seed": "0", "fingerprint": "f", "cell": cell.name}
    (tmp_path / cell.name).mkdir()
    (tmp_path / cell.name / "result.json").write_text(json.dumps({"row": row, "record": {}}))
    np.savez(tmp_path / cell.name / "val_probabilities.npz", targets=[0, 2], predicted=[1, 2], probabilities=np.eye(2))
    bench.accuracy_table.collect(bench.accuracy_plan.read_plan(str(plan_file)), [cell], tmp_path, results)
    kept = bench.accuracy_table.read_predictions(results / "small_plan.npz")
    assert kept[f"predicted/{cell.name}"].tolist() == [1, 2]
    assert kept[bench.accuracy_table.targets_name(row)].tolist() == [0, 2]


@pytest.fixture
def tested(bench: Any, plan_file: Path, tmp_path: Path) -> SimpleNamespace:
    """The baseline's first run, really trained and tested, and collected."""
    cell, root = cells_of(bench, plan_file)[0], make_cub(tmp_path / "cub", per_class=6)
    folder, results = tmp_path / "runs" / cell.name, tmp_path / "results"
    assert fit(root, "--output", folder, "--data.resize", 72).status == 0
    assert fgzoo("test", "--ckpt_path", folder).status == 0
    row = dict.fromkeys(bench.accuracy_runs.COLUMNS, "") | {"seed": "0", "fingerprint": "f", "cell": cell.name}
    (folder / "result.json").write_text(json.dumps({"row": row, "record": {}}))
    bench.accuracy_table.collect(bench.accuracy_plan.read_plan(str(plan_file)), [cell], folder.parent, results)
    folders = ["--runs", str(folder.parent), "--results", str(results), "--root", f"cub={root}"]
    return SimpleNamespace(
        cell=cell.name, root=root, run=folder, kept=results / "small_plan.npz", typed=[str(plan_file), *folders]
    )


def test_views_are_the_mean_of_each_alone(
    bench: Any, tested: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.accuracy, "Costs", lambda path: counted(bench))
    assert bench.accuracy.main(["views", *tested.typed]) == 0
    assert f"{tested.cell}: top-1 % none " in capsys.readouterr().out
    kept = bench.accuracy_table.read_predictions(tested.kept)
    model = load(tested.run / "checkpoints" / "last.ckpt").eval()
    data = FGVCDataModule("cub", tested.root)
    read = data.dataset("test").read
    for tta in bench.accuracy_table.VIEWS:
        right = []
        for record in data.splits["test"]:
            image = v2.functional.resize(read(record), [72, 72], antialias=True)
            crops = v2.functional.ten_crop(image, [64, 64]) if tta == "ten-crop" else [v2.functional.center_crop(image, [64, 64])]
            views = [*crops, crops[0].flip(-1)] if tta == "flip" else crops
            with torch.no_grad():
                right.append(sum(model(model.normalize(view[None])).logits.softmax(dim=1) for view in views).argmax().item())
        assert kept[f"predicted/{tested.cell}@{tta}"].tolist() == right
    assert bench.accuracy.main(["views", *tested.typed]) == 0
    assert capsys.readouterr().out.startswith("0 runs scored")


def test_views_of_other_data_than_the_test_s_are_refused(
    bench: Any, tested: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.accuracy, "Costs", lambda path: counted(bench))
    kept = bench.accuracy_table.read_predictions(tested.kept)
    kept[f"predicted/{tested.cell}"] = (kept[f"predicted/{tested.cell}"] + 1) % 3
    bench.accuracy_table.write_predictions(tested.kept, kept)
    assert bench.accuracy.main(["views", *tested.typed]) == 2
    assert "its test gave other classes; is --root the data that it was tested on?" in capsys.readouterr().err


def test_the_table_of_views_pairs_methods_with_each(bench: Any, plan_file: Path, runner: Runner) -> None:
    run(bench, plan_file)
    results, table = plan_file.parent / "results", bench.accuracy_table
    plan, rows = bench.accuracy_plan.read_plan(str(plan_file)), table.read_rows(results / "small_plan.csv")
    kept = table.read_predictions(results / "small_plan.npz")
    assert "More views" not in table.report(plan, rows, kept)
    base, method = (next(row for row in rows if (row["label"], row["seed"]) == (label, "1")) for label in ("Baseline", "RRA"))
    targets = kept[table.targets_name(base)]
    kept |= {table.predicted_name(base["cell"], tta): targets for tta in table.VIEWS}  # right about every image
    part = table.report(plan, rows, kept).partition("### More views of a test image")[2]
    one, flip, ten = (line.split(" | ") for line in part.splitlines() if line.startswith("| Baseline |"))
    # Of the seed alone whose views are known.
    assert one[1:4] == ["1", "1", f"{100 * float(base['top1']):.1f}"]
    assert flip[1:4] == ["2 (flip)", "1", "100.0"]
    assert ten[1:4] == ["10 (ten-crop)", "1", "100.0"]
    assert one[4].startswith(f"{100 * (float(method['top1']) - float(base['top1'])):+.1f} [")
    assert flip[4].startswith(f"{100 * (float(method['top1']) - 1):+.1f} [")
    assert table.VIEWED in table.summary(plan, rows, kept)


def test_readme_is_spared_the_details(bench: Any) -> None:
    plan = replace(bench.accuracy_plan.read_plan("cub50"), details="Tested twice.")
    rows = bench.accuracy_table.read_rows(bench.accuracy_table.FOLDER / "cub50.csv")
    page, part = (make(plan, rows, {}) for make in (bench.accuracy_table.report, bench.accuracy_table.summary))
    assert "Tested twice." in page
    assert "Tested twice." not in part
    assert "results/accuracy/cub50.md" in part


def test_readme_shows_the_rows_that_the_plan_has_today(bench: Any) -> None:
    plan = bench.accuracy_plan.read_plan("cub50")
    rows = bench.accuracy_table.read_rows(bench.accuracy_table.FOLDER / "cub50.csv")
    report, summary = bench.accuracy_table.report, bench.accuracy_table.summary
    others = {"IAGN": "--model.temperature 2"}
    changed = replace(plan, rows=[replace(row, arguments=others.get(row.label, row.arguments)) for row in plan.rows])
    page, part, before = (make(of, rows, {}) for make, of in ((report, changed), (summary, changed), (summary, plan)))
    assert "| IAGN |" in page
    assert "| IAGN |" not in part
    assert "| IAGN |" in before
    assert "--model.stages" not in before


def test_committed_tables_are_those_of_the_committed_results(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.accuracy.main(["table", "--check"]) == 0, capsys.readouterr().out


def test_a_changed_readme_is_noticed(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{bench.accuracy_table.BEGIN}\n79.9\n{bench.accuracy_table.END}\nafter\n")
    empty = ["--readme", str(readme), "--results", str(tmp_path / "none")]
    assert bench.accuracy.main(["table", "--check", *empty]) == 1
    assert "README.md: not as its results are; run make table" in capsys.readouterr().out
    assert bench.accuracy.main(["table", *empty]) == 0
    assert bench.accuracy.main(["table", "--check", *empty]) == 0
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    readme.write_text("no markers")
    assert bench.accuracy.main(["table", *empty]) == 2


def test_checkpoints_are_of_the_compared_rows_and_their_finished_seeds(bench: Any, plan_file: Path, tmp_path: Path) -> None:
    plan = bench.accuracy_plan.read_plan(str(plan_file))
    cells = cells_of(bench, plan_file)
    with pytest.raises(UsageError, match="no run of RRA is finished"):
        bench.publish.finished(plan, tmp_path, "short", counted(bench))
    for cell in cells:
        if (cell.label, cell.seed) != ("RRA", 0):
            (tmp_path / cell.name).mkdir()
            (tmp_path / cell.name / "test_probabilities.npz").touch()
    found = bench.publish.finished(plan, tmp_path, "short", counted(bench))
    folders = {(cell.label, cell.seed): tmp_path / cell.name for cell in cells}
    assert found == {"rra_mobilenetv2_small_plan": [folders["RRA", 1]]}
    with pytest.raises(UsageError, match="no table 'long'; it has short"):
        bench.publish.finished(plan, tmp_path, "long", counted(bench))
    with pytest.raises(UsageError, match="compares no srbn with its baseline"):
        bench.publish.finished(plan, tmp_path, "short", counted(bench), ["srbn"])


def test_no_folder_of_a_machine_is_committed() -> None:
    for path in (BENCHMARKS / "results" / "accuracy").rglob("*.*"):
        if path.suffix in (".csv", ".json", ".md"):
            text = path.read_text()
            assert not any(f"{sign}{name}/" in text for sign in " \"'=" for name in ("/home", "/root", "/work", "/tmp")), path


# ---------------------------------------------------------------------- for real


@pytest.mark.timeout(900)  # two processes that import torch, perhaps on cores that others use
def test_the_smoke_plan_runs(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.accuracy, "Costs", lambda path: counted(bench))
    chosen = ["run", "smoke", "--only", "RRA", "--seeds", "0", "--threads", "1"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert bench.accuracy.main([*chosen, *folders]) == 0
    (row,) = bench.accuracy_table.read_rows(tmp_path / "results" / "smoke.csv")
    assert 0 <= float(row["top1"]) <= 1
    assert row["split"] == "test"
    kept = bench.accuracy_table.read_predictions(tmp_path / "results" / "smoke.npz")
    assert (kept[f"predicted/{row['cell']}"] == kept[f"targets/{row['fingerprint']}"]).mean() == pytest.approx(float(row["top1"]))
    assert not list((tmp_path / "runs").glob("*.claim"))
    record = json.loads((tmp_path / "results" / "smoke" / f"{row['cell']}.json").read_text())
    assert record["config"]["trainer"]["max_epochs"] == 1
    assert str(tmp_path) not in json.dumps(record)
