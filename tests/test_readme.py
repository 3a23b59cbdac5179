"""What README shows works as it stands there."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fgzoo.cli import main
from fgzoo.recipes import find_recipe

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
USE = next(block for block in BLOCKS if "create_model" in block)
OWN = next(block for block in BLOCKS if "check_method" in block)
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]
TARGETS = {line.partition(":")[0] for line in (README.parent / "Makefile").read_text().splitlines() if ":" in line}


def test_python_use_gives_the_shapes_it_names() -> None:
    scope: dict[str, object] = {}
    exec(USE, scope)
    for expression, shape in re.findall(r"^((?:output|model)\.[^#]+?)\s+# \(([\d, ]+)\)", USE, flags=re.MULTILINE):
        assert tuple(eval(expression, scope).shape) == tuple(int(side) for side in shape.split(","))  # type: ignore[attr-defined]


@pytest.fixture
def peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """README's own method, saved as it says."""
    (tmp_path / "peak.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("peak", None)


def test_the_method_of_your_own_passes_its_checks(peak: Path) -> None:
    importlib.import_module("peak")


def test_the_method_of_your_own_goes_through_the_verbs(peak: Path) -> None:
    small = ["--model.backbone", "test_efficientnet", "--model.pretrained", "false", "--trainer.max_epochs", "1"]
    small += ["--trainer.accelerator", "cpu", "--data.birds", "{classes: 3, train_per_class: 4, test_per_class: 2, size: 64}"]
    small += ["--data.image_size", "64", "--data.batch_size", "4"]
    assert main(["fit", "--config", "birds", "--model", "peak.Peak", *small, "--output", "run"]) == 0
    assert main(["test", "--ckpt_path", "run"]) == 0
    assert "test/top1" in (peak / "run" / "metrics.csv").read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("fgzoo")])
def test_recipes_of_the_commands_exist(command: str) -> None:
    words = shlex.split(command)
    for option, value in pairwise(words):
        if option == "--config":
            assert find_recipe(value).is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_targets_of_the_commands_exist(command: str) -> None:
    assert shlex.split(command)[1] in TARGETS


def test_no_path_of_a_machine_stands_in_it() -> None:
    assert not re.search(r"(?<![\w~.])/(home|root|work|tmp)/", TEXT)
