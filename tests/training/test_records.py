from __future__ import annotations

import csv
import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.sparse import coo_array

from fgzoo.checkpoints.run_folder import new_folder, newest_run, next_folder
from fgzoo.methods.baseline import Baseline
from fgzoo.training import report
from fgzoo.training.callbacks import RunRecord
from fgzoo.training.report import most_confused, per_class, write_report
from fgzoo.training.run_logger import RunLogger
from tests.builders import make_cub
from tests.command import fgzoo, fit, metrics, weights
from tests.small import small

#: Rows: true a, b, c. a: 3 of 4 hit; b: 1 of 2, c never predicted right, and never once for its own 2 images.
COUNTS = torch.tensor([[3, 1, 0], [1, 1, 0], [0, 2, 0]])
NAMES = ["a", "b", "c"]


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


# ---------------------------------------------------------------------- the report


def test_per_class_numbers() -> None:
    rows = per_class(COUNTS.numpy(), NAMES)
    # recall, precision and F1 = 2 hits / (true + predicted) by hand; c is never predicted, so it has no precision.
    assert rows == [
        ["a", 4, "0.7500", "0.7500", "0.7500"],
        ["b", 2, "0.5000", "0.2500", "0.3333"],
        ["c", 2, "0.0000", "", "0.0000"],
    ]


def test_most_confused_pairs_come_worst_first() -> None:
    assert most_confused(COUNTS.numpy(), NAMES) == [["c", "b", 2], ["a", "b", 1], ["b", "a", 1]]


def test_report_writes_the_counts_as_they_are(tmp_path: Path) -> None:
    write_report(tmp_path, "test", COUNTS, NAMES)
    assert read(tmp_path / "test_confusion.csv") == [
        ["true \\ predicted", "a", "b", "c"],
        ["a", "3", "1", "0"],
        ["b", "1", "1", "0"],
        ["c", "0", "2", "0"],
    ]


def test_report_says_how_many_images_each_class_was_trained_on(tmp_path: Path) -> None:
    for counts, shown in (([7, 1, 2], ["7", "1", "2"]), (None, ["", "", ""])):
        write_report(tmp_path, "test", COUNTS, NAMES, counts)
        table = read(tmp_path / "test_per_class.csv")
        assert table[0] == ["class", "images", "recall", "precision", "f1", "training images"]
        assert [row[-1] for row in table[1:]] == shown


