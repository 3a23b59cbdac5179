"""From an upright uint8 image to the network's uint8 input, and mixing of batches: torchvision's transforms v2 throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import v2

from fgzoo.errors import UsageError
from fgzoo.nn.randomness import keyed_uniform

Augmentation = Literal["paper", "standard", "strong"]
ResizeMode = Literal["squash", "shortest"]
Transform = Callable[[Tensor], Tensor]

#: The customary margin: 224 pixels are cropped from 256, 448 from 512.
CROP_SHARE = 0.875


def default_resize(image_size: int, augmentation: str) -> int:
    """Side to which images are resized when nothing is said: no margin for `paper`, else 256 for 224, 512 for 448."""
    return image_size if augmentation == "paper" else round(image_size / CROP_SHARE)


def augmentation_transform(augmentation: Augmentation, image_size: int) -> Transform:
    """What follows the resize in training.

    Args:
        augmentation: `paper`: the central crop. `standard`: a random crop. `strong`: the same and one random operation of random
            strength (TrivialAugment Wide, arXiv 2103.10158). Flips come later, see [flip_batch][].
        image_size: Side of the result in pixels.

    Returns:
        uint8 (3, H, W), already resized -> uint8 (3, image_size, image_size); random choices come from torch's global generator.
    """
    if augmentation not in get_args(Augmentation):
        raise UsageError(f"data.augmentation: '{augmentation}' is none of {', '.join(get_args(Augmentation))}")
    if augmentation == "paper":
        return v2.CenterCrop(image_size)
    crop = v2.RandomCrop(image_size)
    if augmentation == "strong":
        return v2.Compose([crop, v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)])
    return crop


def evaluation_transform(image_size: int, resize: int, resize_mode: str) -> Transform:
    """Resize and take the central crop: nothing random.

    Args:
        image_size: Side of the result in pixels.
        resize: Side to resize to before the crop.
        resize_mode: `squash` or `shortest`.

    Returns:
        uint8 (3, H, W) -> uint8 (3, image_size, image_size).
    """
    return v2.Compose([resize_transform(resize, resize_mode), v2.CenterCrop(image_size)])


def resize_transform(side: int, mode: str) -> Transform:
    """The resize that every image passes, in training and evaluation; nothing random.

    Args:
        side: Side of the square, or length of the shorter side, in pixels.
        mode: `squash` or `shortest`.

    Returns:
        uint8 (3, H, W) -> uint8 (3, side, side), or (3, H', W') with min(H', W') = side.
    """
    if mode not in get_args(ResizeMode):
        raise UsageError(f"data.resize_mode: '{mode}' is none of {', '.join(get_args(ResizeMode))}")
    size = [side, side] if mode == "squash" else [side]
    return v2.Resize(size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


def flip_batch(images: Tensor, keys: Tensor) -> Tensor:
    """Mirror half of the images, decided by their keys.

    Args:
        images: (B, 3, H, W).
        keys: (B, 3), the (seed, epoch, index) of the samples.

    Returns:
        (B, 3, H, W).
    """
    mirrored = keyed_uniform(keys, salt=1)[:, :, None, None] < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def mix_batch(images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """CutMix (arXiv 1905.04899) or mixup (arXiv 1710.09412, alpha 0.2), one of them for the whole batch.

    Args:
        images: (B, 3, H, W) floats.
        targets: (B,) classes.
        num_classes: K.

    Returns:
        Mixed images and their class probabilities (B, K).
    """
    choice = v2.RandomChoice([v2.CutMix(num_classes=num_classes), v2.MixUp(alpha=0.2, num_classes=num_classes)])
    mixed: tuple[Tensor, Tensor] = choice(images, targets)
    return mixed
