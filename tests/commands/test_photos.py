"""`fgzoo fit PHOTOS`: what it chooses, and the whole way from a folder to a tested classifier."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fgzoo import load
from fgzoo.commands.photos import choose
from fgzoo.methods.rra import RRA
from fgzoo.prediction.rejection import Calibration
from fgzoo.reporting.markup import few_below
from fgzoo.reporting.report import write_report
from fgzoo.training.arguments import settings_of
from tests.builders import make_cub, save
from tests.command import IMAGES, MACHINE, NETWORK, breaking_off, fgzoo, metrics

TINY = (*NETWORK, *IMAGES, *MACHINE, "--trainer.max_epochs", 1)


def photos(folder: Path, classes: int = 3, per_class: int = 10) -> Path:
    for target in range(classes):
        for index in range(per_class):
            save(folder / f"species {target}" / f"{index}.jpg", target, index)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("photos")
    photos(folder / "my photos")
    return SimpleNamespace(folder=folder, result=fgzoo("fit", "my photos", "--model.steps", 2, *TINY, cwd=folder))


# ---------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("typed", "gpu", "configs"),
    [
        ([], False, ["folder/rra", "small"]),
        ([], True, ["folder/rra"]),
        (["--model", "wsdan"], False, ["folder/wsdan", "small"]),
        (["--model=wsdan"], True, ["folder/wsdan"]),
        (["--model", "mypkg.Peak"], False, ["folder", "small"]),
        (["--config", "small"], True, ["folder"]),
        (["--config", "cub/iagn"], False, ["folder"]),
    ],
)
def test_method_and_preset_are_chosen_where_none_is_named(
    trained: SimpleNamespace, typed: list[str], gpu: bool, configs: list[str]
) -> None:
    root = str(trained.folder / "my photos")
    chosen, _ = choose(root, typed, gpu)
    assert [value for option, value in pairwise(chosen) if option == "--config"] == configs
    assert chosen[chosen.index("--data.root") + 1] == root


@pytest.mark.parametrize("typed", [["--config", "birds/baseline"], ["--config", "cub/baseline", "--config", "small"]])
def test_photos_are_trained_on_whatever_data_a_config_is_of(trained: SimpleNamespace, typed: list[str]) -> None:
    root = str(trained.folder / "my photos")
    chosen, _ = choose(root, typed, gpu=False)
    assert settings_of([*chosen, *typed])["data"]["name"] == "folder"


def test_a_run_that_goes_on_takes_no_photos(trained: SimpleNamespace) -> None:
    result = fgzoo("fit", "my photos", "--resume", "runs/folder-rra/000", cwd=trained.folder)
    assert result.err == "fgzoo: fit my photos --resume: a run continues with its own photos; leave my photos away\n"


def test_names_in_brackets_are_names(tmp_path: Path) -> None:
    photos(tmp_path / "set [b]", per_class=2)
    result = fgzoo("fit", "set [b]", "--model", "baseline", *TINY, "--output", "best", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "set [b]: 3 classes, 6 training images" in result.out
    assert "Next: fgzoo predict " in result.out


def test_a_gpu_gets_the_full_recipe_and_is_told_so(trained: SimpleNamespace) -> None:
    root = str(trained.folder / "my photos")
    said = "Recipe: folder/rra, the method's own of 90 epochs, as there is a GPU (shorter: --config small)."
    assert said in choose(root, [], True)[1]
    for typed, gpu in (([], False), (["--config", "small"], True), (["--model", "mypkg.Peak"], True)):
        assert "Recipe:" not in " ".join(choose(root, typed, gpu)[1])


def test_an_official_data_set_has_its_own_recipe_and_split(tmp_path: Path) -> None:
    chosen, said = choose(str(make_cub(tmp_path)), [], True)
    assert chosen == ["--config", "cub/rra", "--data.root", str(tmp_path / "CUB_200_2011")]
    assert "CUB-200-2011" in said[0]


def test_only_what_is_missing_is_set_apart(tmp_path: Path) -> None:
    for part in ("train", "Test"):
        photos(tmp_path / "parted" / part)
    chosen, _ = choose(str(tmp_path / "parted"), [], False)
    assert "--data.val_fraction" in chosen
    assert "--data.test_fraction" not in chosen
    assert "--data.val_fraction" not in choose(str(tmp_path / "parted"), ["--data.folds", "5"], False)[0]


@pytest.mark.parametrize(("typed", "named"), [(["--config", "small"], "rra"), (["--config", "cub/iagn"], None)])
def test_a_config_that_names_a_method_keeps_it(trained: SimpleNamespace, typed: list[str], named: str | None) -> None:
    chosen, _ = choose(str(trained.folder / "my photos"), typed, False)
    assert (chosen[chosen.index("--model") + 1] if "--model" in chosen else None) == named


def test_every_choice_is_said_with_its_reason(trained: SimpleNamespace) -> None:
    root = str(trained.folder / "my photos")
    said = "\n".join(choose(root, [], False)[1])
    assert all(word in said for word in ("3 classes", "20% of each class", "rra", "--model", "small", "no GPU"))
    assert "Method" not in "\n".join(choose(root, ["--model", "wsdan"], False)[1])


def test_what_is_typed_is_said(trained: SimpleNamespace) -> None:
    typed = ["--data.val_fraction", "0", "--data.test_fraction=0.5"]
    said = choose(str(trained.folder / "my photos"), typed, False)[1][0]
    assert "50% of each class are set apart for testing" in said
    assert "for validation" not in said


# ---------------------------------------------------------------------- the whole way


def test_a_folder_becomes_a_tested_classifier(trained: SimpleNamespace) -> None:
    assert trained.result.status == 0, trained.result.err
    run = trained.folder / "runs" / "folder-rra" / "000"
    with np.load(run / "test_probabilities.npz") as scored:
        right, count = (scored["predicted"] == scored["targets"]).sum(), len(scored["targets"])
    assert count == 6
    assert (run / "val_probabilities.npz").is_file()
    assert f"{100 * right / count:.1f} % of 6 test images right (95 % interval " in trained.result.out


def test_the_report_is_written(trained: SimpleNamespace) -> None:
    page = trained.folder / "runs" / "folder-rra" / "000" / "report" / "index.html"
    assert "species 1" in page.read_text()
    assert "Report: runs/folder-rra/000/report/index.html" in trained.result.out


def test_what_is_unknown_is_said(trained: SimpleNamespace) -> None:
    assert "Called unknown: photos below a cosine of" in trained.result.out
    said = few_below(load(trained.folder / "runs/folder-rra/000").calibration)
    assert said == "as none of only 3 held-out photos is, too few to choose it by"
    assert said in trained.result.out
    assert said in (trained.folder / "runs/folder-rra/000/report/index.html").read_text()


@pytest.mark.parametrize(
    ("images", "said"), [(20, "none of only 20 held-out photos is"), (21, "at most 5 % of 21 held-out photos are")]
)
def test_a_threshold_is_said_to_reject_what_it_rejects(images: int, said: str) -> None:
    logits, targets = torch.randn(images, 3, generator=torch.Generator().manual_seed(0)), torch.arange(images) % 3
    found = Calibration.fit(logits, targets)
    assert said in few_below(found)
    assert (found.scores(logits).double() < found.threshold()).any() == (images > 20)


# ---------------------------------------------------------------------- a class called unknown


def test_a_class_called_unknown_is_noted(tmp_path: Path) -> None:
    photos(tmp_path / "photos", per_class=4)
    (tmp_path / "photos/species 1").rename(tmp_path / "photos/unknown")
    result = fgzoo("fit", "photos", "--model", "baseline", *TINY, "--trainer.limit_train_batches", 1, cwd=tmp_path)
    assert "Note: a class is called unknown, as predict calls what it does not know; its column accepted tells them" in result.out


def test_one_epoch_is_one_epoch(trained: SimpleNamespace) -> None:
    page = (trained.folder / "runs/folder-rra/000/report/index.html").read_text()
    assert all("1 epoch" in text and "1 epochs" not in text for text in (trained.result.out, page))


def test_the_next_commands_are_said(trained: SimpleNamespace) -> None:
    assert all(f"fgzoo {verb} runs/folder-rra/000" in trained.result.out for verb in ("predict", "explain", "export"))


STEPS = ("--model.steps", 2)


def epochs_of_tests(run: Path) -> list[str]:
    return [row["epoch"] for row in metrics(run) if "test/top1" in row]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two epochs that Ctrl-C ended in its second one."""
    folder = tmp_path_factory.mktemp("interrupted")
    photos(folder / "photos")
    with breaking_off(RRA, epoch=1, batch=1):
        result = fgzoo("fit", folder / "photos", *STEPS, *TINY, "--trainer.max_epochs", 2, "--output", "run", cwd=folder)
    return SimpleNamespace(folder=folder, result=result)


