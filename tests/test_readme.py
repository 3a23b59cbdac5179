"""What the READMEs show works as it stands there."""

from __future__ import annotations

import csv
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from fgzoo.cli import main
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.recipes import find_recipe
from fgzoo.testing import check_method

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
TEXT = README.read_text(encoding="utf-8")
#: The front page and the pages of folders that it leads to.
PAGES = [README, *sorted((REPOSITORY / "fgzoo").glob("*/README.md")), REPOSITORY / "benchmarks" / "README.md"]
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
USE = next(block for block in BLOCKS if "create_model" in block)
OWN = next(block for block in BLOCKS if "class Peak" in block)
SHELL = re.findall(r"```sh\n(.*?)```", "\n".join(page.read_text(encoding="utf-8") for page in PAGES), flags=re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in SHELL for line in block.splitlines()]
PHOTOS = next(block for block in SHELL if "fgzoo fit photos/" in block)
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
    check_method(importlib.import_module("peak").Peak)


def test_the_method_of_your_own_goes_through_the_verbs(peak: Path) -> None:
    (said,) = re.findall(r"`fgzoo (fit --model peak\.Peak[^`]*)`", TEXT)
    small = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.image_size", "64", "--data.batch_size", "4"]
    small += ["--data.birds", "{classes: 3, train_per_class: 4, test_per_class: 2, size: 64}"]
    assert main([*shlex.split(said), *small, "--output", "run"]) == 0
    assert main(["test", "--ckpt_path", "run"]) == 0
    sys.modules.pop("peak")  # as in a process of its own
    assert main(["report", "run", "--trust", "peak", "--skip-duplicates"]) == 0
    assert "test/top1" in (peak / "run" / "metrics.csv").read_text()


def test_your_own_photos_are_trained_on_and_explained(tmp_path: Path) -> None:
    birds = SyntheticBirds(Birds(classes=3, train_per_class=5, test_per_class=1, size=64))
    for record in birds.listing().train:
        folder = tmp_path / "photos" / f"bird {record.target}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(birds.read(record).permute(1, 2, 0).numpy())
        image.save(folder / f"{record.name.replace('/', '_')}.jpg")
    small = ["--model.backbone", "test_efficientnet", "--model.pretrained", "false", "--trainer.max_epochs", "2"]
    small += ["--data.image_size", "64", "--data.resize", "64", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    shutil.copytree(tmp_path / "photos", tmp_path / "new")
    for line in PHOTOS.splitlines():
        words = shlex.split(line.partition("#")[0])
        assert main(words[1:] + (small if words[1] == "fit" else [])) == 0
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert {row["class_1"] for row in rows} <= {"bird 0", "bird 1", "bird 2", "unknown"}
    assert "test/top1" in (tmp_path / "runs/folder-rra/000/metrics.csv").read_text()
    assert (tmp_path / "looked/index.html").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("fgzoo")])
def test_recipes_of_the_commands_exist(command: str) -> None:
    words = shlex.split(command)
    for option, value in pairwise(words):
        if option == "--config":
            assert find_recipe(value)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_targets_of_the_commands_exist(command: str) -> None:
    assert shlex.split(command)[1] in TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_no_path_of_a_machine_stands_in_a_page_and_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w~.])/(home|root|work|tmp)/", text)
    for target in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert (page.parent / target).exists(), target
