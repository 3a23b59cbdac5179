"""`predict` where a checkpoint knows its temperature and threshold: what is called unknown, and what the rows say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgzoo import load
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.data.images import decode
from fgzoo.errors import UsageError
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.prediction.inference import classify
from fgzoo.prediction.rejection import Calibration, ClassMeans
from tests import command
from tests.builders import encode, picture
from tests.command import predict, rows
from tests.small import small


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(6):
        (folder / f"{index}.png").write_bytes(encode(picture(index, width=60 + 9 * index), "PNG"))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def bare() -> FineGrainedClassifier:
    return small()


@pytest.fixture(scope="module")
def scores(bare: FineGrainedClassifier, photos: list[Path]) -> list[float]:
    """The largest probability of each photo at the temperature 2, by hand."""
    return [float((logits / 2).softmax(0).max()) for logits in logits_of(bare, photos)]


@torch.no_grad()
def logits_of(model: FineGrainedClassifier, photos: list[Path]) -> list[torch.Tensor]:
    return [model(model.normalize(model.transform(decode(photo))[None])).logits[0] for photo in photos]


@pytest.fixture(scope="module")
def model(scores: list[float]) -> FineGrainedClassifier:
    """A model that rejects two of the six photos by its own threshold, and four where half of the known may go."""
    ordered = sorted(scores)
    between = [(ordered[place - 1] + ordered[place]) / 2 for place in (2, 4)]
    found = small()
    found.calibration = Calibration(2.0, "probability", (0.0, 0.05, 0.5), (0.0, *between), 40)
    return found


@pytest.fixture(scope="module")
def checkpoint(model: FineGrainedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "model.safetensors"
    save_safetensors(model, path)
    return path


@pytest.fixture(scope="module")
def without(bare: FineGrainedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "model.safetensors"
    save_safetensors(bare, path)
    return path


def rejected(found: list[Any]) -> list[bool]:
    return [one["class"] == "unknown" if isinstance(one, dict) else one.label == "unknown" for one in found]


def lowest(scores: list[float], count: int) -> list[bool]:
    return [score < sorted(scores)[count] for score in scores]


def test_probabilities_are_those_of_the_logits_divided_by_the_temperature(
    checkpoint: Path, photos: list[Path], scores: list[float]
) -> None:
    assert [float(row["probability_1"]) for row in rows(predict(checkpoint, *photos))] == pytest.approx(scores, abs=1e-5)


def test_what_scores_below_the_threshold_is_unknown_and_still_says_what_it_resembles(
    checkpoint: Path, photos: list[Path], scores: list[float]
) -> None:
    found = rows(predict(checkpoint, *photos))
    assert rejected(found) == lowest(scores, 2)
    assert [row["accepted"] for row in found] == ["false" if low else "true" for low in lowest(scores, 2)]
    assert all(row["class"] == row["class_1"] for row in found if row["accepted"] == "true")
    assert all(row["class_1"] in load(checkpoint).card.class_names for row in found)  # type: ignore[union-attr]


def test_what_is_far_from_every_class_mean_is_unknown(bare: FineGrainedClassifier, photos: list[Path], tmp_path: Path) -> None:
    features = bare.embed(photos)
    model = small()
    means = ClassMeans.fit(features[:4], torch.arange(4), 4)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], means.directions, dim=2).amax(dim=1).tolist()
    between = sum(sorted(cosines)[1:3]) / 2
    model.calibration = Calibration(1.0, "cosine", (0.0, 0.05), (0.0, between), 40, means)
    save_safetensors(model, tmp_path / "model.safetensors")
    assert rejected(rows(predict(tmp_path / "model.safetensors", *photos))) == lowest(cosines, 2)


def test_at_another_size_images_are_resized_in_proportion_and_nothing_is_unknown(
    checkpoint: Path, bare: FineGrainedClassifier, photos: list[Path]
) -> None:
    found = predict(checkpoint, *photos, "--size", 96)
    assert "temperature and thresholds hold at the checkpoint's own size" in found.err
    larger = small(card=replace(bare.card, image_size=96, resize=round(96 / bare.card.image_size * bare.card.resize)))
    expected = [max(one.probabilities) for one in larger.predict(photos)]
    assert [float(row["probability_1"]) for row in rows(found)] == pytest.approx(expected, abs=1e-5)
    assert not any(rejected(rows(found)))


def test_at_another_size_no_share_is_rejected(checkpoint: Path, photos: list[Path]) -> None:
    refused = predict(checkpoint, *photos, "--size", 96, "--reject", 0.1)
    assert refused.status == 2
    assert "reject 0.1: temperature and thresholds hold at the checkpoint's own size" in refused.err
    assert rejected(rows(predict(checkpoint, *photos, "--size", 64))) == rejected(rows(predict(checkpoint, *photos)))


def test_a_json_line_says_the_same(checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    table = rows(predict(checkpoint, *photos, "bad.jpg"))
    lines = predict(checkpoint, *photos, "bad.jpg", "--format", "jsonl", "--output", "-").out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [(record["class"] or "", record["error"] or "") for record in records] == [
        (row["class"], row["error"]) for row in table
    ]
    assert [json.dumps(record["accepted"]) for record in records[:-1]] == [row["accepted"] for row in table[:-1]]
    assert (records[-1]["accepted"], table[-1]["accepted"]) == (None, "")


def test_python_says_the_same(model: FineGrainedClassifier, photos: list[Path], scores: list[float]) -> None:
    found = model.predict(photos)
    assert rejected(found) == [not one.accepted for one in found] == lowest(scores, 2)
    assert model.predict("nowhere.jpg")[0].label is None


@pytest.mark.parametrize(("typed", "count"), [("off", 0), ("0.05", 2), ("0.5", 4)])
def test_reject_moves_the_threshold(checkpoint: Path, photos: list[Path], scores: list[float], typed: str, count: int) -> None:
    assert rejected(rows(predict(checkpoint, *photos, "--reject", typed))) == (lowest(scores, count) if count else [False] * 6)


def test_energy_decides_where_it_is_the_score(model: FineGrainedClassifier, photos: list[Path]) -> None:
    other = small()
    energies = [float(logits.logsumexp(0)) for logits in logits_of(other, photos)]
    middle = sorted(energies)[2] + 1e-4
    other.calibration = replace(model.calibration, score="energy", thresholds=(middle, middle, middle))
    assert [one.accepted for one in other.predict(photos)] == [energy >= middle for energy in energies]


def test_a_terminal_shows_unknown(
    checkpoint: Path, photos: list[Path], scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "io", SimpleNamespace(StringIO=command.Terminal))
    monkeypatch.setenv("COLUMNS", "200")
    shown = predict(checkpoint, *photos).out
    assert ["unknown" in line for line in shown.splitlines()[1:]] == lowest(scores, 2)


# ---------------------------------------------------------------------- where there is no threshold


def test_without_held_out_images_nothing_is_unknown_and_that_is_said_once(without: Path, photos: list[Path]) -> None:
    result = predict(without, *photos, "--batch-size", 1)
    assert {row["accepted"] for row in rows(result)} == {"true"}
    assert result.err.count("nothing is called unknown: no image was held out in training") == 1


def test_nothing_is_said_where_nothing_is_to_be_rejected(without: Path, photos: list[Path]) -> None:
    assert "unknown" not in predict(without, *photos, "--reject", "off").err


@pytest.mark.parametrize(("more", "said"), [(["--tta", "flip"], "single views"), (["--also", "SAME"], "single checkpoints")])
def test_a_mean_has_no_threshold(checkpoint: Path, photos: list[Path], more: list[str], said: str) -> None:
    typed = [checkpoint if word == "SAME" else word for word in more]
    result = predict(checkpoint, *photos, *typed)
    assert {row["accepted"] for row in rows(result)} == {"true"}
    assert said in result.err
    refused = predict(checkpoint, *photos, *typed, "--reject", "0.1")
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.err


def test_each_member_of_an_ensemble_has_its_own_temperature(model: FineGrainedClassifier, photos: list[Path]) -> None:
    other = small(seed=1)
    both = list(classify([model, other], photos, top_k=4))
    alone = [[dict(zip(one.classes, one.probabilities, strict=True)) for one in by.predict(photos)] for by in (model, other)]
    for mean, mine, theirs in zip(both, *alone, strict=True):
        found = dict(zip(mean.classes, mean.probabilities, strict=True))
        assert found == pytest.approx({name: (mine[name] + theirs[name]) / 2 for name in mine}, abs=1e-6)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("0.95", "to accept 95% of them, give 0.05"),
        ("-0.1", "-0.1 is the share"),
        ("some", "--reject: 'some' is nothing that it takes"),
    ],
)
def test_a_share_that_cannot_be_rejected_is_refused_in_a_line(
    checkpoint: Path, photos: list[Path], typed: str, said: str
) -> None:
    result = predict(checkpoint, photos[0], "--reject", typed)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert said in result.err


def test_a_share_is_refused_where_no_threshold_is_known(bare: FineGrainedClassifier, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"reject 0\.1: no image was held out"):
        bare.predict(photos, reject=0.1)
    assert all(one.accepted for one in bare.predict(photos))
