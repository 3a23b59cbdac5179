"""What goes wrong on the way of a run is really made, and named."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from fgzoo.data import datamodule
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.loader import Loader
from fgzoo.errors import TrainingError
from fgzoo.methods.baseline import Baseline
from fgzoo.training.command import LogConsole
from fgzoo.training.faults import TERMINATED, FiniteLoss, WholeCheckpoints, name_failure
from tests.builders import make_cub
from tests.command import breaking_off, fgzoo, fit, metrics, weights
from tests.training.toys import Staged, loader, make, trainer

SECONDS = 120
#: A training of seconds.
BIRDS = (
    "--config", "birds", "--model", "baseline", "--model.backbone", "test_efficientnet", "--model.pretrained", "false",
    "--data.image_size", 64, "--data.resize", 64, "--data.birds.classes", 3, "--data.birds.train_per_class", 4,
    "--data.birds.size", 32, "--data.batch_size", 2, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
)  # fmt: skip


# ---------------------------------------------------------------------- a loss that is no number


def diverge(monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int, value: float) -> None:
    loss = Baseline.loss

    def broken(self: Baseline, output: Any, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        now = self.current_epoch == epoch and self.global_step % self.trainer.num_training_batches == batch
        return {name: term * value if now else term for name, term in loss(self, output, targets).items()}

    monkeypatch.setattr(Baseline, "loss", broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("validates", [False, True])
def test_a_loss_that_is_no_number_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, validates: bool
) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    diverge(monkeypatch, epoch=1, batch=1, value=value)
    held = ("--data.val_fraction", 0.34) if validates else ()
    result = fit(root, "--output", "run", "--model.schedule", "constant", "--model.lr", 0.003, *held, epochs=3)
    assert result.status == 1
    per_epoch = 2 if validates else 3
    assert f"epoch 2, batch 2 (step {per_epoch + 2}), learning rate 0.003" in result.err
    assert result.err.count("\n") == 1
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0


def test_a_good_run_is_not_stopped(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[FiniteLoss(every=1)]).fit(make(Staged), loader())


def test_the_rate_that_is_named_is_that_of_the_first_bad_step(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1 and batch_idx == 2:
                outputs["loss"].fill_(float("nan"))

    model = make(Baseline, lr=1.0, schedule="step", milestones=(1, 2), gamma=0.5)
    with pytest.raises(TrainingError, match=r"epoch 2, batch 3 \(step 7\), learning rate 0.5\b"):
        trainer(tmp_path, callbacks=[Poison(), FiniteLoss()]).fit(model, loader())


# ---------------------------------------------------------------------- a disk that is full


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """The kernel refuses to let a file grow beyond a size, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 0}, path)
    small_files(10_000)
    with pytest.raises(TrainingError, match=r"last\.ckpt: the checkpoint cannot be written"):
        WholeCheckpoints().save_checkpoint({"weights": torch.zeros(10_000)}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 0}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOENT])
def test_only_who_has_no_room_is_told_to_make_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(TrainingError) as said:
        WholeCheckpoints().save_checkpoint({}, tmp_path / "checkpoints" / "last.ckpt")
    assert ("Make room" in str(said.value)) == (number != errno.ENOENT)


