"""What people install: a wheel and an sdist that hold the package and nothing else, and work far from the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fgzoo
from fgzoo.data.synthetic import Birds, SyntheticBirds

REPOSITORY = Path(__file__).parents[1]
#: All that may lie in the package.
PACKAGED = re.compile(
    r"fgzoo/(([a-z_]+/)?[a-z0-9_]+\.py|py\.typed|(interpret|serve)/page\.(html|css|js)|reporting/report\.(html|css|js)"
    r"|recipes/([a-z0-9.-]+/)?[a-z0-9.-]+\.yaml|publish/citations\.bib|nn/birds_resnet\.safetensors|checkpoints/(zoo\.yaml|[a-z0-9]+_birds\.(md|safetensors)))"
)
BUILD = (
    "import sys; from setuptools import build_meta as build; out = sys.argv[1]; build.build_wheel(out); build.build_sdist(out)"
)
VERBS = """
import sys
from fgzoo.cli import main
import fgzoo
assert fgzoo.__file__.startswith(sys.argv[1]), fgzoo.__file__
small = "--config birds/baseline --trainer.max_epochs 1 --data.birds.classes 3 --data.birds.train_per_class 4"
small += " --data.birds.size 64"
small += " --data.birds.test_per_class 1 --data.batch_size 4 --data.num_workers 0 --trainer.accelerator cpu --output run"
for line in (
    f"fit {small}", "test --ckpt_path run", "predict coarse2fine_birds photos --output answers.csv --num-workers 0",
    "explain rra_birds photos --output looked --num-workers 0", "predict run photos --output own.csv --num-workers 0",
):
    assert main(line.split()) == 0, line
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, built from a copy of the files that belong to the project."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("fgzoo", "tests", "benchmarks"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_a_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert [name for name in names if not PACKAGED.fullmatch(name)] == []
    missing = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "fgzoo").rglob("*") if path.is_file()} - set(names)
    assert [name for name in missing if PACKAGED.fullmatch(name)] == []


def test_an_sdist_holds_the_package_its_tests_and_nothing_else(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()]
    about = re.compile(r"pyproject\.toml|README\.md|LICENSE|PKG-INFO|setup\.cfg|fgzoo\.egg-info/.*|tests/test_[a-z_]+\.py")
    assert [name for name in names if not PACKAGED.fullmatch(name) and not about.fullmatch(name)] == []


def test_an_installed_wheel_trains_predicts_and_explains_without_the_source_tree(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    assert subprocess.run(install, capture_output=True).returncode == 0
    assert (place / "bin" / "fgzoo").is_file()
    SyntheticBirds(Birds(classes=3, train_per_class=1, test_per_class=1, size=128)).export(tmp_path / "cub")
    shutil.copytree(tmp_path / "cub" / "images", tmp_path / "photos")
    environment = {**os.environ, "PYTHONPATH": str(place), "FGZOO_OFFLINE": "1"}
    command = [sys.executable, "-c", VERBS, str(place)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("answers.csv", "own.csv"):
        assert (tmp_path / name).read_text().count("\n") == 7
    assert (tmp_path / "looked" / "index.html").is_file()
    assert Path(fgzoo.__file__).is_relative_to(REPOSITORY)
