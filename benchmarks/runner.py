"""Runs the cells of a plan, each in a process of its own, shared by any number of processes and machines.

Beside a cell's folder lies `CELL.lock`. The runner locks it (flock) and hands the locked file to the training process, so both
hold it: where the runner dies the training goes on and keeps its cell, and where both have died the operating system has let it
go. A cell that was begun is resumed from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import Row, hide_paths, read_csv, say
from plan import Cell, is_made_by

from fgzoo.checkpoints.run_folder import CONFIG, METRICS, PROBABILITIES
from fgzoo.errors import TrainingError, UsageError
from fgzoo.methods import find_method
from fgzoo.methods.srbn import second_network


@dataclass(frozen=True)
class Machine:
    """What the person says of the machine, and no plan holds."""

    runs: Path  # where the runs' folders lie; shared by all who work on a plan
    roots: dict[str, Path] = field(default_factory=dict)  # folders of the data sets, by name; '' fits every data set
    weights: dict[str, Path] = field(default_factory=dict)  # files of the backbones' weights, by name; '' fits every backbone
    more: tuple[str, ...] = ()  # further arguments of every `fgzoo fit`
    threads: int = 1  # of a process


def paths_by_name(words: Sequence[str], option: str) -> dict[str, Path]:
    """`NAME=PATH ...` as a mapping, in which a path alone has the name ''; refuses, in the option's name, what is not there."""
    found = {}
    for word in words:
        name, _, path = word.rpartition("=")
        found[name] = Path(path).expanduser().resolve()
        if not found[name].exists():
            raise UsageError(f"{option}: there is no {path}")
    return found


def root_of(dataset: str, places: dict[str, Path]) -> Path:
    """The folder of a data set among those that were given by name; refuses one that was not."""
    if dataset not in places:
        raise UsageError(f"--root: where is {dataset}? Give {dataset}=PATH")
    return places[dataset]


def weights_of(cell: Cell, machine: Machine) -> dict[str, Path]:
    """The method's arguments that say where its backbones' weights lie."""
    networks = {"backbone_weights": cell.backbone}
    method = inspect.signature(find_method(cell.experiment.method)[0]).parameters
    if "second_backbone" in method:
        said = cell.model.get("second_backbone", method["second_backbone"].default)
        networks["second_backbone_weights"] = second_network(cell.backbone, said)
    found = {name: machine.weights.get(network, machine.weights.get("")) for name, network in networks.items() if network}
    return {name: path for name, path in found.items() if path is not None}


def fit_arguments(cell: Cell, machine: Machine) -> list[str]:
    """What is typed after `fgzoo` to train a cell, but for the folder of the run."""
    root = machine.roots.get(cell.dataset, machine.roots.get(""))
    places = {} if root is None else {"data.root": root}
    places |= {f"model.{name}": path for name, path in weights_of(cell, machine).items()}
    if cell.teachers:
        places["model.teacher"] = json.dumps([str(machine.runs / name) for name in cell.teachers])
    return [*cell.typed, *(word for name, path in places.items() for word in (f"--{name}", str(path))), *machine.more]


def command_of(folder: Path) -> str | None:
    """The command that made a run, without its output and this machine's folders; `None` where nothing was begun."""
    config = folder / CONFIG
    if not config.is_file():
        return None
    with config.open(encoding="utf-8") as file:
        words = shlex.split(file.readline().removeprefix("# "))
    place = words.index("--output") if "--output" in words else len(words)
    return shlex.join(hide_paths(word) for word in [*words[:place], *words[place + 2 :]])


