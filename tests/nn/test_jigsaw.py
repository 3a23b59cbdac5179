"""The jigsaw against cutting and pasting patch by patch, and its inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgzoo.errors import UsageError
from fgzoo.nn.jigsaw import jigsaw, jigsaw_order, undo_jigsaw

#: Image size and grid: divisible, oblong, with a border that stays at the right, below and both.
CASES = [((8, 8), 2), ((16, 16), 8), ((8, 12), (2, 3)), ((8, 13), 4), ((11, 8), (3, 2)), ((11, 13), (5, 4)), ((7, 5), 1)]


def patches_of(grid: int | tuple[int, int]) -> tuple[int, int]:
    return (grid, grid) if isinstance(grid, int) else grid


def random_order(batch: int, grid: int | tuple[int, int], seed: int = 0) -> Tensor:
    rows, columns = patches_of(grid)
    return jigsaw_order(torch.rand(batch, rows * columns, generator=torch.Generator().manual_seed(seed)))


def numbered(batch: int, size: tuple[int, int]) -> Tensor:
    """Images of which no two pixels are alike."""
    return torch.arange(batch * 3 * size[0] * size[1], dtype=torch.double).view(batch, 3, *size)


def cut_and_paste(images: Tensor, order: Tensor, grid: int | tuple[int, int]) -> Tensor:
    rows, columns = patches_of(grid)
    h, w = images.shape[2] // rows, images.shape[3] // columns
    result = images.clone()
    for n in range(len(images)):
        for place, source in enumerate(order[n].tolist()):
            (i, j), (k, m) = divmod(place, columns), divmod(source, columns)
            result[n, :, i * h : (i + 1) * h, j * w : (j + 1) * w] = images[n, :, k * h : (k + 1) * h, m * w : (m + 1) * w]
    return result


@pytest.mark.parametrize(("size", "grid"), CASES)
def test_jigsaw_equals_cutting_and_pasting(size: tuple[int, int], grid: int | tuple[int, int]) -> None:
    images, order = numbered(3, size), random_order(3, grid)
    assert torch.equal(jigsaw(images, order, grid), cut_and_paste(images, order, grid))


@pytest.mark.parametrize(("size", "grid"), CASES)
def test_gradients_equal_those_of_cutting_and_pasting(size: tuple[int, int], grid: int | tuple[int, int]) -> None:
    order, weights = random_order(3, grid), numbered(3, size)
    gradients = []
    for shuffle in (jigsaw, cut_and_paste):
        images = torch.zeros(3, 3, *size, dtype=torch.double, requires_grad=True)
        (shuffle(images, order, grid) * weights).sum().backward()
        gradients.append(images.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("size", "grid"), CASES)
def test_undoing_gives_the_image_back(size: tuple[int, int], grid: int | tuple[int, int]) -> None:
    images, order = numbered(3, size), random_order(3, grid)
    assert torch.equal(undo_jigsaw(jigsaw(images, order, grid), order, grid), images)


def test_maps_of_a_shuffled_image_go_back_to_their_places() -> None:
    image, order = torch.rand(1, 1, 32, 32), random_order(1, 4)
    pooled = torch.nn.functional.avg_pool2d(jigsaw(image, order, 4), 4)
    torch.testing.assert_close(undo_jigsaw(pooled, order, 4), torch.nn.functional.avg_pool2d(image, 4))


def test_order_is_a_permutation_of_its_own_for_each_image() -> None:
    order = random_order(16, 4)
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand(16, 16))
    assert len({tuple(row) for row in order.tolist()}) == 16


def test_every_order_is_equally_likely() -> None:
    orders = jigsaw_order(torch.rand(24_000, 4, generator=torch.Generator().manual_seed(0)))
    counts = (orders * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 24
    # 1000 expected; five standard deviations of a binomial count are 155.
    assert counts.float().sub(1000).abs().max() < 155


def test_grid_finer_than_the_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.grids: 8x8 patches do not fit an image of 4x16 pixels"):
        jigsaw(torch.zeros(1, 3, 4, 16), random_order(1, 8), 8)
