from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from fgzoo.data.dataset import IGNORED
from fgzoo.methods.evaluation import Evaluation
from fgzoo.nn.output import MethodOutput


def counted(classes: int, *batches: tuple[Tensor, Tensor]) -> Evaluation:
    evaluation = Evaluation(classes)
    for logits, targets in batches:
        evaluation.update(MethodOutput(logits, {"head": logits}, torch.empty(len(logits), 0, 1, 1)), targets)
    return evaluation


def test_accuracies_are_torchmetrics() -> None:
    # One image does not count. Two classes are never shown and have no accuracy, though something is taken for one of them.
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(9, 8, generator=generator), torch.randint(0, 6, (9,), generator=generator)) for _ in range(3)]
    for logits, _ in batches:
        logits[:, 7] = -9
    batches[0][1][4] = IGNORED
    found = counted(8, *batches).compute()
    for name, how in (
        ("top1", {"average": "micro"}),
        ("top5", {"average": "micro", "top_k": 5}),
        ("macro", {"average": None}),
    ):
        oracle = MulticlassAccuracy(8, ignore_index=IGNORED, **how)
        for logits, targets in batches:
            oracle.update(logits, targets)
        expected = oracle.compute()
        assert torch.equal(found[name], expected[:6].mean() if name == "macro" else expected), name


def test_the_calibrated_error_is_that_of_logits_over_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = 4 * torch.randn(40, 5, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    evaluation = Evaluation(5)
    evaluation.temperature = 2.5
    evaluation.update(MethodOutput(logits, {"head": logits}, torch.empty(40, 0, 1, 1)), targets)
    found, plain, soft = (
        evaluation.compute(),
        counted(5, (logits, targets)).compute(),
        counted(5, (logits / 2.5, targets)).compute(),
    )
    for name in ("nll", "ece"):
        assert (found[name], found[f"{name}_calibrated"]) == (plain[name], soft[name])
        assert plain[name] != soft[name]
    assert "nll_calibrated" not in plain


def test_an_answer_that_is_no_number_is_wrong_and_is_not_passed_over() -> None:
    logits, targets = torch.eye(6), torch.arange(6)
    logits[0] = torch.nan
    logits[1, 5] = -torch.inf
    found = counted(6, (logits, targets)).compute()
    assert (found["top1"], found["top5"]) == (pytest.approx(5 / 6), pytest.approx(5 / 6))
    assert found["nll"].isnan()


def test_logits_between_zero_and_one_are_no_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.rand(40, 5, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    alone = [(one[None], target[None]) for one, target in zip(logits, targets, strict=True)]
    expected = counted(5, (logits - 5, targets)).compute()["ece"]
    torch.testing.assert_close(counted(5, (logits, targets)).compute()["ece"], expected)
    torch.testing.assert_close(counted(5, *alone).compute()["ece"], expected)


def test_answers_are_kept_in_order_without_what_does_not_count() -> None:
    logits = torch.eye(3)[[2, 0, 1]]
    evaluation = counted(3, (logits, torch.tensor([2, IGNORED, 0])), (logits[:1], torch.tensor([1])))
    assert evaluation.answers.compute().tolist() == [[2, 2], [0, 1], [1, 2]]


def test_what_is_kept_of_ten_thousand_classes_grows_with_them_not_with_their_square() -> None:
    logits = torch.zeros(4, 10_000)
    evaluation = counted(10_000, (logits, torch.arange(4)))
    assert float(evaluation.compute()["top1"]) == 0.25
    states = [getattr(metric, name) for metric in evaluation.modules() if isinstance(metric, Metric) for name in metric._defaults]
    held = sum(value.numel() for state in states for value in (state if isinstance(state, list) else [state]))
    assert held < 4 * 10_000
