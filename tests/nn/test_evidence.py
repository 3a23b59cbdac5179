"""Evidence heads against their equations; distillation and alignment against theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgzoo.nn.evidence import EvidenceHead, alignment_loss, distillation_loss
from fgzoo.nn.maps import normalize_map


def maps_of(dtype: torch.dtype = torch.double, gradient: bool = False) -> list[Tensor]:
    """Three maps of different width and grid, none of them square, no ratio of grids whole."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 7, 5), (2, 4, 4, 3), (2, 2, 2, 2))
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(gradient) for shape in shapes]


def head_of(channels: list[int], dtype: torch.dtype = torch.double) -> EvidenceHead:
    torch.manual_seed(0)
    return EvidenceHead(channels, 6).to(dtype)


def literal(head: EvidenceHead, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The definition: resize, concatenate, convolve pixel by pixel, average."""
    size = maps[0].shape[-2:]
    together = torch.cat([F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], dim=1)
    weight = head.conv.weight[:, :, 0, 0]
    pixels = [together[:, :, i, j] @ weight.T for i in range(size[0]) for j in range(size[1])]
    evidence = torch.stack(pixels, dim=-1).unflatten(2, size)
    return evidence, evidence.sum(dim=(2, 3)) / (size[0] * size[1]) + head.bias


@pytest.mark.parametrize("count", [1, 3])
def test_head_equals_convolving_the_concatenation(count: int) -> None:
    head, maps = head_of([3, 4, 2][:count]), maps_of()[:count]
    evidence, logits = literal(head, maps)
    torch.testing.assert_close(head.evidence(maps), evidence, atol=1e-12, rtol=0)
    torch.testing.assert_close(head(maps), logits, atol=1e-12, rtol=0)


def test_gradients_equal_those_of_convolving_the_concatenation() -> None:
    head = head_of([3, 4, 2])
    found = []
    for logits_of in (head, lambda maps: literal(head, maps)[1]):
        maps = maps_of(gradient=True)
        found.append(torch.autograd.grad(logits_of(maps).square().sum(), [*maps, head.conv.weight, head.bias]))
    for ours, oracle in zip(*found, strict=True):
        torch.testing.assert_close(ours, oracle, atol=1e-11, rtol=0)


def test_evidence_of_a_class_is_its_map_among_all() -> None:
    head, maps = head_of([3, 4, 2]), maps_of()
    torch.testing.assert_close(head.evidence(maps, torch.tensor([4, 0])), head.evidence(maps)[[0, 1], [4, 0]])


def test_distillation_follows_the_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, generator=generator, dtype=torch.double) * 5 for _ in range(2))
    expected = 0.0
    for s, t in zip(student / 3, teacher / 3, strict=True):
        p, q = t.exp() / t.exp().sum(), s.exp() / s.exp().sum()
        expected += 9 * float((p * (p / q).log()).sum()) / 3
    assert float(distillation_loss(student, teacher, temperature=3)) == pytest.approx(expected, abs=1e-12)


def test_distillation_teaches_the_student_alone() -> None:
    student, teacher = (torch.randn(3, 5, dtype=torch.double, requires_grad=True) for _ in range(2))
    distillation_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher.detach()), (student,))


def test_distillation_of_half_precision_extremes_is_finite() -> None:
    student = torch.tensor([[6e4, -6e4]], dtype=torch.half)
    assert torch.isfinite(distillation_loss(student, -student))


def test_alignment_follows_the_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(3, 4, 6, generator=generator)
    evidence = torch.randn(3, 2, 3, generator=generator)
    expected = 0.0
    for a, e in zip(attention, evidence, strict=True):
        e = F.interpolate(e[None, None], size=(4, 6), mode="bilinear", align_corners=False)[0, 0].clamp_min(0)
        expected += float((a / a.max() - e / e.max()).square().sum()) / 24 / 3
    assert float(alignment_loss(attention, evidence)) == pytest.approx(expected, rel=1e-5)


def test_alignment_moves_the_attention_alone() -> None:
    attention, evidence = torch.rand(2, 4, 4, requires_grad=True), torch.rand(2, 2, 2, requires_grad=True)
    loss = alignment_loss(attention, evidence)
    loss.backward()
    assert evidence.grad is None
    with torch.no_grad():
        assert alignment_loss(attention - 0.1 * attention.grad, evidence) < loss


def test_images_without_positive_evidence_are_not_aligned() -> None:
    attention = torch.rand(2, 4, 4, requires_grad=True)
    evidence = torch.stack([-torch.rand(4, 4), torch.rand(4, 4)])
    alignment_loss(attention, evidence).backward()
    assert attention.grad[0].abs().sum() == 0
    assert attention.grad[1].abs().sum() > 0


def test_alignment_of_an_empty_attention_has_a_bounded_gradient() -> None:
    attention = torch.zeros(1, 4, 4, requires_grad=True)
    evidence = torch.rand(1, 4, 4)
    alignment_loss(attention, evidence).backward()
    assert attention.grad.abs().max() <= 2 * float(normalize_map(evidence).max()) / 16 / 1e-3 * 1.001