def test_a_run_on_a_full_disk_stops_and_goes_on_later(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    root = make_cub(tmp_path / "data")
    assert fit(root, "--output", "run", epochs=1).status == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    small_files(100_000)
    result = fgzoo("fit", "--resume", "run")
    assert result.status == 1
    assert "run/checkpoints/last.ckpt: the checkpoint cannot be written (File too large)" in result.err
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before
    small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert fgzoo("fit", "--resume", "run").status == 0
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == ["0", "1"]


def test_an_epoch_that_is_saved_is_in_metrics_csv_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = WholeCheckpoints.save_checkpoint

    def save_and_die(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise SystemExit(1)

    with monkeypatch.context() as killed:
        killed.setattr(WholeCheckpoints, "save_checkpoint", save_and_die)
        fit(make_cub(tmp_path / "data"), "--output", "run", epochs=2)
    assert fgzoo("fit", "--resume", "run").status == 0
    rows = metrics(tmp_path / "run")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(row["train/loss"] and row["train/top1"] for row in rows)


# ---------------------------------------------------------------------- processes that die


def start(folder: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`fgzoo fit` on the birds in a process of its own."""
    return run_in(folder, [sys.executable, "-m", "fgzoo", "fit", *map(str, BIRDS), *map(str, arguments)], **environment)


def run_in(folder: Path, command: list[str], **environment: str) -> subprocess.Popen[str]:
    """A process at the head of its own group."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {path} after {SECONDS} s"
        time.sleep(0.05)


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_a_signal_ended_resumes_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    # A rate that does not depend on how many epochs were meant.
    run = start(tmp_path, "--output", "run", "--trainer.max_epochs", 400, "--model.schedule", "constant")
    wait_for(tmp_path / "run/checkpoints/last.ckpt", run)
    run.send_signal(number)
    run.communicate(timeout=SECONDS)
    assert run.returncode == (TERMINATED if number == signal.SIGTERM else -number)
    done = int(torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["epoch"]) + 1
    config = (tmp_path / "run/config.yaml").read_text().replace("max_epochs: 400", f"max_epochs: {done + 1}")
    for folder in ("run", "whole"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.yaml").write_text(config)
        assert fgzoo("fit", "--resume", folder).status == 0
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == [str(epoch) for epoch in range(done + 1)]
    torch.testing.assert_close(weights(tmp_path / "run"), weights(tmp_path / "whole"), rtol=0, atol=0)


def test_a_folder_is_one_runs_as_long_as_that_lasts(tmp_path: Path) -> None:
    quiet = {"PYTHONWARNINGS": "ignore:This DataLoader will create 2 worker processes"}
    run = start(tmp_path, "--output", "run", "--trainer.max_epochs", 4000, "--data.num_workers", 2, **quiet)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", run)
    for other, way in ((("--resume", "run"), ""), ((*BIRDS, "--output", "run"), ", or give another place by --output")):
        assert fgzoo("fit", *other).err == f"fgzoo: fit: another run is writing to run (it holds .lock there); let it end{way}\n"
    run.kill()
    run.communicate(timeout=SECONDS)
    assert "done already" in fgzoo("fit", "--resume", "run", "--trainer.max_epochs", 1).out
    assert not (tmp_path / "run/.lock").exists()


def test_a_file_system_without_locks_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    result = fit(make_cub(tmp_path / "data"), "--output", "run")
    assert (result.status, result.err) == (0, "")


def test_nodes_of_lightnings_own_environment_share_a_folder(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        peers = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    how = ("--output", "run", "--trainer.max_epochs", 1, "--trainer.num_nodes", 2, "--trainer.strategy", "ddp")
    nodes = [start(tmp_path, *how, NODE_RANK=str(number), **peers) for number in range(2)]
    said = [node.communicate(timeout=SECONDS) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said


def test_a_rank_that_dies_ends_the_run(tmp_path: Path) -> None:
    run = start(tmp_path, "--output", "run", "--trainer.max_epochs", 4000, "--trainer.devices", 2)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", run)
    (other,) = children(run.pid)
    os.kill(other, signal.SIGKILL)
    run.communicate(timeout=SECONDS)
    assert run.returncode not in (0, None)


def test_sigterm_ends_all_ranks(tmp_path: Path) -> None:
    run = start(tmp_path, "--output", "run", "--trainer.max_epochs", 4000, "--trainer.devices", 2)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", run)
    (other,) = children(run.pid)
    run.terminate()
    run.communicate(timeout=SECONDS)
    assert run.returncode == TERMINATED
    end = time.monotonic() + SECONDS
    while not gone(other):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_sigterm_to_a_run_and_its_loader_workers_ends_it_as_sigterm_alone(tmp_path: Path) -> None:
    # On a single core torch says that two workers are many.
    quiet = {"PYTHONWARNINGS": "ignore:This DataLoader will create 2 worker processes"}
    run = start(tmp_path, "--output", "run", "--trainer.max_epochs", 4000, "--data.num_workers", 2, **quiet)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", run)
    os.killpg(run.pid, signal.SIGTERM)
    _, err = run.communicate(timeout=SECONDS)
    assert run.returncode == TERMINATED
    assert "Error" not in err
    assert "worker" not in err


def test_ctrl_c_while_a_loader_worker_starts_ends_the_run(tmp_path: Path) -> None:
    pressed: list[bool] = []

    def press() -> None:
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    root = make_cub(tmp_path / "data")
    os.register_at_fork(before=press)  # once, since none can be taken back
    result = fit(root, "--data.num_workers", 1, "--output", "run")
    assert (pressed, result.status) == ([True], 130)
    assert result.err == "fgzoo: interrupted; go on by fgzoo fit --resume run\n"


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_ctrl_c_is_nothing_to_a_loader_worker(start_method: str) -> None:
    loader = Loader(range(40), num_workers=1, prefetch_factor=2, multiprocessing_context=start_method)
    items: Any = iter(loader)
    assert int(next(items)) == 0  # so it has begun
    os.kill(items._workers[0].pid, signal.SIGINT)
    assert [int(item) for item in items] == list(range(1, 40))


def test_the_file_that_kills_a_loader_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_cub(tmp_path / "data")
    lethal = FGVCDataModule("cub", root).splits["train"][1].path
    decode = datamodule.decode

    def crash(path: Path, *arguments: Any, **more: Any) -> torch.Tensor:
        if path == lethal:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, *arguments, **more)

    monkeypatch.setattr(datamodule, "decode", crash)
    result = fit(root, "--data.num_workers", 2)
    assert result.status == 1
    assert f"a loader worker died while it read {lethal} (DataLoader worker" in result.err


@pytest.mark.parametrize(
    "said",
    [
        "unable to allocate shared memory(shm) for file </torch_17_3>: No space left",
        "DataLoader worker (pid 7) is killed by signal: Bus error. Workers are possibly out of shared memory.",
        "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to mmap 64 bytes from file </torch_9>",
    ],
)
def test_too_little_shared_memory_is_said_in_one_line(tmp_path: Path, said: str) -> None:
    named = name_failure(RuntimeError(said), FGVCDataModule("cub", tmp_path))
    assert named is not None
    assert "--shm-size" in str(named)
    assert "\n" not in str(named)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation"), "--data.batch_size"),
        (
            RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set 'torch.use_"),
            "--trainer.deterministic warn",
        ),
    ],
)
def test_what_a_gpu_lacks_is_said_in_one_line(tmp_path: Path, error: RuntimeError, way_out: str) -> None:
    root = make_cub(tmp_path / "data")
    with breaking_off(Baseline, epoch=0, batch=0, error=error):
        result = fit(root)
    assert result.status == 1
    assert way_out in result.err
    assert result.err.count("\n") == 1


def test_a_log_that_nobody_reads_any_more_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor has no path
        monkeypatch.setattr(sys, "stdout", pipe)
        console = LogConsole(file=pipe)
        console.print("epoch 1")
        console.print("epoch 2")
        print("what Lightning prints", file=pipe, flush=True)
    assert sys.stderr.getvalue() == "fgzoo: nobody reads standard output any more; going on without a log\n"


def test_what_windows_lacks_is_not_needed_to_start() -> None:
    code = (
        "import sys; sys.modules['resource'] = sys.modules['fcntl'] = None\n"
        "import torch, fgzoo.training.command, fgzoo.commands.predict, fgzoo.commands.explain, fgzoo.commands.export\n"
        "from fgzoo.training.environment import peak_memory\n"
        "assert peak_memory(torch.device('cpu')) is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_never_finished_an_epoch_begins_again(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data")
    assert fit(root, "--output", "whole").status == 0
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_bytes((tmp_path / "whole/config.yaml").read_bytes())
    assert fgzoo("fit", "--resume", "begun").status == 0
    torch.testing.assert_close(weights(tmp_path / "begun"), weights(tmp_path / "whole"), rtol=0, atol=0)
