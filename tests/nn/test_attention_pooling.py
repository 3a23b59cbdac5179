"""The attention layer, its pooling, its centres and its measure, each beside a slow and literal oracle."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fgzoo.nn.attention_pooling import (
    AttentionMaps,
    ClassCenters,
    bilinear_attention_pooling,
    draw_map,
    map_similarity,
)

# ---------------------------------------------------------------------- the attention layer


def test_rows_are_orthonormal_at_the_start() -> None:
    weight = AttentionMaps(20, 8, init="orthogonal").conv.weight.detach().view(8, 20)
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=0, atol=1e-5)


def test_columns_are_orthonormal_where_there_are_more_maps_than_channels() -> None:
    weight = AttentionMaps(5, 8, init="orthogonal").conv.weight.detach().view(8, 5)
    torch.testing.assert_close(weight.T @ weight, torch.eye(5), rtol=0, atol=1e-5)


def test_default_initialisation_is_that_of_a_convolution() -> None:
    torch.manual_seed(0)
    expected = torch.nn.Conv2d(20, 8, 1, bias=False).weight
    torch.manual_seed(0)
    assert torch.equal(AttentionMaps(20, 8, init="default").conv.weight, expected)


def test_attention_layer_follows_the_equations() -> None:
    torch.manual_seed(0)
    layer = AttentionMaps(4, 3, init="orthogonal").double().eval()
    layer.norm.running_mean = torch.randn(3, dtype=torch.double)
    layer.norm.running_var = torch.rand(3, dtype=torch.double) + 0.5
    features = torch.randn(2, 4, 3, 5, dtype=torch.double)
    maps = layer(features)
    for n in range(2):
        for k in range(3):
            for i in range(3):
                for j in range(5):
                    x = sum(layer.conv.weight[k, c, 0, 0] * features[n, c, i, j] for c in range(4))
                    x = (x - layer.norm.running_mean[k]) / (layer.norm.running_var[k] + 1e-3).sqrt()
                    torch.testing.assert_close(maps[n, k, i, j], (layer.norm.weight[k] * x + layer.norm.bias[k]).clamp_min(0))


# ---------------------------------------------------------------------- bilinear attention pooling


def literal_pooling(features: Tensor, maps: Tensor) -> Tensor:
    rows = []
    for feature, attention in zip(features, maps, strict=True):
        entries = []
        for a in attention:
            for f in feature:
                x = torch.zeros((), dtype=features.dtype)
                for i in range(f.shape[0]):
                    for j in range(f.shape[1]):
                        x = x + a[i, j] * f[i, j]
                x = x / f.numel()
                entries.append(x.sign() * (x.abs() + 1e-12).sqrt())
        vector = torch.stack(entries)
        rows.append(vector / vector.square().sum().sqrt())
    return torch.stack(rows)


def example(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 4, 3, 5, dtype=torch.double, generator=generator)
    maps = torch.rand(batch, 3, 3, 5, dtype=torch.double, generator=generator)
    return features.requires_grad_(), maps.requires_grad_()


def test_pooling_equals_the_literal_loops() -> None:
    features, maps = example()
    torch.testing.assert_close(bilinear_attention_pooling(features, maps), literal_pooling(features, maps), rtol=0, atol=1e-12)


def test_pooling_gradients_equal_the_literal_loops() -> None:
    features, maps = example()
    weights = torch.randn(2, 12, dtype=torch.double)
    found, expected = (
        torch.autograd.grad((pool(features, maps) * weights).sum(), (features, maps))
        for pool in (bilinear_attention_pooling, literal_pooling)
    )
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("zero", ["features", "maps", "both"])
def test_nothing_attended_pools_to_zero_with_finite_gradients(zero: str) -> None:
    features = (torch.zeros(1, 4, 2, 2) if zero != "maps" else torch.randn(1, 4, 2, 2)).requires_grad_()
    maps = (torch.zeros(1, 3, 2, 2) if zero != "features" else torch.rand(1, 3, 2, 2)).requires_grad_()
    pooled = bilinear_attention_pooling(features, maps)
    pooled.sum().backward()
    assert pooled.abs().sum() == 0
    assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(maps.grad).all()  # type: ignore[arg-type]


def test_pooling_is_in_single_precision_under_autocast() -> None:
    features, maps = torch.randn(2, 4, 3, 5), torch.rand(2, 3, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = bilinear_attention_pooling(features, maps)
    assert found.dtype == torch.float32
    assert torch.equal(found, bilinear_attention_pooling(features, maps))


def test_half_precision_activations_do_not_overflow() -> None:
    features, maps = torch.full((1, 2, 8, 8), 200.0), torch.full((1, 2, 8, 8), 200.0)
    expected = bilinear_attention_pooling(features, maps)
    assert torch.equal(bilinear_attention_pooling(features.half(), maps.half()), expected)


# ---------------------------------------------------------------------- which map


def test_drawn_map_is_that_of_the_inverted_sums() -> None:
    maps = torch.rand(50, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(1))
    drawn = draw_map(maps, uniform)
    for n in range(50):
        weights = [math.sqrt(float(maps[n, k].mean())) for k in range(4)]
        reached, k = weights[0] / sum(weights), 0
        while uniform[n] >= reached:
            k += 1
            reached += weights[k] / sum(weights)
        assert torch.equal(drawn[n], maps[n, k])


def test_maps_that_are_all_but_zero_are_equally_likely() -> None:
    maps = (torch.arange(1, 5) * 1e-30)[None, :, None, None].expand(4000, 4, 1, 1)
    drawn = draw_map(maps, torch.linspace(0, 1 - 1e-6, 4000)).flatten()
    assert [(drawn == value).float().mean().item() for value in maps[0].flatten()] == pytest.approx([0.25] * 4, abs=1e-3)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_draws_give_a_map(uniform: float) -> None:
    maps = torch.rand(3, 32, 7, 5) + torch.arange(32)[:, None, None]
    expected = maps[:, 0] if uniform == 0 else maps[:, -1]
    assert torch.equal(draw_map(maps, torch.full((3,), uniform)), expected)


# ---------------------------------------------------------------------- similarity of the maps


def test_similarity_equals_the_mean_over_pairs() -> None:
    maps = torch.rand(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    found = [
        F.cosine_similarity(maps[n, j].flatten(), maps[n, k].flatten(), dim=0)
        for n in range(3)
        for j in range(4)
        for k in range(4)
        if j != k
    ]
    torch.testing.assert_close(map_similarity(maps), torch.stack(found).mean())


@pytest.mark.parametrize("maps", [torch.rand(2, 1, 3, 3), torch.zeros(2, 4, 3, 3)], ids=["one", "zero"])
def test_nothing_to_compare_has_similarity_zero(maps: Tensor) -> None:
    assert map_similarity(maps) == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------- centres


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_centres_equal_the_literal_loop() -> None:
    centers = ClassCenters(4, 5, rate=0.3).double().train()
    literal = torch.zeros(4, 5, dtype=torch.double)
    for round_ in range(6):
        pooled, targets = unit(7, 5, seed=round_), torch.tensor([0, 3, 3, 1, 0, 3, 1])
        before = literal.clone()
        expected = 0.0
        for f, y in zip(pooled, targets, strict=True):
            length = before[y].square().sum().sqrt()
            read = before[y] / length if length > 0 else before[y]
            expected += float((f - read).square().sum()) / 7
            literal[y] += 0.3 * (f - read)
        assert centers(pooled, targets).item() == pytest.approx(expected, abs=1e-12)
        torch.testing.assert_close(centers.centers, literal, rtol=0, atol=1e-12)
    assert centers.centers[2].abs().sum() == 0


def test_evaluation_does_not_move_centres() -> None:
    centers = ClassCenters(2, 5, rate=0.05).double().eval()
    centers(unit(3, 5), torch.tensor([0, 1, 1]))
    assert centers.centers.abs().sum() == 0


def test_the_distance_pulls_features_towards_their_centre() -> None:
    centers = ClassCenters(2, 5, rate=0.05).double().train()
    centers.centers.copy_(unit(2, 5, seed=1) * 0.2)
    read, targets = F.normalize(centers.centers, dim=1).clone(), torch.tensor([0, 1, 1])
    pooled = unit(3, 5).requires_grad_()
    centers(pooled, targets).backward()
    torch.testing.assert_close(pooled.grad, 2 / 3 * (pooled.detach() - read[targets]))


def test_centres_are_kept_in_checkpoints_and_are_no_parameters() -> None:
    centers = ClassCenters(2, 5, rate=0.05)
    assert list(centers.state_dict()) == ["centers"]
    assert not list(centers.parameters())


def move_on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        centers = ClassCenters(4, 5, rate=0.3).double().train()
        for round_ in range(3):
            pooled, targets = unit(6, 5, seed=round_), torch.tensor([0, 3, 3, 1, 0, 3])
            centers(pooled[rank::2], targets[rank::2])
        torch.save(centers.centers, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_processes_move_the_same_centres_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(move_on_a_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    alone = ClassCenters(4, 5, rate=0.3).double().train()
    for round_ in range(3):
        alone(unit(6, 5, seed=round_), torch.tensor([0, 3, 3, 1, 0, 3]))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone.centers, rtol=0, atol=1e-12)
