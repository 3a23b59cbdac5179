"""Classes of unequal size in the loss: weights, logit adjustment, and how the rare ones are scored."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fgzoo.checkpoints.loading import load
from fgzoo.checkpoints.safetensors import save_safetensors
from fgzoo.data.datamodule import FGVCDataModule
from fgzoo.data.synthetic import Birds
from fgzoo.errors import UsageError
from fgzoo.methods import available
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.class_balance import adjusted_cross_entropy, class_weights, log_priors, weighted_cross_entropy
from fgzoo.methods.evaluation import Evaluation, tail_classes
from fgzoo.nn.output import MethodOutput
from tests.small import CARD, small
from tests.training.toys import trainer

COUNTS = (8, 4, 2, 2)
UNEQUAL = replace(CARD, class_counts=list(COUNTS))
WAYS: tuple[dict[str, Any], ...] = ({"class_weights": "sqrt"}, {"class_weights": "full"}, {"logit_adjustment": 1.0})


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (6, 4), and mixed targets, of which the first two rows are single classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 4, generator=generator)
    targets = torch.rand(6, 4, generator=generator).softmax(dim=1)
    targets[:2] = torch.eye(4)[[3, 0]]
    return logits, targets


def literal_loss(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> float:
    """Image by image, class by class."""
    total = 0.0
    for scores, shares in zip(logits.tolist(), targets.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(score) for score in scores))
        for score, share, weight in zip(scores, shares, weights.tolist(), strict=True):
            total -= weight * ((1 - smoothing) * share + smoothing / len(scores)) * (score - normalizer)
    return total / len(logits)


# ---------------------------------------------------------------------- the two losses


def test_weights_are_inverse_counts_with_a_mean_of_one_over_images() -> None:
    for kind, ratios in (("full", [1, 2, 4, 4]), ("sqrt", [1, 2**0.5, 2, 2])):
        weights = class_weights(COUNTS, kind)  # type: ignore[arg-type]
        assert (weights / weights[0]).tolist() == pytest.approx(ratios)
        assert float((weights * torch.tensor(COUNTS)).sum() / sum(COUNTS)) == pytest.approx(1)


def test_priors_are_shares_of_the_images() -> None:
    assert log_priors(COUNTS).exp().tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["sqrt", "full"])
def test_weighted_cross_entropy_is_the_literal_sum(kind: Literal["sqrt", "full"], smoothing: float) -> None:
    logits, mixed = batch()
    expected = literal_loss(logits, mixed, class_weights(COUNTS, kind), smoothing)
    assert float(weighted_cross_entropy(logits, mixed, COUNTS, kind, smoothing)) == pytest.approx(expected, rel=1e-5)
    classes = mixed.argmax(dim=1)
    expected = literal_loss(logits, torch.eye(4)[classes], class_weights(COUNTS, kind), smoothing)
    assert float(weighted_cross_entropy(logits, classes, COUNTS, kind, smoothing)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_adjusted_cross_entropy_is_the_literal_sum(tau: float, smoothing: float) -> None:
    logits, mixed = batch()
    expected = literal_loss(logits + tau * torch.tensor(COUNTS).div(16).log(), mixed, torch.ones(4), smoothing)
    assert float(adjusted_cross_entropy(logits, mixed, COUNTS, tau, smoothing)) == pytest.approx(expected, rel=1e-5)


def test_halves_of_a_batch_average_to_the_whole() -> None:
    logits, targets = batch()
    halves = [weighted_cross_entropy(logits[rows], targets[rows], COUNTS, "full") for rows in (slice(3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(halves).mean(), weighted_cross_entropy(logits, targets, COUNTS, "full"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_are_at_least_in_single_precision(dtype: torch.dtype) -> None:
    logits, targets = batch()[0].to(dtype), torch.tensor([0, 1, 2, 3, 0, 1])
    wide = torch.promote_types(dtype, torch.float32)
    assert weighted_cross_entropy(logits, targets, COUNTS, "full").dtype == wide
    assert adjusted_cross_entropy(logits, targets, COUNTS, 1.0).dtype == wide


def test_what_was_first_asked_for_in_inference_learns_later() -> None:
    counts = (5, 4, 3, 1)
    logits, targets = batch()[0].requires_grad_(), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.inference_mode():
        weighted_cross_entropy(logits, targets, counts, "full")
        adjusted_cross_entropy(logits, targets, counts, 1.0)
    (weighted_cross_entropy(logits, targets, counts, "full") + adjusted_cross_entropy(logits, targets, counts, 1.0)).backward()
    assert logits.grad is not None


# ---------------------------------------------------------------------- in every method


def training_output(model: FineGrainedClassifier, target: int) -> tuple[MethodOutput, Tensor]:
    """What a method is first trained on, of images of one class."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    targets = torch.full((4,), target)
    keys = torch.stack([torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), torch.arange(4)], dim=1)
    torch.manual_seed(0)
    return next(iter(model.train().training_outputs(images, targets, keys))), targets


def terms(model: FineGrainedClassifier, output: MethodOutput, targets: Tensor) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in model.loss(output, targets).items()}


