"""The speed benchmarks: their arithmetic, what they count, and that a run is timed where it should be."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fgzoo.errors import UsageError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module; scripts import their neighbours by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load("common", monkeypatch)


@pytest.fixture
def throughput(common: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    load("data_loading", monkeypatch)
    return load("throughput", monkeypatch)


@pytest.fixture
def scaling(common: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return load("scaling", monkeypatch)


@pytest.fixture
def cost(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    load("accuracy_plan", monkeypatch)
    return load("cost", monkeypatch)


@pytest.fixture
def interpretability(common: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return load("interpretability", monkeypatch)


def arguments(module: Any, *typed: str) -> Any:
    return module.arguments().parse_args(["--device", "cpu", *typed])


# ---------------------------------------------------------------------- the cost of a run


def test_a_run_costs_its_steps(cost: Any) -> None:
    cell = SimpleNamespace(epochs=10, train_images=1600)
    bill = cost.Bill(cell, None, batch=16, step=0.5, gradients=0.0, reduces=1)
    assert bill.seconds(1) == 10 * 100 * 0.5
    # Nothing to send but 14 hops of 5 µs, which the backward pass hides.
    assert bill.seconds(8) == pytest.approx(bill.seconds(1) / 8)
    assert bill.seconds(8, overlapped=False) == pytest.approx((0.5 + 70e-6) * 1000 / 8)


def test_a_step_takes_three_forward_passes_of_all_its_images(cost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = cost.read_plan("full")
    counted = SimpleNamespace(of=lambda cell: cost.Cost(25.0, test_gmac=16.0, train_gmac=64.0, passes=3.0, backbone_gmac=16.0))
    cell = next(cell for cell in cost.cells_of(plan, counted) if cell.method == "iagn")
    bill = cost.bill(cell, counted, gmacs=1000.0)
    assert bill.step == pytest.approx(bill.batch * 3 * 64 / 1000)
    assert (bill.gradients, bill.reduces) == (100e6, 4)


# ---------------------------------------------------------------------- the model of the communication


def test_one_gpu_communicates_nothing(scaling: Any) -> None:
    found = scaling.predict(0.1, 100e6, 1)
    assert found.communication == 0
    assert found.step == found.overlapped == 0.1


def test_prediction_follows_the_ring(scaling: Any) -> None:
    links = scaling.Links(gpus_per_node=8, inside=400e9, between=50e9, latency=1e-6, backward=0.5)
    inside = scaling.predict(0.1, 200e6, 8, links=links)
    # 2 * 7/8 * 200 MB / 400 GB/s = 0.875 ms, and 14 hops of 1 µs.
    assert inside.communication == pytest.approx(0.889e-3)
    assert inside.step == pytest.approx(100.889e-3)
    assert inside.overlapped == pytest.approx(0.1)
    # 2 * 63/64 * 200 MB / 50 GB/s = 7.875 ms, and 126 hops.
    assert scaling.predict(0.1, 200e6, 64, links=links).communication == pytest.approx(8.001e-3)


def test_several_steps_a_batch_reduce_as_often(scaling: Any) -> None:
    once, four = (scaling.predict(0.1, 200e6, 64, all_reduces=count).communication for count in (1, 4))
    assert four == pytest.approx(4 * once)


def test_what_the_backward_pass_cannot_hide_is_waited_for(scaling: Any) -> None:
    links = scaling.Links(latency=0.0, backward=0.5)
    # 2 * 63/64 * 2 GB / 50 GB/s = 78.75 ms beside a backward pass of 50 ms.
    assert scaling.predict(0.1, 2e9, 64, links=links).overlapped == pytest.approx(0.05 + 0.07875)


def test_scaling_stops_where_communication_is_longer(scaling: Any) -> None:
    links = scaling.Links(gpus_per_node=8, inside=450e9, between=50e9, latency=0.0)
    # 100 MB: 0.39 ms on 8 GPUs, 3.75 ms on 16.
    assert scaling.stops_scaling(3e-3, 100e6, links=links) == 16
    assert scaling.stops_scaling(5e-3, 100e6, links=links) is None


def test_a_global_batch_that_cannot_be_shared_is_a_row_with_its_error(scaling: Any) -> None:
    options = arguments(scaling, "--ranks", "1", "3", "--kinds", "strong", "--global-batch", "4", "--backbone", "test_resnet")
    kind, case = scaling.cases("baseline", options)[1]
    assert scaling.row(kind, case, scaling.launch(case, seconds=1), None)["note"] == "the global batch cannot be shared equally"


# ---------------------------------------------------------------------- what is counted


def work(throughput: Any, method: str, stage: int = 0) -> Any:
    model = throughput.build(method, "test_resnet", 3)
    return throughput.count_work(model, stage, torch.randn(2, 3, 64, 64))


def test_the_baseline_is_one_pass(throughput: Any) -> None:
    found = work(throughput, "baseline")
    assert found.own == {"backbone": (1.0, 0.0)}
    assert found.whole == pytest.approx(1.0, abs=0.01)  # its classifier is small
    assert found.whole_untrained == 0


def test_frozen_backbones_count_as_passes_without_training(throughput: Any) -> None:
    frozen, trained = (work(throughput, "bcnn", stage) for stage in (0, 1))
    assert frozen.own == {"backbone": (0.0, 1.0), "second_backbone": (0.0, 1.0)}
    assert trained.own == {"backbone": (1.0, 0.0), "second_backbone": (1.0, 0.0)}
    assert frozen.whole == trained.whole > 1


def test_moved_bytes_of_a_convolution_and_a_norm(throughput: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8))
    assert throughput.moved_elements(network, torch.randn(2, 3, 4, 4)) == 3 * (3 + 8) * 16 + 8 * 8 * 16


# ---------------------------------------------------------------------- runs


def bcnn_cases(throughput: Any) -> Any:
    typed = "--methods bcnn --backbone test_resnet --size 32 --batch 2 --classes 3 --precision 32-true --warmup 1 --steps 2"
    return throughput.cases(arguments(throughput, *typed.split(), "--repeats", "2"))


@pytest.mark.parametrize(("stage", "name"), [(0, "new layers"), (1, "everything")])
def test_a_run_stays_in_the_stage_that_is_measured(
    throughput: Any, stage: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = bcnn_cases(throughput)[stage]
    assert case.stage_name == name
    model = throughput.build("bcnn", "test_resnet", 3)
    step, frozen = model.training_step, []

    def training_step(*given: Any) -> Any:
        frozen.append(model.network.backbone.frozen)
        return step(*given)

    monkeypatch.setattr(model, "training_step", training_step)
    batches = case.protocol.batches + throughput.keep_to_stage(model, stage)
    batch = throughput.random_batch(2, 32, 3, torch.device("cpu"))
    clock = throughput.train(case, model, batches, throughput.Repeated(batch, batches))[1]
    # A warm-up, two blocks of two steps, and the step whose start ends the second block.
    assert frozen == ([True] * 6 + [False] if stage == 0 else [True] + [False] * 6)
    assert len(clock.seconds()) == 2
    assert min(clock.seconds()) > 0
    assert clock.peak > 0


def test_a_case_that_fails_becomes_a_row(throughput: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing = replace(bcnn_cases(throughput)[0], backbone="no_such_net")
    row = throughput.row(failing, throughput.attempt(failing))
    assert "no_such_net" in row["note"]
    assert "Traceback" in capsys.readouterr().err


def test_results_say_how_they_came_about(common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["benchmarks/throughput.py", "--root", "/home/me/cub", "--data=cub", "--size", "64"])
    found = common.machine()
    text = common.heading(found, torch.device("cpu"), 7)
    common.deliver(text, {"machine": found}, "name")
    assert "python benchmarks/throughput.py --root PATH --data=cub --size 64" in (tmp_path / "results" / "name.md").read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert json.loads((tmp_path / "results" / "name.json").read_text())["machine"]["packages"]["torch"]


def test_messages_name_no_folder_of_this_machine(common: Any) -> None:
    assert common.cell("OSError: no file /home/me/data/a.jpg | b") == "OSError: no file a.jpg / b"


def test_spread_is_the_median_and_the_range(common: Any) -> None:
    assert common.spread([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)


# ---------------------------------------------------------------------- interpretability


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Results of three methods."""
    path = tmp_path / "interpretability.json"
    where = {"time": "then", "git": "abc", "command": "python benchmarks/interpretability.py"}
    results = [{"method": name, "top1": 1} for name in ("baseline", "iagn", "srbn")]
    path.write_text(json.dumps({"machine": where, "settings": {"data": "birds", "limit": None}, "results": results}))
    return path


