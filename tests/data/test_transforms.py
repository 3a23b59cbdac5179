from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from fgzoo.data.transforms import (
    augmentation_transform,
    default_resize,
    evaluation_transform,
    flip_batch,
    mix_batch,
    resize_transform,
)
from fgzoo.errors import UsageError

IMAGE = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", ["paper", "standard", "strong"])
def test_training_images_have_the_asked_size(preset: str) -> None:
    image = augmentation_transform(preset, 32)(IMAGE)
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize("size", [(3, 1, 1), (3, 1, 500), (3, 500, 3)])
def test_any_shape_is_evaluated(size: tuple[int, ...], mode: str) -> None:
    assert evaluation_transform(32, 36, mode)(torch.zeros(size, dtype=torch.uint8)).shape == (3, 32, 32)


def test_evaluation_is_deterministic() -> None:
    transform = evaluation_transform(32, 36, "squash")
    torch.manual_seed(0)
    first = transform(IMAGE)
    torch.manual_seed(1)
    assert torch.equal(transform(IMAGE), first)


@pytest.mark.parametrize("preset", ["standard", "strong"])
def test_the_generators_state_decides_a_training_image(preset: str) -> None:
    transform = augmentation_transform(preset, 32)

    def image(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(IMAGE)

    assert torch.equal(image(0), image(0))
    assert any(not torch.equal(image(seed), image(0)) for seed in range(8))


def keys(count: int, epoch: int = 0) -> torch.Tensor:
    return torch.stack([torch.zeros(count), torch.full((count,), epoch), torch.arange(count)], dim=1).long()


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(4.0).expand(2000, 3, 2, 4)
    mirrored = flip_batch(images, keys(2000))[:, 0, 0, 0] == 3
    assert torch.equal(flip_batch(images, keys(2000))[mirrored], images.flip(-1)[mirrored])
    assert torch.equal(flip_batch(images, keys(2000))[~mirrored], images[~mirrored])
    assert 0.45 < mirrored.float().mean() < 0.55


def test_mirroring_is_decided_by_the_key_alone() -> None:
    images = torch.arange(4.0).expand(200, 3, 2, 4)
    alone = torch.cat([flip_batch(images[i : i + 1], keys(200)[i : i + 1]) for i in range(200)])
    assert torch.equal(alone, flip_batch(images, keys(200)))
    assert not torch.equal(flip_batch(images, keys(200, epoch=1)), alone)


def test_paper_sees_the_whole_image_and_nothing_random() -> None:
    resized = resize_transform(default_resize(32, "paper"), "squash")(IMAGE)
    assert torch.equal(augmentation_transform("paper", 32)(resized), v2.functional.resize(IMAGE, [32, 32], antialias=True))


def test_squash_changes_the_aspect_and_shortest_keeps_it() -> None:
    # A white left half: squashed it fills half the width; by the shorter side the centre crop cuts both ends alike.
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, :, :20] = 255
    squashed = evaluation_transform(40, 40, "squash")(image)
    shortest = evaluation_transform(40, 40, "shortest")(image)
    assert squashed[0, 20, 5] > 200
    assert shortest.max() == 0


@pytest.mark.parametrize(
    ("size", "preset", "resize"), [(224, "standard", 256), (448, "standard", 512), (448, "strong", 512), (448, "paper", 448)]
)
def test_default_resize(size: int, preset: str, resize: int) -> None:
    assert default_resize(size, preset) == resize


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UsageError, match="'strnog' is none of paper, standard, strong"):
        augmentation_transform("strnog", 32)


def test_an_unknown_resize_mode_is_named() -> None:
    with pytest.raises(UsageError, match="'longest' is none of squash, shortest"):
        evaluation_transform(32, 32, "longest")


@pytest.mark.parametrize("seed", range(6))
def test_mixed_targets_are_probabilities_of_the_two_classes(seed: int) -> None:
    torch.manual_seed(seed)
    images, targets = mix_batch(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]), 5)
    assert images.shape == (4, 3, 16, 16)
    assert targets.shape == (4, 5)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    assert (targets > 0).sum(dim=1).max() <= 2
    assert (targets >= 0).all()


def test_some_batches_are_mixed_up_and_some_are_cut() -> None:
    # Of a black and a white image, cutmix keeps pure pixels, mixup makes gray ones.
    torch.manual_seed(0)
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    gray = []
    for _ in range(20):
        mixed, _ = mix_batch(images, torch.tensor([0, 1]), 2)
        gray.append(bool(((mixed > 0) & (mixed < 1)).any()))
    assert set(gray) == {True, False}
