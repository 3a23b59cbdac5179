"""Runs the cells of a plan, each in a process of its own, shared by any number of processes and machines.

A cell's folder holds its run; beside it lies `CELL.claim` while somebody works on it: who that is, touched every few seconds.
A claim whose owner has died is taken over, and the run resumed.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accuracy_plan import Cell, Costs
from common import process_environment
from filelock import FileLock

from fgzoo.errors import UsageError
from fgzoo.training.run import CONFIG, METRICS, PROBABILITIES, write_json

#: What a finished cell's folder holds beside the run.
RESULT = "result.json"
LOG = "log.txt"
#: Seconds between signs of life.
HEARTBEAT = 20.0
SCORES = ("top1", "top5", "macro", "nll", "ece")
PATH = "PATH"
#: Columns of a plan's results, in order.
COLUMNS = (
    "plan", "table", "label", "method", "backbone", "dataset", "fingerprint", "arguments", "seed", "fold", "epochs", "size",
    "split", *SCORES, "train_seconds", "peak_gib", "precision", "threads", "hardware", "torch", "fgzoo", "parameters",
    "test_gmac", "train_gmac", "passes", "cell", "command",
)  # fmt: skip


class CellError(Exception):
    """A cell's process failed."""


@dataclass
class Where:
    """What the person says of the machine, and no plan holds.

    Attributes:
        runs: Where the runs' folders lie; shared by all who work on a plan.
        roots: Folders of the data sets, by name.
        weights: Files with the backbones' weights, by the backbone's name; the name '' fits every backbone.
        more: Further arguments of every `fgzoo fit`.
        threads: Threads of a process.
        stale: Seconds without a sign of life after which another machine's claim is taken over.
    """

    runs: Path
    roots: dict[str, Path] = field(default_factory=dict)
    weights: dict[str, Path] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    threads: int = 1
    stale: float = 600.0


def fit_arguments(cell: Cell, where: Where) -> list[str]:
    """What is typed after `fgzoo` to train a cell, but for the folder of the run."""
    typed = ["fit", *cell.typed]
    if cell.dataset in where.roots:
        typed += ["--data.root", str(where.roots[cell.dataset])]
    weights = where.weights.get(cell.backbone, where.weights.get(""))
    if weights is not None:
        typed += ["--model.backbone_weights", str(weights)]
    second = cell.settings.get("model", {}).get("init_args", {}).get("second_backbone")
    if second in where.weights:
        typed += ["--model.second_backbone_weights", str(where.weights[second])]
    return [*typed, *where.more]


def shown_command(cell: Cell, where: Where) -> str:
    """The command as it is written down, without this machine's folders."""
    return shlex.join(["fgzoo", *(hide(word, where) for word in fit_arguments(cell, where))])


def hide(text: str, where: Where) -> str:
    """A text in which no folder of this machine stands."""
    for path in (*where.roots.values(), *where.weights.values()):
        text = text.replace(str(path), PATH)
    return re.sub(r"(?<![\w.])~?/[^\s'\",]+", PATH, text)


# ---------------------------------------------------------------------- claims


