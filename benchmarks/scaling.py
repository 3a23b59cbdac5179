"""Training on several ranks of one machine: measured, and predicted for many GPUs.

Weak scaling keeps the batch of a rank, strong scaling that of all ranks together. Ranks are processes that Lightning joins by
DistributedDataParallel (NCCL on GPUs, gloo on CPUs), each with a batch in its device's memory; a single rank goes without it.
Methods with stages are measured in their last one. With --predict, a model of the communication says how long a step takes on 1,
8 and 64 GPUs.

    python benchmarks/scaling.py --ranks 1 2 --size 224                       # baseline, on this machine
    python benchmarks/scaling.py --ranks 1 --methods rra iagn --predict --write
    python benchmarks/scaling.py --predict --methods rra --step-ms 100 --batch 32   # measures nothing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    GIB,
    Protocol,
    Repeated,
    StepClock,
    build,
    cell,
    deliver,
    free_port,
    heading,
    keep_to_stage,
    machine,
    make_trainer,
    paper_backbone,
    parse,
    random_batch,
    spread,
    table,
    timed,
)

from fgzoo import FineGrainedClassifier, list_models
from fgzoo.data.datamodule import usable_cores
from fgzoo.training.command import default_precision, quieten

QUICK = {
    "backbone": "test_resnet", "size": 64, "batch": 2, "classes": 10, "precision": "32-true", "warmup": 1, "steps": 2,
    "repeats": 2, "ranks": [1, 2],
}  # fmt: skip
PREDICTED = (1, 8, 64)


# ---------------------------------------------------------------------- the model of the communication


class Links(NamedTuple):
    """What joins the GPUs. The defaults are makers' figures, not measurements.

    Attributes:
        gpus_per_node: GPUs of a machine.
        inside: Bytes a second and direction between GPUs of a machine: 450 GB/s, NVLink 4 of an H100 or H200.
        between: Bytes a second and direction between machines: 50 GB/s, one port of 400 Gbit/s a machine.
        latency: Seconds of a hop from GPU to GPU.
        backward: Share of a step in which gradients become ready one after the other. Two thirds: a backward pass has twice the
            multiply-adds of a forward pass.
    """

    gpus_per_node: int = 8
    inside: float = 450e9
    between: float = 50e9
    latency: float = 5e-6
    backward: float = 2 / 3


class Prediction(NamedTuple):
    """A training step on so many GPUs, in seconds; the batch of a GPU stays.

    Attributes:
        gpus: n.
        computation: The step on one GPU.
        communication: The all-reduces of its gradients.
        step: One after the other: nothing overlaps.
        overlapped: The communication runs beside the backward pass and is waited for afterwards.
    """

    gpus: int
    computation: float
    communication: float
    step: float
    overlapped: float


def predict(step: float, gradient_bytes: float, gpus: int, all_reduces: int = 1, links: Links | None = None) -> Prediction:
    r"""How long a step takes on several GPUs, from its time on one.

    A ring over all n GPUs reduces g bytes in

    $$t = 2 \frac{n - 1}{n} \frac{g}{b} + 2 (n - 1) l$$

    with hops of latency l and the slowest link's bandwidth b: `inside` within a machine, else the smaller of both. Without
    overlap a step takes T + k t for k all-reduces; with overlap (1 - s) T + max(s T, k t), where s is the backward pass's share.
    Not counted: that gradients are reduced in buckets, each with hops of its own, and the last one only at the end; that
    communication slows computation down; stragglers; data.

    Args:
        step: T, seconds of a step on one GPU, in all optimiser steps of a batch.
        gradient_bytes: g, bytes of all gradients.
        gpus: n.
        all_reduces: k, how often they are reduced for a batch: once an optimiser step.
        links: What joins the GPUs.

    Returns:
        The prediction.
    """
    links = links or Links()
    bandwidth = links.inside if gpus <= links.gpus_per_node else min(links.inside, links.between)
    ring = 2 * (gpus - 1) / gpus * gradient_bytes / bandwidth + 2 * (gpus - 1) * links.latency
    communication = all_reduces * ring
    backward = links.backward * step
    return Prediction(gpus, step, communication, step + communication, step - backward + max(backward, communication))


def stops_scaling(step: float, gradient_bytes: float, all_reduces: int = 1, links: Links | None = None) -> int | None:
    """From how many GPUs on communication takes longer than computation.

    Args:
        step: See [predict][], as the others.
        gradient_bytes: As there.
        all_reduces: As there.
        links: As there.

    Returns:
        The first such power of two; `None` if there is none up to 65,536.
    """
    sizes = (2**power for power in range(1, 17))
    return next((n for n in sizes if predict(step, gradient_bytes, n, all_reduces, links).communication > step), None)


def predictions(
    method: str, step: float, batch: int, gradient_bytes: int, all_reduces: int, links: Links
) -> tuple[list[list[Any]], str]:
    """Lines of the table for a method, and where it stops scaling."""
    lines = []
    for gpus in PREDICTED:
        found = predict(step, gradient_bytes, gpus, all_reduces, links)
        cells = [method, gpus, batch, f"{1e3 * step:.1f}", f"{gradient_bytes / 1e6:.1f}", all_reduces]
        cells.append(f"{1e3 * found.communication:.2f}")
        for seconds in (found.step, found.overlapped):
            cells += [f"{1e3 * seconds:.1f}", f"{gpus * batch / seconds:.0f}", f"{100 * step / seconds:.1f}"]
        lines.append(cells)
    end = stops_scaling(step, gradient_bytes, all_reduces, links)
    where = "on no number of GPUs up to 65,536" if end is None else f"from {end} GPUs on"
    share = 100 * found.communication / step
    return lines, (
        f"{method}, {batch} images a GPU: communication takes {share:.1f} % of the time of computation on {found.gpus} GPUs, and "
        f"longer than computation {where}."
    )


# ---------------------------------------------------------------------- one rank


@dataclass(frozen=True)
class Case:
    """What is measured by so many processes together; `batch` is a rank's."""

    method: str
    backbone: str
    ranks: int
    batch: int
    size: int
    precision: str
    compiled: bool
    classes: int
    device: str
    protocol: Protocol
    seed: int
    threads: int


