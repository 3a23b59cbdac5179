"""The checkpoints inside the package, which answer at once and offline, and those that lie in the repository."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from fgzoo import load
from fgzoo.checkpoints.registry import SUFFIX, read_registry
from fgzoo.checkpoints.run_folder import resolve
from fgzoo.data import download
from fgzoo.data.synthetic import Birds, SyntheticBirds
from fgzoo.export.quantization import quantization_images
from fgzoo.files import file_hash
from fgzoo.recipes import read_recipe
from tests.command import MACHINE, fgzoo, metrics

REPOSITORY = Path(__file__).parents[2]
PACKAGED = {name: entry for name, entry in read_registry().items() if entry.sources[0].startswith("package:")}
IN_REPOSITORY = {name: entry for name, entry in read_registry().items() if ":" not in entry.sources[0]}


#: Those that the packaged recipes train on.
BIRDS = SyntheticBirds(Birds(**read_recipe("birds/baseline")["data"]["birds"]))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGZOO_OFFLINE", "1")


def test_the_baseline_and_the_four_methods_are_there() -> None:
    assert {entry.method for entry in PACKAGED.values()} == {"baseline", "rra", "iagn", "coarse2fine", "srbn"}


@pytest.mark.parametrize("name", PACKAGED)
def test_each_is_small_and_has_a_card(name: str) -> None:
    entry = PACKAGED[name]
    assert entry.size <= 3_000_000
    folder = Path(load.__code__.co_filename).parent
    assert (folder / f"{name}{SUFFIX}").stat().st_size == entry.size
    assert entry.sha256 in (folder / f"{name}.md").read_text()


@pytest.mark.parametrize("name", PACKAGED)
def test_each_is_as_good_as_its_entry_says(name: str) -> None:
    model, count = load(name), 60
    records = BIRDS.listing().test[:count]  # five of each class
    answers = model.predict([BIRDS.read(record) for record in records], top_k=1)
    hits = [answer.classes[0] == model.card.class_names[record.target] for answer, record in zip(answers, records, strict=True)]
    claimed = PACKAGED[name].metrics["top1"]["value"]
    # Three standard errors of a sample of this size.
    assert sum(hits) / count == pytest.approx(claimed, abs=3 * math.sqrt(claimed * (1 - claimed) / count))


def test_testing_one_scores_what_its_entry_says() -> None:
    result = fgzoo("test", "--ckpt_path", "baseline_birds", "--output", "tested", *MACHINE)
    assert result.status == 0, result.err
    assert "Note" not in result.out
    claimed = PACKAGED["baseline_birds"].metrics["top1"]["value"]
    assert float(metrics(Path("tested"))[-1]["test/top1"]) == pytest.approx(claimed, abs=0.003)  # another processor's roundings


def test_other_birds_than_those_it_was_trained_on_are_told() -> None:
    fewer = ("--data.birds.test_per_class", 1, "--trainer.limit_test_batches", 1)
    result = fgzoo("test", "--ckpt_path", "baseline_birds", *fewer, *MACHINE)
    assert "Note: the images are not those that " in result.out
    assert f"fingerprint of the lists {load('baseline_birds').card.fingerprint} there, " in result.out


def test_one_is_quantised_by_the_birds_of_its_training() -> None:
    found = quantization_images(load("baseline_birds"), resolve("baseline_birds"), [])
    assert torch.equal(found.calibration[0], BIRDS.read(BIRDS.listing().train[0]))
    assert (len(found.measured), found.kind) == (600, "test images")


def test_predict_answers_at_once() -> None:
    record = BIRDS.listing().test[0]
    Image.fromarray(BIRDS.read(record).permute(1, 2, 0).numpy()).save("bird.png")
    assert fgzoo("predict", "baseline_birds", "bird.png", "--output", "answers.csv", "--num-workers", 0).status == 0
    with Path("answers.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["class_1"] in BIRDS.listing().class_names
    assert row["error"] == ""


def test_predict_imports_neither_training_nor_other_methods() -> None:
    Image.new("RGB", (40, 30)).save("bird.png")
    code = """import sys
from fgzoo.cli import main
assert main(["predict", "rra_birds", "bird.png"]) == 0
sys.stderr.write(" ".join(sys.modules))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert "fgzoo.methods.rra" in found
    unwanted = ("fgzoo.training", "fgzoo.interpret", "fgzoo.data.datamodule", "fgzoo.data.synthetic", "lightning.pytorch.cli")
    others = tuple(f"fgzoo.methods.{name}" for name in ("baseline", "iagn", "coarse2fine", "srbn"))
    assert [module for module in found if module.startswith((*unwanted, *others))] == []


def test_what_is_here_is_found_without_what_downloads() -> None:
    code = """import sys
from fgzoo.checkpoints.run_folder import resolve
assert resolve("baseline_birds").is_file()
sys.exit(bool({"requests", "torch"} & set(sys.modules)))"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "baseline_birds", "bird.png"),
        ("test", "--ckpt_path", "baseline_birds", "--data.birds.test_per_class", 1, "--trainer.limit_test_batches", 1, *MACHINE),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_verifies_its_checkpoint_once(arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save("bird.png")
    verified = []
    monkeypatch.setattr(download, "file_hash", lambda path, *rest: verified.append(path.name) or file_hash(path, *rest))
    result = fgzoo(*arguments)
    assert result.status == 0, result.err
    assert verified == [f"baseline_birds{SUFFIX}"]


def test_explain_answers_at_once() -> None:
    torch.manual_seed(0)
    Image.fromarray(BIRDS.read(BIRDS.listing().test[0]).permute(1, 2, 0).numpy()).save("bird.png")
    assert fgzoo("explain", "rra_birds", "bird.png", "--output", "looked", "--num-workers", 0).status == 0
    assert "step 1 of 10" in Path("looked/index.html").read_text()


# ---------------------------------------------------------------------- in the repository


@pytest.mark.parametrize("name", IN_REPOSITORY)
def test_a_checkout_has_its_checkpoints_and_their_cards(name: str) -> None:
    entry = IN_REPOSITORY[name]
    model = load(name)
    assert (len(model.card.class_names), model.card.image_size) == (entry.classes, entry.image_size)
    card = (REPOSITORY / entry.sources[0]).with_suffix(".md").read_text()
    assert entry.sha256 in card
    assert ("**A subset**" in card) == (entry.classes < 200)


def test_the_four_methods_are_at_most_sixty_megabytes_and_others_small() -> None:
    methods = ("rra", "iagn", "coarse2fine", "srbn")
    four = [entry.size for entry in IN_REPOSITORY.values() if entry.method in methods]
    assert len(four) == 4
    assert sum(four) <= 60_000_000
    assert all(entry.size <= 5_000_000 for entry in IN_REPOSITORY.values() if entry.method not in methods)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "checkpoints").glob("*.onnx")), ids=lambda path: path.stem)
def test_a_file_for_phones_is_small_and_answers_as_its_checkpoint(path: Path) -> None:
    assert path.stat().st_size <= 5_000_000
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["fgzoo"])
    model = load(about["checkpoint"]).eval()
    assert about["class_names"] == list(model.card.class_names)
    birds = SyntheticBirds(Birds(classes=12, train_per_class=1, test_per_class=2, size=model.card.image_size))
    images = model.normalize(torch.stack([birds.read(record) for record in birds.listing().test]))
    with torch.no_grad():
        wanted = model(images).logits.numpy()
    found = session.run(["logits"], {"images": images.numpy()})[0]
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.97  # eight bits
