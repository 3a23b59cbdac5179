from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fgzoo.methods.baseline import Baseline
from tests.builders import make_cub
from tests.command import breaking_off, fgzoo, fit, metrics, weights
from tests.training.two_ranks import METHODS, unfinished
from tests.training.two_ranks import fit as fit_method

EPOCHS = 3
#: Everything that draws at random: augmentation, mixing, dropout; and everything with a state of its own.
RANDOM = (
    "--data.augmentation", "strong", "--model.dropout", 0.5, "--model.ema_decay", 0.9, "--model.optimizer", "adamw",
    "--model.schedule", "one_cycle", "--data.val_fraction", 0.34,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run that was never interrupted, and one that was, by Ctrl-C, and then resumed."""
    folder = tmp_path_factory.mktemp("resume")
    root = make_cub(folder / "data", per_class=6)
    whole, broken = folder / "whole", folder / "broken"
    assert fit(root, "--output", whole, *RANDOM, epochs=EPOCHS).status == 0
    with breaking_off(Baseline, epoch=1, batch=1):
        interrupted = fit(root, "--output", broken, *RANDOM, epochs=EPOCHS)
    rows = metrics(broken)
    resumed = fgzoo("fit", "--resume", broken)
    return SimpleNamespace(root=root, whole=whole, broken=broken, interrupted=interrupted, rows=rows, resumed=resumed)


def test_ctrl_c_exits_130(runs: SimpleNamespace) -> None:
    assert runs.interrupted.status == 130
    assert "interrupted" in runs.interrupted.err


def test_an_interrupted_run_keeps_its_finished_epochs(runs: SimpleNamespace) -> None:
    assert [row["epoch"] for row in runs.rows] == ["0"]


def test_a_resumed_run_needs_nothing_but_its_folder(runs: SimpleNamespace) -> None:
    assert runs.resumed.status == 0, runs.resumed.err
    assert f"{runs.broken} holds" in runs.resumed.out


def test_a_resumed_run_cost_what_both_parts_of_it_did(runs: SimpleNamespace, tmp_path: Path) -> None:
    assert json.loads((runs.broken / "cost.json").read_text())["epochs"] == EPOCHS
    run = shutil.copytree(runs.whole, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last)
    spent = content["callbacks"]["RunRecord"]
    assert 0 < spent["seconds"] <= json.loads((run / "cost.json").read_text())["seconds"]
    spent |= {"seconds": 1000.0, "cpu_seconds": 2000.0, "peak_memory_gib": 3000.0}
    torch.save(content, last)
    assert fgzoo("fit", "--resume", run, "--trainer.max_epochs", EPOCHS + 1).status == 0
    cost = json.loads((run / "cost.json").read_text())
    assert (cost["epochs"], cost["peak_memory_gib"]) == (EPOCHS + 1, 3000)
    assert 1000 < cost["seconds"] < 1100
    assert 2000 < cost["cpu_seconds"] < 2100


def test_a_resumed_run_has_every_row_once(runs: SimpleNamespace) -> None:
    assert metrics(runs.broken) == metrics(runs.whole)


def test_a_resumed_run_ends_in_the_same_bits(runs: SimpleNamespace) -> None:
    torch.testing.assert_close(weights(runs.broken), weights(runs.whole), rtol=0, atol=0)


def test_a_resumed_run_knows_its_best_epoch(runs: SimpleNamespace) -> None:
    best = Path("checkpoints") / "best.ckpt"
    torch.testing.assert_close(weights(runs.broken / best), weights(runs.whole / best), rtol=0, atol=0)


def test_resuming_keeps_the_config(runs: SimpleNamespace) -> None:
    mine, other = ((run / "config.yaml").read_text().splitlines()[1:] for run in (runs.broken, runs.whole))
    assert mine == other


def test_resuming_a_finished_run_says_so_and_changes_nothing(runs: SimpleNamespace) -> None:
    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in runs.whole.rglob("*") if path.is_file()}

    before = content()
    result = fgzoo("fit", "--resume", runs.whole)
    assert result.status == 0
    assert "is done already: 3 epochs, and --trainer.max_epochs 3 asks for no more." in result.out
    assert (
        "is done already: 3 epochs, and --trainer.max_epochs 1 asks for no more."
        in fgzoo("fit", "--resume", runs.whole, "--trainer.max_epochs", 1).out
    )
    assert f"Next: fgzoo test --ckpt_path {runs.whole}" in result.out
    assert content() == before


def test_a_run_that_was_tested_is_not_to_be_tested_again(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = shutil.copytree(runs.whole, tmp_path / "run")
    assert fgzoo("test", "--ckpt_path", run).status == 0
    result = fgzoo("fit", "--resume", run)
    assert "is done already" in result.out
    assert "fgzoo test" not in result.out


def test_resuming_with_workers_ends_in_the_same_bits(runs: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a step failed"), breaking_off(Baseline, 1, 1, StepFailedError):
        fit(runs.root, "--output", "run", *RANDOM, "--data.num_workers", 2, epochs=EPOCHS)
    assert fgzoo("fit", "--resume", tmp_path / "run").status == 0
    torch.testing.assert_close(weights(tmp_path / "run"), weights(runs.whole), rtol=0, atol=0)


@pytest.mark.parametrize("how", [("--data.balance", "sqrt"), ("--model.class_weights", "full"), ("--model.logit_adjustment", 1)])
def test_classes_of_unequal_size_resume_to_the_last_bit(runs: SimpleNamespace, tmp_path: Path, how: tuple[object, ...]) -> None:
    # One batch an epoch, so that every image of the deck counts.
    typed = (*RANDOM[:4], "--data.tail", 1, "--data.batch_size", 2, *how)
    assert fit(runs.root, "--output", tmp_path / "whole", *typed, epochs=EPOCHS).status == 0
    with breaking_off(Baseline, epoch=2, batch=0):
        assert fit(runs.root, "--output", tmp_path / "broken", *typed, epochs=EPOCHS).status == 130
    assert fgzoo("fit", "--resume", tmp_path / "broken").status == 0
    torch.testing.assert_close(weights(tmp_path / "broken"), weights(tmp_path / "whole"), rtol=0, atol=0)
    assert fit(runs.root, "--output", tmp_path / "plain", *typed[:-2], epochs=EPOCHS).status == 0
    assert metrics(tmp_path / "plain") != metrics(tmp_path / "whole")


class StepFailedError(RuntimeError):
    def __init__(self) -> None:
        super().__init__("a step failed")


def test_one_seed_gives_one_result(runs: SimpleNamespace, tmp_path: Path) -> None:
    assert fit(runs.root, "--output", "again", *RANDOM, epochs=EPOCHS).status == 0
    torch.testing.assert_close(weights(tmp_path / "again"), weights(runs.whole), rtol=0, atol=0)


def test_another_seed_gives_another_result(runs: SimpleNamespace, tmp_path: Path) -> None:
    assert fit(runs.root, "--output", "other", "--seed_everything", 1, *RANDOM, epochs=EPOCHS).status == 0
    name = "network.classifier.weight"
    assert not torch.equal(weights(tmp_path / "other")[name], weights(runs.whole)[name])


@pytest.mark.parametrize("name", METHODS)
def test_one_process_resumes_to_the_last_bit_whatever_its_workers(tmp_path: Path, name: str) -> None:
    whole = fit_method(name, tmp_path, workers=2)
    resumed = {checkpoint: fit_method(name, tmp_path, workers=0, resume=checkpoint) for checkpoint in unfinished(name)}
    torch.testing.assert_close(resumed, dict.fromkeys(resumed, whole), rtol=0, atol=0)