def test_a_run_of_unequal_classes_reports_their_tail(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    assert fit(root, "--output", tmp_path / "run", "--data.tail", 1, "--model.logit_adjustment", 1).status == 0
    assert fgzoo("test", "--ckpt_path", tmp_path / "run").status == 0
    table = read(tmp_path / "run" / "test_per_class.csv")
    assert sorted(row[-1] for row in table[1:]) == ["1", "2", "3"]
    rarest = next(row for row in table if row[-1] == "1")
    assert float(metrics(tmp_path / "run")[-1]["test/tail"]) == pytest.approx(float(rarest[2]), abs=1e-4)


def test_report_returns_files_that_exist(tmp_path: Path) -> None:
    paths = write_report(tmp_path, "val", COUNTS, NAMES)
    assert len(paths) == 5
    assert all(path.stat().st_size > 0 for path in paths)


def test_a_class_name_is_text_not_mathematics(tmp_path: Path) -> None:
    assert len(write_report(tmp_path, "test", COUNTS, ["cost $a_b_c$", "$\\frac$", "c"])) == 5


@pytest.mark.parametrize("letters", ["Animalia_Arthropoda_Insecta_Lepidoptera_Nymphalidae_Danaus_", "W" * 80])
def test_long_class_names_leave_room_for_the_picture(letters: str, tmp_path: Path) -> None:
    names = [f"{index:05}_{letters}{index}" for index in range(len(NAMES))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(write_report(tmp_path, "test", COUNTS, names)) == 5
    assert read(tmp_path / "test_per_class.csv")[1][0] == names[0]


def test_a_name_that_no_font_can_write_is_its_row_in_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    draw = report._draw_confusion
    monkeypatch.setattr(report, "_draw_confusion", lambda counts, names, split: drawn.append(names) or draw(counts, names, split))
    monkeypatch.setattr("fgzoo.interpret.fonts._likely_first", list)
    with pytest.warns(UserWarning, match="no font of this machine knows 红雀;") as caught:
        write_report(tmp_path, "test", COUNTS, ["a", "红雀", "c"])
    assert drawn == [["a", "row 2", "c"]]
    assert len(caught) == 1
    assert read(tmp_path / "test_per_class.csv")[2][0] == "红雀"


def test_a_picture_that_cannot_be_drawn_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no canvas")

    monkeypatch.setattr(report, "_draw_confusion", fail)
    with pytest.warns(UserWarning, match=r"test_confusion\.png cannot be drawn: no canvas"):
        written = write_report(tmp_path, "test", COUNTS, NAMES)
    assert [path.name for path in written] == [
        "test_confusion.csv",
        "test_per_class.csv",
        "test_confused.csv",
        "test_per_class.png",
    ]


def test_of_many_classes_the_pairs_that_came_are_written(tmp_path: Path) -> None:
    counts = coo_array(([3, 1, 2], ([0, 4999, 17], [0, 17, 4999])), shape=(5000, 5000))
    write_report(tmp_path, "test", counts, [f"class {index}" for index in range(5000)])
    expected = [["class 0", "class 0", "3"], ["class 17", "class 4999", "2"], ["class 4999", "class 17", "1"]]
    assert read(tmp_path / "test_confusion.csv") == [["true", "predicted", "images"], *expected]
    assert read(tmp_path / "test_confused.csv")[1] == ["class 17", "class 4999", "2"]
    assert (tmp_path / "test_confusion.png").stat().st_size > 0


# ---------------------------------------------------------------------- metrics.csv


def test_values_of_one_step_share_a_row(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"val/top1": 0.5, "epoch": 0}, step=3)
    logger.log_metrics({"train/loss": 1.25, "epoch": 0}, step=3)
    assert metrics(tmp_path) == [{"epoch": "0", "step": "3", "val/top1": "0.5", "train/loss": "1.25"}]


def test_values_that_are_logged_twice_share_a_row(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for _ in range(2):
        logger.log_metrics({"train/loss": 1.25, "epoch": 0}, step=3)
    assert metrics(tmp_path) == [{"epoch": "0", "step": "3", "train/loss": "1.25"}]


def test_other_values_of_one_step_have_a_row_of_their_own(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for value in (1.25, 1.5):
        logger.log_metrics({"train/loss": value, "epoch": 0}, step=3)
    assert [row["train/loss"] for row in metrics(tmp_path)] == ["1.25", "1.5"]


def test_a_new_column_keeps_the_rows_before_it(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"a": 1, "epoch": 0}, step=0)
    logger.log_metrics({"b": 2, "epoch": 1}, step=1)
    assert [row.get("a") for row in metrics(tmp_path)] == ["1", None]


def test_a_second_logger_continues_the_file(tmp_path: Path) -> None:
    RunLogger(tmp_path).log_metrics({"a": 1, "epoch": 0}, step=0)
    RunLogger(tmp_path).log_metrics({"a": 2, "epoch": 1}, step=1)
    assert [row["a"] for row in metrics(tmp_path)] == ["1", "2"]


def test_a_row_is_appended_not_written_with_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"a": 0, "b": 0, "epoch": 0}, step=0)
    monkeypatch.setattr("fgzoo.training.run_logger.atomic_write", lambda _: pytest.fail("the file was written anew"))
    for step in range(1, 4):
        logger.log_metrics({"a": step, "epoch": 0}, step=step)
        logger.log_metrics({"b": step, "epoch": 0}, step=step)
    assert metrics(tmp_path) == [{"epoch": "0", "step": str(step), "a": str(step), "b": str(step)} for step in range(4)]