def gradient_bytes_of(model: FineGrainedClassifier) -> int:
    """Bytes of all gradients, which DistributedDataParallel reduces at every optimiser step, whatever stands still in it."""
    return sum(p.numel() * p.element_size() for p in model.network.parameters() if p.requires_grad)


def measure(case: Case, rank: int) -> dict[str, Any]:
    """Train in this process beside the others; then reduce as many bytes alone."""
    torch.set_num_threads(case.threads)
    device = torch.device(case.device, rank) if case.device == "cuda" else torch.device("cpu")
    model = build(case.method, case.backbone, case.classes, case.compiled, case.seed)
    others = keep_to_stage(model, len(model.stages()) - 1)
    batches = case.protocol.batches + others
    clock = StepClock(case.protocol, skipped=others)
    more = {"devices": case.ranks, "strategy": "ddp"} if case.ranks > 1 else {}
    trainer = make_trainer(device, case.precision, batches, clock, case.seed, **more)
    batch = random_batch(case.batch, case.size, case.classes, device, case.seed + rank)
    trainer.fit(model, Repeated(batch, batches))
    size = gradient_bytes_of(model)
    found = {
        "step_s": clock.seconds(),
        "peak_gib": clock.peak / GIB,
        "gradient_bytes": size,
        "all_reduces": model.steps_per_batch,
    }
    if case.ranks > 1:
        flat = torch.zeros(size // 4, device=device)
        found["all_reduce_s"] = timed(lambda: torch.distributed.all_reduce(flat), device, case.protocol)
        torch.distributed.destroy_process_group()
    return found


# ---------------------------------------------------------------------- all ranks


def launch(case: Case, seconds: float) -> dict[str, Any]:
    """Start the ranks, wait for them, and return what the first one found; what fails is said under `error`."""
    if case.device == "cuda" and case.ranks > torch.cuda.device_count():
        return {"error": f"needs {case.ranks} GPUs, this machine has {torch.cuda.device_count()}"}
    if case.batch < 1:
        return {"error": "the global batch cannot be shared equally"}
    with tempfile.TemporaryDirectory() as folder:
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            ranks.extend(_start(case, Path(folder)))
            error = _wait(ranks, seconds)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if error is not None:
            log = (Path(folder) / f"{error}.log").read_text().strip()
            sys.stderr.write(log + "\n")
            return {"error": cell((log.splitlines() or ["ended without a word, or took too long"])[-1])}
        return json.loads((Path(folder) / "found.json").read_text())


def _start(case: Case, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(case.ranks)}
    joined |= {"OMP_NUM_THREADS": str(case.threads)}
    for rank in range(case.ranks):
        environment = {**os.environ, **joined, "LOCAL_RANK": str(rank)}
        command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), str(folder / "found.json")]
        with (folder / f"{rank}.log").open("wb") as log:
            yield subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _wait(ranks: list[subprocess.Popen[bytes]], seconds: float) -> int | None:
    """Wait for all: `None`, or the rank that failed (the others would wait for it) or was too slow."""
    end = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        if time.monotonic() > end:
            return codes.index(None)
        time.sleep(0.1)


