"""Rows on standard output, a reader that leaves, and Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgzoo.methods.baseline import Baseline
from fgzoo.prediction import files
from fgzoo.prediction.inference import Prediction
from tests import command
from tests.builders import save
from tests.command import ON_CPU, fgzoo, rows

#: A process that imports torch, perhaps on a core that others use.
PATIENCE = 240


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_dash_gives_rows_and_nothing_else_on_a_terminal_too(
    trained: SimpleNamespace, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.jpg", index)
    typed = ("predict", trained.run, "0.jpg", "1.jpg", "2.jpg", "--output")
    assert fgzoo(*typed, f"p.{form}", *ON_CPU).status == 0
    monkeypatch.setattr(command, "io", SimpleNamespace(StringIO=command.Terminal))
    result = fgzoo(*typed, "-", "--format", form, *ON_CPU)
    assert (result.status, result.out) == (0, (tmp_path / f"p.{form}").read_text())
    assert not (tmp_path / "-").exists()


def test_features_go_to_a_dash_too(trained: SimpleNamespace, tmp_path: Path) -> None:
    save(tmp_path / "0.jpg")
    result = fgzoo("predict", trained.run, "0.jpg", "--embed", "--output", "-", "--format", "jsonl", *ON_CPU)
    assert json.loads(result.out)["path"] == "0.jpg"


def test_a_format_names_that_of_a_file_of_any_name(trained: SimpleNamespace, tmp_path: Path) -> None:
    save(tmp_path / "0.jpg")
    assert fgzoo("predict", trained.run, "0.jpg", "--output", "p.txt", "--format", "jsonl", *ON_CPU).status == 0
    assert json.loads((tmp_path / "p.txt").read_text())["path"] == "0.jpg"
    result = fgzoo("predict", trained.run, "0.jpg", "--output", "p.csv", "--format", "jsonl", *ON_CPU)
    assert result.status == 2
    assert "contradict" in result.err


def test_a_link_stays_one_and_the_file_behind_it_is_written(trained: SimpleNamespace, tmp_path: Path) -> None:
    save(tmp_path / "0.jpg")
    (tmp_path / "real").mkdir()
    (tmp_path / "p.csv").symlink_to("real/answers.csv")
    for _ in range(2):
        assert fgzoo("predict", trained.run, "0.jpg", "--output", "p.csv", *ON_CPU).status == 0
        assert (tmp_path / "p.csv").is_symlink()
        assert len(rows(tmp_path / "real" / "answers.csv")) == 1
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["answers.csv"]


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
def test_a_named_pipe_is_written_into(trained: SimpleNamespace, tmp_path: Path) -> None:
    save(tmp_path / "0.jpg")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert fgzoo("predict", trained.run, "0.jpg", "--output", "pipe", "--format", "jsonl", *ON_CPU).status == 0
    assert json.loads(os.read(reader, 10_000))["path"] == "0.jpg"
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jpg", "pipe"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_row_is_there_before_the_next_image_is_computed(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flushed(io.StringIO):
        """What a reader can see."""

        seen = ""

        def flush(self) -> None:
            self.seen = self.getvalue()

    out = Flushed()
    monkeypatch.setattr(sys, "stdout", out)

    def predictions() -> Iterator[Prediction]:
        for done in range(3):
            assert out.seen.count("\n") == done + (form == "csv")
            yield Prediction(("a",), (1.0,), accepted=True)

    files.write_predictions(None, form, [Path(f"{index}.jpg") for index in range(3)], predictions(), 1)


def process(run: Path, images: int, **streams: Any) -> subprocess.Popen[str]:
    """`fgzoo predict` of the same photo again and again, row by row."""
    typed = [sys.executable, "-m", "fgzoo", "predict", run, "-", "--output", "-", "--batch-size", "1", *map(str, ON_CPU)]
    Path("list.txt").write_text("photo.jpg\n" * images)
    with Path("list.txt").open() as names:
        return subprocess.Popen(typed, stdin=names, stderr=subprocess.PIPE, text=True, **streams)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
def test_a_reader_that_leaves_ends_it_quietly(trained: SimpleNamespace, tmp_path: Path) -> None:
    save(tmp_path / "photo.jpg")
    with process(trained.run, 3000, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline().startswith("path,class,accepted,class_1")
        running.stdout.close()
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert "roken pipe" not in err
    assert "Traceback" not in err


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
@pytest.mark.parametrize("typed", ["--help", "--version", "list methods"])
def test_a_listing_that_nobody_reads_ends_quietly(typed: str) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "fgzoo", *typed.split()], text=True, **pipes) as running:  # type: ignore[call-overload]
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 0


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
def test_an_interruption_leaves_whole_rows_on_standard_output(trained: SimpleNamespace, tmp_path: Path) -> None:
    save(tmp_path / "photo.jpg")
    with process(trained.run, 3000, stdout=subprocess.PIPE) as running:
        head = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGINT)
        rest, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert "interrupted" in err
    rows = list(csv.reader([*head, *rest.splitlines(keepends=True)]))
    assert 3 <= len(rows) < 3001
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rest == "" or rest.endswith("\n")


def test_an_interruption_leaves_the_rows_that_are_done_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Iterator[tuple[Path, Prediction]]:
        yield Path("a.jpg"), Prediction(("Wren",), (0.9,))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files._show(interrupted())
    assert "Wren" in capsys.readouterr().out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nMore"), RuntimeError("can't allocate memory")])
def test_a_batch_that_fits_no_memory_leaves_the_rows_before_it(
    trained: SimpleNamespace, error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, passed = Baseline.forward, []

    def full(*given: Any) -> Any:
        passed.append(given)
        if len(passed) == 2:
            raise error
        return whole(*given)

    monkeypatch.setattr(Baseline, "forward", full)
    for index in range(5):
        save(tmp_path / f"{index}.jpg", index)
    result = fgzoo("predict", trained.run, tmp_path, "--batch-size", 2, "--output", "p.csv", *ON_CPU)
    assert result.status == 1
    said = str(error).splitlines()[0]
    expected = f"fgzoo: predict: no memory left for 2 images at a time; lower --batch-size ({said}); p.csv holds the 2 rows"
    assert expected in result.err
    assert len(rows(Path("p.csv"))) == 2
    assert fgzoo("explain", trained.run, "0.jpg", "--output", "looked", *ON_CPU).status == 0


@pytest.mark.parametrize(
    ("form", "head", "number", "told"),
    [
        ("csv", 1, signal.SIGINT, "interrupted"),
        ("jsonl", 0, signal.SIGINT, "interrupted"),
        ("csv", 1, signal.SIGTERM, "ended by SIGTERM"),
    ],
)
def test_an_interruption_leaves_the_rows_that_are_done_in_a_file(
    trained: SimpleNamespace, form: str, head: int, number: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = {"csv": "_cells", "jsonl": "_record"}[form]
    row, done = getattr(files, writer), []

    def interrupted(*given: Any) -> Any:
        done.append(given)
        if len(done) == 3:
            signal.raise_signal(number)
        return row(*given)

    monkeypatch.setattr(files, writer, interrupted)
    for index in range(4):
        save(tmp_path / f"{index}.jpg", index)
    (tmp_path / f"p.{form}").write_text("yesterday's")
    result = fgzoo("predict", trained.run, *(f"{index}.jpg" for index in range(4)), "--output", f"p.{form}", *ON_CPU)
    assert result.status == 128 + number
    assert f"{told}; p.{form} holds the 2 rows that were done" in result.err
    assert list(tmp_path.glob(".*")) == []
    lines = (tmp_path / f"p.{form}").read_text().splitlines()[head:]
    assert ["0.jpg" in lines[0], "1.jpg" in lines[1], len(lines)] == [True, True, 2]