def test_a_method_measured_anew_takes_its_place_among_the_others(interpretability: Any, written: Path) -> None:
    before = interpretability.read_results(written, {"data": "birds", "limit": None})
    results = interpretability.renewed(before, [{"method": "iagn", "top1": 2}, {"method": "rra", "top1": 2}])
    assert [(result["method"], result["top1"]) for result in results] == [("baseline", 1), ("iagn", 2), ("srbn", 1), ("rra", 2)]


def test_a_page_says_what_was_measured_before(interpretability: Any, written: Path) -> None:
    before = interpretability.read_results(written, {"data": "birds"})
    now = {"method": "iagn", "measured": {"time": "now", "git": "def", "command": ""}}
    lines = interpretability.earlier(interpretability.renewed(before, [now]), {"time": "now"})
    assert lines[0] == "Measured before, by fgzoo abc: baseline, srbn."


@pytest.mark.parametrize(
    ("known", "said", "silent"),
    [
        (("box",), [], ["part"]),
        (("box", "any part"), ["any part"], ["deciding part"]),
        (("box", "any part", "deciding part"), ["deciding part"], []),
    ],
)
def test_a_page_has_columns_of_the_regions_that_are_known(
    interpretability: Any, known: tuple[str, ...], said: list[str], silent: list[str]
) -> None:
    def judged() -> dict[str, dict[str, Any]]:
        regions = ("box", "any part", "deciding part")
        found = {
            region: {"mean": 0.5, "error": 0.1, "images": 4} if region in known else {"mean": None, "error": None, "images": 0}
            for region in regions
        }
        return {f"{measure}, {region}": found[region] for measure in ("pointing", "energy") for region in regions}

    top1 = {"mean": 0.5, "error": 0.1, "images": 4}
    maps = {"final map": judged(), "centred Gaussian": judged()}
    result = {"method": "rra", "top1": top1, "maps": maps, "single_maps": {"step 1": judged()}, "ratio": None, "notes": []}
    where = interpretability.machine()
    options = interpretability.arguments().parse_args(["--data", "birds" if "deciding part" in known else "cub"])
    page = interpretability.report([{"measured": where, **result}], options, where)
    assert all(region in page for region in said)
    assert not any(region in page for region in silent)
    assert "| step 1 (best, chosen afterwards) | 50.0 ± 10.0 |" in page


