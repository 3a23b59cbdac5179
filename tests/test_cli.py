from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest

import fgzoo as package
from fgzoo import FGVCDataModule, create_model, load
from fgzoo.checkpoints.run_folder import PROBABILITIES
from fgzoo.cli import main
from fgzoo.errors import UntrainedError
from fgzoo.methods import available, installed
from fgzoo.recipes import list_recipes
from tests.builders import make_cub
from tests.command import MACHINE, ON_CPU, fgzoo, fit, metrics, resolved

RECIPES = sorted(list_recipes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with a validation split, and what `fgzoo test` said of it."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_cub(folder / "data", per_class=6)
    done = fit(root, "--data.val_fraction", 0.34, epochs=2, cwd=folder)
    run = folder / "runs" / "cub-baseline" / "000"
    tested = fgzoo("test", "--ckpt_path", run, cwd=folder)
    return SimpleNamespace(folder=folder, root=root, run=run, fit=done, test=tested)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with nothing held out."""
    folder = tmp_path_factory.mktemp("plain")
    root = make_cub(folder / "data")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = fit(root, cwd=folder)
    messages = [str(warning.message) for warning in caught]
    return SimpleNamespace(folder=folder, root=root, run=folder / "runs/cub-baseline/000", fit=done, warnings=messages)


# ---------------------------------------------------------------------- start-up


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["--version"], ["data", "info", "cub"]])
def test_answers_without_importing_torch(arguments: list[str]) -> None:
    code = f"import sys; from fgzoo.cli import main; main({arguments!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_names_every_verb() -> None:
    out = fgzoo("--help").out
    assert all(f"{verb} " in out for verb in ("fit", "validate", "test", "list", "data"))


def test_nothing_shows_the_help() -> None:
    assert fgzoo() == fgzoo("--help")


def test_version() -> None:
    assert fgzoo("--version").out == f"fgzoo {package.__version__}\n"


def test_a_name_that_is_no_utf8_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True))
    assert main(["\udcd6l"]) == 2
    assert b"no verb '\\udcd6l'" in sys.stderr.buffer.getvalue()  # type: ignore[union-attr]


@pytest.mark.parametrize("closed", [["stdout"], ["stdout", "stderr"]])
def test_a_process_without_standard_streams(closed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert main(["list", "methods"]) == 0
    assert main(["list", "nothing-of-that-kind"]) == 2


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_help_of_a_verb(verb: str) -> None:
    result = fgzoo(verb, "--help")
    assert result.status == 0
    assert "--ckpt_path" in result.out


# ---------------------------------------------------------------------- recipes


def test_fit_with_nothing_else_is_rra_on_birds() -> None:
    config = resolved()
    assert (config["data"]["name"], config["model"]["class_path"]) == ("birds", "fgzoo.methods.rra.RRA")


def test_several_configs_merge_left_to_right(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {batch_size: 5, image_size: 64}\n")
    (tmp_path / "b.yaml").write_text("data: {batch_size: 7}\n")
    data = resolved("--config", "birds/rra", "--config", "a.yaml", "--config", "b.yaml")["data"]
    assert (data["batch_size"], data["image_size"], data["resize"]) == (7, 64, 110)


def test_an_argument_wins_over_a_config() -> None:
    assert resolved("--config", "birds/rra", "--data.batch_size", 9)["data"]["batch_size"] == 9


def test_a_parent_is_its_methods_class_with_the_mechanism_off() -> None:
    model = resolved("--config", "cub", "--model", "rra-parent")["model"]
    assert (model["class_path"], model["init_args"]["local"]) == ("fgzoo.methods.rra.RRA", False)


def test_a_method_after_its_parents_recipe_is_whole() -> None:
    assert resolved("--config", "cub/rra-parent", "--model", "rra")["model"]["init_args"]["local"] is True


def test_another_methods_recipe_is_refused_by_name() -> None:
    result = fgzoo("fit", "--config", "birds/rra", "--model", "baseline")
    assert result.status == 2
    assert "Baseline is asked for, but" in result.err
    assert "RRA" in result.err


def test_a_runs_folder_is_a_config(trained: SimpleNamespace) -> None:
    assert resolved("--config", trained.run)["data"]["val_fraction"] == 0.34


# ---------------------------------------------------------------------- fit


def test_fit_ends_by_saying_where_its_folder_is_and_what_it_holds(trained: SimpleNamespace) -> None:
    assert trained.fit.status == 0
    assert (
        "runs/cub-baseline/000 holds calibration.json, checkpoints/best.ckpt, checkpoints/last.ckpt, config.yaml"
        in trained.fit.out
    )


def test_number_of_classes_comes_from_the_data(trained: SimpleNamespace) -> None:
    assert package.load(trained.run).num_classes == 3


def test_config_repeats_the_run(trained: SimpleNamespace, tmp_path: Path) -> None:
    again = fgzoo("fit", "--config", trained.run / "config.yaml", "--output", tmp_path / "again")
    assert again.status == 0
    assert metrics(tmp_path / "again") == [row for row in metrics(trained.run) if "test/top1" not in row]


def test_environment_is_recorded(trained: SimpleNamespace) -> None:
    environment = json.loads((trained.run / "environment.json").read_text())
    assert environment["packages"]["torch"].split("+")[0].count(".") == 2
    assert environment["cores"] >= 1
    assert {"fgzoo", "git", "processor", "gpus", "command", "python"} <= set(environment)


def test_data_is_recorded(trained: SimpleNamespace) -> None:
    data = json.loads((trained.run / "data.json").read_text())
    assert data["fingerprint"] == FGVCDataModule("cub", trained.root).listing.fingerprint()
    assert data["images"] == {"train": 6, "val": 3, "test": 9}


def test_metrics_has_a_row_for_every_epoch(trained: SimpleNamespace) -> None:
    rows = [row for row in metrics(trained.run) if "train/loss" in row]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all({"train/top1", "val/top1", "val/nll"} <= set(row) for row in rows)


def test_validation_split_is_reported(trained: SimpleNamespace) -> None:
    with (trained.run / "val_per_class.csv").open() as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["1", "1", "1"]
    assert (trained.run / "val_confusion.png").read_bytes().startswith(b"\x89PNG")


def test_every_held_out_image_is_scored_at_the_end_of_training(trained: SimpleNamespace) -> None:
    with np.load(trained.run / PROBABILITIES["val"]) as scored:
        assert len(scored["names"]) == 3
        assert scored["probabilities"].sum(axis=1) == pytest.approx(1, abs=2e-3)
        hits = (scored["predicted"] == scored["targets"]).mean()
    last = [row for row in metrics(trained.run) if "val/top1" in row][-1]
    assert hits == pytest.approx(float(last["val/top1"]))


def test_nothing_held_out_means_no_best_checkpoint(plain: SimpleNamespace) -> None:
    assert [path.name for path in (plain.run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_output_chooses_the_folder(plain: SimpleNamespace, tmp_path: Path) -> None:
    assert fit(plain.root, "--output", "mine").status == 0
    assert (tmp_path / "mine" / "checkpoints" / "last.ckpt").is_file()


def test_a_folder_with_a_run_is_not_overwritten(plain: SimpleNamespace) -> None:
    result = fit(plain.root, "--output", plain.run)
    assert result.status == 2
    assert "--resume" in result.err


@pytest.mark.parametrize("noise", ["across ranks is zero", "on_after_batch_transfer"])
def test_fit_is_free_of_lightnings_noise(plain: SimpleNamespace, noise: str) -> None:
    assert [message for message in plain.warnings if noise in message] == []


def test_no_image_is_opened_before_it_is_used(plain: SimpleNamespace, tmp_path: Path) -> None:
    root = shutil.copytree(plain.root, tmp_path / "data")
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert FGVCDataModule("cub", root).num_classes == 3


# ---------------------------------------------------------------------- test and validate


def test_test_prints_top1(trained: SimpleNamespace) -> None:
    assert trained.test.status == 0
    assert "test/top1" in trained.test.out


def test_a_run_says_what_it_cost(trained: SimpleNamespace) -> None:
    cost = json.loads((trained.run / "cost.json").read_text())
    assert (cost["epochs"], cost["processes"], cost["device"]) == (2, 1, "cpu")
    assert cost["seconds"] > 0
    assert cost["cpu_seconds"] > 0
    # A process with torch in it holds more than 100 MiB and, with these networks, less than the machine.
    assert 0.1 < cost["peak_memory_gib"] < 64
    assert cost["parameters"] == sum(p.numel() for p in load(trained.run).parameters())


def test_metrics_holds_the_test_once(trained: SimpleNamespace) -> None:
    assert fgzoo("test", "--ckpt_path", trained.run, cwd=trained.folder).status == 0
    rows = [row for row in metrics(trained.run) if "test/top1" in row]
    assert [row["epoch"] for row in rows] == ["1"]


def test_testing_keeps_the_rows_of_training(trained: SimpleNamespace) -> None:
    assert [row["epoch"] for row in metrics(trained.run) if "train/loss" in row] == ["0", "1"]


def test_test_reports_what_it_scored(trained: SimpleNamespace) -> None:
    with (trained.run / "test_confusion.csv").open() as file:
        counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    top1 = next(float(row["test/top1"]) for row in metrics(trained.run) if "test/top1" in row)
    assert [sum(row) for row in counts] == [3, 3, 3]
    assert sum(counts[i][i] for i in range(3)) / 9 == pytest.approx(top1)


@pytest.mark.parametrize("kind", ["confusion.png", "per_class.csv", "per_class.png", "confused.csv"])
def test_test_writes_its_report(trained: SimpleNamespace, kind: str) -> None:
    assert (trained.run / f"test_{kind}").stat().st_size > 0


def test_test_with_nothing_else_scores_the_newest_run(plain: SimpleNamespace) -> None:
    result = fgzoo("test", cwd=plain.folder)
    assert result.status == 0
    assert f"{plain.run.relative_to(plain.folder)} holds" in result.out


def test_validate_scores_the_validation_split(trained: SimpleNamespace, tmp_path: Path) -> None:
    result = fgzoo("validate", "--ckpt_path", trained.run, "--output", tmp_path / "scored")
    assert result.status == 0
    last = [row for row in metrics(trained.run) if "val/top1" in row][-1]
    assert metrics(tmp_path / "scored")[-1]["val/nll"] == last["val/nll"]
    with np.load(trained.run / PROBABILITIES["val"]) as fitted, np.load(tmp_path / "scored" / PROBABILITIES["val"]) as scored:
        assert scored["names"].tolist() == fitted["names"].tolist()
        assert scored["probabilities"] == pytest.approx(fitted["probabilities"], abs=1e-3)


def test_validate_without_a_validation_split_is_refused(plain: SimpleNamespace) -> None:
    result = fgzoo("validate", "--ckpt_path", plain.run)
    assert result.status == 2
    assert "--data.val_fraction" in result.err


def test_best_is_the_checkpoint_that_validated_best(trained: SimpleNamespace, tmp_path: Path) -> None:
    result = fgzoo("validate", "--ckpt_path", "best", "--output", tmp_path / "scored", cwd=trained.folder)
    assert result.status == 0
    best = max(float(row["val/top1"]) for row in metrics(trained.run) if "val/top1" in row)
    assert float(metrics(tmp_path / "scored")[-1]["val/top1"]) == best


def test_best_without_validation_is_refused(plain: SimpleNamespace) -> None:
    result = fgzoo("test", "--ckpt_path", "best", cwd=plain.folder)
    assert result.status == 2
    assert "nothing was held out" in result.err


def test_a_copied_checkpoint_needs_nothing_but_the_data(trained: SimpleNamespace, tmp_path: Path) -> None:
    copy = shutil.copy(trained.run / "checkpoints" / "last.ckpt", tmp_path / "copy.ckpt")
    result = fgzoo("test", "--ckpt_path", copy, "--data.root", trained.root, "--output", tmp_path / "out", *MACHINE)
    assert result.status == 0, result.err
    there, here = (next(row for row in metrics(run) if "test/nll" in row) for run in (trained.run, tmp_path / "out"))
    assert here == there


def test_a_moved_run_is_scored_where_it_lies(trained: SimpleNamespace, tmp_path: Path) -> None:
    assert fit(trained.root, "--output", tmp_path / "old").status == 0
    (tmp_path / "old").rename(tmp_path / "new")
    assert fgzoo("test", "--ckpt_path", tmp_path / "new").status == 0
    assert not (tmp_path / "old").exists()


def test_a_run_that_was_stopped_in_its_first_epoch_is_the_last_one(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.run, tmp_path / "runs" / "old")
    begun = tmp_path / "runs" / "begun"
    begun.mkdir()
    shutil.copy(trained.run / "config.yaml", begun)
    (begun / "config.yaml").touch()
    monkeypatch.setenv("FGZOO_RUN_FOLDER", str(tmp_path / "runs" / "old"))  # not what is typed
    result = fgzoo("fit", "--resume", begun, "--trainer.max_epochs", 1, cwd=tmp_path)
    assert result.status == 0
    shutil.rmtree(begun / "checkpoints")
    (begun / "config.yaml").touch()
    monkeypatch.delenv("FGZOO_RUN_FOLDER", raising=False)
    assert "runs/begun holds" in fgzoo("fit", "--resume", "last", "--trainer.max_epochs", 1, cwd=tmp_path).out


def test_the_newest_run_is_called_last(trained: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "runs")
    assert "runs/cub-baseline/000 is done already" in fgzoo("fit", "--resume", "last").out
    assert "runs/cub-baseline/000/report/index.html" in fgzoo("report", "last", *ON_CPU[:2], "--skip-duplicates").out
    assert "mine.safetensors: " in fgzoo("publish", "last", "--name", "mine", "--licence", "MIT").out


@pytest.mark.parametrize("arguments", [[], ["--config", "birds/rra"], ["--ckpt_path", "last"]])
def test_test_without_a_trained_run_is_refused(arguments: list[str]) -> None:
    result = fgzoo("test", *arguments)
    assert result.status == 2
    assert "trained" in result.err


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_no_verb_names_an_option_of_another_one_for_a_checkpoint(verb: str) -> None:
    arguments = ["--ckpt_path", "last"] if verb == "test" else ["last", "photo.jpg"]
    assert fgzoo(verb, *arguments).err.startswith("fgzoo: checkpoint 'last': there is no trained run below ")


def test_a_missing_checkpoint_is_called_as_it_was_typed() -> None:
    said = fgzoo("fit", "--config", "birds", "--model", "baseline", "--ckpt_path", "best").err
    assert said.startswith("fgzoo: checkpoint 'best': there is no trained run below ")


def test_an_untrained_model_is_not_tested_in_python_either(plain: SimpleNamespace) -> None:
    data = FGVCDataModule("cub", plain.root, image_size=64, num_workers=0)
    model = create_model("baseline", 3, "test_efficientnet", pretrained=False)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    with pytest.raises(UntrainedError, match="never been trained"):
        trainer.test(model, data)


def test_other_classes_are_not_scored(trained: SimpleNamespace, tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    lines = (root / "classes.txt").read_text().replace("Indigo_Bunting", "Crow")
    (root / "classes.txt").write_text(lines)
    result = fgzoo("test", "--ckpt_path", trained.run, "--data.root", root)
    assert result.status == 2
    assert "class 1 is '002.Indigo_Bunting' there and '002.Crow' here" in result.err


def test_other_classes_of_the_same_number_are_not_taken_for_a_checkpoints(trained: SimpleNamespace, tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    lines = (root / "classes.txt").read_text().replace("Indigo_Bunting", "Crow")
    (root / "classes.txt").write_text(lines)
    tuned = ("fit", "--ckpt_path", trained.run, "--data.root", root, "--trainer.max_epochs", 1)
    result = fgzoo(*tuned)
    assert result.status == 2
    assert "class 1 is '002.Indigo_Bunting' there and '002.Crow' here" in result.err
    assert "--reset_head" in result.err
    assert fgzoo(*tuned, "--reset_head", "true").status == 0


# ---------------------------------------------------------------------- list and data


def test_list_as_json_names_methods_recipes_and_data_sets() -> None:
    found = json.loads(fgzoo("list", "--json").out)
    assert {"baseline", "rra", "rra-parent"} <= set(found["methods"])
    assert set(found["recipes"]) == set(RECIPES)
    assert set(found["datasets"]) == {"birds", "cub", "cars", "aircraft", "folder"}


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that declares two methods, the name of one being taken."""
    declared = tmp_path / "elsewhere-1.0.dist-info"
    declared.mkdir()
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (declared / "entry_points.txt").write_text("[fgzoo.methods]\nplain = elsewhere:Plain\nrra = elsewhere:Plain\n")
    (tmp_path / "elsewhere.py").write_text("from fgzoo.methods.baseline import Baseline\n\n\nclass Plain(Baseline):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("plug_in")
def test_a_method_of_an_installed_package_goes_by_its_name() -> None:
    found = json.loads(fgzoo("list", "methods", "--json").out)["methods"]
    assert found["plain"] == "elsewhere.Plain"
    assert found["rra"] == "fgzoo.methods.rra.RRA"
    assert resolved("--config", "cub", "--model", "plain")["model"]["class_path"] == "elsewhere.Plain"


@pytest.mark.usefixtures("plug_in")
def test_what_is_installed_is_read_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("fgzoo.methods.entry_points", lambda group: calls.append(group) or [])
    assert available() == available()
    assert "plain" not in available()
    assert calls == ["fgzoo.methods"]


def test_list_takes_a_pattern() -> None:
    found = json.loads(fgzoo("list", "recipes", "cub*", "--json").out)
    assert set(found["recipes"]) == {name for name in RECIPES if name.startswith("cub")}


def test_info_says_what_must_lie_where() -> None:
    result = fgzoo("data", "info", "cub")
    assert result.status == 0
    assert "train_test_split.txt" in result.out


def test_info_says_what_lies_there(tmp_path: Path) -> None:
    result = fgzoo("data", "info", "cub", "--root", make_cub(tmp_path))
    assert "3 classes, 6 train, 6 test images" in result.out


def test_info_of_birds_needs_no_folder() -> None:
    assert "12 classes" in fgzoo("data", "info", "birds").out


def test_verify_of_an_incomplete_set_exits_1(tmp_path: Path) -> None:
    result = fgzoo("data", "verify", "cub", make_cub(tmp_path))
    assert result.status == 1
    assert "200" in result.out


def test_birds_have_no_files_to_verify(tmp_path: Path) -> None:
    result = fgzoo("data", "verify", "birds", tmp_path)
    assert result.status == 2
    assert "drawn from a seed" in result.err


def test_prepare_draws_birds_in_cubs_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fgzoo.data import synthetic

    small = synthetic.Birds(classes=3, train_per_class=2, test_per_class=1)
    monkeypatch.setattr(synthetic.SyntheticBirds.__init__, "__defaults__", (small,))
    assert fgzoo("data", "prepare", "birds", tmp_path / "birds").status == 0
    assert "3 classes, 6 train, 3 test images" in fgzoo("data", "info", "cub", "--root", tmp_path / "birds").out