def cases(method: str, options: argparse.Namespace) -> list[tuple[str, Case]]:
    """What is measured of a method: (weak or strong, case)."""
    total = options.global_batch or options.batch * max(options.ranks)
    threads = options.threads if options.device == "cpu" else max(1, usable_cores() // max(options.ranks))
    found = []
    for kind in options.kinds:
        for ranks in sorted(options.ranks):
            shared = 0 if total % ranks else total // ranks
            batch = options.batch if kind == "weak" else shared
            case = Case(
                method, options.backbone or paper_backbone(method), ranks, batch, options.size, options.precision,
                options.compile, options.classes, options.device, Protocol(options.warmup, options.steps, options.repeats),
                options.seed, threads,
            )  # fmt: skip
            found.append((kind, case))
    return found


def row(kind: str, case: Case, found: dict[str, Any], one: float | None) -> dict[str, str]:
    """A line of the table; `one` is the images/s of a single rank, or of the fewest measured, per rank."""
    cells = {"method": case.method, "backbone": case.backbone, "scaling": kind, "ranks": str(case.ranks)}
    cells["images a rank"] = str(case.batch)
    if "error" in found:
        return cells | {"note": found["error"]}
    step = spread(found["step_s"])
    speed = case.ranks * case.batch / step.median
    cells |= {
        "images/s": f"{speed:.1f}",
        "step, ms": f"{1e3 * step.median:.1f}",
        "spread": f"{1e3 * step.low:.1f}-{1e3 * step.high:.1f}",
        "efficiency %": f"{100 * speed / case.ranks / (one or speed / case.ranks):.1f}",
        "peak, GiB": f"{found['peak_gib']:.2f}",
        "gradients, MB": f"{found['gradient_bytes'] / 1e6:.1f}",
        "all-reduces a batch": str(found["all_reduces"]),
    }
    if "all_reduce_s" in found:
        reduce = spread(found["all_reduce_s"])
        sent = 2 * (case.ranks - 1) / case.ranks * found["gradient_bytes"]
        cells |= {"all-reduce, ms": f"{1e3 * reduce.median:.2f}", "bus, GB/s": f"{sent / reduce.median / 1e9:.2f}"}
    return cells


# ---------------------------------------------------------------------- the report


def run(options: argparse.Namespace) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Measure all cases, the same one once only: rows of the table, and everything that was found."""
    rows, results = [], []
    known: dict[Case, dict[str, Any]] = {}
    for method in options.methods:
        first: dict[str, float] = {}
        for kind, case in cases(method, options):
            if case not in known:
                known[case] = launch(case, options.timeout)
            found = known[case]
            if "error" not in found:
                first.setdefault(kind, case.batch / spread(found["step_s"]).median)
            rows.append(row(kind, case, found, first.get(kind)))
            results.append({"scaling": kind, "case": asdict(case), **found})
            sys.stderr.write(", ".join(rows[-1].values()) + "\n")
    return rows, results


def measured_table(rows: list[dict[str, str]], options: argparse.Namespace) -> list[str]:
    """The measurements as Markdown."""
    columns = list(dict.fromkeys(name for cells in rows for name in cells))
    where = "a GPU" if options.device == "cuda" else f"{options.threads} thread(s)"
    return [
        f"{options.size} pixels, {options.precision}, {'compiled' if options.compile else 'eager'}, {options.classes} classes; "
        f"a rank has {where}. Medians of {options.repeats} blocks of {options.steps} steps after {options.warmup}; the spread is "
        "the fastest and the slowest block. Efficiency: images/s of a rank, over those of a rank where there are the fewest.",
        "All-reduce: of a flat buffer as large as all gradients, alone; bus: 2(n-1)/n of its bytes over that time.",
        "",
        table(columns, [[cells.get(name, "-") for name in columns] for cells in rows]),
        "",
    ]


def predicted_table(results: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """The predictions as Markdown, for the methods that one rank was measured of."""
    links = Links(
        options.gpus_per_node, 1e9 * options.inside, 1e9 / 8 * options.between, 1e-6 * options.latency, options.backward
    )
    lines, said = [], []
    for found in results:
        if "error" in found or found["scaling"] != "weak" or found["case"]["ranks"] != 1:
            continue
        case, step = found["case"], spread(found["step_s"]).median
        more, end = predictions(case["method"], step, case["batch"], found["gradient_bytes"], found["all_reduces"], links)
        lines += more
        said += [f"- {end}"]
    columns = ["method", "GPUs", "images a GPU", "step on one, ms", "gradients, MB", "all-reduces a batch", "communication, ms"]
    columns += [f"{name}{how}" for how in ("", ", overlapped") for name in ("step, ms", "images/s", "efficiency %")]
    return [
        f"Predicted, not measured: ring all-reduces over links of {options.inside:g} GB/s inside a machine of "
        f"{options.gpus_per_node} GPUs and {options.between:g} Gbit/s between machines, {options.latency:g} µs a hop; one after "
        f"the other, and overlapped with the backward pass, taken for {100 * options.backward:.0f} % of the step.",
        "",
        table(columns, lines),
        "",
        *said,
        "",
    ]


def given(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What --step-ms says, in the shape of a measurement."""
    method = options.methods[0]
    model = build(method, options.backbone or paper_backbone(method), options.classes, seed=options.seed)
    case = {"method": method, "ranks": 1, "batch": options.batch}
    size = options.gradient_bytes or gradient_bytes_of(model)
    how = {"gradient_bytes": size, "all_reduces": model.steps_per_batch}
    return [{"scaling": "weak", "case": case, "step_s": [options.step_ms / 1e3], **how}]


def main() -> None:
    """Measure or predict, print, and with --write leave results/scaling.json and .md."""
    if sys.argv[1:2] == ["--case"]:
        quieten()
        said, rank = json.loads(sys.argv[2]), int(os.environ["LOCAL_RANK"])
        found = measure(Case(**{**said, "protocol": Protocol(*said["protocol"])}), rank)
        if rank == 0:
            Path(sys.argv[3]).write_text(json.dumps(found))
        return
    parser = arguments()
    options = parse(parser, QUICK)
    if options.step_ms and (not options.predict or len(options.methods) > 1):
        parser.error("--step-ms goes with --predict and a single method")
    if options.predict and not options.step_ms and (1 not in options.ranks or "weak" not in options.kinds):
        parser.error("--predict needs a step on one device: add 1 to --ranks and weak to --kinds, or give --step-ms")
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    about = machine()
    text = ["# Training on several ranks", "", heading(about, torch.device(options.device), options.seed), ""]
    rows: list[dict[str, str]] = []
    if options.step_ms:
        results = given(options)
    else:
        rows, results = run(options)
        text += measured_table(rows, options)
    text += predicted_table(results, options) if options.predict else []
    settings = {key: value for key, value in vars(options).items() if key != "write"}
    deliver("\n".join(text), {"settings": settings, "results": results, "rows": rows, "machine": about}, options.write)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    links = Links()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", "--method", nargs="+", choices=list_models(), default=["baseline"])
    parser.add_argument("--backbone", help="one for all methods; by default each method's paper's")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kinds", nargs="+", choices=["weak", "strong"], default=["weak", "strong"])
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images of a rank, in weak scaling")
    parser.add_argument("--global-batch", type=int, help="images of all ranks, in strong scaling (default: batch x most ranks)")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed", "16-mixed"], default=default_precision())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=20, help="steps a block")
    parser.add_argument("--repeats", type=int, default=5, help="blocks")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of a rank on CPUs, the same for any number of ranks")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that the ranks of one case may take")
    parser.add_argument("--predict", action="store_true", help="also predict the step on 1, 8 and 64 GPUs")
    parser.add_argument("--step-ms", type=float, help="--predict: a step on one GPU, instead of measuring")
    parser.add_argument("--gradient-bytes", type=int, help="--step-ms: bytes of all gradients, instead of the model's")
    parser.add_argument("--gpus-per-node", type=int, default=links.gpus_per_node)
    parser.add_argument("--inside", type=float, default=links.inside / 1e9, help="GB/s between GPUs of a machine (NVLink 4)")
    parser.add_argument("--between", type=float, default=links.between * 8 / 1e9, help="Gbit/s between machines")
    parser.add_argument("--latency", type=float, default=links.latency * 1e6, help="microseconds of a hop")
    parser.add_argument("--backward", type=float, default=links.backward, help="share of a step that may hide communication")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", nargs="?", const="scaling", metavar="NAME", help="write the results under this name")
    return parser


if __name__ == "__main__":
    main()