def test_results_measured_in_another_way_are_not_kept(interpretability: Any, written: Path) -> None:
    with pytest.raises(UsageError, match="another limit"):
        interpretability.read_results(written, {"data": "birds", "limit": 60})


# ---------------------------------------------------------------------- steps that take turns


def test_ratios_of_speed_are_taken_within_each_turn(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load("speed", monkeypatch)
    shared = ("test_resnet", 64, 2, 0)
    # A machine that is twice as slow in the second turn.
    found = {
        speed.Case(what, when, *shared): [{"user": s * user, "system": s * system, "resident_mb": 1e3} for s in (1, 2, 1)]
        for what, when, user, system in (
            (speed.PLAIN, "before", 0.03, 0.01), ("rra", "before", 0.06, 0.02), ("rra", "after", 0.02, 0.0)
        )
    }  # fmt: skip
    lines, rows = speed.report(found)
    assert lines == [
        [speed.PLAIN, "", "40.0 (40.0-80.0)", "10.0", "", "", "1,000"],
        ["rra", "before", "80.0 (80.0-160.0)", "20.0", "", "2.00 (2.00-2.00)", "1,000"],
        ["rra", "after", "20.0 (20.0-40.0)", "0.0", "0.25 (0.25-0.25)", "0.50 (0.50-0.50)", "1,000"],
    ]
    assert [row["what"] for row in rows] == [speed.PLAIN, "rra", "rra"]


def test_processes_that_take_turns_report_what_their_steps_took(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load("speed", monkeypatch)
    cases = [speed.Case(what, when, "test_resnet", 64, 2, 0) for what, when in ((speed.PLAIN, "before"), ("srbn", "after"))]
    found = speed.measure(cases, steps=1, blocks=2, show=lambda _: None)
    assert [len(found[case]) for case in cases] == [2, 2]
    assert all(block["user"] > 0 for case in cases for block in found[case])