def test_what_is_logged_without_an_epoch_belongs_to_the_trainers(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.trainer = SimpleNamespace(current_epoch=7)  # type: ignore[assignment]
    logger.log_metrics({"lr": 0.5}, step=3)
    assert [row["epoch"] for row in metrics(tmp_path)] == ["7"]


def test_a_row_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for step in range(2):
        logger.log_metrics({"a": 0.123456, "epoch": 0}, step=step)
    file = tmp_path / "metrics.csv"
    file.write_bytes(file.read_bytes()[:-5])
    RunLogger(tmp_path).log_metrics({"a": 1, "epoch": 0}, step=1)
    assert [(row["step"], row["a"]) for row in metrics(tmp_path)] == [("0", "0.123456"), ("1", "1")]


def test_forgetting_drops_a_step_and_what_follows_but_no_test(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for epoch in range(3):
        logger.log_metrics({"a": epoch, "epoch": epoch}, step=epoch)
    logger.log_metrics({"test/top1": 1, "epoch": 2}, step=2)
    logger.forget_from(1)
    assert [row["epoch"] for row in logger.rows] == ["0", "2"]


def test_a_second_test_of_one_checkpoint_replaces_the_first(tmp_path: Path) -> None:
    for value in (0.25, 0.5):
        logger = RunLogger(tmp_path)
        logger.place = (4, 9)
        logger.log_metrics({"test/top1": value, "epoch": 0}, step=0)
    assert metrics(tmp_path) == [{"epoch": "4", "step": "9", "test/top1": "0.5"}]


def test_tests_of_two_checkpoints_stand_side_by_side(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for epoch in (4, 5):
        logger.place = (epoch, 9)
        logger.log_metrics({"test/top1": 0.5}, step=0)
    assert [row["epoch"] for row in metrics(tmp_path)] == ["4", "5"]


# ---------------------------------------------------------------------- folders


def test_runs_are_numbered_after_the_highest(tmp_path: Path) -> None:
    for name in ("000", "007", "notes"):
        (tmp_path / name).mkdir()
    assert next_folder(tmp_path) == tmp_path / "008"


def test_the_first_run_is_000(tmp_path: Path) -> None:
    assert next_folder(tmp_path / "new") == tmp_path / "new" / "000"


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> Path:
        together.wait()
        return new_folder(tmp_path / "cub-rra")

    with ThreadPoolExecutor(8) as pool:
        assert sorted(path.name for path in pool.map(start, range(8))) == [f"{number:03d}" for number in range(8)]


@pytest.mark.parametrize(("arguments", "status"), [(["--trainer.fast_dev_run", "2"], 0), (["--data.root", "nowhere"], 2)])
def test_what_is_no_run_leaves_no_folder(arguments: list[str], status: int, tmp_path: Path) -> None:
    result = fit(make_cub(tmp_path / "cub"), *arguments, cwd=tmp_path)
    assert result.status == status, result.err
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_checkpoint_is_not_the_newest(tmp_path: Path) -> None:
    (tmp_path / "000" / "checkpoints").mkdir(parents=True)
    (tmp_path / "000" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "001").mkdir()
    assert newest_run(tmp_path) == tmp_path / "000"


# ---------------------------------------------------------------------- moving average and clipping


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cub(tmp_path_factory.mktemp("cub"))


def test_the_moving_average_is_what_is_saved(root: Path, tmp_path: Path) -> None:
    # One epoch is two steps, and the average starts as the first step's weights: w_ema = 0.25 w_1 + 0.75 w_2.
    snapshots = []
    end = Baseline.on_train_batch_end

    def keep(self: Baseline, *args: object) -> None:
        end(self, *args)
        snapshots.append(self.network.classifier.weight.detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Baseline, "on_train_batch_end", keep)
        assert fit(root, "--output", tmp_path / "run", "--model.ema_decay", 0.25).status == 0
    expected = 0.25 * snapshots[0] + 0.75 * snapshots[1]
    assert len(snapshots) == 2
    assert not torch.equal(snapshots[0], snapshots[1])
    torch.testing.assert_close(weights(tmp_path / "run")["network.classifier.weight"], expected, rtol=1e-6, atol=1e-8)


def test_without_a_moving_average_the_last_step_is_saved(root: Path, tmp_path: Path) -> None:
    assert fit(root, "--output", tmp_path / "ema", "--model.ema_decay", 0.25).status == 0
    assert fit(root, "--output", tmp_path / "plain").status == 0
    name = "network.classifier.weight"
    assert not torch.equal(weights(tmp_path / "ema")[name], weights(tmp_path / "plain")[name])


def test_clipping_bounds_the_gradient_that_is_applied(root: Path) -> None:
    norms = []

    class Watcher(torch.optim.SGD):
        def step(self, closure: object = None) -> object:
            loss = closure() if callable(closure) else None
            found = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.stack(found).norm()))
            return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Watcher)
        assert fit(root, "--model.clip_norm", 0.01).status == 0
        assert fit(root).status == 0
    clipped, free = norms[:2], norms[2:]
    assert clipped == pytest.approx([0.01, 0.01], rel=1e-3)
    assert min(free) > 0.02


def test_the_cost_names_the_device_that_trained_wherever_the_model_is_by_then(tmp_path: Path) -> None:
    on_a_gpu = SimpleNamespace(root_device=torch.device("meta"))
    trainer = SimpleNamespace(is_global_zero=True, strategy=on_a_gpu, current_epoch=2, world_size=1)
    record = RunRecord(tmp_path, None)
    record.on_fit_start(trainer, small())  # type: ignore[arg-type]
    record.on_fit_end(trainer, small())  # type: ignore[arg-type]
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert (cost["device"], cost["epochs"]) == ("meta", 2)
