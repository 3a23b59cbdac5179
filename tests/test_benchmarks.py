"""The benchmarks of speed and maps: their arithmetic, what they count, and that each writes rows and a page."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException

from fgzoo import create_model
from fgzoo.data.card import DataCard
from fgzoo.data.records import Part, Record
from fgzoo.data.synthetic import Birds
from fgzoo.methods.baseline import Baseline
from fgzoo.nn import Backbone
from tests import THOROUGH
from tests.builders import make_cars, make_cub, save
from tests.command import fgzoo, fit, weights
from tests.prediction.test_rejection import clusters, drawn, literal_means
from tests.scripts import BENCHMARKS, scripts
from tests.small import SMALL

NAMES = (
    "common",
    "plan",
    "costs",
    "runner",
    "results",
    "tables",
    "accuracy",
    "speed",
    "interpretability",
    "rates",
    "reading",
    "readouts",
    "sizes",
    "traits",
    "unknown",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The scripts as modules; they import each other by name."""
    with scripts(*NAMES) as found:
        yield found


@pytest.fixture
def written(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go."""
    monkeypatch.setattr(bench.common, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


# ---------------------------------------------------------------------- speed


TIMED = ["--methods", "baseline", "--backbone", "test_resnet", "--size", "64", "--batch", "2", "--steps", "1", "--blocks", "2"]


#: A process each for four ways to train, and for three ranks, which all import torch.
END_TO_END_AND_RANKS = [
    (["step", "--end-to-end"], {"before", "after", "plain timm", "from files"}),
    (["step", "--ranks", "2"], {"2 rank(s)"}),
] if THOROUGH else []  # fmt: skip


def speed(bench: Any, what: str, *typed: str) -> int:
    status: int = bench.common.main(bench.speed.Arguments, [what, *TIMED, *typed], then=bench.speed.measure)
    return status


@pytest.mark.timeout(900)  # processes that import torch, perhaps on cores that others use
@pytest.mark.parametrize(
    ("typed", "compared"),
    [
        (["step", "--recipe"], {"baseline", "bare passes of its backbones"}),
        *END_TO_END_AND_RANKS,
        (["predict", "--methods", "srbn"], {"backbone", "forward", "reading", "predict", "explain", "explain --png"}),
        (["data"], {"Pillow recipe", "ours", "ours, from the cache", "decode alone, Pillow"}),
        (["scan"], {"bare passes of its backbones", "what is added", "double loop", "scan"}),
    ],
)
def test_each_measurement_writes_rows_and_a_page(bench: Any, written: Path, typed: list[str], compared: set[str]) -> None:
    assert speed(bench, *typed, "--write", "found") == 0
    rows, page = bench.common.read_csv(written / "found.csv"), (written / "found.md").read_text()
    assert compared <= {row["what"] for row in rows}
    assert all(f"| {name} |" in page for name in compared)
    assert all(row["fgzoo"] and row["hardware"] and row["command"] for row in rows)
    assert typed[0] != "step" or 0 < float(rows[0]["peak_gib"]) < 50
    assert all(float(row["cpu_ms"]) > 0 for row in rows)
    assert {row["block"] for row in rows} == {"1", "2"}


def test_ones_own_photographs_are_read(bench: Any, written: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("a.jpg", "b/c.JPEG")):
        save(tmp_path / "photos" / name, index)
    assert speed(bench, "data", "--images", str(tmp_path / "photos"), "--write", "found") == 0
    assert {row["what"] for row in bench.common.read_csv(written / "found.csv")} >= {"Pillow recipe", "ours"}
    assert speed(bench, "data", "--images", str(tmp_path / "photos" / "b")) == 2


def test_commands_are_measured_beside_the_import_of_the_libraries(
    bench: Any, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, typed = subprocess.run, []

    def run_nothing(command: list[str], **how: Any) -> Any:
        if command[0] != sys.executable:  # git
            return run(command, **how)
        typed.append(command[1:4])
        return run([sys.executable, "-c", "pass"], **how)

    monkeypatch.setattr(subprocess, "run", run_nothing)
    assert speed(bench, "startup", "--write", "found") == 0
    assert [words[-1] for words in typed[1:3]] == ["predict", "fit"]
    rows = bench.common.read_csv(written / "found.csv")
    assert [row["what"] for row in rows] == ["importing the libraries", "predict", "fit"] * 2
    assert all(float(row["cpu_ms"]) > 0 for row in rows)


def test_a_measurement_that_there_is_not_is_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed(bench, "steps") == 2
    assert "steps" in capsys.readouterr().err


def test_ratios_are_taken_within_each_turn(bench: Any) -> None:
    slow = iter([9.0, 1.0, 2.0, 1.0])  # the first turn does not count; in the third the machine is twice as slow
    now: list[float] = []

    def fast() -> dict[str, float]:
        now.append(next(slow))
        return {"cpu_ms": now[-1]}

    rows = bench.speed.take_turns({"fast": fast, "other": lambda: {"cpu_ms": 3 * now[-1]}}, 3, ["fast"], "cpu_ms")
    assert [row["cpu_ms"] for row in rows if row["what"] == "fast"] == [1.0, 2.0, 1.0]
    assert [row["to fast"] for row in rows] == pytest.approx([1.0, 3.0] * 3)


def test_backbones_passes_are_counted_where_they_learn_and_where_they_do_not(bench: Any) -> None:
    images = torch.randn(2, 3, 64, 64)
    for method, stage, expected in (("baseline", 0, (1.0, 0.0)), ("bcnn", 0, (0.0, 1.0)), ("bcnn", 1, (1.0, 0.0))):
        model = bench.speed.build(bench.speed.Arguments("step", recipe=True, backbone="test_resnet"), method)
        total, spent = bench.costs.training_operations(model, stage, images)
        alone = {name: bench.costs.forward_operations(model.network.get_submodule(name), images) for name in spent}
        shares = {name: (learnt / alone[name], bare / alone[name]) for name, (learnt, bare) in spent.items()}
        assert shares == dict.fromkeys(spent, expected)
        assert total >= sum(map(sum, spent.values()))


@pytest.mark.timeout(600)
def test_a_process_that_ends_by_itself_says_why(bench: Any) -> None:
    args = bench.speed.Arguments("step", backbone="test_resnet", size=64, batch=2, precision="16-mixed")
    with ExitStack() as stack:
        measure_block = bench.speed.start(stack, args, "baseline", "after")
        with pytest.raises(ProcessRaisedException, match="precision 16-mixed is not to be had on cpu"):
            measure_block()


# ---------------------------------------------------------------------- maps


def judged(bench: Any, *typed: str) -> int:
    settings = ["--limit", "6", "--perturbed", "2", "--write", "maps"]
    status: int = bench.common.main(bench.interpretability.measure, [*typed, *settings])
    return status


def test_maps_are_judged(bench: Any, written: Path) -> None:
    assert judged(bench, "--runs", "baseline_birds", "srbn_birds") == 0
    rows = bench.common.read_csv(written / "maps.csv")
    found = {(row["method"], row["map"], row["measure"]): row for row in rows}
    for method in ("baseline", "srbn"):
        assert int(found[method, "", "top-1"]["images"]) == 6
        assert 0 <= float(found[method, "final map", "pointing, deciding part"]["mean"]) <= 1
        assert float(found[method, "uniform (chance)", "energy, box"]["mean"]) == pytest.approx(
            float(found["baseline", "uniform (chance)", "energy, box"]["mean"])
        )
        assert int(found[method, "occlusion", "insertion (higher is better)"]["images"]) == 2
    page = (written / "maps.md").read_text()
    assert "| srbn | final map |" in page


def test_a_ratio_is_paired_over_images_and_needs_hits(bench: Any) -> None:
    mine, other = torch.tensor([1.0, 1, 1, 0, math.nan]), torch.tensor([1.0, 0, 0, 0, 1])
    found = bench.interpretability.ratio(mine, other)
    assert (found["mean"], found["images"]) == (3.0, 4)
    assert found["low"] <= 3 <= found["high"] == math.inf
    assert bench.interpretability.ratio(mine, torch.zeros(5)) == {}


def test_boxes_and_parts_move_with_the_pixels(bench: Any) -> None:
    model = create_model("baseline", 3, "test_resnet", pretrained=False)
    model.card = DataCard("folder", ["a", "b", "c"], 64, 72, "squash", "bilinear", "pillow", "none")
    parts = (Part("beak", 10, 20), Part("tail", 143, 30))
    record, image = Record("a", 0, box=(10, 20, 30, 40), parts=parts), torch.zeros(3, 144, 144, dtype=torch.uint8)
    box, points, deciding = bench.interpretability.ground_truth(model, record, parts[0], image)
    assert box.tolist() == [[1.0, 6.0, 11.0, 16.0]]  # half the size, and four pixels of the border are cut
    assert points[0].tolist() == deciding[0].tolist() == [1.0, 6.0]
    assert points[1].isnan().all()  # cut off
    assert bench.interpretability.ground_truth(model, Record("a", 0), None, image)[0].isnan().all()


def test_the_picture_is_drawn(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.interpretability, "NETWORKS", {"srbn": "SRBN"})
    bench.interpretability.picture(output=tmp_path / "maps.jpg")
    assert (tmp_path / "maps.jpg").stat().st_size > 5_000


# ---------------------------------------------------------------------- traits


@pytest.fixture
def traits(bench: Any, written: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with two species, two settings and two rows."""
    traits = bench.traits
    centre = traits.Setting(0.5, 1.0, 2, 1.0)
    other = centre._replace(clutter=0.0)
    rows = [row for row in traits.METHODS if row.label in ("Baseline", "WS-DAN")]
    rows.append(traits.Method("none yet", "no-such-method"))
    sweeps = {"body": [centre], "train": [centre], "clutter": [other, centre]}
    small = {
        "CENTRE": centre, "SWEEPS": sweeps, "SETTINGS": (centre, other), "SEEDS": (0, 1), "EPOCHS": {2: 2}, "CLASSES": 2,
        "TEST": 3, "SIZE": 32, "BATCH": 2, "SHOWN": 4, "METHODS": tuple(rows), "COLOURS": {"WS-DAN": "red"},
        "PRETRAINING": Birds(4, 2, 1, 37, first_class=12), "WEIGHTS": written / "birds_resnet.safetensors",
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(traits, name, value)
    ratios = {"Baseline": 1.0, "WS-DAN": 2.4}
    traits.write_csv(
        written / "traits_cost.csv", [{"label": name, "times the Baseline's": ratio} for name, ratio in ratios.items()]
    )
    return traits


def test_traits_are_run_once_and_reported(traits: Any, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*typed: str) -> int:
        status: int = traits.common.main({"run": traits.run}, ["run", "--locks", str(tmp_path / "locks"), *typed])
        return status

    assert run("--only", "*seed0*") == 0
    rows = traits.read_csv(written / "traits.csv")
    # The Baseline as long as WS-DAN, too, by twice the epochs.
    assert [(row["label"], row["epochs"]) for row in rows[:3]] == [("Baseline", "2"), ("WS-DAN", "2"), ("Baseline", "4")]
    assert len(rows) == 6
    assert all(0 < float(row["share"]) < 0.02 and float(row["train_seconds"]) > 0 for row in rows)
    assert all(0 <= float(row[f"hits_{name}"]) <= 1 for row in rows for name in ("final", "mean", "chance"))
    with np.load(written / "traits.npz") as found:
        for row in rows:
            predicted, targets = (found[name(row)] for name in (traits.predicted_name, traits.targets_name))
            assert predicted.dtype == np.uint16
            assert float(row["top1"]) == pytest.approx((predicted == targets).mean(), abs=1e-4)
    with traits.locked(tmp_path / "locks" / f"{rows[0]['cell'].replace('seed0', 'seed1')}.lock"):
        assert run() == 0  # all but what another process has in work
    again = traits.read_csv(written / "traits.csv")
    assert again[:6] == rows
    assert len(again) == 11
    assert traits.common.main({"report": traits.report}, ["report"]) == 0
    page = (written / "traits.md").read_text()
    assert page.count("| WS-DAN |") == 2
    assert "| uniform (chance) |" in page
    assert (written / "traits.png").stat().st_size > 10_000


def test_traits_of_other_images_or_batches_are_run_again(traits: Any, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, method = traits.cells()[0], traits.METHODS[0]
    images = traits.fingerprint(traits.birds_of(cell.setting, cell.seed))
    row = {"cell": cell.name, "arguments": method.settings, "fingerprint": images}
    found = traits.Results()
    for said, there in (({}, True), ({"batch": "2"}, True), ({"batch": "9"}, False), ({"fingerprint": "f"}, False)):
        found.rows = {cell.name: row | said}
        assert found.has(cell) is there
    found.rows = {cell.name: row}
    monkeypatch.setattr(traits, "TEST", 5)
    assert not found.has(cell)


def test_the_rows_of_traits_are_todays(bench: Any) -> None:
    found = bench.traits.Results()
    assert len(found.rows) == sum(map(found.has, bench.traits.cells()))


def test_traits_train_as_the_command_line_does(traits: Any, written: Path, tmp_path: Path) -> None:
    images, method = traits.Images(traits.CENTRE, 1), traits.METHODS[1]
    model, _ = traits.train(method, images.data, 2, 1)
    typed = {f"model.{name}": value for name, value in method.arguments.items()}
    typed |= {"data.name": "birds", "data.num_workers": 0}
    typed |= {f"data.birds.{name}": value for name, value in images.data.birds.settings.items()}
    typed |= {"data.birds.body": "[0.5, 0.5]", "data.image_size": 32, "data.resize": 37, "data.batch_size": 2}
    typed |= {"trainer.max_epochs": 2, "trainer.accelerator": "cpu", "trainer.precision": "32-true", "seed_everything": 1}
    options = [str(word) for name, value in typed.items() for word in (f"--{name}", value)]
    assert fgzoo("fit", "--model", method.method, *options, "--output", tmp_path / "run").err == ""
    mine = model.state_dict()
    assert all(torch.equal(mine[name], theirs) for name, theirs in weights(tmp_path / "run").items())


def test_a_backbone_is_pretrained_in_half_precision(traits: Any, written: Path) -> None:
    assert traits.common.main({"pretrain": traits.pretrain}, ["pretrain", "--epochs", "1"]) == 0
    state = load_file(traits.WEIGHTS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    loaded = Backbone("birds_resnet", weights=traits.WEIGHTS).model.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in state.items())


def test_traits_need_the_costs(traits: Any, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (written / "traits_cost.csv").unlink()
    assert traits.common.main({"run": traits.run}, ["run"]) == 2
    assert "run `traits.py cost`" in capsys.readouterr().err


# ---------------------------------------------------------------------- what results say


def test_results_say_how_they_came_about(bench: Any, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "data", "--images=/home/me/cub", "--size", "64"])
    bench.common.write_report("Title", "Text.", [{"what": "a", "value": 1}, {"what": "b"}], "name")
    page, rows = (written / "name.md").read_text(), bench.common.read_csv(written / "name.csv")
    assert page.startswith("# Title\n")
    assert "python benchmarks/speed.py data --images=PATH --size 64" in page
    assert [row["torch"] for row in rows] == [torch.__version__.partition("+")[0]] * 2
    assert [row["value"] for row in rows] == ["1", ""]


def test_results_are_not_replaced_by_none(bench: Any, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.common.write_report("Title", "", [{"what": "a"}], "sizes")
    before = (written / "sizes.csv").read_text()
    assert bench.common.main(bench.sizes.sizes, ["converged", "--runs", "nowhere"]) == 2
    assert "results/sizes.md and .csv stay as they are; see --runs and --only" in capsys.readouterr().err
    assert (written / "sizes.csv").read_text() == before


def test_a_data_set_of_no_name_is_asked_for(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for plan, script, typed in (("converged", bench.sizes.sizes, ["converged"]), ("srbn", bench.reading.reading, [])):
        for row in bench.results.Results(plan).rows:
            (tmp_path / row["cell"]).mkdir(exist_ok=True)
        assert bench.common.main(script, [*typed, "--runs", str(tmp_path), "--root", str(tmp_path)]) == 2
        assert "--root: where is cub? Give cub=PATH" in capsys.readouterr().err


def test_no_folder_of_this_machine_is_written(bench: Any) -> None:
    assert bench.common.hide_paths("no file /home/me/a.jpg, ~/b or root=/data/cub: 1/2") == "no file PATH, PATH or root=PATH 1/2"


def test_the_median_stands_beside_its_range(bench: Any) -> None:
    assert bench.common.median_and_range([3.0, 1.0, 2.0, 1234.5]) == "2.50 (1.00 to 1,234.50)"


# ---------------------------------------------------------------------- other sizes


def test_a_run_is_validated_at_other_sizes(bench: Any, tmp_path: Path) -> None:
    root, run = make_cub(tmp_path / "data", per_class=6), tmp_path / "run"
    assert fit(root, "--data.folds", 2, "--data.fold", 1, "--seed_everything", 3, "--output", run).status == 0
    with np.load(run / "val_probabilities.npz") as scored:
        assert bench.sizes.predicted(run, root, 64).tolist() == scored["predicted"].tolist()
    with pytest.MonkeyPatch.context() as patch:
        sides = []
        patch.setattr(Baseline, "normalize", lambda _, images: sides.append(images.shape[-1]) or images / 255)
        bench.sizes.predicted(run, root, 96)
    assert set(sides) == {96}


# ---------------------------------------------------------------------- parts replaced at test


def test_neighbouring_cells_are_compared_and_all_pairs(bench: Any) -> None:
    torch.manual_seed(0)
    cells = torch.randn(3, 4, 2, 3)
    units = torch.nn.functional.normalize(cells - cells.mean(dim=(0, 2, 3), keepdim=True), dim=1)
    near, pairs = [], []
    for one in units:
        places = {(i, j): one[:, i, j] for i in range(2) for j in range(3)}
        for (i, j), (k, m) in itertools.permutations(places, 2):
            cosine = float(places[i, j] @ places[k, m])
            pairs.append(cosine)
            near += [cosine] if abs(i - k) + abs(j - m) == 1 else []
    beside, apart = bench.reading.likeness(cells)
    assert apart == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    # Equally many neighbours to the right and below an image, so that every one counts once.
    assert beside == pytest.approx(sum(near) / len(near), abs=1e-6)


def test_a_trained_network_is_read_with_parts_replaced(bench: Any, tmp_path: Path) -> None:
    root, run = make_cub(tmp_path / "data", per_class=6), tmp_path / "run"
    typed = [word for name, value in SMALL["srbn"].items() for word in (f"--model.{name}", value)]
    held_out = ("--data.folds", 2, "--data.fold", 1)
    assert fit(root, *held_out, "--model.second_backbone", "test_efficientnet", *typed, "--output", run, model="srbn").status == 0
    found, about = bench.reading.read(run, root, 64)
    with np.load(run / "val_probabilities.npz") as scored:
        assert found["as trained"].tolist() == scored["predicted"].tolist()
    assert {len(answers) for answers in found.values()} == {len(found["as trained"])}
    assert set(found) == {"as trained", "cells shuffled", "attention uniform"}
    assert 1 <= float(about["attended"]) <= about["cells"]


# ---------------------------------------------------------------------- learning rates


def test_a_range_test_raises_the_rates_of_all_groups_by_one_factor_until_the_loss_diverges(bench: Any) -> None:
    weights, test = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)], bench.rates.RangeTest(5, 1e-4, 1.0, diverged=4)
    optimizer = torch.optim.SGD(
        [{"params": [one], "lr": lr, "initial_lr": lr} for one, lr in zip(weights, (0.5, 0.05), strict=True)]
    )
    trainer, model, used = SimpleNamespace(optimizers=[optimizer], should_stop=False), SimpleNamespace(hparams={"lr": 0.5}), []
    for batch, loss in enumerate((2.0, 1.0, 500.0)):
        assert not trainer.should_stop
        test.on_train_batch_start(trainer, model, None, batch)
        used.append([group["lr"] for group in optimizer.param_groups])
        test.on_train_batch_end(trainer, model, {"loss": torch.tensor(loss)}, None, batch)
    assert trainer.should_stop
    assert used == [pytest.approx([rate, rate / 10]) for rate in (1e-4, 1e-3, 1e-2)]
    assert test.losses[:2] == pytest.approx([2.0, (0.98 * 2 + 1) / 1.98])


def test_a_rate_is_suggested_where_the_loss_falls_fastest(bench: Any) -> None:
    rates = torch.logspace(-6, 0, 100)
    losses = torch.sigmoid(-4 * (rates.log10() + 2)).tolist()
    by_logarithm, by_rate = (bench.rates.suggested(rates.tolist(), losses, logarithm=logarithm) for logarithm in (True, False))
    assert by_logarithm == pytest.approx(1e-2, rel=0.15)
    assert by_rate < by_logarithm  # the same fall within a smaller step


@pytest.mark.timeout(900)
def test_rows_of_a_plan_are_given_rates(bench: Any, written: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load((BENCHMARKS / "plans/smoke.yaml").read_text())
    plan["variants"][0]["arguments"] += " --trainer.max_epochs 8"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert bench.common.main(bench.rates.find, [str(tmp_path / "plan.yaml"), "--only", "baseline-seed*", "--write", "rates"]) == 0
    rows = bench.common.read_csv(written / "rates.csv")
    assert [(row["cell"], row["batches"]) for row in rows] == [("baseline-seed0", "16"), ("baseline-seed1", "16")]
    assert all(1e-6 < float(row[name]) < 1e-3 for row in rows for name in ("by rate", "by its logarithm"))
    assert "| birds | 2 |" in (written / "rates.md").read_text()


# ---------------------------------------------------------------------- unknown images


def test_unknown_images_are_counted_by_pairs_and_at_95_percent(bench: Any) -> None:
    known = torch.cat([torch.arange(1.0, 20.0), torch.tensor([1e9])])
    unknown = torch.tensor([0.5, 2.0, 2.5, 1e8])
    pairs = [(mine > theirs) + 0.5 * (mine == theirs) for mine in known.tolist() for theirs in unknown.tolist()]
    assert bench.unknown.auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs))
    assert bench.unknown.false_positives(known, unknown) == 0.75  # nineteen of twenty known ones are at least 2


@pytest.mark.parametrize(("images", "size"), [(60, 6), (12, 30)], ids=["many images", "more features than images"])
def test_mahalanobis(bench: Any, images: int, size: int) -> None:
    features, targets = clusters(images, size)
    means = literal_means(features, targets)
    centred = np.array([row - means[k] for row, k in zip(features.numpy(), targets.tolist(), strict=True)])
    precision = np.linalg.inv(literal_shrinkage(centred))
    scores = bench.unknown.Mahalanobis.fit(features, targets).score(drawn(7, 10, size))
    for row, score in zip(drawn(7, 10, size).numpy(), scores.tolist(), strict=True):
        assert score == pytest.approx(-min((row - mean) @ precision @ (row - mean) for mean in means), rel=1e-6)


def literal_shrinkage(centred: np.ndarray) -> np.ndarray:
    """As the paper's section 3.3 writes it: d^2, b^2, m from the points one by one."""
    count, size = centred.shape
    covariance = sum(np.outer(point, point) for point in centred) / count

    def norm(matrix: np.ndarray) -> float:
        return float(np.trace(matrix @ matrix.T)) / size

    m = np.trace(covariance) / size
    d = norm(covariance - m * np.eye(size))
    b = min(sum(norm(np.outer(point, point) - covariance) for point in centred) / count**2, d)
    return b / d * m * np.eye(size) + (d - b) / d * covariance


@pytest.mark.parametrize(("images", "size"), [(40, 3), (8, 12)])
def test_the_shrunk_covariance_is_ledoit_and_wolfs(bench: Any, images: int, size: int) -> None:
    points = drawn(2, images, size) * torch.arange(1, size + 1)
    assert bench.unknown.shrunk_covariance(points).numpy() == pytest.approx(literal_shrinkage(points.numpy()))


def test_half_of_the_classes_is_learnt_another_by_another_seed(bench: Any) -> None:
    learnt, others = bench.unknown.halves(7, 0)
    assert sorted(learnt + others) == list(range(7))
    assert len(learnt) == 3
    assert bench.unknown.halves(7, 1) != (learnt, others)


def test_a_list_that_is_read_is_replaced_whole(bench: Any, tmp_path: Path) -> None:
    records = [Record(f"{target}.jpg", target, tmp_path / f"{target}.jpg") for target in (0, 1)]
    data = SimpleNamespace(listing=SimpleNamespace(train=records, test=records), class_names=["crow", "gull"])
    half, opened = tmp_path / "half.csv", tmp_path / "opened.csv"
    bench.unknown.write_list(half, data, [0], tmp_path)
    opened.hardlink_to(half)
    bench.unknown.write_list(half, data, [1], tmp_path)
    for path, row in ((opened, "0.jpg,crow"), (half, "1.jpg,gull")):
        assert path.read_bytes().decode().splitlines() == ["path,label,split", f"{row},train", f"{row},test"]


@pytest.mark.timeout(900)  # a training in a process of its own
def test_unknown_classes_are_judged_once_and_reported(
    bench: Any, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, cub, cars = bench.unknown, make_cub(tmp_path / "cub", classes=4, per_class=8), make_cars(tmp_path / "cars")
    small = "--model.backbone test_efficientnet --model.pretrained false --data.image_size 64 --data.batch_size 2"
    fixed = "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.precision 32-true --data.num_workers 0"
    monkeypatch.setattr(unknown, "METHODS", ("baseline",))
    monkeypatch.setattr(unknown, "SETTINGS", f"{small} {fixed}")
    typed = ["run", "--root", f"cub={cub}", f"cars={cars}", "--seeds", "3", "--runs", str(tmp_path / "runs")]
    assert unknown.common.main({"run": unknown.run}, typed) == 0
    rows = unknown.read_csv(written / "unknown.csv")
    expected = [(kind, score) for kind in ("other birds", "cars") for score in unknown.SCORES]
    assert [(row["unknown"], row["score"]) for row in rows] == expected
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("auroc", "fpr95", "known_rejected", "unknown_rejected"))
    assert {(row["classes"], row["train"], row["val"], row["test"]) for row in rows} == {("2", "6", "2", "8")}
    assert unknown.common.main({"run": unknown.run}, typed) == 0
    assert unknown.read_csv(written / "unknown.csv") == rows
    assert unknown.common.main({"report": unknown.report}, ["report"]) == 0
    page = (written / "unknown.md").read_text()
    assert page.count("| Mahalanobis |") == 2
    assert str(tmp_path) not in page
    # Rows of other arguments: what they say is shown, and their runs do not count.
    monkeypatch.setattr(unknown, "SETTINGS", f"{small} {fixed} --model.lr 0.5")
    assert unknown.common.main({"report": unknown.report}, ["report"]) == 0
    assert (written / "unknown.md").read_text() == page
    assert "`fgzoo fit --config folder --model METHOD --model.backbone test_efficientnet" in page
    assert unknown.common.main({"run": unknown.run}, typed) == 1
    assert "its folder holds a run of other arguments" in capsys.readouterr().out
    (tmp_path / "runs" / "baseline-seed3").rename(tmp_path / "before")
    assert unknown.common.main({"run": unknown.run}, typed) == 0
    again = unknown.read_csv(written / "unknown.csv")
    assert len(again) == len(rows)
    assert {row["arguments"].partition(" --model.lr ")[2][:3] for row in again} == {"0.5"}