@pytest.mark.parametrize("name", available())
def test_every_head_of_every_method_is_weighted_and_nothing_else(name: str) -> None:
    plain = small(name)
    output, targets = training_output(plain, target=2)
    expected = terms(plain, output, targets)
    weighted = terms(small(name, UNEQUAL, class_weights="full"), output, targets)
    assert weighted.keys() == expected.keys() >= output.heads.keys()
    weight = float(class_weights(COUNTS, "full")[2])
    for term, value in expected.items():
        assert weighted[term] == pytest.approx(weight * value if term in output.heads else value, rel=1e-5), term


@pytest.mark.parametrize("name", available())
def test_every_head_of_every_method_is_adjusted_and_nothing_else(name: str) -> None:
    plain = small(name)
    output, targets = training_output(plain, target=2)
    shifted = output._replace(heads={head: logits + log_priors(COUNTS) for head, logits in output.heads.items()})
    expected = terms(plain, output, targets) | {
        head: value for head, value in terms(plain, shifted, targets).items() if head in output.heads
    }
    assert terms(small(name, UNEQUAL, logit_adjustment=1.0), output, targets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("how", WAYS)
def test_the_network_and_its_answers_are_the_same(how: dict[str, Any]) -> None:
    plain, other = small(), small(card=UNEQUAL, **how)
    images = torch.randn(2, 3, 64, 64)
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(plain(images).logits, other(images).logits)


# ---------------------------------------------------------------------- where the counts come from


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("card", [None, CARD])
def test_unknown_counts_are_an_error(card: Any, how: dict[str, Any]) -> None:
    model = small(**how)
    model.card = card
    with pytest.raises(UsageError, match="how many training images each class has is not known"):
        model.cross_entropy(*batch())


def test_a_class_without_images_is_named() -> None:
    model = small(card=replace(CARD, class_counts=[3, 0, 1, 1]), class_weights="full")
    with pytest.raises(UsageError, match="class 'Crow' has no training image"):
        model.cross_entropy(*batch())


def test_one_way_at_a_time() -> None:
    with pytest.raises(UsageError, match=r"model\.logit_adjustment: model\.class_weights evens out"):
        small(class_weights="sqrt", logit_adjustment=1.0)
    data = birds(balance="sqrt")
    with pytest.raises(UsageError, match=r"data\.balance: model\.class_weights or model\.logit_adjustment"):
        trainer(None, max_epochs=1).fit(small(card=data.card, class_weights="sqrt"), datamodule=data)


@pytest.mark.parametrize(
    ("argument", "value"), [("class_weights", "ful"), ("logit_adjustment", -1.0), ("logit_adjustment", math.nan)]
)
def test_arguments_out_of_range_are_named(argument: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"model\.{argument}: "):
        small(**{argument: value})


def birds(**arguments: Any) -> FGVCDataModule:
    sizes = Birds(classes=4, train_per_class=4, test_per_class=2, size=64)
    return FGVCDataModule(birds=sizes, image_size=64, resize=64, batch_size=4, seed=0, **{"tail": 1.0, **arguments})


@pytest.mark.parametrize("how", WAYS)
def test_training_takes_the_data_modules_counts_and_checkpoints_keep_them(tmp_path: Path, how: dict[str, Any]) -> None:
    data = birds()
    assert sorted(data.class_counts) == [1, 1, 2, 4]
    model = small(card=replace(data.card, class_counts=None), ema_decay=0.5, **how)
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    save_safetensors(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.card.class_counts == data.class_counts
    assert torch.equal(again.cross_entropy(*batch()), model.cross_entropy(*batch()))


def test_the_tail_is_that_of_the_images_that_were_trained_on(tmp_path: Path) -> None:
    data = birds()
    model = small(card=data.card)
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    # With all images of the training split there are equally many of every class.
    for other in (data, birds(tail=0.0)):
        scores = trainer(tmp_path).test(model, datamodule=other, verbose=False)[0]
        assert model.evaluation.tail == [target for target, count in enumerate(data.class_counts) if count == 1]
        assert 0 <= scores["test/tail"] <= 1


def test_equal_classes_have_no_tail(tmp_path: Path) -> None:
    data = birds(tail=0.0)
    assert "test/tail" not in trainer(tmp_path).test(small(card=data.card), datamodule=data, verbose=False)[0]


# ---------------------------------------------------------------------- the tail's accuracy


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([9, 1, 5], [1]),
        ([9, 1, 5, 2], [1, 3]),  # a third of four, rounded up
        ([1, 3, 3, 9, 9, 9], [0]),  # both classes of 3 would be more than a third
        ([3, 3, 9, 9, 3, 9], [0, 1, 4]),  # the rarest, whatever their number
        ([5, 6, 7, 9, 9, 9], []),  # nearly equal
        ([7, 7, 7], []),
        ([0, 0, 0], []),
        (None, []),
    ],
)
def test_the_tail_is_the_rarest_third(counts: list[int] | None, expected: list[int]) -> None:
    assert tail_classes(counts) == expected


def test_the_tails_accuracy_is_the_mean_over_its_classes() -> None:
    evaluation = Evaluation(4)
    evaluation.tail = [1, 2, 3]
    targets = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, -1])
    predicted = torch.tensor([0, 0, 1, 0, 0, 0, 2, 2, 1])
    evaluation.update(MethodOutput(torch.eye(4)[predicted], {}, torch.empty(9, 0, 1, 1)), targets)
    assert float(evaluation.compute()["tail"]) == pytest.approx((1 / 4 + 2 / 2) / 2)  # class 3 has no image