def test_who_interrupts_is_told_how_to_go_on(interrupted: SimpleNamespace) -> None:
    assert (interrupted.result.status, interrupted.result.err) == (130, "fgzoo: interrupted; go on by fgzoo fit --resume run\n")


def test_the_report_of_an_unfinished_run_says_how_far_it_came(interrupted: SimpleNamespace) -> None:
    page = write_report(interrupted.folder / "run", interrupted.folder / "report").page.read_text()
    assert "This training ended after 1 of 2 epochs, before its end. <code>fgzoo fit --resume run</code> goes on." in page
    assert "held out for validation, either" not in page
    assert "fgzoo test" not in page


def test_an_unfinished_run_is_not_published_though_it_was_tested(
    interrupted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(interrupted.folder / "run", "run")
    assert fgzoo("test", "--ckpt_path", "run").status == 0
    result = fgzoo("publish", "run", "--name", "mine", "--output", "zoo", "--licence", "CC0-1.0")
    assert result.status == 2
    assert result.err.startswith("fgzoo: publish: run has not been trained to its end; go on by `fgzoo fit --resume run`")
    assert not Path("zoo").exists()


def test_who_interrupts_after_the_last_epoch_is_told_how_to_go_on(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgzoo.training.command.learn_known_classes", raising(KeyboardInterrupt))
    result = fgzoo("fit", trained.folder / "my photos", "--model", "baseline", *TINY, "--output", "run")
    assert (result.status, result.err) == (130, "fgzoo: interrupted; go on by fgzoo fit --resume run\n")


def test_a_resumed_run_finishes_what_fit_photos_began_and_tests_once(
    interrupted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(interrupted.folder / "run", "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgzoo.commands.photos.write_report", raising(KeyboardInterrupt))
        broken = fgzoo("fit", "--resume", run)
    assert (broken.status, epochs_of_tests(run)) == (130, ["1"])
    assert "go on by fgzoo fit --resume run" in broken.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RRA, "test_step", raising(AssertionError))
        again = fgzoo("fit", "--resume", run)
    assert again.status == 0, again.err
    assert epochs_of_tests(run) == ["1"]
    assert "is done already" in again.out
    assert "fgzoo test" not in again.out
    assert all(said in again.out for said in ("of 6 test images right", "Called unknown", "Report: run/report/index.html"))
    more = fgzoo("fit", "--resume", run, "--trainer.max_epochs", 3)
    assert more.status == 0, more.err
    assert epochs_of_tests(run) == ["1", "2"]


def raising(error: type[BaseException]) -> Callable[..., None]:
    def broken(*_: object, **__: object) -> None:
        raise error

    return broken


@pytest.mark.parametrize(
    "variables", [{"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0"}, {"SLURM_NTASKS": "8"}], ids=["torchrun", "SLURM"]
)
def test_processes_that_something_else_started_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = fgzoo("fit", photos(tmp_path / "photos"), *TINY, cwd=tmp_path)
    assert result.status == 2
    assert "--config folder" in result.err
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = fgzoo("fit", "nowhere", *TINY, cwd=tmp_path)
    assert result.status == 2
    assert "nowhere" in result.err


def test_one_broken_photo_does_not_end_it(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    for path in (root / "species 1").iterdir():
        path.write_bytes(b"no photo") if path.stem in ("0", "4", "7") else None
    result = fgzoo("fit", root, "--model", "baseline", *TINY, "--output", "run", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "Note: 3 of 30 images cannot be read and are left out: species 1/0.jpg, " in result.out
    for path in (root / "species 1").glob("[047].jpg"):
        path.unlink()
    assert fgzoo("test", "--ckpt_path", "run", cwd=tmp_path).status == 0
    assert fgzoo("fit", "--resume", "run", cwd=tmp_path).status == 0
    assert "species 1/" in (tmp_path / "run/report/index.html").read_text()


def test_classes_of_one_image_are_trained_on_and_not_tested(tmp_path: Path) -> None:
    result = fgzoo("fit", photos(tmp_path / "photos", per_class=1), "--model", "baseline", *TINY, "--output", "run", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "no class has a second image, so that none is set apart" in result.out
    assert "Not tested: there is no test image." in result.out
    assert (tmp_path / "run/report/index.html").is_file()
