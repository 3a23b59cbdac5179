"""The documented ways to start several processes, with two processes, and a SLURM that is a few shell scripts."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.command import fgzoo, metrics, weights
from tests.training.test_faults import BIRDS, SECONDS, run_in, wait_for

README = Path(__file__).parents[2] / "fgzoo" / "training" / "README.md"
#: What SLURM tells a task, here the only one.
TASK = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost",
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with README's job, whose run is made short, and with stand-ins for srun and scontrol."""
    (job,) = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "job.sh").write_text(job)
    short = f"fit {' '.join(map(str, BIRDS))} --model.schedule constant --trainer.max_epochs 4000"
    scripts = {
        "srun": 'exec "$@"',
        "scontrol": 'echo "$@" >> requeued',
        "fgzoo": f"""case "$*" in
*--resume*) set -- "$@" --trainer.max_epochs "$(cat epochs)";;
*) set -- {short} --output "${{@: -1}}";;
esac
exec {sys.executable} -m fgzoo "$@\"""",
    }
    (tmp_path / "bin").mkdir()
    for name, script in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_a_requeued_job_goes_on_to_the_same_bits(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{slurm / 'bin'}:/usr/bin:/bin")
    run = slurm / "runs" / "cub-iagn-7"
    job = run_in(slurm, ["bash", "job.sh"], **TASK)
    wait_for(run / "checkpoints" / "last.ckpt", job)
    task = int(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text())
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=SECONDS)
    assert (slurm / "requeued").read_text() == "requeue 7\n"
    # SLURM ends the tasks of a requeued job.
    os.kill(task, signal.SIGTERM)
    job.communicate(timeout=SECONDS)
    epochs = int(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"]) + 3
    (slurm / "epochs").write_text(str(epochs))
    again = run_in(slurm, ["bash", "job.sh"], **TASK)
    said = again.communicate(timeout=SECONDS)
    assert "runs/cub-iagn-7 holds" in said[0], said
    assert [row["epoch"] for row in metrics(run)] == [str(epoch) for epoch in range(epochs)]
    whole = ("--model.schedule", "constant", "--trainer.max_epochs", epochs, "--output", slurm / "whole")
    assert fgzoo("fit", *BIRDS, *whole).status == 0
    torch.testing.assert_close(weights(run), weights(slurm / "whole"), rtol=0, atol=0)


def test_torchrun(tmp_path: Path) -> None:
    ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fgzoo", "fit", *map(str, BIRDS)]
    ends = ["--trainer.devices", "2", "--trainer.max_epochs", "2", "--output", "run"]
    run = run_in(tmp_path, [sys.executable, "-m", *ranks, *ends])
    out, err = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, err
    assert "batches of 2 x 2" in out
    assert out.count("run holds") == 1
    assert "sync_dist" not in err
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == ["0", "1"]
