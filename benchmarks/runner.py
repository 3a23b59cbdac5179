"""Runs the cells of a plan, each in a process of its own, shared by any number of processes and machines.

Beside a cell's folder lies `CELL.lock`. The runner locks it (flock) and hands the locked file to the training process, so both
hold it: where the runner dies the training goes on and keeps its cell, and where both have died the operating system has let it
go. A cell that was begun is resumed from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import CONFIG, METRICS, PROBABILITIES, Line, UsageError, hidden, process_environment, read_csv
from plan import Cell

LOG = "log.txt"


class CellError(Exception):
    """A cell's process failed, or its folder holds something else."""


@dataclass(frozen=True)
class Where:
    """What the person says of the machine, and no plan holds."""

    runs: Path  # where the runs' folders lie; shared by all who work on a plan
    roots: dict[str, Path] = field(default_factory=dict)  # folders of the data sets, by name
    weights: dict[str, Path] = field(default_factory=dict)  # files of the backbones' weights, by name; '' fits every backbone
    more: tuple[str, ...] = ()  # further arguments of every `fgzoo fit`
    threads: int = 1  # of a process


def weights_of(cell: Cell, where: Where) -> dict[str, Path]:
    """The method's arguments that say where its backbones' weights lie."""
    second = cell.model.get("second_backbone")
    found = {
        "backbone_weights": where.weights.get(cell.backbone, where.weights.get("")),
        "second_backbone_weights": where.weights.get(second) if second else None,
    }
    return {name: path for name, path in found.items() if path is not None}


def fit_arguments(cell: Cell, where: Where) -> list[str]:
    """What is typed after `fgzoo` to train a cell, but for the folder of the run."""
    root = {"data.root": where.roots[cell.dataset]} if cell.dataset in where.roots else {}
    said = root | {f"model.{name}": path for name, path in weights_of(cell, where).items()}
    return [*cell.typed, *(word for name, path in said.items() for word in (f"--{name}", str(path))), *where.more]


def check_paths(cells: Sequence[Cell], where: Where) -> None:
    """Refuse to begin without a folder for every data set that needs one."""
    for cell in cells:
        if cell.dataset not in where.roots and cell.dataset != "birds" and not os.environ.get("FGZOO_DATA"):
            raise UsageError(f"--root: where is {cell.dataset}? Give --root {cell.dataset}=PATH")
    for path in (*where.roots.values(), *where.weights.values()):
        if not path.exists():
            raise UsageError(f"there is no {path}")


# ---------------------------------------------------------------------- what a folder holds


def command_of(folder: Path) -> str | None:
    """The command that made a run, without its output and this machine's folders; `None` where nothing was begun."""
    config = folder / CONFIG
    if not config.is_file():
        return None
    with config.open(encoding="utf-8") as file:
        words = shlex.split(file.readline().removeprefix("# "))
    place = words.index("--output") if "--output" in words else len(words)
    return shlex.join(hidden(word) for word in [*words[:place], *words[place + 2 :]])


def is_of(command: str, cell: Cell) -> bool:
    """Whether a command, which may say more of folders and speed, is a cell's."""
    return f"{command} ".startswith(f"{cell.command} ")


def scores_of(cell: Cell, folder: Path) -> Line | None:
    """The row of metrics of a finished cell; `None` where something is left to do, or the folder holds another run."""
    split = "test" if cell.fold is None else "val"
    whole = all((folder / name).is_file() for name in ("cost.json", PROBABILITIES[split]))
    if not whole or not is_of(command_of(folder) or "", cell):
        return None
    return next((row for row in reversed(read_csv(folder / METRICS)) if row.get(f"{split}/top1")), None)


# ---------------------------------------------------------------------- one cell


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Hold a file's lock; yields its descriptor, or `None` where somebody else holds it.

    A process that inherits the descriptor holds the lock, too, until it ends. The file stays: who removed it would let a second
    one in.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run_cell(cell: Cell, where: Where, lock: int, gpu: str | None, stop: threading.Event) -> None:
    """Train a cell, or go on where it stopped, and score it; the processes hold its lock and see one GPU, or all."""
    folder = where.runs / cell.name
    begun = command_of(folder)
    if begun is not None and not is_of(begun, cell):
        raise CellError(f"its folder holds a run of other arguments, move it away: {begun}")
    if not (folder / "cost.json").is_file():
        fresh = [*fit_arguments(cell, where), "--output", str(folder)]
        _process(fresh if begun is None else ["fit", "--resume", str(folder)], folder / LOG, where.threads, lock, gpu, stop)
    if scores_of(cell, folder) is None:
        _process(["test", "--ckpt_path", str(folder)], folder / LOG, where.threads, lock, gpu, stop)


def _process(typed: list[str], log: Path, threads: int, lock: int, gpu: str | None, stop: threading.Event) -> None:
    """Run the command line, its output into a log."""
    environment = {**process_environment(threads), "COLUMNS": "160"} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {shlex.join(['fgzoo', *typed])}\n")
        file.flush()
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        with subprocess.Popen([sys.executable, "-m", "fgzoo", *typed], env=environment, pass_fds=[lock], **streams) as process:
            while process.poll() is None:
                if stop.wait(0.2):
                    process.terminate()  # the last epoch's checkpoint is whole at every moment
                    process.wait()
                    raise CellError("stopped")
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("fgzoo: ")), lines[-1])
        raise CellError(hidden(said.removeprefix("fgzoo: "))[:200])


# ---------------------------------------------------------------------- all of them


def run_cells(cells: Sequence[Cell], where: Where, slots: Sequence[str | None], say: Callable[[str], None]) -> dict[str, str]:
    """Run what nobody else runs and is not done, one cell at a time for each slot: a GPU's number, or `None`.

    Returns:
        By name what became of each: `done`, `elsewhere` (somebody else works on it), `failed: why`.
    """
    where.runs.mkdir(parents=True, exist_ok=True)
    states = dict.fromkeys([cell.name for cell in cells], "elsewhere")
    stop = threading.Event()

    def attempt(cell: Cell, gpu: str | None) -> bool:
        """Whether there was something to do."""
        with locked(where.runs / f"{cell.name}.lock") as lock:
            if lock is None or states[cell.name] != "elsewhere" or stop.is_set():
                return False
            unfinished = scores_of(cell, where.runs / cell.name) is None
            try:
                if unfinished:
                    say(f"running  {cell.name}")
                    run_cell(cell, where, lock, gpu, stop)
                states[cell.name] = "done"
            except (CellError, OSError, UsageError) as error:
                states[cell.name] = f"failed: {hidden(str(error))}"
        left = sum(state == "elsewhere" for state in states.values())
        say(f"{states[cell.name]}  {cell.name}, {left} left")
        return unfinished

    def work(gpu: str | None) -> None:
        # Once more after the last cell, as long as any was run: somebody else may have died over one meanwhile.
        while sum(attempt(cell, gpu) for cell in cells):
            pass

    with ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(work, gpu) for gpu in slots]
        try:
            wait(futures)
        finally:
            stop.set()
    for future in futures:
        future.result()
    return states