def scores_of(cell: Cell, folder: Path) -> Row | None:
    """The row of metrics of a finished cell; `None` where something is left to do, or the folder holds another run."""
    split = "test" if cell.fold is None else "val"
    whole = all((folder / name).is_file() for name in ("cost.json", PROBABILITIES[split]))
    if not whole or not cell.is_made_by(command_of(folder)):
        return None
    return next((row for row in reversed(read_csv(folder / METRICS)) if row.get(f"{split}/top1")), None)


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Hold a file's lock; yields its descriptor, or `None` where somebody else holds it.

    A process that inherits the descriptor holds the lock, too, until it ends. The file stays: who removed it would let a second
    one in.
    """
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def run_cell(cell: Cell, machine: Machine, lock: int, gpu: str | None, stop: threading.Event) -> None:
    """Train a cell, or go on where it stopped, and score it; the processes hold its lock and see one GPU, or all."""
    folder = machine.runs / cell.name
    environment = {**os.environ, "OMP_NUM_THREADS": str(machine.threads), "COLUMNS": "160"}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    train(cell.command, fit_arguments(cell, machine), folder, environment, lock, stop, cell.located)
    if scores_of(cell, folder) is None:
        run_fgzoo(["test", "--ckpt_path", str(folder)], folder, environment, lock, stop)


def train(
    command: str,
    typed: list[str],
    folder: Path,
    environment: dict[str, str],
    lock: int,
    stop: threading.Event,
    located: Sequence[str] = (),
) -> None:
    """Make the run of a folder, or go on with it where it stopped; nothing where it is done.

    Args:
        command: What tells it from every other run.
        typed: What is typed after `fgzoo` to make it, but for its folder.
        folder: Where it lies.
        environment: Of its process.
        lock: The descriptor of its lock.
        stop: Ends it.
        located: Options beside that, which name files of this machine.

    Raises:
        TrainingError: The folder holds another run, or the training failed.
    """
    begun = command_of(folder)
    if begun is not None and not is_made_by(command, begun, located):
        raise TrainingError(f"its folder holds a run of other arguments, move it away: {begun}")
    if not (folder / "cost.json").is_file():
        fresh = [*typed, "--output", str(folder)]
        run_fgzoo(fresh if begun is None else ["fit", "--resume", str(folder)], folder, environment, lock, stop)


def run_fgzoo(typed: list[str], folder: Path, environment: dict[str, str], lock: int, stop: threading.Event) -> None:
    """Run the command line, its output into a log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("a") as file:
        file.write(f"$ {shlex.join(['fgzoo', *typed])}\n")
        file.flush()
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        with subprocess.Popen([sys.executable, "-m", "fgzoo", *typed], env=environment, pass_fds=[lock], **streams) as process:
            while process.poll() is None:
                if stop.wait(0.2):
                    process.terminate()  # the last epoch's checkpoint is whole at every moment
                    raise TrainingError("stopped")
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        complaint = next((line for line in reversed(lines) if line.startswith("fgzoo: ")), lines[-1])
        raise TrainingError(hide_paths(complaint.removeprefix("fgzoo: "))[:200])


def run_cells(cells: Sequence[Cell], machine: Machine, slots: Sequence[str | None]) -> bool:
    """Run what nobody else runs and is not done, one cell at a time for each slot: a GPU's number, or `None`.

    SIGTERM ends it as Ctrl-C does. Returns whether no cell failed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine.runs.mkdir(parents=True, exist_ok=True)
    failed: set[str] = set()
    stop = threading.Event()

    def attempt(cell: Cell, gpu: str | None) -> bool:
        """Whether there was something to do."""
        with locked(machine.runs / f"{cell.name}.lock") as lock:
            if lock is None or stop.is_set() or cell.name in failed or scores_of(cell, machine.runs / cell.name) is not None:
                return False
            if not all((machine.runs / teacher / "cost.json").is_file() for teacher in cell.teachers):
                return False  # until whoever trains them is done
            say(f"{time.strftime('%X')}  running  {cell.name}")
            state = "done"
            try:
                run_cell(cell, machine, lock, gpu, stop)
            except (TrainingError, OSError) as error:
                failed.add(cell.name)
                state = f"failed: {hide_paths(str(error))}"
            say(f"{time.strftime('%X')}  {state}  {cell.name}")
        return True

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
    return not failed
