"""Each metric beside its definition written out pixel by pixel; then maps and networks whose score is known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

from fgzoo import create_model
from fgzoo.interpret import metrics
from fgzoo.testing import evaluation_mode

#: Height and width: not square, so that a swap of the two shows.
SIZE = (7, 10)
HALF = torch.arange(10).expand(SIZE) < 5


def random_maps(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def as_map(region: Tensor) -> Tensor:
    return region.double()[None]


# ---------------------------------------------------------------------- regions


def literal_region(distance: Any) -> Tensor:
    rows = [[distance(j + 0.5, i + 0.5) for j in range(SIZE[1])] for i in range(SIZE[0])]
    return torch.tensor(rows, dtype=torch.double)


@pytest.mark.parametrize("tolerance", [0.0, 1.2, 100.0])
@pytest.mark.parametrize(
    "box", [(2.0, 1.0, 6.4, 3.5), (0.0, 0.0, 3.0, 7.0), (7.5, 5.0, 14.0, 9.0), (3.5, 3.5, 3.5, 3.5), (-4.0, -4.0, -1.0, 2.0)]
)
def test_box_region_holds_the_pixels_near_the_box(box: tuple[float, ...], tolerance: float) -> None:
    def distance(x: float, y: float) -> float:
        return math.hypot(x - min(max(x, box[0]), box[2]), y - min(max(y, box[1]), box[3]))

    found = metrics.box_region(torch.tensor([box], dtype=torch.double), SIZE, tolerance)
    assert torch.equal(found[0], literal_region(distance) <= tolerance)


def test_disc_region_holds_the_pixels_near_any_point() -> None:
    points = [(2.5, 1.5), (9.9, 6.9), (-1.0, 3.0)]

    def distance(x: float, y: float) -> float:
        return min(math.hypot(x - px, y - py) for px, py in points)

    given = torch.tensor([[*points, (math.nan, math.nan)]], dtype=torch.double)
    assert torch.equal(metrics.disc_region(given, 2.0, SIZE)[0], literal_region(distance) <= 2.0)


def test_what_is_not_annotated_is_an_empty_region() -> None:
    nowhere = torch.full((1, 4), math.nan)
    assert not metrics.box_region(nowhere, SIZE, tolerance=3.0).any()
    assert not metrics.disc_region(nowhere.view(1, 2, 2), 3.0, SIZE).any()
    assert metrics.disc_region(torch.zeros(2, 0, 2), 3.0, SIZE).shape == (2, *SIZE)
    assert not metrics.disc_region(torch.zeros(2, 0, 2), 3.0, SIZE).any()


# ---------------------------------------------------------------------- where the map is


def literal_pointing(values: Tensor, region: Tensor) -> float:
    pixels = [(i, j) for i in range(SIZE[0]) for j in range(SIZE[1])]
    largest = max(float(values[p]) for p in pixels)
    maxima = [p for p in pixels if float(values[p]) == largest]
    return sum(bool(region[p]) for p in maxima) / len(maxima)


def literal_energy(values: Tensor, region: Tensor) -> float:
    pixels = [(i, j) for i in range(SIZE[0]) for j in range(SIZE[1])]
    total = sum(max(0.0, float(values[p])) for p in pixels)
    return sum(max(0.0, float(values[p])) for p in pixels if region[p]) / total


def test_pointing_game_and_energy_equal_their_definitions() -> None:
    maps = (8 * random_maps(32)).floor() - 2  # whole numbers have ties, and some are negative
    regions = metrics.box_region(torch.tensor([[1.0, 2.0, 6.0, 5.0]]), SIZE).expand(32, -1, -1)
    for score, literal in ((metrics.pointing_game, literal_pointing), (metrics.energy_inside, literal_energy)):
        expected = [literal(m, r) for m, r in zip(maps, regions, strict=True)]
        torch.testing.assert_close(score(maps, regions), torch.tensor(expected, dtype=torch.double), atol=1e-12, rtol=0)


@pytest.mark.parametrize("score", [metrics.pointing_game, metrics.energy_inside])
class TestLocalization:
    def test_a_perfect_map_scores_one_and_the_worst_zero(self, score: Any) -> None:
        assert score(as_map(HALF), HALF[None]).tolist() == [1.0]
        assert score(as_map(~HALF), HALF[None]).tolist() == [0.0]

    @pytest.mark.parametrize("value", [0.0, 1e-9, 0.3, 1.0])
    def test_a_constant_map_scores_chance(self, score: Any, value: float) -> None:
        region = metrics.box_region(torch.tensor([[0.0, 0.0, 4.0, 2.0]]), SIZE)
        assert score(torch.full((1, *SIZE), value), region).item() == pytest.approx(8 / 70)

    def test_a_single_pixel_decides(self, score: Any) -> None:
        maps = torch.zeros(1, *SIZE)
        maps[0, 6, 9] = 0.25
        corner = metrics.disc_region(torch.tensor([[[10.0, 7.0]]]), 1.0, SIZE)
        assert score(maps, corner).tolist() == [1.0]
        assert score(maps.flip(2), corner).tolist() == [0.0]

    def test_an_image_of_one_pixel(self, score: Any) -> None:
        assert score(torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)).tolist() == [1.0]

    def test_an_empty_region_has_no_score(self, score: Any) -> None:
        found = score(random_maps(2), torch.stack([HALF, torch.zeros_like(HALF)]))
        assert found.isnan().tolist() == [False, True]

    def test_half_precision_maps(self, score: Any) -> None:
        assert score(as_map(HALF).half(), HALF[None]).tolist() == [1.0]


def test_ties_broken_by_rounding_stay_ties() -> None:
    maps = torch.where(HALF, 1.0, 1.0 - 1e-7)[None].double()
    maps[0, 0, 0] = 0.0
    assert metrics.pointing_game(maps, HALF[None]).item() == pytest.approx(34 / 69)


def test_centered_gaussian_equals_its_formula_and_is_symmetric() -> None:
    found = metrics.centered_gaussian(SIZE, sigma=0.3).double()
    expected = literal_region(lambda x, y: math.exp(-((x / 10 - 0.5) ** 2 + (y / 7 - 0.5) ** 2) / (2 * 0.3**2)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found, found.flip(0, 1), atol=1e-6, rtol=0)
    assert metrics.pointing_game(found[None], HALF[None]).item() == 0.5  # its two largest pixels


# ---------------------------------------------------------------------- insertion and deletion


def brightness_of_half(images: Tensor) -> Tensor:
    """Two classes: the mean brightness of the left half, and of the right half."""
    return torch.stack([images[:, :, :, :5].mean(dim=(1, 2, 3)), images[:, :, :, 5:].mean(dim=(1, 2, 3))], dim=1)


WHITE = torch.ones(1, 3, *SIZE, dtype=torch.double)
LEFT = torch.tensor([0])


def test_curves_of_a_network_that_sees_the_left_half() -> None:
    best, worst = as_map(HALF), as_map(~HALF)
    rising = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    found = metrics.insertion(brightness_of_half, WHITE, best, LEFT, steps=10, reference="zero")
    torch.testing.assert_close(found.scores[0], torch.tensor(rising, dtype=torch.double), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.fractions, torch.arange(11, dtype=torch.double) / 10, atol=1e-12, rtol=0)
    assert found.area.item() == pytest.approx(0.75)
    assert metrics.insertion(brightness_of_half, WHITE, worst, LEFT, 10, "zero").area.item() == pytest.approx(0.25)
    assert metrics.deletion(brightness_of_half, WHITE, best, LEFT, 10).area.item() == pytest.approx(0.25)
    assert metrics.deletion(brightness_of_half, WHITE, worst, LEFT, 10).area.item() == pytest.approx(0.75)
    # The other class sees the other half.
    assert metrics.insertion(brightness_of_half, WHITE, best, LEFT + 1, 10, "zero").area.item() == pytest.approx(0.25)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_map_changes_pixels_in_reading_order(value: float) -> None:
    found = metrics.insertion(brightness_of_half, WHITE, torch.full((1, *SIZE), value), LEFT, 7, "zero")
    assert found.scores[0].tolist() == pytest.approx([row / 7 for row in range(8)])


@pytest.mark.parametrize("sigma", [0.3, 1.1, 2.0])
def test_blur_equals_scipys(sigma: float) -> None:
    images = random_maps(2)[:, None].expand(-1, 3, -1, -1)
    found = metrics.gaussian_blur(images, sigma)
    for image, blurred in zip(images, found, strict=True):
        radii = tuple(min(math.ceil(3 * sigma), side - 1) for side in SIZE)
        expected = gaussian_filter(image[0].numpy(), sigma, mode="mirror", radius=radii)
        torch.testing.assert_close(blurred[0], torch.from_numpy(expected), atol=1e-12, rtol=0)


# ---------------------------------------------------------------------- occlusion


def literal_occlusion(network: Any, image: Tensor, target: int, window: int, stride: int, fill: float) -> Tensor:
    drops: list[list[list[float]]] = [[[] for _ in range(SIZE[1])] for _ in range(SIZE[0])]
    whole = float(network(image[None])[0, target])
    tops, lefts = ([*range(0, side - window, stride), side - window] for side in SIZE)
    for top in tops:
        for left in lefts:
            hidden = image.clone()
            hidden[:, top : top + window, left : left + window] = fill
            drop = whole - float(network(hidden[None])[0, target])
            for i in range(top, top + window):
                for j in range(left, left + window):
                    drops[i][j].append(drop)
    return torch.tensor([[sum(found) / len(found) for found in row] for row in drops], dtype=torch.double)


@pytest.mark.parametrize(("window", "stride", "batch_size"), [(1, 1, 1000), (3, 2, 4), (7, 7, 1), (4, 3, 5)])
def test_occlusion_equals_its_definition(window: int, stride: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, *SIZE, generator=generator, dtype=torch.double)
    weight = torch.randn(3 * 70, 3, generator=generator, dtype=torch.double)

    def network(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weight).softmax(dim=1)

    found = metrics.occlusion_map(network, images, torch.tensor([2, 0]), window, stride, 0.5, batch_size)
    for b, target in enumerate((2, 0)):
        expected = literal_occlusion(network, images[b], target, window, stride, 0.5)
        torch.testing.assert_close(found[b], expected, atol=1e-12, rtol=0)


def test_occlusion_finds_what_the_network_sees() -> None:
    found = metrics.occlusion_map(brightness_of_half, WHITE, LEFT, window=1, stride=1)
    torch.testing.assert_close(found[0], HALF.double() / 35, atol=1e-12, rtol=0)
    # A window larger than the image hides all of it.
    assert metrics.occlusion_map(brightness_of_half, WHITE, LEFT, window=50, stride=50).unique().tolist() == [1.0]


def test_occlusion_refuses_gaps_between_windows() -> None:
    with pytest.raises(ValueError, match="stride: 4 is not between 1 and the window's side"):
        metrics.occlusion_map(brightness_of_half, WHITE, LEFT, window=3, stride=4)


# ---------------------------------------------------------------------- Grad-CAM


def test_grad_cam_equals_the_library() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    head = [nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 5)]
    network = nn.Sequential(convolution, *head).eval()
    images, classes = torch.randn(3, 3, *SIZE), torch.tensor([4, 0, 2])
    with GradCAM(network, [convolution]) as library:
        expected = torch.from_numpy(library(images, [ClassifierOutputTarget(int(y)) for y in classes]))
    found = metrics.grad_cam(network, convolution, images, classes)
    low, high = found.amin(dim=(1, 2), keepdim=True), found.amax(dim=(1, 2), keepdim=True)
    # The library subtracts a map's minimum as well.
    torch.testing.assert_close((found - low) / (high - low), expected, atol=1e-5, rtol=0)


def test_grad_cam_of_a_linear_classifier_is_its_class_activation_map() -> None:
    model = evaluation_mode(create_model("baseline", 5, "test_resnet", pretrained=False))
    images, classes = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(4)), torch.tensor([1, 3])
    with torch.no_grad():
        found = metrics.grad_cam(lambda x: model(x).logits, model.network.backbone, images, classes)
    torch.testing.assert_close(found, model.explain(images, classes)[:, 0], atol=1e-4, rtol=0)


def test_grad_cam_reads_the_first_of_several_runs() -> None:
    model = evaluation_mode(create_model("wsdan", 5, "test_resnet", pretrained=False))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    found = metrics.grad_cam(lambda x: model(x).logits, model.network.backbone, images, torch.tensor([0, 1]))
    assert found.shape == (2, 64, 64)
    assert 0 <= float(found.min()) < float(found.max()) <= 1 + 1e-6


# ---------------------------------------------------------------------- randomisation


def test_rank_correlation_equals_scipys() -> None:
    first, second = (6 * random_maps(5)).floor(), random_maps(5, seed=1)
    second[1], second[2] = first[1], -first[2]
    expected = [spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic for a, b in zip(first, second, strict=True)]
    found = metrics.rank_correlation(first, second)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double), atol=1e-12, rtol=0)
    assert found[1:3].tolist() == pytest.approx([1.0, -1.0])


def test_a_constant_map_correlates_with_nothing() -> None:
    assert metrics.rank_correlation(torch.zeros(1, *SIZE), random_maps(1)).tolist() == [0.0]
    assert metrics.rank_correlation(torch.ones(1, 1, 1), torch.ones(1, 1, 1)).tolist() == [0.0]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def test_randomization_tells_maps_of_the_image_from_maps_of_the_network() -> None:
    network, images = small_network(), torch.randn(4, 3, 12, 9, generator=torch.Generator().manual_seed(6))
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def of_the_network() -> Tensor:
        with torch.no_grad():
            return network(images)[:, 0]

    layers = metrics.layers_from_top(network, of_the_network)
    assert layers == [network[3], network[1], network[0]]
    groups = [layers[:1], layers[1:]]
    state = torch.get_rng_state()
    of_the_image = metrics.cascading_randomization(lambda: images.mean(dim=1), groups)
    torch.testing.assert_close(of_the_image, torch.ones(2, 4, dtype=torch.double), atol=1e-12, rtol=0)
    found = metrics.cascading_randomization(of_the_network, groups, seed=3)
    assert found.shape == (2, 4)
    assert float(found.abs().max()) < 0.7
    # The same seed gives the same weights; nothing of it stays behind.
    assert torch.equal(found, metrics.cascading_randomization(of_the_network, groups, seed=3))
    assert not torch.equal(found, metrics.cascading_randomization(of_the_network, groups, seed=4))
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_randomization_cascades() -> None:
    network = small_network()
    fresh = [layer.weight.clone() for layer in (network[0], network[3])]
    changed: list[list[bool]] = []

    def watch() -> Tensor:
        now = (network[0].weight, network[3].weight)
        changed.append([not torch.equal(a, b) for a, b in zip(fresh, now, strict=True)])
        return random_maps(1)

    metrics.cascading_randomization(watch, [[network[3]], [network[1], network[0]]])
    assert changed == [[False, False], [False, True], [True, True]]


def test_parameters_without_a_reset_are_drawn_anew_and_restored_after_a_failure() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.linspace(-1, 1, 400) + 3)

    layer = Scale()
    before = layer.factor.detach().clone()
    assert metrics.layers_from_top(layer, lambda: None) == [layer]

    def explain() -> Tensor:
        if not torch.equal(layer.factor, before):
            assert float(layer.factor.detach().mean()) == pytest.approx(3.0, abs=0.15)
            assert float(layer.factor.detach().std()) == pytest.approx(0.58, abs=0.15)
            raise RuntimeError("out of memory")
        return random_maps(1)

    with pytest.raises(RuntimeError, match="out of memory"):
        metrics.cascading_randomization(explain, [[layer]])
    assert torch.equal(layer.factor, before)
