"""Learning from trained models: their softened probabilities as targets beside the classes (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.errors import CheckpointError, UsageError
from fgzoo.prediction.inference import required_card

if TYPE_CHECKING:
    from fgzoo.methods.base import FineGrainedClassifier


def check_teachers(teachers: Sequence[FineGrainedClassifier], student: FineGrainedClassifier) -> None:
    """Refuse teachers that have not been trained, or know other classes.

    Raises:
        UntrainedError, CheckpointError: See [required_card][] and [DataCard.check_classes][].
        UsageError: There is none, though the student was asked to learn from one.
    """
    if student.arguments.teacher and not teachers:
        raise UsageError("model.teacher: `fgzoo fit` loads it; in Python, set model.teachers = [fgzoo.load(...)]")
    for teacher in teachers:
        card = required_card(teacher, "model.teacher")
        if teacher.num_classes != student.num_classes:
            raise CheckpointError(f"model.teacher: one of {teacher.num_classes} classes, and the data has {student.num_classes}")
        if student.card is not None:
            try:
                card.check_classes(student.card)
            except CheckpointError as error:
                raise CheckpointError(f"model.teacher: another one, or none by --model.teacher null: {error}") from error


def teacher_logits(
    teachers: Sequence[FineGrainedClassifier], student: FineGrainedClassifier, images: Tensor, temperature: float
) -> Tensor:
    """What teachers make of a student's images, each at the size and with the statistics that it was trained with.

    Args:
        teachers: Trained models, of the student's classes and on its device.
        student: Whose images these are.
        images: (B, 3, H, W), normalised for the student.
        temperature: Divides the logits.

    Returns:
        (B, K), what divided by the temperature has the mean of the teachers' probabilities as its softmax.
    """
    pixels = images * student.pixel_std + student.pixel_mean
    found = []
    for teacher in teachers:
        assert teacher.card is not None
        seen = (pixels - teacher.pixel_mean) / teacher.pixel_std
        if max(seen.shape[-2:]) != teacher.card.image_size:
            seen = F.interpolate(seen, size=(teacher.card.image_size,) * 2, mode="bilinear", antialias=True)
        with torch.no_grad():
            found.append((teacher(seen).logits.float() / temperature).log_softmax(dim=1))
    return temperature * (torch.stack(found).logsumexp(dim=0) - math.log(len(found)))
