"""The accuracy benchmark: plans, cells that are run once whoever runs them, the bootstrap, and tables made of committed files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fgzoo.methods import find_method
from fgzoo.training.messages import get_parameter_names
from tests.builders import make_cub
from tests.command import fgzoo
from tests.scripts import BENCHMARKS, scripts

NAMES = ("common", "plan", "costs", "runner", "results", "tables", "accuracy")
#: What every training is given on the machine of the tests.
MORE = "--data.num_workers 0 --trainer.accelerator cpu --trainer.precision 32-true"
PLANS = [path.stem for path in sorted((BENCHMARKS / "plans").glob("*.yaml"))]
PLAN = """
title: A small plan
fit: --config {dataset} --model {method} --config small
datasets: {cub: 3}
variants:
  - {name: short, arguments: --data.image_size 64 --data.resize 72 --trainer.max_epochs 4, seeds: [0, 1]}
rows:
  - {label: Baseline, method: baseline}
  - {label: RRA's parent, method: rra-parent}
  - {label: RRA, method: rra, arguments: --model.steps 3, parent: RRA's parent}
compare: [RRA's parent, RRA]
"""
#: Takes the place of `python -m fgzoo` in a folder, whose files `fails` and `hangs` say what happens; leaves a run's files.
STAND_IN = """
import json, os, pathlib, shlex, sys, time, zlib
import numpy as np
typed = sys.argv[1:]
with open("calls.txt", "a") as file:
    file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {shlex.join(typed)}\\n")
folder = next(pathlib.Path(word) for option, word in zip(typed, typed[1:]) if option in ("--output", "--resume", "--ckpt_path"))
if typed[0] == "fit":
    if not (folder / "config.yaml").exists():
        text = "trainer: {precision: 32-true}\\nmodel: {init_args: {lr: 0.1}}\\ndata: {root: /home/me/cub}\\n"
        (folder / "config.yaml").write_text(f"# fgzoo {shlex.join(typed)}\\n{text}")
    if os.path.exists("fails"):
        os.remove("fails")
        sys.exit("fgzoo: no number in /home/me/cub\\nmore")
    if os.path.exists("hangs"):
        pathlib.Path("hanging").write_text(str(os.getpid()))
        time.sleep(100)
    cost = {"seconds": 10.0, "epochs": 2 if "--resume" in typed else 4, "peak_memory_gib": 1.5, "device": "cpu"}
    environment = {"gpus": [], "processor": "P", "packages": {"torch": "2"}, "git": "abc", "threads": 1, "time": str(time.time())}
    data = {"fingerprint": "f" * 16, "class_names": ["a", "b", "c"]}
    for name, content in (("environment", environment), ("data", data), ("cost", cost)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.csv").write_text("epoch,step,train/loss\\n3,9,0.5\\n")
split = "val" if "--data.folds" in (folder / "config.yaml").read_text() else "test"
if (typed[0] == "test") == (split == "test"):
    draw = np.random.default_rng(zlib.crc32(folder.name.encode()))
    targets, probabilities = np.arange(30) % 3, draw.dirichlet([1, 1, 1], 30).astype(np.float16)
    predicted = probabilities.argmax(axis=1)
    np.savez(folder / f"{split}_probabilities.npz", targets=targets, predicted=predicted, probabilities=probabilities)
    top1 = (predicted == targets).mean()
    head = ",".join(f"{split}/{name}" for name in ("top1", "top5", "macro", "nll", "ece", "tail"))
    (folder / "metrics.csv").write_text(f"epoch,step,train/loss,{head}\\n3,9,0.5\\n3,9,,{top1},1,{top1},1.5,0.1,0.25\\n")
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The scripts as modules, which import each other by name; costs are counted by nobody: a method takes two passes."""
    with scripts(*NAMES) as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr(found.accuracy, "cost_of", lambda cell: cost(found, cell))
        patch.setattr(found.results, "cost_of", lambda cell: cost(found, cell))
        yield found


def cost(bench: Any, cell: Any) -> Any:
    needed = 1.0 if cell.experiment.method == "baseline" else 2.0
    return bench.costs.Cost(1.0, 0.5, 0.5 * needed, needed)


def cells_of(bench: Any, said: str | Path) -> Any:
    return bench.plan.cells_of(bench.plan.read_plan(str(said)), lambda cell: cost(bench, cell).passes)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A plan in a folder in which a stand-in takes the place of `fgzoo`."""
    return prepared(tmp_path)


def prepared(folder: Path) -> Path:
    (folder / "fgzoo").mkdir()
    (folder / "fgzoo" / "__init__.py").touch()  # without it, a package on PYTHONPATH would come first
    (folder / "fgzoo" / "__main__.py").write_text(STAND_IN)
    (folder / "cub").mkdir()
    (folder / "small_plan.yaml").write_text(PLAN)
    return folder / "small_plan.yaml"


def run(bench: Any, plan_file: Path, *more: str, verb: str = "run") -> int:
    folder = plan_file.parent
    given = ["--root", f"cub={folder / 'cub'}"] if verb == "run" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.results, "FOLDER", folder / "results")
        return accuracy(bench, verb, str(plan_file), *given, "--runs", str(folder / "runs"), *more)


def accuracy(bench: Any, *typed: str) -> int:
    status: int = bench.common.main(bench.accuracy.VERBS, typed)
    return status


def calls(folder: Path, verb: str = "") -> list[str]:
    path = folder / "calls.txt"
    return [line for line in path.read_text().splitlines() if f" {verb}" in line] if path.is_file() else []


def results(bench: Any, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.results, "FOLDER", folder / "results")
        return bench.results.Results("small_plan")


@pytest.fixture(scope="module")
def finished(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the plan has been run; to be read alone."""
    plan_file = prepared(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(plan_file.parent)
        assert run(bench, plan_file, "--jobs", "2") == 0
    return plan_file.parent


# ---------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("method: rra-parent}", "method: rra-parent, parent_epochs: 6}", "parent_epochs: RRA's parent has no parent"),
        ("method: rra-parent", "method: rrra", "no method 'rrra'; did you mean 'rra'?"),
        ("parent: RRA's parent", "parnt: RRA's parent", "'parnt' is not accepted"),
        ("parent: RRA's parent", "parent: RRAs parent", "parent: there is no 'RRAs parent', only Baseline"),
        ("method: rra-parent}", "method: rra-parent, teachers: [RRA]}", "RRA's parent needs --model.teacher_weight"),
        ("title: A small plan", "", "required: title"),
        ("{cub: 3}", "{cub: many}", "Expected a <class 'int'>"),
        (PLAN, "- a list", "Unexpected config"),
        (" --trainer.max_epochs 4", " --trainer.precision 32-true", "nothing says how many epochs"),
        ("variants:", "variants:\n  - {name: short, seeds: [0]}", "two rows would be called baseline-short-seed0"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_in_one_line(
    bench: Any, plan_file: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    assert old in PLAN
    text = PLAN.replace(old, new, 1)
    text = text.replace(" --config small", "") if "epochs" in said else text
    plan_file.write_text(text)
    assert run(bench, plan_file, "--dry-run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", PLANS)
def test_arguments_of_the_plans_are_arguments_of_the_methods(bench: Any, name: str) -> None:
    cells = cells_of(bench, name)
    assert len({cell.name for cell in cells}) == len(cells)
    known = {method: get_parameter_names(find_method(method)[0]) for method in {cell.experiment.method for cell in cells}}
    for cell in cells:
        assert cell.model.keys() <= known[cell.experiment.method]
        assert cell.epochs > 0


def test_cells_are_what_a_person_types(bench: Any, plan_file: Path) -> None:
    cell = next(cell for cell in cells_of(bench, plan_file) if cell.name == "rra-seed1")
    weights = {"": Path("/w.safetensors")}
    machine = bench.runner.Machine(Path("/runs"), {"cub": Path("/data/cub")}, weights, ("--data.cache", "disk"))
    typed = "fit --config cub --model rra --config small --data.image_size 64 --data.resize 72 --trainer.max_epochs 4"
    typed += " --model.steps 3 --seed_everything 1"
    given = f"{typed} --data.root /data/cub --model.backbone_weights /w.safetensors --data.cache disk".split()
    assert bench.runner.fit_arguments(cell, machine) == given
    assert cell.is_made_by(bench.common.hide_paths(f"fgzoo {' '.join(given)}"))
    assert not cell.is_made_by(f"fgzoo {typed}0")
    for other in ("--trainer.max_epochs 1", "--model.class_weights sqrt", "--config=other.yaml"):
        assert not cell.is_made_by(f"fgzoo {' '.join(given)} {other}")
    two = next(cell for cell in cells_of(bench, "small") if cell.experiment.label == "B-CNN, two networks")
    machine = bench.runner.Machine(Path("runs"), weights={"tf_efficientnet_lite0": Path("lite0")})
    assert bench.runner.fit_arguments(two, machine)[-2:] == ["--model.second_backbone_weights", "lite0"]
    streams = next(cell for cell in cells_of(bench, "full") if cell.experiment.label == "SRBN")
    machine = bench.runner.Machine(Path("runs"), weights={"vgg16": Path("a"), "resnet34": Path("b")})
    assert bench.runner.weights_of(streams, machine) == {"backbone_weights": Path("a"), "second_backbone_weights": Path("b")}


def test_settings_are_those_of_the_command_line(bench: Any, plan_file: Path) -> None:
    cell = cells_of(bench, plan_file)[-1]
    resolved = yaml.safe_load(fgzoo(*cell.typed, "--print_config").out)
    assert (cell.epochs, cell.size) == (resolved["trainer"]["max_epochs"], resolved["data"]["image_size"])
    assert cell.backbone == resolved["model"]["init_args"]["backbone"]
    assert {name: resolved["model"]["init_args"][name] for name in cell.model} == cell.model


def test_the_baseline_runs_beside_a_compared_row_for_as_many_epochs_and_passes(bench: Any, plan_file: Path) -> None:
    asked: list[str] = []
    cells = bench.plan.cells_of(bench.plan.read_plan(str(plan_file)), lambda cell: asked.append(cell.experiment.label) or 2.0)
    assert asked == ["RRA's parent", "RRA"]  # costs are counted of compared rows alone
    labels = [(cell.experiment.label, cell.epochs) for cell in cells if cell.seed == 0]
    assert labels == [("Baseline", 4), ("RRA's parent", 4), ("RRA", 4), ("Baseline, 8 epochs", 8)]
    found = {(cell.backbone, cell.epochs) for cell in cells_of(bench, "full") if cell.experiment.method == "baseline"}
    assert {("resnet50", 60), ("vgg19", 90), ("vgg19", 180), ("inception_v3", 120), ("inception_v3", 240)} <= found


def test_folds_validate_once_and_variants_may_have_their_own(bench: Any) -> None:
    for cell in cells_of(bench, "search"):
        assert f"--data.folds 2 --data.fold {cell.fold} --trainer.check_val_every_n_epoch 10" in " ".join(cell.typed)
    cells = cells_of(bench, "small")
    assert {(cell.dataset, cell.fold, cell.folds, cell.seed) for cell in cells} == {("cub", 0, 2, 0), ("cars", 1, 2, 1)}
    assert {cell.backbone for cell in cells if cell.dataset == "cars"} == {"tf_efficientnet_lite0"}
    trials = [cell.experiment.method for cell in cells]
    assert {trials.count(method) for method in trials} == {9}  # as many for every method


def test_passes_are_counted(bench: Any) -> None:
    found = bench.costs.count("wsdan", "test_efficientnet", '{"num_maps": 4}', 64, 3)
    assert found.passes == 3  # the image, a crop, an image without a region
    assert found.train_gmac == pytest.approx(1.5 * found.test_gmac)  # a test sees the image and a crop


# ---------------------------------------------------------------------- running


def test_a_plan_runs_every_cell_once_and_keeps_three_files(bench: Any, finished: Path) -> None:
    assert len(calls(finished, "fit")) == len(calls(finished, "test")) == 8
    kept = results(bench, finished)
    labels = ("Baseline", "RRA's parent", "RRA", "Baseline, 8 epochs")
    assert [row["label"] for row in kept.rows] == [label for label in labels for _ in (0, 1)]
    assert [row["cell"] for row in kept.rows[:3]] == ["baseline-seed0", "baseline-seed1", "rras-parent-seed0"]
    for row in kept.rows:
        right = kept.arrays[f"predicted/{row['cell']}"] == kept.arrays["targets/" + "f" * 16]
        assert float(row["top1"]) == pytest.approx(right.mean())
        assert row["model.lr"] == "0.1"
        assert row["tail"] == "0.25"
        assert row["command"].endswith("--data.root PATH")
        (epoch, scored) = [line for line in kept.epochs if line["cell"] == row["cell"]]
        assert (epoch["train/loss"], scored["test/top1"]) == ("0.5", row["top1"])
    assert {name for name in kept.arrays if name.startswith("prob")} == {
        f"probabilities/{row}-seed{seed}" for row in ("rra", "rras-parent") for seed in (0, 1)
    }
    assert sorted(path.name for path in (finished / "results").iterdir()) == [
        "small_plan.csv", "small_plan.npz", "small_plan_epochs.csv"
    ]  # fmt: skip
    assert not any(str(finished) in path.read_text() for path in (finished / "results").glob("*.csv"))


def test_cells_that_are_done_are_not_run_again(
    bench: Any, plan_file: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "runs", plan_file.parent / "runs")
    assert run(bench, plan_file) == 0  # by their runs
    shutil.rmtree(plan_file.parent / "runs")
    assert run(bench, plan_file) == 0  # by their results
    assert calls(plan_file.parent) == []
    assert "0 new, 8 of 8 cells done" in capsys.readouterr().out
    assert (plan_file.parent / "results" / "small_plan.csv").read_text() == (finished / "results" / "small_plan.csv").read_text()


def test_what_others_finished_is_collected_under_the_names_of_today(
    bench: Any, plan_file: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "runs", plan_file.parent / "runs")
    assert run(bench, plan_file, verb="collect") == 0
    assert "8 new, 8 of 8 cells done" in capsys.readouterr().out
    text = plan_file.read_text().replace("RRA's parent", "the parent").replace("--model.steps 3", "--model.steps 5")
    plan_file.write_text(text)
    assert run(bench, plan_file, verb="collect") == 0
    kept = results(bench, plan_file.parent)
    assert [row["cell"] for row in kept.rows if "rra" in row["method"]] == [
        "the-parent-seed0", "the-parent-seed1", "rra-seed0-earlier", "rra-seed1-earlier"
    ]  # fmt: skip
    assert {"predicted/the-parent-seed1", "predicted/rra-seed0-earlier"} <= kept.arrays.keys()
    assert sum(line["cell"] == "rra-seed0-earlier" for line in kept.epochs) == 2
    assert calls(plan_file.parent) == []
    assert accuracy(bench, "collect", str(plan_file), "--runs", "nowhere") == 2


def test_runs_of_plans_lie_apart_unless_that_is_said(bench: Any, plan_file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.results, "FOLDER", plan_file.parent / "results")
        assert accuracy(bench, "run", str(plan_file), "--root", f"cub={plan_file.parent / 'cub'}", "--only", "rra-seed0") == 0
    assert (plan_file.parent / "runs/accuracy/small_plan/rra-seed0/cost.json").is_file()


@pytest.mark.parametrize(("runs", "said"), [("nowhere", "--runs: there is no"), ("cub", "holds no Baseline of small_plan")])
def test_views_of_runs_that_are_not_there_change_nothing(
    bench: Any, plan_file: Path, finished: Path, runs: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "results", plan_file.parent / "results")
    kept = plan_file.parent / "results" / "small_plan.npz"
    before = kept.stat().st_mtime_ns
    assert run(bench, plan_file, "--runs", str(plan_file.parent / runs), verb="views") == 2
    assert said in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == before
    assert not (plan_file.parent / "nowhere").exists()


def test_a_run_that_takes_anothers_place_takes_that_of_its_views(bench: Any, plan_file: Path, finished: Path) -> None:
    shutil.copytree(finished / "runs", plan_file.parent / "runs")
    cell = cells_of(bench, plan_file)[0]
    kept = results(bench, finished)
    kept.arrays |= {f"predicted/{name}@flip": kept.arrays[f"predicted/{name}"] for name in (cell.name, "baseline-seed1")}
    kept.add(cell, plan_file.parent / "runs" / cell.name, averaged=False)
    assert f"predicted/{cell.name}" in kept.arrays
    assert [name for name in kept.arrays if "@" in name] == ["predicted/baseline-seed1@flip"]


@pytest.mark.parametrize(("found", "said"), [([0, 1], "there are 2 images, and"), ([1, 1, 1], "66.7% of the classes are not")])
def test_answers_of_another_run_are_refused(bench: Any, found: list[int], said: str) -> None:
    with pytest.raises(bench.results.UsageError, match=f"a-cell: {said}"):
        bench.results.check_answers({"cell": "a-cell"}, np.array(found), np.array([0, 1, 2]))


def test_a_broken_cell_says_why_and_is_resumed(bench: Any, plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--only", "rra-seed0")
    Path("fails").touch()
    assert run(bench, plan_file, *chosen) == 1
    assert "failed: no number in PATH" in capsys.readouterr().out
    assert run(bench, plan_file, *chosen) == 0
    assert "--resume" in calls(plan_file.parent)[1]
    assert results(bench, plan_file.parent).rows[0]["train_seconds"] == "20"  # ten seconds for two of four epochs
    # A folder is not taken for a run of other arguments.
    plan_file.write_text(plan_file.read_text().replace("--model.steps 3", "--model.steps 5"))
    assert run(bench, plan_file, *chosen) == 1
    assert "its folder holds a run of other arguments, move it away" in capsys.readouterr().out


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free(bench: Any, lock: Path) -> bool:
    with bench.runner.locked(lock) as held:
        return held is not None


def test_a_cell_belongs_to_its_training_until_that_dies(bench: Any, plan_file: Path) -> None:
    chosen, lock = ("--only", "rra-seed0"), plan_file.parent / "runs" / "rra-seed0.lock"
    Path("hangs").touch()
    runner = multiprocessing.get_context("fork").Process(target=run, args=(bench, plan_file, *chosen))
    runner.start()
    wait_for(lambda: Path("hanging").exists() and Path("hanging").read_text())
    runner.kill()
    runner.join()
    assert not free(bench, lock)  # its training goes on without it
    assert run(bench, plan_file, *chosen) == 0
    assert len(calls(plan_file.parent)) == 1  # left to the training
    os.kill(int(Path("hanging").read_text()), signal.SIGKILL)
    wait_for(lambda: free(bench, lock))
    Path("hangs").unlink()
    assert run(bench, plan_file, *chosen) == 0
    assert "--resume" in calls(plan_file.parent)[1]
    assert len(results(bench, plan_file.parent).rows) == 1


def test_sigterm_ends_the_training_and_frees_its_cell(bench: Any, plan_file: Path) -> None:
    Path("hangs").touch()

    def stop() -> None:
        wait_for(lambda: Path("hanging").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(bench, plan_file) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert free(bench, plan_file.parent / "runs" / "baseline-seed0.lock")


def test_two_processes_run_each_cell_once(bench: Any, plan_file: Path) -> None:
    context = multiprocessing.get_context("fork")
    typed = (bench, plan_file, "--devices", "0", "3", "--only", "*-seed0")
    workers = [context.Process(target=run, args=typed) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(calls(plan_file.parent, "fit")) == len(set(calls(plan_file.parent, "fit"))) == 4
    assert {call.split()[0] for call in calls(plan_file.parent)} <= {"0", "3"}
    run(bench, plan_file, verb="collect")
    assert len(results(bench, plan_file.parent).rows) == 4


TAUGHT = "  - {label: Taught, method: baseline, arguments: --model.teacher_weight 0.5, teachers: [RRA]}\n"


def test_a_row_learns_from_another_rows_run_of_its_seed(bench: Any, plan_file: Path) -> None:
    plan_file.write_text(PLAN.replace("  - {label: RRA's", f"{TAUGHT}  - {{label: RRA's"))
    assert run(bench, plan_file, "--only", "Taught") == 0
    assert not (plan_file.parent / "calls.txt").exists()  # there is nobody to learn from
    assert run(bench, plan_file) == 0
    typed = [line for line in (plan_file.parent / "calls.txt").read_text().splitlines() if "fit" in line]
    for seed in (0, 1):
        taught = next(
            number for number, line in enumerate(typed) if f"--output {plan_file.parent}/runs/taught-seed{seed}" in line
        )
        teacher = next(number for number, line in enumerate(typed) if f"--output {plan_file.parent}/runs/rra-seed{seed}" in line)
        assert teacher < taught
        assert f"""--model.teacher '["{plan_file.parent}/runs/rra-seed{seed}"]'""" in typed[taught]


def test_dry_run_says_what_would_be_typed(bench: Any, plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench, plan_file, "--dry-run", "--more", "--data.num_workers 0 --data.cache disk") == 0
    said = capsys.readouterr().out
    assert said.count("fgzoo fit --config cub --model") == said.count("--data.num_workers 0 --data.cache disk") == 8
    assert "8 cells, 8 to do" in said
    assert run(bench, plan_file, "--dry-run", "--more", "--data.num_workers 0 --trainer.max_epochs=1") == 2
    assert "--more: --trainer.max_epochs would make other runs than the plan's" in capsys.readouterr().err
    (plan_file.parent / "cub").rmdir()
    assert run(bench, plan_file) == 2  # no folder of the data
    assert calls(plan_file.parent) == []


# ---------------------------------------------------------------------- statistics


def test_bootstrap_is_the_literal_one(bench: Any) -> None:
    draw = np.random.default_rng(1)
    first, second = draw.random((3, 41)) < 0.8, draw.random((3, 41)) < 0.7
    gained = first.astype(float) - second
    found = bench.tables.with_interval([gained], resamples=1200, seed=5)
    images = np.random.default_rng(5).integers(0, 41, (1200, 41))
    seeds = np.random.default_rng(6).integers(0, 3, (1200, 3))
    means = []
    for number in range(1200):
        total = 0
        for seed in seeds[number]:
            for image in images[number]:
                total += int(first[seed, image]) - int(second[seed, image])
        means.append(total / (3 * 41))
    assert found == pytest.approx([first.mean() - second.mean(), *np.percentile(means, [2.5, 97.5])])
    assert bench.tables.with_interval([gained - gained], resamples=100) == [0, 0, 0]
    # What rounds to zero has no sign.
    assert bench.tables.percentage_points(-1e-17) == "+0.0"
    assert bench.tables.percentage_points(-0.0004, -0.02, -1e-9) == "+0.0 [-2.0, +0.0]"


def test_data_sets_are_averaged_and_each_resampled_by_itself(bench: Any) -> None:
    draw = np.random.default_rng(2)
    gains = [draw.integers(-1, 2, (3, 500)).astype(float), draw.integers(0, 2, (2, 700)).astype(float)]
    mean, low, high = bench.tables.with_interval(gains)
    assert mean == pytest.approx((gains[0].mean() + gains[1].mean()) / 2)
    each = [bench.tables.with_interval([gained]) for gained in gains]
    widths = [(found[2] - found[1]) / 2 for found in each]
    assert (high - low) / 2 == pytest.approx(np.hypot(*widths) / 2, rel=0.05)


def test_folds_are_paired_by_the_images_that_each_holds_out(bench: Any) -> None:
    draw, tables = np.random.default_rng(0), bench.tables
    rows: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
    kept, hits = {}, {}
    for fold, images in (("0 of 2", 30), ("1 of 2", 31)):
        targets = draw.integers(0, 3, images)
        for name in rows:
            row = {"cell": f"{name} {fold}", "seed": "0", "fold": fold, "fingerprint": "f"}
            predicted = draw.integers(0, 3, images)
            kept |= {f"predicted/{row['cell']}": predicted, bench.results.targets_name(row): targets}
            hits[name, fold] = predicted == targets
            rows[name].append({**row, "top1": str(hits[name, fold].mean())})
    one, two = (group(bench, rows[name]) for name in rows)
    joined = [np.concatenate([hits[name, fold] for fold in ("0 of 2", "1 of 2")])[None] for name in rows]
    mean = np.mean([hits["a", fold].mean() - hits["b", fold].mean() for fold in ("0 of 2", "1 of 2")])
    assert tables.difference(one, two, kept) == tables.percentage_points(
        mean, *tables.with_interval([joined[0].astype(float) - joined[1]])[1:]
    )
    # Another seed of which one fold was run: images of single seeds are not comparable then.
    other = {**rows["a"][0], "seed": "1"}
    kept[bench.results.targets_name(other)] = kept[bench.results.targets_name(rows["a"][0])]
    assert "[" not in tables.difference(group(bench, [*rows["a"], other]), group(bench, [*rows["b"], other]), kept)


def group(bench: Any, rows: list[dict[str, str]]) -> Any:
    return bench.tables.Group("label", "method", "", "backbone", 4, {(row["seed"], row["fold"]): row for row in rows})


# ---------------------------------------------------------------------- tables


def report(bench: Any, finished: Path, rows: Any = None, arrays: Any = None) -> str:
    kept, plan = results(bench, finished), bench.plan.read_plan(str(finished / "small_plan.yaml"))
    text: str = bench.tables.plan_page(plan, kept.rows if rows is None else rows, kept.arrays if arrays is None else arrays)
    return text


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_tables_pair_methods_with_baseline_and_parent(bench: Any, finished: Path) -> None:
    text, rows = report(bench, finished), results(bench, finished).rows
    top1 = {label: [float(row["top1"]) for row in rows if row["label"] == label] for label in ("RRA", "Baseline", "RRA's parent")}
    line = line_of(text, "| RRA |")
    for other in ("Baseline", "RRA's parent"):
        assert f"| {100 * (np.mean(top1['RRA']) - np.mean(top1[other])):+.1f} [" in line
    assert f"{100 * np.mean(top1['RRA']):.1f} ± {100 * np.std(top1['RRA'], ddof=1):.1f}" in line
    assert " | 4 | 8 | 8 | " in line_of(text.partition("### Equal passes")[2], "| RRA |")  # epochs, passes, the baseline's epochs
    assert "| RRA's parent and RRA |" in text
    columns = line_of(text, "| what |").split(" | ")
    assert line.split(" | ")[columns.index("tail %")] == "25.0 ± 0.0"
    equal = [{name: value for name, value in row.items() if name != "tail"} for row in rows]
    assert "tail %" not in report(bench, finished, equal)  # where classes are of equal size
    # Without what single images were given there is a difference and no interval.
    assert "[" not in line_of(report(bench, finished, arrays={}), "| RRA |")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("label", ["Baseline", "RRA's parent"])
def test_differences_are_to_todays_settings_of_a_row(bench: Any, finished: Path, label: str, first: bool) -> None:
    rows = results(bench, finished).rows
    changed = {"arguments": "--model.lr 9", "top1": "0.01"}
    earlier = [row | changed | {"cell": f"{row['cell']}-earlier"} for row in rows if row["label"] == label]
    kept = [*earlier, *rows] if first else [*rows, *earlier]
    assert line_of(report(bench, finished, kept, {}), "| RRA |") == line_of(report(bench, finished, rows, {}), "| RRA |")


def test_seconds_are_those_of_one_machine(bench: Any, finished: Path) -> None:
    rows = [
        row | ({"hardware": "another", "train_seconds": "9999"} if row["cell"] == "rra-seed1" else {})
        for row in results(bench, finished).rows
    ]
    assert line_of(report(bench, finished, rows), "| RRA |").split(" | ")[-3] == "10"
    alone = [row for row in rows if row["cell"] != "rra-seed0"]
    assert line_of(report(bench, finished, alone), "| RRA |").split(" | ")[-3] == "-"


def test_seconds_are_the_cpus_where_all_runs_know_them(bench: Any, finished: Path) -> None:
    spent = {"cost.device": "cpu", "cost.cpu_seconds": "3.0", "cost.epochs": "2"}  # resumed after two of four epochs
    rows = [row | spent for row in results(bench, finished).rows]
    text = report(bench, finished, rows)
    column = line_of(text, "| what |").split(" | ").index("training, CPU s")
    assert line_of(text, "| RRA |").split(" | ")[column] == "6"
    assert "training, s" in report(bench, finished, [*rows[:-1], rows[-1] | {"cost.cpu_seconds": ""}])


def test_probabilities_are_averaged_and_stand_beside_the_same_seeds_alone(bench: Any, finished: Path) -> None:
    kept = results(bench, finished)
    fewer = [row for row in kept.rows if (row["label"], row["seed"]) != ("RRA", "1")]
    members = [kept.arrays[f"probabilities/{name}-seed0"].astype(np.float64) for name in ("rras-parent", "rra")]
    right = (sum(members).argmax(axis=1) == kept.arrays["targets/" + "f" * 16]).mean()
    parent = next(row for row in kept.rows if row["cell"] == "rras-parent-seed0")
    line = line_of(report(bench, finished, fewer), "Probabilities of RRA's parent, RRA averaged")
    baseline = next(row for row in kept.rows if row["cell"] == "baseline-seed0")
    gained = f"{100 * (right - float(baseline['top1'])):+z.1f} ["
    assert f"averaged: {100 * right:.1f} %, {gained}" in line
    assert f"] to Baseline (RRA's parent {100 * float(parent['top1']):.1f}, RRA " in line


def test_the_mean_difference_is_that_of_all_compared_rows(bench: Any, finished: Path) -> None:
    kept = results(bench, finished)
    top1 = {row["cell"]: float(row["top1"]) for row in kept.rows}
    wanted = np.mean(
        [top1[f"{name}-seed{seed}"] - top1[f"baseline-seed{seed}"] for name in ("rra", "rras-parent") for seed in (0, 1)]
    )
    start = "Mean of the differences of RRA's parent, RRA to Baseline: "
    assert line_of(report(bench, finished), start).startswith(f"{start}{100 * wanted:+z.1f} [")
    assert start not in report(bench, finished, arrays={})


def test_differences_are_averaged_over_data_sets_that_have_the_row(bench: Any, finished: Path) -> None:
    rows = [row for row in results(bench, finished).rows if row["epochs"] == "4"]
    assert "Over the data sets" not in report(bench, finished, rows)
    baselines = [row | {"dataset": "cars"} for row in rows if row["label"] == "Baseline"]
    level = [row | {"label": "RRA", "method": "rra"} for row in baselines]  # no gain there
    text = report(bench, finished, [*rows, *baselines, *level]).partition("## Over the data sets")[2]
    base, method = (np.mean([float(row["top1"]) for row in rows if row["label"] == name]) for name in ("Baseline", "RRA"))
    cells = line_of(text, "| RRA |").split(" | ")
    assert cells[1].startswith(f"{100 * method:.1f} ±")
    assert cells[2].startswith(f"{100 * base:.1f} ±")
    assert cells[3].startswith(f"{50 * (method - base):+.1f} [")
    assert "| Baseline |" in text
    assert "RRA's parent" not in text


def test_what_had_equal_passes_stands_beside_the_same_seeds_alone(bench: Any, finished: Path) -> None:
    rows = results(bench, finished).rows
    fewer = [row for row in rows if row["cell"] != "baseline-8-epochs-seed1"]
    mine, theirs = (
        float(next(row["top1"] for row in rows if row["cell"] == name)) for name in ("rra-seed0", "baseline-8-epochs-seed0")
    )
    line = line_of(report(bench, finished, fewer, {}).partition("### Equal passes")[2], "| RRA |")
    assert line == f"| RRA | 1 | {100 * mine:.1f} | 4 | 8 | 8 | {100 * theirs:.1f} | {100 * (mine - theirs):+.1f} |"


def test_a_parent_that_trains_as_long_stands_beside_the_same_seeds_alone(bench: Any, finished: Path, tmp_path: Path) -> None:
    plan_file = tmp_path / "small_plan.yaml"
    plan_file.write_text(PLAN.replace("parent: RRA's parent}", "parent: RRA's parent, parent_epochs: 6}"))
    longer = [cell for cell in cells_of(bench, plan_file) if cell.experiment.label == "RRA's parent, 6 epochs"]
    assert [(cell.epochs, cell.experiment.method, cell.seed) for cell in longer] == [(6, "rra-parent", 0), (6, "rra-parent", 1)]
    kept = results(bench, finished)
    known = {row["cell"]: row for row in kept.rows}
    rows = [*kept.rows, known["baseline-seed0"] | {"cell": longer[0].name, "label": "RRA's parent, 6 epochs", "epochs": "6"}]
    text: str = bench.tables.plan_page(bench.plan.read_plan(str(plan_file)), rows, {})
    mine, theirs = (float(known[name]["top1"]) for name in ("rra-seed0", "baseline-seed0"))
    where, _, part = text.partition("### Parents that train as long")
    shown = f"| RRA | 1 | {100 * mine:.1f} | 4 | RRA's parent, 6 epochs | {100 * theirs:.1f} | {100 * (mine - theirs):+z.1f} |"
    assert line_of(part, "| RRA |") == shown
    assert "6 epochs" not in where


def test_the_table_of_views_pairs_methods_with_each(bench: Any, finished: Path) -> None:
    kept = results(bench, finished)
    assert "More views" not in report(bench, finished)
    targets = kept.arrays["targets/" + "f" * 16]
    arrays = kept.arrays | {f"predicted/baseline-seed1@{tta}": targets for tta in ("flip", "ten-crop")}  # right about all
    part = report(bench, finished, arrays=arrays).partition("### More views of a test image")[2]
    one, flip, ten = (line.split(" | ") for line in part.splitlines() if line.startswith("| Baseline |"))
    base, method = (
        float(next(row["top1"] for row in kept.rows if row["cell"] == name)) for name in ("baseline-seed1", "rra-seed1")
    )
    assert one[1:4] == ["1", "1", f"{100 * base:.1f}"]  # of the seed alone whose views are known
    assert (flip[1:4], ten[1:4]) == (["2 (flip)", "1", "100.0"], ["10 (ten-crop)", "1", "100.0"])
    assert one[5].startswith(f"{100 * (method - base):+.1f} [")
    assert flip[5].startswith(f"{100 * (method - 1):+.1f} [")


def test_readme_shows_the_rows_of_today_alone(bench: Any) -> None:
    plan = bench.plan.read_plan("cub50")
    rows = bench.results.Results("cub50").rows
    shown = bench.tables.readme_part(plan, rows, {})
    assert "results/accuracy/cub50.md" in shown
    assert "| IAGN |" in shown
    changed = [replace(row, arguments="--model.temperature 2") if row.label == "IAGN" else row for row in plan.rows]
    assert "| IAGN |" not in bench.tables.readme_part(replace(plan, rows=changed), rows, {})


def test_committed_tables_are_those_of_the_committed_results(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy(bench, "table", "--check") == 0, capsys.readouterr().out


def test_a_changed_readme_is_noticed(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    monkeypatch.setattr(bench.tables, "README", readme)
    monkeypatch.setattr(bench.results, "FOLDER", tmp_path / "none")
    readme.write_text(f"before\n{bench.tables.BEGIN}\n79.9\n{bench.tables.END}\nafter\n")
    assert accuracy(bench, "table", "--check") == 1
    assert "README.md: not as its results are; run make table" in capsys.readouterr().out
    assert accuracy(bench, "table") == 0
    assert accuracy(bench, "table", "--check") == 0
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    readme.write_text("no markers")
    assert accuracy(bench, "table") == 2


def test_no_folder_of_a_machine_is_committed() -> None:
    for path in (BENCHMARKS / "results").rglob("*.*"):
        if path.suffix in (".csv", ".md"):
            text = path.read_text()
            assert not any(f"{sign}{name}/" in text for sign in " \"'=," for name in ("/home", "/root", "/work", "/tmp")), path


# ---------------------------------------------------------------------- for real


@pytest.mark.timeout(900)  # two processes that import torch, perhaps on cores that others use
def test_the_smoke_plan_runs(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.results, "FOLDER", tmp_path / "results")
    runs = str(tmp_path / "runs")
    assert accuracy(bench, "run", "smoke", "--only", "rra-seed0", "--threads", "1", "--runs", runs) == 0
    kept = bench.results.Results("smoke")
    (row,) = kept.rows
    assert (row["cell"], row["split"], row["trainer.max_epochs"]) == ("rra-seed0", "test", "1")
    right = kept.arrays["predicted/rra-seed0"] == kept.arrays[f"targets/{row['fingerprint']}"]
    assert right.mean() == pytest.approx(float(row["top1"]))
    assert {"train/loss_local", "test/top1_local"} <= kept.epochs[0].keys()
    assert str(tmp_path) not in json.dumps([kept.rows, kept.epochs])


@pytest.mark.timeout(900)
def test_a_finished_baseline_is_tested_on_more_views(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.results, "FOLDER", tmp_path / "results")
    plan, runs, root = tmp_path / "tiny.yaml", tmp_path / "runs", make_cub(tmp_path)
    short = (
        "--model.backbone test_efficientnet --model.pretrained false --data.image_size 64 --data.resize 72 --data.batch_size 3"
    )
    plan.write_text(
        "title: Tiny\nfit: --config cub --model {method} --config small\ndatasets: {cub: 3}\n"
        "rows: [{label: Baseline, method: baseline}]\n"
        f"variants: [{{name: short, arguments: {short} --trainer.max_epochs 1, seeds: [0, 1]}}]\n"
    )
    where = ("--root", f"cub={root}", "--runs", str(runs))
    assert accuracy(bench, "run", str(plan), "--only", "baseline-seed0", *where, "--threads", "1", "--more", MORE) == 0
    before = bench.results.Results("tiny")
    assert accuracy(bench, "views", str(plan), *where) == 0
    after = bench.results.Results("tiny")
    name = "predicted/baseline-seed0"
    np.testing.assert_array_equal(after.arrays[name], before.arrays[name])
    assert after.arrays.keys() - before.arrays.keys() == {f"{name}@flip", f"{name}@ten-crop"}
    after.arrays[name] = (after.arrays[name] + 1) % 3
    after.write()
    assert accuracy(bench, "views", str(plan), *where) == 2
    assert "baseline-seed0: " in capsys.readouterr().err
