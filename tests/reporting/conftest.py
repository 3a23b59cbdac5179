"""A run on generated photos with planted label errors and copies, and its report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fgzoo.reporting.report import Report, write_report
from tests.builders import encode
from tests.command import fgzoo

#: Class names as people have them: in other scripts, and with what means something in HTML.
NAMES = ("<b>&amp;_crow_{{script}}", "نورس_فضي", "海鸥", "plain_gull")
#: Photos of a class that are trained on and tested on, and test photos of a class that are labelled as the next one.
TRAIN, TEST, WRONG = 30, 25, 3


class Reported(NamedTuple):
    """A run, where its photos lie, and what was planted among them."""

    run: Path
    root: Path
    report: Report
    mislabelled: set[Path]
    copies: dict[Path, Path]
    altered: tuple[Path, Path]
    contradiction: tuple[Path, Path]


def photo(target: int, index: int) -> Image.Image:
    """A soft scene of its own in the colour of its class."""
    draw = np.random.default_rng([target, index])
    scene = Image.fromarray(draw.integers(0, 256, (7, 9)).astype(np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)
    tint = np.array([(220, 60, 60), (60, 200, 60), (70, 80, 230), (210, 200, 60)][target])
    return Image.fromarray((np.asarray(scene)[..., None] / 255 * 0.6 * tint + 0.4 * tint).clip(0, 255).astype(np.uint8))


def plant(root: Path) -> Reported:
    """Class folders with label errors in the test part, copies of training photos in it, and one photo in two classes."""
    mislabelled, copies = set(), {}
    for target, name in enumerate(NAMES):
        for part, first, count in (("train", 0, TRAIN), ("test", 100, TEST)):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                path = root / part / name / f"{index}.png"
                wrong = part == "test" and index < WRONG
                path.write_bytes(encode(photo((target + 3) % 4 if wrong else target, first + index), "PNG"))
                mislabelled |= {path} if wrong else set()
    for target, name in enumerate(NAMES[:3]):
        source, copy = (root / part / name / f"{number}.png" for part, number in (("train", target), ("test", 20 + target)))
        shutil.copyfile(source, copy)
        copies[copy] = source
    altered = root / "train" / NAMES[3] / "5.png", root / "test" / NAMES[3] / "smaller.jpg"
    altered[1].write_bytes(encode(Image.open(altered[0]).resize((60, 47)), quality=60))
    contradiction = root / "train" / NAMES[2] / "7.png", root / "train" / NAMES[3] / "again.png"
    shutil.copyfile(*contradiction)
    return Reported(Path(), root, Report(Path(), []), mislabelled, copies, altered, contradiction)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reported")
    planted, run = plant(folder / "photos"), folder / "a run's folder"
    network = ("--model.backbone", "test_efficientnet", "--model.pretrained", "false", "--model.lr", "3e-3")
    images = ("--data.image_size", "64", "--data.resize", "64", "--data.batch_size", "8", "--data.num_workers", "0")
    machine = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_epochs", "4")
    what = ("--config", "folder", "--model", "wsdan", "--model.num_maps", "4", "--data.val_fraction", "0.1")
    result = fgzoo("fit", *what, "--data.root", planted.root, *network, *images, *machine, "--output", run)
    assert result.status == 0, result.err
    assert fgzoo("test", "--ckpt_path", run).status == 0
    return planted._replace(run=run, report=write_report(run))