class Claim:
    """A cell that this process works on.

    Args:
        path: The file that says so.
        stale: Seconds without a sign of life after which another machine's claim is dead.
    """

    def __init__(self, path: Path, stale: float) -> None:
        self.path = path
        self.stale = stale
        self.owner: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "child": None}
        self.ended = threading.Event()

    def take(self) -> bool:
        """Claim the cell, unless somebody alive has; one of many that try at once succeeds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            # Those who find the same dead claim take turns, so that none removes another's fresh one.
            with FileLock(self.path.parent / ".claims.lock"):
                if self._alive():
                    return False
                self.path.unlink(missing_ok=True)
                if not self._create():
                    return False
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _create(self) -> bool:
        try:
            with self.path.open("x") as file:
                file.write(json.dumps(self.owner))
        except FileExistsError:
            return False
        return True

    def _alive(self) -> bool:
        try:
            age = time.time() - self.path.stat().st_mtime
            owner = json.loads(self.path.read_text())
        except FileNotFoundError:
            return False
        except json.JSONDecodeError:
            # It is being written, or its writer died over it.
            return age < HEARTBEAT
        if owner["host"] == self.owner["host"]:
            # A training process may outlive the one that started it; until it ends, its folder is its own.
            return any(alive(pid) for pid in (owner["pid"], owner["child"]) if pid)
        return age < self.stale

    def works(self, child: int) -> None:
        """Note which process does the work."""
        self.owner["child"] = child
        part = self.path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(self.owner))
        part.replace(self.path)

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT):
            if self._ours():
                os.utime(self.path)

    def _ours(self) -> bool:
        """Whether nobody has taken it for dead, as happens to machines that sleep."""
        try:
            owner = json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError):
            return False
        return (owner["host"], owner["pid"]) == (self.owner["host"], self.owner["pid"])

    def release(self) -> None:
        """Let the cell go."""
        self.ended.set()
        if self._ours():
            self.path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and waits to be noticed does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return not Path("/proc/self").exists()


# ---------------------------------------------------------------------- one cell


@dataclass
class Progress:
    """What is known of a cell while a plan runs: `waiting`, `running`, `done`, `elsewhere`, `failed` or `stopped`."""

    cell: Cell
    state: str = "waiting"
    note: str = ""
    top1: float | None = None
    started: float = 0.0

    def epoch(self, where: Where) -> tuple[int, float] | None:
        """Epochs done and seconds of the last one, from the log."""
        log = where.runs / self.cell.name / LOG
        if self.state not in ("running", "elsewhere") or not log.is_file():
            return None
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = re.findall(rb"epoch (\d+)/\d+  ([\d.]+) s", file.read())
        return (int(lines[-1][0]), float(lines[-1][1])) if lines else (0, 0.0)


def run_cell(cell: Cell, where: Where, costs: Costs, claim: Claim, gpu: str | None, stop: threading.Event) -> dict[str, Any]:
    """Train a cell, or go on where it stopped; score it; leave its result in its folder.

    Args:
        cell: What to run.
        where: Folders and threads.
        costs: Counts what it costs.
        claim: Ours, of this cell.
        gpu: What it is to see of the machine's GPUs; `None`: all of them.
        stop: Ends the work.

    Returns:
        The result.

    Raises:
        CellError: A process failed; its log says why.
    """
    folder = where.runs / cell.name

    def run(*typed: str) -> None:
        _process([*typed], folder / LOG, where, claim, gpu, stop)

    if not (folder / "cost.json").is_file():
        begun = (folder / CONFIG).is_file()
        run(*(("fit", "--resume", str(folder)) if begun else (*fit_arguments(cell, where), "--output", str(folder))))
    if cell.fold is None and not (folder / PROBABILITIES["test"]).is_file():
        run("test", "--ckpt_path", str(folder))
    result = result_of(cell, where, costs)
    write_json(folder / RESULT, result)
    return result


def _process(typed: Sequence[str], log: Path, where: Where, claim: Claim, gpu: str | None, stop: threading.Event) -> None:
    """Run the command line, its output into a log."""
    environment = {**process_environment(where.threads), "COLUMNS": "160"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {shlex.join(['fgzoo', *typed])}\n")
        file.flush()
        command = [sys.executable, "-m", "fgzoo", *typed]
        with subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        ) as process:
            claim.works(process.pid)
            while process.poll() is None:
                if stop.wait(0.2):
                    process.terminate()  # the last epoch's checkpoint is whole at every moment
                    process.wait()
                    raise CellError("stopped")
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("fgzoo: ")), lines[-1])
        raise CellError(hide(said.removeprefix("fgzoo: "), where)[:200])


def result_of(cell: Cell, where: Where, costs: Costs) -> dict[str, Any]:
    """A finished cell's row, and the record of its run without this machine's folders.

    Args:
        cell: The cell.
        where: Folders and threads.
        costs: Counts what it costs.

    Returns:
        `row`, and `record`: config, metrics, cost, environment and data.
    """
    folder = where.runs / cell.name
    cost, environment, data = (json.loads((folder / f"{name}.json").read_text()) for name in ("cost", "environment", "data"))
    config = yaml.safe_load((folder / CONFIG).read_text())
    with (folder / METRICS).open(newline="") as file:
        metrics = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    split = "test" if cell.fold is None else "val"
    scored = [row for row in metrics if f"{split}/top1" in row]
    if not scored:
        raise CellError(f"no {split}/top1 in {METRICS}")
    counted = costs.of(cell)
    gpus = environment["gpus"]
    row = {
        "plan": cell.plan, "table": cell.table, "label": cell.label, "method": cell.method, "backbone": cell.backbone,
        "dataset": cell.dataset, "fingerprint": data["fingerprint"], "arguments": cell.arguments, "seed": cell.seed,
        "fold": "" if cell.fold is None else f"{cell.fold} of {cell.folds}", "epochs": cell.epochs, "size": cell.size,
        "split": split, **{name: scored[-1][f"{split}/{name}"] for name in SCORES},
        # A resumed run knows the seconds of the epochs that it did itself.
        "train_seconds": f"{cost['seconds'] * cell.epochs / max(1, cost['epochs']):.0f}",
        "peak_gib": f"{cost['peak_memory_gib']:.2f}", "precision": config["trainer"]["precision"], "threads": where.threads,
        "hardware": gpus[0] if cost["device"].startswith("cuda") and gpus else environment["processor"],
        "torch": environment["packages"]["torch"], "fgzoo": environment["git"] or environment["fgzoo"],
        "parameters": f"{counted.parameters:.3f}", "test_gmac": f"{counted.test_gmac:.4f}",
        "train_gmac": f"{counted.train_gmac:.4f}", "passes": f"{counted.passes:.4f}",
        "cell": cell.name, "command": shown_command(cell, where),
    }  # fmt: skip
    del data["class_names"]
    record = {"config": config, "metrics": metrics, "cost": cost, "environment": environment, "data": data}
    return {"row": {name: str(row[name]) for name in COLUMNS}, "record": _hidden(record, where)}


def _hidden(value: Any, where: Where) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner, where) for inner in value]
    return hide(value, where) if isinstance(value, str) else value


# ---------------------------------------------------------------------- all of them


def run_cells(
    cells: Sequence[Cell],
    done: set[str],
    where: Where,
    costs: Costs,
    slots: Sequence[str | None],
    show: Callable[[Sequence[Progress]], None],
) -> list[Progress]:
    """Run what nobody else runs and is not done.

    Args:
        cells: The cells.
        done: Names of those that are.
        where: Folders and threads.
        costs: Counts what cells cost.
        slots: One cell runs at a time for each; what it sees of the GPUs, or `None`.
        show: Called again and again with the state of all.

    Returns:
        The state of all.

    Raises:
        UsageError: Something is missing that the cells need.
    """
    check(cells, where)
    all_progress = [Progress(cell, "done" if cell.name in done else "waiting") for cell in cells]
    stop, turn = threading.Event(), threading.Lock()

    def next_cell() -> tuple[Progress, Claim] | None:
        with turn:
            for progress in all_progress:
                if progress.state not in ("waiting", "elsewhere"):
                    continue
                result = where.runs / progress.cell.name / RESULT
                claim = Claim(where.runs / f"{progress.cell.name}.claim", where.stale)
                taken = not result.is_file() and claim.take()
                if result.is_file():  # it may have been finished between the look and the claim
                    if taken:
                        claim.release()
                    progress.state, progress.top1 = "done", float(json.loads(result.read_text())["row"]["top1"])
                    continue
                if not taken:
                    progress.state = "elsewhere"
                    continue
                progress.state, progress.started = "running", time.time()
                return progress, claim
            return None

    def work(gpu: str | None) -> None:
        while not stop.is_set() and (found := next_cell()) is not None:
            progress, claim = found
            try:
                result = run_cell(progress.cell, where, costs, claim, gpu, stop)
                progress.state, progress.top1 = "done", float(result["row"]["top1"])
            except CellError as error:
                progress.state, progress.note = "stopped" if stop.is_set() else "failed", str(error)
            except (OSError, KeyError, ValueError, UsageError) as error:
                progress.state, progress.note = "failed", hide(str(error), where)
            finally:
                claim.release()

    workers = [threading.Thread(target=work, args=(gpu,)) for gpu in slots]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            show(all_progress)
            stop.wait(0.3)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    show(all_progress)
    return all_progress


def check(cells: Sequence[Cell], where: Where) -> None:
    """Refuse to begin without a folder for every data set that needs one."""
    for cell in cells:
        if cell.dataset not in where.roots and cell.dataset != "birds" and not os.environ.get("FGZOO_DATA"):
            raise UsageError(f"--root: where is {cell.dataset}? Give --root {cell.dataset}=PATH")
    for path in (*where.roots.values(), *where.weights.values()):
        if not path.exists():
            raise UsageError(f"there is no {path}")
