from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.builders import make_cub
from tests.command import MACHINE, Result, fgzoo, fit


def assert_refused(result: Result, *said: str) -> None:
    """Exit status 2 and one line on stderr that says all of this."""
    assert result.status == 2
    assert result.err.startswith("fgzoo: ")
    assert result.err.count("\n") == 1
    assert [text for text in said if text not in result.err] == []


# ---------------------------------------------------------------------- typed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fti", "no verb 'fti'; did you mean 'fit'?"),
        ("fit --data.imge_size 64", "no option 'data.imge_size'; did you mean 'data.image_size'?"),
        ("fit --trainer.max_epoch 3", "no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("fit --model baseline --model.dropuot 0.1", "Baseline has no argument 'dropuot'; did you mean 'dropout'?"),
        ("fit --data.image_size big", "data.image_size: expected int, got 'big'"),
        ("fit --model.lr fast", "model.lr: expected float"),
        ("fit --data.augmentation strnog", "'paper', 'standard', 'strong'"),
        ("fit --data.name cubs", "data.name: expected Literal['birds', 'cub',"),
        ("fit --model rar", "'rar' is no method; did you mean 'rra'?"),
        ("fit --model nopackage.Method", "No module named 'nopackage'"),
        ("fit --model json.JSONDecoder", "'json.JSONDecoder' is no method"),
        (
            "fit --trainer.callbacks+=EarlyStoping",
            "trainer.callbacks: 'EarlyStoping' is no callback; did you mean 'EarlyStopping'?",
        ),
        ("fit --trainer.callbacks+=EarlyStopping", "EarlyStopping needs monitor; give --trainer.callbacks.monitor VALUE"),
        (
            "fit --trainer.callbacks+=EarlyStopping --trainer.callbacks.moniter x",
            "trainer.callbacks: EarlyStopping has no argument 'moniter'; did you mean 'monitor'?",
        ),
        ("fit --trainer.callbacks+=nobodys.Missing", "'nobodys.Missing' is no callback (No module named 'nobodys')"),
        ("fit --trainer.logger TensorBoardLoger", "'TensorBoardLoger' is no logger; did you mean 'TensorBoardLogger'?"),
        ("fit --trainer.logger CSVLogger", "CSVLogger needs save_dir; give --trainer.logger.save_dir VALUE"),
        ("fit --config cub/rar", "did you mean 'cub/rra'?"),
        ("fit --config cub", "which method?"),
        ("fit --config --model rra", "expected one argument"),
        ("fit --config cub --model baseline", "Give --data.root PATH"),
        ("fit --config cub --model baseline --data.root nowhere", "no folder nowhere"),
        ("fit --model.num_classes 5", "--model.num_classes: the data says"),
        ("fit --model.backbone test_resnett", "did you mean 'test_resnet'"),
        ("fit --model.label_smoothing 2", "model.label_smoothing: 2.0"),
        ("fit --data.batch_size 0", "data.batch_size: 0"),
        ("fit --data.num_workers -1", "data.num_workers: -1"),
        ("fit --data.image_size 16", "data.image_size: 16"),
        ("fit --data.folds 3 --data.val_fraction 0.2", "give one of them"),
        ("fit --data.folds 3 --data.fold 3", "data.fold: 3 of 3"),
        ("fit --data.resize 64", "data.resize: 64 is smaller"),
        ("fit --trainer.accelerator tpuu", "invalid accelerator name"),
        ("fit --trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp_spawn", "take ddp or ddp_fork"),
        ("fit --trainer.max_epochs -1", "give a number of epochs"),
        ("fit --config cub/rra --data.root \udcd6l", "fit: '\\udcd6l' is not valid UTF-8"),
        ("fit --ckpt_path nowhere.ckpt", "no file or run folder 'nowhere.ckpt'"),
        ("fit --resume nowhere", "nowhere is no run's folder"),
        ("fit --resume nowhere --config cub", "leave --config and --model away"),
        ("list recipe", "invalid choice: 'recipe'"),
        ("data info cubs", "'cub'"),
        ("data verify cub nowhere", "nowhere"),
    ],
)
def test_wrong_usage_is_named_in_one_line(arguments: str, said: str) -> None:
    assert_refused(fgzoo(*arguments.split()), said)


