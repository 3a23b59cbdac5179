"""Damaged files: two hundred mutations of every kind by benchmarks/fuzzing.py end in answers or errors that name the file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.scripts import scripts

KINDS = (
    "JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "safetensors", "Lightning checkpoint", "backbone weights",
    "table (CSV, TSV)", "split.csv", "CUB lists", "aircraft lists", "cars lists", "config", "config on the command line",
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[Any]:
    """The script as a module; it imports another by name."""
    with scripts("common", "fuzzing") as found:
        yield found.fuzzing


@pytest.fixture(scope="module")
def surfaces(fuzzing: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fuzzing.surfaces(tmp_path_factory.mktemp("files"))


@pytest.mark.filterwarnings("ignore")  # of Pillow's and timm's about what they find
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_answers_or_errors_that_name_them(fuzzing: Any, surfaces: Any, kind: str, tmp_path: Path) -> None:
    if kind not in surfaces:
        pytest.skip(f"Pillow here writes no {kind}")
    count = 5 if kind.endswith("command line") else 200  # which takes a third of a second
    outcomes = [fuzzing.attempt(kind, surfaces[kind], 0, number) for number in range(count)]
    assert [one for one in outcomes if not one.fine] == []
    assert list(tmp_path.iterdir()) == []  # the working folder
    assert len({one.answer for one in outcomes}) > 1  # some are read, and some are not


@pytest.mark.parametrize("way", ["truncate", "flip", "splice", "header", "word"])
def test_each_way_damages_and_a_seed_repeats_it(fuzzing: Any, way: str) -> None:
    data, other = b"0123456789 abcdef " * 8, b"A BC DEF " * 16
    made = [fuzzing.mutated(data, other, way, Random(seed)) for seed in range(20)]
    assert made == [fuzzing.mutated(data, other, way, Random(seed)) for seed in range(20)]
    assert len(set(made)) > 10
    assert data not in made or way in ("word", "flip")


def answer(fuzzing: Any, tmp_path: Path, read: Any) -> str:
    """What is counted where a file is read like this."""
    outcome = fuzzing.attempt("x", fuzzing.Surface({tmp_path / "a.txt": [b"text"]}, read), 0, 0)
    assert (tmp_path / "a.txt").read_bytes() == b"text"
    return outcome.answer


def test_what_reading_must_not_do_is_seen(fuzzing: Any, tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise ValueError(path)

    def blames_nothing(path: Path) -> None:
        raise fuzzing.DataError("something is wrong")

    def blames(path: Path) -> None:
        raise fuzzing.DataError(f"{path}, line 1: wrong")

    assert answer(fuzzing, tmp_path, fails) == "ValueError, untyped"
    assert answer(fuzzing, tmp_path, blames_nothing) == "DataError, of no file"
    assert answer(fuzzing, tmp_path, blames) == "DataError"
    assert answer(fuzzing, tmp_path, lambda path: path.with_name("new").write_bytes(b"")) == f"open {tmp_path / 'new'}, forbidden"
    assert answer(fuzzing, tmp_path, lambda _: os.system("true")) == "os.system b'true', forbidden"


def test_crashes_and_hangs_are_counted_and_the_rest_is_tried(
    fuzzing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents: list[bytes] = []
    surface = fuzzing.Surface({tmp_path / "a.txt": [bytes(range(200))]}, lambda path: contents.append(path.read_bytes()))
    for number in range(4):
        fuzzing.attempt("x", surface, 0, number)

    def read(path: Path) -> None:
        turn = contents.index(path.read_bytes())
        if turn == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if turn == 2:
            time.sleep(600)

    monkeypatch.setattr(fuzzing, "PATIENCE", 10.0)
    found = [outcome.answer for outcome, _ in fuzzing.tried(("x", surface._replace(read=read)), 0, 4)]
    assert found == ["answer", "crash, -9", "hang, 10 s", "answer"]


def test_outcomes_are_counted_by_kind(fuzzing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing.common, "RESULTS", tmp_path)
    assert fuzzing.common.main(fuzzing.run, ["--count", "20", "--only", "BMP", "--write", "found"]) == 0
    [row] = fuzzing.common.read_csv(tmp_path / "found.csv")
    assert (row["what"], row["mutations"], row["others"]) == ("BMP", "20", "none")
    assert row["named errors"] == f"DataError {20 - int(row['answers'])}"
    assert 0 <= float(row["memory_mib"]) < 500
    assert "| BMP | 0 | 20 |" in (tmp_path / "found.md").read_text()
