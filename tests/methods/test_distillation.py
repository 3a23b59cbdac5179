"""Learning from teachers: what a teacher sees, and a run that has one."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fgzoo import load
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.synthetic import Birds
from fgzoo.errors import CheckpointError, UntrainedError, UsageError
from fgzoo.methods import available
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.distillation import teacher_logits
from fgzoo.nn.evidence import distillation_loss
from tests.builders import make_cub
from tests.command import fgzoo, fit, weights
from tests.small import CARD, small
from tests.training.toys import trainer

IMAGES = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def birds() -> FGVCDataModule:
    return FGVCDataModule("birds", None, 64, 64, batch_size=4, num_workers=0, birds=Birds(4, 2, 1, 64))


def trained_on_birds(name: str = "baseline", seed: int = 2) -> FineGrainedClassifier:
    data = birds()
    data.setup("fit")
    return small(name, card=data.card, seed=seed)


def taught(name: str, teacher: FineGrainedClassifier, **more: Any) -> FineGrainedClassifier:
    student = small(name, seed=1, **more)
    student.teachers = [teacher]
    return student


# ---------------------------------------------------------------------- what teachers say


def test_a_teacher_sees_images_with_its_own_statistics_and_size() -> None:
    teacher, student = small(card=replace(CARD, image_size=32)), small(seed=1)
    student.pixel_mean, student.pixel_std = torch.full((3, 1, 1), 10.0), torch.full((3, 1, 1), 3.0)
    resized = torch.nn.functional.interpolate(IMAGES.float(), size=(32, 32), mode="bilinear", antialias=True)
    expected = (teacher((resized - teacher.pixel_mean) / teacher.pixel_std).logits / 2).softmax(dim=1)
    found = teacher_logits([teacher], student, student.normalize(IMAGES), 2.0)
    torch.testing.assert_close((found / 2).softmax(dim=1), expected, atol=1e-4, rtol=0)


def test_teachers_are_averaged() -> None:
    one, other, student = small(seed=2), small("rra", seed=3), small(seed=1)
    images = student.normalize(IMAGES)
    alone = [(teacher_logits([teacher], student, images, 3.0) / 3).softmax(dim=1) for teacher in (one, other)]
    together = (teacher_logits([one, other], student, images, 3.0) / 3).softmax(dim=1)
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


# ---------------------------------------------------------------------- in training


@pytest.mark.parametrize("name", sorted(available()))
def test_every_method_learns_from_a_teacher(tmp_path: Path, name: str) -> None:
    teacher = trained_on_birds()
    student = taught(name, teacher, teacher_weight=0.25)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    fitted = trainer(tmp_path, max_epochs=2)
    fitted.fit(student, datamodule=birds())
    assert math.isfinite(float(fitted.callback_metrics["train/loss_teacher"]))
    torch.testing.assert_close(student.teachers[0].state_dict(), before, rtol=0, atol=0)
    assert not any(key.startswith("teachers") for key in student.state_dict())


def test_the_terms_share_the_weight() -> None:
    student = taught("baseline", small(seed=2), teacher_weight=0.25, teacher_temperature=3.0)
    images, targets = student.normalize(IMAGES), torch.tensor([0, 1, 2, 3])
    output = student(images)
    alone = student.loss(output, targets)
    terms = student.taught(alone, output, images)
    soft = distillation_loss(output.logits, teacher_logits(student.teachers, student, images, 3.0), 3.0)
    torch.testing.assert_close(terms, {name: 0.75 * term for name, term in alone.items()} | {"teacher": 0.25 * soft})


def test_a_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    data = birds()
    data.setup("fit")
    images = torch.stack([data.listing.read(record) for record in data.splits["train"]])

    def distance(student: FineGrainedClassifier) -> float:
        with torch.no_grad():
            seen = student.eval().normalize(images)
            return float(distillation_loss(student(seen).logits, teacher_logits(student.teachers, student, seen, 1.0), 1.0))

    student = taught("baseline", trained_on_birds(), teacher_weight=1.0, optimizer="adamw", lr=0.002)
    before = distance(student)
    trainer(tmp_path, max_epochs=10).fit(student, datamodule=data)
    assert distance(student) < 0.8 * before


@pytest.mark.parametrize(
    ("teacher", "error", "said"),
    [
        (small(), CheckpointError, "model.teacher: another one, or none by --model.teacher null: .* class 0 is 'Cardinal'"),
        (None, UsageError, "fgzoo.load"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    tmp_path: Path, teacher: FineGrainedClassifier | None, error: type[Exception], said: str
) -> None:
    student = small(seed=1, teacher="somewhere")
    student.teachers = [] if teacher is None else [teacher]
    with pytest.raises(error, match=said):
        trainer(tmp_path).fit(student, datamodule=birds())


@pytest.mark.parametrize(("lacking", "error"), [({"trained": False}, UntrainedError), ({"card": None}, CheckpointError)])
def test_a_teacher_that_was_not_trained_or_knows_no_data_is_refused(
    lacking: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    teacher = trained_on_birds()
    vars(teacher).update(lacking)
    with pytest.raises(error):
        trainer(tmp_path).fit(taught("baseline", teacher), datamodule=birds())


@pytest.mark.parametrize("wrong", [{"teacher_weight": 0.0}, {"teacher_weight": 1.1}, {"teacher_temperature": 0.0}])
def test_wrong_arguments_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        small(**wrong)


# ---------------------------------------------------------------------- a run


def test_a_run_learns_from_runs_and_does_not_need_them_afterwards(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "data", per_class=6)
    for seed in (1, 2):
        assert fit(root, "--output", tmp_path / f"teacher{seed}", "--seed_everything", seed).status == 0
    teachers = f"[{tmp_path / 'teacher1'},{tmp_path / 'teacher2'}]"
    assert fit(root, "--output", tmp_path / "student", "--model.teacher", teachers).status == 0
    assert fit(root, "--output", tmp_path / "alone").status == 0
    name = "network.classifier.weight"
    assert not torch.equal(weights(tmp_path / "student")[name], weights(tmp_path / "alone")[name])
    for seed in (1, 2):
        shutil.rmtree(tmp_path / f"teacher{seed}")
    assert load(tmp_path / "student").hparams["teacher"] is None
    assert fgzoo("test", "--ckpt_path", tmp_path / "student").status == 0


def test_a_teacher_that_is_not_there_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    result = fit(make_cub(tmp_path / "data"), "--output", tmp_path / "run", "--model.teacher", tmp_path / "nowhere")
    assert result.status == 2
    assert "nowhere" in result.err
    assert not (tmp_path / "run").exists()