def test_a_logger_whose_package_is_missing_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("lightning.fabric.loggers.tensorboard", "fgzoo.training.command"):
        monkeypatch.setattr(f"{where}._TENSORBOARD_AVAILABLE", False)
        monkeypatch.setattr(f"{where}._TENSORBOARDX_AVAILABLE", False)
    asked = ("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "x")
    assert_refused(fgzoo("fit", *asked), "trainer: Neither `tensorboard` nor `tensorboardX` is available")


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in fgzoo("fit", "--config", "cub/rar", "--debug").err


# ---------------------------------------------------------------------- in files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"data: {name: cub\nmodel: [", "file.yaml, line 2"),
        (b"data: {name: cub, imge_size: 64}", "file.yaml: no option 'data.imge_size'; did you mean 'data.image_size'?"),
        (b"dta: {name: cub}", "file.yaml: no option 'dta.name'; did you mean 'data.name'?"),
        (b"data: {image_size: big}", "file.yaml: data.image_size: expected int, got 'big'"),
        (b"model: {class_path: fgzoo.methods.rra.RAR}", "file.yaml: model: 'fgzoo.methods.rra.RAR' is no method"),
        (
            b"model: {class_path: fgzoo.methods.rra.RRA, init_args: {stepz: 4}}",
            "file.yaml: model: RRA has no argument 'stepz'; did you mean 'steps'?",
        ),
        (b"model: {class_path: fgzoo.methods.rra.RRA, init_args: steps}", "file.yaml: model: "),
        (b"- 1\n- 2\n", "file.yaml holds no settings"),
        (b"", "file.yaml holds no settings"),
        (b"\x00\xff\xfe\x80", "file.yaml is no YAML file"),
        (b"time: 2001-99-99", "file.yaml is no YAML file: month must be in 1..12"),
        (b"data: !!int ''", "file.yaml is no YAML file"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file.yaml").write_bytes(content)
    model = [] if b"model" in content else ["--model", "baseline"]
    assert_refused(fgzoo("fit", "--config", "file.yaml", *model), said)


# ---------------------------------------------------------------------- data


def test_missing_images_are_found_before_training(tmp_path: Path) -> None:
    root = make_cub(tmp_path)
    for path in sorted((root / "images").rglob("*.jpg"))[:7]:
        path.unlink()
    result = fit(root)
    assert_refused(result, "7", "Black_footed_Albatross_0000_1.jpg")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_training_image_stops_the_run_by_name(tmp_path: Path, workers: int) -> None:
    root = make_cub(tmp_path)
    name = "002.Indigo_Bunting/Indigo_Bunting_0001_6.jpg"
    (root / "images" / name).write_text("no picture")
    result = fit(root, "--data.num_workers", workers)
    assert_refused(result, str(root / "images" / name), "train image 3", name)


def test_skipped_images_are_counted_warned_of_and_written_down(tmp_path: Path) -> None:
    root = make_cub(tmp_path)
    name = "002.Indigo_Bunting/Indigo_Bunting_0001_6.jpg"
    (root / "images" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="1 training images cannot be read and are skipped"):
        result = fit(root, "--data.on_error", "skip", "--output", "run", epochs=2)
    assert result.status == 0
    assert name in (tmp_path / "run" / "skipped.json").read_text()


def test_testing_never_skips(tmp_path: Path) -> None:
    root = make_cub(tmp_path)
    assert fit(root, "--output", "run", "--data.on_error", "skip").status == 0
    name = "001.Black_footed_Albatross/Black_footed_Albatross_0003_4.jpg"
    (root / "images" / name).write_bytes(b"")
    result = fgzoo("test", "--ckpt_path", "run", "--data.on_error", "skip")
    assert result.status == 2
    assert f"test image 1, '{name}'" in result.err


# ---------------------------------------------------------------------- the process and its folders


def test_pretrained_weights_that_cannot_be_fetched() -> None:
    result = fgzoo("fit", "--model.backbone", "resnet18", "--model.pretrained", "true")
    assert_refused(result, "weights of 'resnet18' could not be fetched", "--model.backbone_weights PATH")


def test_training_works_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert fit(make_cub(tmp_path)).status == 0


def test_training_works_with_no_device_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fit(make_cub(tmp_path), "--trainer.accelerator", "auto").status == 0


def test_data_is_only_read(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    # As root the mode does not bind, so the folder is compared, too.
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    result = fit(root)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    assert result.status == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    (tmp_path / "locked").mkdir(mode=0o555)
    assert_refused(fit(root, "--output", "locked/run"), "fit: locked/run cannot be made", "give another place by --output")


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_done(
    tmp_path: Path, trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.run, tmp_path / "run")
    (tmp_path / "theirs/runs/cub-baseline").mkdir(parents=True)
    access = os.access  # the superuser may write anywhere
    locked = {tmp_path / "theirs/runs/cub-baseline", tmp_path / "run", tmp_path / "run/report"}
    monkeypatch.setattr(os, "access", lambda path, mode, **how: Path(path).absolute() not in locked and access(path, mode, **how))
    for folder, typed in {"runs/cub-baseline": (), "run": ("--output", tmp_path / "run")}.items():
        result = fit(trained.root, *typed, cwd=tmp_path / "theirs")
        assert_refused(result, f"{folder} cannot be written to; give another place by --output")
    assert_refused(fgzoo("report", "run"), "run/report cannot be written to; give another place by --output")
    assert_refused(fgzoo("fit", "--resume", "run"), "--resume: run cannot be written to", "--ckpt_path run")


def test_a_home_that_cannot_be_written_to_is_nothing_to_be_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "fgzoo", "predict", "baseline_birds", "gone.jpg"]
    done = subprocess.run(command, env={**os.environ, "HOME": str(tmp_path / "file/home")}, capture_output=True, text=True)
    assert "atplotlib" not in done.stderr


def test_a_working_folder_that_cannot_be_written_says_where_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(base: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system", "runs")

    monkeypatch.setattr("fgzoo.training.command.new_folder", refuse)
    result = fgzoo("fit", *MACHINE)
    assert (result.status, result.err) == (
        1,
        "fgzoo: runs: Read-only file system; give a place that can be written by --output\n",
    )


def test_an_output_below_a_file_is_named(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    shutil.copy(root / "images.txt", tmp_path / "file")
    assert_refused(
        fit(root, "--output", "file/run"), "fit: file/run cannot be made (Not a directory); give another place by --output"
    )


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_every_test_image_counts_once_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    root = make_cub(tmp_path, classes=2, per_class=7)
    assert fit(root, "--output", "run", "--data.eval_batch_size", batch).status == 0
    assert fgzoo("test", "--ckpt_path", "run").status == 0
    lines = (tmp_path / "run" / "test_confusion.csv").read_text().splitlines()[1:]
    assert [sum(map(int, line.split(",")[1:])) for line in lines] == [3, 3]


def test_a_last_batch_of_one_is_not_trained_on(tmp_path: Path) -> None:
    # Seven images in batches of three; at 32 pixels batch-norm cannot take a batch of one.
    root = make_cub(tmp_path, classes=7, per_class=2)
    result = fit(root, "--data.image_size", 32, "--data.resize", 32)
    assert result.status == 0


def test_fewer_images_than_a_batch_still_train(tmp_path: Path) -> None:
    assert fit(make_cub(tmp_path, per_class=2), "--data.batch_size", 64, "--output", "run").status == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
